//! A scratch folder for each run, removed at its end; what killed runs left is swept when the next one starts.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// A run's scratch folder. The lock in it is held as long as the process lives, whatever ends it.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes `root/NAME` and removes the folders beside it whose processes are gone.
    pub(super) fn create(root: &Path, name: &str) -> Result<Scratch> {
        fs::create_dir_all(root).map_err(|e| Error::io("create", root, e))?;
        sweep(root);
        let folder = root.join(name);
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        lock.lock().map_err(|e| Error::io("lock", &path, e))?;
        Ok(Scratch { folder, _lock: lock })
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
    }
}

fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            remove(&entry.path());
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
        let abandoned = root.path().join("killed");
        fs::create_dir_all(&abandoned).unwrap();
        File::create(abandoned.join(LOCK)).unwrap();
        let live = Scratch::create(root.path(), "live").unwrap();
        assert!(!abandoned.exists());
        let other = Scratch::create(root.path(), "other").unwrap();
        assert!(live.step("s").unwrap().exists());
        drop(other);
        assert!(root.path().join("live").exists() && !root.path().join("other").exists());
        drop(live);
        assert!(!root.path().join("live").exists());
    }
}
