//! Two evaluations side by side.

use serde::Serialize;

use super::gate::figure;
use super::report::MethodReport;

/// Figures of a whole evaluation, in the order of a table, and what people call them.
pub(super) const FIGURES: [(&str, &str); 9] = [
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("mcc", "MCC"),
    ("mauc", "mAUC"),
    ("mean_average_precision", "mAP"),
    ("thresholded_macro_f1", "thresholded macro F1"),
    ("ece", "ECE"),
    ("brier", "Brier score"),
    ("log_loss", "log loss"),
];

/// A figure of two evaluations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// The method, as `kNN (k 64)`.
    pub method: String,
    /// The figure, as `macro_f1` or `recall[polyp]`.
    pub figure: String,
    /// Of the first evaluation; `None` where undefined.
    pub first: Option<f64>,
    /// Of the second.
    pub second: Option<f64>,
    /// Second minus first.
    pub difference: Option<f64>,
    /// Whether their 95 % intervals have no number in common; `None` without intervals. Intervals that overlap do not prove the figures equal.
    pub apart: Option<bool>,
}

/// The figures of the methods that both evaluated, and the recall of every class that both know.
#[must_use]
pub fn compare(first: &[MethodReport], second: &[MethodReport]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (a, b) in first.iter().filter_map(|a| Some((a, second.iter().find(|b| b.method == a.method)?))) {
        let labels = a.argmax.per_class.iter().map(|c| c.label.as_str());
        let shared = labels.filter(|label| b.argmax.per_class.iter().any(|c| c.label == *label));
        let whole = FIGURES.iter().map(|(name, _)| (*name, None));
        for (name, label) in whole.chain(shared.map(|label| ("recall", Some(label)))) {
            let ((first, of_first), (second, of_second)) = (figure(a, name, label), figure(b, name, label));
            pairs.push(Pair {
                method: a.method.to_string(),
                figure: label.map_or_else(|| name.to_owned(), |label| format!("{name}[{label}]")),
                first,
                second,
                difference: first.zip(second).map(|(a, b)| b - a),
                apart: of_first.zip(of_second).map(|(a, b)| a.high < b.low || b.high < a.low),
            });
        }
    }
    pairs
}

/// The methods of `reports` that are not among the others.
#[must_use]
pub fn only_in(reports: &[MethodReport], others: &[MethodReport]) -> Vec<String> {
    let alone = reports.iter().filter(|report| others.iter().all(|other| other.method != report.method));
    alone.map(|report| report.method.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{Bootstrap, Extras, Labelled, Method, Scores, evaluate_method};

    fn report(right: usize, rows: usize, method: Method) -> MethodReport {
        let values = (0..rows).flat_map(|row| if row < right { [0.9, 0.1] } else { [0.2, 0.8] }).collect();
        let scores = Scores::new(values, 2).unwrap();
        let labels = ["a".to_owned(), "b".to_owned()];
        let bootstrap = Some(Bootstrap { resamples: 200, seed: 0, groups: None });
        let truth = vec![0; rows];
        let data = Labelled::new(&scores, &truth).unwrap();
        evaluate_method(method, None, data, &labels, Extras { bootstrap, ..Extras::default() }).unwrap()
    }

    #[test]
    fn figures_are_paired_by_method_and_label() {
        let first = [report(40, 100, Method::Adapter), report(1, 3, Method::ZeroShot)];
        let second = [report(90, 100, Method::Adapter), report(1, 3, Method::Knn { k: 3 })];
        let pairs = compare(&first, &second);
        assert!(pairs.iter().all(|p| p.method == "adapter"), "{pairs:?}");
        let of = |name: &str| pairs.iter().find(|p| p.figure == name).unwrap();
        assert!((of("accuracy").difference.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!((of("accuracy").apart, of("ece").apart), (Some(true), None));
        assert_eq!(of("recall[a]").second, Some(0.9));
        // no row is of class b, so nothing is known of its recall
        assert_eq!((of("recall[b]").first, of("recall[b]").difference), (None, None));
        assert_eq!(of("recall[b]").apart, None);
        assert_eq!(compare(&first, &first)[0].apart, Some(false));
    }
}
