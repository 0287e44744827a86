//! The reliability diagram: how often rows of a confidence are right, and how many there are.

use std::fmt::Write as _;

use super::plot::{Anchor, Axes, Svg, coordinate, diagonal, line, rectangle, text};
use super::text::{decimals, number, plural};
use crate::evaluation::report::MethodReport;

const AXES: Axes = Axes { left: 46.0, top: 12.0, side: 322.0 };
/// Of the bars that show counts: where they begin, and the height of the longest.
const COUNTS_TOP: f64 = 366.0;
const COUNTS: f64 = 56.0;
const BAR: &str = "#9ec9e6";
const COUNT_BAR: &str = "#c3c9d0";
const DOT: &str = "#0072b2";

/// The picture; `None` where there are no rows.
pub(super) fn plot(report: &MethodReport) -> Option<Svg> {
    let calibration = &report.calibration;
    let most = calibration.bins.iter().map(|bin| bin.n).max().filter(|&most| most > 0)?;
    let axes = AXES;
    let mut body = String::new();
    axes.draw(&mut body, None, "share of right rows");
    let mut dots = String::new();
    let base = COUNTS_TOP + COUNTS;
    for bin in calibration.bins.iter().filter(|bin| bin.n > 0) {
        let (left, right) = (axes.x(bin.low), axes.x(bin.high));
        let (x, width) = (left + 1.0, right - left - 2.0);
        let says = format!(
            "confidence {} to {}: {}, mean confidence {}, share right {}",
            decimals(bin.low, 2),
            decimals(bin.high, 2),
            plural(bin.n, "row"),
            number(bin.confidence),
            number(bin.accuracy)
        );
        if let Some(accuracy) = bin.accuracy.filter(|v| v.is_finite()) {
            let top = axes.y(accuracy);
            rectangle(&mut body, "bar", BAR, [x, top, width, axes.y(0.0) - top], &says);
            if let Some(confidence) = bin.confidence.filter(|v| v.is_finite()) {
                let (x, y) = (coordinate(axes.x(confidence)), coordinate(top));
                let _ = write!(dots, "\n<circle class=\"dot\" fill=\"{DOT}\" cx=\"{x}\" cy=\"{y}\" r=\"4\"/>");
            }
        }
        let height = (COUNTS * bin.n as f64 / most as f64).max(1.0);
        rectangle(&mut body, "count", COUNT_BAR, [x, base - height, width, height], &says);
        text(&mut body, Anchor::Middle, "ink", 9.5, (f64::midpoint(left, right), base - height - 3.0), &short(bin.n));
    }
    diagonal(&mut body, &axes);
    body.push_str(&dots);
    line(&mut body, "grid", super::plot::GRID, [axes.x(0.0), base, axes.x(1.0), base]);
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        text(&mut body, Anchor::Middle, "muted", 11.0, (axes.x(value), base + 16.0), &format!("{value:.1}"));
    }
    text(&mut body, Anchor::Middle, "ink", 12.0, (axes.x(0.5), base + 34.0), "confidence (highest score of a row)");
    super::plot::upright(&mut body, (axes.left - 32.0, base - COUNTS / 2.0), "rows");
    Some(Svg {
        class: "plot",
        width: 380.0,
        height: base + 44.0,
        title: format!("Reliability diagram, {}", report.method),
        description: describe(report),
        body,
    })
}

fn describe(report: &MethodReport) -> String {
    let calibration = &report.calibration;
    let filled: Vec<String> = calibration
        .bins
        .iter()
        .filter(|bin| bin.n > 0)
        .map(|bin| format!("{} at {} in {}", number(bin.accuracy), number(bin.confidence), plural(bin.n, "row")))
        .collect();
    format!(
        "Expected calibration error {}, largest {}. Share of right rows at mean confidence, by rising confidence: {}.",
        number(calibration.ece),
        number(calibration.mce),
        filled.join("; ")
    )
}

/// A count in at most four letters.
fn short(count: u64) -> String {
    match count {
        0..1000 => count.to_string(),
        1000..9950 => format!("{:.1}k", count as f64 / 1e3),
        9950..999_500 => format!("{:.0}k", count as f64 / 1e3),
        999_500..9_950_000 => format!("{:.1}M", count as f64 / 1e6),
        _ => format!("{:.0}M", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn counts_fit_their_bars() {
        let found = [7, 999, 1000, 9949, 9950, 999_499, 999_500, 12_345_678].map(short);
        assert_eq!(found, ["7", "999", "1.0k", "9.9k", "10k", "999k", "1.0M", "12M"]);
    }
}
