//! Reads and verifies packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::config::PackageConfig;
use super::manifest::{FileEntry, Manifest, hash_file, hex, list_files};
use super::{CHECKPOINTS, CONFIG_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE};
use crate::error::{Context, Error, ErrorKind, Result};

/// How many differing files a message names.
const NAMED: usize = 10;

/// A package on disk, its configuration read. The files' content is not verified; see [`verify_package`].
#[derive(Debug, Clone)]
pub struct Package {
    /// The package's folder.
    pub dir: PathBuf,
    /// The content of `medtune.json`.
    pub config: PackageConfig,
    /// The list of files.
    pub manifest: Manifest,
    /// SHA-256 (hex) of the manifest file: it stands for the whole content.
    pub digest: String,
}

impl Package {
    /// The checkpoints folder.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join(CHECKPOINTS)
    }

    /// The path of a file that the configuration names.
    #[must_use]
    pub fn file(&self, relative: &str) -> PathBuf {
        self.checkpoints().join(relative)
    }

    /// The path of the architecture's `config.yaml`.
    #[must_use]
    pub fn model_config(&self) -> PathBuf {
        self.file(MODEL_CONFIG_FILE)
    }

    /// The path of the weights.
    #[must_use]
    pub fn weights(&self) -> PathBuf {
        self.file(&self.config.weights)
    }

    /// The path of `tokenizer.json`.
    #[must_use]
    pub fn tokenizer(&self) -> PathBuf {
        self.file(&self.config.tokenizer)
    }

    /// SHA-256 over the weights and the model's sizes: equal exactly when two packages encode pixels alike, whatever else
    /// they hold.
    #[must_use]
    pub fn encoder_digest(&self) -> String {
        let parts = [self.config.weights.as_str(), MODEL_CONFIG_FILE].map(|file| format!("{CHECKPOINTS}/{file}"));
        let mut hasher = Sha256::new();
        for part in &parts {
            let entry = self.manifest.files.iter().find(|f| &f.path == part);
            hasher.update(entry.map_or("", |f| f.sha256.as_str()));
        }
        hex(&hasher.finalize())
    }

    /// SHA-256 (hex) over what a classifier decides by, as [`Package::classifier_with`] gives it; `None` for embeddings.
    ///
    /// # Errors
    /// As [`Package::labels`].
    pub fn classifier_identity(&self) -> Result<Option<String>> {
        let Some(classifier) = &self.config.classifier else { return Ok(None) };
        let adapter = classifier.adapter.as_ref().map(|path| format!("{CHECKPOINTS}/{path}"));
        let entry = adapter.and_then(|path| self.manifest.files.iter().find(|f| f.path == path));
        let head = (classifier.text_template.as_str(), entry.map(|e| e.sha256.as_str()));
        Ok(Some(self.classifier_with(&self.labels()?, head)))
    }

    /// SHA-256 (hex) over what a classifier made of this model decides by: encoder, pixel settings, tokenizer, labels, and the SHA-256 of its
    /// adapter's weights or, without one, the template of the label texts. Packages that differ elsewhere only have the same.
    #[must_use]
    pub fn classifier_with(&self, labels: &[String], (template, adapter): (&str, Option<&str>)) -> String {
        let head = adapter.map_or_else(|| format!("template {template}"), |sha256| format!("adapter {sha256}"));
        let tokenizer = format!("{CHECKPOINTS}/{}", self.config.tokenizer);
        let tokenizer = self.manifest.files.iter().find(|f| f.path == tokenizer).map(|f| f.sha256.as_str());
        let parts = serde_json::json!([self.encoder_digest(), self.config.pixels, tokenizer, labels, head]);
        hex(&Sha256::digest(parts.to_string()))
    }

    /// The label texts in class order; empty for embeddings.
    ///
    /// # Errors
    /// [`Package`](ErrorKind::Package) if the label file is not a JSON list of texts.
    pub fn labels(&self) -> Result<Vec<String>> {
        self.config.labels_in(&self.checkpoints())
    }
}

