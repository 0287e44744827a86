//! The parameters of Adapter.

use super::parameters::{InTwoSets, in_range};
use crate::error::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Parameters of Adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterParameters {
    /// Channels of the convolutions.
    pub hidden_dimensions: usize,
    /// Length of an embedding; taken from the embeddings when left out, and checked against them when given.
    pub input_channels: Option<usize>,
    /// Rows a training step.
    pub train_dataloader_batch_size: usize,
    /// Rows a validation pass.
    pub validation_dataloader_batch_size: usize,
    /// AdamW learning rate.
    pub learning_rate: f64,
    /// Passes over the training rows.
    pub max_epochs: usize,
    /// What the best epoch is chosen by.
    pub track_metric: TrackMetric,
    /// Ends the training when so many epochs in a row were no better than the best one.
    pub early_stopping_patience: Option<usize>,
    /// How much each class counts in the loss.
    pub class_weights: ClassWeights,
    /// Seed of the weights and the order of rows.
    pub seed: u64,
    /// What becomes of validation images that are training images too.
    pub repeated: InTwoSets,
}

impl Default for AdapterParameters {
    fn default() -> Self {
        AdapterParameters {
            hidden_dimensions: 512,
            input_channels: None,
            train_dataloader_batch_size: 8,
            validation_dataloader_batch_size: 1,
            learning_rate: 3e-4,
            max_epochs: 10,
            track_metric: TrackMetric::Acc,
            early_stopping_patience: None,
            class_weights: ClassWeights::default(),
            seed: 42,
            repeated: InTwoSets::default(),
        }
    }
}

impl AdapterParameters {
    pub(super) fn validate(&self) -> Result<()> {
        in_range("hidden_dimensions", self.hidden_dimensions as u64, 1, 65_536)?;
        in_range("train_dataloader_batch_size", self.train_dataloader_batch_size as u64, 1, 1 << 20)?;
        in_range("validation_dataloader_batch_size", self.validation_dataloader_batch_size as u64, 1, 1 << 20)?;
        in_range("max_epochs", self.max_epochs as u64, 1, 1 << 20)?;
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(Error::config(format!("parameters.learning_rate: {} must be over 0", self.learning_rate)));
        }
        if let Some(patience) = self.early_stopping_patience {
            in_range("early_stopping_patience", patience as u64, 1, 1 << 20)?;
        }
        if self.train_dataloader_batch_size == 1 && self.class_weights != ClassWeights::None {
            return Err(Error::config(
                "parameters.class_weights: they weigh the rows of a batch against one another, and train_dataloader_batch_size is 1: give a larger one",
            ));
        }
        self.class_weights.validate()
    }
}

/// What a best adapter epoch is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrackMetric {
    /// Validation accuracy.
    Acc,
    /// Validation macro one-versus-rest area under the ROC curve.
    Auc,
}

/// How much each class counts in the loss of a batch, relative to the others in it: `weight` of PyTorch's cross entropy.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// Each row counts alike.
    #[default]
    None,
    /// Each class counts alike: rows / (classes * rows of the class), as scikit-learn's `balanced`.
    Balanced,
    /// A factor by label text; 1 for those that are not named.
    #[serde(untagged)]
    ByLabel(BTreeMap<String, f64>),
}

impl ClassWeights {
    fn validate(&self) -> Result<()> {
        let ClassWeights::ByLabel(weights) = self else { return Ok(()) };
        // as it will be used
        let usable = |weight: f64| (weight as f32).is_normal() && weight > 0.0;
        match weights.iter().find(|(_, weight)| !usable(**weight)) {
            None => Ok(()),
            Some((label, weight)) => Err(Error::config(format!(
                "parameters.class_weights: {weight} for '{label}' must be a number over 0 that f32 holds; leave out a label that counts once"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ClassWeights;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("none, balanced, or a factor for each label text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ClassWeights, E> {
                match text {
                    "none" => Ok(ClassWeights::None),
                    "balanced" => Ok(ClassWeights::Balanced),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ClassWeights, A::Error> {
                let weights = BTreeMap::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(ClassWeights::ByLabel(weights))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ClassWeights {
    fn schema_name() -> Cow<'static, str> {
        "ClassWeights".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "enum": ["none", "balanced"] },
                { "type": "object", "additionalProperties": { "type": "number", "exclusiveMinimum": 0 } },
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_weights_come_in_three_forms() {
        let parsed = |yaml: &str| serde_yaml_ng::from_str::<ClassWeights>(yaml);
        assert_eq!(parsed("none").unwrap(), ClassWeights::None);
        assert_eq!(parsed("balanced").unwrap(), ClassWeights::Balanced);
        let named = parsed("{melanoma: 4, naevus: 0.5}").unwrap();
        let weights = [("melanoma".to_owned(), 4.0), ("naevus".to_owned(), 0.5)];
        assert_eq!(named, ClassWeights::ByLabel(weights.into()));
        for good in [ClassWeights::None, ClassWeights::Balanced, named] {
            let text = serde_json::to_string(&good).unwrap();
            assert_eq!(serde_json::from_str::<ClassWeights>(&text).unwrap(), good, "{text}");
            good.validate().unwrap();
        }
        assert!(parsed("even").unwrap_err().to_string().contains("none, balanced, or a factor"));
        for bad in ["{melanoma: 0}", "{melanoma: -1}", "{melanoma: .nan}", "{melanoma: 1e39}", "{melanoma: 1e-50}"] {
            assert!(parsed(bad).unwrap().validate().unwrap_err().to_string().contains("melanoma"));
        }
    }
}
