//! The UniCL loss: contrastive in both directions, with every text of an image's class as a positive.

use crate::error::{Error, Result};
use crate::model::engine;
use std::collections::HashMap;
use std::hash::Hash;
use tch::{Kind, Tensor};

/// Numbers for positives: rows with equal `Some` keys share a number, every `None` row has its own. Classification rows
/// give `(source, class id)`, captions and tags give `None`, so a caption never becomes a positive of class 0.
#[must_use]
pub fn positive_groups<K: Eq + Hash>(keys: impl IntoIterator<Item = Option<K>>) -> Vec<i64> {
    let mut seen: HashMap<K, i64> = HashMap::new();
    let mut next = 0..;
    keys.into_iter()
        .filter_map(|key| match key {
            None => next.next(),
            Some(key) => match seen.get(&key) {
                Some(&group) => Some(group),
                None => next.next().inspect(|&group| {
                    seen.insert(key, group);
                }),
            },
        })
        .collect()
}

/// The UniCL loss of `image` and `text` features, both `[B, d]` and L2-normalised, as a scalar in float32.
///
/// With S = exp(`log_scale`) * image . text^T and P(i) the rows whose group equals that of row i, it is half the sum over
/// both directions of the mean over i of -(1/|P(i)|) * sum over P(i) of log softmax(S)(i). `groups` has `B` entries.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] when the row counts differ, [`crate::ErrorKind::Engine`] when libtorch fails.
pub fn unicl_loss(image: &Tensor, text: &Tensor, log_scale: &Tensor, groups: &[i64]) -> Result<Tensor> {
    let rows = groups.len();
    let batch = i64::try_from(rows).unwrap_or(i64::MAX);
    if batch == 0 || image.size().first() != Some(&batch) || text.size().first() != Some(&batch) {
        let (i, t) = (image.size(), text.size());
        return Err(Error::internal(format!("contrastive loss over {rows} groups, images {i:?} and texts {t:?}")));
    }
    let weights = positive_weights(groups, batch)?.f_to_device(image.device()).map_err(engine)?;
    (|| {
        // float32 whatever the autocast type: the scaled logits reach 100 and feed a softmax
        let (image, text) = (image.f_to_kind(Kind::Float)?, text.f_to_kind(Kind::Float)?);
        let scale = log_scale.f_to_kind(Kind::Float)?.f_exp()?;
        let logits = image.f_matmul(&text.f_transpose(0, 1)?)?.f_to_kind(Kind::Float)?.f_mul(&scale)?;
        let both = logits.f_log_softmax(1, Kind::Float)?.f_add(&logits.f_log_softmax(0, Kind::Float)?)?;
        both.f_mul(&weights)?.f_sum(Kind::Float)
    })()
    .map_err(engine)
}

/// `[B, B]`: -1 / (2 B |P(i)|) where j is a positive of i, else 0. |P(i)| = |P(j)| there, so one matrix serves both ways.
#[expect(clippy::cast_precision_loss, reason = "batches are far below 2^24 rows")]
fn positive_weights(groups: &[i64], batch: i64) -> Result<Tensor> {
    let mut sizes: HashMap<i64, usize> = HashMap::new();
    for &group in groups {
        *sizes.entry(group).or_default() += 1;
    }
    let mut weights = vec![0f32; groups.len() * groups.len()];
    for (row, a) in weights.chunks_exact_mut(groups.len()).zip(groups) {
        let value = -0.5 / (groups.len() as f32 * sizes[a] as f32);
        for (cell, b) in row.iter_mut().zip(groups) {
            if a == b {
                *cell = value;
            }
        }
    }
    Tensor::f_from_slice(&weights).and_then(|t| t.f_view([batch, batch])).map_err(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_captions_apart() {
        let groups = positive_groups([Some(("a", 0)), None, Some(("a", 0)), None, Some(("b", 0)), Some(("a", 1))]);
        assert_eq!(groups, [0, 1, 0, 2, 3, 4]);
    }

    /// The definition, row by row and column by column in f64.
    fn naive(image: &[Vec<f64>], text: &[Vec<f64>], log_scale: f64, groups: &[i64]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() * log_scale.exp();
        let n = groups.len();
        let direction = |from: &[Vec<f64>], to: &[Vec<f64>]| {
            let mut total = 0.0;
            for i in 0..n {
                let logits: Vec<f64> = (0..n).map(|j| dot(&from[i], &to[j])).collect();
                let max = logits.iter().copied().fold(f64::MIN, f64::max);
                let log_sum = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
                let positives: Vec<usize> = (0..n).filter(|&j| groups[j] == groups[i]).collect();
                total -= positives.iter().map(|&j| logits[j] - log_sum).sum::<f64>() / positives.len() as f64;
            }
            total / n as f64
        };
        0.5 * (direction(image, text) + direction(text, image))
    }

    fn unit_rows(n: usize, d: usize, phase: f64) -> Vec<Vec<f64>> {
        (0..n)
            .map(|i| {
                let row: Vec<f64> = (0..d).map(|j| ((i * d + j) as f64 * 1.7 + phase).sin()).collect();
                let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                row.iter().map(|v| v / norm).collect()
            })
            .collect()
    }

    fn tensor(rows: &[Vec<f64>]) -> Tensor {
        let flat: Vec<f32> = rows.iter().flatten().map(|&v| v as f32).collect();
        Tensor::from_slice(&flat).view([rows.len() as i64, -1])
    }

    #[test]
    fn equals_the_definition_and_gives_gradients() {
        let (image, text) = (unit_rows(6, 5, 0.3), unit_rows(6, 5, 1.1));
        let groups = [0, 1, 0, 2, 1, 0];
        let log_scale = Tensor::from(2.0f32).set_requires_grad(true);
        let features = tensor(&image).set_requires_grad(true);
        let loss = unicl_loss(&features, &tensor(&text), &log_scale, &groups).unwrap();
        assert!(loss.size().is_empty());
        let expected = naive(&image, &text, 2.0, &groups);
        assert!((loss.double_value(&[]) - expected).abs() < 1e-5, "{loss} instead of {expected}");
        loss.backward();
        let h = 1e-5;
        let slope = (naive(&image, &text, 2.0 + h, &groups) - naive(&image, &text, 2.0 - h, &groups)) / (2.0 * h);
        assert!((log_scale.grad().double_value(&[]) - slope).abs() < 1e-4);
        assert_eq!(features.grad().size(), [6, 5]);
    }

    #[test]
    fn refuses_other_row_counts() {
        let features = tensor(&unit_rows(3, 4, 0.0));
        assert!(unicl_loss(&features, &features, &Tensor::from(0f32), &[0, 1]).is_err());
    }
}
