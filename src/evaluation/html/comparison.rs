//! The page of two evaluations side by side.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::method::samples;
use super::page::{AVERAGES, CALIBRATION, LIMITS, contents, date, figure_name, head, header, reading, verdict};
use super::plot::{Axes, Svg, coordinate, line};
use super::table::{Cell, Table};
use super::text::{NONE, decimals, escape, number, plural, with_interval};
use super::{Comparison, Side, confusion, names, reliability};
use crate::evaluation::compare::{FIGURES, Pair, compare, only_in};
use crate::evaluation::gate::figure;
use crate::evaluation::interval::Interval;
use crate::evaluation::report::MethodReport;

/// What the figures mean beyond what the page of one evaluation says of them.
const READING: [(&str, &str); 6] = [
    AVERAGES,
    (
        "Differences",
        "A difference is the second figure minus the first, before rounding. Of accuracy, recall, F1, MCC, AUC and AP a higher value is better, of calibration \
         errors, the Brier score and log loss a lower one.",
    ),
    (
        "Intervals",
        "Small figures below a number are its 95 % interval. Intervals that are apart are strong evidence that the figures differ beyond the chance \
         of which rows were tested, unless several rows are of one patient and were not drawn together, or an interval has no width, as 1.000 to \
         1.000, which seems surer than it is. Intervals that overlap do not show that figures are equal: where both models saw the same rows, \
         even a smaller difference can be real.",
    ),
    CALIBRATION,
    (
        "Choosing",
        "This compares two measurements. Choosing the better of several models by their test figures makes those figures too good; keep data \
         aside that none of them was chosen by.",
    ),
    LIMITS,
];
/// What the two are called.
const PLACES: [&str; 2] = ["first", "second"];

pub(super) fn render(page: &Comparison<'_>) -> String {
    let sides = [page.first, page.second];
    let title = format!("{} and {}", page.first.reference, page.second.reference);
    let mut out = head(&format!("{}: comparison", escape(&title)));
    header(&mut out, "Comparison of two evaluations", &escape(&title), &facts(page));
    let shared = shared(page);
    contents(&mut out, shared.iter().map(|(id, first, _)| (id.clone(), first.method.to_string())));
    out.push_str("<main>\n");
    let caption = "Requirements of the second, and what was measured on its test split";
    verdict(&mut out, page.requirements, caption, "none, no requirement was given to this comparison");
    out.push_str("<section aria-labelledby=\"summary\">\n<h2 id=\"summary\">Summary</h2>\n");
    for caution in cautions(sides) {
        let _ = writeln!(out, "<p><strong>{caution}</strong></p>");
    }
    if shared.is_empty() {
        out.push_str("<p>The two have no method in common.</p>\n");
    } else {
        let (all, one) = (plural(shared.len() as u64, "method"), shared.len() == 1);
        let _ =
            writeln!(out, "<p>They have {all} in common, which {} compared below.</p>", if one { "is" } else { "are" });
    }
    let methods = sides.map(|side| side.document.methods.as_slice());
    for (place, alone) in PLACES.into_iter().zip([only_in(methods[0], methods[1]), only_in(methods[1], methods[0])]) {
        if !alone.is_empty() {
            let _ = writeln!(out, "<p class=\"note\">Only in the {place}: {}.</p>", alone.join(", "));
        }
    }
    out.push_str("</section>\n");
    for (id, first, second) in &shared {
        method(&mut out, id, first, second);
    }
    reading(&mut out, &READING);
    origin(&mut out, sides);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The methods that both evaluated, each with its id in the page.
fn shared<'a>(page: &Comparison<'a>) -> Vec<(String, &'a MethodReport, &'a MethodReport)> {
    let (first, second) = (&page.first.document.methods, &page.second.document.methods);
    let pair = |(id, first): (String, &'a MethodReport)| {
        Some((id, first, second.iter().find(|second| second.method == first.method)?))
    };
    names(first).into_iter().zip(first).filter_map(pair).collect()
}

