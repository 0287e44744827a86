use serde_json::Value;

use super::*;
use crate::evaluation::scores::Scores;
use crate::evaluation::{render_markdown, render_text};

/// Written by tests/golden/make_metrics_golden.py with scikit-learn.
const GOLDEN: &str = include_str!("../../tests/golden/metrics_golden.json");

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

fn close(what: &str, got: Option<f64>, want: &Value) {
    match (got, want.as_f64()) {
        (None, None) => {}
        (Some(got), Some(want)) => assert!((got - want).abs() < 1e-9, "{what}: {got} instead of {want}"),
        (got, want) => panic!("{what}: {got:?} instead of {want:?}"),
    }
}

fn close_prf(what: &str, got: &Prf, want: &Value) {
    close(&format!("{what} precision"), Some(got.precision), &want["precision"]);
    close(&format!("{what} recall"), Some(got.recall), &want["recall"]);
    close(&format!("{what} f1"), Some(got.f1), &want["f1"]);
}

fn report_of(problem: &Value) -> MethodReport {
    let classes = problem["classes"].as_u64().unwrap() as usize;
    let labels: Vec<String> = (0..classes).map(|c| format!("label {c}")).collect();
    let part =
        |name: &str| (Scores::new(floats(&problem[name]["scores"]), classes).unwrap(), ids(&problem[name]["truth"]));
    let ((v_scores, v_truth), (scores, truth)) = (part("validation"), part("test"));
    let validation = Labelled::new(&v_scores, &v_truth).unwrap();
    evaluate_method(
        Method::ZeroShot,
        Some(validation),
        Labelled::new(&scores, &truth).unwrap(),
        &labels,
        Extras::default(),
    )
    .unwrap()
}

#[test]
fn equals_scikit_learn() {
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    assert!(golden.len() >= 5);
    for problem in &golden {
        let name = problem["name"].as_str().unwrap();
        let report = report_of(problem);
        let want = &problem["expected"];
        close(&format!("{name} accuracy"), Some(report.argmax.accuracy), &want["accuracy"]);
        close(&format!("{name} mcc"), Some(report.argmax.mcc), &want["mcc"]);
        close(&format!("{name} mauc"), report.mauc, &want["mauc"]);
        close(&format!("{name} map"), report.mean_average_precision, &want["map"]);
        close_prf(&format!("{name} macro"), &report.argmax.macro_average, &want["macro"]);
        close_prf(&format!("{name} micro"), &report.argmax.micro_average, &want["micro"]);
        assert_eq!(serde_json::to_value(&report.argmax.confusion).unwrap(), want["confusion"], "{name}");
        let thresholded = report.thresholded.unwrap();
        assert_eq!(thresholded.thresholds, floats(&want["thresholds"]), "{name}");
        close_prf(&format!("{name} thresholded macro"), &thresholded.macro_average, &want["thresholded_macro"]);
        close_prf(&format!("{name} thresholded micro"), &thresholded.micro_average, &want["thresholded_micro"]);
        let classes = want["per_class"].as_array().unwrap();
        assert_eq!(classes.len(), report.argmax.per_class.len());
        let absent = classes.iter().filter(|c| c["support"] == 0).count();
        assert_eq!(absent, report.absent_classes.len(), "{name}");
        for (got, want) in report.argmax.per_class.iter().zip(classes) {
            let what = format!("{name}, {}", got.label);
            close_prf(&what, &got.prf, want);
            close(&what, got.auc, &want["auc"]);
            close(&what, got.average_precision, &want["average_precision"]);
            assert_eq!(Some(got.support), want["support"].as_u64(), "{what}");
        }
    }
}

#[test]
fn json_round_trips_and_names_the_method() {
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    let mut report = report_of(&golden[2]);
    report.method = Method::Knn { k: 64 };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["method"], &json["k"]), (&Value::from("knn"), &Value::from(64)));
    assert!(json["argmax"]["macro"]["precision"].is_f64() && json["thresholded"]["micro"]["f1"].is_f64());
    assert_eq!(serde_json::from_value::<MethodReport>(json).unwrap(), report);
}

#[test]
fn texts_name_every_class_and_absent_ones() {
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    let mut report = report_of(&golden[2]);
    report.argmax.per_class[0].label = "a|b\nc".into();
    let text = render_text(std::slice::from_ref(&report), &[]);
    assert!(text.contains("zero-shot") && text.contains("a|b c") && text.contains("left out of mAUC: label 1"));
    let markdown = render_markdown(&[report], &[]);
    assert!(markdown.contains("a\\|b c") && markdown.contains("| label 5 |"), "{markdown}");
}

#[test]
fn groups_are_named_without_samples_too() {
    let scores = Scores::new(vec![0.9, 0.1, 0.2, 0.8, 0.7, 0.3], 2).unwrap();
    let data = Labelled::new(&scores, &[0, 1, 1]).unwrap();
    let bootstrap = Bootstrap { resamples: 0, seed: 0, groups: Some(("patient|id", &[0, 0, 1])) };
    let labels = ["one".to_owned(), "two".to_owned()];
    let sex = ["f", "m", "f"].map(|value| Some(value.to_owned())).to_vec();
    let columns = [Column { name: "sex".to_owned(), values: sex }];
    let report = |bootstrap, columns| {
        let extras = Extras { bootstrap, columns, ..Extras::default() };
        evaluate_method(Method::Adapter, None, data, &labels, extras).unwrap()
    };
    let grouped = report(Some(bootstrap), &columns);
    assert_eq!((&grouped.intervals, grouped.grouped_by.as_deref()), (&None, Some("patient|id")));
    let line = "rows with the same value of patient|id count together";
    assert!(render_text(std::slice::from_ref(&grouped), &[]).contains(line));
    assert!(render_markdown(&[grouped], &[]).contains(&line.replace('|', "\\|")));
    // nothing is said of intervals where there are none
    let alone = report(Some(bootstrap), &[]);
    assert_eq!(alone.grouped_by.as_deref(), Some("patient|id"));
    assert!(!render_text(&[alone], &[]).contains("intervals"));
    assert_eq!(serde_json::to_value(report(None, &columns)).unwrap().get("grouped_by"), None);
}

#[test]
fn labels_must_fit() {
    let scores = Scores::new(vec![0.5, 0.5], 2).unwrap();
    let data = Labelled::new(&scores, &[0]).unwrap();
    assert!(evaluate_method(Method::Adapter, None, data, &["one".into()], Extras::default()).is_err());
}
