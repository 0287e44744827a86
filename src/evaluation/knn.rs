//! Exact k-nearest-neighbour classification of unit vectors by cosine similarity.
//!
//! Of all reference vectors the K most similar vote for their class with weight `exp((s - 1) / 0.07)`, `s` being the cosine:
//! the weighting that self-supervised models are commonly evaluated with. The scores of a row are each class's share of the
//! votes, so they add up to 1. Results depend neither on the number of threads nor on the block size; of equally similar
//! references the one with the lower row number is the nearer.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::scores::Scores;
use crate::error::{Error, Result};

/// How many neighbours vote, unless the job says otherwise.
pub const DEFAULT_K: usize = 64;

const TEMPERATURE: f64 = 0.07;
/// Queries handled together, so that a reference vector is read from memory once for all of them.
const BLOCK: usize = 16;
/// Half-precision encoders miss length 1 by up to about 1e-3.
const UNIT_TOLERANCE: f64 = 1e-2;

/// Unit vectors, row-major `[rows, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Bank<'a> {
    vectors: &'a [f32],
    dim: usize,
}

impl<'a> Bank<'a> {
    /// Checks and borrows `vectors`, row-major `[rows, dim]`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the length is no multiple of `dim` or a row is not of length 1 (within 1 %).
    pub fn new(vectors: &'a [f32], dim: usize) -> Result<Self> {
        if dim == 0 || !vectors.len().is_multiple_of(dim) {
            return Err(Error::data(format!("{} numbers do not fill feature vectors of {dim}", vectors.len())));
        }
        for (row, vector) in vectors.chunks_exact(dim).enumerate() {
            let norm = vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
            if !norm.is_finite() || (norm - 1.0).abs() > UNIT_TOLERANCE {
                return Err(Error::data(format!(
                    "feature vector of row {} has length {norm}, not 1: embed the dataset again",
                    row + 1
                )));
            }
        }
        Ok(Bank { vectors, dim })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.vectors.len() / self.dim
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.vectors[row * self.dim..(row + 1) * self.dim]
    }
}

/// The score of every query and class, `[queries, classes]`: the class's share of the votes of the `k` nearest references
/// (all of them when there are fewer). `truth` is the class id of each reference.
///
/// # Errors
/// [`Data`](crate::ErrorKind::Data) if there are no references, dimensions or lengths differ, or a class id is out of range;
/// [`Config`](crate::ErrorKind::Config) if `k` is 0.
pub fn knn_scores(
    reference: &Bank<'_>,
    truth: &[usize],
    queries: &Bank<'_>,
    classes: usize,
    k: usize,
) -> Result<Scores> {
    if k == 0 {
        return Err(Error::config("kNN needs k of at least 1"));
    }
    if reference.dim != queries.dim {
        return Err(Error::data(format!(
            "kNN compares vectors of {} numbers with vectors of {}: embed both datasets with the same model",
            queries.dim, reference.dim
        )));
    }
    if reference.rows() != truth.len() {
        return Err(Error::data(format!("{} reference vectors but {} classes", reference.rows(), truth.len())));
    }
    if truth.is_empty() {
        return Err(Error::data("kNN needs reference vectors, there are none"));
    }
    if let Some(row) = truth.iter().position(|&c| c >= classes) {
        return Err(Error::data(format!(
            "reference row {} has class id {} but there are only {classes} labels",
            row + 1,
            truth[row]
        )));
    }
    let mut scores = vec![0.0; queries.rows() * classes];
    scores.par_chunks_mut(BLOCK * classes).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        let count = out.len() / classes;
        let mut nearest: Vec<Nearest> = (0..count).map(|_| Nearest::new(k.min(truth.len()))).collect();
        for index in 0..reference.rows() {
            let vector = reference.row(index);
            for (i, best) in nearest.iter_mut().enumerate() {
                best.offer(dot(queries.row(first + i), vector), index);
            }
        }
        for (best, row) in nearest.into_iter().zip(out.chunks_exact_mut(classes)) {
            vote(&best.sorted(), truth, row);
        }
    });
    Scores::new(scores, classes)
}

