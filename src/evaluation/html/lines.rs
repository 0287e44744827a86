//! ROC and precision-recall curves of a method's classes.

use std::fmt::Write as _;

use super::plot::{Anchor, Axes, OTHER, Svg, coordinate, diagonal, text};
use super::text::{NONE, clean, escape, number, shorten};
use crate::evaluation::curves::{ClassCurves, PrCurve, RocCurve};
use crate::evaluation::report::MethodReport;

/// The colours and dashes of as many classes. The hues are those of Okabe and Ito, which people with any kind of colour vision can tell
/// apart, darker where they would be faint on white; no two dashes are alike, so that the lines differ without colour, too.
const SERIES: [(&str, &str); 10] = [
    ("#0072b2", ""),
    ("#d55e00", "7 3"),
    ("#00805e", "2 2.5"),
    ("#b0508f", "9 3 2 3"),
    ("#a86c00", "14 4"),
    ("#3d93c9", "5 2 1 2"),
    ("#1b1f24", "1 3.5"),
    ("#0072b2", "9 3 2 3 2 3"),
    ("#d55e00", "18 3 3 3"),
    ("#00805e", "5 5"),
];

/// Which of the two kinds of curves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Roc,
    PrecisionRecall,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Roc => "ROC curves",
            Kind::PrecisionRecall => "Precision-recall curves",
        }
    }

    fn figure(self) -> &'static str {
        match self {
            Kind::Roc => "AUC",
            Kind::PrecisionRecall => "AP",
        }
    }
}

/// A class's line.
struct Line<'a> {
    label: &'a str,
    /// AUC or average precision.
    value: Option<f64>,
    path: String,
    /// Place in [`SERIES`]; `None`: grey.
    series: Option<usize>,
}

const AXES: Axes = Axes { left: 46.0, top: 12.0, side: 322.0 };
const WIDTH: f64 = 380.0;
const LEGEND_ROW: f64 = 19.0;

/// How many classes are told apart.
pub(super) const TOLD_APART: usize = SERIES.len();

/// The picture; `None` where no class has a curve.
pub(super) fn plot(kind: Kind, report: &MethodReport, curves: &[ClassCurves]) -> Option<Svg> {
    let lines = lines(kind, report, curves);
    if lines.is_empty() {
        return None;
    }
    let mut body = String::new();
    let axes = AXES;
    match kind {
        Kind::Roc => {
            axes.draw(&mut body, Some("1 \u{2212} specificity"), "sensitivity");
            // what chance would give
            diagonal(&mut body, &axes);
        }
        Kind::PrecisionRecall => axes.draw(&mut body, Some("recall (sensitivity)"), "precision"),
    }
    let (grey, coloured): (Vec<&Line<'_>>, Vec<&Line<'_>>) = lines.iter().partition(|l| l.series.is_none());
    for line in grey.iter().chain(&coloured) {
        draw(&mut body, kind, line);
    }
    let mut y = axes.y(0.0) + 60.0;
    for line in &coloured {
        let value = format!("{} {}", kind.figure(), number(line.value));
        legend(&mut body, y, line.series, line.label, &value, Some(line.label));
        y += LEGEND_ROW;
    }
    if !grey.is_empty() {
        legend(&mut body, y, None, &others(grey.len()), &format!("{} {}", kind.figure(), spread(&grey)), None);
        y += LEGEND_ROW;
    }
    Some(Svg {
        class: "plot",
        width: WIDTH,
        height: y - LEGEND_ROW + 12.0,
        title: format!("{}, {}", kind.name(), report.method),
        description: describe(kind, &coloured, &grey),
        body,
    })
}

