//! Parameters of Evaluate, and the requirements that an evaluation can be held to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::parameters::{InTwoSets, in_range};
use super::preparation::PrepareParameters;
use super::suggest::did_you_mean;
use crate::error::{Error, Result};

/// Parameters of Evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateParameters {
    /// Neighbours of the kNN classifier.
    pub knn: usize,
    /// What becomes of test images that are training or validation images too, or validation images that are training images.
    pub repeated: InTwoSets,
    /// How confidence intervals are made.
    pub bootstrap: BootstrapParameters,
    /// Fields of the test texts' JSON, such as sex or site: the figures are given for each of their values, too.
    pub subgroups: Vec<String>,
    /// What thresholds are chosen for beside the best F1, on validation.
    pub operating_points: OperatingTargets,
    /// What must hold, as `macro_f1: ">= 0.74"`; otherwise the step fails after its report is written, and no step that needs it is run.
    pub require: BTreeMap<Figure, Condition>,
}

impl Default for EvaluateParameters {
    fn default() -> Self {
        EvaluateParameters {
            knn: 64,
            repeated: InTwoSets::default(),
            bootstrap: BootstrapParameters::default(),
            subgroups: Vec::new(),
            operating_points: OperatingTargets::default(),
            require: BTreeMap::new(),
        }
    }
}

/// How confidence intervals are made: by drawing samples of the test rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapParameters {
    /// How many samples are drawn, 100 to 100,000; 0: no intervals.
    pub resamples: usize,
    /// Decides which.
    pub seed: u64,
    /// A field of the test texts' JSON, such as patient_id: rows with the same value are drawn together. Single rows when left out.
    pub group: Option<String>,
}

impl Default for BootstrapParameters {
    fn default() -> Self {
        BootstrapParameters { resamples: 1000, seed: 0, group: None }
    }
}

/// Values that a class's threshold is to reach on the validation data, each in (0, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OperatingTargets {
    /// Sensitivities; of the thresholds that reach one, that of the highest specificity is taken.
    pub sensitivity: Vec<f64>,
    /// Specificities; of the thresholds that reach one, that of the highest sensitivity is taken.
    pub specificity: Vec<f64>,
}

impl Default for OperatingTargets {
    fn default() -> Self {
        OperatingTargets { sensitivity: vec![0.95], specificity: vec![0.95] }
    }
}

impl EvaluateParameters {
    pub(super) fn validate(&self) -> Result<()> {
        in_range("knn", self.knn as u64, 1, u32::MAX.into())?;
        if self.bootstrap.resamples > 0 {
            in_range("bootstrap.resamples", self.bootstrap.resamples as u64, 100, 100_000)?;
        }
        let targets = &self.operating_points;
        for (key, values) in [("sensitivity", &targets.sensitivity), ("specificity", &targets.specificity)] {
            if let Some(value) = values.iter().find(|v| !(**v > 0.0 && **v <= 1.0)) {
                let text = format!("parameters.operating_points.{key}: {value} must be over 0 and at most 1");
                return Err(Error::config(text));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.subgroups.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::config(format!("parameters.subgroups: '{twice}' stands there twice")));
        }
        match self.require.keys().find(|figure| figure.end.is_some() && self.bootstrap.resamples == 0) {
            Some(figure) => Err(Error::config(format!(
                "parameters.require.{figure}: there are no intervals with bootstrap.resamples: 0"
            ))),
            None => Ok(()),
        }
    }

    /// Whether what is required can be answered from the inputs that are named.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the requirement or the inputs.
    pub fn check_inputs(&self, given: impl Fn(&str) -> bool) -> Result<()> {
        for split in ["train", "validation"] {
            let (folder, texts) = (format!("{split}_embeddings"), format!("{split}_text_tsv"));
            if given(&folder) != given(&texts) {
                let text = format!("inputs: {folder} and {texts} belong together; give both or neither");
                return Err(Error::config(text));
            }
        }
        let inputs = ["zero_shot_mlflow_model", "adapter_mlflow_model", "train_embeddings"];
        if !inputs.iter().any(|input| given(input)) {
            return Err(Error::config(
                "inputs: nothing to evaluate; give zero_shot_mlflow_model, adapter_mlflow_model, or train_embeddings with \
                 train_text_tsv",
            ));
        }
        for figure in self.require.keys() {
            let wrong = |why: String| Err(Error::config(format!("parameters.require.{figure}: {why}")));
            let missing =
                METHODS.iter().zip(inputs).find(|(m, input)| figure.method.as_deref() == Some(**m) && !given(input));
            if let Some((method, input)) = missing {
                return wrong(format!("{method} is not evaluated; give {input}, or leave the requirement out"));
            }
            if figure.name == "thresholded_macro_f1" && !given("validation_embeddings") {
                return wrong(
                    "thresholds are chosen on validation_embeddings: give them and validation_text_tsv".into(),
                );
            }
        }
        Ok(())
    }

