//! "Did you mean": the nearest known name to a mistyped one.

/// The known name nearest to `name`, when one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), k))
        .filter(|(distance, k)| *distance <= 2.max(k.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// A clause to append to "unknown ..." messages: the nearest known name, or all of them when none is near.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(name, known.clone()) {
        return format!("did you mean '{near}'?");
    }
    let all: Vec<&str> = known.into_iter().collect();
    if all.is_empty() { "there is none to choose from".to_owned() } else { format!("known: {}", all.join(", ")) }
}

/// Turns serde's "unknown field `a`, expected one of `b`, `c`" into one that names the nearest known key.
#[must_use]
pub fn explain_unknown_field(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.starts_with("unknown field"), quoted.split_first()) {
        (true, Some((name, known))) => {
            format!("unknown key '{name}': {}", did_you_mean(name, known.iter().copied()))
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_nearest_key() {
        let text = explain_unknown_field("unknown field `imge_size`, expected one of `image_size`, `jpeg_quality`");
        assert_eq!(text, "unknown key 'imge_size': did you mean 'image_size'?");
        assert!(did_you_mean("zzzzzz", ["alpha", "beta"]).contains("known: alpha, beta"));
    }
}
