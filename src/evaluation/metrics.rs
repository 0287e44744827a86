//! Confusion matrix, precision, recall, F1, accuracy, MCC, ROC AUC and average precision, as scikit-learn computes them.

use serde::{Deserialize, Serialize};

use super::scores::Scores;

/// Precision, recall and F1, each in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Prf {
    /// True positives / predicted positives; 0 where nothing was predicted.
    pub precision: f64,
    /// True positives / actual positives; 0 where there are none.
    pub recall: f64,
    /// 2 TP / (actual + predicted positives); 0 where both are none.
    pub f1: f64,
}

/// The counts of one class (or the sums over all) that precision and recall are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Rows of the class that were predicted as it.
    pub true_positives: u64,
    /// Rows predicted as the class.
    pub predicted: u64,
    /// Rows of the class.
    pub actual: u64,
}

impl Tally {
    /// Precision, recall and F1 of these counts, with `zero_division = 0`.
    #[must_use]
    pub fn prf(&self) -> Prf {
        Prf {
            precision: ratio(self.true_positives, self.predicted),
            recall: ratio(self.true_positives, self.actual),
            f1: ratio(2 * self.true_positives, self.actual + self.predicted),
        }
    }
}

fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
}

/// The unweighted mean over classes. An empty list gives zeros.
#[must_use]
pub fn macro_average(tallies: &[Tally]) -> Prf {
    let n = tallies.len().max(1) as f64;
    let sum = tallies.iter().map(Tally::prf).fold(Prf::default(), |a, b| Prf {
        precision: a.precision + b.precision,
        recall: a.recall + b.recall,
        f1: a.f1 + b.f1,
    });
    Prf { precision: sum.precision / n, recall: sum.recall / n, f1: sum.f1 / n }
}

/// The unweighted mean over the classes that occur, in truth or prediction: scikit-learn's default set.
#[must_use]
pub fn macro_over_occurring(tallies: &[Tally]) -> Prf {
    let occurring: Vec<Tally> = tallies.iter().copied().filter(|t| t.actual + t.predicted > 0).collect();
    macro_average(&occurring)
}

/// Precision, recall and F1 of the counts summed over classes.
#[must_use]
pub fn micro_average(tallies: &[Tally]) -> Prf {
    tallies
        .iter()
        .fold(Tally::default(), |a, b| Tally {
            true_positives: a.true_positives + b.true_positives,
            predicted: a.predicted + b.predicted,
            actual: a.actual + b.actual,
        })
        .prf()
}

/// How often each true class (row) was predicted as each class (column).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Counts pairs of true and predicted class ids, all below `classes`.
    ///
    /// # Panics
    /// If the lengths differ or an id is out of range; [`Labelled`](super::scores::Labelled) rules both out.
    #[must_use]
    pub fn new(truth: &[usize], predicted: &[usize], classes: usize) -> Self {
        Confusion::weighted(truth, predicted, &vec![1; truth.len()], classes)
    }

    /// The same with each row counted as often as `times` says.
    ///
    /// # Panics
    /// As [`Confusion::new`].
    #[must_use]
    pub fn weighted(truth: &[usize], predicted: &[usize], times: &[u32], classes: usize) -> Self {
        assert_eq!((truth.len(), truth.len()), (predicted.len(), times.len()));
        let mut counts = vec![vec![0; classes]; classes];
        for ((&t, &p), &times) in truth.iter().zip(predicted).zip(times) {
            counts[t][p] += u64::from(times);
        }
        Confusion { counts }
    }

    /// The matrix `[true class][predicted class]`.
    #[must_use]
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// The counts of every class, by class id.
    #[must_use]
    pub fn tallies(&self) -> Vec<Tally> {
        let predicted = self.predicted();
        self.counts
            .iter()
            .enumerate()
            .map(|(i, row)| Tally { true_positives: row[i], predicted: predicted[i], actual: row.iter().sum() })
            .collect()
    }

    /// The share of rows on the diagonal; 0 for an empty matrix.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.diagonal(), self.total())
    }

    /// Matthews' correlation coefficient for any number of classes, in -1..=1; 0 where it is undefined.
    #[must_use]
    pub fn mcc(&self) -> f64 {
        let total = self.total() as f64;
        let predicted = self.predicted();
        let actual: Vec<u64> = self.counts.iter().map(|row| row.iter().sum()).collect();
        let dot = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
        let both = self.diagonal() as f64 * total - dot(&actual, &predicted);
        let truth = total * total - dot(&actual, &actual);
        let guess = total * total - dot(&predicted, &predicted);
        if truth * guess == 0.0 { 0.0 } else { both / (truth * guess).sqrt() }
    }

    fn predicted(&self) -> Vec<u64> {
        (0..self.counts.len()).map(|j| self.counts.iter().map(|row| row[j]).sum()).collect()
    }

    fn diagonal(&self) -> u64 {
        self.counts.iter().enumerate().map(|(i, row)| row[i]).sum()
    }

    fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }
}

