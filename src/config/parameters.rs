//! The parameters of each job kind, with the contract's names and defaults.

use super::adapter::AdapterParameters;
use super::embedding::EmbedParameters;
use super::evaluation::EvaluateParameters;
use super::packaging::{StoredWeights, TermsOfUse};
use super::preparation::PrepareParameters;
use super::prompts;
use super::suggest::did_you_mean;
use crate::error::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The number type that a training computes in; weights and optimizer state are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// What the training configuration's FP16 says: fp16 on a GPU and bf16 on a CPU, or else f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 autocast.
    Bf16,
    /// float16 autocast with dynamic loss scaling; GPUs only.
    Fp16,
}

/// What the loss compares with each other when an optimizer step has several forward passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContrastiveBatch {
    /// The rows of each forward pass, as in the original.
    #[default]
    Micro,
    /// All rows of the step: features are computed once without gradients, and once more with them.
    Total,
}

/// What happens when a loss or gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// The run ends with an error.
    #[default]
    Stop,
    /// The step is left out.
    Skip,
}

/// What becomes of images that are in two sets of a job, by key or by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InTwoSets {
    /// An error: what is measured on them was learned from them.
    #[default]
    Error,
    /// They stay; a warning says how many there are.
    Allow,
}

/// The texts that a training image is paired with: a list, or the name of one of [`prompts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PromptTemplates {
    /// One of [`prompts::NAMES`].
    Named(String),
    /// Templates with `{}` for the label text.
    List(Vec<String>),
}

impl PromptTemplates {
    /// The templates themselves.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        match self {
            PromptTemplates::List(list) => list.clone(),
            PromptTemplates::Named(name) => {
                prompts::preset(name).unwrap_or_default().iter().map(|&t| t.to_owned()).collect()
            }
        }
    }

    /// The name of the list, when it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            PromptTemplates::Named(name) => Some(name),
            PromptTemplates::List(_) => None,
        }
    }

    fn validate(&self) -> Result<()> {
        let key = "parameters.prompt_templates";
        if let Some(name) = self.name().filter(|n| prompts::preset(n).is_none()) {
            let known = did_you_mean(name, prompts::NAMES);
            return Err(Error::config(format!(
                "{key}: there is no list '{name}': {known}; or write a list of templates"
            )));
        }
        let texts = self.texts();
        if texts.is_empty() {
            return Err(Error::config(format!("{key}: must hold at least one template, e.g. \"{{}}.\"")));
        }
        match texts.iter().find(|t| !t.contains("{}")) {
            Some(t) => Err(Error::config(format!("{key}: '{t}' has no {{}} for the label text"))),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for PromptTemplates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = PromptTemplates;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of templates, or one of the names {}", prompts::NAMES.join(", "))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<PromptTemplates, E> {
                Ok(PromptTemplates::Named(name.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<PromptTemplates, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(PromptTemplates::List)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for PromptTemplates {
    fn schema_name() -> Cow<'static, str> {
        "PromptTemplates".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "enum": prompts::NAMES },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ]
        })
    }
}

/// Parameters of Finetune; the training itself is configured by the YAML file in `conf_files`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FinetuneParameters {
    /// Texts that a training image is paired with, one drawn per sample and epoch; `{}` is the label text.
    pub prompt_templates: PromptTemplates,
    /// Seed of weights' drop path, sample order, augmentation and prompts.
    pub seed: u64,
    /// The number type of the computation.
    pub precision: Precision,
    /// What the loss compares when a step has several forward passes.
    pub contrastive_batch: ContrastiveBatch,
    /// What happens when a loss or gradient is not finite; the rows are written to the run's folder either way.
    pub on_non_finite: OnNonFinite,
    /// How many checkpoints are kept while the training runs.
    pub keep_checkpoints: usize,
    /// Training images are rotated by up to this many degrees either way.
    pub rotation: f64,
    /// What becomes of validation images that are training images too, or those that kNN compares with.
    pub repeated: InTwoSets,
    /// Keys that replace those of the training configuration, e.g. `MAX_NUM_EPOCHS: 3`.
    pub training: BTreeMap<String, serde_json::Value>,
    /// What the model card says of how the model may be used.
    pub model_card: TermsOfUse,
    /// The number type of the weights in the package.
    pub stored_weights: StoredWeights,
    /// Whether the package holds ONNX models of both encoders too, for runtimes without Python.
    pub onnx: bool,
}

