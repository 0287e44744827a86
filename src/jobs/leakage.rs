//! What a job does about images that are in two of its sets.

use crate::config::parameters::InTwoSets;
use crate::data::Overlap;
use crate::error::{Error, Result};

/// Refuses images of the input `set` that are in the input `other` too, or warns of them where that is allowed.
///
/// # Errors
/// `Data`, naming both inputs and the first of the images.
pub(super) fn check(overlap: Option<Overlap>, (set, other): (&str, &str), allowed: InTwoSets) -> Result<()> {
    let Some(Overlap { by_content, by_key, key, other_key }) = overlap else { return Ok(()) };
    let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
    let mut found = Vec::new();
    if by_content > 0 {
        found.push(format!(
            "{} of {set} {} in {other} too",
            count(by_content, "image"),
            if by_content == 1 { "is" } else { "are" }
        ));
    }
    if by_key > 0 {
        let of = if by_content > 0 { String::new() } else { format!(" of {set}") };
        let names = if by_key == 1 { "names" } else { "name" };
        let unseen = "another image, or one whose content is not known,";
        found.push(format!("{}{of} {names} {unseen} in {other}", count(by_key, "key")));
    }
    let there = if key == other_key { String::new() } else { format!(", there '{other_key}'") };
    let first = if by_content + by_key == 1 { "it is" } else { "the first is" };
    let text = format!("{} ({first} '{key}'{there})", found.join(", and "));
    match allowed {
        InTwoSets::Allow => {
            tracing::warn!("{text}: results on images that are in both say little");
            Ok(())
        }
        InTwoSets::Error => {
            let advice = "remove images that are in both from one of them, give different images different keys";
            Err(Error::data(format!("{text}: {advice}, or set parameters.repeated to allow")))
        }
    }
}
