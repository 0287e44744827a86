//! ROC and precision-recall curves of one class against all others, as scikit-learn draws them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::metrics::ties;
use super::scores::Scores;

/// Points of a curve beyond this number are thinned out evenly: a picture shows no more.
const MOST_POINTS: usize = 5_000;

/// The curves of a class; `None` where all rows or no row are of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassCurves {
    /// The label's text.
    pub label: String,
    /// The ROC curve.
    pub roc: Option<RocCurve>,
    /// The precision-recall curve.
    pub precision_recall: Option<PrCurve>,
}

/// Corner points of a ROC curve, from (0, 0) to (1, 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RocCurve {
    /// False positive rates.
    pub fpr: Vec<f64>,
    /// True positive rates.
    pub tpr: Vec<f64>,
    /// A row is positive from this score on; the first is infinite, `null` in JSON.
    #[serde(serialize_with = "write_thresholds", deserialize_with = "read_thresholds")]
    pub thresholds: Vec<f64>,
}

/// Points of a precision-recall curve by falling recall; one more than thresholds, the last being recall 0, precision 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrCurve {
    /// Precision at each threshold, then 1.
    pub precision: Vec<f64>,
    /// Recall at each threshold, then 0.
    pub recall: Vec<f64>,
    /// A row is positive from this score on.
    pub thresholds: Vec<f64>,
}

fn write_thresholds<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|v| v.is_finite().then_some(v)))
}

fn read_thresholds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|v| v.unwrap_or(f64::INFINITY)).collect())
}

/// The curves of every class. `labels` are the texts by class id.
#[must_use]
pub fn curves(scores: &Scores, truth: &[usize], labels: &[String]) -> Vec<ClassCurves> {
    let of = |(class, label): (usize, &String)| {
        let counts = Counts::new(scores, truth, class);
        let (roc, precision_recall) = (counts.as_ref().map(Counts::roc), counts.as_ref().map(Counts::precision_recall));
        ClassCurves { label: label.clone(), roc, precision_recall }
    };
    labels.iter().enumerate().map(of).collect()
}

/// True and false positives at each distinct score, by falling score.
struct Counts {
    thresholds: Vec<f64>,
    hits: Vec<f64>,
    misses: Vec<f64>,
}

impl Counts {
    fn new(scores: &Scores, truth: &[usize], class: usize) -> Option<Counts> {
        let mut counts = Counts { thresholds: Vec::new(), hits: Vec::new(), misses: Vec::new() };
        let (mut hits, mut misses) = (0, 0);
        for tie in ties(scores, truth, class)? {
            hits += tie.hits;
            misses += tie.misses;
            counts.thresholds.push(tie.score);
            counts.hits.push(hits as f64);
            counts.misses.push(misses as f64);
        }
        Some(counts)
    }

    fn roc(&self) -> RocCurve {
        let last = self.thresholds.len() - 1;
        let bend = |v: &[f64], i: usize| v[i + 1] - v[i] != v[i] - v[i - 1];
        // points on a straight line between their neighbours are left out
        let kept = |&i: &usize| i == 0 || i == last || bend(&self.misses, i) || bend(&self.hits, i);
        let kept = thinned((0..=last).filter(kept).collect());
        let (positives, negatives) = (self.hits[last], self.misses[last]);
        let start = |rest: Vec<f64>, first: f64| std::iter::once(first).chain(rest).collect();
        RocCurve {
            fpr: start(kept.iter().map(|&i| self.misses[i] / negatives).collect(), 0.0),
            tpr: start(kept.iter().map(|&i| self.hits[i] / positives).collect(), 0.0),
            thresholds: start(kept.iter().map(|&i| self.thresholds[i]).collect(), f64::INFINITY),
        }
    }

    fn precision_recall(&self) -> PrCurve {
        let last = self.thresholds.len() - 1;
        // of a run of points at the same recall the first and the last are kept
        let kept =
            |&i: &usize| i == 0 || i == last || self.hits[i] != self.hits[i - 1] || self.hits[i + 1] != self.hits[i];
        let kept = thinned((0..=last).filter(kept).collect());
        let falling = || kept.iter().rev().copied();
        PrCurve {
            precision: falling().map(|i| self.hits[i] / (self.hits[i] + self.misses[i])).chain([1.0]).collect(),
            recall: falling().map(|i| self.hits[i] / self.hits[last]).chain([0.0]).collect(),
            thresholds: falling().map(|i| self.thresholds[i]).collect(),
        }
    }
}

/// At most [`MOST_POINTS`] of the indices, the first and the last among them.
fn thinned(kept: Vec<usize>) -> Vec<usize> {
    let count = kept.len();
    if count <= MOST_POINTS {
        return kept;
    }
    (0..MOST_POINTS).map(|i| kept[i * (count - 1) / (MOST_POINTS - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinite_thresholds_survive_json() {
        let scores = Scores::new(vec![0.9, 0.4, 0.4, 0.1], 1).unwrap();
        let made = curves(&scores, &[0, 1, 0, 1], &["a".to_owned()]);
        let roc = made[0].roc.as_ref().unwrap();
        assert_eq!((&roc.fpr[..], &roc.tpr[..]), (&[0.0, 0.0, 0.5, 1.0][..], &[0.0, 0.5, 1.0, 1.0][..]));
        assert_eq!(roc.thresholds, [f64::INFINITY, 0.9, 0.4, 0.1]);
        let text = serde_json::to_string(&made).unwrap();
        assert!(text.contains("[null,0.9,"), "{text}");
        assert_eq!(serde_json::from_str::<Vec<ClassCurves>>(&text).unwrap(), made);
    }

    #[test]
    fn long_curves_keep_their_ends() {
        let kept = thinned((0..20_001).collect());
        assert_eq!((kept.len(), kept[0], kept[MOST_POINTS - 1]), (MOST_POINTS, 0, 20_000));
        assert!(kept.windows(2).all(|w| w[0] < w[1]));
    }
}
