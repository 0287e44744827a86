//! Requirements that an evaluation must meet before anything that rests on it is published.

use serde::{Deserialize, Serialize};

use super::interval::Interval;
use super::report::MethodReport;
use crate::config::evaluation::{Condition, Figure, IntervalEnd};
use crate::error::{Error, ErrorKind, Result};

/// A requirement and how it came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requirement {
    /// The figure with its method, as `adapter.macro_f1`.
    pub metric: String,
    /// What it must be, as `>= 0.74`.
    pub condition: String,
    /// What it is; `None` where it is undefined, or no such method was evaluated.
    pub value: Option<f64>,
    /// Whether it is met. What is undefined meets nothing.
    pub met: bool,
}

impl Requirement {
    /// The value with four decimals, or all of them where it would round to the other side of the bound.
    #[must_use]
    pub fn shown(&self) -> String {
        let Some(value) = self.value else { return "undefined".to_owned() };
        let text = format!("{value:.4}");
        let bound: Result<Condition, String> = self.condition.parse();
        let misleading = text.parse().is_ok_and(|rounded| bound.is_ok_and(|b| b.holds(rounded) != self.met));
        if misleading { value.to_string() } else { text }
    }

    /// How it came out, in words.
    #[must_use]
    pub fn reason(&self) -> String {
        let asked = if self.met { "as asked" } else { "not" };
        format!("{} is {}, {asked} {}", self.metric, self.shown(), self.condition)
    }
}

/// Holds `reports` to `require`: one entry a requirement and method that it is for.
#[must_use]
pub fn check<'a>(
    require: impl IntoIterator<Item = (&'a Figure, &'a Condition)>,
    reports: &[MethodReport],
) -> Vec<Requirement> {
    let mut found = Vec::new();
    for (figure, condition) in require {
        let of = |method: &str, value: Option<f64>| Requirement {
            metric: Figure { method: Some(method.to_owned()), ..figure.clone() }.to_string(),
            condition: condition.to_string(),
            value,
            met: value.is_some_and(|v| condition.holds(v)),
        };
        let before = found.len();
        for report in reports {
            let method = report.method.name();
            if figure.method.as_deref().is_none_or(|wanted| wanted == method) {
                found.push(of(method, value(report, figure)));
            }
        }
        if found.len() == before {
            found.push(of(figure.method.as_deref().unwrap_or("any"), None));
        }
    }
    found
}

/// That all requirements are met.
///
/// # Errors
/// [`Requirement`](ErrorKind::Requirement), naming those that are not.
pub fn hold(requirements: &[Requirement]) -> Result<()> {
    let missed: Vec<String> = requirements.iter().filter(|r| !r.met).map(Requirement::reason).collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Requirement, format!("not good enough: {}", missed.join("; "))))
}

/// What a figure is, or an end of its interval; `None` where it is undefined.
fn value(report: &MethodReport, asked: &Figure) -> Option<f64> {
    let (value, interval) = figure(report, &asked.name, asked.label.as_deref());
    match asked.end {
        None => value,
        Some(IntervalEnd::Low) => interval.map(|i| i.low),
        Some(IntervalEnd::High) => interval.map(|i| i.high),
    }
}

/// A figure of a report by its name in requirements, with its interval; `label` is for figures of one class. `None` where undefined.
#[must_use]
pub fn figure(report: &MethodReport, name: &str, label: Option<&str>) -> (Option<f64>, Option<Interval>) {
    let (argmax, intervals) = (&report.argmax, report.intervals.as_ref());
    if let Some(label) = label {
        let Some(class) = argmax.per_class.iter().position(|c| c.label == label) else { return (None, None) };
        let of = &argmax.per_class[class];
        // without rows of the class its figures are 0 by convention, which says nothing
        if of.support == 0 {
            return (None, None);
        }
        let interval = intervals.and_then(|i| i.per_class.get(class));
        return match name {
            "precision" => (Some(of.prf.precision), interval.map(|i| i.precision)),
            "recall" => (Some(of.prf.recall), interval.and_then(|i| i.recall)),
            "f1" => (Some(of.prf.f1), interval.and_then(|i| i.f1)),
            "auc" => (of.auc, interval.and_then(|i| i.auc)),
            _ => (None, None),
        };
    }
    match name {
        "accuracy" => (Some(argmax.accuracy), intervals.map(|i| i.accuracy)),
        "macro_f1" => (Some(argmax.macro_average.f1), intervals.map(|i| i.macro_f1)),
        "macro_precision" => (Some(argmax.macro_average.precision), None),
        "macro_recall" => (Some(argmax.macro_average.recall), None),
        "mcc" => (Some(argmax.mcc), intervals.map(|i| i.mcc)),
        "mauc" => (report.mauc, intervals.and_then(|i| i.mauc)),
        "mean_average_precision" => (report.mean_average_precision, intervals.and_then(|i| i.mean_average_precision)),
        "thresholded_macro_f1" => {
            let value = report.thresholded.as_ref().map(|t| t.macro_average.f1);
            (value, intervals.and_then(|i| i.thresholded_macro_f1))
        }
        "ece" => (Some(report.calibration.ece), None),
        "brier" => (Some(report.calibration.brier), None),
        "log_loss" => (Some(report.calibration.log_loss), None),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_the_bound_is_written_out() {
        let missed = |value: f64| Requirement {
            metric: "knn.mcc".to_owned(),
            condition: ">= 0.8".to_owned(),
            value: Some(value),
            met: false,
        };
        assert_eq!(missed(0.79996).reason(), "knn.mcc is 0.79996, not >= 0.8");
        assert_eq!(missed(0.7112345).shown(), "0.7112");
        assert_eq!(Requirement { value: None, ..missed(0.0) }.reason(), "knn.mcc is undefined, not >= 0.8");
    }
}
