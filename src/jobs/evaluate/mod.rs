//! Evaluate: zero-shot, adapter and kNN on the test embeddings; thresholds are chosen on validation, never on test.

//!
//! A requirement that is not met is an error after the report is written: the report says why.

mod write;

use super::labelled::LabelledEmbeddings;
use super::predict::Head;
use super::{Produced, StepContext, leakage};
use crate::config::evaluation::EvaluateParameters;
use crate::data::embeddings::Embeddings;
use crate::data::{Labels, TsvReader, overlap, read_field};
use crate::error::{Error, Result};
use crate::evaluation::{
    Bank, Bootstrap, ClassCurves, Column, Extras, Goal, Labelled, Method, MethodReport, Scores, curves,
    evaluate_method, gate, knn_scores,
};
use crate::imaging::PixelContract;
use crate::model::weights::read_tensor;
use crate::package::{ClassifierKind, Package};
use std::collections::BTreeMap;

/// A method, what it scores, and how it ranks each class.
type Evaluated = (MethodReport, Vec<ClassCurves>);

pub(super) fn run(context: &StepContext<'_>, parameters: &EvaluateParameters) -> Result<Produced> {
    let labels = Labels::read(context.path("label_file")?)?;
    let read = |split: &str| -> Result<Option<LabelledEmbeddings>> {
        let (folder, texts) = (format!("{split}_embeddings"), format!("{split}_text_tsv"));
        match (context.optional_path(&folder), context.optional_path(&texts)) {
            (Some(folder), Some(texts)) => LabelledEmbeddings::read(folder, texts, &labels).map(Some),
            // that both or none are given was checked with the job
            _ => Ok(None),
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
    let given = |input: &str| context.optional_path(input).is_some();
    parameters.check_labels(labels.texts())?;
    let asked = Asked::read(context, parameters, &test)?;
    let mut evaluated: Vec<Evaluated> = Vec::new();
    let mut identities = BTreeMap::new();
    for (input, kind) in CLASSIFIERS {
        if !given(input) {
            continue;
        }
        let package = context.package(input)?;
        let classifier =
            load(&package, kind, &labels, &test.embeddings).map_err(|e| e.context(format!("input {input}")))?;
        let method = kind.method();
        identities.extend(package.classifier_identity()?.map(|identity| (method.name().to_owned(), identity)));
        let score = |e: &Embeddings| Scores::from_f32(&classifier.scores(&e.table.features, e.dim())?, labels.len());
        evaluated.push(report(method, score, (validation.as_ref(), &test), &labels, asked.extras())?);
    }
    if let Some(train) = &train {
        let bank = Bank::new(&train.embeddings.table.features, train.embeddings.dim())?;
        let k = parameters.knn;
        let score = |e: &Embeddings| {
            knn_scores(&bank, &train.classes, &Bank::new(&e.table.features, e.dim())?, labels.len(), k)
        };
        evaluated.push(report(Method::Knn { k }, score, (validation.as_ref(), &test), &labels, asked.extras())?);
    }
    let (reports, curves): (Vec<_>, Vec<_>) = evaluated.into_iter().unzip();
    let requirements = gate::check(&parameters.require, &reports);
    let refused = gate::hold(&requirements).err();
    let produced = write::report(context, (&labels, identities), (reports, &curves), requirements)?;
    Ok(Produced { refused, ..produced })
}

/// The inputs that hold classifiers.
const CLASSIFIERS: [(&str, ClassifierKind); 2] =
    [("zero_shot_mlflow_model", ClassifierKind::ZeroShot), ("adapter_mlflow_model", ClassifierKind::Adapter)];

/// What the job asks for beside the figures, with what the test texts say of their rows.
struct Asked<'a> {
    parameters: &'a EvaluateParameters,
    columns: Vec<Column>,
    groups: Option<Vec<usize>>,
    goals: Vec<(Goal, f64)>,
}

impl<'a> Asked<'a> {
    fn read(context: &StepContext<'_>, parameters: &'a EvaluateParameters, test: &LabelledEmbeddings) -> Result<Self> {
        let texts = TsvReader::open(context.path("test_text_tsv")?)?;
        let values = |name: &str| {
            let rows = test.embeddings.table.rows.iter().map(|&place| place as usize - 1);
            read_field(&texts, rows, name)
        };
        let columns = parameters.subgroups.iter().map(|name| Ok(Column { name: name.clone(), values: values(name)? }));
        let columns = columns.collect::<Result<Vec<Column>>>()?;
        columns.iter().try_for_each(|column| column.groups().map(drop))?;
        let groups = parameters.bootstrap.group.as_deref().map(|name| {
            let mut ids: BTreeMap<String, usize> = BTreeMap::new();
            let missing = || {
                let text =
                    format!("parameters.bootstrap.group: a row of test_text_tsv has no '{name}'; every row needs one");
                Error::data(text)
            };
            values(name)?
                .into_iter()
                .map(|value| {
                    let next = ids.len();
                    Ok(*ids.entry(value.ok_or_else(missing)?).or_insert(next))
                })
                .collect::<Result<Vec<_>>>()
        });
        let groups = groups.transpose()?;
        if groups.as_ref().is_some_and(|ids: &Vec<usize>| ids.iter().all(|&id| id == 0)) {
            let text = "parameters.bootstrap.group: all rows of test_text_tsv are of one group, of which no samples can be drawn";
            return Err(Error::data(text));
        }
        let targets = &parameters.operating_points;
        let goal = |goal: Goal, values: &[f64]| values.iter().map(|&v| (goal, v)).collect::<Vec<_>>();
        let goals =
            [goal(Goal::Sensitivity, &targets.sensitivity), goal(Goal::Specificity, &targets.specificity)].concat();
        Ok(Asked { parameters, columns, groups, goals })
    }

    fn extras(&self) -> Extras<'_> {
        let bootstrap = &self.parameters.bootstrap;
        let groups = bootstrap.group.as_deref().zip(self.groups.as_deref());
        // without samples the groups still count, in the intervals of shares
        let bootstrap = Some(Bootstrap { resamples: bootstrap.resamples, seed: bootstrap.seed, groups });
        Extras { bootstrap, goals: &self.goals, columns: &self.columns }
    }
}

fn report(
    method: Method,
    score: impl Fn(&Embeddings) -> Result<Scores>,
    (validation, test): (Option<&LabelledEmbeddings>, &LabelledEmbeddings),
    labels: &Labels,
    extras: Extras<'_>,
) -> Result<Evaluated> {
    let test_scores = score(&test.embeddings)?;
    let validation_scores = validation.map(|v| score(&v.embeddings)).transpose()?;
    let validation = match (&validation_scores, validation) {
        (Some(scores), Some(v)) => Some(Labelled::new(scores, &v.classes)?),
        _ => None,
    };
    let data = Labelled::new(&test_scores, &test.classes)?;
    let report = evaluate_method(method, validation, data, labels.texts(), extras)?;
    Ok((report, curves(&test_scores, &test.classes, labels.texts())))
}

fn load(package: &Package, kind: ClassifierKind, labels: &Labels, test: &Embeddings) -> Result<Head> {
    if package.config.classifier.as_ref().is_none_or(|c| c.kind != kind) {
        let (folder, method) = (package.dir.display(), kind.method());
        return Err(Error::package(format!("'{folder}' is not a package of a {method} classifier")));
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
    let scale = scale.f_double_value(&[]).map_err(crate::model::engine)?;
    Head::read((&package.checkpoints(), &package.config), scale, test.dim())
}
