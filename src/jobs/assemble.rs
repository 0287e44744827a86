//! Assemble: an embedding model, labels and perhaps an adapter become one classifier package.

use super::adapter::{TRAINED_ON, TrainedOn};
use super::release::Evaluation;
use super::{Artifact, Produced, StepContext, models, self_test};
use crate::config::parameters::AssembleParameters;
use crate::data::Labels;
use crate::error::{Error, Result};
use crate::imaging::PixelContract;
use crate::infer::{Encoder, device};
use crate::model::adapter::{Adapter, IMPORTED_FILE, WEIGHTS_FILE};
use crate::model::weights::write_tensors;
use crate::package::{ClassifierConfig, ClassifierKind, ModelCard, Package, PackageSpec, Task, package_files};
use crate::registry::AssetKind;
use serde_json::json;
use std::path::Path;
use tch::{Device, Tensor};

pub(super) fn run(context: &StepContext<'_>, parameters: &AssembleParameters) -> Result<Produced> {
    let base = context.package("mlflow_model_path")?;
    let labels = Labels::read(context.path("label_file")?)?;
    let adapter =
        context.optional_path("adapter").map(|folder| read_adapter(folder, &labels, parameters)).transpose()?;
    if let Some(folder) = context.optional_path("adapter") {
        check_origin(folder, &base, &labels).map_err(|e| e.context("input adapter"))?;
    }

    let checkpoints = context.folder("checkpoints")?;
    models::link_checkpoints(&base, &checkpoints)?;
    let classifier_folder = context.folder("checkpoints/classifier")?;
    super::write_json(&classifier_folder.join("labels.json"), &labels.texts())?;
    let mut classifier = ClassifierConfig {
        kind: ClassifierKind::ZeroShot,
        labels: "classifier/labels.json".to_owned(),
        text_template: parameters.text_template.clone(),
        class_embeddings: None,
        adapter: None,
        operating_points: None,
    };
    if let Some(adapter) = &adapter {
        adapter.save(&context.folder("checkpoints/adapter")?)?;
        classifier.kind = ClassifierKind::Adapter;
        classifier.adapter = Some("adapter/adapter.safetensors".to_owned());
    }
    // before the model is loaded: a report of another classifier is no ground for this one
    let evaluation = context.optional_path("report").map(|folder| {
        let weights =
            classifier.adapter.as_ref().map(|path| crate::storage::sha256_file(&checkpoints.join(path))).transpose()?;
        let head = (parameters.text_template.as_str(), weights.as_ref().map(|file| file.sha256.as_str()));
        let identity = base.classifier_with(labels.texts(), head);
        Evaluation::read(folder, classifier.kind, &identity).map_err(|e| e.context("input report"))
    });
    let evaluation = evaluation.transpose()?;
    if let Some(evaluation) = &evaluation
        && evaluation.write_operating_points(&classifier_folder.join("operating_points.json"))?
    {
        classifier.operating_points = Some("classifier/operating_points.json".to_owned());
    }
    let encoder = Encoder::load(&base, device::select(context.compute)?)?;
    if let Some(adapter) = &adapter {
        if adapter.config().input_channels as usize != encoder.dim() {
            return Err(Error::package(format!(
                "input adapter: it takes embeddings of length {}, the model makes {}; train it on this model's embeddings",
                adapter.config().input_channels as usize,
                encoder.dim()
            )));
        }
    } else {
        let embeddings = encoder.class_embeddings(&labels, &parameters.text_template)?;
        let shape = [labels.len() as i64, encoder.dim() as i64];
        let tensor = Tensor::f_from_slice(&embeddings).and_then(|t| t.f_view(shape)).map_err(crate::model::engine)?;
        let path = classifier_folder.join("class_embeddings.safetensors");
        write_tensors(&path, std::iter::once(("class_embeddings", &tensor)))?;
        classifier.class_embeddings = Some("classifier/class_embeddings.safetensors".to_owned());
    }

    let mut config = base.config.clone();
    config.task = Task::Classification;
    config.classifier = Some(classifier);
    config.onnx = parameters.onnx;
    // fine-tuned when the embedding model was: its training is in its provenance
    let finetuned = base.config.provenance.get("training").is_some();
    let terms = parameters.model_card.or(models::terms_of(&base.config.provenance));
    config.provenance = json!({
        "model_card": terms,
        "stored_weights": base.config.provenance["stored_weights"],
        "base_model_name": models::base_model_name(&base.config.provenance),
        "code_version": crate::CODE_VERSION,
        "embedding_model": context.input("mlflow_model_path")?.origin(),
        "embedding_model_provenance": base.config.provenance,
        "label_file": context.input("label_file")?.origin(),
        "adapter": context.inputs.get("adapter").map(|i| i.origin()),
        "report": context.inputs.get("report").map(|i| i.origin()),
    });
    let kind = if adapter.is_some() { "adapter" } else { "zero-shot" };
    let references = context.inputs.iter().map(|(name, input)| (name.clone(), input.origin()));
    let metadata = models::metadata(&config.provenance, finetuned || adapter.is_some());
    let spec = PackageSpec {
        checkpoints: &checkpoints,
        config,
        metadata,
        card: ModelCard {
            title: format!("{}, {kind} classifier", models::base_model_name(&base.config.provenance)),
            base_model: context.input("mlflow_model_path")?.origin(),
            datasets: references.filter(|(name, _)| name != "mlflow_model_path").collect(),
            metrics: evaluation.map_or_else(String::new, |e| e.markdown()),
            terms,
            created: Some(context.begun),
            ..ModelCard::default()
        },
        example_image: models::example_image()?,
    };
    let package = context.scratch.join("package");
    drop(encoder);
    self_test::write_checked(&spec, &package, context.python)?;
    let mut produced = Produced { metrics: json!({ "classes": labels.len(), "kind": kind }), ..Produced::default() };
    produced.outputs.insert(
        "classification_mlflow_model".to_owned(),
        Artifact {
            kind: AssetKind::Model,
            files: package_files(&package)?,
            description: format!("{kind} classifier of {} classes", labels.len()),
            metadata: json!({ "task": "classification", "classifier": kind, "classes": labels.len() }),
        },
    );
    Ok(produced)
}

