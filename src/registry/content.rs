//! The files of versions: verified in place, or pulled to a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::{FileDigest, Store, check_key, rename, sha256_file};

use super::version::{Version, check_paths};

/// Whether other tools write a file into model folders after publishing; such files are never part of a version.
pub(super) fn ignored(path: &str) -> bool {
    path == "registered_model_meta" || path.split('/').any(|segment| segment == "__pycache__")
}

/// How files differ from what was published.
#[derive(Debug, Default)]
pub(super) struct Problems {
    changed: Vec<String>,
    missing: Vec<String>,
    extra: Vec<String>,
}

impl Problems {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }

    pub(super) fn into_result(self, reference: &str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        Err(Error::data(format!("{reference} is not what was published: {self}; restore it or publish a new version")))
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("changed", &self.changed), ("missing", &self.missing), ("extra", &self.extra)];
        let named = parts.iter().filter(|(_, paths)| !paths.is_empty());
        let texts: Vec<String> = named
            .map(|(what, paths)| {
                let quoted: Vec<String> = paths.iter().map(|p| format!("'{}'", p.escape_debug())).collect();
                format!("{what} {}", quoted.join(", "))
            })
            .collect();
        f.write_str(&texts.join("; "))
    }
}

/// Compares the files that there are (path and size) with those of the version; the content is not read.
fn compare_sizes(version: &Version, mut found: BTreeMap<String, u64>) -> Problems {
    let mut problems = Problems::default();
    for file in &version.files {
        match found.remove(&file.path) {
            Some(size) if size == file.size => {}
            Some(_) => problems.changed.push(file.path.clone()),
            None => problems.missing.push(file.path.clone()),
        }
    }
    problems.extra = found.into_keys().filter(|path| !ignored(path)).collect();
    problems
}

/// How the files in the store differ from the version by name and size.
pub(super) fn size_problems(store: &Store, version: &Version) -> Result<Problems> {
    // a folder is walked, since the listing of a store hides links and the leftovers of killed writers
    if let Some(folder) = store.local_path(&version.prefix) {
        return if folder.is_dir() {
            Ok(compare_sizes(version, sizes(&walk(&folder)?)?))
        } else {
            Ok(compare_sizes(version, BTreeMap::new()))
        };
    }
    let folder = format!("{}/", version.prefix);
    let found = store.list(&version.prefix)?.into_iter();
    let found = found.filter_map(|o| Some((o.key.strip_prefix(&folder)?.to_owned(), o.size)));
    Ok(compare_sizes(version, found.collect()))
}

/// Adds the files whose content is not that of the version; `digest_of` says what a file's content is.
fn compare_content(
    version: &Version,
    problems: &mut Problems,
    mut digest_of: impl FnMut(&str) -> Result<Option<FileDigest>>,
) -> Result<()> {
    for file in &version.files {
        if problems.changed.contains(&file.path) || problems.missing.contains(&file.path) {
            continue;
        }
        match digest_of(&file.path)? {
            Some(found) if found == file.digest() => {}
            Some(_) => problems.changed.push(file.path.clone()),
            None => problems.missing.push(file.path.clone()),
        }
    }
    problems.changed.sort();
    problems.missing.sort();
    Ok(())
}

/// Reads every file of a version and compares it with the manifest.
///
/// `registered_model_meta` and `__pycache__`, which other tools add to model folders, are ignored.
///
/// # Errors
/// [`crate::ErrorKind::Data`] naming every changed, missing and extra file; [`crate::ErrorKind::Storage`] if a file
/// cannot be read.
pub fn verify_version(store: &Store, version: &Version) -> Result<()> {
    let mut problems = size_problems(store, version)?;
    compare_content(version, &mut problems, |path| store.digest(&version.key(path)))?;
    problems.into_result(&version.reference())
}

