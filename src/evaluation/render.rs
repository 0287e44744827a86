//! Evaluation reports for people: aligned text for terminals, Markdown for run records and model cards.

use std::fmt::Write as _;

use super::bootstrap::Intervals;
use super::gate::Requirement;
use super::interval::Interval;
use super::metrics::Prf;
use super::report::MethodReport;
use super::subgroups::SubgroupTable;

/// Above this many classes the confusion matrix is left to the JSON report.
const CONFUSION_LIMIT: usize = 30;

/// A table of all methods, then the classes of each, as aligned plain text that ends in a line break.
#[must_use]
pub fn render_text(reports: &[MethodReport], requirements: &[Requirement]) -> String {
    let mut out = align(&summary(reports));
    if !requirements.is_empty() {
        let _ = write!(out, "\n{}", align(&required(requirements)));
    }
    for report in reports {
        let _ = write!(out, "\n{}, {} rows\n{}", report.method, report.n, align(&classes(report)));
        if let Some(rows) = confusion(report) {
            let _ = write!(out, "\nconfusion, row = true class, column = predicted class id\n{}", align(&rows));
        }
        for table in &report.subgroups {
            let _ = write!(out, "\nby {}\n{}", one_line(&table.column), align(&subgroups(table)));
        }
        let _ = out.write_str(&sampled(report).map(|how| format!("\n{how}\n")).unwrap_or_default());
        if !report.absent_classes.is_empty() {
            let _ = writeln!(out, "not in the dataset, left out of mAUC: {}", report.absent_classes.join(", "));
        }
    }
    out
}

/// The same as Markdown tables; headings start at level 3, so that it fits into a longer document.
#[must_use]
pub fn render_markdown(reports: &[MethodReport], requirements: &[Requirement]) -> String {
    let mut out = markdown(&summary(reports));
    if !requirements.is_empty() {
        let _ = write!(out, "\n{}", markdown(&required(requirements)));
    }
    for report in reports {
        let _ = write!(out, "\n### {}, {} rows\n\n{}", report.method, report.n, markdown(&classes(report)));
        if let Some(rows) = confusion(report) {
            let _ = write!(out, "\nConfusion (row: true class, column: predicted class id)\n\n{}", markdown(&rows));
        }
        for table in &report.subgroups {
            let _ = write!(out, "\nBy {}\n\n{}", escape(&table.column), markdown(&subgroups(table)));
        }
        let _ = out.write_str(&sampled(report).map(|how| format!("\n{}\n", escape(&how))).unwrap_or_default());
        if !report.absent_classes.is_empty() {
            let names: Vec<String> = report.absent_classes.iter().map(|n| escape(n)).collect();
            let _ = write!(out, "\nNot in the dataset, left out of mAUC: {}\n", names.join(", "));
        }
    }
    out
}

fn summary(reports: &[MethodReport]) -> Vec<Vec<String>> {
    let mut rows = vec![words(&[
        "method", "decision", "macro P", "macro R", "macro F1", "micro P", "micro R", "micro F1", "accuracy", "MCC",
        "mAUC", "ECE",
    ])];
    for report in reports {
        let argmax = &report.argmax;
        let mut row = vec![report.method.to_string(), "argmax".into()];
        row.extend(prf(&argmax.macro_average));
        row.extend(prf(&argmax.micro_average));
        row.extend([number(Some(argmax.accuracy)), number(Some(argmax.mcc)), number(report.mauc)]);
        row.push(number(Some(report.calibration.ece)));
        rows.push(row);
        rows.extend(report.intervals.as_ref().map(|i| interval_row(report, i)));
        if let Some(thresholded) = &report.thresholded {
            let mut row = vec![report.method.to_string(), "thresholds".into()];
            row.extend(prf(&thresholded.macro_average));
            row.extend(prf(&thresholded.micro_average));
            row.extend(words(&["-", "-", "-", "-"]));
            rows.push(row);
        }
    }
    rows
}