    /// Whether texts that a Prepare step with these parameters writes have the fields that are asked for.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the field.
    pub fn check_prepared(&self, made: &PrepareParameters) -> Result<()> {
        let fields = made.row_fields();
        match self
            .subgroups
            .iter()
            .chain(&self.bootstrap.group)
            .find(|name| !fields.clone().any(|field| field == *name))
        {
            None => Ok(()),
            Some(name) => Err(Error::config(format!(
                "parameters: the texts that the Prepare step writes have no field '{name}', only {}; name it in that step's parameters.fields",
                fields.collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Whether the labels that something is required of are among `labels`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the requirement.
    pub fn check_labels(&self, labels: &[String]) -> Result<()> {
        let unknown = self.require.keys().find_map(|f| Some((f, f.label.as_ref().filter(|l| !labels.contains(l))?)));
        let Some((figure, label)) = unknown else { return Ok(()) };
        let near = did_you_mean(label, labels.iter().map(String::as_str));
        Err(Error::config(format!("parameters.require.{figure}: label_file has no label '{label}': {near}")))
    }
}

/// Names of methods that a requirement can be limited to.
const METHODS: [&str; 3] = ["zero-shot", "adapter", "knn"];
/// Figures of a whole evaluation that have intervals.
const WITH_INTERVAL: [&str; 6] =
    ["accuracy", "macro_f1", "mcc", "mauc", "mean_average_precision", "thresholded_macro_f1"];
/// And those that have none.
const WITHOUT: [&str; 5] = ["macro_precision", "macro_recall", "ece", "brier", "log_loss"];
/// Figures of one class; all have intervals.
const OF_CLASS: [&str; 4] = ["precision", "recall", "f1", "auc"];

/// A figure that something is required of: `macro_f1`, `adapter.recall[melanoma]`, `knn.accuracy.low`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Figure {
    /// The method; `None`: every method that is evaluated.
    pub method: Option<String>,
    /// The figure's name.
    pub name: String,
    /// The label, of a figure of one class.
    pub label: Option<String>,
    /// An end of the figure's interval in its place.
    pub end: Option<IntervalEnd>,
}

/// An end of a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IntervalEnd {
    /// The lower one.
    Low,
    /// The upper one.
    High,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method}.")?;
        }
        f.write_str(&self.name)?;
        if let Some(label) = &self.label {
            write!(f, "[{label}]")?;
        }
        f.write_str(match self.end {
            None => "",
            Some(IntervalEnd::Low) => ".low",
            Some(IntervalEnd::High) => ".high",
        })
    }
}

impl FromStr for Figure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let method = METHODS.iter().find(|m| text.strip_prefix(**m).is_some_and(|rest| rest.starts_with('.')));
        let rest = method.map_or(text, |m| &text[m.len() + 1..]);
        let ends = [(".low", IntervalEnd::Low), (".high", IntervalEnd::High)];
        let end = ends.iter().find(|(suffix, _)| rest.ends_with(suffix));
        let rest = end.map_or(rest, |(suffix, _)| &rest[..rest.len() - suffix.len()]);
        let (name, label) = match rest.strip_suffix(']').and_then(|r| r.split_once('[')) {
            Some((name, label)) => (name, Some(label.to_owned())),
            None => (rest, None),
        };
        let of_class = OF_CLASS.contains(&name);
        if !of_class && !WITH_INTERVAL.contains(&name) && !WITHOUT.contains(&name) {
            let known: Vec<&str> = WITH_INTERVAL.iter().chain(&WITHOUT).chain(&OF_CLASS).copied().collect();
            return Err(format!("there is no figure '{name}': {}", did_you_mean(name, known)));
        }
        if of_class != label.is_some() {
            return Err(match label {
                Some(_) => format!("'{name}' is not of one class: leave out the label"),
                None => format!("'{name}' is of one class: name it, as in {name}[LABEL]"),
            });
        }
        if end.is_some() && WITHOUT.contains(&name) {
            return Err(format!("'{name}' has no interval"));
        }
        let method = method.map(|m| (*m).to_owned());
        Ok(Figure { method, name: name.to_owned(), label, end: end.map(|(_, end)| *end) })
    }
}