/// Copies the files of a version into the folder `dest`, which appears whole and verified, or not at all.
///
/// A `dest` that already holds exactly this version is left as it is.
///
/// # Errors
/// [`crate::ErrorKind::Conflict`] if `dest` holds anything else; [`crate::ErrorKind::Data`] if a file in the store is
/// not what was published; [`crate::ErrorKind::NoSpace`] for a full disk, otherwise [`crate::ErrorKind::Storage`].
pub fn pull(store: &Store, version: &Version, dest: &Path) -> Result<()> {
    // the version may come from anywhere; no path of it may lead out of the folder
    check_key(&version.prefix)?;
    check_paths(version.files.iter().map(|f| f.path.as_str()))?;
    let reference = version.reference();
    if occupied(dest)? {
        return local_problems(version, dest)
            .and_then(|problems| problems.into_result(&reference))
            .map_err(|e| taken(dest, &reference).with_source(e));
    }
    // the same name each time, so that an interrupted pull is gone on with
    let staging = staging(dest, version)?;
    fs::create_dir_all(&staging).map_err(|e| Error::io("create", &staging, e))?;
    let lock = fs::File::open(&staging).map_err(|e| Error::io("open", &staging, e))?;
    lock.lock().map_err(|e| Error::io("lock", &staging, e))?;
    if !staging.is_dir() {
        // somebody else has just finished the same
        return pull(store, version, dest);
    }
    let fetched = version.files.iter().try_for_each(|file| {
        let to = staging.join(&file.path);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        store.fetch(&version.key(&file.path), &to, &file.digest())
    });
    if let Err(error) = fetched.context(|| format!("pull {reference}")) {
        if error.kind().retryable() && error.kind() != ErrorKind::NoSpace {
            let left = staging.display();
            return Err(Error::new(
                error.kind(),
                format!("{error}; the same command goes on with what is in '{left}'"),
            ));
        }
        drop(fs::remove_dir_all(&staging));
        return Err(error);
    }
    // what another version of this program, or a damaged disk, left in it is no part of the version
    let problems = compare_sizes(version, sizes(&walk(&staging)?)?);
    problems.into_result(&reference).inspect_err(|_| drop(fs::remove_dir_all(&staging)))?;
    // renaming onto a folder that has been filled meanwhile fails, and leaves it as it is
    rename(&staging, dest)
}

/// Where a version is put together that is to become `dest`.
fn staging(dest: &Path, version: &Version) -> Result<PathBuf> {
    let Some(name) = dest.file_name() else {
        return Err(Error::config(format!("'{}' does not name a folder", dest.display())));
    };
    Ok(dest.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), &version.digest[..16])))
}

fn taken(dest: &Path, reference: &str) -> Error {
    let dest = dest.display();
    Error::conflict(format!("'{dest}' exists and is not {reference}: remove it or pull to another folder"))
}

/// Whether something other than an empty folder is at `path`.
///
/// # Errors
/// Those of looking it up.
pub(crate) fn occupied(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {
            let mut entries = fs::read_dir(path).map_err(|e| Error::io("list", path, e))?;
            Ok(entries.next().is_some())
        }
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("look up", path, e)),
    }
}

/// How a local folder differs from a version.
fn local_problems(version: &Version, folder: &Path) -> Result<Problems> {
    let files = walk(folder)?;
    let mut problems = compare_sizes(version, sizes(&files)?);
    let files: BTreeMap<String, PathBuf> = files.into_iter().collect();
    compare_content(version, &mut problems, |name| files.get(name).map(|path| sha256_file(path)).transpose())?;
    Ok(problems)
}

/// The sizes of files in bytes, by their paths in the folder.
fn sizes(files: &[(String, PathBuf)]) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for (name, path) in files {
        let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        sizes.insert(name.clone(), metadata.len());
    }
    Ok(sizes)
}

/// All files below `folder` as [`super::NewVersion::files`] takes them, sorted by path.
///
/// `registered_model_meta` and `__pycache__`, which other tools add to model folders, are left out.
///
/// # Errors
/// [`crate::ErrorKind::Data`] for links and special files, and for names with other characters than letters, digits,
/// `.`, `_` and `-`; [`crate::ErrorKind::NotFound`] or [`crate::ErrorKind::Storage`] if the folder cannot be read.
pub fn folder_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = walk(folder)?;
    files.retain(|(name, _)| !ignored(name));
    for (name, path) in &files {
        check_key(name).map_err(|e| {
            Error::data(format!("'{}' cannot be published, rename it", path.display().to_string().escape_debug()))
                .with_source(e)
        })?;
    }
    Ok(files)
}

/// All regular files below `folder` with their paths in it, sorted; links are refused, never followed.
fn walk(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut folders = vec![(String::new(), folder.to_path_buf())];
    while let Some((prefix, folder)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))? {
            let entry = entry.map_err(|e| Error::io("list", &folder, e))?;
            let path = entry.path();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|e| Error::io("read", &path, e))?;
            if kind.is_dir() {
                folders.push((format!("{name}/"), path));
            } else if kind.is_file() {
                files.push((name, path));
            } else {
                let path = path.display();
                return Err(Error::data(format!("'{path}' is a link or special file, put a regular file there")));
            }
        }
    }
    files.sort();
    Ok(files)
}
