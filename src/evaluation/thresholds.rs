//! Per-class thresholds: chosen on one dataset, applied to another.
//!
//! A row counts as positive for a class when `score >= threshold`, so a row may have several classes or none. The choice is
//! the threshold out of {0, 0.05, ..., 0.95} with the best F1; of equally good ones the highest.

use super::metrics::Tally;
use super::scores::Labelled;

/// How many thresholds are tried: i / 20 for i in 0..20.
pub const CANDIDATES: usize = 20;

/// The best threshold of every class, by class id. A class without rows in `data` gets the highest candidate, 0.95.
#[must_use]
pub fn choose(data: &Labelled<'_>) -> Vec<f64> {
    (0..data.scores().classes())
        .map(|class| {
            let column = data.scores().column(class);
            let (mut best, mut best_f1) = (0.0, -1.0);
            for threshold in (0..CANDIDATES).map(|i| i as f64 / CANDIDATES as f64) {
                let f1 = tally(&column, data.truth(), class, threshold).prf().f1;
                if f1 >= best_f1 {
                    (best, best_f1) = (threshold, f1);
                }
            }
            best
        })
        .collect()
}

/// The counts of every class when `thresholds` (one a class) are applied to `data`.
#[must_use]
pub fn apply(data: &Labelled<'_>, thresholds: &[f64]) -> Vec<Tally> {
    thresholds
        .iter()
        .enumerate()
        .map(|(class, &threshold)| tally(&data.scores().column(class), data.truth(), class, threshold))
        .collect()
}

fn tally(column: &[f64], truth: &[usize], class: usize, threshold: f64) -> Tally {
    let mut tally = Tally::default();
    for (&score, &t) in column.iter().zip(truth) {
        let (predicted, actual) = (score >= threshold, t == class);
        tally.predicted += u64::from(predicted);
        tally.actual += u64::from(actual);
        tally.true_positives += u64::from(predicted && actual);
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::scores::Scores;

    #[test]
    fn ties_go_to_the_highest_and_the_bound_is_inclusive() {
        let scores = Scores::new(vec![0.5, 0.5, 0.1, 0.9, 0.2, 0.8], 2).unwrap();
        let data = Labelled::new(&scores, &[0, 1, 1]).unwrap();
        // class 0 separates for every t in (0.2, 0.5]; class 1 has one row at 0.5 that only t in (0.5, 0.8] leaves out
        assert_eq!(choose(&data), [0.5, 0.8]);
        let tallies = apply(&data, &[0.5, 0.8]);
        assert_eq!(tallies[0], Tally { true_positives: 1, predicted: 1, actual: 1 });
        assert_eq!(tallies[1], Tally { true_positives: 2, predicted: 2, actual: 2 });
        assert_eq!(apply(&data, &[0.5, 0.85])[1], Tally { true_positives: 1, predicted: 1, actual: 2 });
    }

    #[test]
    fn an_absent_class_gets_the_highest_threshold() {
        let scores = Scores::new(vec![0.9, 0.1], 2).unwrap();
        assert_eq!(choose(&Labelled::new(&scores, &[0]).unwrap())[1], 0.95);
    }
}
