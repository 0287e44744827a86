//! Training batches, decoded and augmented ahead of the model.
//!
//! Guarantee: what a batch holds depends only on the seed, the epoch and the rows, not on how many threads load it.

use crate::config::training::Mixup;
use crate::data::ImageTextPairs;
use crate::error::{Context, Result};
use crate::imaging::{Augmentation, Mix, PixelContract, SampleRng, load_training};
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
    /// What all processes compute at the same time, by rank, this batch among it.
    pub round: Vec<Part>,
}

/// Which rows a process has, and how they are mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Row numbers in the training set.
    pub rows: Vec<usize>,
    /// The share of its own image and label in each row, when the batch is mixed: row i holds this much of its own and the
    /// rest of row B - 1 - i.
    pub mix: Option<f64>,
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
    /// How batches are mixed, if they are.
    pub mixup: Option<&'a Mixup>,
    /// Templates with `{}` for the label text.
    pub prompts: &'a [String],
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// Micro-batches an epoch and process.
    pub batches: usize,
    /// This process's number and how many there are: they take the micro-batches of an epoch in turn.
    pub share: (usize, usize),
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
            let (rank, processes) = self.share;
            let batches: Vec<&[usize]> = order.chunks_exact(self.batch_size).collect();
            for round in batches.chunks_exact(processes).take(self.batches).skip(first) {
                let batch = self.load(epoch, round, rank);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
            first = 0;
        }
    }

    fn load(&self, epoch: usize, round: &[&[usize]], rank: usize) -> Result<Batch> {
        let rows = round[rank];
        let length = self.pixels.tensor_len();
        let mut pixels = vec![0f32; rows.len() * length];
        let texts = pixels
            .par_chunks_mut(length)
            .zip(rows.par_iter())
            .map(|(out, &row)| self.sample(epoch, row, out))
            .collect::<Result<Vec<String>>>()?;
        let mix = self.mix(epoch, rows);
        if let Some(mix) = mix {
            mix.apply(&mut pixels, [self.pixels.height(), self.pixels.width()])?;
        }
        // drawn by the same keys as where they are computed
        let part = |rows: &&[usize]| Part { rows: rows.to_vec(), mix: self.mix(epoch, rows).map(|mix| mix.lambda) };
        Ok(Batch { epoch, rows: rows.to_vec(), pixels, texts, round: round.iter().map(part).collect() })
    }

    fn mix(&self, epoch: usize, rows: &[usize]) -> Option<Mix> {
        let first = *rows.first()? as u64;
        // rows' own streams count from 0, the epoch's order has the last: these count down below it
        let mut rng = SampleRng::new(self.seed, epoch as u64, u64::MAX - 1 - first);
        Mix::draw(self.mixup?, [self.pixels.height(), self.pixels.width()], &mut rng)
    }

    fn sample(&self, epoch: usize, row: usize, out: &mut [f32]) -> Result<String> {
        let mut rng = SampleRng::new(self.seed, epoch as u64, row as u64);
        let text = self.pairs.rows()[row].text(self.prompts, &mut rng);
        let (key, bytes) = self.pairs.image(row)?;
        load_training(self.pixels, self.augmentation, &bytes, &mut rng, out)
            .context(|| self.pairs.locate(row, &key))?;
        Ok(text)
    }
}

