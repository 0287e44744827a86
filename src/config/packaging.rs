//! What is said of a new model package beyond its content, in job files and on the command line.

use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a model that comes in is packaged.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Packaging {
    /// For the model card.
    #[command(flatten)]
    pub terms: TermsOfUse,
    /// The number type of the weights in the package; bf16 halves it.
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub stored_weights: StoredWeights,
    /// Add ONNX models of the encoders, for runtimes without Python.
    #[arg(long)]
    pub onnx: bool,
}

/// The number type that a package's weights are stored in; they are computed with in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoredWeights {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 for matrices and kernels, half as large; norms, biases and the scale of similarities stay f32.
    Bf16,
}

/// How a model may be used, for its card and metadata; what is left out is taken over from the model that it is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct TermsOfUse {
    /// The licence of the weights: an SPDX identifier, or a name and where its text is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "TEXT")]
    pub license: Option<String>,
    /// What the model is meant for, and for whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "TEXT")]
    pub intended_use: Option<String>,
}

impl TermsOfUse {
    /// These, and where they say nothing `base`.
    #[must_use]
    pub fn or(&self, base: TermsOfUse) -> TermsOfUse {
        TermsOfUse {
            license: self.license.clone().or(base.license),
            intended_use: self.intended_use.clone().or(base.intended_use),
        }
    }

    /// Checks that nothing is empty.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        for (key, text) in [("license", &self.license), ("intended_use", &self.intended_use)] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                return Err(Error::config(format!("model card: {key} is empty; leave it out")));
            }
        }
        Ok(())
    }
}
