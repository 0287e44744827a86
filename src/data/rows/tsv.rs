//! An image TSV, read in ranges from a file of this machine or from an object of a store.
//!
//! Guarantee: a row is never taken from the wrong place, since an index that does not fit its file is an error.

use std::io::BufRead;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::storage::RemoteFile;

use super::blob::Blob;
use super::{LONGEST, Line, RowSource, too_long};
use crate::data::index::{body, parse, read, stale};
use crate::data::tsv::index_path;

/// What is read at once to find line ends.
const SCAN: u64 = 32 << 20;

/// A TSV that is an object of a store.
#[derive(Debug, Clone)]
pub struct RemoteRows {
    /// The TSV.
    pub object: RemoteFile,
    /// Its line index, if it has one.
    pub index: Option<RemoteFile>,
}

/// An image TSV, to be read in ranges of rows.
#[derive(Debug)]
pub(super) struct RowFile {
    blob: Blob,
    /// Where its line index is, for messages.
    index: String,
    offsets: Vec<u64>,
}

impl RowFile {
    /// Opens a file of this machine and its `.lineidx` if there is one.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Data` when the `.lineidx` does not belong to it.
    pub(super) fn open(path: &Path) -> Result<RowFile> {
        let blob = Blob::open(path)?;
        RowFile::over(blob, index_path(path).display().to_string(), read(path)?)
    }

    /// An object, and its line index if it has one. Without an index the object is read once from end to end to find its rows.
    ///
    /// # Errors
    /// `Data` when the index does not belong to it, `Storage` when it cannot be read.
    pub(super) fn remote(RemoteRows { object, index }: RemoteRows) -> Result<RowFile> {
        let text = index.as_ref().map(|index| index.read(0..index.size())).transpose()?;
        if text.is_none() && object.size() > SCAN {
            tracing::warn!(uri = object.uri(), "there is no .lineidx beside it: it is read once more to find its rows");
        }
        let index = index.map(|index| index.uri().to_owned()).unwrap_or_default();
        RowFile::over(Blob::Remote(object), index, text)
    }

    fn over(blob: Blob, index: String, text: Option<Vec<u8>>) -> Result<RowFile> {
        let mut rows = RowFile { blob, index, offsets: Vec::new() };
        rows.offsets = match text {
            Some(text) => parse(&text, rows.blob.size()).map_err(|why| rows.stale(why))?,
            None => rows.line_starts()?,
        };
        Ok(rows)
    }

    /// Whether a line that is not kept is one line: behind an index that is too short there may be many.
    fn check_long(&self, row: usize, range: Range<u64>) -> Result<()> {
        for at in range.clone().step_by(SCAN as usize) {
            let bytes = self.blob.read(at..range.end.min(at + SCAN))?;
            let inner = bytes.iter().position(|&b| b == b'\n').is_some_and(|i| at + i as u64 + 1 < range.end);
            if inner {
                return Err(self.stale(format!("row {} is not one line", row + 1)));
            }
        }
        Ok(())
    }

    fn start(&self, row: usize) -> u64 {
        self.offsets.get(row).copied().unwrap_or(self.blob.size())
    }

    fn line_starts(&self) -> Result<Vec<u64>> {
        let mut starts = Vec::new();
        let mut begins = true;
        let size = self.blob.size();
        for at in (0..size).step_by(SCAN as usize) {
            let bytes = self.blob.read(at..size.min(at + SCAN))?;
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
        stale(&self.index, self.blob.place(), message)
    }
}

impl RowSource for RowFile {
    fn place(&self) -> String {
        self.blob.place()
    }

    fn len(&self) -> usize {
        self.offsets.len()
    }

    fn bytes(&self, rows: Range<usize>) -> u64 {
        self.start(rows.end) - self.start(rows.start)
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let (start, end) = (self.start(rows.start), self.start(rows.end));
        if rows.len() == 1 && end - start > LONGEST {
            return self.check_long(rows.start, start..end).map(|()| vec![Line::bad(None, too_long())]);
        }
        let bytes = self.blob.read(start..end)?;
        rows.map(|row| {
            let line = &bytes[(self.start(row) - start) as usize..(self.start(row + 1) - start) as usize];
            let body = body(line, row + 1 == self.len());
            let body = body.ok_or_else(|| self.stale(format!("row {} is not one line", row + 1)))?;
            Ok(Line::encoded(body.to_vec()))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TsvWriter;

    fn reasons(rows: &RowFile) -> Vec<(Option<String>, String)> {
        rows.read(0..rows.len()).unwrap().into_iter().filter_map(|line| line.image().err()).collect()
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
                for (line, i) in lines.into_iter().zip(range) {
                    assert_eq!(line.image().unwrap(), (format!("k{i}"), vec![i as u8; 10 + i]));
                }
            }
            assert_eq!(
                rows.bytes(3..9),
                (3..9).map(|i| format!("k{i}").len() as u64 + 2 + (10 + i as u64).div_ceil(3) * 4).sum::<u64>()
            );
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
        assert_eq!(RowFile::open(&path).unwrap().len(), 0);
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