fn vote(neighbours: &[Entry], truth: &[usize], row: &mut [f64]) {
    let mut total = 0.0;
    for Entry { similarity, index } in neighbours {
        let weight = ((f64::from(*similarity) - 1.0) / TEMPERATURE).exp();
        row[truth[*index]] += weight;
        total += weight;
    }
    // cosines are at least about -1, so a weight is at least exp(-29) and the total never 0
    row.iter_mut().for_each(|v| *v /= total);
}

/// Sums in eight lanes that the compiler can keep in one vector register; the order is fixed, so results repeat exactly.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// The best `k` of the offers so far, as a heap whose root is the worst kept one.
struct Nearest {
    k: usize,
    heap: BinaryHeap<Entry>,
}

struct Entry {
    similarity: f32,
    index: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // reversed: the heap's greatest entry is the least near, and the sort puts the nearest first
        other.similarity.total_cmp(&self.similarity).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl Nearest {
    fn new(k: usize) -> Self {
        Nearest { k, heap: BinaryHeap::with_capacity(k) }
    }

    fn offer(&mut self, similarity: f32, index: usize) {
        // rows come in rising order, so an equal similarity never displaces an earlier row
        if self.heap.len() < self.k {
            self.heap.push(Entry { similarity, index });
        } else if let Some(mut worst) = self.heap.peek_mut()
            && similarity > worst.similarity
        {
            *worst = Entry { similarity, index };
        }
    }

    /// Nearest first: the order of summation is part of the result.
    fn sorted(self) -> Vec<Entry> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors from a small linear congruential generator.
    fn vectors(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut all = Vec::new();
        for _ in 0..rows {
            let row: Vec<f32> = (0..dim)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1 << 24) as f32 - 0.5
                })
                .collect();
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            all.extend(row.iter().map(|v| v / norm));
        }
        all
    }

    #[test]
    fn equals_sorting_everything() {
        let (dim, classes, k) = (19, 4, 7);
        let (reference, queries) = (vectors(53, dim, 1), vectors(37, dim, 2));
        let truth: Vec<usize> = (0..53).map(|i| i % classes).collect();
        let scores =
            knn_scores(&Bank::new(&reference, dim).unwrap(), &truth, &Bank::new(&queries, dim).unwrap(), classes, k)
                .unwrap();
        for q in 0..37 {
            let mut all: Vec<(f64, usize)> = (0..53)
                .map(|r| {
                    let s = (0..dim).map(|d| f64::from(queries[q * dim + d]) * f64::from(reference[r * dim + d])).sum();
                    (s, r)
                })
                .collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut expected = vec![0.0; classes];
            let total: f64 = all[..k].iter().map(|(s, _)| ((s - 1.0) / 0.07).exp()).sum();
            for (s, r) in &all[..k] {
                expected[truth[*r]] += ((s - 1.0) / 0.07).exp() / total;
            }
            for (got, want) in scores.row(q).iter().zip(&expected) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn ties_take_the_lower_row_and_k_is_capped() {
        let reference = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let queries = [1.0, 0.0];
        let bank = Bank::new(&reference, 2).unwrap();
        let query = Bank::new(&queries, 2).unwrap();
        assert_eq!(knn_scores(&bank, &[1, 0, 0], &query, 2, 1).unwrap().row(0), [0.0, 1.0]);
        let all = knn_scores(&bank, &[1, 0, 0], &query, 2, 99).unwrap();
        assert!((all.row(0).iter().sum::<f64>() - 1.0).abs() < 1e-12 && all.argmax() == [0]);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(Bank::new(&[1.0, 1.0], 2).is_err());
        assert!(Bank::new(&[f32::NAN, 1.0], 2).is_err());
        let unit = [1.0, 0.0];
        let bank = Bank::new(&unit, 2).unwrap();
        assert!(knn_scores(&bank, &[3], &bank, 2, 1).is_err());
        assert!(knn_scores(&bank, &[], &bank, 2, 1).is_err());
        assert!(knn_scores(&bank, &[0], &bank, 2, 0).is_err());
    }
}
