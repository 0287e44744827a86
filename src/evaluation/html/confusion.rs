//! The confusion matrix: as a table in the page, as a picture in a file, and in short where there are many classes.

use std::fmt::Write as _;

use super::plot::{Anchor, INK, Svg, coordinate, rectangle, text, upright};
use super::table::{Cell, ROOM, Table, name};
use super::text::{clean, escape, number, percent, shorten};
use crate::evaluation::report::MethodReport;

/// Above this many classes the matrix is left to the JSON report.
pub(super) const LIMIT: usize = 30;
/// How many confusions are listed then.
pub(super) const LISTED: usize = 20;
/// Above this many classes a printed page is turned.
const BROAD: usize = 12;

const RIGHT: [u8; 3] = [0x00, 0x72, 0xb2];
const WRONG: [u8; 3] = [0xd5, 0x5e, 0x00];

/// What the table shows.
pub(super) const CAPTION: &str =
    "Rows by their true class, in columns by the class that scores highest; below each count its share of the row";
/// What its frames and colours mean.
pub(super) const NOTE: &str =
    "Framed cells on the diagonal were found right. The deeper a colour, the larger the share of its row.";

/// The table; `None` where there are too many classes.
pub(super) fn table(id: &str, caption: impl Into<String>, report: &MethodReport) -> Option<String> {
    let counts = matrix(report)?;
    let class = if is_broad(report) { "heat broad" } else { "heat" };
    let mut table = Table::new(id, class, caption);
    table.groups = vec![1, counts.len(), 1];
    table.head.push(vec![
        Cell::tall("id and true class"),
        Cell::columns(counts.len(), "id of the predicted class"),
        Cell::tall("rows"),
    ]);
    table.head.push(
        labels(report)
            .enumerate()
            .map(|(id, label)| Cell::column(format!("<abbr title=\"{}\">{id}</abbr>", escape(label))))
            .collect(),
    );
    for (truth, (row, label)) in counts.iter().zip(labels(report)).enumerate() {
        let total: u64 = row.iter().sum();
        let mut cells = vec![Cell::class(Some(truth), label, 40)];
        for (predicted, &count) in row.iter().enumerate() {
            let share = share(count, total);
            // ten steps: the style sheet has a ground for each
            let mut class = format!("h{}", (share * 10.0).ceil() as u8);
            if truth == predicted {
                class.push_str(" right");
            }
            let html = if count == 0 { "0".to_owned() } else { format!("{count} <small>{}</small>", percent(share)) };
            cells.push(Cell::of_class(&class, html));
        }
        cells.push(Cell::number(total.to_string()));
        table.body.push(cells);
    }
    Some(table.html())
}

/// Whether the table is too broad for an upright page of paper.
pub(super) fn is_broad(report: &MethodReport) -> bool {
    matrix(report).is_some_and(|counts| counts.len() > BROAD)
}

/// The most frequent confusions, as a table; `None` without any.
pub(super) fn most_frequent(id: &str, report: &MethodReport) -> Option<String> {
    let counts = &report.argmax.confusion;
    let mut wrong: Vec<(u64, usize, usize)> = Vec::new();
    for (truth, row) in counts.iter().enumerate() {
        wrong.extend(row.iter().enumerate().filter(|&(p, &n)| p != truth && n > 0).map(|(p, &n)| (n, truth, p)));
    }
    if wrong.is_empty() {
        return None;
    }
    wrong.sort_by_key(|&(count, truth, predicted)| (std::cmp::Reverse(count), truth, predicted));
    let caption = format!("The {} most frequent confusions", wrong.len().min(LISTED));
    let mut table = Table::new(id, "plain", caption);
    table.head.push(vec![
        Cell::words("true class"),
        Cell::words("predicted class"),
        Cell::column("rows"),
        Cell::column("share of the true class"),
    ]);
    let label = |id: usize| report.argmax.per_class.get(id).map_or("", |c| c.label.as_str());
    for &(count, truth, predicted) in wrong.iter().take(LISTED) {
        let total: u64 = counts[truth].iter().sum();
        table.body.push(vec![
            Cell::class(None, label(truth), ROOM),
            Cell::text(name(label(predicted), ROOM)),
            Cell::number(count.to_string()),
            Cell::number(number(share(count, total))),
        ]);
    }
    Some(table.html())
}

