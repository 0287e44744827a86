//! Locks that end with their process.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};

use super::Store;

/// Where the lock files of a folder lie.
const FOLDER: &str = ".locks";

/// The locks of a store that is not a folder, held within this process.
#[derive(Debug, Default)]
pub(super) struct HeldLocks {
    names: Mutex<HashSet<String>>,
    released: Condvar,
}

/// A lock that is held until this is dropped, or its process ends in any way.
#[derive(Debug)]
pub struct StoreLock(Held);

#[derive(Debug)]
enum Held {
    // the kernel drops the lock with the open file, also on kill -9
    File { _file: File },
    Process { store: Store, name: String },
}

impl Store {
    /// Waits for the lock that `name` belongs to, and takes it.
    ///
    /// It keeps two processes that publish the same thing from doing the work at once; what is committed never depends
    /// on it. Names share 256 locks, so a thread must hold one lock at a time. In a folder it is an `flock`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`] or [`crate::ErrorKind::NoSpace`] if the lock file cannot be made or locked.
    pub fn lock(&self, name: &str) -> Result<StoreLock> {
        let slot = slot(name);
        let Some(root) = &self.inner.root else {
            let held = &self.inner.held;
            let names = held.names.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = held.released.wait_while(names, |names| names.contains(&slot));
            wait.unwrap_or_else(PoisonError::into_inner).insert(slot.clone());
            return Ok(StoreLock(Held::Process { store: self.clone(), name: slot }));
        };
        let folder = root.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let path = folder.join(format!("{slot}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io("open the lock file", &path, e))?;
        file.lock().map_err(|e| Error::io("lock", &path, e))?;
        Ok(StoreLock(Held::File { _file: file }))
    }
}

impl Store {
    /// Whether anybody holds the lock that `name` belongs to, this process included.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`] if it cannot be told.
    pub fn is_locked(&self, name: &str) -> Result<bool> {
        let slot = slot(name);
        let Some(root) = &self.inner.root else {
            let names = self.inner.held.names.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(names.contains(&slot));
        };
        let path = root.join(FOLDER).join(format!("{slot}.lock"));
        match File::open(&path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("open the lock file", &path, e)),
        }
    }
}

/// Names share 256 locks.
fn slot(name: &str) -> String {
    super::sha256_hex(name.as_bytes())[..2].to_owned()
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        if let Held::Process { store, name } = &self.0 {
            let held = &store.inner.held;
            held.names.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            held.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_thread_at_a_time_holds_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        for store in [Store::in_memory(), Store::open(folder.path().to_str().unwrap()).unwrap()] {
            let inside = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..20 {
                            let lock = store.lock("a").unwrap();
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            assert!(store.is_locked("a").unwrap());
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    });
                }
            });
            assert!(!store.is_locked("a").unwrap());
        }
    }
}