/// How well one class's scores rank its rows before the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranking {
    /// Area under the ROC curve: the chance that a row of the class scores above a row of another, ties counting half.
    pub auc: f64,
    /// The area under the precision-recall steps (scikit-learn's `average_precision_score`).
    pub average_precision: f64,
}

/// The rows that share a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tie {
    /// The score.
    pub score: f64,
    /// How many of these rows are of the class.
    pub hits: u64,
    /// How many are not.
    pub misses: u64,
}

/// The rows at each score of class `class`, by falling score; `None` if all rows or no row are of the class.
#[must_use]
pub fn ties(scores: &Scores, truth: &[usize], class: usize) -> Option<Vec<Tie>> {
    let mut rows: Vec<(f64, bool)> = scores.column(class).into_iter().zip(truth.iter().map(|&t| t == class)).collect();
    let positives = rows.iter().filter(|r| r.1).count();
    if positives == 0 || positives == rows.len() {
        return None;
    }
    rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    // -0.0 and 0.0 are one score, so ties are told apart by ==, not by the sort's order
    let tie = |rows: &[(f64, bool)]| {
        let hits = rows.iter().filter(|r| r.1).count() as u64;
        Tie { score: rows[0].0, hits, misses: rows.len() as u64 - hits }
    };
    Some(rows.chunk_by(|a, b| a.0 == b.0).map(tie).collect())
}

impl Ranking {
    /// The ranking of rows that are given as (hits, misses) of each score, by falling score; `None` without a hit or without a miss.
    #[must_use]
    pub fn of(ties: impl IntoIterator<Item = (u64, u64)>) -> Option<Ranking> {
        let (mut area, mut precision_sum) = (0.0, 0.0);
        let (mut found, mut wrong) = (0.0, 0.0);
        for (hits, misses) in ties {
            let (hits, misses) = (hits as f64, misses as f64);
            // a trapezoid: these misses lie below all earlier hits and half of their own tie's
            area += misses * (found + hits / 2.0);
            found += hits;
            wrong += misses;
            if hits > 0.0 {
                precision_sum += hits * found / (found + wrong);
            }
        }
        let defined = found > 0.0 && wrong > 0.0;
        defined.then(|| Ranking { auc: area / (found * wrong), average_precision: precision_sum / found })
    }
}

/// The ranking of class `class` against all others; `None` if all rows or no row are of the class (then it is undefined).
#[must_use]
pub fn ranking(scores: &Scores, truth: &[usize], class: usize) -> Option<Ranking> {
    Ranking::of(ties(scores, truth, class)?.into_iter().map(|tie| (tie.hits, tie.misses)))
}

/// The mean; `None` of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_made_confusion() {
        let confusion = Confusion::new(&[0, 0, 1, 1, 2], &[0, 1, 1, 1, 0], 3);
        assert_eq!(confusion.counts(), [vec![1, 1, 0], vec![0, 2, 0], vec![1, 0, 0]]);
        assert_eq!(confusion.accuracy(), 0.6);
        let prf = confusion.tallies()[1].prf();
        assert_eq!((prf.precision, prf.recall, prf.f1), (2.0 / 3.0, 1.0, 0.8));
        assert_eq!(confusion.tallies()[2].prf(), Prf::default());
    }

    #[test]
    fn mcc_of_a_constant_guess_is_zero() {
        assert_eq!(Confusion::new(&[0, 1, 1], &[1, 1, 1], 2).mcc(), 0.0);
        assert_eq!(Confusion::new(&[0, 1, 1], &[0, 1, 1], 2).mcc(), 1.0);
        assert_eq!(Confusion::new(&[0, 1], &[1, 0], 2).mcc(), -1.0);
    }

    #[test]
    fn auc_counts_ties_as_half_and_signed_zeros_as_ties() {
        let scores = Scores::new(vec![0.0, -0.0, 0.0, 1.0], 1).unwrap();
        let truth = [0, 9, 9, 0];
        let ranking = ranking(&scores, &truth, 0).unwrap();
        assert_eq!(ranking.auc, 0.75);
        assert!(super::ranking(&scores, &[0; 4], 0).is_none());
    }
}
