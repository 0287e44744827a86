//! The line index of a TSV, a file of one byte offset a line, and what readers by offset have in common.

use std::fmt::Display;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};

use super::tsv::index_path;

/// The bytes of the index beside a TSV, if there is one.
///
/// # Errors
/// `Storage` when it cannot be read.
pub(super) fn read(tsv: &Path) -> Result<Option<Vec<u8>>> {
    let path = index_path(tsv);
    if path == tsv {
        return Ok(None);
    }
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|e| Error::io("read", &path, e)),
    }
}

/// The offsets in an index of a TSV of `size` bytes.
///
/// # Errors
/// Why it cannot be the index of such a file, for [`stale`].
pub(super) fn parse(text: &[u8], size: u64) -> std::result::Result<Vec<u64>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let mut offsets: Vec<u64> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let offset = line.trim().parse().map_err(|_| format!("line {number} is not a number"))?;
        let follows = offsets.last().map_or(offset == 0, |last| offset > *last);
        if !follows || offset >= size {
            return Err(format!("line {number} is no offset into the file"));
        }
        offsets.push(offset);
    }
    if offsets.is_empty() && size > 0 {
        return Err("it is empty".to_owned());
    }
    Ok(offsets)
}

/// A line between two offsets without its end; `last` is the file's last one, which needs none. `None` if it is not one line,
/// which only a wrong index makes.
pub(super) fn body(line: &[u8], last: bool) -> Option<&[u8]> {
    let body = line.strip_suffix(b"\n").unwrap_or(line);
    let whole = !body.contains(&b'\n') && (last || body.len() < line.len());
    whole.then(|| body.strip_suffix(b"\r").unwrap_or(body))
}

/// The error of an index that does not fit its TSV.
pub(super) fn stale(index: impl Display, tsv: impl Display, message: impl Display) -> Error {
    Error::data(format!("'{index}' does not belong to '{tsv}': {message}; delete it (it is rebuilt in memory)"))
}

/// The encoded image that a row's value holds in standard base64.
///
/// # Errors
/// What is wrong with the value, without its bytes.
pub(super) fn decode_value(value: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let image = STANDARD.decode(value).map_err(|e| format!("the image is not valid base64 ({})", describe(&e)))?;
    if image.is_empty() { Err("the image is empty".to_owned()) } else { Ok(image) }
}

/// base64 errors without the offending bytes.
fn describe(error: &base64::DecodeError) -> String {
    match error {
        base64::DecodeError::InvalidByte(at, _) => format!("wrong character at position {}", at + 1),
        base64::DecodeError::InvalidLength(length) => format!("impossible length {length}"),
        base64::DecodeError::InvalidLastSymbol(at, _) => format!("wrong last character at position {}", at + 1),
        base64::DecodeError::InvalidPadding => "wrong padding".to_owned(),
    }
}
