//! The page around the methods: header, verdict, summary, how to read it, origin.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::table::{Cell, Table};
use super::text::{NONE, classes, escape, plural, with_interval};
use super::{Page, curves_of, method, names};
use crate::evaluation::compare::FIGURES;
use crate::evaluation::gate::{Requirement, figure};
use crate::evaluation::report::MethodReport;

const STYLE: &str = include_str!("style.css");

/// What the figures mean, by heading.
const READING: [(&str, &str); 6] = [
    (
        "Highest score and thresholds",
        "Accuracy, macro F1, MCC, and precision, recall and F1 of a class take the class that scores highest in each row. Thresholded macro F1 \
         asks about each class alone, whether its score reaches the class\u{2019}s threshold, so that a row can have several classes or none. \
         Those thresholds are chosen on the validation split and applied to the test split as they are.",
    ),
    AVERAGES,
    (
        "Intervals",
        "Small figures below a number are a 95 % interval: how far the number might lie elsewhere if other rows of the same kind had been \
         tested. In the summary and the tables of classes they come from the bootstrap, those of accuracy, precision and recall being at least as wide \
         as Wilson\u{2019}s; in the tables of operating points and subgroups they are Wilson\u{2019}s. Where several rows are of one patient, the \
         job can say so: then patients are drawn, and rows of one count for less than as many of different ones, though of few patients little is \
         known. Otherwise, and on the validation split always, they are too narrow. A figure that is the same in every sample, as 1.000, seems surer than it is. All \
         hold the trained model and its thresholds fixed, and say nothing about data of another kind.",
    ),
    CALIBRATION,
    (
        "Operating points",
        "Each threshold is the one that reaches the target on the validation split at the best value of the other figure. What it \
         reaches on the test split is the estimate to go by; it can miss the target, all the more where few rows were there to choose it by.",
    ),
    LIMITS,
];
pub(super) const AVERAGES: (&str, &str) = (
    "Averages",
    "Macro figures are means over classes: a rare class counts as much as a frequent one. Macro F1 is over the classes that occur in the \
         test split or are predicted, thresholded macro F1 over all. AUC is the chance that a row of the class \
         scores above a row of another, 0.5 being a guess. AP (average precision) is the area below the precision-recall curve; what a guess \
         gives is the share of the class\u{2019}s rows. mAUC and mAP are their means over the classes that are in the test split. MCC is 1 where \
         all rows are right and 0 for a guess.",
);
pub(super) const CALIBRATION: (&str, &str) = (
    "Calibration",
    "A model is calibrated if of the rows that it scores at 0.8 eight of ten are right. The expected calibration error (ECE) is the mean \
         distance from that over all rows, in bins of confidence. Bars below the dashed line are overconfident, bars above it too cautious. \
         Where the scores are no probabilities, as votes of neighbours, this is a description only.",
);
pub(super) const LIMITS: (&str, &str) = (
    "Limits",
    "This is a measurement on one test split. It is no statement of safety or fitness for use in patients, and neither the model nor this \
         report is a medical device. Figures can differ for other devices, sites and patients, and for groups that are rare here.",
);

pub(super) fn render(page: &Page<'_>) -> String {
    let document = page.document;
    let names = names(&document.methods);
    let title = escape(page.title);
    let mut out = head(&format!("{title}: evaluation report"));
    header(&mut out, "Evaluation report", &title, &facts(page));
    contents(&mut out, names.iter().cloned().zip(document.methods.iter().map(|report| report.method.to_string())));
    out.push_str("<main>\n");
    let caption = "Requirements, and what was measured on the test split";
    verdict(&mut out, &document.requirements, caption, "no requirements were set");
    out.push_str("<section aria-labelledby=\"summary\">\n<h2 id=\"summary\">Summary</h2>\n");
    if document.methods.is_empty() {
        out.push_str("<p>No method was evaluated.</p>\n");
    } else {
        out.push_str(&summary(&document.methods));
    }
    out.push_str("</section>\n");
    for (index, (report, name)) in document.methods.iter().zip(&names).enumerate() {
        out.push_str(&method::section(name, report, curves_of(page, index)));
    }
    reading(&mut out, &READING);
    origin(&mut out, page);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Everything before the header; the title is HTML.
pub(super) fn head(title: &str) -> String {
    // the policy lets a browser load and run nothing, whatever a text in the page might try
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    )
}

/// The header; title and the values of facts are HTML.
pub(super) fn header(out: &mut String, kind: &str, title: &str, facts: &[(&str, String)]) {
    let _ = write!(out, "<header>\n<p class=\"kind\">{kind}</p>\n<h1>{title}</h1>\n<dl class=\"facts\">\n");
    for (name, html) in facts {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{html}</dd></div>");
    }
    out.push_str("</dl>\n</header>\n");
}

fn facts(page: &Page<'_>) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if !page.created.is_empty() {
        facts.push(("Made", format!("<time>{}</time>", date(page.created))));
    }
    let document = page.document;
    facts.push(("Code version", format!("<code>{}</code>", escape(&document.code_version))));
    if let Some(first) = document.methods.first() {
        // all methods see the same rows
        let rows = format!("{} of {}", plural(first.n as u64, "row"), classes(document.labels.len()));
        facts.push(("Test split", rows));
    }
    facts
}

