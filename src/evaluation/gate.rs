//! Requirements that an evaluation must meet before anything that rests on it is published.

use serde::{Deserialize, Serialize};

use super::interval::Interval;
use super::report::{Method, MethodReport};
use crate::config::evaluation::{Condition, Figure, IntervalEnd};

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
        let bound: Result<Condition, _> = self.condition.parse();
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
            let method = name(report.method);
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

/// A method's name in requirements.
fn name(method: Method) -> &'static str {
    match method {
        Method::ZeroShot => "zero-shot",
        Method::Adapter => "adapter",
        Method::Knn { .. } => "knn",
    }
}

/// A figure of a report; `None` where it is undefined.
#[must_use]
pub fn value(report: &MethodReport, figure: &Figure) -> Option<f64> {
    let intervals = report.intervals.as_ref();
    let pick = |value: Option<f64>, interval: Option<Interval>| match figure.end {
        None => value,
        Some(IntervalEnd::Low) => interval.map(|i| i.low),
        Some(IntervalEnd::High) => interval.map(|i| i.high),
    };
    let argmax = &report.argmax;
    if let Some(label) = &figure.label {
        let class = argmax.per_class.iter().position(|c| &c.label == label)?;
        let of = &argmax.per_class[class];
        // without rows of the class its recall is 0 by convention, which says nothing
        let counted = |value: f64| (of.support > 0).then_some(value);
        let interval = intervals.and_then(|i| i.per_class.get(class)).filter(|_| of.support > 0);
        return match figure.name.as_str() {
            "precision" => pick(counted(of.prf.precision), interval.map(|i| i.precision)),
            "recall" => pick(counted(of.prf.recall), interval.map(|i| i.recall)),
            "f1" => pick(counted(of.prf.f1), interval.map(|i| i.f1)),
            _ => pick(of.auc, interval.and_then(|i| i.auc)),
        };
    }
    match figure.name.as_str() {
        "accuracy" => pick(Some(argmax.accuracy), intervals.map(|i| i.accuracy)),
        "macro_f1" => pick(Some(argmax.macro_average.f1), intervals.map(|i| i.macro_f1)),
        "macro_precision" => pick(Some(argmax.macro_average.precision), None),
        "macro_recall" => pick(Some(argmax.macro_average.recall), None),
        "mcc" => pick(Some(argmax.mcc), intervals.map(|i| i.mcc)),
        "mauc" => pick(report.mauc, intervals.and_then(|i| i.mauc)),
        "mean_average_precision" => {
            pick(report.mean_average_precision, intervals.and_then(|i| i.mean_average_precision))
        }
        "thresholded_macro_f1" => pick(
            report.thresholded.as_ref().map(|t| t.macro_average.f1),
            intervals.and_then(|i| i.thresholded_macro_f1),
        ),
        "ece" => pick(Some(report.calibration.ece), None),
        "brier" => pick(Some(report.calibration.brier), None),
        "log_loss" => pick(Some(report.calibration.log_loss), None),
        _ => None,
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
