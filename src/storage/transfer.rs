//! Files to and from a store: in parts, hashed on the way.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};

use crate::error::{Error, Result};
use crate::telemetry::Progress;

use super::digest::Hasher;
use super::object::{Object, read_part};
use super::{FileDigest, Store};

/// The smallest part of a multipart upload; a file that fits into one is written by a single put.
const MIN_PART: u64 = 8 << 20;
/// Stores take at most 10,000 parts; this leaves room for a file that grows a little.
const MAX_PARTS: u64 = 9_000;
/// How many parts are on their way at once.
const AT_ONCE: usize = 4;
/// From this size on, the progress of a file is shown.
const LARGE: u64 = 64 << 20;
/// How often a file is sent or fetched as a whole before its content counts as wrong.
const ATTEMPTS: u32 = 3;

/// A name for a file or folder that is not complete yet; what lies there is removed unless it was renamed.
#[derive(Debug)]
pub(crate) struct PartialPath {
    path: PathBuf,
}

impl PartialPath {
    /// A fresh hidden name in the folder of `to`, so that renaming to `to` is atomic.
    pub(crate) fn beside(to: &Path) -> Result<PartialPath> {
        let Some(name) = to.file_name() else {
            return Err(Error::config(format!("'{}' does not name a file or folder", to.display())));
        };
        let unique = uuid::Uuid::new_v4().simple();
        let name = format!(".{}.{unique}.partial", name.to_string_lossy());
        Ok(PartialPath { path: to.with_file_name(name) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the complete file or folder its name, and syncs the folder that holds it.
    pub(crate) fn rename_to(self, to: &Path) -> Result<()> {
        rename(&self.path, to)
    }
}

/// The progress of one large file; of small ones nothing is said.
struct Moved {
    progress: Option<Progress>,
    /// Bytes that do not make up a MiB yet.
    rest: usize,
}

impl Moved {
    fn new(uri: &str, size: u64, done: u64) -> Moved {
        let name = uri.rsplit('/').next().unwrap_or(uri);
        let progress = (size >= LARGE).then(|| Progress::new(name, size >> 20, "MiB").starting_at(done >> 20));
        Moved { progress, rest: 0 }
    }

    fn advance(&mut self, bytes: usize) {
        self.rest += bytes;
        if let Some(progress) = &self.progress {
            progress.advance((self.rest >> 20) as u64, "");
        }
        self.rest &= (1 << 20) - 1;
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.finish();
        }
    }
}

/// Renames a file or folder and syncs the folder that holds it.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io("write", to, e))?;
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("sync the folder", parent, e))
}

impl Drop for PartialPath {
    fn drop(&mut self) {
        // after a rename nothing is there; otherwise the error that brought us here matters more than one of these
        let _ = match std::fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&self.path),
            Ok(_) => std::fs::remove_file(&self.path),
            Err(_) => Ok(()),
        };
    }
}

/// Copies a file to a key, and reads it back where nothing else guards it on its way.
pub(super) async fn upload(store: &Store, key: &str, target: &ObjectPath, path: &Path) -> Result<FileDigest> {
    let mut attempt = 1;
    loop {
        let sent = send(store, key, target, path).await?;
        if !store.inner.read_back {
            return Ok(sent);
        }
        let object = store.object(key, target);
        let arrived = digest(&object, Some(sent.size)).await?;
        if arrived == sent {
            return Ok(sent);
        }
        if attempt == ATTEMPTS {
            return Err(Error::storage(format!(
                "'{}' is not what was sent, {ATTEMPTS} times: check the network to the store",
                object.uri
            )));
        }
        tracing::warn!(key, "what arrived is not what was sent, sending again");
        attempt += 1;
    }
}

/// The caller's thread reads and hashes a part while those before it are written.
async fn send(store: &Store, key: &str, target: &ObjectPath, path: &Path) -> Result<FileDigest> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io("read", path, e))?;
    if !metadata.is_file() {
        return Err(Error::config(format!("'{}' is not a regular file", path.display())));
    }
    let part_size = MIN_PART.max(metadata.len().div_ceil(MAX_PARTS));
    let mut hasher = Hasher::default();
    let first = read_part(&mut file, path, part_size)?;
    hasher.update(&first);
    let backend = &store.inner.backend;
    if (first.len() as u64) < part_size {
        backend.put(target, PutPayload::from(first)).await.map_err(|e| store.error("write", key, e))?;
        return Ok(hasher.finish());
    }
    let mut upload = backend.put_multipart(target).await.map_err(|e| store.error("write", key, e))?;
    let moved = Moved::new(key, metadata.len(), 0);
    let source = Source { file, path, part_size, moved };
    match send_parts(store, key, upload.as_mut(), first, source, &mut hasher).await {
        Ok(()) => Ok(hasher.finish()),
        Err(error) => {
            // a failed abort leaves parts behind that no reader sees; the first error is the one to report
            let _ = upload.abort().await;
            Err(error)
        }
    }
}

