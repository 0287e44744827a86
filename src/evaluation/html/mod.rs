//! The evaluation as one HTML file for people who decide, and its plots as SVG files.
//!
//! The page needs nothing but itself: style and pictures are inside, there is no script, and it forbids itself to load anything. What
//! users name (labels, subgroups, references) stands in it as text only. The same input gives the same bytes.

mod confusion;
mod lines;
mod method;
mod page;
mod plot;
mod reliability;
mod table;
mod text;

use super::curves::ClassCurves;
use super::gate::Requirement;
use super::report::{Method, MethodReport};

/// Everything the page shows.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What was evaluated, e.g. the report's name.
    pub title: &'a str,
    /// When, as RFC 3339; may be empty.
    pub created: &'a str,
    /// The version of the program.
    pub code_version: &'a str,
    /// What was evaluated on what: name, reference and SHA-256 of each input.
    pub inputs: &'a [(String, String, String)],
    /// The labels' texts, by class id.
    pub labels: &'a [String],
    /// One entry a method.
    pub methods: &'a [MethodReport],
    /// The curves of each method, in the order of `methods`.
    pub curves: &'a [Vec<ClassCurves>],
    /// The gate's requirements; empty: no gate.
    pub requirements: &'a [Requirement],
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
    for (index, (report, name)) in page.methods.iter().zip(names(page.methods)).enumerate() {
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
        let kind = match report.method {
            Method::ZeroShot => "zero-shot",
            Method::Adapter => "adapter",
            Method::Knn { .. } => "knn",
        };
        let name = (2..).map(|n| format!("{kind}-{n}")).find(|name| !names.contains(name)).unwrap_or_default();
        names.push(if names.iter().any(|n| n == kind) { name } else { kind.to_owned() });
    }
    names
}

#[cfg(test)]
mod tests;
