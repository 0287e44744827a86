//! A scratch folder for each run, removed at its end; what killed runs left is swept when the next one starts.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PREFIX: &str = "medtune-run-";
const LOCK_SUFFIX: &str = ".lock";
/// How long a lock may be there before its folder.
const NEW: Duration = Duration::from_secs(600);

/// A run's scratch folder, which nobody else may look into: it holds images. The lock beside it is held as long as the
/// process lives, whatever ends it.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes a new folder of this user's own in `root`, and removes those there whose processes are gone.
    pub(super) fn create(root: &Path) -> Result<Scratch> {
        fs::create_dir_all(root).map_err(|e| Error::io("create", root, e))?;
        sweep(root);
        // the lock is held before the folder is there, so that no other run's sweep finds the folder without it; a random
        // name and mode 0700: no other user can guess it, take it or read it
        let name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
        let lock_path = root.join(format!("{name}{LOCK_SUFFIX}"));
        let lock = File::create_new(&lock_path).map_err(|e| Error::io("create", &lock_path, e))?;
        lock.lock().map_err(|e| Error::io("lock", &lock_path, e))?;
        let folder = root.join(name);
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(Scratch { folder, lock_path, _lock: lock })
    }

    /// An empty folder for one step.
    pub(super) fn step(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(folder)
    }

    /// Frees the space of a finished step.
    pub(super) fn clear(&self, name: &str) {
        remove(&self.folder.join(name));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.folder);
        drop(fs::remove_file(&self.lock_path));
    }
}

/// A lock that nobody holds belongs to a run that was killed: its folder goes first, then the lock. A lock without its folder
/// may be one that is just being made, and is left until it has been there for a while.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file_name.strip_suffix(LOCK_SUFFIX).filter(|n| n.starts_with(PREFIX)) else { continue };
        let Ok(lock) = File::open(entry.path()) else { continue };
        let folder = root.join(name);
        let old = |f: &File| f.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|e| e > NEW));
        if lock.try_lock().is_ok() && (folder.exists() || old(&lock)) {
            remove(&folder);
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %error, "cannot remove a scratch folder");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_its_own_and_abandoned_folders_but_no_live_ones() {
        let root = tempfile::tempdir().unwrap();
        let abandoned = root.path().join(format!("{PREFIX}killed"));
        fs::create_dir_all(abandoned.join("step")).unwrap();
        let lock = root.path().join(format!("{PREFIX}killed{LOCK_SUFFIX}"));
        File::create(&lock).unwrap();
        let other_program = root.path().join("elsewhere");
        fs::create_dir_all(&other_program).unwrap();
        let being_made = root.path().join(format!("{PREFIX}new{LOCK_SUFFIX}"));
        File::create(&being_made).unwrap();
        let live = Scratch::create(root.path()).unwrap();
        assert!(!abandoned.exists() && !lock.exists() && other_program.exists() && being_made.exists());
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&live.folder).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
        let other = Scratch::create(root.path()).unwrap();
        assert!(live.step("s").unwrap().exists());
        let (live_at, other_at) = (live.folder.clone(), other.folder.clone());
        drop(other);
        assert!(live_at.exists() && !other_at.exists());
        drop(live);
        assert!(!live_at.exists());
    }
}
