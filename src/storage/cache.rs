//! What was fetched from elsewhere, kept on this machine: each content once, whoever asked for it and under whatever name.
//!
//! Guarantees:
//! - **A file in it is complete and was verified** when it got its name. Several processes may use one cache: of those that
//!   want the same content, one fetches it and the others wait; a killed one is succeeded, and its bytes are gone on with.
//! - **It stays below its limit** as long as what is in use fits: what was used longest ago goes first. What this process has
//!   been given stays until the process ends.
//!
//! ```text
//! blobs/SHA256        a content
//! folders/ID/...      a version or an input: hard links to contents
//! locks/ID            held shared by the users of a folder until they end, alone by whoever removes it; its time is that of the last use
//! locks/ID.making     held by whoever makes a folder: makers wait for each other, and must not wait for users
//! partial/SHA256      what is being fetched
//! seen/HASH.json      what a place held when it was fetched: see source.rs
//! ```
//!
//! It belongs on a disk of this machine: it needs hard links and `flock`.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorKind, Result};

use super::settings::StoreSettings;
use super::{FileDigest, PartialPath, check_key, rename};

/// The limit when none is set: 100 GB.
const DEFAULT_LIMIT: u64 = 100_000_000_000;

/// After this time, what is unfinished and locked by nobody is removed.
const ABANDONED: Duration = Duration::from_secs(86_400);

/// The folders that this process uses, with their locks.
static IN_USE: LazyLock<Mutex<HashMap<PathBuf, File>>> = LazyLock::new(Mutex::default);

/// A cache in a folder of this machine.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    limit: u64,
}

impl Cache {
    /// The cache that `MEDTUNE_CACHE_DIR` and `MEDTUNE_CACHE_SIZE` (such as `50GB`) say, by default
    /// `$XDG_CACHE_HOME/medtune/store` or `~/.cache/medtune/store` of at most 100 GB. Nothing is made yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a size that cannot be read, or when there is no home folder.
    pub fn from_settings(settings: &StoreSettings) -> Result<Cache> {
        let limit = match settings.variable("MEDTUNE_CACHE_SIZE") {
            Some(text) => parse_size(text)?,
            None => DEFAULT_LIMIT,
        };
        let root = match (settings.variable("MEDTUNE_CACHE_DIR"), settings.variable("XDG_CACHE_HOME")) {
            (Some(folder), _) => PathBuf::from(folder),
            (None, Some(folder)) => Path::new(folder).join("medtune/store"),
            (None, None) => match settings.variable("HOME") {
                Some(home) => Path::new(home).join(".cache/medtune/store"),
                None => return Err(Error::config("there is no home folder for the cache: set MEDTUNE_CACHE_DIR")),
            },
        };
        Ok(Cache { root, limit })
    }

    /// A cache at `root` of at most `limit` bytes.
    #[must_use]
    pub fn new(root: PathBuf, limit: u64) -> Cache {
        Cache { root, limit }
    }

