//! Keys: the same on every store, so only plain characters, and never a way out of the store.

use crate::error::{Error, Result};

/// Checks that `key` is a relative path of plain segments: letters, digits, `.`, `_` and `-`, separated by single
/// slashes, none of them `.` or `..`; at most 255 characters a segment and 900 in all.
///
/// # Errors
/// [`crate::ErrorKind::Config`], naming the key and what is wrong with it.
pub fn check_key(key: &str) -> Result<()> {
    let fail = |why: &str| Err(Error::config(format!("'{}' is not a valid key: {why}", key.escape_default())));
    if key.is_empty() {
        return fail("it is empty");
    }
    if key.len() > 900 {
        return fail("it is longer than 900 characters");
    }
    if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) {
        return fail("use only letters, digits, '.', '_', '-' and '/'");
    }
    for segment in key.split('/') {
        match segment {
            "" => return fail("it has an empty segment; use a relative path with single slashes"),
            "." | ".." => return fail("'.' and '..' are not allowed"),
            _ if segment.len() > 255 => return fail("a segment is longer than 255 characters"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_keys_pass() {
        for good in ["a", "a/b.txt", "models/N/1/code/medtune_rt_0a/__init__.py", "-", "a..b", ".hidden", "..."] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a#1", "é", "a%2e", "a\\b", "a\nb", &long] {
            let error = check_key(bad).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config, "{bad}");
            assert!(!error.to_string().contains('\n'));
        }
    }
}
