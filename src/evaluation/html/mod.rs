//! The evaluation as one HTML file for people who decide, and its plots as SVG files.
//!
//! The page needs nothing but itself: style and pictures are inside, there is no script, and it forbids itself to load anything. What
//! users name (labels, subgroups, references) stands in it as text only. The same input gives the same bytes.

mod comparison;
mod confusion;
mod lines;
mod method;
mod page;
mod plot;
mod reliability;
mod table;
mod text;

use super::curves::ClassCurves;
use super::document::Document;
use super::gate::Requirement;
use super::report::MethodReport;

/// Everything the page shows.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What was evaluated, e.g. the report's name.
    pub title: &'a str,
    /// When, as RFC 3339; may be empty.
    pub created: &'a str,
    /// The evaluation.
    pub document: &'a Document,
    /// The curves of each method, in the order of the evaluation's.
    pub curves: &'a [Vec<ClassCurves>],
}

/// An evaluation in a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its version, as `data:NAME@VERSION`.
    pub reference: &'a str,
    /// When it was made, as RFC 3339; may be empty.
    pub created: &'a str,
    /// The evaluation.
    pub document: &'a Document,
}

/// Everything the page of two evaluations shows.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// What is compared with.
    pub first: Side<'a>,
    /// What is compared.
    pub second: Side<'a>,
    /// What the second was held to, and how it came out.
    pub requirements: &'a [Requirement],
}

/// The page of two evaluations side by side.
#[must_use]
pub fn render_comparison(page: &Comparison<'_>) -> String {
    comparison::render(page)
}

/// The page.
#[must_use]
pub fn render_html(page: &Page<'_>) -> String {
    page::render(page)
}

/// The name and text of each plot's file.
#[must_use]
pub fn render_plots(page: &Page<'_>) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (index, (report, name)) in page.document.methods.iter().zip(names(&page.document.methods)).enumerate() {
        let curves = curves_of(page, index);
        let plots = [
            ("roc", lines::plot(lines::Kind::Roc, report, curves)),
            ("precision-recall", lines::plot(lines::Kind::PrecisionRecall, report, curves)),
            ("reliability", reliability::plot(report)),
            ("confusion", confusion::plot(report)),
        ];
        for (kind, plot) in plots {
            files.extend(plot.map(|plot| (format!("{name}-{kind}.svg"), plot.file())));
        }
    }
    files
}

fn curves_of<'a>(page: &Page<'a>, method: usize) -> &'a [ClassCurves] {
    page.curves.get(method).map_or(&[], Vec::as_slice)
}

/// A name for each method, of letters and hyphens; a number tells methods of one kind apart.
fn names(methods: &[MethodReport]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for report in methods {
        let kind = report.method.name();
        let name = (2..).map(|n| format!("{kind}-{n}")).find(|name| !names.contains(name)).unwrap_or_default();
        names.push(if names.iter().any(|n| n == kind) { name } else { kind.to_owned() });
    }
    names
}

#[cfg(test)]
mod tests;