/// The next batch, or `None` after the last.
///
/// # Errors
/// [`crate::ErrorKind::Data`] naming the row that could not be loaded.
pub fn next(receiver: &Receiver<Result<Batch>>) -> Result<Option<Batch>> {
    receiver.recv().ok().transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ClassRow, Labels, TsvWriter};
    use crate::imaging::{RgbImage, encode_jpeg};

    struct Set {
        _folder: tempfile::TempDir,
        pairs: ImageTextPairs,
        pixels: PixelContract,
        augmentation: Augmentation,
        prompts: Vec<String>,
    }

    fn set() -> Set {
        let folder = tempfile::tempdir().unwrap();
        let (images, texts) = (folder.path().join("images.tsv"), folder.path().join("texts.tsv"));
        let class = serde_json::to_string(&ClassRow::new(0, "a spot", "s")).unwrap();
        let rows = [&class, r#"{"captions":["one","two"]}"#, &class, r#"{"tags":["x","y"],"queries":["which"]}"#];
        let (mut image_tsv, mut text_tsv) = (TsvWriter::create(&images).unwrap(), TsvWriter::create(&texts).unwrap());
        for (index, row) in rows.iter().enumerate() {
            let jpeg = encode_jpeg(&RgbImage::new(16, 16, vec![40 * index as u8 + 30; 768]).unwrap(), 95).unwrap();
            image_tsv.write_image(&index.to_string(), &jpeg).unwrap();
            text_tsv.write(&index.to_string(), row).unwrap();
        }
        image_tsv.finish().unwrap();
        text_tsv.finish().unwrap();
        let labels = Labels::new(vec!["a spot".into()]).unwrap();
        Set {
            pairs: ImageTextPairs::open_training(&images, &texts, &labels).unwrap(),
            _folder: folder,
            pixels: PixelContract { image_size: [8, 8], ..PixelContract::default() },
            augmentation: Augmentation {
                scale: [0.5, 1.0],
                auto_augment: true,
                rotation: 20.0,
                ..Augmentation::default()
            },
            prompts: vec!["{}.".into(), "shows {}".into()],
        }
    }

    fn loader<'a>(set: &'a Set, mixup: Option<&'a Mixup>) -> Loader<'a> {
        Loader {
            pairs: &set.pairs,
            pixels: &set.pixels,
            augmentation: &set.augmentation,
            mixup,
            prompts: &set.prompts,
            batch_size: 4,
            batches: 1,
            share: (0, 1),
            shuffle: false,
            seed: 3,
        }
    }

    #[test]
    fn texts_are_drawn_anew_each_epoch_and_repeat_for_a_key() {
        let set = set();
        let loader = loader(&set, None);
        let mut seen = vec![std::collections::BTreeSet::new(); 4];
        for epoch in 0..60 {
            let batch = loader.load(epoch, &[&[0, 1, 2, 3]], 0).unwrap();
            // rows give the same whatever batch and place they are loaded in
            let again = loader.load(epoch, &[&[0, 2], &[3, 1]], 1).unwrap();
            assert_eq!((&again.texts[0], &again.texts[1]), (&batch.texts[3], &batch.texts[1]));
            assert_eq!(again.pixels[..192], batch.pixels[3 * 192..]);
            for (text, seen) in batch.texts.into_iter().zip(&mut seen) {
                seen.insert(text);
            }
        }
        let texts = |row: usize| seen[row].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((texts(0), texts(1)), (vec!["a spot.", "shows a spot"], vec!["one", "two"]));
        assert_eq!(texts(3), ["which, shows x", "which, shows y", "which, x.", "which, y."]);
    }

    #[test]
    fn processes_share_an_epoch_without_loss_or_repetition() {
        let set = set();
        let all = |share: (usize, usize), skip: usize| {
            let loader = Loader { batch_size: 1, batches: 4 / share.1, share, shuffle: true, ..loader(&set, None) };
            let (sender, receiver) = std::sync::mpsc::sync_channel(100);
            loader.feed(2, skip, &sender);
            drop(sender);
            receiver.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        };
        let (alone, [first, second]) = (all((0, 1), 0), [0, 1].map(|rank| all((rank, 2), 0)));
        assert_eq!((alone.len(), first.len(), second.len()), (8, 4, 4));
        for (i, batch) in alone.iter().enumerate() {
            let theirs = [&first, &second][i % 2].get(i / 2).unwrap();
            assert_eq!((&batch.rows, batch.epoch, &batch.pixels), (&theirs.rows, theirs.epoch, &theirs.pixels));
            assert_eq!(theirs.round[i % 2].rows, batch.rows);
            assert_eq!(first[i / 2].round, second[i / 2].round);
        }
        let rest = all((1, 2), 3);
        assert_eq!((rest.len(), &rest[0].rows), (1, &second[3].rows));
    }

    #[test]
    fn batches_are_mixed_with_themselves_in_reverse() {
        let set = set();
        let mixup = Mixup {
            probability: 0.5,
            mixup_alpha: 1.0,
            cutmix_alpha: 0.0,
            cutmix_minmax: None,
            switch_probability: 0.0,
        };
        let (plain, mixing) = (loader(&set, None), loader(&set, Some(&mixup)));
        let mut mixed = 0;
        for epoch in 0..40 {
            let load = |loader: &Loader<'_>| loader.load(epoch, &[&[0, 1, 2, 3]], 0).unwrap();
            let (one, other) = (load(&plain), load(&mixing));
            assert_eq!((one.round[0].mix, &one.texts), (None, &other.texts));
            let share = other.round[0].mix.unwrap_or(1.0);
            mixed += usize::from(other.round[0].mix.is_some());
            for (row, image) in other.pixels.chunks(192).enumerate() {
                let (own, partner) = (&one.pixels[row * 192..], &one.pixels[(3 - row) * 192..]);
                let close = |i: usize| {
                    (image[i] as f64 - (f64::from(own[i]) * share + f64::from(partner[i]) * (1.0 - share))).abs() < 1e-5
                };
                assert!((0..192).all(close));
            }
        }
        assert!((10..30).contains(&mixed), "{mixed}");
    }
}
