//! URIs of stores and sources, parsed strictly: what is not understood is refused, never ignored.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where a URI points to. Paths inside buckets have no slash at either end; they are the raw keys, nothing is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// A folder or file of this machine.
    Folder(PathBuf),
    /// This process's memory.
    Memory,
    /// `s3://bucket/path`
    S3 { bucket: String, path: String },
    /// `az://container/path`, or `abfss://container@account.dfs.core.windows.net/path`
    Azure { account: Option<String>, container: String, path: String },
    /// `gs://bucket/path`
    Gcs { bucket: String, path: String },
    /// `http(s)://host/path`
    Http(String),
}

/// The schemes, for messages.
const SCHEMES: &str = "s3://, az://, abfss://, gs:// and file://";

impl Location {
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a malformed URI or one of an unknown scheme.
    pub(super) fn parse(uri: &str) -> Result<Location> {
        if uri.trim() != uri || uri.is_empty() || uri.chars().any(char::is_control) {
            return Err(bad(uri, "it is empty, or has spaces around it or control characters inside"));
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return if uri.starts_with("file:") {
                Err(bad(uri, "write file:///absolute/path"))
            } else {
                Ok(Location::Folder(PathBuf::from(uri)))
            };
        };
        if !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
            return Ok(Location::Folder(PathBuf::from(uri)));
        }
        match scheme.to_ascii_lowercase().as_str() {
            "file" => file(uri, rest).map(Location::Folder),
            "memory" => match rest {
                "" | "/" => Ok(Location::Memory),
                _ => Err(bad(uri, "write memory://")),
            },
            "s3" | "s3a" => bucket(uri, rest).map(|(bucket, path)| Location::S3 { bucket, path }),
            "gs" => bucket(uri, rest).map(|(bucket, path)| Location::Gcs { bucket, path }),
            "az" | "azure" | "abfs" | "abfss" | "wasbs" => azure(uri, rest),
            "http" | "https" => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                if authority.is_empty() || authority.contains('@') || rest.contains('#') {
                    return Err(bad(uri, "write http(s)://host/path, without user, password and '#'"));
                }
                Ok(Location::Http(uri.to_owned()))
            }
            other => Err(bad(uri, &format!("{other}:// is not known; there are {SCHEMES}, and plain paths"))),
        }
    }

    /// The URI in the spelling that is shown and recorded, without a trailing slash; a query is left out, since it may hold a
    /// signature.
    pub(super) fn canonical(&self) -> String {
        let joined = |root: String, path: &str| if path.is_empty() { root } else { format!("{root}/{path}") };
        match self {
            Location::Folder(path) => of_path(path),
            Location::Memory => "memory://".to_owned(),
            Location::S3 { bucket, path } => joined(format!("s3://{bucket}"), path),
            Location::Gcs { bucket, path } => joined(format!("gs://{bucket}"), path),
            Location::Azure { account: None, container, path } => joined(format!("az://{container}"), path),
            Location::Azure { account: Some(account), container, path } => {
                joined(format!("abfss://{container}@{account}.dfs.core.windows.net"), path)
            }
            Location::Http(uri) => uri.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The folder or file of this machine that a plain path or `file:///...` names.
pub(super) fn local(uri: &str) -> Result<PathBuf> {
    match Location::parse(uri)? {
        Location::Folder(path) => Ok(path),
        _ => Err(bad(uri, "it is not on this machine; use a path or file:///path")),
    }
}

fn bad(uri: &str, why: &str) -> Error {
    Error::config(format!("'{}' is not a valid place: {why}", shown(uri)))
}

fn file(uri: &str, rest: &str) -> Result<PathBuf> {
    if !rest.starts_with('/') {
        return Err(bad(uri, "a host is not allowed, write file:///absolute/path"));
    }
    if rest.contains(['?', '#']) {
        return Err(bad(uri, "'?' and '#' are not allowed, write them as %3F and %23"));
    }
    let Some(bytes) = percent_decode(rest) else {
        return Err(bad(uri, "'%' must be followed by two hexadecimal digits other than 00"));
    };
    if bytes.split(|b| *b == b'/').any(|segment| segment == b".." || segment == b".") {
        return Err(bad(uri, "'.' and '..' are not allowed"));
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// Bucket and path of `bucket/path`.
fn bucket(uri: &str, rest: &str) -> Result<(String, String)> {
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(bad(uri, "the name of a bucket or container comes first, as in s3://bucket/path"));
    }
    Ok((bucket.to_owned(), path_in_bucket(uri, path)?))
}

fn path_in_bucket(uri: &str, path: &str) -> Result<String> {
    if path.contains(['?', '#']) {
        return Err(bad(
            uri,
            "'?' and '#' are not allowed; credentials and options come from the environment or store:",
        ));
    }
    let path = path.trim_end_matches('/');
    if path.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(bad(uri, "'.' and '..' are not allowed"));
    }
    if !path.is_empty() && path.split('/').any(str::is_empty) {
        return Err(bad(uri, "it has an empty segment, '//'"));
    }
    Ok(path.to_owned())
}

fn azure(uri: &str, rest: &str) -> Result<Location> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((container, host)) = authority.split_once('@') else {
        let (container, path) = bucket(uri, rest)?;
        return Ok(Location::Azure { account: None, container, path });
    };
    let account = [".dfs.core.windows.net", ".blob.core.windows.net"].iter().find_map(|end| host.strip_suffix(end));
    let Some(account) = account.filter(|a| !a.is_empty() && a.bytes().all(|b| b.is_ascii_alphanumeric())) else {
        let text = "write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/path, or az://CONTAINER/path with the account \
                    in AZURE_STORAGE_ACCOUNT_NAME and other clouds in AZURE_STORAGE_ENDPOINT";
        return Err(bad(uri, text));
    };
    let (container, path) = bucket(uri, &format!("{container}/{path}"))?;
    Ok(Location::Azure { account: Some(account.to_owned()), container, path })
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

/// The URI as messages may show it: a password and a query may be secret.
fn shown(uri: &str) -> String {
    let uri = uri.split_once('?').map_or(uri, |(before, _)| before);
    let text = match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let user = authority.rsplit_once('@').map(|(user, _)| user);
            // abfss://container@account is no secret; user:password@host is
            let host = match user {
                Some(user) if user.contains(':') => authority.rsplit_once('@').map_or(authority, |(_, host)| host),
                _ => authority,
            };
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
    fn places_are_parsed_and_written_in_one_way() {
        assert_eq!(local("file:///a/b%20c").unwrap(), Path::new("/a/b c"));
        assert_eq!(local("store/x y").unwrap(), Path::new("store/x y"));
        for (uri, canonical) in [
            ("s3://bucket", "s3://bucket"),
            ("S3://bucket/a/b/", "s3://bucket/a/b"),
            ("s3a://bucket/a b/ü%20.tsv", "s3://bucket/a b/ü%20.tsv"),
            ("gs://bucket/a", "gs://bucket/a"),
            ("az://container/a/", "az://container/a"),
            ("abfss://c@account.dfs.core.windows.net/a", "abfss://c@account.dfs.core.windows.net/a"),
            ("wasbs://c@account.blob.core.windows.net/a", "abfss://c@account.dfs.core.windows.net/a"),
            ("memory://", "memory://"),
            ("https://host/a.tsv?sig=1", "https://host/a.tsv"),
        ] {
            let parsed = Location::parse(uri).unwrap();
            assert_eq!(parsed.canonical(), canonical);
            if !uri.contains('?') {
                assert_eq!(Location::parse(canonical).unwrap(), parsed, "{uri}");
            }
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for uri in [
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
            "s3://",
            "s3:///a",
            "s3://b/a/../c",
            "s3://b//a",
            "s3://b/a?versionId=1",
            "s3://b/a#x",
            "s3://user:pass@b/a",
            "az://c@account/a",
            "abfss://c@account.example.org/a",
            "memory://x",
            "http:///a",
            "https://user:secret@host/a",
            "ftp://h/a",
            "a\nb",
        ] {
            assert_eq!(Location::parse(uri).unwrap_err().kind(), crate::ErrorKind::Config, "{uri}");
        }
        let text = Location::parse("hf://b/k").unwrap_err().to_string();
        assert!(text.contains("hf:// is not known; there are s3://"), "{text}");
        assert!(local("s3://b/k").is_err());
    }

    #[test]
    fn paths_round_trip_and_secrets_are_hidden() {
        for path in ["/a/b", "/ä ö/100%?#", "/"] {
            assert_eq!(local(&of_path(Path::new(path))).unwrap(), Path::new(path));
        }
        let text = Location::parse("https://user:secret@host/p?sig=secret").unwrap_err().to_string();
        assert!(!text.contains("secret"), "{text}");
    }
}
