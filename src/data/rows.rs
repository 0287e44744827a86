//! The rows of an image TSV for work that goes through it once: read in ranges, from a file of this machine or from an object
//! of a store, with memory for the index and for the rows that are asked for.
//!
//! Guarantees: a row is never taken from the wrong place, since an index that does not fit its file is an error; what is wrong
//! with a single row concerns that row alone, see [`Line::image`].

use std::fs::File;
use std::io::BufRead;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::RemoteFile;

use super::index::{body, decode_value, parse, read, stale};
use super::tsv::index_path;

/// What is read at once to find line ends.
const SCAN: u64 = 32 << 20;
/// The longest line that is read; a longer one holds no image that could be decoded.
const LONGEST: u64 = 1 << 30;

/// A TSV that is an object of a store.
#[derive(Debug, Clone)]
pub struct RemoteRows {
    /// The TSV.
    pub object: RemoteFile,
    /// Its line index, if it has one.
    pub index: Option<RemoteFile>,
}

/// Where the bytes of a TSV are.
#[derive(Debug)]
enum RowBytes {
    Local(PathBuf, File),
    Remote(Box<RemoteRows>),
}

/// An image TSV, to be read in ranges of rows.
#[derive(Debug)]
pub struct RowFile {
    bytes: RowBytes,
    size: u64,
    offsets: Vec<u64>,
}

/// One row as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(Option<Vec<u8>>);

/// An image row that can be used: its key and the encoded image.
pub type ImageRow = (String, Vec<u8>);

impl Line {
    /// How many bytes were read of it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.as_ref().map_or(0, |line| line.len() as u64)
    }

    /// Whether nothing was read of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key and the encoded image of the row.
    ///
    /// # Errors
    /// What is wrong with the row, and its key where it can be read: no tab, no key, no UTF-8, no base64, nothing in it.
    pub fn image(&self) -> std::result::Result<ImageRow, (Option<String>, String)> {
        let Some(line) = &self.0 else { return Err((None, format!("it has more than {LONGEST} bytes"))) };
        let tab = line.iter().position(|&b| b == b'\t').ok_or((None, "no tab between key and value".to_owned()))?;
        let key = std::str::from_utf8(&line[..tab]).map_err(|_| (None, "the key is not valid UTF-8".to_owned()))?;
        if key.is_empty() {
            return Err((None, "the key before the tab is empty".to_owned()));
        }
        let image = decode_value(&line[tab + 1..]).map_err(|reason| (Some(key.to_owned()), reason))?;
        Ok((key.to_owned(), image))
    }
}