struct Source<'a> {
    file: File,
    path: &'a Path,
    part_size: u64,
    moved: Moved,
}

async fn send_parts(
    store: &Store,
    key: &str,
    upload: &mut dyn MultipartUpload,
    first: Bytes,
    mut source: Source<'_>,
    hasher: &mut Hasher,
) -> Result<()> {
    let mut sending = VecDeque::new();
    let mut part = first;
    while !part.is_empty() {
        if sending.len() == AT_ONCE
            && let Some(oldest) = sending.pop_front()
        {
            sent(store, key, oldest).await?;
        }
        sending.push_back(tokio::spawn(upload.put_part(PutPayload::from(part))));
        part = read_part(&mut source.file, source.path, source.part_size)?;
        hasher.update(&part);
        source.moved.advance(part.len());
    }
    for part in sending {
        sent(store, key, part).await?;
    }
    upload.complete().await.map(drop).map_err(|e| store.error("write", key, e))
}

async fn sent(store: &Store, key: &str, part: tokio::task::JoinHandle<object_store::Result<()>>) -> Result<()> {
    let sent = part.await.map_err(|e| Error::storage("an upload was cancelled").with_source(e))?;
    sent.map_err(|e| store.error("write", key, e))
}

/// What an object is, read to its end.
pub(super) async fn digest(object: &Object, size: Option<u64>) -> Result<FileDigest> {
    let mut hasher = Hasher::default();
    let read = object.read(0, size, |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    read.await?;
    Ok(hasher.finish())
}

/// Copies an object into the file `to`, whose content then is `expected`; synced. What an earlier process left there of the
/// same object is kept: only the rest is fetched.
///
/// # Errors
/// [`crate::ErrorKind::Data`] if the content stays another one. Then there is no file.
pub(super) async fn fetch(object: &Object, to: &Path, expected: &FileDigest) -> Result<()> {
    for attempt in 1..=ATTEMPTS {
        let found = match left_over(to) {
            // its rest may not be there any more
            left if left > 0 => match object.head().await?.size {
                size if size == expected.size => fetch_rest(object, to, Some(size)).await?,
                size => FileDigest { size, sha256: String::new() },
            },
            _ => fetch_rest(object, to, Some(expected.size)).await?,
        };
        if found == *expected {
            return Ok(());
        }
        // nothing of it can be trusted
        std::fs::remove_file(to).map_err(|e| Error::io("remove", to, e))?;
        let error = changed(&object.uri, &found, expected);
        if attempt == ATTEMPTS {
            return Err(error);
        }
        tracing::warn!(%error, "fetching it again");
    }
    Err(Error::internal("no attempt was made"))
}

/// The bytes that an earlier attempt left.
fn left_over(to: &Path) -> u64 {
    std::fs::metadata(to).map_or(0, |m| m.len())
}

/// The same without knowing what it must be: from its start.
pub(super) async fn fetch_unknown(object: &Object, to: &Path) -> Result<FileDigest> {
    std::fs::remove_file(to).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(Error::io("remove", to, e)),
    })?;
    fetch_rest(object, to, None).await
}

async fn fetch_rest(object: &Object, to: &Path, size: Option<u64>) -> Result<FileDigest> {
    let mut hasher = Hasher::default();
    let mut file =
        File::options().read(true).append(true).create(true).open(to).map_err(|e| Error::io("open", to, e))?;
    let left = file.metadata().map_err(|e| Error::io("read", to, e))?.len();
    let mut start = 0;
    if left > 0 && size.is_some_and(|size| left <= size) {
        tracing::info!(file = %to.display(), bytes = left, "going on with what was fetched before");
        loop {
            let part = read_part(&mut file, to, MIN_PART)?;
            if part.is_empty() {
                break;
            }
            start += part.len() as u64;
            hasher.update(&part);
        }
    } else if left > 0 {
        file.set_len(0).map_err(|e| Error::io("write", to, e))?;
    }
    let mut moved = Moved::new(&object.uri, size.unwrap_or_default(), start);
    let read = object.read(start, size, |bytes| {
        hasher.update(bytes);
        moved.advance(bytes.len());
        file.write_all(bytes).map_err(|e| Error::io("write", to, e))
    });
    read.await?;
    file.sync_all().map_err(|e| Error::io("sync", to, e))?;
    Ok(hasher.finish())
}

fn changed(uri: &str, found: &FileDigest, expected: &FileDigest) -> Error {
    Error::data(if found.size == expected.size {
        format!("'{uri}' has changed: its sha256 is {}, expected {}; restore it", found.sha256, expected.sha256)
    } else {
        format!("'{uri}' has changed: it has {} bytes, expected {}; restore it", found.size, expected.size)
    })
}
