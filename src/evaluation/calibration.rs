//! Whether scores are what they say: how often the highest-scoring class is right at each height of its score.

use serde::{Deserialize, Serialize};

use super::scores::Labelled;

/// Bins of equal width that confidences are counted in.
pub const BINS: usize = 15;

/// Calibration of scores that are meant as probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: the mean distance between confidence and accuracy over the bins, weighted by their rows.
    pub ece: f64,
    /// The largest such distance.
    pub mce: f64,
    /// Brier score: the mean over rows of the squared distances to 1 for the true class and to 0 for the others, summed over all classes;
    /// 0 is best, 2 worst.
    pub brier: f64,
    /// Mean negative logarithm of the true class's score, which counts as at least 2.2e-16.
    pub log_loss: f64,
    /// The reliability diagram, by rising confidence.
    pub bins: Vec<Bin>,
}

/// The rows whose highest score is above `low` and at most `high`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Its lower end, exclusive but for 0.
    pub low: f64,
    /// Its upper end, inclusive.
    pub high: f64,
    /// How many rows.
    pub n: u64,
    /// Their mean highest score.
    pub confidence: Option<f64>,
    /// How many of them were right.
    pub accuracy: Option<f64>,
}

/// The calibration of `data`.
#[must_use]
pub fn calibration(data: &Labelled<'_>) -> Calibration {
    let edge = |i: usize| if i == BINS { 1.0 } else { i as f64 * (1.0 / BINS as f64) };
    let mut sums = [(0_u64, 0.0_f64, 0_u64); BINS];
    let (mut brier, mut log_loss) = (0.0, 0.0);
    for ((row, &truth), class) in
        (0..data.rows()).map(|i| data.scores().row(i)).zip(data.truth()).zip(data.scores().argmax())
    {
        let confidence = row[class];
        let bin = (1..BINS).take_while(|&i| edge(i) < confidence).count();
        sums[bin].0 += 1;
        sums[bin].1 += confidence;
        sums[bin].2 += u64::from(class == truth);
        brier += row.iter().enumerate().map(|(c, &s)| (s - f64::from(u8::from(c == truth))).powi(2)).sum::<f64>();
        log_loss -= row[truth].clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln();
    }
    let rows = data.rows() as f64;
    let bins: Vec<Bin> = sums
        .iter()
        .enumerate()
        .map(|(i, &(n, confidence, right))| {
            let mean = |sum: f64| (n > 0).then(|| sum / n as f64);
            Bin { low: edge(i), high: edge(i + 1), n, confidence: mean(confidence), accuracy: mean(right as f64) }
        })
        .collect();
    let gaps: Vec<(f64, f64)> =
        bins.iter().filter_map(|b| Some((b.n as f64, (b.confidence? - b.accuracy?).abs()))).collect();
    Calibration {
        ece: gaps.iter().map(|(n, gap)| n * gap).sum::<f64>() / rows,
        mce: gaps.iter().map(|g| g.1).fold(0.0, f64::max),
        brier: brier / rows,
        log_loss: log_loss / rows,
        bins,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Scores;

    #[test]
    fn an_edge_belongs_to_the_bin_below() {
        // 0.6 and 0.8 are edges of 15 bins; 0.2 + 0.4 is a little above 0.6
        let scores = Scores::new(vec![0.8, 0.2, 1.0, 0.0], 2).unwrap();
        let found = calibration(&Labelled::new(&scores, &[0, 1]).unwrap());
        let filled: Vec<usize> = found.bins.iter().enumerate().filter(|(_, b)| b.n > 0).map(|(i, _)| i).collect();
        assert_eq!(filled, [11, 14]);
        assert!((found.ece - (0.2 + 1.0) / 2.0).abs() < 1e-12 && found.mce == 1.0, "{found:?}");
        assert!((found.brier - (0.08 + 2.0) / 2.0).abs() < 1e-12);
    }
}