/// The figures' intervals, in the columns of the figures.
fn interval_row(report: &MethodReport, intervals: &Intervals) -> Vec<String> {
    let level = format!("{:.0} % interval", intervals.level * 100.0);
    let mut row = vec![report.method.to_string(), level];
    row.extend(words(&["-", "-"]));
    row.push(span(intervals.macro_f1));
    row.extend(words(&["-", "-", "-"]));
    row.extend([
        span(intervals.accuracy),
        span(intervals.mcc),
        intervals.mauc.map_or_else(|| "-".into(), span),
        "-".into(),
    ]);
    row
}

/// What the intervals come from.
fn sampled(report: &MethodReport) -> Option<String> {
    let Some(intervals) = &report.intervals else {
        let group = report.grouped_by.as_deref().filter(|_| !report.subgroups.is_empty())?;
        return Some(format!("intervals: rows with the same value of {} count together", one_line(group)));
    };
    let group = intervals.group.as_deref().map(|name| format!("values of {}", one_line(name)));
    Some(format!(
        "intervals: {} samples of {} {}",
        intervals.resamples,
        intervals.units,
        group.unwrap_or_else(|| "rows".to_owned())
    ))
}

fn subgroups(table: &SubgroupTable) -> Vec<Vec<String>> {
    let mut rows = vec![words(&["value", "rows", "accuracy", "95 % interval", "macro F1", "mAUC"])];
    for group in &table.groups {
        rows.push(vec![
            one_line(&group.value),
            group.n.to_string(),
            number(group.accuracy.value),
            group.accuracy.interval().map_or_else(|| "-".into(), span),
            number(Some(group.macro_f1)),
            number(group.mauc),
        ]);
    }
    rows
}

fn required(requirements: &[Requirement]) -> Vec<Vec<String>> {
    let mut rows = vec![words(&["requirement", "condition", "value", "met"])];
    for requirement in requirements {
        let (value, met) = (requirement.shown(), if requirement.met { "yes" } else { "NO" });
        rows.push(vec![one_line(&requirement.metric), requirement.condition.clone(), value, met.to_owned()]);
    }
    rows
}

fn classes(report: &MethodReport) -> Vec<Vec<String>> {
    let mut header = words(&["class", "precision", "recall", "F1", "AUC", "AP", "rows"]);
    let thresholds = report.thresholded.as_ref().map(|t| &t.thresholds);
    if thresholds.is_some() {
        header.push("threshold".into());
    }
    let mut rows = vec![header];
    for (id, class) in report.argmax.per_class.iter().enumerate() {
        let mut row = vec![one_line(&class.label)];
        row.extend(prf(&class.prf));
        row.extend([number(class.auc), number(class.average_precision), class.support.to_string()]);
        if let Some(thresholds) = thresholds {
            row.push(thresholds.get(id).map_or_else(|| "-".into(), |t| format!("{t:.2}")));
        }
        rows.push(row);
    }
    rows
}

fn confusion(report: &MethodReport) -> Option<Vec<Vec<String>>> {
    let counts = &report.argmax.confusion;
    if counts.len() > CONFUSION_LIMIT {
        return None;
    }
    let mut header = vec!["class".to_owned()];
    header.extend((0..counts.len()).map(|id| id.to_string()));
    let mut rows = vec![header];
    for (id, (row, class)) in counts.iter().zip(&report.argmax.per_class).enumerate() {
        let mut cells = vec![format!("{id} {}", one_line(&class.label))];
        cells.extend(row.iter().map(u64::to_string));
        rows.push(cells);
    }
    Some(rows)
}

fn prf(prf: &Prf) -> [String; 3] {
    [prf.precision, prf.recall, prf.f1].map(|v| number(Some(v)))
}

fn span(interval: Interval) -> String {
    format!("{:.3} to {:.3}", interval.low, interval.high)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.3}"))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn escape(text: &str) -> String {
    one_line(text).replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;")
}

/// First column to the left, the others to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if c == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn markdown(rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if index == 0 {
            let rule: Vec<&str> = (0..row.len()).map(|c| if c == 0 { "---" } else { "---:" }).collect();
            let _ = writeln!(out, "| {} |", rule.join(" | "));
        }
    }
    out
}
