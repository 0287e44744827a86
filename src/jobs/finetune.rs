//! Finetune: the base package's model, trained on an institution's images, as a package of the same layout.

use super::{Artifact, Produced, ResolvedInput, StepContext, leakage, models, self_test};
use crate::config::packaging::StoredWeights;
use crate::config::parameters::{FinetuneParameters, InTwoSets};
use crate::config::training::{self, Parsed, TrainingConfig};
use crate::config::{apply_overrides, read_yaml};
use crate::data::{ImageTextPairs, Labels, overlap};
use crate::error::{Context, Error, Result};
use crate::imaging::Augmentation;
use crate::infer::{Encoder, check_vocabulary, device, model_config};
use crate::model::tokenizer::Tokenizer;
use crate::model::weights;
use crate::package::{ModelCard, Package, PackageSpec, package_files};
use crate::registry::{AssetKind, SeriesFolder, folder_files};
use crate::train::checkpoint::{self, Checkpoints};
use crate::train::evaluation::Evaluation;
use crate::train::loader::Loader;
use crate::train::precision::Mode;
use crate::train::trainer::{BEST, Outcome, Training};
use crate::train::watch::Watch;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The text that a label becomes in evaluation and serving.
const SERVING_TEMPLATE: &str = "{}.";

/// The rows of a training.
pub(super) struct Sets {
    pub(super) labels: Labels,
    pub(super) train: ImageTextPairs,
    pub(super) validation: ImageTextPairs,
    /// What kNN compares with, when that is not the training set.
    pub(super) reference: Option<ImageTextPairs>,
}

pub(super) fn run(context: &StepContext<'_>, parameters: &FinetuneParameters) -> Result<Produced> {
    let base = context.package("mlflow_model_path")?;
    let config = training_config(context, parameters, &base)?;
    let sets = read_sets(context, &config, parameters.repeated)?;

    let device = device::select(context.compute)?;
    let world = context.world;
    let mode = Mode::resolve(parameters.precision, config.fp16, device)?;
    if let Some(warning) = mode.substitution(parameters.precision, config.fp16) {
        tracing::warn!("{warning}");
    }
    let mut sizes = model_config(&base)?;
    if let Some(rate) = config.drop_path_rate {
        sizes.image.drop_path_rate = rate;
    }
    sizes.image.activation_checkpoint = config.activation_checkpoint;
    let mut params = weights::read(&base.weights(), &sizes)?.to_device(device)?;
    let tokenizer = Tokenizer::load(&base.tokenizer())?;
    check_vocabulary(&tokenizer, &sizes)?;
    let pixels = base.config.pixels.clone();
    let encoder = Encoder::over(&params, sizes, tokenizer, pixels.clone(), device)?;
    let augmentation = Augmentation {
        scale: config.crop_scale,
        ratio: config.crop_ratio,
        hflip: config.hflip,
        vflip: config.vflip,
        erase_probability: config.erase,
        rotation: parameters.rotation,
        auto_augment: config.auto_augment,
    };
    augmentation.validate().context(|| "the training configuration's AUG section")?;
    let prompts = parameters.prompt_templates.texts();
    let loader = Loader {
        pairs: &sets.train,
        pixels: &pixels,
        augmentation: &augmentation,
        mixup: config.mixup.as_ref(),
        prompts: &prompts,
        batch_size: config.batch_size,
        batches: Training::steps_per_epoch(&config, sets.train.len()) * config.micro_batches(),
        share: (world.rank(), world.size()),
        shuffle: config.shuffle,
        seed: parameters.seed,
    };
    let evaluation = Evaluation {
        validation: &sets.validation,
        reference: sets.reference.as_ref().unwrap_or(&sets.train),
        labels: &sets.labels,
        text_template: SERVING_TEMPLATE,
        zero_shot: config.eval_zero_shot,
        knn: config.eval_knn,
        batch_size: config.eval_batch_size,
    };
    let save_dir = context.folder("save_dir")?;
    super::write_json(&save_dir.join("training.json"), &json!({ "training": config, "parameters": parameters }))?;
    let (store, scratch) = (context.store, context.folder("checkpoint")?);
    let (run_id, step) = context.run;
    let keep = config.resume && context.lasting;
    let training = Training {
        config: &config,
        parameters,
        mode,
        params: &mut params,
        encoder: &encoder,
        loader: &loader,
        evaluation: &evaluation,
        device,
        folder: &save_dir,
        checkpoints: Checkpoints::new(store, context.continuation, parameters.keep_checkpoints, scratch),
        watch: Watch::new(world.is_first().then(|| SeriesFolder::new(store, run_id, step)).transpose()?),
        world,
        keep,
        bucket_bytes: context.compute.bucket_cap_mb << 20,
    };
    let outcome = training.run()?;
    if !world.is_first() {
        return Ok(Produced::default());
    }
    // the package's self-test loads its own
    drop(encoder);
    drop(params);
    tracing::info!(
        step = outcome.best_step,
        metric = outcome.track_metric,
        value = outcome.best,
        "best weights chosen"
    );
    let kept = keep && checkpoint::exists(store, context.continuation, outcome.steps).unwrap_or_default();
    package(context, parameters, &base, (&save_dir, &outcome)).map_err(|error| {
        let after = "the training is done and kept, and the job, run again, goes on with its package";
        if kept { error.context(after) } else { error }
    })
}

