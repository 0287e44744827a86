//! The evaluation of given scores, for the comparison with scikit-learn. Reads one JSON document a line from standard input and writes
//! the report and the curves of each as one line:
//!
//! `{"classes", "test": {"scores", "truth"}, "validation": the same or null, "goals": [["sensitivity", 0.9], ...], "bootstrap":
//! {"resamples", "seed", "groups": [id a row] or null} or null, "columns": {name: [value a row]}}`; scores are row-major.

use medtune::evaluation::{Bootstrap, Column, Extras, Goal, Labelled, Method, Scores, curves, evaluate_method};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

#[derive(Deserialize)]
struct Part {
    scores: Vec<f64>,
    truth: Vec<usize>,
}

#[derive(Deserialize)]
struct Sampling {
    resamples: usize,
    seed: u64,
    groups: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct Problem {
    classes: usize,
    test: Part,
    validation: Option<Part>,
    #[serde(default)]
    goals: Vec<(Goal, f64)>,
    bootstrap: Option<Sampling>,
    #[serde(default)]
    columns: BTreeMap<String, Vec<Option<String>>>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let problem: Problem = serde_json::from_str(&line?)?;
        let labels: Vec<String> = (0..problem.classes).map(|c| format!("label {c}")).collect();
        let scores = |part: &Part| Scores::new(part.scores.clone(), problem.classes);
        let test = scores(&problem.test)?;
        let validation = problem.validation.as_ref().map(scores).transpose()?;
        let validation = validation.as_ref().zip(problem.validation.as_ref());
        let validation = validation.map(|(scores, part)| Labelled::new(scores, &part.truth)).transpose()?;
        let columns: Vec<Column> = problem.columns.into_iter().map(|(name, values)| Column { name, values }).collect();
        let bootstrap = problem.bootstrap.as_ref().map(|b| Bootstrap {
            resamples: b.resamples,
            seed: b.seed,
            groups: b.groups.as_deref().map(|ids| ("group", ids)),
        });
        let extras = Extras { bootstrap, goals: &problem.goals, columns: &columns };
        let data = Labelled::new(&test, &problem.test.truth)?;
        let report = evaluate_method(Method::ZeroShot, validation, data, &labels, extras)?;
        let curves = curves(&test, &problem.test.truth, &labels);
        writeln!(out, "{}", serde_json::json!({ "report": report, "curves": curves }))?;
    }
    Ok(())
}
