//! Splits rows as scikit-learn does. The tests compare what it writes with scikit-learn.
//!
//! `split CASES.json OUT.json` takes a list of `{"classes": [...], "shares": [train, validation, test], "seed": 1}` and writes for
//! each the rows of the three parts, or null where it refuses.

use medtune::data::sklearn_split;
use serde::Deserialize;
use std::fs;

#[derive(Deserialize)]
struct Case {
    classes: Vec<u32>,
    shares: [f64; 3],
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [cases, out] = paths.as_slice() else { anyhow::bail!("usage: split CASES.json OUT.json") };
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(cases)?)?;
    let split = |case: &Case| {
        let labels = vec![""; case.classes.iter().max().map_or(0, |&most| most as usize + 1)];
        sklearn_split(&case.classes, case.shares, (&labels, case.seed)).ok()
    };
    let parts: Vec<Option<Vec<Vec<usize>>>> = cases.iter().map(split).collect();
    fs::write(out, serde_json::to_vec(&parts)?)?;
    Ok(())
}
