//! Arrow's file format, which Feather is too, in batches of rows.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, FileReaderBuilder};
use arrow::ipc::{Block, root_as_footer, root_as_message};

use super::{Blob, Blocks, Chosen, damaged};
use crate::data::rows::blob::{BlobReader, Failure};
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"ARROW1";
/// What a batch says of itself is smaller than this.
const LONGEST_HEADER: u64 = 64 << 20;
/// A batch is read as a whole, and decoded.
const LONGEST_BATCH: u64 = 4 << 30;

/// An Arrow file, of which the footer is in memory.
#[derive(Debug)]
pub(super) struct ArrowFile {
    place: String,
    failure: Failure,
    reader: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    reader: FileReader<BlobReader>,
    /// The batch that was read last.
    last: Option<(usize, RecordBatch)>,
}

impl ArrowFile {
    /// The file, its columns, and rows and bytes of its batches.
    #[allow(clippy::type_complexity)]
    pub(super) fn open(
        blob: Blob,
        choose: impl Fn(&Schema) -> Result<Chosen>,
    ) -> Result<(Chosen, Vec<(usize, u64)>, Box<dyn Blocks>)> {
        let place = blob.place();
        let sizes = sizes(&blob)?;
        let failure = Failure::default();
        let open = |builder: FileReaderBuilder| {
            let reader = builder.build(BlobReader::new(blob.clone(), &failure));
            failure.or(reader, |error: ArrowError| damaged(&place, error))
        };
        let chosen = choose(&open(FileReaderBuilder::new())?.schema())?;
        let reader = open(FileReaderBuilder::new().with_projection(chosen.projection()))?;
        let reader = Mutex::new(Open { reader, last: None });
        Ok((chosen, sizes, Box::new(ArrowFile { place, failure, reader })))
    }
}

/// Rows and bytes of each batch, by the footer and by what each batch says of itself.
fn sizes(blob: &Blob) -> Result<Vec<(usize, u64)>> {
    let place = blob.place();
    let bad = |why: &str| damaged(&place, why);
    let size = blob.size();
    // a length and the magic at the end, the magic at the beginning
    let Some(end) = size.checked_sub(10).filter(|_| size >= 24) else { return Err(bad("it is too short")) };
    let last = blob.read(end..size)?;
    if &last[4..] != MAGIC || blob.read(0..6)? != MAGIC {
        return Err(bad("it is no Arrow file; a stream of Arrow, such as the cache of a dataset, is not read"));
    }
    let length = u64::from(u32::from_le_bytes([last[0], last[1], last[2], last[3]]));
    let start = end.checked_sub(length).filter(|_| length < LONGEST_HEADER);
    let start = start.ok_or_else(|| bad("its footer is too long"))?;
    let footer = blob.read(start..end)?;
    let footer = root_as_footer(&footer).map_err(|error| bad(&error.to_string()))?;
    let mut sizes = Vec::new();
    let place_of = |block: &Block| {
        let places = (block.offset().try_into(), block.metaDataLength().try_into(), block.bodyLength().try_into());
        let (Ok(at), Ok(header), Ok(body)): (Result<u64, _>, Result<u64, _>, Result<u64, _>) = places else {
            return Err(bad("a place is negative"));
        };
        let end = at.checked_add(header).and_then(|end| end.checked_add(body));
        if end.is_none_or(|end| end > size) || !(8..LONGEST_HEADER).contains(&header) {
            return Err(bad("a batch is outside of the file"));
        }
        if body > LONGEST_BATCH {
            return Err(bad("a batch has more than 4 GiB; write smaller ones"));
        }
        Ok((at, header, body))
    };
    footer.dictionaries().iter().flatten().try_for_each(|block| place_of(block).map(drop))?;
    for block in footer.recordBatches().iter().flatten() {
        let (at, header, body) = place_of(block)?;
        let message = blob.read(at..at + header)?;
        // before it stand its length and, in all but old files, a mark
        let skip = if message.starts_with(&[0xff; 4]) { 8 } else { 4 };
        let message = root_as_message(&message[skip..]).map_err(|error| bad(&error.to_string()))?;
        let batch = message.header_as_record_batch().ok_or_else(|| bad("a batch is none"))?;
        let rows = usize::try_from(batch.length()).map_err(|_| bad("a size is negative"))?;
        sizes.push((rows, body));
    }
    Ok(sizes)
}

impl Blocks for ArrowFile {
    fn read(&self, block: usize, rows: Range<usize>) -> Result<Vec<RecordBatch>> {
        let mut open = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if open.last.as_ref().is_none_or(|(number, _)| *number != block) {
            open.last = None;
            let damage = |error: ArrowError| damaged(&self.place, error);
            self.failure.or(open.reader.set_index(block), damage)?;
            let batch = open.reader.next().ok_or_else(|| damaged(&self.place, "a batch is missing"))?;
            open.last = Some((block, self.failure.or(batch, damage)?));
        }
        let Some((_, batch)) = &open.last else { return Err(Error::internal("a batch was not kept")) };
        if rows.end > batch.num_rows() {
            return Err(damaged(&self.place, "a batch has fewer rows than it says"));
        }
        Ok(vec![batch.slice(rows.start, rows.len())])
    }

    fn rest(&self) {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).last = None;
    }
}
