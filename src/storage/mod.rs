//! One store: put, get, list, and the create-if-absent that publishing rests on.
//!
//! Guarantees:
//! - **An object is visible whole or not at all.** Readers never see part of a write, also when the writer is killed. Only
//!   what is written with [`Store::grow`] may end in a part.
//! - **[`Store::create_exact`] has one winner** among all processes that race for a key, and a writer whose
//!   acknowledgement was lost still learns that it won. It is the only commit of this crate.
//! - **A file is verified when it is fetched:** [`Store::download`] compares size and SHA-256 before the file gets its
//!   name. Stores do not check content on their own.
//! - **A successful write is on the disk:** files and their folders are synced before the call returns.
//! - Memory is bounded: files travel in parts of 8 MiB (more only for files beyond 70 GB).
//!
//! All calls are synchronous. A private tokio runtime drives the [`object_store`] crate; nothing here may be called from
//! inside another runtime. Folders (`file:///path` or a plain path) are the only stores of this version; all code goes
//! through [`object_store::ObjectStore`], so that another store is a new branch in [`Store::open`] and nothing else.
//!
//! Local folders must support hard links (create-if-absent is a hard link), and `flock` across all machines that share
//! them (see [`Store::lock`]).

mod digest;
mod fault_kind;
#[cfg(test)]
mod faults;
mod grow;
mod key;
mod lock;
pub(crate) mod tls;
mod transfer;
mod uri;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use time::OffsetDateTime;

use crate::error::{Context, Error, ErrorKind, Result};

pub use digest::{FileDigest, sha256_file, sha256_hex};
#[cfg(test)]
pub(crate) use faults::faulty_store;
pub use key::check_key;
pub use lock::StoreLock;
pub(crate) use transfer::PartialPath;

/// How often [`Store::create_exact`] tries before it gives up.
const CREATE_ATTEMPTS: u32 = 8;

/// A store of objects under keys. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    uri: String,
    backend: Arc<dyn ObjectStore>,
    /// The folder, for file stores.
    root: Option<PathBuf>,
    held: lock::HeldLocks,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("uri", &self.inner.uri).finish_non_exhaustive()
    }
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key, relative to the store.
    pub key: String,
    /// The size in bytes.
    pub size: u64,
    /// When it was last written, by the store's clock.
    pub modified: OffsetDateTime,
}

/// How a [`Store::create_exact`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The object holds exactly the given body.
    Won,
    /// Somebody else created the key first, with this body.
    Lost(Vec<u8>),
}

