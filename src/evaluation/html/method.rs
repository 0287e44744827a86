//! The section of one method.

use std::fmt::Write as _;

use super::lines::{self, Kind, TOLD_APART};
use super::plot::{Axes, Svg, coordinate, line};
use super::table::{Cell, ROOM, Table, name};
use super::text::{NONE, classes, decimals, escape, number, percent, plural, proportion, range, with_interval};
use super::{confusion, reliability};
use crate::evaluation::curves::ClassCurves;
use crate::evaluation::interval::{Interval, Proportion};
use crate::evaluation::operating::{Goal, OperatingPoint, Rates};
use crate::evaluation::report::{ClassReport, MethodReport};
use crate::evaluation::subgroups::SubgroupTable;

/// The section; `name` is part of its ids.
pub(super) fn section(name: &str, report: &MethodReport, curves: &[ClassCurves]) -> String {
    let mut out = format!(
        "<section class=\"method\" aria-labelledby=\"{name}\">\n<h2 id=\"{name}\">Method: {}</h2>\n<p>{} of {}.{}</p>\n",
        report.method,
        plural(report.n as u64, "test row"),
        classes(report.argmax.per_class.len()),
        drawn(report)
    );
    out.push_str("<h3>Classes</h3>\n");
    out.push_str(&class_table(&format!("{name}-classes"), report));
    if !report.absent_classes.is_empty() {
        let labels: Vec<String> = report.absent_classes.iter().map(|label| escape(label)).collect();
        let _ = writeln!(
            out,
            "<p class=\"note\">Without a row in the test split, and left out of mAUC and mAP: {}.</p>",
            labels.join(", ")
        );
    }
    let class = if confusion::is_broad(report) { "turned" } else { "upright" };
    let _ = write!(out, "<div class=\"{class}\">\n<h3>Confusion matrix</h3>\n{}</div>\n", confusions(name, report));
    out.push_str("<h3>ROC and precision-recall curves</h3>\n");
    out.push_str(&curve_figures(report, curves));
    out.push_str("<h3>Calibration</h3>\n");
    out.push_str(&calibration(name, report));
    out.push_str("<h3>Operating points</h3>\n");
    out.push_str(&operating_points(name, &report.operating_points));
    out.push_str("<h3>Subgroups</h3>\n");
    if report.subgroups.is_empty() {
        out.push_str("<p class=\"note\">No column for subgroups was named.</p>\n");
    } else {
        out.push_str("<p>The fewer rows a group has, the wider its interval usually is. Where intervals overlap, a difference between groups may be chance.</p>\n");
    }
    for (index, table) in report.subgroups.iter().enumerate() {
        out.push_str(&subgroups(&format!("{name}-subgroups-{index}"), report, table));
    }
    out.push_str("</section>\n");
    out
}

/// How the intervals came about.
fn drawn(report: &MethodReport) -> String {
    let (Some(intervals), Some(samples)) = (&report.intervals, samples(report)) else {
        let shown = !report.subgroups.is_empty() || !report.operating_points.is_empty();
        let together =
            |group| format!(" Intervals of test rows below count rows with the same {} together.", escape(group));
        let together = report.grouped_by.as_deref().filter(|_| shown).map_or_else(String::new, together);
        return format!(" No bootstrap intervals were asked for.{together}");
    };
    format!(" Small figures in the table of classes are {} intervals from {samples}.", percent(intervals.level))
}

/// What the bootstrap drew; `None` without.
pub(super) fn samples(report: &MethodReport) -> Option<String> {
    let intervals = report.intervals.as_ref()?;
    let units = match &intervals.group {
        Some(group) => format!("{} groups by {}, each drawn whole", intervals.units, escape(group)),
        None => plural(intervals.units as u64, "row"),
    };
    Some(format!("{} bootstrap samples of {units} (seed {})", intervals.resamples, intervals.seed))
}

fn class_table(id: &str, report: &MethodReport) -> String {
    let thresholds = report.thresholded.as_ref().map(|t| &t.thresholds);
    let mut table = Table::new(
        id,
        "plain",
        "Precision, recall and F1 from the class that scores highest in a row; AUC and AP from the ranking",
    );
    let mut head = vec!["id and class", "precision", "recall", "F1", "AUC", "AP", "rows"];
    head.extend(thresholds.map(|_| "threshold"));
    table.head.push(head.into_iter().map(Cell::column).collect());
    for (id, class) in report.argmax.per_class.iter().enumerate() {
        let mut cells = vec![Cell::class(Some(id), &class.label, usize::MAX)];
        cells.extend(figures(report, id, class).map(Cell::number));
        cells.push(Cell::number(class.support.to_string()));
        if let Some(thresholds) = thresholds {
            cells.push(Cell::number(decimals(thresholds.get(id).copied(), 2)));
        }
        table.body.push(cells);
    }
    table.html()
}

