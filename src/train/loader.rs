//! Training batches, decoded and augmented ahead of the model.
//!
//! Guarantee: what a batch holds depends only on the seed, the epoch and the rows, not on how many threads load it.

use crate::data::ImageTextPairs;
use crate::error::{Context, Result};
use crate::imaging::{Augmentation, PixelContract, SampleRng, load_training};
use rayon::prelude::*;
use std::sync::mpsc::{Receiver, SyncSender};

/// Batches loaded ahead.
pub const AHEAD: usize = 4;

/// One micro-batch.
#[derive(Debug)]
pub struct Batch {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Row numbers in the training set.
    pub rows: Vec<usize>,
    /// [B, 3, H, W], normalised.
    pub pixels: Vec<f32>,
    /// The text of each image.
    pub texts: Vec<String>,
}

/// What the loader needs to know.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The training set.
    pub pairs: &'a ImageTextPairs,
    /// How pixels enter the model.
    pub pixels: &'a PixelContract,
    /// What is varied.
    pub augmentation: &'a Augmentation,
    /// Templates with `{}` for the label text.
    pub prompts: &'a [String],
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// Micro-batches an epoch.
    pub batches: usize,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Seed of order, augmentation and prompts.
    pub seed: u64,
}

impl Loader<'_> {
    /// The order of rows in an epoch.
    #[must_use]
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.pairs.len()).collect();
        if self.shuffle {
            // a stream that no row's own stream can be: rows count from 0
            SampleRng::new(self.seed, epoch as u64, u64::MAX).shuffle(&mut rows);
        }
        rows
    }

    /// Loads the batches of all epochs in order, without the first `skip`, and sends them: until the last or until nobody
    /// listens any more.
    pub fn feed(&self, epochs: usize, skip: usize, sender: &SyncSender<Result<Batch>>) {
        let mut first = skip % self.batches.max(1);
        for epoch in skip / self.batches.max(1)..epochs {
            let order = self.order(epoch);
            for rows in order.chunks_exact(self.batch_size).take(self.batches).skip(first) {
                let batch = self.load(epoch, rows);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
            first = 0;
        }
    }

    fn load(&self, epoch: usize, rows: &[usize]) -> Result<Batch> {
        let length = self.pixels.tensor_len();
        let mut pixels = vec![0f32; rows.len() * length];
        let texts = pixels
            .par_chunks_mut(length)
            .zip(rows.par_iter())
            .map(|(out, &row)| self.sample(epoch, row, out))
            .collect::<Result<Vec<String>>>()?;
        Ok(Batch { epoch, rows: rows.to_vec(), pixels, texts })
    }

    fn sample(&self, epoch: usize, row: usize, out: &mut [f32]) -> Result<String> {
        let mut rng = SampleRng::new(self.seed, epoch as u64, row as u64);
        let prompt = &self.prompts[rng.below(self.prompts.len())];
        let (key, bytes) = self.pairs.image(row)?;
        load_training(self.pixels, self.augmentation, &bytes, &mut rng, out)
            .context(|| self.pairs.locate(row, &key))?;
        Ok(prompt.replace("{}", &self.pairs.rows()[row].class_name))
    }
}

/// The next batch, or `None` after the last.
///
/// # Errors
/// [`crate::ErrorKind::Data`] naming the row that could not be loaded.
pub fn next(receiver: &Receiver<Result<Batch>>) -> Result<Option<Batch>> {
    receiver.recv().ok().transpose()
}
