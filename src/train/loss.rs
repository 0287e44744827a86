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

/// What each row is drawn to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// The group of each row; rows of one group are positives of each other.
    pub groups: Vec<i64>,
    /// For mixed images: the row that each image is mixed with, and the share of its own pixels. Empty: none is mixed.
    pub mixed: Vec<(usize, f64)>,
}

impl Targets {
    /// `[B, B]` each, row-major: -1/(2B) times the weight of text j for image i, and of image i for text j. Without mixing both are
    /// 1/|P(i)| where i and j share a group. An image of share s drawn to its own texts is drawn to its partner's by 1 - s,
    /// and a text to every image by the share of its own class in it.
    fn weights(&self) -> (Vec<f64>, Vec<f64>) {
        let count = self.groups.len();
        let mut sizes: HashMap<i64, f64> = HashMap::new();
        for &group in &self.groups {
            *sizes.entry(group).or_default() += 1.0;
        }
        let same = |i: usize, j: usize| if self.groups[i] == self.groups[j] { 1.0 } else { 0.0 };
        let mixed = |i: usize| self.mixed.get(i).copied().unwrap_or((i, 1.0));
        let (mut images, mut texts) = (vec![0.0; count * count], vec![0.0; count * count]);
        let mut totals = vec![0.0; count];
        for i in 0..count {
            let (partner, share) = mixed(i);
            let (own, other) = (share / sizes[&self.groups[i]], (1.0 - share) / sizes[&self.groups[partner]]);
            for j in 0..count {
                images[i * count + j] = own * same(i, j) + other * same(partner, j);
                texts[i * count + j] = share * same(i, j) + (1.0 - share) * same(partner, j);
                totals[j] += texts[i * count + j];
            }
        }
        let scale = -0.5 / count as f64;
        images.iter_mut().for_each(|w| *w *= scale);
        for row in texts.chunks_exact_mut(count) {
            // a text whose class is in no image, its own mixed away altogether, has nothing to be drawn to
            row.iter_mut().zip(&totals).for_each(|(w, total)| *w *= if *total > 0.0 { scale / total } else { 0.0 });
        }
        (images, texts)
    }
}

/// The UniCL loss of `image` and `text` features, both `[B, d]` and L2-normalised, as a scalar in float32.
///
/// With S = exp(`log_scale`) * image . text^T and P(i) the rows whose group equals that of row i, it is half the sum over
/// both directions of the mean over i of -(1/|P(i)|) * sum over P(i) of log softmax(S)(i). Mixed images have the mixture of
/// both sets of positives as their target. `targets` has `B` rows.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] when the row counts differ, [`crate::ErrorKind::Engine`] when libtorch fails.
pub fn unicl_loss(image: &Tensor, text: &Tensor, log_scale: &Tensor, targets: &Targets) -> Result<Tensor> {
    let rows = targets.groups.len();
    let batch = i64::try_from(rows).unwrap_or(i64::MAX);
    if batch == 0 || image.size().first() != Some(&batch) || text.size().first() != Some(&batch) {
        let (i, t) = (image.size(), text.size());
        return Err(Error::internal(format!("contrastive loss over {rows} rows, images {i:?} and texts {t:?}")));
    }
    let (to_texts, to_images) = targets.weights();
    let matrix = |values: &[f64]| {
        let weights = Tensor::f_from_slice(values)?.f_view([batch, batch])?;
        weights.f_to_kind(Kind::Float)?.f_to_device(image.device())
    };
    (|| {
        // float32 whatever the autocast type: the scaled logits reach 100 and feed a softmax
        let (image, text) = (image.f_to_kind(Kind::Float)?, text.f_to_kind(Kind::Float)?);
        let scale = log_scale.f_to_kind(Kind::Float)?.f_exp()?;
        let logits = image.f_matmul(&text.f_transpose(0, 1)?)?.f_to_kind(Kind::Float)?.f_mul(&scale)?;
        let by_image = logits.f_log_softmax(1, Kind::Float)?.f_mul(&matrix(&to_texts)?)?;
        let by_text = logits.f_log_softmax(0, Kind::Float)?.f_mul(&matrix(&to_images)?)?;
        by_image.f_add(&by_text)?.f_sum(Kind::Float)
    })()
    .map_err(engine)
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
        let targets = Targets { groups: groups.to_vec(), mixed: Vec::new() };
        let loss = unicl_loss(&features, &tensor(&text), &log_scale, &targets).unwrap();
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
    fn mixed_targets_are_distributions_and_reduce_to_the_plain_ones() {
        let groups = vec![0, 1, 0, 2];
        let plain = Targets { groups: groups.clone(), mixed: Vec::new() }.weights();
        let whole = Targets { groups: groups.clone(), mixed: (0..4).map(|i| (3 - i, 1.0)).collect() }.weights();
        assert_eq!(plain, whole);
        let swapped = Targets { groups: groups.clone(), mixed: (0..4).map(|i| (3 - i, 0.0)).collect() }.weights().0;
        assert_eq!(swapped[..4], plain.0[12..]);
        let (images, texts) = Targets { groups, mixed: (0..4).map(|i| (3 - i, 0.3)).collect() }.weights();
        for i in 0..4 {
            let row: f64 = images[i * 4..][..4].iter().sum();
            let column: f64 = (0..4).map(|k| texts[k * 4 + i]).sum();
            assert!((row + 0.125).abs() < 1e-12 && (column + 0.125).abs() < 1e-12, "{row} {column}");
        }
        // image 1 (class 1) holds 70 % of image 2 (class 0, rows 0 and 2)
        assert!((images[4] + 0.125 * 0.35).abs() < 1e-12 && (images[5] + 0.125 * 0.3).abs() < 1e-12);
    }

    #[test]
    fn refuses_other_row_counts() {
        let features = tensor(&unit_rows(3, 4, 0.0));
        let targets = Targets { groups: vec![0, 1], mixed: Vec::new() };
        assert!(unicl_loss(&features, &features, &Tensor::from(0f32), &targets).is_err());
    }
}