/// The training configuration with the job's replacements, checked against the base package.
fn training_config(
    context: &StepContext<'_>,
    parameters: &FinetuneParameters,
    base: &Package,
) -> Result<TrainingConfig> {
    let path = context.path("conf_files")?;
    let Parsed { config, warnings, .. } = training_for(base, path, parameters)?;
    let (config, shared) = config.shared_by(context.world.size())?;
    for warning in warnings.into_iter().chain(shared) {
        tracing::warn!("{}: {warning}", path.display());
    }
    Ok(config)
}

/// The training configuration at `path` with the job's replacements, checked against the base package.
pub(super) fn training_for(base: &Package, path: &Path, parameters: &FinetuneParameters) -> Result<Parsed> {
    let parsed = read_training(path, parameters)?;
    let base_yaml = read_yaml(&base.model_config()).map_err(|e| e.with_kind(crate::ErrorKind::Package))?;
    training::check_model_keys(&parsed.model_keys, &base_yaml, &path.display().to_string())?;
    Ok(parsed)
}

/// The training configuration at `path` with the job's replacements.
pub(super) fn read_training(path: &Path, parameters: &FinetuneParameters) -> Result<Parsed> {
    let mut document = read_yaml(path)?;
    for (key, value) in &parameters.training {
        document = apply_overrides(document, &[format!("{key}={value}")])
            .map_err(|e| e.with_kind(crate::ErrorKind::Config).context("parameters.training"))?;
    }
    training::parse(&document, &path.display().to_string())
}

/// Reads and checks the TSVs, before any model is loaded.
fn read_sets(context: &StepContext<'_>, config: &TrainingConfig, repeated: InTwoSets) -> Result<Sets> {
    let sets = open_sets(context.inputs, config, repeated)?;
    for pairs in [Some(&sets.train), Some(&sets.validation), sets.reference.as_ref()].into_iter().flatten() {
        pairs.validate_images()?;
    }
    Ok(sets)
}

/// Refuses or warns of validation images that are learned from.
fn check_leakage(sets: &Sets, repeated: InTwoSets) -> Result<()> {
    for (name, other) in [("image_tsv", Some(&sets.train)), ("eval_train_image_tsv", sets.reference.as_ref())] {
        let Some(other) = other else { continue };
        leakage::check(overlap::of_pairs(&sets.validation, other)?, ("eval_image_tsv", name), repeated)?;
    }
    Ok(())
}

/// The TSVs of the inputs, their rows checked, and that no validation image is learned from; images are not decoded.
pub(super) fn open_sets(
    inputs: &BTreeMap<String, ResolvedInput>,
    config: &TrainingConfig,
    repeated: InTwoSets,
) -> Result<Sets> {
    let given = |name: &str| inputs.get(name).map(|input| input.path.as_path());
    let path = |name: &str| Ok(super::resolved(inputs, name)?.path.as_path());
    let labels = Labels::read(path("label_file")?)?;
    let open = |images: &Path, texts: &Path| ImageTextPairs::open(images, texts, &labels);
    let train = ImageTextPairs::open_training(path("image_tsv")?, path("text_tsv")?, &labels)?;
    let validation = open(path("eval_image_tsv")?, path("eval_text_tsv")?)?;
    let reference = match (given("eval_train_image_tsv"), given("eval_train_text_tsv")) {
        (Some(images), Some(texts)) => Some(open(images, texts)?),
        (None, None) => None,
        _ => {
            return Err(Error::config(
                "inputs: eval_train_image_tsv and eval_train_text_tsv belong together; give both or neither",
            ));
        }
    };
    train.require_every_class(&labels)?;
    if reference.is_none() && config.eval_knn.is_some() {
        train.class_ids().context(|| {
            "kNN evaluation compares with the training set unless eval_train_image_tsv and eval_train_text_tsv are given"
        })?;
    }
    if train.len() < config.batch_total {
        return Err(Error::config(format!(
            "TRAIN.BATCH_SIZE_TOTAL: {} is more than the {} rows of '{}'",
            config.batch_total,
            train.len(),
            train.image_path().display()
        )));
    }
    let sets = Sets { labels, train, validation, reference };
    check_leakage(&sets, repeated)?;
    Ok(sets)
}