    /// The folder `id` with exactly these files (path in it, content); `fetch(path, to)` gets the missing ones, each straight
    /// to its file, where it may find what an earlier attempt left.
    ///
    /// `id` must stand for exactly these files, as a hash over them does.
    ///
    /// # Errors
    /// Those of `fetch`; [`ErrorKind::NoSpace`] if the limit or the disk is too small; [`ErrorKind::Storage`] otherwise.
    pub fn folder(
        &self,
        id: &str,
        files: &[(String, FileDigest)],
        mut fetch: impl FnMut(&str, &Path, &FileDigest) -> Result<()>,
    ) -> Result<PathBuf> {
        check_key(id)?;
        let folder = self.root.join("folders").join(id);
        if in_use(&folder) {
            return Ok(folder);
        }
        self.make()?;
        let lock_path = self.root.join("locks").join(id);
        let lock = open_lock(&lock_path)?;
        // nobody removes the folder from here on
        lock.lock_shared().map_err(|e| Error::io("lock", &lock_path, e))?;
        if !folder.is_dir() {
            let making_path = self.root.join("locks").join(format!("{id}.making"));
            let making = open_lock(&making_path)?;
            making.lock().map_err(|e| Error::io("lock", &making_path, e))?;
            if !folder.is_dir() {
                self.fill(&folder, files, &mut fetch)?;
            }
        }
        drop(lock.set_modified(SystemTime::now()));
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone(), lock);
        Ok(folder)
    }

    fn make(&self) -> Result<()> {
        for name in ["blobs", "folders", "locks", "partial", "seen"] {
            let folder = self.root.join(name);
            // images and reports of patients may come to lie here
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|e| Error::io("create the cache's folder", &folder, e))?;
        }
        Ok(())
    }

    fn fill(
        &self,
        folder: &Path,
        files: &[(String, FileDigest)],
        fetch: &mut impl FnMut(&str, &Path, &FileDigest) -> Result<()>,
    ) -> Result<()> {
        let staging = PartialPath::beside(folder)?;
        fs::create_dir_all(staging.path()).map_err(|e| Error::io("create", staging.path(), e))?;
        self.make_room(files)?;
        for (path, digest) in files {
            let to = staging.path().join(path);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
            }
            self.link(digest, &to, |partial| fetch(path, partial, digest))?;
        }
        staging.rename_to(folder)
    }

    /// Makes `to` a link to the content `digest`, which is fetched when it is not there.
    fn link(&self, digest: &FileDigest, to: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        check_key(&digest.sha256)?;
        let lock_path = self.root.join("locks").join(&digest.sha256);
        let lock = open_lock(&lock_path)?;
        lock.lock().map_err(|e| Error::io("lock", &lock_path, e))?;
        let blob = self.root.join("blobs").join(&digest.sha256);
        if !fs::metadata(&blob).is_ok_and(|m| m.len() == digest.size) {
            let partial = self.root.join("partial").join(&digest.sha256);
            fetch(&partial)?;
            read_only(&partial)?;
            rename(&partial, &blob)?;
        }
        fs::hard_link(&blob, to).map_err(|e| Error::io("link", to, e))
    }

    /// Keeps a file that was fetched without knowing its content: `fetch` writes it and says what it is.
    pub(super) fn keep(&self, name: &str, fetch: impl FnOnce(&Path) -> Result<FileDigest>) -> Result<FileDigest> {
        check_key(name)?;
        self.make()?;
        let unique = uuid::Uuid::new_v4().simple();
        let partial = Removed(self.root.join("partial").join(format!("{name}.{unique}")));
        let digest = fetch(&partial.0)?;
        let blob = self.root.join("blobs").join(&digest.sha256);
        read_only(&partial.0)?;
        rename(&partial.0, &blob)?;
        Ok(digest)
    }

    /// Whether there is a file of this content.
    pub(super) fn has(&self, digest: &FileDigest) -> bool {
        fs::metadata(self.root.join("blobs").join(&digest.sha256)).is_ok_and(|m| m.len() == digest.size)
    }

    /// What `seen/NAME.json` holds.
    pub(super) fn seen(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join("seen").join(format!("{name}.json"))).ok()
    }

    /// Writes `seen/NAME.json`.
    pub(super) fn remember(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.make()?;
        let path = self.root.join("seen").join(format!("{name}.json"));
        let partial = PartialPath::beside(&path)?;
        fs::write(partial.path(), bytes).map_err(|e| Error::io("write", partial.path(), e))?;
        partial.rename_to(&path)
    }

    /// Removes what was used longest ago, until these files fit.
    fn make_room(&self, files: &[(String, FileDigest)]) -> Result<()> {
        let wanted: HashMap<&str, u64> = files.iter().map(|(_, d)| (d.sha256.as_str(), d.size)).collect();
        let have = self.sizes("blobs")?;
        let needed: u64 = wanted.iter().filter(|(sha256, _)| !have.contains_key(**sha256)).map(|(_, size)| size).sum();
        self.sweep_abandoned()?;
        let mut used: u64 = have.values().sum::<u64>() + self.sizes("partial")?.values().sum::<u64>();
        if used + needed <= self.limit {
            return Ok(());
        }
        let mut folders: Vec<(SystemTime, String)> = names(&self.root.join("folders"))?
            .into_iter()
            .filter(|name| !name.starts_with('.'))
            .map(|name| {
                let lock = fs::metadata(self.root.join("locks").join(&name));
                (lock.and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH), name)
            })
            .collect();
        folders.sort();
        self.sweep_unlinked(&wanted, &mut used)?;
        for (_, name) in folders {
            if used + needed <= self.limit {
                return Ok(());
            }
            if self.evict(&name)? {
                self.sweep_unlinked(&wanted, &mut used)?;
            }
        }
        if used + needed <= self.limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "the cache '{}' may hold {} bytes, of which {used} are in use, and {needed} more are needed: raise MEDTUNE_CACHE_SIZE",
                self.root.display(),
                self.limit
            ),
        ))
    }

    /// Removes what killed processes left unfinished, a day later: until then it may be gone on with.
    fn sweep_abandoned(&self) -> Result<()> {
        let old = |path: &Path| {
            let modified = fs::metadata(path).and_then(|m| m.modified());
            modified.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > ABANDONED))
        };
        for name in names(&self.root.join("partial"))? {
            let path = self.root.join("partial").join(&name);
            let lock = open_lock(&self.root.join("locks").join(name.split('.').next().unwrap_or_default()))?;
            if old(&path) && lock.try_lock().is_ok() {
                drop(fs::remove_file(&path));
            }
        }
        for name in names(&self.root.join("folders"))?.into_iter().filter(|name| name.starts_with('.')) {
            let path = self.root.join("folders").join(name);
            if old(&path) {
                drop(fs::remove_dir_all(&path));
            }
        }
        Ok(())
    }

    /// Removes a folder that nobody uses.
    fn evict(&self, name: &str) -> Result<bool> {
        let lock_path = self.root.join("locks").join(name);
        let lock = open_lock(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &lock_path, e)),
        }
        // renamed first: nobody may find half of it
        let folder = self.root.join("folders").join(name);
        let going = PartialPath::beside(&folder)?;
        match fs::rename(&folder, going.path()) {
            Ok(()) => tracing::debug!(folder = name, "removed from the cache"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("remove", &folder, e)),
        }
        Ok(true)
    }

    /// Removes contents that no folder links to, but for those that are wanted.
    fn sweep_unlinked(&self, wanted: &HashMap<&str, u64>, used: &mut u64) -> Result<()> {
        for name in names(&self.root.join("blobs"))? {
            let path = self.root.join("blobs").join(&name);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.nlink() > 1 || wanted.contains_key(name.as_str()) {
                continue;
            }
            // whoever links it at this moment holds its lock
            let lock_path = self.root.join("locks").join(&name);
            let lock = open_lock(&lock_path)?;
            if lock.try_lock().is_ok() && fs::metadata(&path).is_ok_and(|m| m.nlink() == 1) {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                *used = used.saturating_sub(metadata.len());
            }
        }
        Ok(())
    }

    fn sizes(&self, folder: &str) -> Result<HashMap<String, u64>> {
        let folder = self.root.join(folder);
        let size = |name: String| Some((name.clone(), fs::metadata(folder.join(&name)).ok()?.len()));
        Ok(names(&folder)?.into_iter().filter_map(size).collect())
    }
}