/// Reads the configuration and manifest of the package in `dir` and checks that the files they name are there, by size.
///
/// # Errors
/// [`Package`](ErrorKind::Package), naming the file, if something is missing, unreadable, inconsistent or of a newer format.
pub fn read_package(dir: &Path) -> Result<Package> {
    let (manifest, digest) = read_manifest(dir)?;
    let path = dir.join(CHECKPOINTS).join(CONFIG_FILE);
    let text = String::from_utf8(read(&path)?)
        .map_err(|e| Error::package(format!("'{}' is not UTF-8", path.display())).with_source(e))?;
    let config = PackageConfig::parse(&text).context(|| format!("'{}'", path.display()))?;
    let listed: BTreeMap<&str, &FileEntry> = manifest.files.iter().map(|f| (f.path.as_str(), f)).collect();
    for file in config.files() {
        let relative = format!("{CHECKPOINTS}/{file}");
        let Some(entry) = listed.get(relative.as_str()) else {
            return Err(Error::package(format!("'{relative}' is not in '{MANIFEST_FILE}' of '{}'", dir.display())));
        };
        let path = dir.join(&relative);
        match plain_size(dir, &relative)? {
            Some(size) if size == entry.size => {}
            Some(size) => {
                return Err(Error::package(format!(
                    "'{}' has {size} bytes instead of {}: fetch the package again",
                    path.display(),
                    entry.size
                )));
            }
            None => return Err(Error::package(format!("'{}' is missing: fetch the package again", path.display()))),
        }
    }
    Ok(Package { dir: dir.to_owned(), config, manifest, digest })
}

/// Hashes every file of the package in `dir` and compares with its manifest. What readers leave behind
/// (`registered_model_meta`, `__pycache__`) does not count.
///
/// # Errors
/// [`Package`](ErrorKind::Package), naming the changed, missing and added files.
pub fn verify_package(dir: &Path) -> Result<()> {
    let (manifest, _) = read_manifest(dir)?;
    let present: BTreeMap<String, PathBuf> = list_files(dir)?.into_iter().collect();
    let mut differences: Vec<String> = manifest
        .files
        .par_iter()
        .map(|entry| {
            let Some(path) = present.get(&entry.path) else { return Ok(Some(format!("missing '{}'", entry.path))) };
            let same = hash_file(path)? == (entry.size, entry.sha256.clone());
            Ok((!same).then(|| format!("changed '{}'", entry.path)))
        })
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let listed: std::collections::BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    differences.extend(present.keys().filter(|p| !listed.contains(p.as_str())).map(|p| format!("added '{p}'")));
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(NAMED);
    differences.truncate(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::package(format!(
        "package '{}' is not as it was written: {}{more}; fetch it again",
        dir.display(),
        differences.join(", ")
    )))
}

/// The files of the package in `dir` as relative path and full path, for publishing: those of the manifest, sorted, and the
/// manifest last.
///
/// # Errors
/// [`Package`](ErrorKind::Package) if there is no readable manifest.
pub fn package_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let (manifest, _) = read_manifest(dir)?;
    let paths = manifest.files.into_iter().map(|f| f.path).chain([MANIFEST_FILE.to_owned()]);
    Ok(paths.map(|path| (path.clone(), dir.join(path))).collect())
}

fn read_manifest(dir: &Path) -> Result<(Manifest, String)> {
    let path = dir.join(MANIFEST_FILE);
    let bytes = read(&path).context(|| format!("'{}' is not a complete medtune package", dir.display()))?;
    let manifest = Manifest::parse(&bytes).context(|| format!("'{}'", path.display()))?;
    Ok((manifest, hex(&Sha256::digest(&bytes))))
}

/// A missing part makes the package unusable, so it is a package error.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| {
        let error = Error::io("read", path, e);
        if error.kind() == ErrorKind::NotFound { error.with_kind(ErrorKind::Package) } else { error }
    })
}

/// The size of a plain file, none of whose folders below `dir` is a link; `None` if it does not exist.
fn plain_size(dir: &Path, relative: &str) -> Result<Option<u64>> {
    let mut path = dir.to_owned();
    for part in relative.split('/') {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                return Err(Error::package(format!("'{}' is a link: a package holds plain files", path.display())));
            }
            Ok(found) if found.is_file() => return Ok(Some(found.len())),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