/// The picture; `None` where there are too many classes.
pub(super) fn plot(report: &MethodReport) -> Option<Svg> {
    let counts = matrix(report)?;
    let (cell, left, top) = (40.0, 200.0, 44.0);
    let place = |index: usize| cell * index as f64;
    let side = place(counts.len());
    let mut body = String::new();
    text(&mut body, Anchor::Middle, "ink", 12.0, (left + side / 2.0, 16.0), "id of the predicted class");
    upright(&mut body, (14.0, top + side / 2.0), "true class");
    for (truth, (row, label)) in counts.iter().zip(labels(report)).enumerate() {
        let total: u64 = row.iter().sum();
        let y = top + place(truth);
        text(
            &mut body,
            Anchor::Middle,
            "muted",
            11.0,
            (left + place(truth) + cell / 2.0, top - 8.0),
            &truth.to_string(),
        );
        let _ = write!(body, "\n<g><title>{}</title>", escape(label));
        let name = format!("{} {truth}", shorten(label, 22));
        text(&mut body, Anchor::End, "ink", 11.0, (left - 8.0, y + cell / 2.0 + 4.0), &name);
        body.push_str("</g>");
        for (predicted, &count) in row.iter().enumerate() {
            let share = share(count, total);
            let x = left + place(predicted);
            let base = if truth == predicted { RIGHT } else { WRONG };
            let says = format!("{} as {predicted}: {count}, {}", clean(label), percent(share));
            rectangle(&mut body, "cell", &tint(base, share), [x + 0.5, y + 0.5, cell - 1.0, cell - 1.0], &says);
            if truth == predicted {
                let (x, y, side) = (coordinate(x + 2.5), coordinate(y + 2.5), coordinate(cell - 5.0));
                let _ = write!(
                    body,
                    "\n<rect fill=\"none\" stroke=\"{INK}\" stroke-width=\"1.5\" x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\"/>"
                );
            }
            let middle = x + cell / 2.0;
            if count == 0 {
                text(&mut body, Anchor::Middle, "muted", 11.0, (middle, y + cell / 2.0 + 4.0), "0");
                continue;
            }
            text(&mut body, Anchor::Middle, "ink", 11.0, (middle, y + cell / 2.0 - 1.0), &count.to_string());
            text(&mut body, Anchor::Middle, "ink", 9.0, (middle, y + cell / 2.0 + 11.0), &percent(share));
        }
    }
    Some(Svg {
        class: "plot",
        width: left + side + 12.0,
        height: top + side + 12.0,
        title: format!("Confusion matrix, {}", report.method),
        description: describe(report),
        body,
    })
}

fn describe(report: &MethodReport) -> String {
    let found: Vec<String> = report
        .argmax
        .confusion
        .iter()
        .zip(labels(report))
        .enumerate()
        .map(|(id, (row, label))| {
            let right = row.get(id).copied().unwrap_or(0);
            format!("{} {right} of {}", clean(label), row.iter().sum::<u64>())
        })
        .collect();
    format!("Rows found right, by class: {}.", found.join("; "))
}

fn matrix(report: &MethodReport) -> Option<&Vec<Vec<u64>>> {
    Some(&report.argmax.confusion).filter(|counts| !counts.is_empty() && counts.len() <= LIMIT)
}

fn labels(report: &MethodReport) -> impl Iterator<Item = &str> {
    report.argmax.per_class.iter().map(|class| class.label.as_str())
}

fn share(count: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { count as f64 / total as f64 }
}

/// `base` on white, at most half of it: black letters can be read on it.
fn tint(base: [u8; 3], share: f64) -> String {
    let [r, g, b] = base.map(|c| (255.0 - (255.0 - f64::from(c)) * share * 0.5).round() as u8);
    format!("#{r:02x}{g:02x}{b:02x}")
}
