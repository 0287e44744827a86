//! How rows are divided into training, validation and test.

use crate::error::{Error, Result};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How rows are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitMethod {
    /// Each class by itself, and every class in every part.
    #[default]
    PerClass,
    /// As scikit-learn's `train_test_split`, row for row: the training part from the rest, then validation from test.
    ScikitLearn,
}

/// What becomes of images that are the same to the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Repeated {
    /// An error where they are in different parts.
    #[default]
    Error,
    /// The first one is kept, by the order of the keys.
    Drop,
    /// They stay; a warning says how many are in different parts.
    Allow,
}

/// Fractions of the three splits, which must add up to 1, and how rows are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SplitParameters {
    /// Share of rows for training.
    pub train: f64,
    /// Share of rows for choosing (thresholds, best epoch).
    pub validation: f64,
    /// Share of rows for the final report.
    pub test: f64,
    /// Seed of the stratified draw.
    pub seed: u64,
    /// How rows are drawn.
    pub method: SplitMethod,
    /// Regular expression whose first group is what an image's key says of whom it is, such as `/(P[0-9]+)_`: images of one
    /// patient come into one part.
    pub group_pattern: Option<String>,
    /// Column of image_metadata that says of whom an image is, such as patient_id: images with the same value come into one part.
    pub group_column: Option<String>,
    /// What becomes of images that are the same to the byte.
    pub repeated: Repeated,
}

impl Default for SplitParameters {
    fn default() -> Self {
        SplitParameters {
            train: 0.6,
            validation: 0.2,
            test: 0.2,
            seed: 42,
            method: SplitMethod::default(),
            group_pattern: None,
            group_column: None,
            repeated: Repeated::default(),
        }
    }
}

impl SplitParameters {
    pub(super) fn validate(&self) -> Result<()> {
        let parts = [self.train, self.validation, self.test];
        if parts.iter().any(|p| !(*p > 0.0 && *p < 1.0)) || (parts.iter().sum::<f64>() - 1.0).abs() > 1e-9 {
            return Err(Error::config(format!(
                "parameters.split: train {}, validation {} and test {} must each be over 0 and add up to 1",
                self.train, self.validation, self.test
            )));
        }
        let groups = [("group_pattern", self.group_pattern.is_some()), ("group_column", self.group_column.is_some())];
        let mut groups = groups.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
        if let (Some(one), Some(other)) = (groups.clone().next(), groups.clone().nth(1)) {
            return Err(Error::config(format!(
                "parameters.split: both {one} and {other} say what a group is: keep one"
            )));
        }
        if self.method == SplitMethod::ScikitLearn {
            if let Some(key) = groups.next() {
                return Err(Error::config(format!(
                    "parameters.split: scikit_learn draws rows, not groups: leave out method or {key}"
                )));
            }
            if self.seed > u32::MAX.into() {
                return Err(Error::config(format!(
                    "parameters.split.seed: {} is more than scikit-learn takes, {}",
                    self.seed,
                    u32::MAX
                )));
            }
        }
        self.groups().map(drop)
    }

    /// The regular expression of `group_pattern`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] when it is none, or has no group in parentheses.
    pub fn groups(&self) -> Result<Option<Regex>> {
        let Some(pattern) = &self.group_pattern else { return Ok(None) };
        let wrong = |what: String| Error::config(format!("parameters.split.group_pattern: '{pattern}' {what}"));
        let found = Regex::new(pattern).map_err(|e| wrong("is no regular expression".to_owned()).with_source(e))?;
        if found.captures_len() < 2 {
            return Err(wrong("has no group in parentheses, such as (P[0-9]+)".to_owned()));
        }
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_refused() {
        let read = |text: &str| serde_yaml_ng::from_str::<SplitParameters>(text).unwrap();
        for (text, named) in [
            ("{train: 0.5, validation: 0.2, test: 0.2}", "add up to 1"),
            ("{method: scikit_learn, group_pattern: '(a)'}", "group_pattern"),
            ("{method: scikit_learn, group_column: patient}", "method or group_column"),
            ("{group_pattern: '(a)', group_column: patient}", "both group_pattern and group_column"),
            ("{method: scikit_learn, seed: 5000000000}", "seed"),
            ("{group_pattern: '(a'}", "regular expression"),
            ("{group_pattern: 'a+'}", "parentheses"),
        ] {
            let error = read(text).validate().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(read("{group_pattern: '^(P[0-9]+)', repeated: drop}").validate().is_ok());
    }
}
