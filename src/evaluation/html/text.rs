//! Texts and numbers as they stand in the page.

use crate::evaluation::interval::{Interval, Proportion};

/// What stands where there is no value.
pub(super) const NONE: &str = "\u{2013}";

/// One line of `text` without what could not be seen or would turn the text around it: controls, direction marks and the code points
/// that XML does not allow.
pub(super) fn clean(text: &str) -> String {
    let shown = |c: char| match c {
        _ if c.is_whitespace() => Some(' '),
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => None,
        '\u{fffe}' | '\u{ffff}' => None,
        _ if c.is_control() => None,
        _ => Some(c),
    };
    let line: String = text.chars().filter_map(shown).collect();
    let line = line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.is_empty() { NONE.to_owned() } else { line }
}

/// `text` for HTML and SVG, in contents and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// `text` cut to about `width` letters' room, with an ellipsis where something is left out. Not escaped.
pub(super) fn shorten(text: &str, width: usize) -> String {
    let room = |c: char| match c {
        '\u{300}'..='\u{36f}' => 0,
        _ if c < '\u{1100}' => 1,
        _ => 2,
    };
    let text = clean(text);
    if text.chars().map(room).sum::<usize>() <= width {
        return text;
    }
    let mut left = width.saturating_sub(1);
    let kept = text.chars().take_while(|&c| {
        let fits = room(c) <= left;
        left = left.saturating_sub(room(c));
        fits
    });
    format!("{}\u{2026}", kept.collect::<String>().trim_end())
}

/// Three decimals; a dash for what is missing or not finite.
pub(super) fn number(value: impl Into<Option<f64>>) -> String {
    decimals(value, 3)
}

pub(super) fn decimals(value: impl Into<Option<f64>>, decimals: usize) -> String {
    let Some(value) = value.into().filter(|v| v.is_finite()) else { return NONE.to_owned() };
    let text = format!("{:.decimals$}", value.abs());
    let zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    if value < 0.0 && !zero { format!("\u{2212}{text}") } else { text }
}

/// A share as a whole percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{}\u{a0}%", decimals(share * 100.0, 0))
}

/// `text` in one line: its spaces do not break.
fn unbroken(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}

/// A number, and its interval in small letters below.
pub(super) fn with_interval(value: impl Into<Option<f64>>, interval: impl Into<Option<Interval>>) -> String {
    let value = value.into().filter(|v| v.is_finite());
    match (value, interval.into().and_then(range)) {
        (Some(value), Some(range)) => format!("{} <small>{}</small>", number(value), unbroken(&range)),
        _ => number(value),
    }
}

/// A share with its interval and how many rows it is of.
pub(super) fn proportion(share: &Proportion) -> String {
    let rows = unbroken(&plural(share.n, "row"));
    match (share.low, share.high) {
        (Some(low), Some(high)) => {
            let of = Interval { low, high };
            let range = range(of).map_or_else(String::new, |r| format!("{}, ", unbroken(&r)));
            format!("{} <small>{range}{rows}</small>", number(share.value))
        }
        _ => format!("{} <small>{rows}</small>", number(share.value)),
    }
}

/// An interval in words.
pub(super) fn range(interval: Interval) -> Option<String> {
    let finite = interval.low.is_finite() && interval.high.is_finite();
    finite.then(|| format!("{} to {}", number(interval.low), number(interval.high)))
}

pub(super) fn plural(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// "class" and its plural, which is no regular one.
pub(super) fn classes(count: usize) -> String {
    if count == 1 { "1 class".to_owned() } else { format!("{count} classes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_leave_their_place() {
        assert_eq!(escape("<b a='1'>\"&"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;");
        assert_eq!(escape(" a\u{0}\tb\r\n\u{202e}c\u{1b}[0m "), "a b c[0m");
        assert_eq!(escape("\u{7}"), NONE);
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abcde\u{2026}");
        assert_eq!(shorten("ab   cdefg", 4), "ab\u{2026}");
        assert_eq!(shorten("\u{8179}\u{8179}\u{8179}\u{8179}", 6), "\u{8179}\u{8179}\u{2026}");
    }

    #[test]
    fn numbers() {
        assert_eq!([number(0.12345), number(-0.0001), number(-0.25)], ["0.123", "0.000", "\u{2212}0.250"]);
        assert_eq!([number(None), number(f64::NAN), number(f64::INFINITY)], [NONE; 3]);
        let interval = Interval { low: 0.1, high: f64::NAN };
        assert_eq!(with_interval(0.5, interval), "0.500");
        assert_eq!(with_interval(f64::NAN, Interval { low: 0.1, high: 0.2 }), NONE);
        assert_eq!(
            proportion(&Proportion { value: None, low: None, high: None, n: 0 }),
            "\u{2013} <small>0\u{a0}rows</small>"
        );
    }
}
