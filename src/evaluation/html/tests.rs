use std::collections::BTreeMap;

use super::*;
use crate::evaluation::bootstrap::{ClassIntervals, Intervals};
use crate::evaluation::calibration::{Bin, Calibration};
use crate::evaluation::curves::{PrCurve, RocCurve};
use crate::evaluation::document::Input;
use crate::evaluation::gate::Requirement;
use crate::evaluation::interval::{Interval, Proportion};
use crate::evaluation::metrics::Prf;
use crate::evaluation::operating::{Goal, OperatingPoint, Rates};
use crate::evaluation::report::{ArgmaxReport, ClassReport, Method, ThresholdReport};
use crate::evaluation::subgroups::{Subgroup, SubgroupTable};

const HOSTILE: &str = "<script>alert(1)</script> \"'&\u{202e}\u{0}\u{1b}";

struct Evaluation {
    document: Document,
    curves: Vec<Vec<ClassCurves>>,
}

impl Evaluation {
    /// One method without anything that can be missing.
    fn bare(labels: &[String]) -> Evaluation {
        let curve = |label: &String| ClassCurves { label: label.clone(), roc: None, precision_recall: None };
        let document = Document {
            format_version: 1,
            code_version: "abc123".to_owned(),
            labels: labels.to_vec(),
            inputs: BTreeMap::new(),
            classifiers: BTreeMap::new(),
            requirements: Vec::new(),
            methods: vec![bare(Method::Adapter, labels)],
        };
        Evaluation { document, curves: vec![labels.iter().map(curve).collect()] }
    }

    /// The same with everything there is.
    fn full(labels: &[String]) -> Evaluation {
        let mut input = Evaluation::bare(labels);
        fill(&mut input.document.methods[0], labels);
        input.curves = vec![labels.iter().map(|label| curves(label)).collect()];
        input.document.inputs = BTreeMap::from([(
            "test_embeddings".to_owned(),
            Input { reference: "data:digits@3".to_owned(), sha256: "0123456789abcdef".repeat(4) },
        )]);
        let of = |metric: &str, met| Requirement {
            metric: metric.to_owned(),
            condition: ">= 0.74".to_owned(),
            value: Some(if met { 0.75 } else { 0.7398 }),
            met,
        };
        input.document.requirements = vec![of("adapter.macro_f1", true), of("adapter.accuracy", false)];
        input
    }

    fn page(&self) -> Page<'_> {
        Page { title: "digits-report", created: "2026-03-04T05:06:07Z", document: &self.document, curves: &self.curves }
    }

    /// The page and all plots, each of which must be well formed.
    fn render(&self) -> (String, Vec<(String, String)>) {
        let (page, plots) = (render_html(&self.page()), render_plots(&self.page()));
        well_formed(&page, "html");
        for (name, svg) in &plots {
            well_formed(svg, "svg");
            assert!(
                name.strip_suffix(".svg")
                    .unwrap()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b"-0123456789".contains(&b))
            );
            assert!(!svg.contains("url(") && svg.matches("http").count() == 1, "{name}: {svg}");
        }
        for bad in ["NaN", "inf", "http:", "https:", "url(", "@import", "<script", "src=", "javascript:"] {
            assert!(!page.contains(bad), "{bad} in the page");
        }
        assert_eq!(page.replace("http-equiv", "").matches("http").count(), 0);
        assert_eq!(page.matches("<svg ").count(), page.matches("role=\"img\" ").count());
        assert_eq!(page.matches("<table ").count(), page.matches("<caption ").count());
        (page, plots)
    }
}

fn labels(count: usize) -> Vec<String> {
    (0..count).map(|c| format!("label {c}")).collect()
}

