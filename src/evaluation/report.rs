//! What one classification method scores on one dataset, ready to be written as JSON.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Intervals, intervals};
use super::calibration::{Calibration, calibration};
use super::metrics::{Confusion, Prf, macro_average, macro_over_occurring, mean, micro_average, ranking};
use super::operating::{Goal, OperatingPoint, operating_points};
use super::scores::Labelled;
use super::subgroups::{Column, SubgroupTable, subgroups};
use super::thresholds;
use crate::error::{Error, Result};

/// How the scores came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// Image features against the features of the label texts.
    ZeroShot,
    /// The trained adapter on image features.
    Adapter,
    /// Votes of the nearest reference images.
    Knn {
        /// How many neighbours vote.
        k: usize,
    },
}

impl Method {
    /// Its name in requirements, in reports and in the names of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::ZeroShot => "zero-shot",
            Method::Adapter => "adapter",
            Method::Knn { .. } => "knn",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Method::Knn { k } => write!(f, "kNN (k {k})"),
            other => f.write_str(other.name()),
        }
    }
}

/// The figures of one class, from the highest-scoring class of each row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// The label's text.
    pub label: String,
    /// Precision, recall and F1.
    #[serde(flatten)]
    pub prf: Prf,
    /// Rows of the class.
    pub support: u64,
    /// One-versus-rest ROC AUC; `None` where undefined (no rows of the class, or no others).
    pub auc: Option<f64>,
    /// One-versus-rest average precision; `None` as for `auc`.
    pub average_precision: Option<f64>,
}

/// Figures of the highest-scoring class of each row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArgmaxReport {
    /// The share of right rows.
    pub accuracy: f64,
    /// The mean over the classes that occur, in truth or prediction (scikit-learn's default set).
    #[serde(rename = "macro")]
    pub macro_average: Prf,
    /// The same over summed counts; each figure equals the accuracy.
    #[serde(rename = "micro")]
    pub micro_average: Prf,
    /// Matthews' correlation coefficient.
    pub mcc: f64,
    /// One entry a class, by class id.
    pub per_class: Vec<ClassReport>,
    /// Counts `[true class][predicted class]`.
    pub confusion: Vec<Vec<u64>>,
}

/// Figures after a threshold for each class, chosen on the validation data; averages are over all classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdReport {
    /// The threshold of each class, by class id; `score >= threshold` is positive.
    pub thresholds: Vec<f64>,
    /// The mean over all classes.
    #[serde(rename = "macro")]
    pub macro_average: Prf,
    /// The figures of the counts summed over all classes.
    #[serde(rename = "micro")]
    pub micro_average: Prf,
}

/// All figures of one method on one dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodReport {
    /// How the scores came about.
    #[serde(flatten)]
    pub method: Method,
    /// How many rows were evaluated.
    pub n: usize,
    /// Figures of the highest-scoring class.
    pub argmax: ArgmaxReport,
    /// Figures after thresholds; `None` if there was no validation data to choose them on.
    pub thresholded: Option<ThresholdReport>,
    /// Mean one-versus-rest ROC AUC over the classes for which it is defined; `None` if there is none.
    pub mauc: Option<f64>,
    /// Mean average precision over the same classes.
    pub mean_average_precision: Option<f64>,
    /// Labels without a row in the dataset: they are left out of `mauc` and `mean_average_precision`.
    pub absent_classes: Vec<String>,
    /// Whether the highest score is what it says.
    pub calibration: Calibration,
    /// Confidence intervals; `None` if none were asked for.
    pub intervals: Option<Intervals>,
    /// What groups the test rows in their intervals, the bootstrap's and those of shares; `None`: rows count as independent, or the
    /// report is older than this field, and [`Intervals::group`] says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grouped_by: Option<String>,
    /// Thresholds that reach a wanted sensitivity or specificity; empty without validation data.
    pub operating_points: Vec<OperatingPoint>,
    /// The figures of parts of the dataset, one table a column.
    pub subgroups: Vec<SubgroupTable>,
}

/// What is evaluated beside the figures themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// How confidence intervals are made; `None`: there are none.
    pub bootstrap: Option<Bootstrap<'a>>,
    /// What thresholds are to reach.
    pub goals: &'a [(Goal, f64)],
    /// Columns of the test data that make subgroups.
    pub columns: &'a [Column],
}

/// Evaluates `test`; with `validation`, also after per-class thresholds chosen there. `labels` are the texts by class id.
///
/// # Errors
/// [`Data`](crate::ErrorKind::Data) if the number of labels is not the number of score columns of either dataset, or a column makes no
/// subgroups.
pub fn evaluate_method(
    method: Method,
    validation: Option<Labelled<'_>>,
    test: Labelled<'_>,
    labels: &[String],
    extras: Extras<'_>,
) -> Result<MethodReport> {
    for data in validation.iter().chain([&test]) {
        if data.scores().classes() != labels.len() {
            return Err(Error::data(format!(
                "{} labels but scores of {} classes: model and label file do not fit",
                labels.len(),
                data.scores().classes()
            )));
        }
    }
    let argmax = argmax_report(&test, labels);
    let defined = |of: fn(&ClassReport) -> Option<f64>| mean(argmax.per_class.iter().filter_map(of));
    let (mauc, mean_average_precision) = (defined(|c| c.auc), defined(|c| c.average_precision));
    let absent_classes = argmax.per_class.iter().filter(|c| c.support == 0).map(|c| c.label.clone()).collect();
    let thresholded = validation.as_ref().map(|validation| {
        let thresholds = thresholds::choose(validation);
        let tallies = thresholds::apply(&test, &thresholds);
        ThresholdReport { thresholds, macro_average: macro_average(&tallies), micro_average: micro_average(&tallies) }
    });
    let chosen = thresholded.as_ref().map(|t| t.thresholds.as_slice());
    let (group, groups) = extras.bootstrap.and_then(|bootstrap| bootstrap.groups).unzip();
    Ok(MethodReport {
        method,
        n: test.rows(),
        calibration: calibration(&test),
        intervals: extras.bootstrap.and_then(|bootstrap| intervals(&test, chosen, bootstrap)),
        grouped_by: group.map(str::to_owned),
        operating_points: validation
            .map_or_else(Vec::new, |v| operating_points(extras.goals, &v, (&test, groups), labels)),
        subgroups: extras.columns.iter().map(|column| subgroups(&test, groups, column)).collect::<Result<_>>()?,
        argmax,
        thresholded,
        mauc,
        mean_average_precision,
        absent_classes,
    })
}

fn argmax_report(test: &Labelled<'_>, labels: &[String]) -> ArgmaxReport {
    let confusion = Confusion::new(test.truth(), &test.scores().argmax(), labels.len());
    let tallies = confusion.tallies();
    let per_class = labels
        .iter()
        .zip(&tallies)
        .enumerate()
        .map(|(class, (label, tally))| {
            let ranking = ranking(test.scores(), test.truth(), class);
            ClassReport {
                label: label.clone(),
                prf: tally.prf(),
                support: tally.actual,
                auc: ranking.map(|r| r.auc),
                average_precision: ranking.map(|r| r.average_precision),
            }
        })
        .collect();
    ArgmaxReport {
        accuracy: confusion.accuracy(),
        macro_average: macro_over_occurring(&tallies),
        micro_average: micro_average(&tallies),
        mcc: confusion.mcc(),
        per_class,
        confusion: confusion.counts().to_vec(),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
