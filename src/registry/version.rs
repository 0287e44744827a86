//! What a version is: the types, the rules for names, and the digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::storage::{FileDigest, Store, check_key, sha256_hex};

use super::json::FORMAT_VERSION;
use super::reference::{Reference, Selector};

/// Numbers have ten digits in keys.
const MAX_NUMBER: u64 = 9_999_999_999;

/// What a version holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AssetKind {
    /// A dataset.
    Data,
    /// A model package.
    Model,
}

impl AssetKind {
    /// Both kinds.
    pub const ALL: [AssetKind; 2] = [AssetKind::Data, AssetKind::Model];

    /// The name in references: `data` or `model`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            AssetKind::Data => "data",
            AssetKind::Model => "model",
        }
    }

    /// The folder in the store: `data` or `models`.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            AssetKind::Data => "data",
            AssetKind::Model => "models",
        }
    }

    /// What users call one of this kind.
    pub(super) fn noun(self) -> &'static str {
        match self {
            AssetKind::Data => "dataset",
            AssetKind::Model => "model",
        }
    }
}

impl fmt::Display for AssetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A version that is to be published.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// What it holds.
    pub kind: AssetKind,
    /// The name whose next version this is.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// Free pairs for people and their tools.
    pub tags: BTreeMap<String, String>,
    /// The files: path in the version (plain characters, `/` between folders), and where the file lies now.
    pub files: Vec<(String, PathBuf)>,
    /// Who publishes, the same for each attempt: a run id and step, or the fingerprint of the step.
    pub owner: String,
    /// Where it comes from.
    pub lineage: Lineage,
    /// What the kind of job adds, of any shape.
    pub metadata: serde_json::Value,
}

/// Where a version comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The run that made it.
    pub run_id: String,
    /// The step of that run, for pipelines.
    pub step: Option<String>,
    /// [`crate::CODE_VERSION`] of the program that made it.
    pub code_version: String,
    /// Input name to its reference (`data:NAME@7`) or SHA-256.
    pub inputs: BTreeMap<String, String>,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The path in the version.
    pub path: String,
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileEntry {
    /// The content as the store verifies it.
    #[must_use]
    pub fn digest(&self) -> FileDigest {
        FileDigest { size: self.size, sha256: self.sha256.clone() }
    }
}

/// A published version: what its manifest says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The version of this format: 1.
    pub format_version: u32,
    /// What it holds.
    pub kind: AssetKind,
    /// The name.
    pub name: String,
    /// The number, from 1.
    pub version: u64,
    /// When it was published, RFC 3339 in UTC.
    pub created: String,
    /// One sentence for people.
    pub description: String,
    /// Free pairs for people and their tools.
    pub tags: BTreeMap<String, String>,
    /// The files, sorted by path.
    pub files: Vec<FileEntry>,
    /// SHA-256 over the sorted lines `sha256 size path`: equal for equal files.
    pub digest: String,
    /// The folder of the files, relative to the store.
    pub prefix: String,
    /// Who published it.
    pub owner: String,
    /// Where it comes from.
    pub lineage: Lineage,
    /// What the kind of job added.
    pub metadata: serde_json::Value,
}

impl Version {
    /// The reference that names exactly this version: `data:NAME@7`.
    #[must_use]
    pub fn reference(&self) -> String {
        let version = Selector::Number(self.version);
        Reference { kind: self.kind, name: self.name.clone(), version }.to_string()
    }

    /// The URI of the folder of its files.
    #[must_use]
    pub fn uri(&self, store: &Store) -> String {
        store.uri_of(&self.prefix)
    }

    /// The size of all files together, in bytes.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The key of one of its files in the store.
    #[must_use]
    pub fn key(&self, path: &str) -> String {
        format!("{}/{path}", self.prefix)
    }

    /// Refuses a manifest that is not consistent in itself or with the key that it was read from, so that no path of it
    /// leads out of its folder.
    pub(super) fn check(&self, kind: AssetKind, name: &str, number: u64) -> Result<()> {
        let fail = |why: &str| {
            Err(Error::data(format!("the manifest of {kind}:{name}@{number} is damaged: {why}; restore it")))
        };
        if self.format_version != FORMAT_VERSION || self.kind != kind || self.name != name || self.version != number {
            return fail("it is that of another version");
        }
        if self.prefix != prefix(kind, name, number) {
            return fail("its prefix is not its folder");
        }
        if let Err(error) = check_paths(self.files.iter().map(|f| f.path.as_str())) {
            return fail(&error.to_string());
        }
        if self.digest != digest(&self.files) {
            return fail("its digest is not that of its files");
        }
        Ok(())
    }
}

/// Checks the name of a dataset or model: a letter or digit, then letters, digits, `.`, `_` and `-`; at most 128.
///
/// # Errors
/// [`crate::ErrorKind::Config`], naming the name.
pub fn check_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if plain && name.len() <= 128 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Error::config(format!(
        "'{}' is not a valid name: start with a letter or digit and use only letters, digits, '.', '_' and '-', at most 128",
        name.escape_default()
    )))
}

/// Checks the paths of a version: valid keys, none twice, none both a file and a folder.
pub(super) fn check_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for path in paths {
        check_key(path)?;
        if !seen.insert(path) {
            return Err(Error::config(format!("the file '{path}' is there twice, give each its own path")));
        }
    }
    for path in &seen {
        for (at, _) in path.match_indices('/') {
            if seen.contains(&path[..at]) {
                return Err(Error::config(format!("'{}' is both a file and the folder of '{path}'", &path[..at])));
            }
        }
    }
    Ok(())
}

/// The digest of a set of files.
pub(super) fn digest(files: &[FileEntry]) -> String {
    let mut lines: Vec<String> = files.iter().map(|f| format!("{} {} {}\n", f.sha256, f.size, f.path)).collect();
    lines.sort();
    sha256_hex(lines.concat().as_bytes())
}

/// Where the files of a version lie.
pub(super) fn prefix(kind: AssetKind, name: &str, number: u64) -> String {
    format!("{}/{name}/{number}", kind.folder())
}

/// Where manifests and claims of a name lie.
pub(super) fn registry_folder(kind: AssetKind, name: &str) -> String {
    format!("registry/{}/{name}", kind.folder())
}

pub(super) fn manifest_key(kind: AssetKind, name: &str, number: u64) -> String {
    format!("{}/{number:010}.json", registry_folder(kind, name))
}

pub(super) fn claim_key(kind: AssetKind, name: &str, number: u64) -> String {
    format!("{}/{number:010}.claim.json", registry_folder(kind, name))
}

/// Exists when the version was removed.
pub(super) fn removal_key(kind: AssetKind, name: &str, number: u64) -> String {
    format!("{}/{number:010}.removed.json", registry_folder(kind, name))
}

/// Where the histories of a name's aliases lie.
pub(super) fn aliases_folder(kind: AssetKind, name: &str) -> String {
    format!("{}/aliases", registry_folder(kind, name))
}

/// The number in a file name of ten digits and `suffix`.
pub(super) fn number_of(file_name: &str, suffix: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(suffix)?;
    if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|n| (1..=MAX_NUMBER).contains(n))
}