fn bare(method: Method, labels: &[String]) -> MethodReport {
    let class = |label: &String| ClassReport {
        label: label.clone(),
        prf: Prf::default(),
        support: 0,
        auc: None,
        average_precision: None,
    };
    MethodReport {
        method,
        n: 0,
        argmax: ArgmaxReport {
            accuracy: 0.0,
            macro_average: Prf::default(),
            micro_average: Prf::default(),
            mcc: 0.0,
            per_class: labels.iter().map(class).collect(),
            confusion: vec![vec![0; labels.len()]; labels.len()],
        },
        thresholded: None,
        mauc: None,
        mean_average_precision: None,
        absent_classes: labels.to_vec(),
        calibration: Calibration { ece: 0.0, mce: 0.0, brier: 0.0, log_loss: 0.0, bins: Vec::new() },
        intervals: None,
        grouped_by: None,
        operating_points: Vec::new(),
        subgroups: Vec::new(),
    }
}

fn fill(report: &mut MethodReport, labels: &[String]) {
    let interval = Interval { low: 0.25, high: 0.75 };
    let share = Proportion { value: Some(0.5), low: Some(0.3), high: Some(0.7), n: 12 };
    let rates = Rates { sensitivity: share, specificity: share };
    report.n = 7 * labels.len();
    report.absent_classes.clear();
    for (id, class) in report.argmax.per_class.iter_mut().enumerate() {
        class.support = 7;
        class.prf = Prf { precision: 0.5, recall: 0.25, f1: 0.333 };
        (class.auc, class.average_precision) = (Some(0.9 - id as f64 / 100.0), Some(0.6));
        report.argmax.confusion[id][id] = 5;
        report.argmax.confusion[id][(id + 1) % labels.len()] += 2;
    }
    report.thresholded = Some(ThresholdReport {
        thresholds: vec![0.35; labels.len()],
        macro_average: Prf::default(),
        micro_average: Prf::default(),
    });
    (report.mauc, report.mean_average_precision) = (Some(0.875), Some(0.625));
    let class = ClassIntervals { precision: interval, recall: Some(interval), f1: Some(interval), auc: Some(interval) };
    report.intervals = Some(Intervals {
        level: 0.95,
        resamples: 1000,
        seed: 42,
        group: Some("patient".to_owned()),
        units: 31,
        accuracy: interval,
        macro_f1: interval,
        mcc: Interval { low: -0.125, high: 0.75 },
        mauc: Some(interval),
        mean_average_precision: Some(interval),
        thresholded_macro_f1: Some(interval),
        per_class: vec![class; labels.len()],
    });
    let bin = |i: u32, n| Bin {
        low: f64::from(i) / 15.0,
        high: f64::from(i + 1) / 15.0,
        n,
        confidence: (n > 0).then_some(f64::from(i) / 15.0 + 0.01),
        accuracy: (n > 0).then_some(0.5),
    };
    report.calibration.bins = (0..15).map(|i| bin(i, if i < 4 { 0 } else { 12_345 })).collect();
    let point = |goal, threshold: Option<f64>| OperatingPoint {
        label: labels[0].clone(),
        goal,
        target: 0.9,
        threshold,
        validation: threshold.map(|_| rates),
        test: threshold.map(|_| rates),
    };
    report.operating_points = vec![point(Goal::Sensitivity, Some(0.25)), point(Goal::Specificity, None)];
    let nothing = Proportion { value: None, low: None, high: None, n: 0 };
    let group =
        |value: &str, accuracy| Subgroup { value: value.to_owned(), n: 12, accuracy, macro_f1: 0.5, mauc: None };
    let groups = vec![group(HOSTILE, share), group("(none)", nothing)];
    report.subgroups = vec![SubgroupTable { column: "sex & age".to_owned(), groups }];
}

fn curves(label: &str) -> ClassCurves {
    let roc = RocCurve {
        fpr: vec![0.0, 0.0, 0.5, 1.0],
        tpr: vec![0.0, 0.5, 1.0, 1.0],
        thresholds: vec![f64::INFINITY, 0.9, 0.4, 0.1],
    };
    let precision_recall = PrCurve {
        precision: vec![0.5, 0.75, 1.0, 1.0],
        recall: vec![1.0, 1.0, 0.5, 0.0],
        thresholds: vec![0.1, 0.4, 0.9],
    };
    ClassCurves { label: label.to_owned(), roc: Some(roc), precision_recall: Some(precision_recall) }
}