/// In UTC and for people; what is no RFC 3339 stays as it is.
pub(super) fn date(created: &str) -> String {
    let form = format_description!("[day padding:none] [month repr:long] [year], [hour]:[minute] UTC");
    let parsed = OffsetDateTime::parse(created, &Rfc3339).ok();
    let shown = parsed.and_then(|at| at.checked_to_offset(time::UtcOffset::UTC)).and_then(|at| at.format(&form).ok());
    shown.unwrap_or_else(|| escape(created))
}

/// Links to the sections; of each method its id and what it is called.
pub(super) fn contents(out: &mut String, methods: impl Iterator<Item = (String, String)>) {
    out.push_str("<nav aria-label=\"Contents\">\n<ul>\n");
    let fixed = |id: &str, shown: &str| (id.to_owned(), shown.to_owned());
    let before = [fixed("verdict", "Verdict"), fixed("summary", "Summary")];
    let after = [fixed("reading", "How to read this"), fixed("origin", "Origin")];
    for (id, shown) in before.into_iter().chain(methods).chain(after) {
        let _ = writeln!(out, "<li><a href=\"#{id}\">{shown}</a></li>");
    }
    out.push_str("</ul>\n</nav>\n");
}

/// The requirements under `caption` or, without any, what `none` says: the end of a heading.
pub(super) fn verdict(out: &mut String, requirements: &[Requirement], caption: &str, none: &str) {
    let missed = requirements.iter().filter(|r| !r.met).count();
    let (class, heading) = match (requirements.len(), missed) {
        (0, _) => ("none", format!("Verdict: {none}")),
        (all, 0) => ("passed", format!("Verdict: gate passed, {all} of {} met", plural(all as u64, "requirement"))),
        (all, missed) => {
            ("failed", format!("Verdict: gate failed, {missed} of {} not met", plural(all as u64, "requirement")))
        }
    };
    let _ = writeln!(
        out,
        "<section class=\"verdict {class}\" aria-labelledby=\"verdict\">\n<h2 id=\"verdict\">{heading}</h2>"
    );
    if requirements.is_empty() {
        out.push_str("<p>The figures below were not held to anything.</p>\n");
    } else {
        let mut table = Table::new("requirements", "plain", caption);
        table.head.push(vec![
            Cell::words("figure"),
            Cell::words("required"),
            Cell::column("measured"),
            Cell::words("result"),
        ]);
        for requirement in requirements {
            let result = if requirement.met { "met" } else { "<strong>not met</strong>" };
            table.body.push(vec![
                // a long name may be parted where its parts are
                Cell::row(escape(&requirement.metric).replace('.', ".<wbr>").replace('_', "_<wbr>")),
                Cell::text(escape(&requirement.condition)),
                // with enough decimals to tell it from the bound
                Cell::number(requirement.value.map_or_else(|| NONE.to_owned(), |_| escape(&requirement.shown()))),
                Cell::text(result),
            ]);
        }
        out.push_str(&table.html());
    }
    out.push_str("</section>\n");
}

/// What a figure is called, and where its best is if that is not what one would think.
pub(super) fn figure_name(name: &str, shown: &str) -> String {
    let low_is_good = ["ece", "brier", "log_loss"].contains(&name);
    format!("{shown}{}", if low_is_good { " (0 is best)" } else { "" })
}

fn summary(methods: &[MethodReport]) -> String {
    let mut table = Table::new("figures", "plain", "All methods on the test split");
    let mut head = vec![Cell::column("figure")];
    head.extend(methods.iter().map(|r| Cell::column(r.method.to_string())));
    table.head.push(head);
    // the others are in the sections
    for (name, shown) in FIGURES.into_iter().filter(|(name, _)| !["brier", "log_loss"].contains(name)) {
        let mut cells = vec![Cell::row(figure_name(name, shown))];
        cells.extend(methods.iter().map(|report| {
            let (value, interval) = figure(report, name, None);
            Cell::number(with_interval(value, interval))
        }));
        table.body.push(cells);
    }
    let mut rows = vec![Cell::row("rows")];
    rows.extend(methods.iter().map(|r| Cell::number(r.n.to_string())));
    table.body.push(rows);
    table.html()
}

pub(super) fn reading(out: &mut String, texts: &[(&str, &str)]) {
    out.push_str("<section class=\"reading\" aria-labelledby=\"reading\">\n<h2 id=\"reading\">How to read this</h2>\n");
    for (heading, text) in texts {
        let _ = writeln!(out, "<h3>{heading}</h3>\n<p>{text}</p>");
    }
    out.push_str("</section>\n");
}

fn origin(out: &mut String, page: &Page<'_>) {
    out.push_str("<section aria-labelledby=\"origin\">\n<h2 id=\"origin\">Origin</h2>\n");
    if page.document.inputs.is_empty() {
        out.push_str("<p class=\"note\">No inputs are recorded.</p>\n");
    } else {
        let caption = "What was evaluated; report.json has the whole hashes";
        let mut table = Table::new("inputs", "plain", caption);
        table.head.push(["input", "reference", "SHA-256"].map(Cell::words).into_iter().collect());
        for (name, input) in &page.document.inputs {
            let short: String = input.sha256.chars().take(12).collect();
            table.body.push(vec![
                Cell::row(escape(name)),
                Cell::text(escape(&input.reference)),
                Cell::text(format!("<code>{}</code>", escape(&short))),
            ]);
        }
        out.push_str(&table.html());
    }
    out.push_str("</section>\n");
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_in_utc() {
        assert_eq!(date("2026-03-04T01:30:59.123+02:00"), "3 March 2026, 23:30 UTC");
        assert_eq!(date("<yesterday>"), "&lt;yesterday&gt;");
    }
}
