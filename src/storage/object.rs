//! One object of a store, wherever it is: read from its start or from the middle, in ranges at once, and never as a mixture of
//! two contents.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::error::{Error, Result};

use super::fault_kind::{chain, storage_error};

/// What is asked for at once; it is kept until all of it is there.
const RANGE: u64 = 16 << 20;
/// How many ranges are on their way at once: four times [`RANGE`] is the memory that a download needs.
const AT_ONCE: usize = 4;
/// How often in a row a range may fail without a single byte.
const FRUITLESS: u32 = 6;
/// From a file of this machine, this much is read at once.
const LOCAL_PART: u64 = 8 << 20;

/// An object that is to be read.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) path: ObjectPath,
    /// For messages.
    pub(super) uri: String,
    /// Whether it is a file of this machine.
    pub(super) local: bool,
}

/// What the first answer said of an object; all others must be of the same content.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Empty if the store gives none.
    pub(super) tag: String,
    pub(super) size: u64,
}

impl Object {
    /// Size, time and ETag.
    pub(super) async fn head(&self) -> Result<ObjectMeta> {
        self.client.head(&self.path).await.map_err(|e| self.error(e))
    }

    /// Gives the content from byte `start` on to `take`, in order. `size` is what the object must have, if it is known.
    pub(super) async fn read(
        &self,
        start: u64,
        size: Option<u64>,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.local {
            return self.read_local(start, take).await;
        }
        let seen: OnceLock<Seen> = OnceLock::new();
        let size = match size {
            // small and from its start: one request, whatever there is
            Some(size) if size <= RANGE && start == 0 => return self.read_whole(take).await,
            Some(size) => size,
            None => {
                let meta = self.head().await?;
                if meta.size <= RANGE && start == 0 {
                    return self.read_whole(take).await;
                }
                let size = meta.size;
                seen.get_or_init(|| Seen { tag: meta.e_tag.unwrap_or_default(), size });
                size
            }
        };
        if start >= size {
            return Ok(());
        }
        // the first one alone: its ETag is that of all, and it says how long the object really is
        let first_end = size.min(start + RANGE);
        for part in self.range(start..first_end, &seen).await? {
            take(&part)?;
        }
        let size = seen.get().map_or(size, |s| s.size);
        let ranges =
            (0..).map(|i| first_end + i * RANGE).take_while(|at| *at < size).map(|at| at..size.min(at + RANGE));
        let mut rest = futures::stream::iter(ranges.map(|range| self.range(range, &seen))).buffered(AT_ONCE);
        while let Some(parts) = rest.try_next().await? {
            for part in parts {
                take(&part)?;
            }
        }
        Ok(())
    }

    async fn read_local(&self, start: u64, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let result = self.client.get(&self.path).await.map_err(|e| self.error(e))?;
        // the crate's own stream over a file has small chunks, and never ends if the file shrinks meanwhile
        let GetResultPayload::File(mut file, path) = result.payload else {
            return Err(Error::internal(format!("'{}' is no file", self.uri)));
        };
        file.seek(SeekFrom::Start(start)).map_err(|e| Error::io("read", &path, e))?;
        read_file(&mut file, &path, take)
    }

    /// All of it by one request; what was cut off is asked for again.
    async fn read_whole(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let result = self.client.get(&self.path).await.map_err(|e| self.error(e))?;
        let seen = Seen { tag: result.meta.e_tag.clone().unwrap_or_default(), size: result.meta.size };
        let mut stream = result.into_stream();
        let (mut parts, mut at) = (Vec::new(), 0);
        loop {
            match stream.try_next().await {
                Ok(Some(part)) if !part.is_empty() => {
                    at += part.len() as u64;
                    parts.push(part);
                }
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(uri = %self.uri, at, error = %chain(&error), "reading goes on");
                    break;
                }
            }
        }
        let size = seen.size;
        if at < size {
            if seen.tag.is_empty() {
                // two contents could not be told apart
                (parts, at) = (Vec::new(), 0);
            }
            parts.extend(self.range(at..size, &OnceLock::from(seen)).await?);
        }
        parts.iter().try_for_each(|part| take(part))
    }

    /// One range, asked for again from where it broke off as long as something comes.
    pub(super) async fn range(&self, range: Range<u64>, seen: &OnceLock<Seen>) -> Result<Vec<Bytes>> {
        let (mut parts, mut at, mut fruitless) = (Vec::new(), range.start, 0);
        loop {
            let before = at;
            let failed = self.attempt(at..range.end, seen, &mut parts).await.err();
            at = range.start + parts.iter().map(|p| p.len() as u64).sum::<u64>();
            // an object that is shorter than it should be ends here; whoever asked compares
            if at >= seen.get().map_or(range.end, |s| s.size.min(range.end)) {
                return Ok(parts);
            }
            let error = failed.unwrap_or_else(|| Error::storage(format!("'{}' ended early", self.uri)));
            if !error.kind().retryable() {
                return Err(error);
            }
            fruitless = if at > before { 0 } else { fruitless + 1 };
            if fruitless >= FRUITLESS {
                return Err(error);
            }
            tracing::debug!(uri = %self.uri, at, %error, "reading goes on");
            tokio::time::sleep(Duration::from_millis(100 << fruitless)).await;
        }
    }

    async fn attempt(&self, range: Range<u64>, seen: &OnceLock<Seen>, parts: &mut Vec<Bytes>) -> Result<()> {
        let changed = || Error::data(format!("'{}' was changed while it was read, run the job again", self.uri));
        let if_match = seen.get().map(|s| s.tag.clone()).filter(|tag| !tag.is_empty());
        let options = GetOptions { range: Some(range.clone().into()), if_match, ..GetOptions::default() };
        let result = self.client.get_opts(&self.path, options).await.map_err(|e| match e {
            object_store::Error::Precondition { .. } => changed(),
            other => self.error(other),
        })?;
        let now = Seen { tag: result.meta.e_tag.clone().unwrap_or_default(), size: result.meta.size };
        let first = seen.get_or_init(|| now.clone());
        if first.size != now.size || first.tag != now.tag {
            return Err(changed());
        }
        let mut left = range.end - range.start;
        let mut stream = result.into_stream();
        while let Some(part) = stream.try_next().await.map_err(|e| self.error(e))? {
            if part.is_empty() {
                return Err(Error::storage(format!("'{}' ended early", self.uri)));
            }
            left = left
                .checked_sub(part.len() as u64)
                .ok_or_else(|| Error::storage(format!("'{}': the store sent more than it was asked for", self.uri)))?;
            parts.push(part);
        }
        Ok(())
    }

    fn error(&self, source: object_store::Error) -> Error {
        storage_error("read", &self.uri, source)
    }
}

fn read_file(file: &mut File, path: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    loop {
        let part = read_part(file, path, LOCAL_PART)?;
        if part.is_empty() {
            return Ok(());
        }
        take(&part)?;
    }
}

/// The next `size` bytes of `file`, fewer only at its end.
pub(super) fn read_part(file: &mut File, path: &Path, size: u64) -> Result<Bytes> {
    let mut part = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(size).read_to_end(&mut part).map_err(|e| Error::io("read", path, e))?;
    Ok(Bytes::from(part))
}
