//! Operating points: for each class the threshold that reaches a wanted sensitivity or specificity, chosen on validation data, and
//! what it then does on the test data.

use serde::{Deserialize, Serialize};

use super::interval::Proportion;
use super::metrics::{Tie, ties};
use super::scores::Labelled;

/// What a threshold is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// At least this share of the class's rows found; of such thresholds the one of the highest specificity.
    Sensitivity,
    /// At least this share of the other rows left out; of such thresholds the one of the highest sensitivity.
    Specificity,
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Goal::Sensitivity { "sensitivity" } else { "specificity" })
    }
}

/// A class's threshold for one goal. A row is positive when `score >= threshold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// The label's text.
    pub label: String,
    /// What is fixed.
    pub goal: Goal,
    /// At which value, in 0..1.
    pub target: f64,
    /// The threshold; `None` when no score of the validation data reaches the target, or all or none of its rows are of the class.
    pub threshold: Option<f64>,
    /// What it reaches on the validation data, where it was chosen.
    pub validation: Option<Rates>,
    /// What it reaches on the test data.
    pub test: Option<Rates>,
}

/// Sensitivity and specificity of one class against all others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The share of the class's rows that are positive.
    pub sensitivity: Proportion,
    /// The share of the other rows that are not.
    pub specificity: Proportion,
}

/// The operating points of all classes, goal by goal within a class; `groups` are those of the rows of `test`. `labels` are the texts by class id.
#[must_use]
pub fn operating_points(
    goals: &[(Goal, f64)],
    validation: &Labelled<'_>,
    (test, groups): (&Labelled<'_>, Option<&[usize]>),
    labels: &[String],
) -> Vec<OperatingPoint> {
    let mut points = Vec::with_capacity(labels.len() * goals.len());
    for (class, label) in labels.iter().enumerate() {
        for &(goal, target) in goals {
            let threshold = choose(validation, class, goal, target);
            let rates = |data: &Labelled<'_>, groups| threshold.map(|t| rates(data, groups, class, t));
            let (validation, test) = (rates(validation, None), rates(test, groups));
            points.push(OperatingPoint { label: label.clone(), goal, target, threshold, validation, test });
        }
    }
    points
}

fn choose(data: &Labelled<'_>, class: usize, goal: Goal, target: f64) -> Option<f64> {
    let ties = ties(data.scores(), data.truth(), class)?;
    let sum = |of: fn(&Tie) -> u64| ties.iter().map(of).sum::<u64>();
    let (positives, negatives) = (sum(|t| t.hits), sum(|t| t.misses));
    let (mut found, mut wrong) = (0, 0);
    let mut lowest = None;
    // by falling threshold sensitivity rises and specificity falls
    for tie in &ties {
        found += tie.hits;
        wrong += tie.misses;
        match goal {
            Goal::Sensitivity if found as f64 / positives as f64 >= target => return Some(tie.score),
            Goal::Specificity if (negatives - wrong) as f64 / negatives as f64 >= target => lowest = Some(tie.score),
            Goal::Specificity => return lowest,
            Goal::Sensitivity => {}
        }
    }
    lowest
}

fn rates(data: &Labelled<'_>, groups: Option<&[usize]>, class: usize, threshold: f64) -> Rates {
    let scores = data.scores().column(class);
    let right = |row: usize| (data.truth()[row] == class) == (scores[row] >= threshold);
    let share = |of_class: bool| {
        let rows = (0..data.rows()).filter(|&row| (data.truth()[row] == class) == of_class);
        Proportion::among(rows.map(|row| (row, right(row))), groups)
    };
    Rates { sensitivity: share(true), specificity: share(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Scores;

    #[test]
    fn ties_are_taken_whole_and_the_best_other_rate_wins() {
        let column = [0.9, 0.7, 0.7, 0.7, 0.4, 0.2];
        let scores = Scores::new(column.iter().flat_map(|s| [*s, 1.0 - s]).collect(), 2).unwrap();
        let data = Labelled::new(&scores, &[0, 0, 0, 1, 1, 1]).unwrap();
        assert_eq!(choose(&data, 0, Goal::Sensitivity, 0.3), Some(0.9));
        assert_eq!(choose(&data, 0, Goal::Sensitivity, 0.5), Some(0.7));
        assert_eq!(choose(&data, 0, Goal::Specificity, 0.9), Some(0.9));
        assert_eq!(choose(&data, 0, Goal::Specificity, 0.6), Some(0.7));
        assert_eq!(choose(&data, 0, Goal::Specificity, 0.3), Some(0.4));
        let rates = rates(&data, None, 0, 0.7);
        assert_eq!((rates.sensitivity.value, rates.specificity.value), (Some(1.0), Some(2.0 / 3.0)));
    }
}