fn package(
    context: &StepContext<'_>,
    parameters: &FinetuneParameters,
    base: &Package,
    (save_dir, outcome): (&Path, &Outcome),
) -> Result<Produced> {
    let checkpoints = context.folder("checkpoints")?;
    models::link_checkpoints(base, &checkpoints)?;
    let weights_file = checkpoints.join(&base.config.weights);
    // the link to the base's weights goes; the base itself is never written to
    std::fs::remove_file(&weights_file).map_err(|e| Error::io("replace", &weights_file, e))?;
    match parameters.stored_weights {
        StoredWeights::F32 => {
            std::fs::copy(save_dir.join(BEST), &weights_file).map_err(|e| Error::io("write", &weights_file, e))?;
        }
        stored => {
            let best = weights::read_tensors(&save_dir.join(BEST))?;
            weights::write_stored(&weights_file, best.iter().map(|(name, tensor)| (name.as_str(), tensor)), stored)?;
        }
    }
    let references: Vec<(String, String)> = context
        .inputs
        .iter()
        .map(|(name, input)| (name.clone(), format!("{} sha256:{}", input.origin(), input.digest)))
        .collect();
    let mut config = base.config.clone();
    config.task = crate::package::Task::Embeddings;
    config.classifier = None;
    config.onnx = parameters.onnx;
    let terms = parameters.model_card.or(models::terms_of(&base.config.provenance));
    config.provenance = json!({
        "model_card": terms,
        "stored_weights": parameters.stored_weights,
        "code_version": crate::CODE_VERSION,
        "base_model_name": models::base_model_name(&base.config.provenance),
        "inputs": references.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "weights": "best",
        "training": lasting(outcome)?,
        "prompt_templates": parameters.prompt_templates.texts(),
        "prompt_preset": parameters.prompt_templates.name(),
        "seed": parameters.seed,
    });
    let metadata = models::metadata(&config.provenance, true);
    let accuracy = |value: Option<f64>| value.map_or("not computed".to_owned(), |v| format!("{v:.4}"));
    let spec = PackageSpec {
        checkpoints: &checkpoints,
        config,
        metadata,
        card: ModelCard {
            title: format!("{}, fine-tuned embedding model", models::base_model_name(&base.config.provenance)),
            base_model: context.input("mlflow_model_path")?.origin(),
            datasets: references.into_iter().filter(|(name, _)| name != "mlflow_model_path").collect(),
            metrics: format!(
                "Validation accuracy of the last weights: zero-shot {}, kNN {}. These are the weights of step {}, chosen by {} = {:.4}.",
                accuracy(outcome.last.zero_shot),
                accuracy(outcome.last.knn),
                outcome.best_step,
                outcome.track_metric,
                outcome.best
            ),
            terms,
            created: Some(context.begun),
            ..ModelCard::default()
        },
        example_image: models::example_image()?,
    };
    let folder = context.scratch.join("package");
    self_test::write_checked(&spec, &folder, context.python)?;
    let metrics = as_json(outcome)?;
    let used_up = Some(checkpoint::folder(context.continuation));
    let mut produced = Produced { metrics: metrics.clone(), used_up, ..Produced::default() };
    let artifact = |kind, files, description: &str| Artifact {
        kind,
        files,
        description: description.to_owned(),
        metadata: metrics.clone(),
    };
    produced.outputs.insert(
        "mlflow_model_folder".to_owned(),
        artifact(AssetKind::Model, package_files(&folder)?, "fine-tuned embedding model"),
    );
    produced.outputs.insert(
        "save_dir".to_owned(),
        artifact(AssetKind::Data, folder_files(save_dir)?, "best and last weights and the series of a training"),
    );
    Ok(produced)
}

fn as_json(outcome: &Outcome) -> Result<Value> {
    serde_json::to_value(outcome).map_err(|e| Error::internal("cannot write a training's outcome").with_source(e))
}

/// What a training came to, without what differs from one repetition to the next: a step that was killed while its outputs
/// were registered must make the same bytes again, or it would register a second version.
fn lasting(outcome: &Outcome) -> Result<Value> {
    let mut value = as_json(outcome)?;
    if let Some(fields) = value.as_object_mut() {
        fields.shift_remove("data_wait_share");
        fields.shift_remove("images_per_s");
    }
    Ok(value)
}