/// An adapter belongs to the encoder, pixels and labels that it was trained with; one from elsewhere may not say.
fn check_origin(folder: &Path, base: &Package, labels: &Labels) -> Result<()> {
    let path = folder.join(TRAINED_ON);
    if !path.is_file() {
        tracing::warn!("the adapter does not say what it was trained on; only its sizes are checked");
        return Ok(());
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    let trained_on: TrainedOn = serde_json::from_slice(&bytes)
        .map_err(|e| Error::data(format!("'{}' is damaged; train the adapter again", path.display())).with_source(e))?;
    if trained_on.labels != labels.texts() {
        return Err(Error::data(
            "it was trained with other labels, or in another order, than label_file has; give that label file",
        ));
    }
    let pixels: Option<PixelContract> = serde_json::from_value(trained_on.pixels).ok();
    if trained_on.model_digest != base.encoder_digest() || pixels.as_ref() != Some(&base.config.pixels) {
        return Err(Error::package(
            "it was trained on embeddings by other weights or pixel settings than mlflow_model_path has; embed with that package \
             and its own settings, and train the adapter on those",
        ));
    }
    Ok(())
}

fn read_adapter(folder: &Path, labels: &Labels, parameters: &AssembleParameters) -> Result<Adapter> {
    let imported = folder.join(IMPORTED_FILE);
    let adapter = match (imported.is_file(), folder.join(WEIGHTS_FILE).is_file()) {
        (true, true) => {
            return Err(Error::data(format!(
                "input adapter: '{}' holds both {IMPORTED_FILE} and {WEIGHTS_FILE}; leave the one that is meant",
                folder.display()
            )));
        }
        (true, false) => Adapter::import(&imported)?,
        (false, _) => Adapter::load(folder, Device::Cpu)?,
    };
    let mismatch = |what: &str, asked: usize, has: usize| {
        Error::config(format!("parameters.{what}: {asked}, but the adapter was trained with {has}; leave it out"))
    };
    if adapter.config().classes as usize != labels.len() {
        return Err(Error::data(format!(
            "input label_file: it has {} labels, the adapter tells {} classes apart; give the labels it was trained with",
            labels.len(),
            adapter.config().classes as usize
        )));
    }
    match (parameters.hidden_dimensions, parameters.input_channels) {
        (Some(h), _) if h != adapter.config().hidden_dimensions as usize => {
            Err(mismatch("hidden_dimensions", h, adapter.config().hidden_dimensions as usize))
        }
        (_, Some(c)) if c != adapter.config().input_channels as usize => {
            Err(mismatch("input_channels", c, adapter.config().input_channels as usize))
        }
        _ => Ok(adapter),
    }
}
