//! Store URIs, parsed strictly: what is not understood is refused, never ignored.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder or file that a URI names.
pub(super) fn parse(uri: &str) -> Result<PathBuf> {
    let fail = |why: &str| Err(Error::config(format!("'{}' is not a valid place: {why}", shown(uri))));
    if uri.trim() != uri || uri.is_empty() || uri.chars().any(char::is_control) {
        return fail("it is empty, or has spaces around it or control characters inside");
    }
    let Some((scheme, rest)) = uri.split_once("://") else {
        return if uri.starts_with("file:") { fail("write file:///absolute/path") } else { Ok(PathBuf::from(uri)) };
    };
    if !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
        return Ok(PathBuf::from(uri));
    }
    if scheme != "file" {
        let scheme = scheme.to_ascii_lowercase();
        return fail(&format!(
            "{scheme}:// stores are not available in this version, use file:///path or a plain path"
        ));
    }
    if !rest.starts_with('/') {
        return fail("a host is not allowed, write file:///absolute/path");
    }
    if rest.contains(['?', '#']) {
        return fail("'?' and '#' are not allowed, write them as %3F and %23");
    }
    let Some(bytes) = percent_decode(rest) else {
        return fail("'%' must be followed by two hexadecimal digits other than 00");
    };
    if bytes.split(|b| *b == b'/').any(|segment| segment == b".." || segment == b".") {
        return fail("'.' and '..' are not allowed");
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// The canonical URI of an absolute folder.
pub(super) fn of_path(path: &Path) -> String {
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/+@:,=".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
        let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if value == 0 {
            return None;
        }
        bytes.push(value);
        rest = &after[2..];
    }
    Some(bytes)
}

/// The URI as messages may show it: user, password and query may hold secrets.
fn shown(uri: &str) -> String {
    let uri = uri.split_once('?').map_or(uri, |(before, _)| before);
    let text = match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => uri.to_owned(),
    };
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_parsed_and_everything_else_is_refused() {
        assert_eq!(parse("file:///a/b%20c").unwrap(), Path::new("/a/b c"));
        assert_eq!(parse("store/x y").unwrap(), Path::new("store/x y"));
        for bad in [
            "",
            " /a",
            "file://host/a",
            "file:/a",
            "file:///a/../b",
            "file:///a%2F..%2Fb",
            "file:///a?x=1",
            "file:///a#f",
            "file:///a%0",
            "file:///a%00",
            "s3://b/k",
            "az://c/k",
            "gs://b/k",
            "http://h/",
            "memory://",
            "a\nb",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), crate::ErrorKind::Config, "{bad}");
        }
        let text = parse("s3://b/k").unwrap_err().to_string();
        assert!(text.contains("s3:// stores are not available in this version"), "{text}");
    }

    #[test]
    fn uris_round_trip_and_hide_secrets() {
        for path in ["/a/b", "/ä ö/100%?#", "/"] {
            assert_eq!(parse(&of_path(Path::new(path))).unwrap(), Path::new(path));
        }
        let text = parse("https://user:secret@host/p?sig=secret").unwrap_err().to_string();
        assert!(!text.contains("secret"), "{text}");
    }
}