fn figures(report: &MethodReport, id: usize, class: &ClassReport) -> [String; 5] {
    let intervals = report.intervals.as_ref().and_then(|i| i.per_class.get(id));
    // of nothing these are 0 by convention, which says nothing
    let predicted: u64 = report.argmax.confusion.iter().filter_map(|row| row.get(id)).sum();
    let counted = |value: f64, rows: u64| (rows > 0).then_some(value);
    [
        with_interval(counted(class.prf.precision, predicted), intervals.map(|i| i.precision)),
        with_interval(counted(class.prf.recall, class.support), intervals.and_then(|i| i.recall)),
        with_interval(counted(class.prf.f1, class.support), intervals.and_then(|i| i.f1)),
        with_interval(class.auc, intervals.and_then(|i| i.auc)),
        number(class.average_precision),
    ]
}

fn confusions(name: &str, report: &MethodReport) -> String {
    let id = format!("{name}-confusion");
    if let Some(table) = confusion::table(&id, confusion::CAPTION, report) {
        return format!("<p class=\"note\">{}</p>\n{table}", confusion::NOTE);
    }
    let mut out = format!(
        "<p class=\"note\">The matrix of {} is too large for this page: it is in report.json.</p>\n",
        classes(report.argmax.confusion.len())
    );
    match confusion::most_frequent(&id, report) {
        Some(table) => out.push_str(&table),
        None => out.push_str("<p class=\"note\">No row was confused.</p>\n"),
    }
    out
}

fn curve_figures(report: &MethodReport, curves: &[ClassCurves]) -> String {
    let plots: Vec<(Kind, Svg)> = [Kind::Roc, Kind::PrecisionRecall]
        .into_iter()
        .filter_map(|kind| Some((kind, lines::plot(kind, report, curves)?)))
        .collect();
    if plots.is_empty() {
        return "<p class=\"note\">No class has a curve: one needs rows of the class and others.</p>\n".to_owned();
    }
    let mut out = String::from("<div class=\"figures\">\n");
    for (kind, plot) in plots {
        let legend = match kind {
            Kind::Roc => "Each class against all others, with its AUC. The grey diagonal is what chance gives.",
            Kind::PrecisionRecall => "Each class against all others, with its AP, the area below its steps.",
        };
        let _ = writeln!(
            out,
            "<figure>\n{}\n<figcaption><b>{}.</b> {legend}</figcaption>\n</figure>",
            plot.inline(),
            kind.name()
        );
    }
    out.push_str("</div>\n");
    if curves.iter().filter(|c| c.roc.is_some() || c.precision_recall.is_some()).count() > TOLD_APART {
        let _ = writeln!(
            out,
            "<p class=\"note\">The {TOLD_APART} classes of the lowest AUC have colours of their own, the others are grey; the table of classes has all figures.</p>"
        );
    }
    out
}

fn calibration(name: &str, report: &MethodReport) -> String {
    let calibration = &report.calibration;
    let Some(plot) = reliability::plot(report) else {
        return "<p class=\"note\">There are no rows to judge calibration by.</p>\n".to_owned();
    };
    let mut bins = Table::new(&format!("{name}-bins"), "plain", "Rows by confidence, as in the diagram");
    bins.head.push(["confidence", "rows", "mean confidence", "share right"].map(Cell::column).into_iter().collect());
    for bin in &calibration.bins {
        bins.body.push(vec![
            Cell::row(format!("{} to {}", number(bin.low), number(bin.high))),
            Cell::number(bin.n.to_string()),
            Cell::number(number(bin.confidence)),
            Cell::number(number(bin.accuracy)),
        ]);
    }
    let mut scores = Table::new(&format!("{name}-calibration"), "plain", "How well scores are probabilities");
    scores.head.push(["figure", "value", "best"].map(Cell::column).into_iter().collect());
    for (figure, value) in [
        ("Expected calibration error (ECE)", calibration.ece),
        ("Largest calibration error", calibration.mce),
        ("Brier score", calibration.brier),
        ("Log loss", calibration.log_loss),
    ] {
        scores.body.push(vec![Cell::row(figure), Cell::number(number(value)), Cell::number("0")]);
    }
    format!(
        "<div class=\"figures\">\n<figure>\n{}\n<figcaption><b>Reliability diagram.</b> Bars and dots: share of right rows. Dashed: where scores \
         are true probabilities. Below: how many rows.</figcaption>\n</figure>\n<div>\n{}<details>\n<summary>The diagram in numbers</summary>\n{}</details>\n\
         </div>\n</div>\n",
        plot.inline(),
        scores.html(),
        bins.html()
    )
}

