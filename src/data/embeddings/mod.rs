//! The embeddings of one dataset, as files that other tools read: Parquet, and NumPy and a pickled pandas DataFrame on request.
//!
//! Guarantees: rows stand in the order of their dataset, and each says its place there; a row that could not be embedded is in
//! the ledger and nowhere else; `embeddings.json` is written last, so a folder that has it is complete; [`read`] refuses
//! files of different runs, of a newer format, or that do not fit their manifest. The pickle is written by us and never read
//! by us.
//!
//! ```text
//! parquet/part-00000.parquet   columns row (from 1), Name, sha256 (of the encoded image), features (fixed-size list of f32);
//!                              model, pixel settings and code version in the schema's metadata; further parts follow
//! bad_images.jsonl             the ledger: one JSON object a line with row, key and reason; missing when all is well
//! texts.parquet                the same columns for label texts, when there are any: Name is the label, sha256 that of the text
//! embeddings.npy               f32 [rows, dim], little endian, C order (on request)
//! embeddings.pkl               pandas.DataFrame with the columns Name, image, text, features (image and text are None; on request)
//! embeddings.json              the manifest
//! ```
//!
//! The first format had one file `embeddings.parquet` without the column `row`; it is still read.

mod ledger;
mod npy;
mod part;
mod pickle;
mod writer;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

pub use ledger::{BadRow, LEDGER};
pub use part::Part;
pub use writer::EmbeddingsWriter;

/// The newest format version this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 2;

/// File name of the table of the first format.
const ONE_PARQUET: &str = "embeddings.parquet";
/// File name of the NumPy array.
pub const NPY: &str = "embeddings.npy";
/// File name of the pickled DataFrame.
pub const PICKLE: &str = "embeddings.pkl";
/// File name of the vectors of label texts.
pub const TEXTS: &str = "texts.parquet";
/// File name of the manifest.
pub const MANIFEST: &str = "embeddings.json";

/// The name of a part in its folder, counted from 0.
#[must_use]
pub fn part_name(part: usize) -> String {
    format!("parquet/part-{part:05}.parquet")
}

/// What vectors must share to be compared with each other, and which program made them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// How many numbers a feature vector has.
    pub dim: usize,
    /// The model as the job named it, resolved to a version.
    pub model_reference: String,
    /// The digest of the model package.
    pub model_digest: String,
    /// The pixel settings, as in the model package.
    pub pixels: serde_json::Value,
    /// The number type that the model computed in.
    #[serde(default = "f32_name")]
    pub precision: String,
    /// [`crate::imaging::PIXELS_VERSION`] of the program; 0 in files from before it was kept.
    #[serde(default)]
    pub pixels_version: u32,
    /// The hash of the program's sources ([`crate::CODE_VERSION`]).
    pub code_version: String,
}

fn f32_name() -> String {
    "f32".to_owned()
}

impl Space {
    /// What keeps vectors of `self` and `other` from being used together, if something does.
    #[must_use]
    pub fn differs(&self, other: &Space) -> Option<String> {
        if self.dim != other.dim {
            Some(format!("dimension {} and {}", self.dim, other.dim))
        } else if self.model_digest != other.model_digest {
            Some(format!("models '{}' and '{}'", self.model_reference, other.model_reference))
        } else if self.pixels != other.pixels {
            Some("pixel settings".to_owned())
        } else {
            None
        }
    }
}

/// One file of vectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its name in the folder.
    pub file: String,
    /// Its rows.
    pub rows: u64,
}

/// Vectors that were taken over from an earlier version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reused {
    /// The version.
    pub from: String,
    /// How many vectors.
    pub rows: u64,
}

/// Label texts with vectors of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// How many there are.
    pub rows: u64,
    /// The text that a label became; `{}` is the label.
    pub template: String,
    /// What the label file was: `sha256:` and the hash of its content or of its version's.
    pub label_file: String,
}

/// Where embeddings come from and what shape they have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingsManifest {
    /// The version of this file format.
    pub format_version: u32,
    /// How many rows there are. A writer fills it in.
    pub rows: u64,
    /// Model, pixels and program.
    #[serde(flatten)]
    pub space: Space,
    /// What the image TSV was: `sha256:` and the hash of its content, or `etag:` and a hash of its place, ETag and size.
    #[serde(alias = "image_tsv_sha256")]
    pub image_tsv: String,
    /// How many rows the image TSV has.
    #[serde(default)]
    pub image_tsv_rows: u64,
    /// How many rows of the image TSV are in the ledger. A writer fills it in.
    #[serde(default)]
    pub bad_rows: u64,
    /// What was taken over from an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused: Option<Reused>,
    /// The label texts in [`TEXTS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Texts>,
    /// The Parquet files in order. A writer fills them in.
    #[serde(default)]
    pub parts: Vec<PartEntry>,
}

