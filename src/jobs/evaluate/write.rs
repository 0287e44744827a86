//! The report's files.

use super::super::{Artifact, Produced, ResolvedInput, StepContext, write_json};
use crate::data::Labels;
use crate::error::{Error, Result};
use crate::evaluation::{
    ClassCurves, Document, Input, MethodReport, Page, Requirement, render_html, render_markdown, render_plots,
    render_text,
};
use crate::registry::{AssetKind, folder_files};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use time::format_description::well_known::Rfc3339;

/// The content of `curves.json`.
#[derive(Serialize)]
struct Curves<'a> {
    format_version: u32,
    methods: Vec<MethodCurves<'a>>,
}

#[derive(Serialize)]
struct MethodCurves<'a> {
    method: String,
    classes: &'a [ClassCurves],
}

pub(super) fn report(
    context: &StepContext<'_>,
    (labels, classifiers): (&Labels, BTreeMap<String, String>),
    (methods, curves): (Vec<MethodReport>, &[Vec<ClassCurves>]),
    requirements: Vec<Requirement>,
) -> Result<Produced> {
    let folder = context.folder("report")?;
    let input = |i: &ResolvedInput| Input { reference: i.origin(), sha256: i.digest.clone() };
    let document = Document {
        format_version: 1,
        code_version: crate::CODE_VERSION.to_owned(),
        labels: labels.texts().to_vec(),
        inputs: context.inputs.iter().map(|(name, i)| (name.clone(), input(i))).collect(),
        classifiers,
        requirements,
        methods,
    };
    let (reports, requirements) = (&document.methods[..], &document.requirements[..]);
    write_json(&folder.join("report.json"), &document)?;
    let methods = reports.iter().zip(curves);
    let methods = methods.map(|(r, classes)| MethodCurves { method: r.method.to_string(), classes }).collect();
    let path = folder.join("curves.json");
    let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    let mut file = BufWriter::new(file);
    // numbers without end: neither indented nor held in memory once more
    serde_json::to_writer(&mut file, &Curves { format_version: 1, methods })
        .map_err(|e| Error::io("write", &path, e.into()))?;
    file.flush().map_err(|e| Error::io("write", &path, e))?;
    let text = render_text(reports, requirements);
    let created = context.begun.format(&Rfc3339).map_err(|e| Error::internal("cannot write a time").with_source(e))?;
    let page = Page { title: "Evaluation on the test set", created: &created, document: &document, curves };
    let plots = context.folder("report/plots")?;
    let mut files = vec![
        (folder.join("report.txt"), text.clone()),
        (folder.join("report.md"), render_markdown(reports, requirements)),
        (folder.join("report.html"), render_html(&page)),
    ];
    files.extend(render_plots(&page).into_iter().map(|(name, svg)| (plots.join(name), svg)));
    for (path, content) in files {
        std::fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
    }
    let methods: Vec<Value> = reports.iter().map(headline).collect();
    let mut metrics = json!({ "methods": methods });
    if !requirements.is_empty() {
        metrics["requirements_met"] = json!(requirements.iter().all(|r| r.met));
    }
    let mut produced = Produced { metrics, summary: Some(text), ..Produced::default() };
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
fn headline(report: &MethodReport) -> Value {
    json!({
        "method": report.method.to_string(),
        "n": report.n,
        "accuracy": report.argmax.accuracy,
        "macro_f1": report.argmax.macro_average.f1,
        "mcc": report.argmax.mcc,
        "mauc": report.mauc,
        "mean_average_precision": report.mean_average_precision,
        "thresholded_macro_f1": report.thresholded.as_ref().map(|t| t.macro_average.f1),
        "ece": report.calibration.ece,
    })
}
