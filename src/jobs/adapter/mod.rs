//! Adapter: a small network on frozen embeddings, the best epoch kept.

mod checkpoint;
mod training;

use super::labelled::LabelledEmbeddings;
use super::{Artifact, Produced, StepContext, leakage};
use crate::config::adapter::{AdapterParameters, ClassWeights, TrackMetric};
use crate::config::did_you_mean;
use crate::data::{Labels, overlap};
use crate::error::{Error, Result};
use crate::infer::device;
use crate::model::adapter::{Adapter, AdapterConfig};
use crate::registry::{AssetKind, folder_files};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use training::Training;

/// File beside the weights that says what they were trained on.
pub(super) const TRAINED_ON: &str = "trained_on.json";

/// What an adapter fits: these classes, on embeddings by this encoder from pixels standardised like this.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TrainedOn {
    pub(super) format_version: u32,
    pub(super) labels: Vec<String>,
    pub(super) model_digest: String,
    pub(super) pixels: Value,
}

pub(super) fn run(context: &StepContext<'_>, parameters: &AdapterParameters) -> Result<Produced> {
    let labels = Labels::read(context.path("label_file")?)?;
    let train = LabelledEmbeddings::read(context.path("train_embeddings")?, context.path("train_text_tsv")?, &labels)?;
    let validation = LabelledEmbeddings::read(
        context.path("validation_embeddings")?,
        context.path("validation_text_tsv")?,
        &labels,
    )?;
    let names = ("train_embeddings", "validation_embeddings");
    train.embeddings.manifest.same_space(&validation.embeddings.manifest, names)?;
    let overlap = overlap::of_embeddings(&validation.embeddings.table, &train.embeddings.table);
    leakage::check(overlap, (names.1, names.0), parameters.repeated)?;
    let dim = train.embeddings.dim();
    if let Some(channels) = parameters.input_channels.filter(|c| *c != dim) {
        return Err(Error::config(format!(
            "parameters.input_channels: {channels}, but the embeddings have {dim}; leave it out"
        )));
    }
    let mut seen = vec![false; labels.len()];
    train.classes.iter().for_each(|&c| seen[c] = true);
    if let Some(class) = seen.iter().position(|s| !s) {
        let label = labels.get(class as u32).unwrap_or_default();
        let texts = context.path("train_text_tsv")?.display();
        return Err(Error::data(format!(
            "'{texts}' has no row of class {class} ('{label}'): add images or remove the label"
        )));
    }

    let device = device::select(context.compute)?;
    let config = AdapterConfig {
        input_channels: dim as i64,
        hidden_dimensions: parameters.hidden_dimensions as i64,
        classes: labels.len() as i64,
    };
    let adapter = Adapter::init(config, parameters.seed, device)?;
    let weights = class_weights(&parameters.class_weights, &labels, &train.classes)?;
    let trained =
        Training::new(context, parameters, (&adapter, device), (&train, &validation), (&labels, weights))?.run()?;
    let folder = context.folder("adapter")?;
    adapter.with(trained.weights)?.save(&folder)?;
    let best = trained.best;
    super::write_json(
        &folder.join("curve.json"),
        &json!({
            "format_version": 1, "epochs": trained.curve, "best_epoch": best.epoch, "stopped_early": trained.stopped_early,
        }),
    )?;
    let manifest = &train.embeddings.manifest;
    let trained_on = TrainedOn {
        format_version: 1,
        labels: labels.texts().to_vec(),
        model_digest: manifest.space.model_digest.clone(),
        pixels: manifest.space.pixels.clone(),
    };
    super::write_json(&folder.join(TRAINED_ON), &trained_on)?;
    let metric = if parameters.track_metric == TrackMetric::Acc { "acc" } else { "auc" };
    let metrics = json!({
        "best_epoch": best.epoch, "track_metric": metric, "best": best.value, "epochs": trained.curve.len(),
    });
    let used_up = Some(crate::train::checkpoint::folder(context.continuation));
    let mut produced = Produced { metrics: metrics.clone(), used_up, ..Produced::default() };
    produced.outputs.insert(
        "adapter".to_owned(),
        Artifact {
            kind: AssetKind::Data,
            files: folder_files(&folder)?,
            description: format!("adapter on {dim}-dimensional embeddings, {} classes", labels.len()),
            metadata: metrics,
        },
    );
    Ok(produced)
}

/// The factor of each class on the loss, [classes]; `None` for none. Every class has rows.
fn class_weights(asked: &ClassWeights, labels: &Labels, classes: &[usize]) -> Result<Option<Vec<f32>>> {
    match asked {
        ClassWeights::None => Ok(None),
        ClassWeights::Balanced => {
            let mut rows = vec![0usize; labels.len()];
            classes.iter().for_each(|&class| rows[class] += 1);
            let even = classes.len() as f64 / labels.len() as f64;
            Ok(Some(rows.into_iter().map(|count| (even / count as f64) as f32).collect()))
        }
        ClassWeights::ByLabel(given) => {
            let mut weights = vec![1.0; labels.len()];
            for (label, weight) in given {
                let Some(class) = labels.id(label) else {
                    let known = did_you_mean(label, labels.texts().iter().map(String::as_str));
                    return Err(Error::config(format!(
                        "parameters.class_weights: there is no label '{label}': {known}"
                    )));
                };
                weights[class as usize] = *weight as f32;
            }
            Ok(Some(weights))
        }
    }
}
