//! From rows to pixels: what goes on ahead of the model.

use super::earlier::Places;
use crate::data::embeddings::BadRow;
use crate::data::rows::{ImageRows, Line};
use crate::error::{Error, Result};
use crate::imaging::PixelContract;
use crate::panics::caught;
use crate::storage::sha256_hex;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

/// Chunks of rows that wait for decoding, and batches that wait for the model beside those decoded together.
pub(super) const AHEAD: usize = 2;
/// Batches that are decoded together,
const BATCHES_TOGETHER: usize = 4;
/// and the images that these are at most, unless one batch has more: being asked to stop is seen between two times.
const IMAGES_TOGETHER: usize = 256;
/// Bytes of rows read at once, unless a single row has more: enough for a few requests to a bucket at the same time.
const CHUNK_BYTES: u64 = 24 << 20;

/// A row that has or gets a vector.
pub(super) struct Vector {
    /// Its place in the dataset, from 1.
    pub(super) row: u64,
    pub(super) key: String,
    /// SHA-256 of the encoded image.
    pub(super) hash: String,
    /// Whether an earlier version has the vector; otherwise the model makes it.
    pub(super) known: bool,
}

/// What a row has become before the model.
pub(super) enum Item {
    Bad(BadRow),
    Vector(Vector),
}

impl Item {
    /// The image's hash, if its vector is known.
    pub(super) fn known_hash(&self) -> Option<&str> {
        match self {
            Item::Vector(vector) if vector.known => Some(&vector.hash),
            _ => None,
        }
    }

    pub(super) fn is_for_the_model(&self) -> bool {
        matches!(self, Item::Vector(vector) if !vector.known)
    }
}

/// What comes to the model, in order.
pub(super) enum Loaded {
    /// Red, green and blue of the next images that wait for a vector, at most a batch.
    Batch(Vec<u8>),
    /// All rows of a shard, after its batches.
    Shard { shard: usize, items: Vec<Item>, bytes: u64 },
}

/// Rows as they were read: the number of the first one, from 0.
pub(super) type Chunk = Result<(usize, Vec<Line>)>;

/// Whoever should take something is gone: the error is there, and nothing is left to do here.
pub(super) struct Gone;

/// Reads a shard's rows, some at a time.
pub(super) fn read_rows(
    images: &ImageRows,
    rows: &Range<usize>,
    to: &SyncSender<Chunk>,
) -> std::result::Result<(), Gone> {
    let mut at = rows.start;
    while at < rows.end {
        let range = images.within(at, rows.end, CHUNK_BYTES);
        let next = range.end;
        let read = images.read(range).map(|lines| (at, lines));
        let failed = read.is_err();
        to.send(read).map_err(|_| Gone)?;
        if failed {
            return Err(Gone);
        }
        at = next;
    }
    Ok(())
}

/// Decodes rows, on all cores.
pub(super) struct Loader<'a> {
    pub(super) contract: &'a PixelContract,
    /// Images whose vectors are known.
    pub(super) places: Option<&'a Places>,
    /// Images of a forward pass.
    pub(super) batch: usize,
    pub(super) lines: Receiver<Chunk>,
    pub(super) to: SyncSender<Result<Loaded>>,
}

impl Loader<'_> {
    pub(super) fn run(&self, shards: &[(usize, Range<usize>)]) {
        for (shard, rows) in shards {
            match self.shard(*shard, rows) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.to.send(Err(error)).ok();
                    return;
                }
            }
        }
    }

    /// Whether anybody still takes what is decoded.
    fn shard(&self, shard: usize, rows: &Range<usize>) -> Result<bool> {
        let batch = self.batch * self.contract.tensor_len();
        let together = (BATCHES_TOGETHER * self.batch).min(IMAGES_TOGETHER).max(self.batch);
        let mut items = Vec::with_capacity(rows.len());
        let mut waiting: Vec<u8> = Vec::new();
        let mut bytes = 0;
        while items.len() < rows.len() {
            let ended = || Error::internal("the thread that reads rows has ended");
            let (first, lines) = self.lines.recv().map_err(|_| ended())??;
            bytes += lines.iter().map(Line::len).sum::<u64>();
            // the receiver must not go to other threads
            let (contract, places) = (self.contract, self.places);
            let mut numbered = (first as u64 + 1..).zip(lines).peekable();
            // pixels need much more memory than rows: of some batches at a time, so that few cores wait for the last image
            while numbered.peek().is_some() {
                let some: Vec<(u64, Line)> = numbered.by_ref().take(together).collect();
                let prepared = some.into_par_iter().map(|(row, line)| prepare(row, line, contract, places));
                for (item, pixels) in prepared.collect::<Vec<_>>() {
                    items.push(item);
                    waiting.extend(pixels);
                    if waiting.len() == batch && self.to.send(Ok(Loaded::Batch(std::mem::take(&mut waiting)))).is_err()
                    {
                        return Ok(false);
                    }
                }
            }
        }
        let rest = (!waiting.is_empty()).then_some(Loaded::Batch(waiting));
        let last = [rest, Some(Loaded::Shard { shard, items, bytes })];
        Ok(last.into_iter().flatten().all(|loaded| self.to.send(Ok(loaded)).is_ok()))
    }
}

/// What a row is, and its pixels if it needs the model.
fn prepare(row: u64, line: Line, contract: &PixelContract, places: Option<&Places>) -> (Item, Vec<u8>) {
    let bad = |(key, reason)| (Item::Bad(BadRow { row, key, reason }), Vec::new());
    let (key, image) = match line.image() {
        Ok(found) => found,
        Err(why) => return bad(why),
    };
    let hash = sha256_hex(&image);
    if places.is_some_and(|places| places.contain(&hash)) {
        return (Item::Vector(Vector { row, key, hash, known: true }), Vec::new());
    }
    let mut pixels = vec![0; contract.tensor_len()];
    // a library that gives up on an image must not take the others with it; the pixels are thrown away then
    match caught(|| contract.load_rgb(&image, &mut pixels)) {
        Some(Ok(())) => (Item::Vector(Vector { row, key, hash, known: false }), pixels),
        Some(Err(error)) => bad((Some(key), error.to_string())),
        None => bad((Some(key), "the decoder failed on the image: convert or replace it".to_owned())),
    }
}