fn in_use(folder: &Path) -> bool {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner).contains_key(folder) && folder.is_dir()
}

/// Removed when it is dropped, if it is there.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// A content has many names: nobody may write to it through one of them.
fn read_only(path: &Path) -> Result<()> {
    let mut permissions = fs::metadata(path).map_err(|e| Error::io("read", path, e))?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(|e| Error::io("protect", path, e))
}

fn open_lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    file.map_err(|e| Error::io("open the lock file", path, e))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let list = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    Ok(list.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Bytes of `500MB`, `50GB`, `1TB` (powers of ten), or a plain number.
fn parse_size(text: &str) -> Result<u64> {
    let units = [("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000_u64)];
    let upper = text.trim().to_ascii_uppercase();
    let (digits, unit) = units
        .iter()
        .find_map(|(name, factor)| Some((upper.strip_suffix(name)?.trim().to_owned(), *factor)))
        .unwrap_or((upper.clone(), 1));
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0).ok_or_else(|| {
        Error::config(format!("MEDTUNE_CACHE_SIZE: '{}' is no size, write for example 50GB", text.escape_default()))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::storage::sha256_hex;

    fn file(name: &str, content: &str) -> (String, FileDigest) {
        (name.to_owned(), FileDigest { size: content.len() as u64, sha256: sha256_hex(content.as_bytes()) })
    }

    #[test]
    fn contents_are_fetched_once_and_the_oldest_go() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path().join("c"), 20);
        let fetched = Cell::new(0);
        let get = |id: &str, names: &[(&str, &str)]| {
            let files: Vec<_> = names.iter().map(|(name, content)| file(name, content)).collect();
            cache.folder(id, &files, |name, to, _| {
                fetched.set(fetched.get() + 1);
                let content = names.iter().find(|(n, _)| *n == name).unwrap().1;
                fs::write(to, content).map_err(|e| Error::io("write", to, e))
            })
        };
        let a = get("a", &[("x/one", "0123456789"), ("two", "abc")]).unwrap();
        assert_eq!(fs::read_to_string(a.join("x/one")).unwrap(), "0123456789");
        assert_eq!(get("a", &[]).unwrap(), a);
        // another name for the same content
        let b = get("b", &[("other", "0123456789")]).unwrap();
        assert_eq!((fetched.get(), fs::read_to_string(b.join("other")).unwrap().len()), (2, 10));
        // this process uses both
        let error = get("c", &[("big", "0123456789abcdef")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("MEDTUNE_CACHE_SIZE"), "{error}");
        assert!(a.is_dir() && b.is_dir());
        // as after their users' end
        IN_USE.lock().unwrap().retain(|folder, _| !folder.starts_with(root.path()));
        let c = get("c", &[("big", "0123456789abcdef")]).unwrap();
        assert!(c.is_dir() && !a.exists());
        let blobs: u64 = cache.sizes("blobs").unwrap().values().sum();
        assert!(blobs <= 20, "{blobs}");
        assert_eq!(cache.sizes("partial").unwrap().len(), 0);
    }

    #[test]
    fn one_of_many_fetches() {
        let root = tempfile::tempdir().unwrap();
        let fetched = std::sync::atomic::AtomicU32::new(0);
        let cache = Cache::new(root.path().to_owned(), 1000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = cache.folder("f", &[file("a", "content")], |_, to, _| {
                        fetched.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(50));
                        fs::write(to, "content").map_err(|e| Error::io("write", to, e))
                    });
                    assert_eq!(fs::read_to_string(folder.unwrap().join("a")).unwrap(), "content");
                });
            }
        });
        assert_eq!(fetched.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[test]
    fn who_makes_a_folder_does_not_wait_for_its_users() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path().to_owned(), 1000);
        cache.make().unwrap();
        // as another process does that got the folder a moment earlier, and will use it for hours
        let user = open_lock(&root.path().join("locks/f")).unwrap();
        user.lock_shared().unwrap();
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let folder = cache.folder("f", &[file("a", "content")], |_, to, _| {
                fs::write(to, "content").map_err(|e| Error::io("write", to, e))
            });
            done.send(folder)
        });
        let folder = wait.recv_timeout(Duration::from_secs(20)).expect("a folder within 20 s").unwrap();
        assert!(folder.join("a").is_file());
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [("12", 12), ("5 kb", 5000), ("50GB", 50_000_000_000)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for bad in ["", "GB", "-1", "0", "1.5GB", "99999999999999999TB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
