//! Renders an evaluation's page and plots. The tests look at them with a browser.
//!
//! `report FOLDER` takes JSON from standard input, a report.json with `"title"`, `"created"` and `"curves"` (a list a method) beside it, and
//! writes report.html and the plots.

use std::fs;
use std::path::Path;

use medtune::evaluation::{ClassCurves, Document, Page, render_html, render_plots};
use serde::Deserialize;

#[derive(Deserialize)]
struct Made {
    title: String,
    created: String,
    curves: Vec<Vec<ClassCurves>>,
    #[serde(flatten)]
    document: Document,
}

fn main() -> anyhow::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = paths.as_slice() else { anyhow::bail!("usage: report FOLDER < DOCUMENT.json") };
    let made: Made = serde_json::from_reader(std::io::stdin().lock())?;
    let page = Page { title: &made.title, created: &made.created, document: &made.document, curves: &made.curves };
    let folder = Path::new(folder);
    fs::write(folder.join("report.html"), render_html(&page))?;
    for (name, svg) in render_plots(&page) {
        fs::write(folder.join(name), svg)?;
    }
    Ok(())
}
