//! Locks that end with their process: `flock` in a folder, a lease with a heartbeat where machines share a store.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::stop;

use super::lease::Lease;
use super::{Store, sha256_hex};

/// Where the lock files of a folder lie.
const FOLDER: &str = ".locks";
/// How often a lock that somebody else holds is asked for.
const POLL: Duration = Duration::from_millis(200);

/// The locks of a store in memory, held within this process.
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
    File { _file: File, path: PathBuf },
    Process { store: Store, name: String },
    Lease(Lease),
}

impl StoreLock {
    /// Whether the lock is still held: a process that was stopped for long may have lost it.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] if it was lost.
    pub fn check(&self) -> Result<()> {
        match &self.0 {
            Held::Lease(lease) => lease.check(),
            Held::File { .. } | Held::Process { .. } => Ok(()),
        }
    }
}

impl Store {
    /// Waits for the lock `name`, and takes it.
    ///
    /// It keeps two processes from doing the same work at once; what is committed never depends on it. Locks do not nest
    /// within a name. In a folder it is an `flock`; elsewhere a holder that shows no sign of life for the lease's time
    /// has lost it.
    ///
    /// # Errors
    /// [`ErrorKind::Preempted`] if this process is asked to stop while it waits; [`ErrorKind::Storage`] or
    /// [`ErrorKind::NoSpace`] if the lock cannot be made.
    pub fn lock(&self, name: &str) -> Result<StoreLock> {
        let id = id(name);
        if let Some(ttl) = self.inner.lease {
            return Ok(StoreLock(Held::Lease(Lease::take(self, &id, name, ttl)?)));
        }
        let Some(path) = self.lock_file(&id) else {
            let held = &self.inner.held;
            let names = held.names.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = held.released.wait_while(names, |names| names.contains(&id));
            wait.unwrap_or_else(PoisonError::into_inner).insert(id.clone());
            return Ok(StoreLock(Held::Process { store: self.clone(), name: id }));
        };
        let mut told = false;
        loop {
            if let Some(file) = try_lock(&path)? {
                return Ok(StoreLock(Held::File { _file: file, path }));
            }
            waiting(name, &mut told)?;
            std::thread::sleep(POLL);
        }
    }

    /// Whether anybody holds the lock `name`, this process included.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] if it cannot be told.
    pub fn is_locked(&self, name: &str) -> Result<bool> {
        let id = id(name);
        if let Some(ttl) = self.inner.lease {
            return Lease::is_held(self, &id, ttl);
        }
        let Some(path) = self.lock_file(&id) else {
            return Ok(self.inner.held.names.lock().unwrap_or_else(PoisonError::into_inner).contains(&id));
        };
        match File::open(&path).map(|file| file.try_lock_shared()) {
            Ok(Ok(())) => Ok(false),
            Ok(Err(TryLockError::WouldBlock)) => Ok(true),
            Ok(Err(TryLockError::Error(e))) => Err(Error::io("lock", &path, e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("open the lock file", &path, e)),
        }
    }

    fn lock_file(&self, id: &str) -> Option<PathBuf> {
        let root = self.inner.root.as_ref()?;
        Some(root.join(FOLDER).join(format!("{id}.lock")))
    }
}

/// The file, locked; `None` if somebody else holds it, or has just removed it.
fn try_lock(path: &std::path::Path) -> Result<Option<File>> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|e| Error::io("open the lock file", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path, e)),
    }
}

/// Whether the open file still has its name: its last holder removes it.
fn is_at(file: &File, path: &std::path::Path) -> bool {
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    let (open, named) = (file.metadata().map(identity), std::fs::metadata(path).map(identity));
    matches!((open, named), (Ok(open), Ok(named)) if open == named)
}

/// Says once that somebody else is waited for, and ends the waiting when this process is asked to stop.
pub(super) fn waiting(name: &str, told: &mut bool) -> Result<()> {
    if !*told {
        *told = true;
        tracing::info!(lock = name, "another process is doing the same, waiting for it");
    }
    match stop::requested() {
        Some(signal) => Err(Error::new(ErrorKind::Preempted, format!("{signal} while waiting for '{name}'"))),
        None => Ok(()),
    }
}

fn id(name: &str) -> String {
    sha256_hex(name.as_bytes())[..32].to_owned()
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        match &self.0 {
            Held::Process { store, name } => {
                let held = &store.inner.held;
                held.names.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                held.released.notify_all();
            }
            // while it is still locked; one that stays does no harm
            Held::File { path, .. } => drop(std::fs::remove_file(path)),
            Held::Lease(_) => {}
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
        let leased = Store::in_memory().with_lease(Duration::from_secs(5));
        for store in [Store::in_memory(), Store::open(folder.path().to_str().unwrap()).unwrap(), leased] {
            let inside = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for _ in 0..2 {
                            let lock = store.lock("a").unwrap();
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            assert!(store.is_locked("a").unwrap() && !store.is_locked("b").unwrap());
                            lock.check().unwrap();
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
