//! How two versions differ: in their files, and in what their manifests say.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::version::{FileEntry, Version};

/// A file that both versions have, with other content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedFile {
    /// The path in both.
    pub path: String,
    /// What it was.
    pub from: FileContent,
    /// What it is.
    pub to: FileContent,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileContent {
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256.
    pub sha256: String,
}

impl From<&FileEntry> for FileContent {
    fn from(file: &FileEntry) -> Self {
        FileContent { size: file.size, sha256: file.sha256.clone() }
    }
}

/// How the files of two versions differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FilesDiff {
    /// Only in the second.
    pub added: Vec<FileEntry>,
    /// Only in the first.
    pub removed: Vec<FileEntry>,
    /// In both, with other content.
    pub changed: Vec<ChangedFile>,
    /// How many are the same in both.
    pub unchanged: usize,
}

/// Something that the manifests say differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldDiff {
    /// The field, such as `description`, `tags.site`, `lineage.inputs.image_tsv` or `metadata.epochs`.
    pub field: String,
    /// What the first says; `None` if it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What the second says; `None` if it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// How two versions differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionDiff {
    /// The reference of the first.
    pub from: String,
    /// The reference of the second.
    pub to: String,
    /// Their files.
    pub files: FilesDiff,
    /// Description, tags, lineage and metadata, by field.
    pub fields: Vec<FieldDiff>,
}

/// Compares two versions by their manifests; no file is read. Owner, number and time of publishing always differ and are
/// left out.
#[must_use]
pub fn diff(from: &Version, to: &Version) -> VersionDiff {
    let fields = |version: &Version| {
        let mut fields = BTreeMap::new();
        let said = [
            ("description", Value::from(version.description.as_str())),
            ("tags", serde_json::to_value(&version.tags).unwrap_or_default()),
            ("lineage", serde_json::to_value(&version.lineage).unwrap_or_default()),
            ("metadata", version.metadata.clone()),
        ];
        said.into_iter().for_each(|(name, value)| flatten(name, value, &mut fields));
        fields
    };
    let (mut old, mut new) = (fields(from), fields(to));
    let names: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    let fields = names.into_iter().map(|field| {
        let (from, to) = (old.remove(&field), new.remove(&field));
        FieldDiff { field, from, to }
    });
    VersionDiff {
        from: from.reference(),
        to: to.reference(),
        files: files(from, to),
        fields: fields.filter(|f| f.from != f.to).collect(),
    }
}

fn files(from: &Version, to: &Version) -> FilesDiff {
    let mut old: BTreeMap<&str, &FileEntry> = from.files.iter().map(|f| (f.path.as_str(), f)).collect();
    let mut diff = FilesDiff::default();
    for file in &to.files {
        match old.remove(file.path.as_str()) {
            None => diff.added.push(file.clone()),
            Some(before) if before == file => diff.unchanged += 1,
            Some(before) => {
                diff.changed.push(ChangedFile { path: file.path.clone(), from: before.into(), to: file.into() });
            }
        }
    }
    diff.removed = old.into_values().cloned().collect();
    diff
}

/// Adds the leaves of a value under their paths. Lists are leaves; null and empty objects say nothing.
fn flatten(path: &str, value: Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Null => {}
        Value::Object(map) => map.into_iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, fields)),
        leaf => drop(fields.insert(path.to_owned(), leaf)),
    }
}
