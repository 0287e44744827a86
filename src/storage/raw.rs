//! What really lies in a store, for cleaning up: in a folder also what listings hide, such as the leftovers of killed writers.

use std::fs;
use std::io::ErrorKind as Io;
use std::path::Path;

use time::OffsetDateTime;

use crate::error::{Error, Result};

use super::{ObjectInfo, Store, check_key};

/// Whether a path holds what a killed writer left: `NAME#<digits>`, or `.NAME.<32 hexadecimal digits>.partial` and what
/// is in it. Neither can be a key of this crate's making that is whole.
pub(crate) fn is_leftover(path: &str) -> bool {
    path.split('/').any(|segment| {
        let digits = segment.rsplit_once('#').filter(|(name, _)| !name.is_empty()).map(|(_, digits)| digits);
        let staged = digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
        let partial = segment.strip_prefix('.').and_then(|s| s.strip_suffix(".partial")?.rsplit_once('.'));
        staged || partial.is_some_and(|(_, id)| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

impl Store {
    /// Like [`Store::list`], but in a folder with all that lies there: leftovers of killed writers, links (never followed)
    /// and names that are no valid keys. Names that are not UTF-8 are left out, with a warning.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub(crate) fn list_raw(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        check_key(prefix)?;
        let Some(root) = &self.inner.root else { return self.list(prefix) };
        let mut found = Vec::new();
        let mut folders = vec![prefix.to_owned()];
        while let Some(key) = folders.pop() {
            read_folder(root, &key, &mut found, &mut folders)?;
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Removes what [`Store::list_raw`] has listed under this key, and in a folder the folders that it leaves empty: not
    /// those of a kind or name, which somebody may be about to use. One that is not there is no error.
    ///
    /// # Errors
    /// As [`Store::delete`].
    pub(crate) fn delete_raw(&self, key: &str) -> Result<()> {
        let Some(root) = &self.inner.root else { return self.delete(key) };
        let path = root.join(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != Io::NotFound => return Err(Error::io("remove", &path, e)),
            _ => {}
        }
        let depth = if key.starts_with("checkpoints/") { 1 } else { 2 };
        let folders: Vec<_> = key.match_indices('/').skip(depth).map(|(end, _)| root.join(&key[..end])).collect();
        // a folder that is not empty, or that somebody else has removed, ends this
        let _ = folders.into_iter().rev().map(fs::remove_dir).find(Result::is_err);
        Ok(())
    }
}

/// Adds what lies in one folder; a folder that is not there, or no longer, is empty.
fn read_folder(root: &Path, key: &str, found: &mut Vec<ObjectInfo>, folders: &mut Vec<String>) -> Result<()> {
    let folder = root.join(key);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == Io::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("list", &folder, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", &folder, e))?;
        let Ok(name) = entry.file_name().into_string() else {
            tracing::warn!(path = %entry.path().display(), "left alone: its name is not UTF-8");
            continue;
        };
        let key = format!("{key}/{name}");
        // of a link, not of what it leads to
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == Io::NotFound => continue,
            Err(e) => return Err(Error::io("look up", entry.path(), e)),
        };
        if metadata.is_dir() {
            folders.push(key);
            continue;
        }
        // a time that cannot be told counts as very old, as in listings
        let modified = metadata.modified().map_or(OffsetDateTime::UNIX_EPOCH, OffsetDateTime::from);
        found.push(ObjectInfo { key, size: metadata.len(), modified });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_told_from_whole_files() {
        let id = "0123456789abcdef0123456789abcdef";
        for leftover in ["a/b.bin#1", "x#22", &format!("a/.out.{id}.partial"), &format!(".out.{id}.partial/sub/file")] {
            assert!(is_leftover(leftover), "{leftover}");
        }
        for whole in ["a/b.bin", "#1", "a#", "a#1b", ".x.partial", "a/.out.0123.partial", &format!("out.{id}.partial")]
        {
            assert!(!is_leftover(whole), "{whole}");
        }
    }

    #[test]
    fn raw_listings_show_what_listings_hide_and_never_follow_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        store.put("a/b/c/d/whole", b"123".to_vec()).unwrap();
        fs::write(folder.path().join("a/b/c/d/whole#1"), "12").unwrap();
        fs::write(folder.path().join("a/odd name"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("a/link")).unwrap();
        let keys = |store: &Store| store.list_raw("a").unwrap().into_iter().map(|o| o.key).collect::<Vec<_>>();
        assert_eq!(keys(&store), ["a/b/c/d/whole", "a/b/c/d/whole#1", "a/link", "a/odd name"]);
        let listed = store.list_raw("a").unwrap();
        assert_eq!(listed[1].size, 2);
        assert!((OffsetDateTime::now_utc() - listed[1].modified).whole_minutes() < 5);
        for key in keys(&store) {
            store.delete_raw(&key).unwrap();
            store.delete_raw(&key).unwrap();
        }
        assert!(keys(&store).is_empty() && outside.path().join("precious").exists());
        assert!(folder.path().join("a/b").exists() && !folder.path().join("a/b/c").exists());
        assert!(store.list_raw("never").unwrap().is_empty());
    }
}
