//! Evaluate: zero-shot, adapter and kNN on the test embeddings; thresholds are chosen on validation, never on test.

use super::labelled::LabelledEmbeddings;
use super::predict::Head;
use super::{Artifact, Produced, StepContext, leakage};
use crate::config::parameters::EvaluateParameters;
use crate::data::embeddings::Embeddings;
use crate::data::{Labels, overlap};
use crate::error::{Error, Result};
use crate::evaluation::{
    Bank, Labelled, Method, MethodReport, Scores, evaluate_method, knn_scores, render_markdown, render_text,
};
use crate::imaging::PixelContract;
use crate::model::weights::read_tensor;
use crate::package::{ClassifierKind, Package};
use crate::registry::{AssetKind, folder_files};
use serde_json::json;

pub(super) fn run(context: &StepContext<'_>, parameters: &EvaluateParameters) -> Result<Produced> {
    let labels = Labels::read(context.path("label_file")?)?;
    let read = |split: &str| -> Result<Option<LabelledEmbeddings>> {
        let (folder, texts) = (format!("{split}_embeddings"), format!("{split}_text_tsv"));
        match (context.optional_path(&folder), context.optional_path(&texts)) {
            (Some(folder), Some(texts)) => LabelledEmbeddings::read(folder, texts, &labels).map(Some),
            (None, None) => Ok(None),
            _ => Err(Error::config(format!("inputs: {folder} and {texts} belong together; give both or neither"))),
        }
    };
    let test = read("test")?.ok_or_else(|| Error::internal("no test embeddings"))?;
    let (validation, train) = (read("validation")?, read("train")?);
    for (name, other) in [("validation_embeddings", &validation), ("train_embeddings", &train)] {
        if let Some(other) = other {
            let names = ("test_embeddings", name);
            test.embeddings.manifest.same_space(&other.embeddings.manifest, names)?;
            let overlap = overlap::of_embeddings(&test.embeddings.table, &other.embeddings.table);
            leakage::check(overlap, names, parameters.repeated)?;
        }
    }
    // thresholds are chosen on what kNN, by the training images, says of the validation images
    if let (Some(validation), Some(train)) = (&validation, &train) {
        let overlap = overlap::of_embeddings(&validation.embeddings.table, &train.embeddings.table);
        leakage::check(overlap, ("validation_embeddings", "train_embeddings"), parameters.repeated)?;
    }
    let mut reports = Vec::new();
    for (input, kind) in
        [("zero_shot_mlflow_model", ClassifierKind::ZeroShot), ("adapter_mlflow_model", ClassifierKind::Adapter)]
    {
        if context.optional_path(input).is_none() {
            continue;
        }
        let package = context.package(input)?;
        let classifier =
            load(&package, kind, &labels, &test.embeddings).map_err(|e| e.context(format!("input {input}")))?;
        let method = if kind == ClassifierKind::ZeroShot { Method::ZeroShot } else { Method::Adapter };
        reports.push(report(
            method,
            |e| Scores::from_f32(&classifier.scores(&e.table.features, e.dim())?, labels.len()),
            validation.as_ref(),
            &test,
            &labels,
        )?);
    }
    if let Some(train) = &train {
        let bank = Bank::new(&train.embeddings.table.features, train.embeddings.dim())?;
        let k = parameters.knn;
        let score = |e: &Embeddings| {
            knn_scores(&bank, &train.classes, &Bank::new(&e.table.features, e.dim())?, labels.len(), k)
        };
        reports.push(report(Method::Knn { k }, score, validation.as_ref(), &test, &labels)?);
    }
    if reports.is_empty() {
        return Err(Error::config(
            "inputs: nothing to evaluate; give zero_shot_mlflow_model, adapter_mlflow_model, or train_embeddings with train_text_tsv",
        ));
    }
    write(context, &reports, &labels)
}

fn report(
    method: Method,
    score: impl Fn(&Embeddings) -> Result<Scores>,
    validation: Option<&LabelledEmbeddings>,
    test: &LabelledEmbeddings,
    labels: &Labels,
) -> Result<MethodReport> {
    let test_scores = score(&test.embeddings)?;
    let validation_scores = validation.map(|v| score(&v.embeddings)).transpose()?;
    let validation = match (&validation_scores, validation) {
        (Some(scores), Some(v)) => Some(Labelled::new(scores, &v.classes)?),
        _ => None,
    };
    evaluate_method(method, validation, Labelled::new(&test_scores, &test.classes)?, labels.texts())
}

fn load(package: &Package, kind: ClassifierKind, labels: &Labels, test: &Embeddings) -> Result<Head> {
    if package.config.classifier.as_ref().is_none_or(|c| c.kind != kind) {
        let what = if kind == ClassifierKind::ZeroShot { "zero-shot" } else { "adapter" };
        return Err(Error::package(format!("'{}' is not a package of a {what} classifier", package.dir.display())));
    }
    if package.labels()? != labels.texts() {
        return Err(Error::package(
            "the package's labels are not those of label_file; evaluate with the labels it was made with",
        ));
    }
    let pixels: Option<PixelContract> = serde_json::from_value(test.manifest.space.pixels.clone()).ok();
    if package.encoder_digest() != test.manifest.space.model_digest || pixels.as_ref() != Some(&package.config.pixels) {
        return Err(Error::package(format!(
            "test_embeddings were made by {} with other weights or pixel settings than this package has; embed the images again",
            test.manifest.space.model_reference
        )));
    }
    let scale = read_tensor(&package.weights(), "logit_scale")?;
    Head::read(package, scale.f_double_value(&[]).map_err(crate::model::engine)?, test.dim())
}

fn write(context: &StepContext<'_>, reports: &[MethodReport], labels: &Labels) -> Result<Produced> {
    let folder = context.folder("report")?;
    let inputs: serde_json::Map<String, serde_json::Value> = context
        .inputs
        .iter()
        .map(|(n, i)| (n.clone(), json!({ "reference": i.origin(), "sha256": i.digest })))
        .collect();
    let document = json!({
        "format_version": 1, "code_version": crate::CODE_VERSION, "labels": labels.texts(), "inputs": inputs, "methods": reports,
    });
    super::write_json(&folder.join("report.json"), &document)?;
    let text = render_text(reports);
    for (name, content) in [("report.txt", &text), ("report.md", &render_markdown(reports))] {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
    }
    let metrics: Vec<serde_json::Value> = reports.iter().map(headline).collect();
    let mut produced = Produced { metrics: json!({ "methods": metrics }), summary: Some(text), ..Produced::default() };
    produced.outputs.insert(
        "report".to_owned(),
        Artifact {
            kind: AssetKind::Data,
            files: folder_files(&folder)?,
            description: "evaluation on the test split".to_owned(),
            metadata: produced.metrics.clone(),
        },
    );
    Ok(produced)
}

/// The numbers of a method that a run record shows.
fn headline(report: &MethodReport) -> serde_json::Value {
    json!({
        "method": report.method.to_string(),
        "n": report.n,
        "accuracy": report.argmax.accuracy,
        "macro_f1": report.argmax.macro_average.f1,
        "mcc": report.argmax.mcc,
        "mauc": report.mauc,
        "thresholded_macro_f1": report.thresholded.as_ref().map(|t| t.macro_average.f1),
    })
}
