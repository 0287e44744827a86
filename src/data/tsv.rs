//! Two-column TSV files (`key \t value`, no header, no quoting) with random access.
//!
//! Guarantees: every error names the file and the 1-based row; a row is never taken from the wrong place, since an index
//! that does not fit its file is an error; readers can be shared between threads. The file must not change while it is
//! open.
//!
//! A `.lineidx` file beside the TSV (same name, other extension) holds one byte offset a line and saves the scan for line
//! ends on opening; without it the index is built in memory.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memmap2::Mmap;

use crate::error::{Error, ErrorKind, Result};

use super::index::{body, decode_value, parse, read, stale};

/// Where the line index of a TSV is: the same path with the extension `lineidx`.
#[must_use]
pub fn index_path(tsv: &Path) -> PathBuf {
    tsv.with_extension("lineidx")
}

/// The names of the files that belong to a file and lie beside it: of a TSV its line index.
#[must_use]
pub fn companions(name: &str) -> Vec<String> {
    let path = Path::new(name);
    let is_tsv = path.extension().is_some_and(|extension| extension == "tsv");
    is_tsv.then(|| index_path(path).to_string_lossy().into_owned()).into_iter().collect()
}

const NOT_TEXT: &str = "not valid UTF-8";

/// One row of a TSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// What stands before the first tab; never empty.
    pub key: &'a str,
    /// Everything after the first tab, without the line end.
    pub value: &'a str,
}

/// A TSV opened for random access by row.
#[derive(Debug)]
pub struct TsvReader {
    path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
    offsets: Vec<u64>,
}

