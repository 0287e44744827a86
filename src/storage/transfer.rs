//! Files to and from a store: in parts, hashed on the way.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{GetResultPayload, MultipartUpload, ObjectStoreExt, PutPayload};

use crate::error::{Error, Result};

use super::digest::Hasher;
use super::{FileDigest, Store};

/// The smallest part of a multipart upload; a file that fits into one is written by a single put.
const MIN_PART: u64 = 8 << 20;
/// Stores take at most 10,000 parts; this leaves room for a file that grows a little.
const MAX_PARTS: u64 = 9_000;

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
        std::fs::rename(&self.path, to).map_err(|e| Error::io("write", to, e))?;
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("sync the folder", parent, e))
    }
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

/// Copies a file to a key. The caller's thread reads and hashes one part while the one before is written.
pub(super) async fn upload(store: &Store, key: &str, target: &ObjectPath, path: &Path) -> Result<FileDigest> {
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
    let send = async |upload: &mut Box<dyn MultipartUpload>| {
        let mut part = first;
        while !part.is_empty() {
            let sending = tokio::spawn(upload.put_part(PutPayload::from(part)));
            let next = read_part(&mut file, path, part_size);
            if let Ok(next) = &next {
                hasher.update(next);
            }
            let sent = sending.await.map_err(|e| Error::storage("an upload was cancelled").with_source(e))?;
            sent.map_err(|e| store.error("write", key, e))?;
            part = next?;
        }
        upload.complete().await.map_err(|e| store.error("write", key, e))
    };
    match send(&mut upload).await {
        Ok(_) => Ok(hasher.finish()),
        Err(error) => {
            // a failed abort leaves parts behind that no reader sees; the first error is the one to report
            let _ = upload.abort().await;
            Err(error)
        }
    }
}

/// The next `size` bytes of `file`, fewer only at its end.
fn read_part(file: &mut File, path: &Path, size: u64) -> Result<Bytes> {
    let mut part = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(size).read_to_end(&mut part).map_err(|e| Error::io("read", path, e))?;
    Ok(Bytes::from(part))
}

/// Reads an object to its end, into a new synced file at `to` if that is given, and returns what it was.
pub(super) async fn fetch(store: &Store, key: &str, source: &ObjectPath, to: Option<&Path>) -> Result<FileDigest> {
    let result = store.inner.backend.get(source).await.map_err(|e| store.error("read", key, e))?;
    let mut target = match to {
        Some(path) => Some((File::create_new(path).map_err(|e| Error::io("create", path, e))?, path)),
        None => None,
    };
    let mut hasher = Hasher::default();
    let mut take = |bytes: &[u8]| {
        hasher.update(bytes);
        match &mut target {
            Some((file, path)) => file.write_all(bytes).map_err(|e| Error::io("write", path, e)),
            None => Ok(()),
        }
    };
    match result.payload {
        // the crate's own stream over a file has small chunks, and never ends if the file shrinks meanwhile
        GetResultPayload::File(mut file, path) => loop {
            let part = read_part(&mut file, &path, MIN_PART)?;
            if part.is_empty() {
                break;
            }
            take(&part)?;
        },
        GetResultPayload::Stream(mut stream) => {
            while let Some(part) = stream.try_next().await.map_err(|e| store.error("read", key, e))? {
                if part.is_empty() && result.meta.size > 0 {
                    return Err(Error::storage(format!("'{}' ended early", store.uri_of(key))));
                }
                take(&part)?;
            }
        }
    }
    if let Some((file, path)) = target {
        file.sync_all().map_err(|e| Error::io("sync", path, e))?;
    }
    Ok(hasher.finish())
}
