//! The embeddings of one dataset, as files that other tools read: Parquet, NumPy, pickled pandas DataFrame.
//!
//! Guarantees: the rows of all files are the same, in the order they were pushed; `embeddings.json` is written last, so a
//! folder that has it is complete; [`read`] refuses files of different runs, of a newer format, or that do not fit their
//! manifest. The pickle is written by us and never read by us. Memory while writing is one row group and the names.
//!
//! ```text
//! embeddings.parquet   columns Name, sha256 (of the encoded image), features (fixed-size list of f32); manifest in the footer
//! embeddings.npy       f32 [rows, dim], little endian, C order
//! embeddings.pkl       pandas.DataFrame with the columns Name, image, text, features (image and text are None)
//! embeddings.json      the manifest
//! ```

mod npy;
mod parquet;
mod pickle;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The newest format version this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

/// File name of the Parquet table.
pub const PARQUET: &str = "embeddings.parquet";
/// File name of the NumPy array.
pub const NPY: &str = "embeddings.npy";
/// File name of the pickled DataFrame.
pub const PICKLE: &str = "embeddings.pkl";
/// File name of the manifest.
pub const MANIFEST: &str = "embeddings.json";

/// Where embeddings come from and what shape they have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingsManifest {
    /// The version of this file format.
    pub format_version: u32,
    /// How many rows there are. A writer fills it in.
    pub rows: u64,
    /// How many numbers a feature vector has.
    pub dim: usize,
    /// The model as the job named it, resolved to a version.
    pub model_reference: String,
    /// The digest of the model package.
    pub model_digest: String,
    /// The pixel settings, as in the model package.
    pub pixels: serde_json::Value,
    /// The hash of the program's sources ([`crate::CODE_VERSION`]).
    pub code_version: String,
    /// SHA-256 of the image TSV (hex).
    pub image_tsv_sha256: String,
}

impl EmbeddingsManifest {
    /// Fails if `other` was not made by the same model with the same pixels: their vectors cannot be compared. The names
    /// say in the message which dataset is which.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data), naming what differs.
    pub fn same_space(&self, other: &EmbeddingsManifest, names: (&str, &str)) -> Result<()> {
        let differs = if self.dim != other.dim {
            format!("dimension {} and {}", self.dim, other.dim)
        } else if self.model_digest != other.model_digest {
            format!("models '{}' and '{}'", self.model_reference, other.model_reference)
        } else if self.pixels != other.pixels {
            "pixel settings".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::data(format!(
            "embeddings '{}' and '{}' cannot be used together: different {differs}; embed both with one model",
            names.0, names.1
        )))
    }
}

/// The embeddings of one dataset in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// The key of each row, as in the image TSV.
    pub names: Vec<String>,
    /// SHA-256 (hex) of the encoded image of each row.
    pub hashes: Vec<String>,
    /// How many numbers a feature vector has.
    pub dim: usize,
    /// Feature vectors, row-major `[rows, dim]`.
    pub features: Vec<f32>,
    /// Where they come from.
    pub manifest: EmbeddingsManifest,
}

impl Embeddings {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.names.len()
    }

    /// The feature vector of one row, `[dim]`.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.features[row * self.dim..(row + 1) * self.dim]
    }

    /// Writes all files into `dir`, which is created. Returns the manifest as written.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) if the lengths do not fit; otherwise as [`EmbeddingsWriter`].
    pub fn write(&self, dir: &Path) -> Result<EmbeddingsManifest> {
        if self.hashes.len() != self.rows() || self.features.len() != self.rows() * self.dim {
            return Err(Error::internal("embeddings: names, hashes and features differ in length"));
        }
        let mut writer = EmbeddingsWriter::create(dir, EmbeddingsManifest { dim: self.dim, ..self.manifest.clone() })?;
        for row in 0..self.rows() {
            writer.push(&self.names[row], &self.hashes[row], self.row(row))?;
        }
        writer.finish()
    }

    /// Reads a folder that [`EmbeddingsWriter`] wrote (the Parquet file and the manifest).
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(dir: &Path) -> Result<Self> {
        read(dir)
    }
}