impl Default for FinetuneParameters {
    fn default() -> Self {
        FinetuneParameters {
            prompt_templates: PromptTemplates::Named(prompts::NAMES[0].to_owned()),
            seed: 42,
            precision: Precision::default(),
            contrastive_batch: ContrastiveBatch::default(),
            on_non_finite: OnNonFinite::default(),
            keep_checkpoints: 2,
            rotation: 0.0,
            repeated: InTwoSets::default(),
            training: BTreeMap::new(),
            model_card: TermsOfUse::default(),
            stored_weights: StoredWeights::default(),
            onnx: false,
        }
    }
}

impl FinetuneParameters {
    fn validate(&self) -> Result<()> {
        in_range("keep_checkpoints", self.keep_checkpoints as u64, 1, 1000)?;
        if !(0.0..=180.0).contains(&self.rotation) {
            return Err(Error::config(format!(
                "parameters.rotation: {} is not within 0 to 180 degrees",
                self.rotation
            )));
        }
        self.model_card.validate()?;
        self.prompt_templates.validate()
    }

    /// What attempts that go on from one another must share: the others have their defaults. No step depends on them but those that
    /// come to a number that is not finite, and without them there is no package.
    #[must_use]
    pub fn for_resuming(&self) -> FinetuneParameters {
        let FinetuneParameters { on_non_finite, keep_checkpoints, repeated, model_card, stored_weights, onnx, .. } =
            FinetuneParameters::default();
        FinetuneParameters {
            on_non_finite,
            keep_checkpoints,
            repeated,
            model_card,
            stored_weights,
            onnx,
            ..self.clone()
        }
    }
}

/// Parameters of Assemble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AssembleParameters {
    /// The text that a label becomes; `{}` is the label.
    pub text_template: String,
    /// Checked against the adapter when given.
    pub hidden_dimensions: Option<usize>,
    /// Checked against the adapter when given.
    pub input_channels: Option<usize>,
    /// What the model card says of how the model may be used.
    pub model_card: TermsOfUse,
    /// Whether the package holds an ONNX model of the classifier too, for runtimes without Python.
    pub onnx: bool,
}

impl Default for AssembleParameters {
    fn default() -> Self {
        AssembleParameters {
            text_template: "{}.".to_owned(),
            hidden_dimensions: None,
            input_channels: None,
            model_card: TermsOfUse::default(),
            onnx: false,
        }
    }
}

impl AssembleParameters {
    fn validate(&self) -> Result<()> {
        self.model_card.validate()?;
        one_label("text_template", &self.text_template)
    }
}

/// A template with one place for the label.
pub(super) fn one_label(key: &str, template: &str) -> Result<()> {
    if template.matches("{}").count() == 1 {
        return Ok(());
    }
    Err(Error::config(format!("parameters.{key}: '{template}' must have one {{}} for the label")))
}

pub(super) fn in_range(key: &str, value: u64, low: u64, high: u64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Error::config(format!("parameters.{key}: {value} is outside {low} to {high}")))
}

/// The parameters of any kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Parameters {
    /// Of Prepare.
    Prepare(PrepareParameters),
    /// Of Finetune.
    Finetune(FinetuneParameters),
    /// Of Embed.
    Embed(EmbedParameters),
    /// Of Adapter.
    Adapter(AdapterParameters),
    /// Of Assemble.
    Assemble(AssembleParameters),
    /// Of Evaluate.
    Evaluate(EvaluateParameters),
}

impl Parameters {
    /// What attempts that go on from one another must share, where that is less than all: not what is allowed, or written in the end.
    #[must_use]
    pub fn for_resuming(&self) -> Option<Parameters> {
        match self {
            Parameters::Embed(parameters) => Some(Parameters::Embed(parameters.for_resuming())),
            Parameters::Finetune(parameters) => Some(Parameters::Finetune(parameters.for_resuming())),
            _ => None,
        }
    }