fn lines<'a>(kind: Kind, report: &MethodReport, curves: &'a [ClassCurves]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    // the classes in colour are the same in both pictures
    let mut order: Vec<(usize, f64)> = Vec::new();
    for (id, class) in curves.iter().enumerate() {
        let figures = report.argmax.per_class.get(id);
        let (path, value) = match kind {
            Kind::Roc => (class.roc.as_ref().map(roc), figures.and_then(|c| c.auc)),
            Kind::PrecisionRecall => {
                (class.precision_recall.as_ref().map(steps), figures.and_then(|c| c.average_precision))
            }
        };
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            order.push((lines.len(), figures.and_then(|c| c.auc).filter(|v| v.is_finite()).unwrap_or(2.0)));
            lines.push(Line { label: &class.label, value, path, series: None });
        }
    }
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.truncate(TOLD_APART);
    order.sort_by_key(|&(index, _)| index);
    for (series, (index, _)) in order.into_iter().enumerate() {
        lines[index].series = Some(series);
    }
    lines
}

fn roc(curve: &RocCurve) -> String {
    AXES.path(curve.fpr.iter().copied().zip(curve.tpr.iter().copied()))
}

/// Steps, whose area is the average precision. The last point belongs to no threshold and is not drawn.
fn steps(curve: &PrCurve) -> String {
    let points: Vec<(f64, f64)> = curve.recall.iter().copied().zip(curve.precision.iter().copied()).collect();
    let corners = points.windows(2).flat_map(|pair| [pair[0], (pair[1].0, pair[0].1)]);
    AXES.path(corners)
}

fn draw(out: &mut String, kind: Kind, line: &Line<'_>) {
    let (label, path) = (escape(line.label), &line.path);
    let (class, stroke, width, dash) = style(line.series);
    let _ = write!(
        out,
        "\n<path class=\"{class}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\"{dash} stroke-linejoin=\"round\" d=\"{path}\">\
         <title>{label}, {} {}</title></path>",
        kind.figure(),
        number(line.value)
    );
}

/// CSS class, colour, width and the attribute for the dash.
fn style(series: Option<usize>) -> (String, &'static str, &'static str, String) {
    match series {
        None => ("other".to_owned(), OTHER, "1", String::new()),
        Some(series) => {
            let (stroke, dash) = SERIES[series];
            let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
            (format!("s{series}"), stroke, "1.8", dash)
        }
    }
}

fn legend(out: &mut String, y: f64, series: Option<usize>, name: &str, value: &str, full: Option<&str>) {
    let (class, stroke, width, dash) = style(series);
    let _ = write!(out, "\n<g>");
    if let Some(full) = full {
        let _ = write!(out, "<title>{}</title>", escape(full));
    }
    let _ = write!(
        out,
        "<line class=\"{class}\" stroke=\"{stroke}\" stroke-width=\"{width}\"{dash} x1=\"12\" y1=\"{y}\" x2=\"52\" y2=\"{y}\"/>",
        y = coordinate(y - 4.0)
    );
    text(out, Anchor::Start, "ink", 12.0, (60.0, y), &shorten(name, 32));
    text(out, Anchor::End, "ink", 12.0, (WIDTH - 12.0, y), value);
    out.push_str("</g>");
}

fn others(count: usize) -> String {
    if count == 1 { "1 other class".to_owned() } else { format!("{count} other classes") }
}

/// The values of several lines in short.
fn spread(lines: &[&Line<'_>]) -> String {
    let values = || lines.iter().filter_map(|l| l.value).filter(|v| v.is_finite());
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    match (low.is_finite(), low == high) {
        (false, _) => NONE.to_owned(),
        (true, true) => number(low),
        (true, false) => format!("{} to {}", number(low), number(high)),
    }
}

fn describe(kind: Kind, coloured: &[&Line<'_>], grey: &[&Line<'_>]) -> String {
    let of = |line: &&Line<'_>| format!("{} {}", clean(line.label), number(line.value));
    let mut out = format!("{} by class: {}", kind.figure(), coloured.iter().map(of).collect::<Vec<_>>().join("; "));
    if !grey.is_empty() {
        let _ = write!(out, "; {}: {}", others(grey.len()), spread(grey));
    }
    out.push('.');
    out
}