fn facts(page: &Comparison<'_>) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    for (name, Side { reference, created, document }) in [("First", page.first), ("Second", page.second)] {
        let mut html = format!("{}<div class=\"note\">", escape(reference));
        if !created.is_empty() {
            let _ = write!(html, "made {}, ", date(created));
        }
        let _ = write!(html, "code <code>{}</code>", escape(&document.code_version));
        if let Some(method) = document.methods.first() {
            let _ = write!(html, ", {}", plural(method.n as u64, "test row"));
        }
        html.push_str("</div>");
        facts.push((name, html));
    }
    facts
}

/// What makes the two hard to compare, and what each was found wanting in; HTML.
fn cautions(sides: [Side<'_>; 2]) -> Vec<String> {
    let mut out = Vec::new();
    let tests = sides.map(|side| side.document.test_set());
    let rows = sides.map(|side| side.document.methods.first().map(|method| method.n));
    if tests[0] != tests[1] {
        out.push(
            "They were evaluated on different test sets: differences are not those of the models alone.".to_owned(),
        );
    } else if let [Some(first), Some(second)] = rows
        && first != second
    {
        out.push(format!(
            "They were evaluated on {first} and {second} rows of the same test set: differences are not those of the models alone."
        ));
    }
    for (place, [side, other]) in PLACES.into_iter().zip([sides, [sides[1], sides[0]]]) {
        let alone = side.document.labels.iter().filter(|label| !other.document.labels.contains(label));
        let alone: Vec<String> = alone.map(|label| escape(label)).collect();
        if !alone.is_empty() {
            out.push(format!(
                "Only the {place} knows these classes, so figures of whole evaluations are over other classes: {}.",
                alone.join(", ")
            ));
        }
    }
    for (place, side) in PLACES.into_iter().zip(sides) {
        let missed: Vec<String> =
            side.document.requirements.iter().filter(|r| !r.met).map(|r| escape(&r.reason())).collect();
        if !missed.is_empty() {
            out.push(format!("The {place} missed what was required when it was evaluated: {}.", missed.join("; ")));
        }
    }
    out
}

fn method(out: &mut String, id: &str, first: &MethodReport, second: &MethodReport) {
    let _ = write!(
        out,
        "<section class=\"method\" aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">Method: {}</h2>\n<h3>Figures</h3>\n",
        first.method
    );
    out.push_str(&figures(id, first, second));
    out.push_str("<h3>Classes</h3>\n");
    out.push_str(&classes(id, first, second));
    confusions(out, id, [first, second]);
    calibrations(out, [first, second]);
    out.push_str("</section>\n");
}

/// How the intervals of both came about.
fn drawn(reports: [&MethodReport; 2]) -> String {
    let [first, second] = reports.map(|report| samples(report).unwrap_or_else(|| "none were asked for".to_owned()));
    let how = if first == second {
        format!("of both: {first}")
    } else {
        format!("of the first: {first}; of the second: {second}")
    };
    format!("<p class=\"note\">Intervals {how}.</p>\n")
}

fn figures(id: &str, first: &MethodReport, second: &MethodReport) -> String {
    let caption = "Whole evaluations; filled dots are the first, rings the second, with their intervals";
    let mut table = Table::new(&format!("{id}-figures"), "plain", caption);
    let columns = ["figure", "first", "second", "difference", "intervals"].map(Cell::column);
    table.head.push(columns.into_iter().chain([Cell::words("from 0 to 1")]).collect());
    let pairs = compare(std::slice::from_ref(first), std::slice::from_ref(second));
    for (name, shown) in FIGURES {
        let Some(found) = pairs.iter().find(|pair| pair.figure == name) else { continue };
        let ends = [figure(first, name, None), figure(second, name, None)];
        let mut cells = vec![Cell::row(figure_name(name, shown))];
        cells.extend(ends.map(|(value, interval)| Cell::number(with_interval(value, interval))));
        cells.push(Cell::number(signed(found.difference)));
        cells.push(Cell::number(apart(found)));
        // only where the axis has room for them
        let is_drawn = ends.iter().all(|end| lies_on_axis(name, end)) && ends.iter().any(|(value, _)| value.is_some());
        let drawn = is_drawn.then(|| whiskers(shown, ends));
        cells.push(Cell::of_class("whisker", drawn.unwrap_or_default()));
        table.body.push(cells);
    }
    table.html() + &drawn([first, second])
}

/// Whether a figure and its interval are from 0 to 1.
fn lies_on_axis(name: &str, (value, interval): &(Option<f64>, Option<Interval>)) -> bool {
    let ends = interval.iter().flat_map(|i| [i.low, i.high]);
    !["brier", "log_loss"].contains(&name) && value.iter().copied().chain(ends).all(|v| (0.0..=1.0).contains(&v))
}

/// Of the classes that both know.
fn classes(id: &str, first: &MethodReport, second: &MethodReport) -> String {
    const COLUMNS: [(&str, &str); 3] = [("recall", "recall"), ("F1", "f1"), ("AUC", "auc")];
    let mut table = Table::new(&format!("{id}-classes"), "plain", "Classes that both know, by the first\u{2019}s ids");
    table.groups = vec![1, 3, 3, 3, 1];
    let mut head = vec![Cell::tall("id and class")];
    head.extend(COLUMNS.iter().map(|(shown, _)| Cell::columns(3, *shown)));
    head.push(Cell::tall("rows"));
    table.head.push(head);
    let under = COLUMNS.iter().flat_map(|_| ["first", "second", "difference"].map(Cell::column));
    table.head.push(under.collect());
    for (id, class) in first.argmax.per_class.iter().enumerate() {
        let Some(other) = second.argmax.per_class.iter().find(|c| c.label == class.label) else { continue };
        let mut cells = vec![Cell::class(Some(id), &class.label, usize::MAX)];
        for (_, name) in COLUMNS {
            let values = [first, second].map(|report| figure(report, name, Some(&class.label)).0);
            cells.extend(values.map(|value| Cell::number(number(value))));
            cells.push(Cell::number(signed(values[0].zip(values[1]).map(|(a, b)| b - a))));
        }
        let rows = if class.support == other.support {
            class.support.to_string()
        } else {
            format!("{} / {}", class.support, other.support)
        };
        cells.push(Cell::number(rows));
        table.body.push(cells);
    }
    if table.body.is_empty() {
        return "<p class=\"note\">No class has the same label in both.</p>\n".to_owned();
    }
    table.html()
}

/// What both were made from, and where it differs.
fn origin(out: &mut String, [first, second]: [Side<'_>; 2]) {
    out.push_str("<section aria-labelledby=\"origin\">\n<h2 id=\"origin\">Origin</h2>\n");
    let mut table = Table::new("inputs", "plain", "What was evaluated");
    table.head.push(["input", "first", "second", "content"].map(Cell::words).into_iter().collect());
    let names: BTreeSet<&String> = first.document.inputs.keys().chain(second.document.inputs.keys()).collect();
    for name in names {
        let inputs = [first, second].map(|side| side.document.inputs.get(name));
        let same = match inputs {
            [Some(a), Some(b)] if a.sha256 == b.sha256 => "the same",
            [Some(_), Some(_)] => "<strong>another</strong>",
            [Some(_), None] => "only of the first",
            _ => "only of the second",
        };
        let mut cells = vec![Cell::row(escape(name))];
        cells.extend(inputs.map(|input| Cell::text(input.map_or_else(|| NONE.to_owned(), |i| escape(&i.reference)))));
        cells.push(Cell::text(same));
        table.body.push(cells);
    }
    if table.body.is_empty() {
        out.push_str("<p class=\"note\">No inputs are recorded.</p>\n");
    } else {
        out.push_str(&table.html());
    }
    out.push_str("</section>\n");
}

/// Both matrices, where they are not too large.
fn confusions(out: &mut String, id: &str, reports: [&MethodReport; 2]) {
    let tables: Vec<(&str, Option<String>)> = PLACES
        .into_iter()
        .zip(reports)
        .map(|(place, report)| {
            let caption = format!("{}: {}", capital(place), confusion::CAPTION);
            (place, confusion::table(&format!("{id}-{place}-confusion"), caption, report))
        })
        .collect();
    let heading = "<h3>Confusion matrices</h3>\n";
    if tables.iter().all(|(_, table)| table.is_none()) {
        let _ = writeln!(out, "{heading}<p class=\"note\">{TOO_LARGE}</p>");
        return;
    }
    // what is turned on paper has its heading on the same page
    let is_broad = reports.into_iter().any(confusion::is_broad);
    let (open, inner) =
        if is_broad { ("<div class=\"turned\">\n", "<div>\n") } else { ("<div>\n", "<div class=\"pair\">\n") };
    let _ = writeln!(out, "{open}{heading}<p class=\"note\">{}</p>\n{inner}", confusion::NOTE);
    for (place, table) in tables {
        let table = table.unwrap_or_else(|| format!("<p class=\"note\">{TOO_LARGE}</p>\n"));
        let _ = write!(out, "<div>\n<h4>{}</h4>\n{table}</div>\n", capital(place));
    }
    out.push_str("</div>\n</div>\n");
}

const TOO_LARGE: &str =
    "The matrix has too many classes for a page; the report\u{2019}s own page lists its most frequent confusions.";

/// Both reliability diagrams.
fn calibrations(out: &mut String, reports: [&MethodReport; 2]) {
    let plots: Vec<(&str, Svg)> = PLACES
        .into_iter()
        .zip(reports)
        .filter_map(|(place, report)| Some((place, reliability::plot(report)?)))
        .collect();
    if plots.is_empty() {
        return;
    }
    out.push_str("<h3>Calibration</h3>\n<div class=\"figures\">\n");
    for (place, mut plot) in plots {
        plot.title = format!("{}, {place}", plot.title);
        let _ = writeln!(
            out,
            "<figure>\n{}\n<figcaption><b>{}.</b> Bars and dots: share of right rows. Dashed: where scores are true probabilities. Below: how many rows.</figcaption>\n</figure>",
            plot.inline(),
            capital(place)
        );
    }
    out.push_str("</div>\n");
}

fn capital(place: &str) -> &'static str {
    if place == PLACES[0] { "First" } else { "Second" }
}

/// With its sign, also a plus.
fn signed(value: Option<f64>) -> String {
    let text = decimals(value, 3);
    match value {
        Some(value) if value > 0.0 && text != "0.000" => format!("+{text}"),
        _ => text,
    }
}

fn apart(pair: &Pair) -> &'static str {
    match pair.apart {
        Some(true) => "<strong>apart</strong>",
        Some(false) => "overlap",
        None => NONE,
    }
}

