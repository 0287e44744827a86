//! `medtune.json`: what a package does and where its parts lie. All paths are relative to the checkpoints folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::manifest::safe_relative;
use super::reader::read;
use crate::error::{Error, Result};
use crate::evaluation::Method;
use crate::imaging::PixelContract;

/// The newest format version of packages, and the one that is written.
pub const FORMAT_VERSION: u32 = 1;

/// What a package answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Feature vectors of images and texts.
    Embeddings,
    /// Scored labels of images.
    Classification,
}

/// How a classifier scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassifierKind {
    /// Image features against the features of the label texts.
    ZeroShot,
    /// A trained adapter on image features.
    Adapter,
}

impl ClassifierKind {
    /// What its evaluation goes by.
    #[must_use]
    pub fn method(self) -> Method {
        match self {
            ClassifierKind::ZeroShot => Method::ZeroShot,
            ClassifierKind::Adapter => Method::Adapter,
        }
    }
}

/// The classifier of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassifierConfig {
    /// How it scores.
    pub kind: ClassifierKind,
    /// Path of the JSON list of label texts, in class order.
    pub labels: String,
    /// How a label becomes the text that was encoded; `{}` is the label.
    pub text_template: String,
    /// Path of the label texts' features (zero-shot).
    pub class_embeddings: Option<String>,
    /// Path of the adapter's weights (adapter); its `config.json` lies beside it.
    pub adapter: Option<String>,
    /// Path of the thresholds that were chosen on validation data, where the classifier was evaluated before it was packaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_points: Option<String>,
}

/// The content of `medtune.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackageConfig {
    /// Version of the package format.
    pub format_version: u32,
    /// What the package answers.
    pub task: Task,
    /// Path of the weights (safetensors, whatever its extension).
    pub weights: String,
    /// Path of the tokenizer's `tokenizer.json`.
    pub tokenizer: String,
    /// The pixel settings.
    pub pixels: PixelContract,
    /// The classifier; `None` for embeddings.
    pub classifier: Option<ClassifierConfig>,
    /// Whether the package holds [`onnx_models`] too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub onnx: bool,
    /// Where the model comes from, free form.
    #[serde(default)]
    pub provenance: serde_json::Value,
}

impl PackageConfig {
    /// Parses and checks `medtune.json`.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) if it is no such file, of a newer format, or inconsistent; the message names the
    /// key but not the file.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        // the version first: a newer format may have any other fields
        let Version { format_version } =
            serde_json::from_str(text).map_err(|e| Error::package("not a medtune package").with_source(e))?;
        check_version(format_version)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let config: PackageConfig = serde_path_to_error::deserialize(&mut json)
            .map_err(|e| Error::package(format!("key '{}'", e.path())).with_source(e.into_inner()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package), naming the key.
    pub fn validate(&self) -> Result<()> {
        check_version(self.format_version)?;
        let wrong = |key: &str, why: &str| Err(Error::package(format!("key '{key}' {why}")));
        if let Err(error) = self.pixels.validate() {
            return wrong("pixels", &error.to_string());
        }
        match (&self.classifier, self.task) {
            (None, Task::Classification) => return wrong("classifier", "is missing for the task classification"),
            (Some(_), Task::Embeddings) => return wrong("classifier", "must be null for the task embeddings"),
            _ => {}
        }
        if let Some(classifier) = &self.classifier {
            let is_adapter = classifier.kind == ClassifierKind::Adapter;
            if classifier.adapter.is_some() != is_adapter {
                return wrong("classifier.adapter", "is a path for the kind adapter, else null");
            }
            if classifier.class_embeddings.is_some() == is_adapter {
                return wrong("classifier.class_embeddings", "is a path for the kind zero-shot, else null");
            }
            if classifier.text_template.matches("{}").count() != 1 {
                return wrong("classifier.text_template", "needs exactly one {}");
            }
        }
        match self.files().into_iter().find(|path| !safe_relative(path)) {
            Some(path) => Err(Error::package(format!("path '{path}' must lie inside the package"))),
            None => Ok(()),
        }
    }

    /// The files this configuration refers to, relative to the checkpoints folder (an adapter's `config.json` included).
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let mut files = vec![super::MODEL_CONFIG_FILE.to_owned(), self.weights.clone(), self.tokenizer.clone()];
        if let Some(classifier) = &self.classifier {
            files.push(classifier.labels.clone());
            files.extend(classifier.class_embeddings.clone());
            files.extend(classifier.operating_points.clone());
            if let Some(adapter) = &classifier.adapter {
                files.push(adapter.clone());
                files.push(adapter_config(adapter));
            }
        }
        if self.onnx {
            files.extend(onnx_models(self.task).iter().map(|&file| file.to_owned()));
        }
        files
    }

    /// The label texts in class order, read from the folder of checkpoints that this configuration is of; empty for embeddings.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) naming the file, if it is missing or no JSON list of texts.
    pub fn labels_in(&self, checkpoints: &Path) -> Result<Vec<String>> {
        let Some(classifier) = &self.classifier else { return Ok(Vec::new()) };
        let path = checkpoints.join(&classifier.labels);
        let labels: Vec<String> = serde_json::from_slice(&read(&path)?).map_err(|e| {
            Error::package(format!("'{}' is not a JSON list of label texts", path.display())).with_source(e)
        })?;
        if labels.is_empty() {
            return Err(Error::package(format!("'{}' has no labels", path.display())));
        }
        Ok(labels)
    }
}

/// The image encoder of an embedding model, an ONNX model.
pub const IMAGE_ENCODER_ONNX: &str = "image_encoder.onnx";
/// The text encoder of an embedding model, an ONNX model.
pub const TEXT_ENCODER_ONNX: &str = "text_encoder.onnx";
/// A classifier, an ONNX model.
pub const CLASSIFIER_ONNX: &str = "classifier.onnx";

/// The ONNX models of a package that does `task`, where it has any. They refer to its weights, so they belong to these files only.
#[must_use]
pub fn onnx_models(task: Task) -> &'static [&'static str] {
    match task {
        Task::Embeddings => &[IMAGE_ENCODER_ONNX, TEXT_ENCODER_ONNX],
        Task::Classification => &[CLASSIFIER_ONNX],
    }
}

/// The path of the adapter's configuration beside its weights.
fn adapter_config(adapter: &str) -> String {
    match adapter.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/config.json"),
        None => "config.json".to_owned(),
    }
}

fn check_version(version: u32) -> Result<()> {
    if version > FORMAT_VERSION {
        return Err(Error::package(format!(
            "format version {version} is newer than {FORMAT_VERSION}: use a newer medtune"
        )));
    }
    if version == 0 { Err(Error::package("format version 0 does not exist")) } else { Ok(()) }
}