impl Store {
    /// Opens the store at `uri`: `file:///absolute/path` or a plain path. The folder is created when it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URI that is malformed or of a scheme that this version does not have;
    /// [`ErrorKind::Storage`] or [`ErrorKind::NoSpace`] if the folder cannot be created or opened.
    pub fn open(uri: &str) -> Result<Store> {
        let folder = uri::parse(uri)?;
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create the store's folder", &folder, e))?;
        let root = folder.canonicalize().map_err(|e| Error::io("open the store's folder", &folder, e))?;
        let backend = LocalFileSystem::new_with_prefix(&root)
            .map_err(|e| self::fault_kind::storage_error("open", &root.display().to_string(), e))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self::over(uri::of_path(&root), Arc::new(backend), Some(root)))
    }

    /// Opens the store at `uri` for reading: nothing is created.
    ///
    /// # Errors
    /// As [`Store::open`], and [`ErrorKind::NotFound`] when there is no store.
    pub fn open_existing(uri: &str) -> Result<Store> {
        let folder = uri::parse(uri)?;
        if !folder.is_dir() {
            let text = format!(
                "there is no store at '{}': check --store, MEDTUNE_STORE or the job's store:",
                folder.display()
            );
            return Err(Error::not_found(text));
        }
        Store::open(uri)
    }

    /// A store in this process's memory, for tests: it starts empty and is gone with its last clone.
    #[must_use]
    pub fn in_memory() -> Store {
        Self::over("memory://".to_owned(), Arc::new(object_store::memory::InMemory::new()), None)
    }

    fn over(uri: String, backend: Arc<dyn ObjectStore>, root: Option<PathBuf>) -> Store {
        Store { inner: Arc::new(Inner { uri, backend, root, held: lock::HeldLocks::default() }) }
    }

    /// The canonical URI, without a trailing slash.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.inner.uri
    }

    /// The URI of `key` in this store.
    #[must_use]
    pub fn uri_of(&self, key: &str) -> String {
        let uri = self.uri();
        let separator = if uri.ends_with('/') { "" } else { "/" };
        format!("{uri}{separator}{key}")
    }

    /// Where `key` lies on this machine; `None` if the store is not a folder or the key is not valid.
    #[must_use]
    pub fn local_path(&self, key: &str) -> Option<PathBuf> {
        check_key(key).ok()?;
        Some(self.inner.root.as_ref()?.join(key))
    }

    /// Writes `bytes` to `key`, replacing what is there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, [`ErrorKind::NoSpace`] for a full disk, otherwise
    /// [`ErrorKind::Storage`].
    pub fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let path = object_path(key)?;
        run(self.inner.backend.put(&path, PutPayload::from(bytes)))?.map(drop).map_err(|e| self.error("write", key, e))
    }

    /// Copies the file at `path` to `key`, replacing what is there, and returns what was written.
    ///
    /// The file is read once, in parts, and hashed while it is read.
    ///
    /// # Errors
    /// As [`Store::put`]; [`ErrorKind::NotFound`] if there is no such file.
    pub fn put_file(&self, key: &str, path: &Path) -> Result<FileDigest> {
        let target = object_path(key)?;
        run(transfer::upload(self, key, &target, path))?
    }

    /// The object at `key`, or `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, otherwise [`ErrorKind::Storage`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let path = object_path(key)?;
        let read = async {
            let result = self.inner.backend.get(&path).await?;
            result.bytes().await
        };
        match run(read)? {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.error("read", key, e)),
        }
    }

    /// Copies the object at `key` to the file `to`, which appears only after its size and SHA-256 were found to be as
    /// `expected`. The folder of `to` must exist; a file there is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such object, [`ErrorKind::Data`] if its content differs from what is
    /// expected, [`ErrorKind::NoSpace`] for a full disk, otherwise [`ErrorKind::Storage`].
    pub fn download(&self, key: &str, to: &Path, expected: &FileDigest) -> Result<()> {
        let source = object_path(key)?;
        let part = PartialPath::beside(to)?;
        let found = run(transfer::fetch(self, key, &source, Some(part.path())))??;
        check_digest(self, key, &found, expected)?;
        part.rename_to(to)
    }

    /// Size and SHA-256 of the object at `key`, computed from its content; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, otherwise [`ErrorKind::Storage`].
    pub fn digest(&self, key: &str) -> Result<Option<FileDigest>> {
        let source = object_path(key)?;
        match run(transfer::fetch(self, key, &source, None))? {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether there is an object at `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, otherwise [`ErrorKind::Storage`].
    pub fn exists(&self, key: &str) -> Result<bool> {
        let path = object_path(key)?;
        match run(self.inner.backend.head(&path))? {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error("look up", key, e)),
        }
    }

    /// All objects below the folder `prefix`, at any depth, sorted by key. An empty prefix lists the whole store.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid prefix, otherwise [`ErrorKind::Storage`].
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let prefix = prefix.trim_end_matches('/');
        let path = if prefix.is_empty() { None } else { Some(object_path(prefix)?) };
        let listing = self.inner.backend.list(path.as_ref());
        let found: Vec<_> = run(listing.try_collect())?.map_err(|e| self.error("list", prefix, e))?;
        let mut objects: Vec<ObjectInfo> = found.into_iter().map(|meta| object_info(&meta)).collect();
        // local listings come in the order of the folder
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Removes the object at `key`; one that is not there is no error.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, otherwise [`ErrorKind::Storage`].
    pub fn delete(&self, key: &str) -> Result<()> {
        let path = object_path(key)?;
        match run(self.inner.backend.delete(&path))? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.error("delete", key, e)),
        }
    }

    /// Removes all objects below the folder `prefix`, also what killed writers left of unfinished ones.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid prefix, otherwise [`ErrorKind::Storage`].
    pub fn delete_folder(&self, prefix: &str) -> Result<()> {
        check_key(prefix)?;
        if let Some(folder) = self.local_path(prefix) {
            return match std::fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &folder, e)),
                _ => Ok(()),
            };
        }
        for object in self.list(prefix)? {
            self.delete(&object.key)?;
        }
        Ok(())
    }

    /// Creates `key` with exactly `body`, unless the key exists; of all that race for a key, one wins.
    ///
    /// `body` must be unique to the caller (carry a random value) if two callers must not both win with equal bodies.
    /// A store may say that a key exists although this very call created it (its first answer was lost), or though
    /// nothing exists; so after any error the object itself decides.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, [`ErrorKind::NoSpace`] for a full disk, [`ErrorKind::Storage`] if it
    /// is still undecided after several attempts.
    pub fn create_exact(&self, key: &str, body: Vec<u8>) -> Result<Created> {
        let path = object_path(key)?;
        let bytes = bytes::Bytes::from(body);
        let mut last = None;
        for attempt in 0..CREATE_ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(backoff(attempt));
            }
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let error = match run(self.inner.backend.put_opts(&path, PutPayload::from(bytes.clone()), options))? {
                Ok(_) => return Ok(Created::Won),
                Err(error) => error,
            };
            let error = self.error("create", key, error);
            match self.get(key) {
                Ok(Some(found)) if found == bytes => return Ok(Created::Won),
                Ok(Some(found)) => return Ok(Created::Lost(found)),
                Ok(None) if error.kind() == ErrorKind::NoSpace => return Err(error),
                Ok(None) => last = Some(error),
                Err(unreadable) => last = Some(unreadable),
            }
            tracing::debug!(key, attempt, "create-if-absent is undecided, trying again");
        }
        let last = last.unwrap_or_else(|| Error::internal("no attempt was made"));
        Err(last.context(format!("gave up after {CREATE_ATTEMPTS} attempts")))
    }

    fn error(&self, action: &str, key: &str, source: object_store::Error) -> Error {
        fault_kind::storage_error(action, &self.uri_of(key), source)
    }
}

fn object_info(meta: &ObjectMeta) -> ObjectInfo {
    let modified = OffsetDateTime::from_unix_timestamp(meta.last_modified.timestamp());
    // seconds; a time that cannot be told counts as very old
    let modified = modified.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    ObjectInfo { key: meta.location.to_string(), size: meta.size, modified }
}

/// Compares what was read from `key` with what must be there.
fn check_digest(store: &Store, key: &str, found: &FileDigest, expected: &FileDigest) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let uri = store.uri_of(key);
    Err(Error::data(if found.size == expected.size {
        format!("'{uri}' has changed: its sha256 is {}, expected {}; restore it", found.sha256, expected.sha256)
    } else {
        format!("'{uri}' has changed: it has {} bytes, expected {}; restore it", found.size, expected.size)
    }))
}

/// The store's own path type; keys are taken as they are, never percent-encoded.
fn object_path(key: &str) -> Result<ObjectPath> {
    check_key(key)?;
    ObjectPath::parse(key).map_err(|e| Error::config(format!("'{key}' is not a valid key")).with_source(e))
}

/// 50 ms, doubled with each attempt up to 3.2 s, less a random part of up to a half so that racers drift apart.
fn backoff(attempt: u32) -> Duration {
    let full = 50_u64 << (attempt - 1).min(6);
    let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
    Duration::from_millis(full - full / 2 * random / 255)
}

/// Drives a future of the store on the private runtime.
fn run<F: Future>(future: F) -> Result<F::Output> {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.block_on(future));
    }
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("medtune-storage")
        .enable_all()
        .build()
        .map_err(|e| Error::storage("cannot start the storage threads").with_source(e));
    // two threads may both get here; the loser's runtime is dropped unused
    let built = built.context(|| "open the store")?;
    Ok(RUNTIME.get_or_init(|| built).block_on(future))
}

/// The path that a `file:///...` URI or a plain path names, percent-encoding undone.
///
/// # Errors
/// [`ErrorKind::Config`] for a malformed URI or one of another scheme.
pub fn local_folder(uri: &str) -> Result<PathBuf> {
    uri::parse(uri)
}

#[cfg(test)]
mod tests;
