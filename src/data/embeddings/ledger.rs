//! The ledger of the rows that could not be embedded: JSON lines, by rising row.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// File name of the ledger.
pub const LEDGER: &str = "bad_images.jsonl";

/// A row of a dataset that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// Its place in the dataset, from 1.
    pub row: u64,
    /// Its key, where it can be read.
    pub key: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl BadRow {
    /// The row in a sentence: `row 7: key 'a': the image is empty`.
    #[must_use]
    pub fn describe(&self) -> String {
        let key = self.key.as_ref().map(|key| format!("key '{key}': ")).unwrap_or_default();
        format!("row {}: {key}{}", self.row, self.reason)
    }
}

/// Writes the ledger into `dir`, or sees to it that there is none when no row is bad.
pub(super) fn write(dir: &Path, bad: &[BadRow]) -> Result<()> {
    let path = dir.join(LEDGER);
    if bad.is_empty() {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        };
    }
    let mut file = BufWriter::new(File::create(&path).map_err(|e| Error::io("create", &path, e))?);
    for row in bad {
        let line = serde_json::to_string(row).map_err(|e| Error::internal("cannot write JSON").with_source(e))?;
        writeln!(file, "{line}").map_err(|e| Error::io("write", &path, e))?;
    }
    file.flush().map_err(|e| Error::io("write", &path, e))
}

/// The ledger in `dir`; empty when there is none.
pub(super) fn read(dir: &Path) -> Result<Vec<BadRow>> {
    let path = dir.join(LEDGER);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| Error::io("read", &path, e))?,
    };
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            Error::data(format!("'{}' line {} is no entry of a ledger", path.display(), number + 1)).with_source(e)
        })
    };
    text.lines().enumerate().map(parse).collect()
}
