//! Parquet, in row groups.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::{Blob, Blocks, Chosen, damaged};
use crate::data::rows::blob::Failure;
use crate::error::{Error, Result};

/// What is read at once at least, of a file and of an object.
const WINDOW: (u64, u64) = (1 << 20, 16 << 20);
/// Windows that are held, one a column.
const WINDOWS: usize = 4;
/// Rows that are decoded at once.
const BATCH: usize = 64;

/// A Parquet file, of which the footer is in memory.
#[derive(Debug)]
pub(super) struct ParquetFile {
    pages: Pages,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
    /// Where the last read ended, for the next one to go on.
    open: Mutex<Option<Open>>,
}

/// A row group that is being read.
struct Open {
    block: usize,
    /// The row of the group that comes next.
    next: usize,
    reader: ParquetRecordBatchReader,
    /// What was decoded, and not asked for yet.
    rest: Option<RecordBatch>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("block", &self.block).field("next", &self.next).finish_non_exhaustive()
    }
}

impl ParquetFile {
    /// The file, its columns, and rows and bytes of its row groups.
    #[allow(clippy::type_complexity)]
    pub(super) fn open(
        blob: Blob,
        choose: impl Fn(&Schema) -> Result<Chosen>,
    ) -> Result<(Chosen, Vec<(usize, u64)>, Box<dyn Blocks>)> {
        let pages = Pages(Arc::new(Shared { blob, windows: Mutex::default(), failure: Failure::default() }));
        let metadata = ArrowReaderMetadata::load(&pages, ArrowReaderOptions::default());
        let metadata = pages.or_damaged(metadata)?;
        let chosen = choose(metadata.schema())?;
        let mask = ProjectionMask::roots(metadata.parquet_schema(), chosen.projection());
        let mut sizes = Vec::new();
        for group in metadata.metadata().row_groups() {
            let negative = || damaged(&pages.0.blob.place(), "a size is negative");
            let rows = usize::try_from(group.num_rows()).map_err(|_| negative())?;
            let columns = group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
            let mut bytes = 0u64;
            for (_, column) in columns {
                bytes = bytes.saturating_add(u64::try_from(column.uncompressed_size()).map_err(|_| negative())?);
            }
            sizes.push((rows, bytes));
        }
        Ok((chosen, sizes, Box::new(ParquetFile { pages, metadata, mask, open: Mutex::default() })))
    }

    fn begin(&self, block: usize, next: usize) -> Result<Open> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.pages.clone(), self.metadata.clone());
        let builder = builder.with_row_groups(vec![block]).with_projection(self.mask.clone()).with_batch_size(BATCH);
        let reader = self.pages.or_damaged(builder.with_offset(next).build())?;
        Ok(Open { block, next, reader, rest: None })
    }
}

impl Blocks for ParquetFile {
    fn read(&self, block: usize, rows: Range<usize>) -> Result<Vec<RecordBatch>> {
        // an error leaves nothing to go on from
        let before = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut open = match before.filter(|open| open.block == block && open.next == rows.start) {
            Some(open) => open,
            None => self.begin(block, rows.start)?,
        };
        let mut batches = Vec::new();
        while open.next < rows.end {
            let batch = match open.rest.take() {
                Some(rest) => rest,
                None => match open.reader.next() {
                    Some(batch) => self.pages.or_damaged(batch)?,
                    None => break,
                },
            };
            let wanted = batch.num_rows().min(rows.end - open.next);
            if wanted < batch.num_rows() {
                open.rest = Some(batch.slice(wanted, batch.num_rows() - wanted));
            }
            open.next += wanted;
            batches.push(batch.slice(0, wanted));
        }
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(batches)
    }

    fn rest(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.pages.0.windows.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What the Parquet reader reads pages from.
#[derive(Debug, Clone)]
struct Pages(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    blob: Blob,
    /// What was read last, each with where it begins: pages of a column follow each other.
    windows: Mutex<VecDeque<(u64, Bytes)>>,
    failure: Failure,
}

impl Pages {
    fn or_damaged<T, E: std::fmt::Display>(&self, found: std::result::Result<T, E>) -> Result<T> {
        self.0.failure.or(found, |error| damaged(&self.0.blob.place(), error))
    }

    /// Bytes from a place on: `length` of them, or one at least where that is 0; none behind the end.
    fn from(&self, at: u64, length: u64) -> std::result::Result<Bytes, String> {
        let left = self.0.blob.size().saturating_sub(at);
        let least = length.max(1);
        if least > left {
            return if length == 0 { Ok(Bytes::new()) } else { Err("a page ends behind the file".to_owned()) };
        }
        let mut windows = self.0.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let found = windows.iter().find(|(start, bytes)| *start <= at && at + least <= start + bytes.len() as u64);
        if let Some((start, bytes)) = found {
            return Ok(bytes.slice((at - start) as usize..));
        }
        let window = if matches!(self.0.blob, Blob::Local { .. }) { WINDOW.0 } else { WINDOW.1 };
        let read = self.0.blob.read(at..at + least.max(window).min(left));
        let bytes = Bytes::from(read.map_err(|error: Error| self.0.failure.keep(error))?);
        // of the same column, if one ends here
        let before = windows.iter().position(|(start, bytes)| (*start..=start + bytes.len() as u64).contains(&at));
        match before {
            Some(place) => drop(windows.remove(place)),
            None if windows.len() == WINDOWS => drop(windows.pop_front()),
            None => {}
        }
        windows.push_back((at, bytes.clone()));
        Ok(bytes)
    }
}

impl Length for Pages {
    fn len(&self) -> u64 {
        self.0.blob.size()
    }
}

impl ChunkReader for Pages {
    type T = PageReader;

    fn get_read(&self, start: u64) -> ParquetResult<PageReader> {
        Ok(PageReader { pages: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        Ok(self.from(start, length as u64).map_err(ParquetError::General)?.slice(..length))
    }
}

/// Reads from a place on.
#[derive(Debug)]
struct PageReader {
    pages: Pages,
    at: u64,
}

impl Read for PageReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.pages.from(self.at, 0).map_err(io::Error::other)?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.at += length as u64;
        Ok(length)
    }
}
