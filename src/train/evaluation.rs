//! Evaluation in training: zero-shot with the label texts, and kNN of validation against training images.

use crate::data::{ImageTextPairs, Labels};
use crate::distributed::World;
use crate::distributed::rounds::{batches, gather_round};
use crate::error::{Context, Error, Result};
use crate::evaluation::{Bank, Scores, knn_scores};
use crate::infer::{Encoder, zero_shot_logits};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;

/// What is evaluated and how.
#[derive(Debug)]
pub struct Evaluation<'a> {
    /// Validation set.
    pub validation: &'a ImageTextPairs,
    /// What kNN compares with.
    pub reference: &'a ImageTextPairs,
    /// The labels.
    pub labels: &'a Labels,
    /// The text that a label becomes, `{}` for the label.
    pub text_template: &'a str,
    /// Whether zero-shot accuracy is computed.
    pub zero_shot: bool,
    /// Neighbours of kNN, when computed.
    pub knn: Option<usize>,
    /// Images a forward pass.
    pub batch_size: usize,
}

/// Accuracies on the validation set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracies {
    /// By label text.
    pub zero_shot: Option<f64>,
    /// By the nearest training images.
    pub knn: Option<f64>,
}

impl Accuracies {
    /// The number that the best weights are chosen by, and its name.
    #[must_use]
    pub fn tracked(&self) -> (&'static str, f64) {
        match (self.zero_shot, self.knn) {
            (Some(value), _) => ("zero_shot_acc", value),
            (None, Some(value)) => ("knn_acc", value),
            (None, None) => ("none", 0.0),
        }
    }
}

impl Evaluation<'_> {
    /// Encodes the sets as serving does and computes the accuracies; several processes share the images.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] naming the image that cannot be read; [`crate::ErrorKind::Engine`].
    pub fn run(&self, encoder: &Encoder, world: &World) -> Result<Accuracies> {
        let images = encode(encoder, self.validation, self.batch_size, world)?;
        let truth: Vec<usize> = classes(self.validation)?;
        let (dim, count) = (encoder.dim(), self.labels.len());
        let zero_shot = if self.zero_shot {
            let texts = encoder.class_embeddings(self.labels, self.text_template)?;
            let scores = Scores::softmax(&zero_shot_logits(&images, &texts, dim, encoder.logit_scale()?), count)?;
            Some(accuracy(&scores, &truth))
        } else {
            None
        };
        let knn = match self.knn {
            Some(k) => {
                let reference = encode(encoder, self.reference, self.batch_size, world)?;
                let bank = Bank::new(&reference, dim)?;
                let own = part(truth.len(), world);
                let right = if own.is_empty() {
                    0
                } else {
                    let queries = Bank::new(&images[own.start * dim..own.end * dim], dim)?;
                    right(&knn_scores(&bank, &classes(self.reference)?, &queries, count, k)?, &truth[own])
                };
                let all = world.numbers(&[right as f64])?;
                Some(all.iter().map(|n| n[0]).sum::<f64>() / truth.len().max(1) as f64)
            }
            None => None,
        };
        Ok(Accuracies { zero_shot, knn })
    }
}

/// # Errors
/// [`crate::ErrorKind::Data`] naming a row that has no class.
fn classes(pairs: &ImageTextPairs) -> Result<Vec<usize>> {
    Ok(pairs.class_ids()?.into_iter().map(|c| c as usize).collect())
}

fn accuracy(scores: &Scores, truth: &[usize]) -> f64 {
    right(scores, truth) as f64 / truth.len().max(1) as f64
}

fn right(scores: &Scores, truth: &[usize]) -> usize {
    scores.argmax().iter().zip(truth).filter(|(a, b)| a == b).count()
}

/// The rows that this process looks at, of so many.
fn part(rows: usize, world: &World) -> Range<usize> {
    let (rank, size) = (world.rank(), world.size());
    rows * rank / size..rows * (rank + 1) / size
}

/// The features of all images, row-major. The batches are the same however many processes share them.
fn encode(encoder: &Encoder, pairs: &ImageTextPairs, batch_size: usize, world: &World) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(pairs.len() * encoder.dim());
    for round in batches(pairs.len(), batch_size).chunks(world.size()) {
        // an evaluation can take long; whoever asked to stop does not wait for it
        let signal = crate::telemetry::stop::requested();
        if let Some(rank) = world.any(signal.is_some())? {
            let signal = world.stop_reason(rank, signal);
            return Err(Error::new(
                crate::ErrorKind::Preempted,
                format!("stopped by {signal} during an evaluation: run the same job again"),
            ));
        }
        let own = round.get(world.rank()).map_or(Ok(Vec::new()), |rows| encode_rows(encoder, pairs, rows.clone()))?;
        out.extend(gather_round(world, own, round, (batch_size, encoder.dim()))?.concat());
    }
    Ok(out)
}

fn encode_rows(encoder: &Encoder, pairs: &ImageTextPairs, rows: Range<usize>) -> Result<Vec<f32>> {
    let images = rows
        .map(|row| pairs.image(row).map(|(key, bytes)| (pairs.locate(row, &key), bytes)))
        .collect::<Result<Vec<_>>>()?;
    encoder.encode_images(&images)
}

/// Positions of the distinct texts, and for each row the position of its text: the text tower runs once a text.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] for an empty batch.
pub(super) fn distinct(texts: &[String]) -> Result<(Vec<String>, Vec<i64>)> {
    let mut known: HashMap<&str, i64> = HashMap::new();
    let mut unique = Vec::new();
    let mut rows = Vec::with_capacity(texts.len());
    for text in texts {
        let next = unique.len() as i64;
        let at = *known.entry(text).or_insert(next);
        if at == next {
            unique.push(text.clone());
        }
        rows.push(at);
    }
    if unique.is_empty() {
        return Err(Error::internal("a batch without texts")).context(|| "training");
    }
    Ok((unique, rows))
}
