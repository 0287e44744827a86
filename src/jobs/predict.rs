//! Predict: a package on image files and texts, for a look at what serving will answer.

use crate::config::compute::Compute;
use crate::data::folder::EXTENSIONS;
use crate::error::{Context, Error, Result};
use crate::infer::{Encoder, device, zero_shot_logits};
use crate::model::adapter::Adapter;
use crate::model::weights::read_tensors;
use crate::package::{Package, PackageConfig, Task};
use serde::Serialize;
use std::path::{Path, PathBuf};

const BATCH: usize = 32;

/// One class and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Label {
    /// The label text.
    pub label: String,
    /// Its probability.
    pub score: f32,
}

/// The answer for one image or text.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Prediction {
    /// A classifier's labels, by falling score; equal scores in class order.
    Classes {
        /// The file as it was given.
        image: String,
        /// All labels.
        labels: Vec<Label>,
    },
    /// An embedding model's unit vector of an image.
    Image {
        /// The file as it was given.
        image: String,
        /// The vector.
        image_features: Vec<f32>,
    },
    /// An embedding model's unit vector of a text.
    Text {
        /// The text.
        text: String,
        /// The vector.
        text_features: Vec<f32>,
    },
}

/// All answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predictions {
    /// Images first, then texts, in the order given.
    pub predictions: Vec<Prediction>,
    /// An embedding model's log scale of similarities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f64>,
}

/// Answers for `images` and `texts`; folders among the images stand for the images in them.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] and [`crate::ErrorKind::Data`] naming the file; [`crate::ErrorKind::Usage`] for texts given
/// to a classifier; [`crate::ErrorKind::Package`].
pub fn predict(package: &Package, images: &[PathBuf], texts: &[String], compute: &Compute) -> Result<Predictions> {
    let images = expand(images)?;
    if images.is_empty() && texts.is_empty() {
        return Err(Error::usage("predict: give at least one image or --text"));
    }
    let classifier = package.config.task == Task::Classification;
    if classifier && !texts.is_empty() {
        return Err(Error::usage("predict: --text is for embedding models; this package is a classifier of images"));
    }
    let encoder = Encoder::load(package, device::select(compute)?)?;
    let head = if classifier { Some(Head::load(package, &encoder)?) } else { None };
    let mut predictions = Vec::new();
    for batch in images.chunks(BATCH) {
        let files = batch
            .iter()
            .map(|path| {
                let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
                Ok((path.display().to_string(), bytes))
            })
            .collect::<Result<Vec<_>>>()?;
        let features = encoder.encode_images(&files)?;
        let names = files.into_iter().map(|(name, _)| name);
        match &head {
            Some(head) => {
                let scores = head.scores(&features, encoder.dim())?;
                let rows = scores.chunks_exact(head.labels.len());
                predictions.extend(
                    names.zip(rows).map(|(image, row)| Prediction::Classes { image, labels: head.ranked(row) }),
                );
            }
            None => {
                let rows = features.chunks_exact(encoder.dim()).map(<[f32]>::to_vec);
                predictions
                    .extend(names.zip(rows).map(|(image, image_features)| Prediction::Image { image, image_features }));
            }
        }
    }
    let vectors = encoder.encode_texts(texts)?;
    let rows = vectors.chunks_exact(encoder.dim()).map(<[f32]>::to_vec);
    predictions
        .extend(texts.iter().cloned().zip(rows).map(|(text, text_features)| Prediction::Text { text, text_features }));
    let scaling_factor = if classifier { None } else { Some(encoder.logit_scale()?) };
    Ok(Predictions { predictions, scaling_factor })
}

/// What turns embeddings into class scores.
pub(super) struct Head {
    labels: Vec<String>,
    kind: HeadKind,
}

enum HeadKind {
    ZeroShot { classes: Vec<f32>, logit_scale: f64 },
    Adapter(Adapter),
}

