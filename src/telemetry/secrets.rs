//! What must never be shown: remembered once, and taken out of every log line and error text.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// What stands in place of a secret.
const HIDDEN: &str = "***";

static SECRETS: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Remembers a secret, such as an access key or a token, and the ways in which it may be written in a URL.
pub(crate) fn remember(secret: &str) {
    let encoded = |keep: &[u8]| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || keep.contains(&b);
        secret.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    };
    let mut secrets = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    for text in [secret.to_owned(), encoded(b"-._~"), encoded(b"-._~/"), encoded(b"-._~/=")] {
        if !text.is_empty() && !secrets.contains(&text) {
            secrets.push(text);
        }
    }
    // longer ones first: one may be a part of another
    secrets.sort_by_key(|s| std::cmp::Reverse(s.len()));
}

/// `text` without the secrets that were remembered.
#[must_use]
pub(crate) fn redact(text: &str) -> Cow<'_, str> {
    let secrets = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
    let mut shown = Cow::Borrowed(text);
    for secret in secrets.iter() {
        if shown.contains(secret.as_str()) {
            shown = Cow::Owned(shown.replace(secret.as_str(), HIDDEN));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_every_spelling() {
        remember("planted/Secret+1=");
        for (text, shown) in [
            ("key planted/Secret+1= used", "key *** used"),
            ("https://h/?sig=planted%2FSecret%2B1%3D&x=1", "https://h/?sig=***&x=1"),
            ("nothing to hide", "nothing to hide"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
