//! The verb that cleans up.

use crate::cli::output;
use crate::cli::place::Place;
use crate::error::Result;
use crate::registry::{DebrisKind, GcOptions, GcReport, gc};
use serde_json::json;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct GcArguments {
    /// Only what was last written at least this long ago: 0s, 30m, 12h, 7d.
    #[arg(long, default_value = "7d", value_name = "AGE", value_parser = age)]
    older_than: Duration,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl GcArguments {
    pub(in crate::cli) fn run(self, store: &Place) -> Result<()> {
        let options = GcOptions { older_than: self.older_than, dry_run: self.dry_run };
        let report = gc(&store.open_existing()?, &options)?;
        if self.json {
            let mut value = serde_json::to_value(&report).unwrap_or_default();
            value["files"] = json!(report.files());
            value["bytes"] = json!(report.bytes());
            return output::json(&value);
        }
        output::line(&summary(&report))
    }
}

/// A number and one of s, m, h and d.
fn age(text: &str) -> Result<Duration, String> {
    let fail = || format!("'{text}' is no age: write a whole number and s, m, h or d, such as 12h");
    let at = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(fail)?;
    let (digits, unit) = text.split_at(at);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(fail()),
    };
    // parse would take a plus sign
    let count: Option<u64> = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    count.and_then(|n| n.checked_mul(seconds)).map(Duration::from_secs).ok_or_else(fail)
}

fn summary(report: &GcReport) -> String {
    let verb = if report.dry_run { "would remove" } else { "removed" };
    let mut parts = Vec::new();
    if !report.removed.is_empty() {
        let rows = report
            .removed
            .iter()
            .map(|d| vec![d.key.clone(), d.files.to_string(), output::bytes(d.bytes), why(d.kind).to_owned()]);
        let heading = verb.to_uppercase();
        parts.push(output::table(&[heading.as_str(), "FILES", "SIZE", "WHY"], &rows.collect::<Vec<_>>()));
    }
    if !report.kept.is_empty() {
        let rows: Vec<Vec<String>> = report.kept.iter().map(|k| vec![k.key.clone(), k.reason.clone()]).collect();
        parts.push(output::table(&["KEPT", "WHY"], &rows));
    }
    parts.push(if report.removed.is_empty() {
        "nothing to remove".to_owned()
    } else {
        let files = if report.files() == 1 { "1 file".to_owned() } else { format!("{} files", report.files()) };
        format!("{verb} {files}, {}", output::bytes(report.bytes()))
    });
    parts.join("\n\n")
}

fn why(kind: DebrisKind) -> &'static str {
    match kind {
        DebrisKind::Unfinished => "a version that was never published",
        DebrisKind::Removed => "the version was removed",
        DebrisKind::Stray => "the version's manifest does not name it",
        DebrisKind::Checkpoints => "checkpoints of a step that did not end",
        DebrisKind::CachedStep => "the step's versions are gone",
        DebrisKind::Leftover => "a killed writer left it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_numbers_with_a_unit() {
        for (text, seconds) in [("0s", 0), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("007s", 7)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in
            ["", "7", "d", "-1d", "+1d", "1.5h", "1 h", "1w", "7D", "1é", "99999999999999999999d", "99999999999999999d"]
        {
            assert!(age(bad).is_err_and(|e| e.contains("12h")), "{bad}");
        }
    }
}
