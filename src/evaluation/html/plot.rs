//! SVG pictures: inside the page, where its style sheet colours them, and as files, which carry all they need as attributes since
//! word processors and drawing programs know no style sheets.

use std::fmt::Write as _;

use super::text::escape;

/// Ink, secondary ink, grid lines and the ground behind, as style.css has them in light colours.
pub(super) const INK: &str = "#1b1f24";
pub(super) const MUTED: &str = "#57606a";
pub(super) const GRID: &str = "#d0d7de";
/// Lines that are not told apart.
pub(super) const OTHER: &str = "#8c959f";

/// A picture with its text alternative.
#[derive(Debug, Clone)]
pub(super) struct Svg {
    /// In the page's CSS a class of its own.
    pub(super) class: &'static str,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Plain texts: they are escaped here.
    pub(super) title: String,
    pub(super) description: String,
    /// SVG.
    pub(super) body: String,
}

impl Svg {
    /// For the page.
    pub(super) fn inline(&self) -> String {
        format!("<svg class=\"{}\" role=\"img\" {}\n</svg>", self.class, self.inside())
    }

    /// As a file.
    pub(super) fn file(&self) -> String {
        let (width, height) = (coordinate(self.width), coordinate(self.height));
        let inside = self.inside().replacen(
            "</desc>",
            &format!("</desc>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"),
            1,
        );
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width}\" height=\"{height}\" \
             font-family=\"system-ui, 'Segoe UI', 'Open Sans', 'DejaVu Sans', sans-serif\" {inside}\n</svg>\n"
        )
    }

    fn inside(&self) -> String {
        format!(
            "viewBox=\"0 0 {} {}\">\n<title>{}</title>\n<desc>{}</desc>{}",
            coordinate(self.width),
            coordinate(self.height),
            escape(&self.title),
            escape(&self.description),
            self.body
        )
    }
}

/// A length in a picture: one decimal is a tenth of a pixel.
pub(super) fn coordinate(value: f64) -> String {
    let text = format!("{:.1}", if value.is_finite() { value } else { 0.0 });
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// The square from (0, 0) to (1, 1) inside a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axes {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) side: f64,
}

impl Axes {
    pub(super) fn x(&self, value: f64) -> f64 {
        self.left + self.side * value.clamp(0.0, 1.0)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.top + self.side * (1.0 - value.clamp(0.0, 1.0))
    }

    /// Grid, ticks and titles; without `x_title` there are no ticks below, either.
    pub(super) fn draw(&self, out: &mut String, x_title: Option<&str>, y_title: &str) {
        let (left, right, top, bottom) = (self.x(0.0), self.x(1.0), self.y(1.0), self.y(0.0));
        for tick in 0..=5 {
            let value = f64::from(tick) / 5.0;
            line(out, "grid", GRID, [self.x(value), top, self.x(value), bottom]);
            line(out, "grid", GRID, [left, self.y(value), right, self.y(value)]);
            text(out, Anchor::End, "muted", 11.0, (left - 6.0, self.y(value) + 4.0), &format!("{value:.1}"));
            if x_title.is_some() {
                text(out, Anchor::Middle, "muted", 11.0, (self.x(value), bottom + 16.0), &format!("{value:.1}"));
            }
        }
        if let Some(title) = x_title {
            text(out, Anchor::Middle, "ink", 12.0, (self.x(0.5), bottom + 34.0), title);
        }
        upright(out, (left - 32.0, self.y(0.5)), y_title);
    }

    /// A horizontal line from `low` to `high` at the height `y` of the picture, with caps that reach so far up and down.
    pub(super) fn interval(&self, out: &mut String, (low, high): (f64, f64), y: f64, cap: f64) {
        line(out, "interval", INK, [self.x(low), y, self.x(high), y]);
        for end in [low, high] {
            line(out, "interval", INK, [self.x(end), y - cap, self.x(end), y + cap]);
        }
    }

    /// A line through points from (0, 0) to (1, 1). Points that are not finite are left out, and those that lie on the line anyway.
    pub(super) fn path(&self, points: impl IntoIterator<Item = (f64, f64)>) -> String {
        let mut corners: Vec<(f64, f64)> = Vec::new();
        for (x, y) in points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let tenth = |v: f64| (v * 10.0).round() / 10.0;
            let next = (tenth(self.x(x)), tenth(self.y(y)));
            if let [.., before, last] = corners[..] {
                let level = before.1 == last.1 && last.1 == next.1;
                let upright = before.0 == last.0 && last.0 == next.0;
                if level || upright {
                    corners.pop();
                }
            }
            if corners.last() != Some(&next) {
                corners.push(next);
            }
        }
        let mut out = String::new();
        for (index, (x, y)) in corners.iter().enumerate() {
            let command = if index == 0 { "M" } else { " " };
            let _ = write!(out, "{command}{} {}", coordinate(*x), coordinate(*y));
        }
        out
    }
}

/// Which end of a text its place is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A text, escaped here; `class` is "ink" or "muted".
pub(super) fn text(out: &mut String, anchor: Anchor, class: &str, size: f64, at: (f64, f64), content: &str) {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let fill = if class == "ink" { INK } else { MUTED };
    let _ = write!(
        out,
        "\n<text class=\"{class}\" fill=\"{fill}\" font-size=\"{}\" text-anchor=\"{anchor}\" x=\"{}\" y=\"{}\">{}</text>",
        coordinate(size),
        coordinate(at.0),
        coordinate(at.1),
        escape(content)
    );
}

/// A text that runs upwards.
pub(super) fn upright(out: &mut String, at: (f64, f64), content: &str) {
    let (x, y) = (coordinate(at.0), coordinate(at.1));
    let _ = write!(
        out,
        "\n<text class=\"ink\" fill=\"{INK}\" font-size=\"12\" text-anchor=\"middle\" transform=\"translate({x} {y}) rotate(-90)\">{}</text>",
        escape(content)
    );
}

pub(super) fn line(out: &mut String, class: &str, stroke: &str, ends: [f64; 4]) {
    let [x1, y1, x2, y2] = ends.map(coordinate);
    let _ =
        write!(out, "\n<line class=\"{class}\" stroke=\"{stroke}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>");
}

/// From (0, 0) to (1, 1), dashed.
pub(super) fn diagonal(out: &mut String, axes: &Axes) {
    let path = axes.path([(0.0, 0.0), (1.0, 1.0)]);
    // no <line>: some printers lose its dashes
    let _ = write!(
        out,
        "\n<path class=\"diagonal\" fill=\"none\" stroke=\"{MUTED}\" stroke-dasharray=\"4 4\" d=\"{path}\"/>"
    );
}

/// A rectangle; `title` is what it says when pointed at.
pub(super) fn rectangle(out: &mut String, class: &str, fill: &str, [x, y, width, height]: [f64; 4], title: &str) {
    let [x, y, width, height] = [x, y, width.max(0.0), height.max(0.0)].map(coordinate);
    let _ = write!(
        out,
        "\n<rect class=\"{class}\" fill=\"{fill}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"><title>{}</title></rect>",
        escape(title)
    );
}
