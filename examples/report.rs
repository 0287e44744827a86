//! Renders an evaluation's page and plots. The tests look at them with a browser.
//!
//! `report FOLDER` takes JSON from standard input, a report.json with `"title"`, `"created"` and `"curves"` (a list a method) beside it, and
//! writes report.html and the plots. `report FOLDER compare` takes a list of two of them and writes comparison.html.

use std::fs;
use std::path::Path;

use medtune::evaluation::{
    ClassCurves, Comparison, Document, Page, Side, render_comparison, render_html, render_plots,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Made {
    title: String,
    created: String,
    curves: Vec<Vec<ClassCurves>>,
    #[serde(flatten)]
    document: Document,
}

impl Made {
    fn side(&self) -> Side<'_> {
        Side { reference: &self.title, created: &self.created, document: &self.document }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let input = std::io::stdin().lock();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [folder] => report(Path::new(folder), &serde_json::from_reader(input)?),
        [folder, "compare"] => {
            let [first, second]: [Made; 2] = serde_json::from_reader(input)?;
            let requirements = &second.document.requirements;
            let page = Comparison { first: first.side(), second: second.side(), requirements };
            Ok(fs::write(Path::new(folder).join("comparison.html"), render_comparison(&page))?)
        }
        _ => anyhow::bail!("usage: report FOLDER [compare] < DOCUMENT.json"),
    }
}

fn report(folder: &Path, made: &Made) -> anyhow::Result<()> {
    let page = Page { title: &made.title, created: &made.created, document: &made.document, curves: &made.curves };
    fs::write(folder.join("report.html"), render_html(&page))?;
    for (name, svg) in render_plots(&page) {
        fs::write(folder.join(name), svg)?;
    }
    Ok(())
}
