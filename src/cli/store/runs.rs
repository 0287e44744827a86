//! Verbs on run records, and how a record is printed.

use super::compare::CompareArguments;
use crate::cli::output;
use crate::cli::place::Place;
use crate::error::Result;
use crate::registry::{RunRecord, series_folders};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RunsVerb {
    /// List runs, the newest first.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one run.
    Show {
        /// The run's id.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the figures of two evaluations side by side.
    Compare(CompareArguments),
}

impl RunsVerb {
    pub(in crate::cli) fn run(self, store: &Place) -> Result<()> {
        let store = store.open_existing()?;
        match self {
            RunsVerb::List { json: true } => output::json(&RunRecord::list(&store)?),
            RunsVerb::List { json: false } => {
                let rows: Vec<Vec<String>> = RunRecord::list(&store)?
                    .into_iter()
                    .map(|r| {
                        let took = format!("{:.1} s", r.duration_s);
                        let state = state(&r);
                        vec![r.run_id, r.kind, state, r.started, took]
                    })
                    .collect();
                output::line(&output::table(&["RUN", "KIND", "STATUS", "STARTED", "TOOK"], &rows))
            }
            RunsVerb::Compare(arguments) => arguments.run(&store),
            RunsVerb::Show { id, json } => {
                let record = RunRecord::load(&store, &id)?;
                print(&record, series_folders(&store, &id)?, json)
            }
        }
    }
}

/// Outputs of a step that a table names; the JSON record names all.
const SHOWN_OUTPUTS: usize = 2;

/// A run's state for people.
fn state(record: &RunRecord) -> String {
    if record.is_abandoned() { "killed".to_owned() } else { name(record.status) }
}

/// Prints a run record, and where the curves of its steps are.
pub(in crate::cli) fn print(record: &RunRecord, series: BTreeMap<String, String>, json: bool) -> Result<()> {
    if json {
        let mut value = serde_json::to_value(record).unwrap_or_default();
        value["series"] = json!(series);
        return output::json(&value);
    }
    let mut text = String::new();
    if !series.is_empty() {
        let rows: Vec<Vec<String>> = series.into_iter().map(|(step, uri)| vec![step, uri]).collect();
        text = output::table(&["CURVE OF", "WHERE"], &rows) + "\n\n";
    }
    output::line(&(text + &summary(record)))
}

/// A run record for people.
fn summary(record: &RunRecord) -> String {
    let mut rows = Vec::new();
    for step in &record.steps {
        let mut outputs: Vec<String> = step.outputs.values().filter_map(|o| o.reference.clone()).collect();
        let more = outputs.len().saturating_sub(SHOWN_OUTPUTS);
        outputs.truncate(SHOWN_OUTPUTS);
        if more > 0 {
            outputs.push(format!("and {more} more"));
        }
        rows.push(vec![step.name.clone(), name(step.status), format!("{:.1} s", step.duration_s), outputs.join(", ")]);
    }
    let mut text = output::table(&["STEP", "STATUS", "TOOK", "OUTPUTS"], &rows);
    let methods: Vec<Vec<String>> = record.steps.iter().flat_map(|s| methods(&s.metrics)).collect();
    if !methods.is_empty() {
        text += "\n\n";
        text += &output::table(&["TEST SPLIT", "IMAGES", "ACCURACY", "MACRO F1", "MCC", "mAUC"], &methods);
    }
    let models: Vec<Vec<String>> = record
        .outputs
        .values()
        .filter(|o| o.reference.as_ref().is_some_and(|r| r.starts_with("model:")))
        .map(|o| vec![o.reference.clone().unwrap_or_default(), o.uri.clone()])
        .collect();
    if !models.is_empty() {
        text += "\n\n";
        text += &output::table(&["PACKAGE", "WHERE"], &models);
    }
    if let Some(error) = &record.error {
        text += &format!("\n\nfailed ({}, exit code {}): {}", error.kind, error.exit_code, error.message);
    }
    let started = record.steps.iter().filter(|s| name(s.status) != "unchanged").count();
    let ended = if record.error.is_none() && started == 0 && !record.steps.is_empty() {
        "; every step was unchanged, nothing had to be done".to_owned()
    } else {
        String::new()
    };
    format!("{text}\n\nrun {} {} in {:.1} s{ended}", record.run_id, state(record), record.duration_s)
}

/// The table rows of an Evaluate step's metrics.
fn methods(metrics: &Value) -> Vec<Vec<String>> {
    let number = |m: &Value, key: &str| m[key].as_f64().map_or("-".to_owned(), |v| format!("{v:.4}"));
    let rows = metrics["methods"].as_array().into_iter().flatten();
    rows.map(|m| {
        let mut row = vec![m["method"].as_str().unwrap_or_default().to_owned(), m["n"].to_string()];
        row.extend(["accuracy", "macro_f1", "mcc", "mauc"].iter().map(|key| number(m, key)));
        row
    })
    .collect()
}

/// The name of a state, as it is serialised.
fn name(state: impl serde::Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