impl EmbeddingsManifest {
    /// Fails if `other` was not made by the same model with the same pixels: their vectors cannot be compared. The names
    /// say in the message which dataset is which.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data), naming what differs.
    pub fn same_space(&self, other: &EmbeddingsManifest, names: (&str, &str)) -> Result<()> {
        let Some(differs) = self.space.differs(&other.space) else { return Ok(()) };
        Err(Error::data(format!(
            "embeddings '{}' and '{}' cannot be used together: different {differs}; embed both with one model",
            names.0, names.1
        )))
    }
}

/// The embeddings of one dataset in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// All rows.
    pub table: Part,
    /// The rows of the dataset that could not be embedded, rising.
    pub bad: Vec<BadRow>,
    /// Where they come from.
    pub manifest: EmbeddingsManifest,
}

impl Embeddings {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.table.len()
    }

    /// How many numbers a vector has.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.manifest.space.dim
    }

    /// The feature vector of one row, `[dim]`.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.table.features[row * self.dim()..(row + 1) * self.dim()]
    }
}

/// Reads and checks the manifest of an embeddings folder, without the vectors.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) if there is none (also after an interrupted write); [`Data`](crate::ErrorKind::Data) if it
/// cannot be parsed or is of a newer format.
pub fn read_manifest(dir: &Path) -> Result<EmbeddingsManifest> {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    parse_manifest(&text).context(|| format!("'{}'", path.display()))
}

fn parse_manifest(text: &str) -> Result<EmbeddingsManifest> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let damaged = |e| Error::data("not an embeddings manifest").with_source(e);
    // the version first: a newer format may have any other fields
    let Version { format_version } = serde_json::from_str(text).map_err(damaged)?;
    if format_version > FORMAT_VERSION {
        return Err(Error::data(format!(
            "format version {format_version} is newer than {FORMAT_VERSION}: read it with a newer medtune"
        )));
    }
    let mut manifest: EmbeddingsManifest = serde_json::from_str(text).map_err(damaged)?;
    if format_version == 1 {
        manifest.image_tsv = format!("sha256:{}", manifest.image_tsv);
        manifest.image_tsv_rows = manifest.rows;
        manifest.parts = vec![PartEntry { file: ONE_PARQUET.to_owned(), rows: manifest.rows }];
    }
    // a manifest names files of its own folder only
    match manifest.parts.iter().find(|p| p.file != ONE_PARQUET && !is_part(&p.file)) {
        Some(part) => Err(Error::data(format!("'{}' is no name of a part", part.file.escape_debug()))),
        None => Ok(manifest),
    }
}

fn is_part(file: &str) -> bool {
    let digits = file.strip_prefix("parquet/part-").and_then(|rest| rest.strip_suffix(".parquet"));
    digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
}

/// Reads one part of the embeddings in `dir` and compares it with their manifest.
///
/// # Errors
/// As [`read`].
pub fn read_part(dir: &Path, manifest: &EmbeddingsManifest, part: &PartEntry) -> Result<Part> {
    let path = dir.join(&part.file);
    let (space, table) = part::read(&path, manifest.space.dim)?;
    let space: Option<Space> = space.and_then(|json| serde_json::from_str(&json).ok());
    if space.as_ref() != Some(&manifest.space) {
        return Err(Error::data(format!(
            "'{}' does not belong to '{MANIFEST}' beside it: embed the dataset again",
            path.display()
        )));
    }
    if table.len() as u64 != part.rows {
        return Err(Error::data(format!(
            "'{}' has {} rows, the manifest says {}: embed the dataset again",
            path.display(),
            table.len(),
            part.rows
        )));
    }
    Ok(table)
}

/// The SHA-256 of the images of one part, in order, without its vectors.
///
/// # Errors
/// As [`read`].
pub fn read_hashes(dir: &Path, part: &PartEntry) -> Result<Vec<String>> {
    part::read_hashes(&dir.join(&part.file))
}

/// Reads the embeddings in `dir` from the Parquet files and checks them against the manifest.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) if a file is missing; [`Data`](crate::ErrorKind::Data) if a file is damaged, has other columns
/// or other rows than the manifest says, or belongs to another run.
pub fn read(dir: &Path) -> Result<Embeddings> {
    let manifest = read_manifest(dir)?;
    let mut table = Part::default();
    for entry in &manifest.parts {
        let part = read_part(dir, &manifest, entry)?;
        table.rows.extend(part.rows);
        table.names.extend(part.names);
        table.hashes.extend(part.hashes);
        table.features.extend(part.features);
    }
    let bad = ledger::read(dir)?;
    let all = (table.len() + bad.len()) as u64 == manifest.image_tsv_rows;
    if table.len() as u64 != manifest.rows || bad.len() as u64 != manifest.bad_rows || !all {
        return Err(Error::data(format!(
            "'{}' has {} rows and {} bad ones, the manifest says {} and {} of {}: embed the dataset again",
            dir.display(),
            table.len(),
            bad.len(),
            manifest.rows,
            manifest.bad_rows,
            manifest.image_tsv_rows
        )));
    }
    Ok(Embeddings { table, bad, manifest })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
