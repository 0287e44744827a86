//! One object, read in ranges from anywhere in it: what is too large to be copied to this machine.

use std::ops::Range;
use std::sync::OnceLock;

use futures::{StreamExt, TryStreamExt};

use crate::error::{Error, Result};

use super::object::{Object, Seen};
use super::{Source, Store, object_path, run, sha256_hex};

/// What is asked for at once.
const RANGE: u64 = 8 << 20;
/// How many ranges are on their way at once.
const AT_ONCE: usize = 4;

/// An object that stays where it is. Every range is of the same content: when the object changes, reading is an error.
#[derive(Clone)]
pub struct RemoteFile {
    object: Object,
    seen: OnceLock<Seen>,
    size: u64,
    tag: String,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile").field("uri", &self.object.uri).field("size", &self.size).finish_non_exhaustive()
    }
}

impl RemoteFile {
    /// Looks at the object.
    pub(super) fn open(object: Object) -> Result<RemoteFile> {
        let meta = run(object.head())??;
        let (size, tag) = (meta.size, meta.e_tag.unwrap_or_default());
        Ok(RemoteFile { object, seen: OnceLock::from(Seen { tag: tag.clone(), size }), size, tag })
    }

    /// Where it is, without secrets.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.object.uri
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// SHA-256 over the object's place, ETag and size: another one when its content changes. `None` where the store gives no ETag.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        let text = format!("{}\n{}\n{}", self.object.uri, self.tag, self.size);
        (!self.tag.is_empty()).then(|| sha256_hex(text.as_bytes()))
    }

    /// The bytes of a range, which must lie in the object.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] if the object has changed since it was opened, [`crate::ErrorKind::Storage`] if it cannot be read.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let parts = (range.start..range.end).step_by(RANGE as usize);
        let parts = parts.map(|start| self.object.range(start..range.end.min(start + RANGE), &self.seen));
        let read = futures::stream::iter(parts).buffered(AT_ONCE).try_collect::<Vec<_>>();
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for part in run(read)??.iter().flatten() {
            bytes.extend_from_slice(part);
        }
        if bytes.len() as u64 != range.end - range.start {
            return Err(Error::storage(format!("'{}' is shorter than it should be", self.object.uri)));
        }
        Ok(bytes)
    }
}

impl Store {
    /// The object at `key`, to be read in ranges.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is none, and those of reaching the store.
    pub fn remote_file(&self, key: &str) -> Result<RemoteFile> {
        RemoteFile::open(self.object(key, &object_path(key)?))
    }
}

impl Source {
    /// The object, to be read in ranges; `beside` is the name of another one in the same folder, in its place.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is none, and those of reaching the store.
    pub fn remote_file(&self, beside: Option<&str>) -> Result<RemoteFile> {
        RemoteFile::open(self.neighbour(beside)?)
    }
}
