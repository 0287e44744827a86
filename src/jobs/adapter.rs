//! Adapter: a small network on frozen embeddings, the best epoch kept.

use super::labelled::LabelledEmbeddings;
use super::{Artifact, Produced, StepContext, leakage};
use crate::config::parameters::{AdapterParameters, TrackMetric};
use crate::data::{Labels, overlap};
use crate::error::{Error, Result};
use crate::evaluation::{Extras, Labelled, Method, Scores, evaluate_method};
use crate::imaging::SampleRng;
use crate::infer::device;
use crate::model::adapter::{Adapter, AdapterConfig};
use crate::model::engine;
use crate::registry::{AssetKind, folder_files};
use crate::telemetry::Progress;
use crate::train::optimizer::{AdamW, Rules, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// AdamW's weight decay, as the original has it.
const WEIGHT_DECAY: f64 = 0.01;

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
    let folder = context.folder("adapter")?;
    let (curve, best) = train_adapter(&adapter, parameters, (&train, &validation), (&labels, device), &folder)?;
    super::write_json(
        &folder.join("curve.json"),
        &json!({ "format_version": 1, "epochs": curve, "best_epoch": best.0 }),
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
    let metrics =
        json!({ "best_epoch": best.0, "track_metric": metric, "best": best.1, "epochs": parameters.max_epochs });
    let mut produced = Produced { metrics: metrics.clone(), ..Produced::default() };
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

/// Trains, saving the best epoch's weights into `folder`; returns the curve, the best epoch (from 1) and its value.
fn train_adapter(
    adapter: &Adapter,
    parameters: &AdapterParameters,
    (train, validation): (&LabelledEmbeddings, &LabelledEmbeddings),
    (labels, device): (&Labels, Device),
    folder: &std::path::Path,
) -> Result<(Vec<Value>, (usize, f64))> {
    let settings = Settings { lr: parameters.learning_rate, weight_decay: WEIGHT_DECAY, ..Settings::default() };
    let mut optimizer = AdamW::new(&adapter.parameters(), settings, &Rules::default())?;
    let (rows, dim) = (train.embeddings.rows(), train.embeddings.dim() as i64);
    let features = Tensor::f_from_slice(&train.embeddings.table.features)
        .and_then(|t| t.f_view([rows as i64, dim])?.f_to_device(device));
    let features = features.map_err(engine)?;
    let classes: Vec<i64> = train.classes.iter().map(|&c| c as i64).collect();
    let classes = Tensor::f_from_slice(&classes).and_then(|t| t.f_to_device(device)).map_err(engine)?;
    let bar = Progress::new("adapter", parameters.max_epochs as u64, "epochs");
    let mut curve = Vec::new();
    let mut best: Option<(usize, f64)> = None;
    for epoch in 1..=parameters.max_epochs {
        let mut order: Vec<i64> = (0..rows as i64).collect();
        SampleRng::new(parameters.seed, epoch as u64, u64::MAX).shuffle(&mut order);
        let mut total = 0.0;
        for batch in order.chunks(parameters.train_dataloader_batch_size) {
            let step = || {
                let index = Tensor::f_from_slice(batch)?.f_to_device(device)?;
                Ok((features.f_index_select(0, &index)?, classes.f_index_select(0, &index)?))
            };
            let (x, y): (Tensor, Tensor) = step().map_err(engine)?;
            optimizer.zero_grad()?;
            let logits = adapter.forward(&x)?;
            let loss = logits
                .f_cross_entropy_loss::<Tensor>(&y, None, tch::Reduction::Mean, -100, 0.0)
                .and_then(|l| l.f_backward().map(|()| l))
                .map_err(engine)?;
            total +=
                loss.f_to_kind(Kind::Double).and_then(|l| l.f_double_value(&[])).map_err(engine)? * batch.len() as f64;
            optimizer.step(|base| base)?;
        }
        let loss = total / rows as f64;
        if !loss.is_finite() {
            return Err(Error::config(format!("the loss is {loss} in epoch {epoch}: lower parameters.learning_rate")));
        }
        let mut probabilities = Vec::with_capacity(validation.embeddings.rows() * labels.len());
        for batch in validation
            .embeddings
            .table
            .features
            .chunks(parameters.validation_dataloader_batch_size.max(256) * dim as usize)
        {
            probabilities.extend(adapter.predict(batch)?);
        }
        let scores = Scores::from_f32(&probabilities, labels.len())?;
        let report = evaluate_method(
            Method::Adapter,
            None,
            Labelled::new(&scores, &validation.classes)?,
            labels.texts(),
            Extras::default(),
        )?;
        let value = match parameters.track_metric {
            TrackMetric::Acc => report.argmax.accuracy,
            TrackMetric::Auc => report.mauc.ok_or_else(|| {
                Error::data(
                    "validation_text_tsv: the area under the ROC curve needs rows of two classes; track acc instead",
                )
            })?,
        };
        curve.push(json!({ "epoch": epoch, "loss": loss, "acc": report.argmax.accuracy, "auc": report.mauc }));
        if best.is_none_or(|(_, b)| value > b) {
            adapter.save(folder)?;
            best = Some((epoch, value));
        }
        bar.advance(1, &format!("loss {loss:.3}"));
    }
    tracing::info!(epoch = best.map(|b| b.0), value = best.map(|b| b.1), "best adapter chosen");
    best.map(|b| (curve, b)).ok_or_else(|| Error::internal("training without an epoch"))
}