/// A comparison with a number, as `>= 0.74`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Condition {
    comparison: &'static str,
    bound: f64,
}

const COMPARISONS: [&str; 4] = [">=", "<=", ">", "<"];

impl Condition {
    /// Whether `value` fulfils it.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        match self.comparison {
            ">=" => value >= self.bound,
            "<=" => value <= self.bound,
            ">" => value > self.bound,
            _ => value < self.bound,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.comparison, self.bound)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = COMPARISONS.iter().find_map(|c| Some((*c, text.trim().strip_prefix(c)?)));
        let bound = found.and_then(|(c, rest)| Some((c, rest.trim().parse::<f64>().ok().filter(|b| b.is_finite())?)));
        match bound {
            Some((comparison, bound)) => Ok(Condition { comparison, bound }),
            None => Err(format!("'{text}' is no comparison with a number: write one as in \">= 0.74\", in quotes")),
        }
    }
}

/// Written and read as text.
macro_rules! as_text {
    ($type:ident, $expected:literal, $schema:literal) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $schema })
            }
        }
    };
}

as_text!(Figure, "a figure such as macro_f1", r"^((zero-shot|adapter|knn)\.)?[a-z0-9_]+(\[.+\])?(\.(low|high))?$");
as_text!(Condition, "a comparison in quotes, as \">= 0.74\"", r"^\s*(>=|<=|>|<)\s*-?[0-9].*$");

#[cfg(test)]
mod tests {
    use super::*;

    fn built(yaml: &str) -> Result<EvaluateParameters> {
        let parameters: EvaluateParameters = super::super::build(serde_yaml_ng::from_str(yaml).unwrap(), "parameters")?;
        parameters.validate().map(|()| parameters)
    }

    #[test]
    fn figures_and_conditions_survive_their_text() {
        for text in ["macro_f1", "knn.accuracy.low", "adapter.recall[a.b [x]].high", "zero-shot.log_loss", "auc[low]"] {
            assert_eq!(text.parse::<Figure>().unwrap().to_string(), text);
        }
        let condition: Condition = " >=0.74".parse().unwrap();
        assert_eq!(condition.to_string(), ">= 0.74");
        assert!(condition.holds(0.74) && !condition.holds(0.7399) && !condition.holds(f64::NAN));
        assert!("< 1".parse::<Condition>().unwrap().holds(0.0));
    }

    #[test]
    fn mistakes_are_named() {
        for (yaml, parts) in [
            ("require: {macro_fl: '>= 1'}", ["require", "did you mean 'macro_f1'"]),
            ("require: {macro_f1: 0.74}", ["require", ">= 0.74"]),
            ("require: {macro_f1: '> high'}", ["require.macro_f1", "> high"]),
            ("require: {recall: '> 0.5'}", ["recall[LABEL]", "name it"]),
            ("require: {'accuracy[a]': '> 0.5'}", ["accuracy", "leave out the label"]),
            ("require: {ece.low: '< 0.5'}", ["ece", "no interval"]),
            ("{require: {mcc.low: '> 0'}, bootstrap: {resamples: 0}}", ["require.mcc.low", "bootstrap.resamples"]),
            ("operating_points: {sensitivity: [0]}", ["operating_points.sensitivity", "over 0"]),
            ("subgroups: [sex, sex]", ["subgroups", "twice"]),
            ("knn: 0", ["knn", "1 to"]),
        ] {
            let error = built(yaml).unwrap_err().to_string();
            assert!(parts.iter().all(|p| error.contains(p)), "{yaml}: {error}");
        }
        assert_eq!(built("{}").unwrap(), EvaluateParameters::default());
    }
}