/// Writes the files row by row. Dropping it without [`finish`](Self::finish) leaves a folder without a manifest.
#[derive(Debug)]
pub struct EmbeddingsWriter {
    dir: PathBuf,
    manifest: EmbeddingsManifest,
    names: Vec<String>,
    parquet: parquet::Writer,
    npy: npy::Writer,
}

impl EmbeddingsWriter {
    /// Starts writing into `dir`, which is created; files of an earlier attempt are replaced. Of `manifest`, `rows` and
    /// `format_version` are filled in by the writer.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the dimension is 0; [`Storage`](crate::ErrorKind::Storage) or
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn create(dir: &Path, mut manifest: EmbeddingsManifest) -> Result<Self> {
        if manifest.dim == 0 || i32::try_from(manifest.dim).is_err() {
            return Err(Error::config(format!("embeddings cannot have {} dimensions", manifest.dim)));
        }
        manifest.format_version = FORMAT_VERSION;
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let complete = dir.join(MANIFEST);
        match fs::remove_file(&complete) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace", &complete, e)),
            _ => {}
        }
        Ok(EmbeddingsWriter {
            parquet: parquet::Writer::create(&dir.join(PARQUET), manifest.dim)?,
            npy: npy::Writer::create(&dir.join(NPY), manifest.dim)?,
            dir: dir.to_owned(),
            names: Vec::new(),
            manifest,
        })
    }

    /// Adds one row: its key, the SHA-256 (hex) of the encoded image, and `features` of `[dim]` finite numbers.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the features have another length or are not finite; [`Storage`](crate::ErrorKind::Storage) or
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn push(&mut self, name: &str, sha256: &str, features: &[f32]) -> Result<()> {
        let row = self.names.len() + 1;
        if features.len() != self.manifest.dim {
            let (got, want) = (features.len(), self.manifest.dim);
            return Err(Error::data(format!("embedding of row {row} has {got} numbers instead of {want}")));
        }
        if features.iter().any(|v| !v.is_finite()) {
            return Err(Error::data(format!(
                "embedding of row {row} ('{name}') is not finite: the model's weights or precision are at fault"
            )));
        }
        self.parquet.push(name, sha256, features)?;
        self.npy.push(features)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// How many rows were pushed.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.names.len()
    }

    /// Completes all files, the manifest last, and returns it.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) or [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn finish(mut self) -> Result<EmbeddingsManifest> {
        self.manifest.rows = self.names.len() as u64;
        let json = serde_json::to_string_pretty(&self.manifest)
            .map_err(|e| Error::internal("cannot write the embeddings manifest").with_source(e))?;
        self.parquet.finish(&json)?;
        self.npy.finish(self.names.len())?;
        // columns come one after the other in a DataFrame, so the features are read back from the array file
        let features = npy::rows(&self.dir.join(NPY), self.manifest.dim)?;
        pickle::write(&self.dir.join(PICKLE), &self.names, features)?;
        let path = self.dir.join(MANIFEST);
        fs::write(&path, json + "\n").map_err(|e| Error::io("write", &path, e))?;
        Ok(self.manifest)
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
    serde_json::from_str(text).map_err(damaged)
}

/// Reads the embeddings in `dir` from the Parquet file and checks them against the manifest.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) if a file is missing; [`Data`](crate::ErrorKind::Data) if a file is damaged, has other columns
/// or other rows than the manifest says, or belongs to another run.
pub fn read(dir: &Path) -> Result<Embeddings> {
    let manifest = read_manifest(dir)?;
    let path = dir.join(PARQUET);
    let table = parquet::read(&path, manifest.dim)?;
    let embedded = table.manifest.as_deref().map(parse_manifest).transpose();
    let embedded = embedded.context(|| format!("'{}'", path.display()))?;
    if embedded.as_ref() != Some(&manifest) {
        return Err(Error::data(format!(
            "'{}' does not belong to '{MANIFEST}' beside it: embed the dataset again",
            path.display()
        )));
    }
    if table.names.len() as u64 != manifest.rows {
        return Err(Error::data(format!(
            "'{}' has {} rows, the manifest says {}: embed the dataset again",
            path.display(),
            table.names.len(),
            manifest.rows
        )));
    }
    Ok(Embeddings { names: table.names, hashes: table.hashes, dim: manifest.dim, features: table.features, manifest })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