impl Head {
    fn load(package: &Package, encoder: &Encoder) -> Result<Head> {
        Head::read((&package.checkpoints(), &package.config), encoder.logit_scale()?, encoder.dim())
    }

    /// The head of a classifier, whose files are in a folder of checkpoints, and whose model has that log scale and embeddings of
    /// length `dim`.
    pub(super) fn read((checkpoints, config): (&Path, &PackageConfig), logit_scale: f64, dim: usize) -> Result<Head> {
        let labels = config.labels_in(checkpoints)?;
        let classifier = config.classifier.as_ref().ok_or_else(|| Error::package("the package is no classifier"))?;
        let kind = if let Some(path) = &classifier.adapter {
            let file = checkpoints.join(path);
            let folder = file.parent().ok_or_else(|| Error::internal("an adapter without a folder"))?;
            HeadKind::Adapter(Adapter::load(folder, tch::Device::Cpu)?)
        } else {
            let path = checkpoints.join(classifier.class_embeddings.as_deref().unwrap_or_default());
            let tensor = read_tensors(&path)?.remove("class_embeddings");
            let tensor =
                tensor.ok_or_else(|| Error::package(format!("'{}' has no class_embeddings", path.display())))?;
            HeadKind::ZeroShot { classes: crate::infer::to_vec(&tensor).map_err(crate::model::engine)?, logit_scale }
        };
        let classes = match &kind {
            HeadKind::ZeroShot { classes, .. } => classes.len().checked_div(dim).filter(|n| n * dim == classes.len()),
            HeadKind::Adapter(adapter) if adapter.config().input_channels as usize != dim => {
                return Err(Error::package(format!(
                    "'{}' has an adapter for embeddings of length {}, but a model that makes {dim}: make the package again",
                    checkpoints.display(),
                    adapter.config().input_channels
                )));
            }
            HeadKind::Adapter(adapter) => Some(adapter.config().classes as usize),
        };
        if classes != Some(labels.len()) {
            return Err(Error::package(format!(
                "'{}' has {} labels, but scores {} classes: make the package again",
                checkpoints.display(),
                labels.len(),
                classes.unwrap_or_default()
            )));
        }
        Ok(Head { labels, kind })
    }

    /// Probabilities [rows, classes] of embeddings [rows, dim].
    pub(super) fn scores(&self, features: &[f32], dim: usize) -> Result<Vec<f32>> {
        let scores = match &self.kind {
            HeadKind::Adapter(adapter) => adapter.predict(features)?,
            HeadKind::ZeroShot { classes, logit_scale } => {
                let mut logits = zero_shot_logits(features, classes, dim, *logit_scale);
                logits.chunks_exact_mut(self.labels.len()).for_each(softmax);
                logits
            }
        };
        if scores.iter().all(|s| s.is_finite()) {
            return Ok(scores);
        }
        Err(Error::package("the package's weights give scores that are not finite: train it again"))
    }

    /// How many classes are told apart.
    pub(super) fn classes(&self) -> usize {
        self.labels.len()
    }

    fn ranked(&self, scores: &[f32]) -> Vec<Label> {
        let mut ranked: Vec<Label> =
            self.labels.iter().zip(scores).map(|(label, &score)| Label { label: label.clone(), score }).collect();
        // a stable sort: equal scores stay in class order
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked
    }
}

fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|v| *v = (*v - top).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|v| *v /= sum);
}

fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for path in paths {
        if !path.is_dir() {
            out.push(path.clone());
            continue;
        }
        let before = out.len();
        let list = std::fs::read_dir(path).map_err(|e| Error::io("list", path, e))?;
        let mut found: Vec<PathBuf> = list.flatten().map(|e| e.path()).filter(|p| p.is_file() && is_image(p)).collect();
        found.sort();
        out.extend(found);
        if out.len() == before {
            return Err(Error::not_found(format!("'{}' holds no images", path.display()))).context(|| "predict");
        }
    }
    Ok(out)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}
