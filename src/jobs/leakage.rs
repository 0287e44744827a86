//! What a job does about images that are in two of its sets.

use crate::config::parameters::InTwoSets;
use crate::data::Overlap;
use crate::error::{Error, Result};

/// Refuses images of the input `set` that are in the input `other` too, or warns of them where that is allowed.
///
/// # Errors
/// `Data`, naming both inputs and the first of the images.
pub(super) fn check(overlap: Option<Overlap>, (set, other): (&str, &str), allowed: InTwoSets) -> Result<()> {
    let Some(Overlap { images, key, other_key }) = overlap else { return Ok(()) };
    let count = if images == 1 { "1 image is".to_owned() } else { format!("{images} images are") };
    let there = if key == other_key { String::new() } else { format!(", there '{other_key}'") };
    let text = format!("{count} in {set} and in {other} too, the first of them '{key}'{there}");
    match allowed {
        InTwoSets::Allow => {
            tracing::warn!("{text}: results on them say little");
            Ok(())
        }
        InTwoSets::Error => {
            Err(Error::data(format!("{text}: remove them from one of the two, or set parameters.repeated to allow")))
        }
    }
}