impl RowFile {
    /// Opens a file of this machine and its `.lineidx` if there is one.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Data` when the `.lineidx` does not belong to it.
    pub fn open(path: &Path) -> Result<RowFile> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = file.metadata().map_err(|e| Error::io("read the size of", path, e))?.len();
        let text = read(path)?;
        RowFile::over(RowBytes::Local(path.to_owned(), file), size, text)
    }

    /// An object, and its line index if it has one. Without an index the object is read once from end to end to find its rows.
    ///
    /// # Errors
    /// `Data` when the index does not belong to it, `Storage` when it cannot be read.
    pub fn remote(remote: RemoteRows) -> Result<RowFile> {
        let RemoteRows { object, index } = &remote;
        let size = object.size();
        let text = index.as_ref().map(|index| index.read(0..index.size())).transpose()?;
        if text.is_none() && size > SCAN {
            tracing::warn!(uri = object.uri(), "there is no .lineidx beside it: it is read once more to find its rows");
        }
        RowFile::over(RowBytes::Remote(Box::new(remote)), size, text)
    }

    fn over(bytes: RowBytes, size: u64, index: Option<Vec<u8>>) -> Result<RowFile> {
        let mut rows = RowFile { bytes, size, offsets: Vec::new() };
        rows.offsets = match index {
            Some(text) => parse(&text, size).map_err(|why| rows.stale(why))?,
            None => rows.line_starts()?,
        };
        Ok(rows)
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.bytes {
            RowBytes::Local(path, _) => path.display().to_string(),
            RowBytes::Remote(remote) => remote.object.uri().to_owned(),
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The largest range of rows from `start` on that ends at or before `end` and has no more than `bytes` bytes, or one row.
    #[must_use]
    pub fn within(&self, start: usize, end: usize, bytes: u64) -> Range<usize> {
        let limit = self.start(start) + bytes;
        let fitting = (start + 1..=end).take_while(|&row| self.start(row) <= limit).last();
        start..fitting.unwrap_or(start + 1).min(end)
    }

    /// These rows.
    ///
    /// # Errors
    /// `Data` when the index does not fit the file, or the file was changed; `Storage` when it cannot be read.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let (start, end) = (self.start(rows.start), self.start(rows.end));
        if rows.len() == 1 && end - start > LONGEST {
            return self.check_long(rows.start, start..end).map(|()| vec![Line(None)]);
        }
        let bytes = self.read_bytes(start..end)?;
        rows.map(|row| {
            let line = &bytes[(self.start(row) - start) as usize..(self.start(row + 1) - start) as usize];
            let body = body(line, row + 1 == self.len());
            let body = body.ok_or_else(|| self.stale(format!("row {} is not one line", row + 1)))?;
            Ok(Line(Some(body.to_vec())))
        })
        .collect()
    }

    /// Whether a line that is not kept is one line: behind an index that is too short there may be many.
    fn check_long(&self, row: usize, range: Range<u64>) -> Result<()> {
        for at in range.clone().step_by(SCAN as usize) {
            let bytes = self.read_bytes(at..range.end.min(at + SCAN))?;
            let inner = bytes.iter().position(|&b| b == b'\n').is_some_and(|i| at + i as u64 + 1 < range.end);
            if inner {
                return Err(self.stale(format!("row {} is not one line", row + 1)));
            }
        }
        Ok(())
    }

    fn start(&self, row: usize) -> u64 {
        self.offsets.get(row).copied().unwrap_or(self.size)
    }

    fn read_bytes(&self, range: Range<u64>) -> Result<Vec<u8>> {
        match &self.bytes {
            RowBytes::Remote(remote) => remote.object.read(range),
            RowBytes::Local(path, file) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io("read", path, e))?;
                Ok(bytes)
            }
        }
    }

    fn line_starts(&self) -> Result<Vec<u64>> {
        let mut starts = Vec::new();
        let mut begins = true;
        for at in (0..self.size).step_by(SCAN as usize) {
            let bytes = self.read_bytes(at..self.size.min(at + SCAN))?;
            let mut rest = bytes.as_slice();
            let mut offset = at;
            while !rest.is_empty() {
                if begins {
                    starts.push(offset);
                }
                let before = rest;
                // reading from a slice cannot fail
                let taken = rest.skip_until(b'\n').unwrap_or(before.len());
                begins = before[..taken].ends_with(b"\n");
                offset += taken as u64;
            }
        }
        Ok(starts)
    }

    fn stale(&self, message: impl std::fmt::Display) -> Error {
        let index = match &self.bytes {
            RowBytes::Local(path, _) => index_path(path).display().to_string(),
            RowBytes::Remote(remote) => remote.index.as_ref().map(|i| i.uri().to_owned()).unwrap_or_default(),
        };
        stale(index, self.place(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TsvWriter;

    fn reasons(rows: &RowFile) -> Vec<(Option<String>, String)> {
        rows.read(0..rows.len()).unwrap().iter().filter_map(|line| line.image().err()).collect()
    }

    #[test]
    fn what_a_writer_wrote_is_read_with_and_without_the_index_and_in_any_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.tsv");
        let mut writer = TsvWriter::create(&path).unwrap();
        (0..50).for_each(|i| writer.write_image(&format!("k{i}"), &vec![i; 10 + usize::from(i)]).unwrap());
        writer.finish().unwrap();
        let check = || {
            let rows = RowFile::open(&path).unwrap();
            assert_eq!(rows.len(), 50);
            for range in [0..50, 0..1, 49..50, 7..20] {
                let lines = rows.read(range.clone()).unwrap();
                for (line, i) in lines.iter().zip(range) {
                    assert_eq!(line.image().unwrap(), (format!("k{i}"), vec![i as u8; 10 + i]));
                }
            }
            assert_eq!(rows.within(3, 50, 0), 3..4);
            assert_eq!(rows.within(3, 50, rows.start(9) - rows.start(3)), 3..9);
            assert_eq!(rows.within(3, 7, u64::MAX / 2), 3..7);
        };
        check();
        std::fs::remove_file(index_path(&path)).unwrap();
        check();
    }

    #[test]
    fn a_bad_row_concerns_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, b"a\tAAAA\r\nno tab\n\tAAAA\n\xff\tAAAA\n\nb\tAA*A\nc\t\nd\tAAAA").unwrap();
        let rows = RowFile::open(&path).unwrap();
        assert_eq!(rows.len(), 8);
        let found = reasons(&rows);
        assert_eq!(found.len(), 6);
        assert_eq!(found[0], (None, "no tab between key and value".to_owned()));
        assert!(found[4].0.as_deref() == Some("b") && found[4].1.contains("base64 (wrong character at position 3)"));
        assert_eq!(found[5], (Some("c".to_owned()), "the image is empty".to_owned()));
        std::fs::write(&path, b"").unwrap();
        assert!(RowFile::open(&path).unwrap().is_empty());
    }

    #[test]
    fn an_index_of_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, b"a\tAAAA\nb\tAAAA\n").unwrap();
        for (index, said) in [("x\n", "line 1"), ("0\n99\n", "line 2"), ("1\n", "line 1"), ("", "empty")] {
            std::fs::write(index_path(&path), index).unwrap();
            let error = RowFile::open(&path).unwrap_err().to_string();
            assert!(error.contains("a.lineidx") && error.contains(said), "{error}");
        }
        std::fs::write(index_path(&path), "0\n5\n").unwrap();
        let error = RowFile::open(&path).unwrap().read(0..2).unwrap_err().to_string();
        assert!(error.contains("row 1 is not one line"), "{error}");
    }
}