impl TsvReader {
    /// Opens a TSV and its `.lineidx` if there is one. An empty file has no rows.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Data` when the `.lineidx` does not belong to it.
    pub fn open(path: impl AsRef<Path>) -> Result<TsvReader> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let size = file.metadata().map_err(|e| Error::io("read the size of", &path, e))?.len();
        // SAFETY: the map is only read, and job inputs are not changed while a job runs (documented above)
        let map = if size == 0 { None } else { Some(unsafe { Mmap::map(&file) }) };
        let map = map.transpose().map_err(|e| Error::io("map", &path, e))?;
        let mut reader = TsvReader { path, map, offsets: Vec::new() };
        reader.offsets = match read(&reader.path)? {
            Some(text) => parse(&text, size).map_err(|why| reader.stale(why))?,
            None => line_starts(reader.bytes()),
        };
        Ok(reader)
    }

    /// The file's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The row with the 0-based `index`.
    ///
    /// # Errors
    /// `Data`, naming file and row: no such row, no tab, empty key, invalid UTF-8, or an index that does not fit the file.
    pub fn row(&self, index: usize) -> Result<Row<'_>> {
        let (key, value) = self.split(index)?;
        let value = std::str::from_utf8(value).map_err(|_| self.error(index, NOT_TEXT))?;
        Ok(Row { key, value })
    }

    /// The same, without a look at the value.
    pub(super) fn split(&self, index: usize) -> Result<(&str, &[u8])> {
        let line = self.line(index)?;
        let tab = line.iter().position(|&b| b == b'\t');
        let tab = tab.ok_or_else(|| self.error(index, "no tab between key and value"))?;
        let key = std::str::from_utf8(&line[..tab]).map_err(|_| self.error(index, NOT_TEXT))?;
        if key.is_empty() {
            return Err(self.error(index, "the key before the tab is empty"));
        }
        Ok((key, &line[tab + 1..]))
    }

    /// All rows in order.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row<'_>>> {
        (0..self.len()).map(|index| self.row(index))
    }

    /// The keys of all rows in order, checked to be unique.
    ///
    /// # Errors
    /// `Data` as [`row`](Self::row), or naming the two rows that share a key.
    pub fn keys(&self) -> Result<Vec<&str>> {
        let mut seen = HashMap::with_capacity(self.len());
        let mut keys = Vec::with_capacity(self.len());
        for (index, row) in self.rows().enumerate() {
            let key = row?.key;
            if let Some(first) = seen.insert(key, index) {
                return Err(self.error(index, format!("key '{key}' was used in row {} already", first + 1)));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    /// The key and the decoded bytes of an image row, whose value is standard base64.
    ///
    /// # Errors
    /// `Data` as [`row`](Self::row), or naming file, row and key when the value is empty or not base64.
    pub fn decode_image(&self, index: usize) -> Result<(String, Vec<u8>)> {
        let row = self.row(index)?;
        let bytes = decode_value(row.value.as_bytes());
        let bytes = bytes.map_err(|reason| self.error(index, format!("key '{}': {reason}", row.key)))?;
        Ok((row.key.to_owned(), bytes))
    }

    /// A `Data` error that names this file and the row (given 0-based, shown 1-based).
    pub fn error(&self, index: usize, message: impl std::fmt::Display) -> Error {
        Error::data(format!("'{}' row {}: {message}", self.path.display(), index + 1))
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    fn line(&self, index: usize) -> Result<&[u8]> {
        let Some(&start) = self.offsets.get(index) else {
            return Err(self.error(index, format!("there are {} rows only", self.len())));
        };
        let bytes = self.bytes();
        let last = index + 1 == self.offsets.len();
        let end = if last { bytes.len() } else { self.offsets[index + 1] as usize };
        body(&bytes[start as usize..end], last).ok_or_else(|| self.stale(format!("row {} is not one line", index + 1)))
    }

    fn stale(&self, message: impl std::fmt::Display) -> Error {
        stale(index_path(&self.path).display(), self.path.display(), message)
    }
}

fn line_starts(bytes: &[u8]) -> Vec<u64> {
    let mut starts = Vec::new();
    let mut rest = bytes;
    let mut at = 0;
    while !rest.is_empty() {
        starts.push(at);
        // reading from a slice cannot fail
        at += rest.skip_until(b'\n').unwrap_or(rest.len()) as u64;
    }
    starts
}

/// The value of an image's row, for writers that encode rows side by side: standard base64.
#[must_use]
pub fn image_value(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Writes a TSV and the `.lineidx` beside it. Both are complete only after [`finish`](Self::finish).
#[derive(Debug)]
pub struct TsvWriter {
    path: PathBuf,
    output: BufWriter<File>,
    index: String,
    offset: u64,
    rows: usize,
}

impl TsvWriter {
    /// Creates the file, replacing one that exists; an old `.lineidx` is removed, so that a killed job leaves no wrong one.
    ///
    /// # Errors
    /// `Storage`, `NotFound` (no such folder) or `NoSpace`.
    pub fn create(path: impl AsRef<Path>) -> Result<TsvWriter> {
        let path = path.as_ref().to_path_buf();
        let index = index_path(&path);
        if index == path {
            return Err(Error::config(format!("'{}' cannot be a TSV: its name is that of an index", path.display())));
        }
        match std::fs::remove_file(&index) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace", &index, e)),
            _ => {}
        }
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let output = BufWriter::with_capacity(1 << 20, file);
        Ok(TsvWriter { path, output, index: String::new(), offset: 0, rows: 0 })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// `Data` when the key is empty or holds a tab or line end, or the value a line end; `Storage` or `NoSpace`.
    pub fn write(&mut self, key: &str, value: &str) -> Result<()> {
        let line_end = ['\n', '\r'];
        if key.is_empty() || key.contains('\t') || key.contains(line_end) || value.contains(line_end) {
            return Err(Error::data(format!(
                "'{}' row {}: a key must not be empty or hold tabs, and no column may hold line ends",
                self.path.display(),
                self.rows + 1
            )));
        }
        let parts = [key.as_bytes(), b"\t", value.as_bytes(), b"\n"];
        for part in parts {
            self.output.write_all(part).map_err(|e| Error::io("write", &self.path, e))?;
        }
        // writing to a string cannot fail
        let _ = writeln!(self.index, "{}", self.offset);
        self.offset += parts.iter().map(|p| p.len() as u64).sum::<u64>();
        self.rows += 1;
        Ok(())
    }

    /// Appends a row whose value is the standard base64 of `bytes`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_image(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
        self.write(key, &image_value(bytes))
    }

    /// Flushes the TSV to disk, writes the index and returns the number of rows.
    ///
    /// # Errors
    /// `Storage` or `NoSpace`.
    pub fn finish(self) -> Result<usize> {
        let file = self.output.into_inner().map_err(|e| Error::io("write", &self.path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("write", &self.path, e))?;
        let index = index_path(&self.path);
        std::fs::write(&index, self.index).map_err(|e| Error::io("write", &index, e))?;
        Ok(self.rows)
    }
}

/// Reads a whole UTF-8 text file, for the small files of this module.
pub(super) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        let invalid = e.kind() == std::io::ErrorKind::InvalidData;
        let error = Error::io("read", path, e);
        if invalid { error.with_kind(ErrorKind::Data) } else { error }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn open(folder: &tempfile::TempDir, bytes: &[u8]) -> TsvReader {
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, bytes).unwrap();
        TsvReader::open(path).unwrap()
    }

    #[test]
    fn what_is_written_is_read_with_and_without_the_index() {
        let folder = folder();
        let path = folder.path().join("images.tsv");
        let mut writer = TsvWriter::create(&path).unwrap();
        writer.write_image("a/1", b"first").unwrap();
        writer.write("b/2", "{\"x\":\t1}").unwrap();
        writer.write_image("c", b"").unwrap();
        assert_eq!(writer.finish().unwrap(), 3);
        assert_eq!(std::fs::read_to_string(index_path(&path)).unwrap(), "0\n13\n26\n");
        let check = || {
            let reader = TsvReader::open(&path).unwrap();
            assert_eq!(reader.keys().unwrap(), ["a/1", "b/2", "c"]);
            assert_eq!(reader.decode_image(0).unwrap(), ("a/1".to_owned(), b"first".to_vec()));
            assert_eq!(reader.row(1).unwrap().value, "{\"x\":\t1}");
            assert!(reader.decode_image(2).unwrap_err().to_string().contains("key 'c': the image is empty"));
            assert!(reader.row(3).unwrap_err().to_string().contains("row 4"));
        };
        check();
        std::fs::remove_file(index_path(&path)).unwrap();
        check();
    }

    #[test]
    fn last_line_end_is_optional_and_carriage_returns_are_dropped() {
        let folder = folder();
        assert_eq!(open(&folder, b"a\t1\r\nb\t2").rows().map(|r| r.unwrap().value).collect::<String>(), "12");
        assert!(open(&folder, b"").is_empty());
    }

    #[test]
    fn damaged_rows_are_named() {
        let folder = folder();
        let reader = open(&folder, b"a\t1\nno tab\n\t3\n\xff\t4\n\na\t5\n");
        let message = |i: usize| reader.row(i).unwrap_err().to_string();
        assert!(message(1).ends_with("a.tsv' row 2: no tab between key and value"), "{}", message(1));
        assert!(message(2).contains("row 3: the key"));
        assert!(message(3).contains("row 4: not valid UTF-8"));
        assert!(message(4).contains("row 5: no tab"));
        let reader = open(&folder, b"a\t1\nb\t2\na\t5\n");
        assert!(reader.keys().unwrap_err().to_string().contains("row 3: key 'a' was used in row 1"));
        let reader = open(&folder, b"k\tAAA*\n");
        let error = reader.decode_image(0).unwrap_err();
        assert!(error.to_string().contains("row 1: key 'k': the image is not valid base64"), "{error}");
    }

    #[test]
    fn wrong_indexes_are_refused() {
        let folder = folder();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, "a\t1\nb\t2\nc\t3\n").unwrap();
        for index in ["1\n", "0\n4\n99\n", "0\nx\n", "", "0\n4\n4\n", "0\n-4\n"] {
            std::fs::write(index_path(&path), index).unwrap();
            let error = TsvReader::open(&path).unwrap_err();
            assert!(error.to_string().contains("a.lineidx' does not belong"), "{error}");
        }
        for index in ["0\n4\n", "0\n8\n", "0\n", "0\n3\n8\n"] {
            std::fs::write(index_path(&path), index).unwrap();
            let reader = TsvReader::open(&path).unwrap();
            let error = reader.keys().unwrap_err();
            assert!(error.to_string().contains("a.lineidx' does not belong"), "{index:?}: {error}");
        }
    }

    #[test]
    fn missing_files_and_wrong_columns_are_refused() {
        let folder = folder();
        let error = TsvReader::open(folder.path().join("none.tsv")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let mut writer = TsvWriter::create(folder.path().join("b.tsv")).unwrap();
        for (key, value) in [("", "x"), ("a\tb", "x"), ("a\n", "x"), ("a", "x\ny")] {
            assert!(writer.write(key, value).is_err());
        }
    }
}
