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
//! - **No secret is shown:** errors and log lines are free of the credentials that stores are opened with.
//!
//! All calls are synchronous. A private tokio runtime drives the [`object_store`] crate; nothing here may be called from
//! inside another runtime. Stores are folders (`file:///path` or a plain path), S3, Azure Blob and Google Cloud Storage.
//! Inputs may lie anywhere of these, or on a web server: see [`Source`].
//!
//! Local folders must support hard links (create-if-absent is a hard link), and `flock` across all machines that share
//! them (see [`Store::lock`]).

mod backend;
mod cache;
mod digest;
mod fault_kind;
#[cfg(test)]
mod faults;
mod grow;
mod key;
mod lease;
mod lock;
mod object;
mod preflight;
mod raw;
mod remote_file;
mod settings;
mod source;
pub(crate) mod tls;
mod transfer;
mod uri;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use time::OffsetDateTime;

use crate::error::{Context, Error, ErrorKind, Result};

pub use cache::Cache;
pub use digest::{FileDigest, sha256_file, sha256_hex};
#[cfg(test)]
pub(crate) use faults::faulty_store;
pub use key::check_key;
pub use lock::StoreLock;
pub(crate) use raw::is_leftover;
pub use remote_file::RemoteFile;
pub use settings::StoreSettings;
pub use source::{Source, is_remote};
pub(crate) use transfer::{PartialPath, rename};
use uri::Location;

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
    /// Whether uploads are read back.
    read_back: bool,
    /// How long the holder of a lock may be silent; `None` where locks end with this process.
    lease: Option<Duration>,
    /// What it was opened with: for the cache, and for inputs of the same kind of store.
    settings: StoreSettings,
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
    /// Opens the store at `uri`, a folder or memory, without settings. The folder is created when it is missing.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn open(uri: &str) -> Result<Store> {
        Store::open_with(uri, &StoreSettings::default())
    }

    /// Opens the store at `uri`: `s3://bucket/path`, `az://container/path`, `abfss://container@account.../path`,
    /// `gs://bucket/path`, `file:///absolute/path`, `memory://` or a plain path. A folder is created when it is missing; of
    /// others nothing is asked yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URI that is malformed or no store, for unknown options and missing credentials;
    /// [`ErrorKind::Storage`] or [`ErrorKind::NoSpace`] if the folder cannot be created or opened.
    pub fn open_with(uri: &str, settings: &StoreSettings) -> Result<Store> {
        let location = Location::parse(uri)?;
        if let Location::Http(_) = location {
            let shown = location.canonical();
            return Err(Error::config(format!("'{shown}' can be an input but no store: a web server takes no files")));
        }
        let backend = backend::connect(location, settings)?;
        backend::check_store_path(&backend).context(|| format!("'{}'", backend.root_uri))?;
        let (uri, client) = if backend.path.is_empty() {
            (backend.root_uri, backend.client)
        } else {
            let uri = format!("{}/{}", backend.root_uri, backend.path);
            let below: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(backend.client, backend.path));
            (uri, below)
        };
        let inner = Inner {
            uri,
            backend: client,
            root: backend.folder,
            read_back: backend.read_back,
            lease: backend.lease,
            settings: settings.clone(),
            held: lock::HeldLocks::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Opens the store at `uri` for reading: nothing is created.
    ///
    /// # Errors
    /// As [`Store::open_with`], and [`ErrorKind::NotFound`] when there is no store.
    pub fn open_existing(uri: &str, settings: &StoreSettings) -> Result<Store> {
        let missing = |place: String| {
            Error::not_found(format!(
                "there is no store at '{place}': check --store, MEDTUNE_STORE or the job's store:"
            ))
        };
        if let Location::Folder(folder) = Location::parse(uri)?
            && !folder.is_dir()
        {
            return Err(missing(folder.display().to_string()));
        }
        let store = Store::open_with(uri, settings)?;
        if store.is_remote() && store.is_empty()? {
            return Err(missing(store.uri().to_owned()));
        }
        Ok(store)
    }

    /// What is kept on this machine of what was fetched from this store and from elsewhere.
    ///
    /// # Errors
    /// As [`Cache::from_settings`].
    pub fn cache(&self) -> Result<Cache> {
        Cache::from_settings(&self.inner.settings)
    }

    /// An input at a URI, reached with the settings of this store where it is of the same kind.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn source(&self, uri: &str) -> Result<Source> {
        Source::open(uri, &self.settings_for(uri))
    }

    /// Another store at a URI, reached with the settings of this one where it is of the same kind.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn beside(&self, uri: &str) -> Result<Store> {
        Store::open_with(uri, &self.settings_for(uri))
    }

    fn settings_for(&self, uri: &str) -> StoreSettings {
        let scheme = |uri: &str| uri.split("://").next().unwrap_or_default().to_ascii_lowercase();
        let settings = &self.inner.settings;
        if scheme(uri) == scheme(self.uri()) { settings.clone() } else { settings.without_options() }
    }

    /// The storage account that `az://` URIs mean, where it is known.
    #[must_use]
    pub fn azure_account(&self) -> Option<String> {
        self.inner.settings.azure_account()
    }

    /// Whether there is no object at all.
    fn is_empty(&self) -> Result<bool> {
        let mut listing = self.inner.backend.list(None);
        let first = run(listing.try_next())?.map_err(|e| self.error("list", "", e))?;
        Ok(first.is_none())
    }

    /// Whether other machines reach this store over a network.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.inner.lease.is_some()
    }

    /// A store in this process's memory, for tests: it starts empty and is gone with its last clone.
    #[must_use]
    pub fn in_memory() -> Store {
        Self::over("memory://", Arc::new(object_store::memory::InMemory::new()))
    }

    fn over(uri: &str, backend: Arc<dyn ObjectStore>) -> Store {
        let (uri, held) = (uri.to_owned(), lock::HeldLocks::default());
        let settings = StoreSettings::default();
        Store { inner: Arc::new(Inner { uri, backend, root: None, read_back: false, lease: None, settings, held }) }
    }

    /// The same store with locks that are leases, as between machines.
    #[cfg(test)]
    pub(crate) fn with_lease(self, ttl: Duration) -> Store {
        let (uri, backend) = (self.inner.uri.clone(), self.inner.backend.clone());
        let (settings, held) = (self.inner.settings.clone(), lock::HeldLocks::default());
        let inner = Inner { uri, backend, root: None, read_back: false, lease: Some(ttl), settings, held };
        Store { inner: Arc::new(inner) }
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
        let separator = if uri.ends_with('/') || key.is_empty() { "" } else { "/" };
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
        let part = PartialPath::beside(to)?;
        self.fetch(key, part.path(), expected)?;
        part.rename_to(to)
    }

    /// As [`Store::download`], but straight to `to`: what an interrupted call left there is kept, and the rest of the object
    /// added to it.
    ///
    /// # Errors
    /// As [`Store::download`]. What is there after other errors than [`ErrorKind::Data`] can be gone on with.
    pub(crate) fn fetch(&self, key: &str, to: &Path, expected: &FileDigest) -> Result<()> {
        let source = object_path(key)?;
        run(transfer::fetch(&self.object(key, &source), to, expected))?
    }

    /// Size and SHA-256 of the object at `key`, computed from its content; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid key, otherwise [`ErrorKind::Storage`].
    pub fn digest(&self, key: &str) -> Result<Option<FileDigest>> {
        let source = object_path(key)?;
        match run(transfer::digest(&self.object(key, &source), None))? {
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

    fn object(&self, key: &str, path: &ObjectPath) -> object::Object {
        object::Object {
            client: self.inner.backend.clone(),
            path: path.clone(),
            uri: self.uri_of(key),
            local: self.inner.root.is_some(),
        }
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
pub(crate) fn run<F: Future>(future: F) -> Result<F::Output> {
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
    uri::local(uri)
}

#[cfg(test)]
mod tests;
