//! Bytes of a file of this machine or of an object of a store, read from anywhere in them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::storage::RemoteFile;

/// What a [`BlobReader`] reads at once at least, of a file and of an object.
const AHEAD: (u64, u64) = (64 << 10, 1 << 20);
/// What it reads at once at most.
const MOST: u64 = 32 << 20;

/// The error of reading, if there was one. Libraries that read by a [`BlobReader`] make texts of errors, or swallow them; here bytes that
/// could not be had are told from damaged ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    /// Keeps the error, and gives its text.
    pub(super) fn keep(&self, error: Error) -> String {
        let text = error.to_string();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        text
    }

    /// What a library has found, unless bytes could not be had: then that error, or else what `damage` makes of the library's.
    ///
    /// # Errors
    /// Those.
    pub(super) fn or<T, E>(&self, found: std::result::Result<T, E>, damage: impl FnOnce(E) -> Error) -> Result<T> {
        if let Some(error) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        found.map_err(damage)
    }
}

/// A file or an object.
#[derive(Debug, Clone)]
pub(super) enum Blob {
    Local { path: PathBuf, file: Arc<File>, size: u64 },
    Remote(RemoteFile),
}

impl Blob {
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Blob> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = file.metadata().map_err(|e| Error::io("read the size of", path, e))?.len();
        Ok(Blob::Local { path: path.to_owned(), file: Arc::new(file), size })
    }

    /// Where it is, for messages.
    pub(super) fn place(&self) -> String {
        match self {
            Blob::Local { path, .. } => path.display().to_string(),
            Blob::Remote(object) => object.uri().to_owned(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Blob::Local { size, .. } => *size,
            Blob::Remote(object) => object.size(),
        }
    }

    /// The bytes of a range, which must lie in it.
    ///
    /// # Errors
    /// `Data` if an object has changed since it was opened, `Storage` if it cannot be read.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        match self {
            Blob::Remote(object) => object.read(range),
            Blob::Local { path, file, .. } => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io("read", path, e))?;
                Ok(bytes)
            }
        }
    }
}

/// Bytes and where they begin.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn from(&self, at: u64) -> &[u8] {
        let skipped = at.checked_sub(self.start).and_then(|n| usize::try_from(n).ok());
        skipped.and_then(|n| self.bytes.get(n..)).unwrap_or_default()
    }
}

/// Reads a [`Blob`] as a file. Clones have places of their own, and share what was read [`ahead`](BlobReader::ahead).
#[derive(Debug)]
pub(super) struct BlobReader {
    blob: Blob,
    at: u64,
    own: Window,
    shared: Arc<RwLock<Window>>,
    failure: Failure,
}

impl Clone for BlobReader {
    fn clone(&self) -> Self {
        BlobReader {
            blob: self.blob.clone(),
            at: self.at,
            own: Window::default(),
            shared: self.shared.clone(),
            failure: self.failure.clone(),
        }
    }
}

impl BlobReader {
    /// A reader at the beginning, whose errors of reading are kept in `failure`.
    pub(super) fn new(blob: Blob, failure: &Failure) -> BlobReader {
        BlobReader { blob, at: 0, own: Window::default(), shared: Arc::default(), failure: failure.clone() }
    }

    fn fetch(&self, length: u64) -> io::Result<Vec<u8>> {
        let read = self.blob.read(self.at..self.at + length);
        read.map_err(|error| io::Error::other(self.failure.keep(error)))
    }

    /// What reads a range for this reader and all clones of it, in the place of the range before.
    pub(super) fn ahead(&self) -> Ahead {
        Ahead { blob: self.blob.clone(), shared: self.shared.clone() }
    }
}

/// Reads ahead for some readers.
#[derive(Debug)]
pub(super) struct Ahead {
    blob: Blob,
    shared: Arc<RwLock<Window>>,
}

impl Ahead {
    /// # Errors
    /// As [`Blob::read`].
    pub(super) fn read(&self, range: Range<u64>) -> Result<()> {
        let window = Window { start: range.start, bytes: self.blob.read(range)? };
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = window;
        Ok(())
    }

    pub(super) fn clear(&self) {
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Window::default();
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size().saturating_sub(self.at);
        if buffer.is_empty() || left == 0 {
            return Ok(0);
        }
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = shared.from(self.at);
        let ahead = if matches!(self.blob, Blob::Local { .. }) { AHEAD.0 } else { AHEAD.1 };
        if found.is_empty() && self.own.from(self.at).is_empty() {
            if buffer.len() as u64 >= ahead {
                // so much is not kept besides
                let bytes = self.fetch((buffer.len() as u64).min(left).min(MOST))?;
                buffer[..bytes.len()].copy_from_slice(&bytes);
                self.at += bytes.len() as u64;
                return Ok(bytes.len());
            }
            self.own = Window { start: self.at, bytes: self.fetch(ahead.min(left))? };
        }
        if found.is_empty() {
            found = self.own.from(self.at);
        }
        let length = found.len().min(buffer.len());
        buffer[..length].copy_from_slice(&found[..length]);
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.blob.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the beginning"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_reads_what_a_file_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = BlobReader::new(Blob::open(&path).unwrap(), &Failure::default());
        reader.ahead().read(1000..5000).unwrap();
        let mut clone = reader.clone();
        for (at, length) in [(0, 10), (900, 300), (4990, 100), (70_000, 90_000), (199_990, 10), (1, 199_999)] {
            let mut found = vec![0; length];
            clone.seek(SeekFrom::Start(at as u64)).unwrap();
            clone.read_exact(&mut found).unwrap();
            assert!(found == bytes[at..at + length], "{at}");
        }
        assert_eq!(clone.seek(SeekFrom::Current(-1)).unwrap(), 199_999);
        assert_eq!(reader.seek(SeekFrom::End(-3)).unwrap(), 199_997);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[199_997..]);
        assert!(reader.seek(SeekFrom::Current(-300_000)).is_err());
    }

    #[test]
    fn bytes_that_cannot_be_had_are_told_from_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        std::fs::write(&path, [1; 100]).unwrap();
        let failure = Failure::default();
        let mut reader = BlobReader::new(Blob::open(&path).unwrap(), &failure);
        let damage = |error: io::Error| Error::data(format!("damage: {error}"));
        assert_eq!(failure.or(reader.read(&mut [0; 3]), damage).unwrap(), 3);
        let mut reader = reader.clone();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let error = failure.or(reader.read(&mut [0; 100]), damage).unwrap_err();
        assert!(error.kind() != crate::ErrorKind::Data && error.to_string().contains("bytes'"), "{error}");
        let error = failure.or(Err::<(), _>(io::Error::other("torn")), damage).unwrap_err();
        assert!(error.kind() == crate::ErrorKind::Data && error.to_string().contains("damage: torn"), "{error}");
    }
}
