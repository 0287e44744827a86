//! Nested values to the flat names that MLflow knows.

use std::collections::BTreeSet;

use serde_json::Value;

/// The longest name of a parameter, metric or tag.
const MAX_NAME: usize = 250;
/// The longest value of a parameter, in characters.
const MAX_VALUE: usize = 6000;

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Metric {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) step: i64,
}

/// A name that every server takes: `@` becomes `_at_`, each other run of characters that are not letters, digits, `_`,
/// `-` or `.` becomes one `_`. Servers refuse a whole batch for one wrong name.
pub(super) fn clean(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.replace('@', "_at_").chars() {
        if c.is_ascii_alphanumeric() || "_-.".contains(c) {
            out.push(c);
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    let mut out = out.trim_end_matches('_').to_owned();
    out.truncate(MAX_NAME);
    // names are paths to MLflow, and those that are not normalised are refused
    if out.trim_matches('.').is_empty() { "_".to_owned() } else { out }
}

/// The text, at most `limit` characters long.
pub(super) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some(_) => text.chars().take(limit.saturating_sub(3)).chain("...".chars()).collect(),
    }
}

/// Parameters of a value: one for each leaf, named by its path with dots. Lists are one parameter, as JSON; `null` is none.
pub(super) fn parameters(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(map) if map.is_empty() => {}
        Value::Object(map) => map.iter().for_each(|(key, inner)| parameters(&join(prefix, key), inner, out)),
        Value::String(text) => out.push((clean(prefix), cut(text, MAX_VALUE))),
        other => out.push((clean(prefix), cut(&other.to_string(), MAX_VALUE))),
    }
}

/// Numbers of a value, named by their paths with dots. An element of a list is named by its `method` or `name`; one with
/// a `step` or `epoch` is a point of a series; others are counted from 0. Texts and truth values are left out.
pub(super) fn metrics(prefix: &str, step: i64, value: &Value, out: &mut Vec<Metric>) {
    match value {
        Value::Number(number) => {
            if let Some(value) = number.as_f64().filter(|v| v.is_finite()) {
                out.push(Metric { name: clean(prefix), value, step });
            }
        }
        Value::Object(map) => map.iter().for_each(|(key, inner)| metrics(&join(prefix, key), step, inner, out)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let text = ["method", "name"].iter().find_map(|key| item[key].as_str());
                let point = ["step", "epoch"].iter().find_map(|key| item[key].as_i64());
                match (text, point) {
                    (Some(text), _) => metrics(&join(prefix, text), step, item, out),
                    (None, Some(point)) => metrics(prefix, point, item, out),
                    (None, None) => metrics(&join(prefix, &index.to_string()), step, item, out),
                }
            }
        }
        _ => {}
    }
}

/// The first of all metrics with the same name and step: a server would keep all and show any.
pub(super) fn unique_metrics(metrics: &mut Vec<Metric>) {
    let mut seen: BTreeSet<(String, i64)> = BTreeSet::new();
    metrics.retain(|m| seen.insert((m.name.clone(), m.step)));
}

/// Makes names unique that were different before they were cleaned: the second gets `_2`, and so on.
pub(super) fn unique<T>(items: &mut [T], name: impl Fn(&mut T) -> &mut String) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for item in items {
        let name = name(item);
        let base: String = name.chars().take(MAX_NAME - 8).collect();
        let mut number = 2;
        while !seen.insert(name.clone()) {
            *name = format!("{base}_{number}");
            number += 1;
        }
    }
}

/// Each part is cleaned alone, so that none ends in what stands for a bracket.
fn join(prefix: &str, key: &str) -> String {
    let key = clean(key);
    if prefix.is_empty() { key } else { format!("{prefix}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_become_ones_that_servers_take() {
        for (from, to) in [
            ("recall@1", "recall_at_1"),
            ("kNN (k 7)", "kNN_k_7"),
            ("a/b:c*d", "a_b_c_d"),
            ("été", "_t"),
            ("x  y", "x_y"),
            (".", "_"),
            ("..", "_"),
            ("", "_"),
            ("TRAIN.BATCH_SIZE-2", "TRAIN.BATCH_SIZE-2"),
        ] {
            assert_eq!(clean(from), to, "{from}");
        }
        assert_eq!(clean(&"x".repeat(400)).len(), 250);
    }

    #[test]
    fn parameters_are_leaves_with_paths() {
        let value = json!({"seed": 7, "training": {"LR": 0.5, "ON": true, "LIST": [1, {"a": 2}]}, "none": null, "empty": {},
            "text": "é".repeat(7000)});
        let mut out = Vec::new();
        parameters("finetune", &value, &mut out);
        let names: Vec<&str> = out.iter().map(|(n, _)| n.as_str()).collect();
        let wanted = ["finetune.seed", "finetune.training.LR", "finetune.training.ON", "finetune.training.LIST"];
        assert_eq!(names[..4], wanted);
        assert_eq!((out[1].1.as_str(), out[3].1.as_str()), ("0.5", r#"[1,{"a":2}]"#));
        assert_eq!((out.len(), out[4].1.chars().count()), (5, 6000));
        assert!(out[4].1.ends_with("é..."));
    }

    #[test]
    fn metrics_are_numbers_with_paths_and_series_have_steps() {
        let value = json!({"loss": 0.5, "mode": "f32", "ok": true, "none": null,
            "methods": [{"method": "zero-shot", "recall@1": 0.25}, {"method": "kNN (k 7)", "recall@1": 1}],
            "curve": [{"epoch": 1, "acc": 0.1}, {"epoch": 2, "acc": 0.2}], "pair": [3, 4]});
        let mut out = Vec::new();
        metrics("evaluate", 0, &value, &mut out);
        let found: Vec<(&str, f64, i64)> = out.iter().map(|m| (m.name.as_str(), m.value, m.step)).collect();
        assert_eq!(
            found,
            [
                ("evaluate.loss", 0.5, 0),
                ("evaluate.methods.zero-shot.recall_at_1", 0.25, 0),
                ("evaluate.methods.kNN_k_7.recall_at_1", 1.0, 0),
                ("evaluate.curve.epoch", 1.0, 1),
                ("evaluate.curve.acc", 0.1, 1),
                ("evaluate.curve.epoch", 2.0, 2),
                ("evaluate.curve.acc", 0.2, 2),
                ("evaluate.pair.0", 3.0, 0),
                ("evaluate.pair.1", 4.0, 0),
            ]
        );
    }

    #[test]
    fn names_that_fall_together_are_told_apart() {
        let mut names = vec!["a".to_owned(), "b".to_owned(), "a".to_owned(), "a".to_owned()];
        unique(&mut names, |n| n);
        assert_eq!(names, ["a", "b", "a_2", "a_3"]);
    }
}