/// Two dots and their intervals, one above the other.
fn whiskers(shown: &str, ends: [(Option<f64>, Option<Interval>); 2]) -> String {
    let axes = Axes { left: 6.0, top: 0.0, side: 148.0 };
    let (height, rows) = (26.0, [8.0, 18.0]);
    let mut body = String::new();
    for tick in [0.0, 0.5, 1.0] {
        line(&mut body, "grid", super::plot::GRID, [axes.x(tick), 2.0, axes.x(tick), height - 2.0]);
    }
    let finite = |value: f64| value.is_finite();
    for (y, (place, (value, interval))) in rows.into_iter().zip(PLACES.into_iter().zip(ends)) {
        if let Some(Interval { low, high }) = interval.filter(|i| finite(i.low) && finite(i.high)) {
            axes.interval(&mut body, (low, high), y, 3.0);
        }
        if let Some(value) = value.filter(|v| finite(*v)) {
            let x = coordinate(axes.x(value));
            let circle = if place == PLACES[0] {
                format!("\n<circle class=\"dot\" fill=\"#0072b2\" cx=\"{x}\" cy=\"{y}\" r=\"3.5\"/>")
            } else {
                format!(
                    "\n<circle class=\"ring\" fill=\"#ffffff\" stroke=\"#0072b2\" stroke-width=\"1.5\" cx=\"{x}\" cy=\"{y}\" r=\"3.5\"/>"
                )
            };
            body.push_str(&circle);
        }
    }
    let svg = Svg {
        class: "whiskers two",
        width: 160.0,
        height,
        title: format!("{shown} of both"),
        description: format!("first {}, second {}", number(ends[0].0), number(ends[1].0)),
        body,
    };
    svg.inline()
}