fn operating_points(name: &str, points: &[OperatingPoint]) -> String {
    if points.is_empty() {
        return "<p class=\"note\">There are none: they are chosen on a validation split, for targets that the job names.</p>\n".to_owned();
    }
    let caption = "Thresholds chosen on the validation split, and what they reach there and on the test split";
    let mut table = Table::new(&format!("{name}-points"), "plain", caption);
    table.groups = vec![3, 2, 2];
    table.head.push(vec![
        Cell::tall("class"),
        Cell::tall("target").of("text"),
        Cell::tall("threshold"),
        Cell::columns(2, "validation"),
        Cell::columns(2, "test"),
    ]);
    table
        .head
        .push(["sensitivity", "specificity", "sensitivity", "specificity"].map(Cell::column).into_iter().collect());
    for point in points {
        let goal = match point.goal {
            Goal::Sensitivity => "sensitivity",
            Goal::Specificity => "specificity",
        };
        let mut cells = vec![
            Cell::class(None, &point.label, ROOM),
            Cell::text(format!("{goal} \u{2265}\u{a0}{}", number(point.target))),
            // to apply it: scores near 0 or 1 need their digits
            Cell::number(point.threshold.map_or_else(|| NONE.to_owned(), |t| format!("{t:.6}"))),
        ];
        for rates in [&point.validation, &point.test] {
            cells.extend(rate_cells(rates.as_ref()));
        }
        table.body.push(cells);
    }
    let mut out = table.html();
    if points.iter().any(|p| p.threshold.is_none()) {
        let _ = writeln!(
            out,
            "<p class=\"note\">{NONE} as threshold: none reaches the target on the validation split, or its rows are all or none of the class.</p>"
        );
    }
    out
}

fn rate_cells(rates: Option<&Rates>) -> [Cell; 2] {
    let shares = [rates.map(|r| &r.sensitivity), rates.map(|r| &r.specificity)];
    shares.map(|share| Cell::number(share.map_or_else(|| NONE.to_owned(), proportion)))
}

fn subgroups(id: &str, report: &MethodReport, subgroups: &SubgroupTable) -> String {
    let column = name(&subgroups.column, ROOM);
    let caption = format!(
        "Subgroups by {column}; the dashed line is the accuracy of all rows, the whiskers are 95\u{a0}% intervals"
    );
    let mut table = Table::new(id, "plain", caption);
    table.head.push(vec![
        Cell::words(&column),
        Cell::column("rows"),
        Cell::column("accuracy"),
        Cell::words("from 0 to 1"),
        Cell::column("macro F1"),
        Cell::column("mAUC"),
    ]);
    for group in &subgroups.groups {
        let accuracy = &group.accuracy;
        table.body.push(vec![
            Cell::class(None, &group.value, ROOM),
            Cell::number(group.n.to_string()),
            Cell::number(with_interval(accuracy.value, accuracy.interval())),
            Cell::of_class("whisker", whisker(&group.value, accuracy, report.argmax.accuracy)),
            Cell::number(number(group.macro_f1)),
            Cell::number(number(group.mauc)),
        ]);
    }
    table.html()
}

/// A dot for the share and a line for its interval.
fn whisker(value: &str, accuracy: &Proportion, overall: f64) -> String {
    // as far as possible the axes of the plots: here only their horizontal one
    let axes = Axes { left: 6.0, top: 0.0, side: 148.0 };
    let (height, middle) = (20.0, 10.0);
    let mut body = String::new();
    for tick in [0.0, 0.5, 1.0] {
        line(&mut body, "grid", super::plot::GRID, [axes.x(tick), 3.0, axes.x(tick), height - 3.0]);
    }
    line(&mut body, "grid", super::plot::GRID, [axes.x(0.0), middle, axes.x(1.0), middle]);
    if overall.is_finite() {
        line(&mut body, "overall", super::plot::MUTED, [axes.x(overall), 0.0, axes.x(overall), height]);
    }
    let finite = |value: Option<f64>| value.filter(|v| v.is_finite());
    let ends = finite(accuracy.low).zip(finite(accuracy.high));
    if let Some((low, high)) = ends {
        axes.interval(&mut body, (low, high), middle, 4.0);
    }
    if let Some(share) = finite(accuracy.value) {
        let x = coordinate(axes.x(share));
        let _ = write!(body, "\n<circle class=\"dot\" fill=\"#0072b2\" cx=\"{x}\" cy=\"{middle}\" r=\"4\"/>");
    }
    let interval = ends.and_then(|(low, high)| range(Interval { low, high }));
    let svg = Svg {
        class: "whiskers",
        width: 160.0,
        height,
        title: format!("Accuracy of {value}"),
        description: format!(
            "{}, interval {}, of {}; all rows {}",
            number(accuracy.value),
            interval.unwrap_or_else(|| NONE.to_owned()),
            plural(accuracy.n, "row"),
            number(overall)
        ),
        body,
    };
    svg.inline()
}
