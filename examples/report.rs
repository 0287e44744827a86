//! Renders an evaluation's page and plots. The tests look at them with a browser.
//!
//! `report FOLDER` takes JSON from standard input, `{"title": ..., "created": ..., "code_version": ..., "inputs": [[name, reference,
//! SHA-256], ...], "labels": [...], "methods": [...], "curves": [[...], ...], "requirements": [...]}`, and writes report.html and the
//! plots.

use std::fs;
use std::path::Path;

use medtune::evaluation::{ClassCurves, MethodReport, Page, Requirement, render_html, render_plots};
use serde::Deserialize;

#[derive(Deserialize)]
struct Document {
    title: String,
    created: String,
    code_version: String,
    inputs: Vec<(String, String, String)>,
    labels: Vec<String>,
    methods: Vec<MethodReport>,
    curves: Vec<Vec<ClassCurves>>,
    requirements: Vec<Requirement>,
}

fn main() -> anyhow::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = paths.as_slice() else { anyhow::bail!("usage: report FOLDER < DOCUMENT.json") };
    let document: Document = serde_json::from_reader(std::io::stdin().lock())?;
    let page = Page {
        title: &document.title,
        created: &document.created,
        code_version: &document.code_version,
        inputs: &document.inputs,
        labels: &document.labels,
        methods: &document.methods,
        curves: &document.curves,
        requirements: &document.requirements,
    };
    let folder = Path::new(folder);
    fs::write(folder.join("report.html"), render_html(&page))?;
    for (name, svg) in render_plots(&page) {
        fs::write(folder.join(name), svg)?;
    }
    Ok(())
}
