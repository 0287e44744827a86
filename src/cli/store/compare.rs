//! `medtune runs compare`: the evaluations of two runs side by side.

use crate::cli::output;
use crate::config::evaluation::{Condition, Figure};
use crate::error::{Error, Result};
use crate::evaluation::compare::{Pair, compare, only_in};
use crate::evaluation::{Comparison, Document, MethodReport, Requirement, Side, gate, render_comparison};
use crate::registry::{AssetKind, Reference, RunRecord, get};
use crate::storage::Store;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(in crate::cli) struct CompareArguments {
    /// The first run's id, or a report, as data:NAME@VERSION.
    first: String,
    /// The second one.
    second: String,
    /// What the second must fulfil, as "adapter.macro_f1 >= 0.74"; otherwise the exit code is 15. Can be given several times.
    #[arg(long, value_name = "REQUIREMENT", value_parser = requirement)]
    require: Vec<(Figure, Condition)>,
    /// Write the comparison to this file as a page that stands alone, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn requirement(text: &str) -> Result<(Figure, Condition), String> {
    let at = text.rfind(['<', '>']).ok_or_else(|| format!("'{text}' has no comparison: write FIGURE >= NUMBER"))?;
    Ok((text[..at].trim().parse()?, text[at..].parse()?))
}

/// An evaluation and the report it stands in.
struct Found {
    reference: String,
    created: String,
    document: Document,
}

impl Found {
    fn methods(&self) -> &[MethodReport] {
        &self.document.methods
    }

    fn side(&self) -> Side<'_> {
        Side { reference: &self.reference, created: &self.created, document: &self.document }
    }
}

impl CompareArguments {
    pub(super) fn run(self, store: &Store) -> Result<()> {
        let (first, second) = (find(store, &self.first)?, find(store, &self.second)?);
        let pairs = compare(first.methods(), second.methods());
        let requirements = gate::check(self.require.iter().map(|(f, c)| (f, c)), second.methods());
        if let Some(path) = &self.html {
            let page = Comparison { first: first.side(), second: second.side(), requirements: &requirements };
            std::fs::write(path, render_comparison(&page)).map_err(|e| Error::io("write", path, e))?;
        }
        if self.json {
            let references = [&first.reference, &second.reference];
            let same = first.document.test_set() == second.document.test_set();
            output::json(&json!({
                "reports": references, "same_test_set": same, "figures": pairs, "requirements": requirements,
            }))?;
        } else {
            output::line(&text(&first, &second, &pairs, &requirements))?;
        }
        gate::hold(&requirements).map_err(|e| e.context(second.reference))
    }
}

fn find(store: &Store, target: &str) -> Result<Found> {
    let reference = if Reference::looks_like(target) { target.to_owned() } else { report_of(store, target)? };
    let version = get(store, &Reference::parse(&reference, Some(AssetKind::Data))?)?;
    let bytes = store.get(&version.key("report.json"))?;
    let bytes =
        bytes.ok_or_else(|| Error::data(format!("{reference} is no report of Evaluate: it has no report.json")))?;
    let document = Document::parse(&bytes).map_err(|e| e.context(format!("report.json of {reference}")))?;
    Ok(Found { reference: version.reference(), created: version.created.clone(), document })
}

/// The report that the last Evaluate step of a run has made.
fn report_of(store: &Store, run: &str) -> Result<String> {
    let record = RunRecord::load(store, run)?;
    let reports = record.steps.iter().rev().filter_map(|s| s.outputs.get("report")?.reference.clone());
    reports.into_iter().next().ok_or_else(|| {
        Error::not_found(format!("run '{run}' has evaluated nothing: name a run with an Evaluate step, or a report"))
    })
}

fn text(first: &Found, second: &Found, pairs: &[Pair], requirements: &[Requirement]) -> String {
    let mut out = format!("first:  {}\nsecond: {}\n", first.reference, second.reference);
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let rows = pairs.iter().map(|p| {
        let apart = p.apart.map_or("-", |apart| if apart { "apart" } else { "overlap" });
        let difference = p.difference.map_or_else(|| "-".to_owned(), |d| format!("{d:+.4}"));
        vec![p.method.clone(), p.figure.clone(), number(p.first), number(p.second), difference, apart.to_owned()]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if first.document.test_set() != second.document.test_set() {
        out += "they were evaluated on different test sets: differences are not those of the models alone\n";
    }
    let (ours, theirs) = (first.methods(), second.methods());
    for (name, alone) in [("first", only_in(ours, theirs)), ("second", only_in(theirs, ours))] {
        if !alone.is_empty() {
            out += &format!("only in the {name}: {}\n", alone.join(", "));
        }
    }
    if rows.is_empty() {
        out += "\nthey have no method in common";
    } else {
        out += "\n";
        out += &output::table(&["METHOD", "FIGURE", "FIRST", "SECOND", "DIFFERENCE", "INTERVALS"], &rows);
    }
    if !requirements.is_empty() {
        let rows: Vec<Vec<String>> = requirements
            .iter()
            .map(|r| {
                let met = if r.met { "yes" } else { "NO" };
                vec![r.metric.clone(), r.condition.clone(), r.shown(), met.to_owned()]
            })
            .collect();
        out += "\n\n";
        out += &output::table(&["REQUIREMENT", "CONDITION", "SECOND", "MET"], &rows);
    }
    out
}