    /// Parses and checks the `parameters` section of a step of `kind`; `origin` is the section's place for errors.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] naming the key.
    pub fn build(kind: super::kinds::Kind, value: serde_yaml_ng::Value, origin: &str) -> Result<Parameters> {
        use super::kinds::Kind;
        let value = if value.is_null() { serde_yaml_ng::Value::Mapping(Default::default()) } else { value };
        let built = match kind {
            Kind::Prepare => Parameters::Prepare(super::build(value, origin)?),
            Kind::Finetune => Parameters::Finetune(super::build(value, origin)?),
            Kind::Embed => Parameters::Embed(super::build(value, origin)?),
            Kind::Adapter => Parameters::Adapter(super::build(value, origin)?),
            Kind::Assemble => Parameters::Assemble(super::build(value, origin)?),
            Kind::Evaluate => Parameters::Evaluate(super::build(value, origin)?),
            Kind::Pipeline => return Err(Error::config(format!("{origin}: a Pipeline has no parameters of its own"))),
        };
        let checked = match &built {
            Parameters::Prepare(p) => p.validate(),
            Parameters::Finetune(p) => p.validate(),
            Parameters::Embed(p) => p.validate(),
            Parameters::Adapter(p) => p.validate(),
            Parameters::Assemble(p) => p.validate(),
            Parameters::Evaluate(p) => p.validate(),
        };
        checked.map_err(|e| match origin.strip_suffix("parameters") {
            Some(prefix) if !prefix.is_empty() => e.context(prefix.trim_end_matches('.').to_owned()),
            _ => e,
        })?;
        Ok(built)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Kind;
    use super::*;

    fn finetune(yaml: &str) -> Result<FinetuneParameters> {
        let value = serde_yaml_ng::from_str(yaml).unwrap();
        match Parameters::build(Kind::Finetune, value, "parameters")? {
            Parameters::Finetune(parameters) => Ok(parameters),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn prompt_templates_are_a_list_or_a_name() {
        let named = finetune("prompt_templates: imagenet").unwrap();
        assert_eq!((named.prompt_templates.texts().len(), named.prompt_templates.name()), (81, Some("imagenet")));
        let listed = finetune("prompt_templates: ['{}', 'a scan of {}']").unwrap().prompt_templates;
        assert_eq!((listed.texts(), listed.name()), (vec!["{}".to_owned(), "a scan of {}".to_owned()], None));
        assert_eq!(finetune("seed: 1").unwrap().prompt_templates.texts(), prompts::MEDICAL);
        // a run record keeps what the job said, and reads back
        let text = serde_json::to_string(&named.prompt_templates).unwrap();
        assert_eq!(serde_json::from_str::<PromptTemplates>(&text).unwrap(), named.prompt_templates);
    }

    #[test]
    fn refusals_name_the_parameter_and_what_is_known() {
        for (yaml, parts) in [
            ("prompt_templates: medicl", ["parameters.prompt_templates", "did you mean 'medical'"]),
            ("prompt_templates: []", ["parameters.prompt_templates", "at least one"]),
            ("prompt_templates: ['no label']", ["parameters.prompt_templates", "'no label'"]),
            ("prompt_templates: 3", ["prompt_templates", "one of the names medical, imagenet"]),
            ("precision: fp32", ["precision", "bf16"]),
            ("on_non_finite: ignore", ["on_non_finite", "skip"]),
            ("contrastive_batch: all", ["contrastive_batch", "total"]),
            ("keep_checkpoints: 0", ["keep_checkpoints", "1 to 1000"]),
            ("rotation: 200", ["rotation", "180"]),
            ("rotation: .nan", ["rotation", "180"]),
        ] {
            let error = finetune(yaml).unwrap_err().to_string();
            assert!(parts.iter().all(|p| error.contains(p)), "{yaml}: {error}");
        }
    }
}