/// Tags close in the order in which they were opened, attributes are quoted, and no text holds a bare `&`.
fn well_formed(text: &str, root: &str) {
    const EMPTY: [&str; 2] = ["meta", "wbr"];
    let body = text.trim_start_matches("<!DOCTYPE html>\n");
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        let between = &rest[..start];
        assert!(!between.contains('>') || open.last() == Some(&"style"), "a bare > in {between:?}");
        entities(between, open.last() == Some(&"style"));
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in {tag}");
            continue;
        }
        let name = tag.split_whitespace().next().expect("a name");
        entities(tag, false);
        if !tag.ends_with('/') && !EMPTY.contains(&name) {
            assert!(!open.is_empty() || name == root, "{name} at the top");
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
}

fn entities(text: &str, style: bool) {
    for after in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|e| after.starts_with(e));
        assert!(known || style, "a bare & before {after:?}");
    }
}

#[test]
fn everything_is_on_the_page() {
    let mut input = Evaluation::full(&labels(5));
    input.document.methods.push(bare(Method::Knn { k: 7 }, &input.document.labels));
    let [first, second] = &mut input.document.methods[..] else { panic!("two methods") };
    (second.grouped_by, second.subgroups) = (Some("patient".to_owned()), first.subgroups.clone());
    let (page, plots) = input.render();
    for part in [
        "<html lang=\"en\">",
        "4 March 2026, 05:06 UTC",
        "gate failed, 1 of 2 requirements not met",
        "adapter.<wbr>macro_<wbr>f1",
        "0.7398",
        "&gt;= 0.74",
        "\u{2212}0.125\u{a0}to\u{a0}0.750",
        "95\u{a0}% intervals from 1000 bootstrap samples of 31 groups by patient",
        "kNN (k 7)",
        "No bootstrap intervals were asked for. Intervals of test rows below count rows with the same patient together.",
        "sensitivity \u{2265}\u{a0}0.900",
        "0.300\u{a0}to\u{a0}0.700, 12\u{a0}rows",
        "Subgroups by <span>sex &amp; age</span>",
        "0123456789ab<",
        "AUC by class: label 0 0.900; label 1 0.890",
        "12k",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
    let kinds =
        ["adapter-roc", "adapter-precision-recall", "adapter-reliability", "adapter-confusion", "knn-confusion"];
    assert_eq!(names, kinds.map(|k| format!("{k}.svg")));
    assert_eq!(input.render(), (page, plots), "not the same bytes");
}

#[test]
fn methods_of_one_kind_have_names_of_their_own() {
    let mut input = Evaluation::full(&labels(2));
    input.document.methods = [7, 7, 9].map(|k| bare(Method::Knn { k }, &input.document.labels)).to_vec();
    assert_eq!(names(&input.document.methods), ["knn", "knn-2", "knn-3"]);
    let (page, _) = input.render();
    unique_ids(&page);
}

fn unique_ids(page: &str) {
    let mut ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids are not unique");
}

#[test]
fn what_users_name_is_only_text() {
    let mut input = Evaluation::full(&[HOSTILE.to_owned(), "x".repeat(300)]);
    input.document.inputs =
        BTreeMap::from([(HOSTILE.into(), Input { reference: HOSTILE.into(), sha256: HOSTILE.into() })]);
    input.document.code_version = HOSTILE.to_owned();
    input.document.requirements[0].metric = HOSTILE.to_owned();
    input.document.methods[0].absent_classes = vec![HOSTILE.to_owned()];
    input.document.methods[0].intervals.as_mut().unwrap().group = Some(HOSTILE.to_owned());
    input.document.methods[0].subgroups[0].column = HOSTILE.to_owned();
    let made = Page { title: HOSTILE, created: HOSTILE, ..input.page() };
    well_formed(&render_html(&made), "html");
    let (page, plots) = input.render();
    let shown = "&lt;script&gt;alert(1)&lt;/script&gt; &quot;&#39;&amp;";
    // the reliability diagram is not by class
    assert!(page.contains(shown));
    assert_eq!(plots.iter().filter(|(_, svg)| svg.contains(shown)).count(), 3);
    for text in plots.iter().map(|(_, svg)| svg).chain([&page]) {
        assert!(text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}')));
    }
    // whole where it is pointed at, cut where it is drawn
    let roc = &plots[0].1;
    assert!(roc.contains(&"x".repeat(300)) && roc.contains(&format!("{}\u{2026}</text>", "x".repeat(31))));
}

#[test]
fn missing_values_are_dashes() {
    let mut input = Evaluation::bare(&labels(3));
    input.document.requirements =
        vec![Requirement { metric: "adapter.mauc".into(), condition: ">= 0.5".into(), value: None, met: false }];
    let (page, plots) = input.render();
    assert_eq!(plots.len(), 1, "only the matrix");
    assert!(page.contains("<td>\u{2013}</td><td class=\"text\"><strong>not met</strong></td>"));
    assert!(page.contains("Without a row in the test split, and left out of mAUC and mAP: label 0, label 1, label 2."));
    assert!(
        page.contains(
            "<td>\u{2013}</td><td>\u{2013}</td><td>\u{2013}</td><td>\u{2013}</td><td>\u{2013}</td><td>0</td>"
        )
    );
    assert!(page.contains("No class has a curve"));
}

#[test]
fn values_that_are_not_finite_are_dashes() {
    let mut input = Evaluation::full(&labels(2));
    let nan = f64::NAN;
    let report = &mut input.document.methods[0];
    let interval = Interval { low: nan, high: f64::INFINITY };
    report.argmax.accuracy = nan;
    report.argmax.mcc = f64::NEG_INFINITY;
    report.calibration.ece = nan;
    report.intervals.as_mut().unwrap().accuracy = interval;
    report.subgroups[0].groups[0].accuracy = Proportion { value: Some(nan), low: Some(nan), high: Some(nan), n: 1 };
    report.calibration.bins[5].accuracy = Some(nan);
    input.curves[0][0].roc.as_mut().unwrap().fpr[1] = nan;
    input.render();
}

#[test]
fn nothing_at_all() {
    let mut input = Evaluation::bare(&[]);
    input.render();
    input.document.methods.clear();
    input.curves.clear();
    let (page, plots) = input.render();
    assert!(page.contains("No method was evaluated.") && page.contains("no requirements were set") && plots.is_empty());
}

#[test]
fn one_row() {
    let mut input = Evaluation::full(&labels(2));
    let report = &mut input.document.methods[0];
    report.n = 1;
    report.argmax.per_class[0].support = 1;
    report.argmax.per_class[1].support = 0;
    report.argmax.confusion = vec![vec![1, 0], vec![0, 0]];
    report.calibration.bins.iter_mut().for_each(|bin| bin.n = u64::from(bin.low > 0.9));
    let (page, _) = input.render();
    assert!(page.contains("1 test row of 2 classes.") && page.contains("1 <small>100\u{a0}%</small>"));
}

#[test]
fn many_classes() {
    let (page, plots) = Evaluation::full(&labels(40)).render();
    assert!(page.contains("The matrix of 40 classes is too large for this page: it is in report.json."));
    assert!(page.contains("The 20 most frequent confusions"));
    assert!(page.contains("The 10 classes of the lowest AUC") && page.contains("30 other classes"));
    assert!(plots.iter().all(|(name, _)| !name.contains("confusion")));
    // the last ten have the lowest
    assert!(
        plots[0].1.contains("AUC by class: label 30 0.600") && plots[0].1.contains("30 other classes: 0.610 to 0.900.")
    );
    let (page, _) = Evaluation::full(&labels(30)).render();
    assert!(page.contains("class=\"heat broad\""));
}

/// The page of two, which must be well formed, have every id once, and headings in order.
fn compared(first: &Evaluation, second: &Evaluation) -> String {
    let first = Side { reference: "data:a@1", created: "2026-03-04T05:06:07Z", document: &first.document };
    let second = Side { reference: "data:a@2", created: "", document: &second.document };
    let page = render_comparison(&Comparison { first, second, requirements: &[] });
    well_formed(&page, "html");
    unique_ids(&page);
    headings_in_order(&page);
    for bad in ["NaN", "inf", "http:", "https:", "url(", "<script"] {
        assert!(!page.contains(bad), "{bad} in the page");
    }
    page
}

#[test]
fn two_evaluations_side_by_side() {
    let (full, bare) = (Evaluation::full(&labels(3)), Evaluation::bare(&labels(3)));
    let page = compared(&full, &bare);
    assert!(page.contains("The first missed what was required") && !page.contains("The second missed"));
    assert!(page.contains("of the first: 1000 bootstrap samples of 31 groups by patient"));
    assert!(page.contains("of the second: none were asked for."));
    assert!(page.contains("on 21 and 0 rows of the same test set") && page.contains("only of the first"));
    compared(&bare, &full);
    let same = compared(&full, &full);
    assert!(same.contains("Intervals of both: ") && !same.contains("differences are not those of the models alone"));
    assert!(same.contains(">overlap<") && !same.contains(">apart<") && same.contains("the same"));
    // other classes: by label, and too many of them for a matrix
    let many = compared(&Evaluation::full(&labels(40)), &full);
    assert_eq!(many.matches("too many classes for a page").count(), 1);
    assert!(many.contains("Only the first knows these classes") && many.contains("label 39"));
    let page = compared(&Evaluation::full(&labels(40)), &Evaluation::full(&labels(40)));
    assert_eq!(page.matches("too many classes for a page").count(), 1);
    let renamed: Vec<String> = labels(3).iter().map(|label| format!("{label}!")).collect();
    assert!(compared(&full, &Evaluation::full(&renamed)).contains("No class has the same label in both."));
    assert!(compared(&Evaluation::bare(&[]), &Evaluation::bare(&[])).contains("Verdict: none"));
}

#[test]
fn methods_are_compared_with_their_like() {
    let knn = |ks: &[usize]| {
        let mut input = Evaluation::full(&labels(2));
        let methods = ks.iter().map(|&k| bare(Method::Knn { k }, &input.document.labels)).collect();
        input.document.methods = methods;
        input
    };
    let mut first = knn(&[7, 9, 11]);
    first.document.methods[0].argmax.accuracy = f64::NAN;
    let page = compared(&first, &knn(&[11, 7, 5]));
    assert!(page.contains("Only in the first: kNN (k 9).") && page.contains("Only in the second: kNN (k 5)."));
    assert!(page.contains("<h2 id=\"knn\">Method: kNN (k 7)</h2>"));
    assert!(page.contains("<h2 id=\"knn-3\">Method: kNN (k 11)</h2>") && !page.contains("id=\"knn-2\""));
}

#[test]
fn what_has_no_room_on_the_axis_is_not_drawn() {
    let mut input = Evaluation::full(&labels(2));
    let drawn = |input: &Evaluation| compared(input, input).matches("class=\"whiskers two\"").count();
    let report = &mut input.document.methods[0];
    report.argmax.mcc = 0.25;
    report.intervals.as_mut().unwrap().mcc = Interval { low: 0.0, high: 0.5 };
    let before = drawn(&input);
    input.document.methods[0].intervals.as_mut().unwrap().mcc.low = -0.05;
    assert_eq!(drawn(&input), before - 1);
}

#[test]
fn headings_go_down_one_level_at_a_time() {
    let (page, _) = Evaluation::full(&labels(3)).render();
    headings_in_order(&page);
}

fn headings_in_order(page: &str) {
    let after = page.match_indices("<h").map(|(at, _)| page.as_bytes()[at + 2]);
    let levels: Vec<u8> = after.filter(u8::is_ascii_digit).map(|digit| digit - b'0').collect();
    assert_eq!(levels.iter().filter(|&&l| l == 1).count(), 1);
    assert!(levels[0] == 1 && levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
}
