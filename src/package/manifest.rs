//! The manifest: every file of a package with size and SHA-256.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::MANIFEST_FILE;
use crate::error::{Error, Result};

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path relative to the package, with `/`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// The content of `medtune-manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest format; 1.
    pub format_version: u32,
    /// All files but the manifest itself, sorted by path.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Hashes every file under `dir`.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) if there is a link or another special file;
    /// [`Storage`](crate::ErrorKind::Storage) if something cannot be read.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        let files = list_files(dir)?
            .into_par_iter()
            .map(|(path, file)| {
                let (size, sha256) = hash_file(&file)?;
                Ok(FileEntry { path, size, sha256 })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Manifest { format_version: 1, files })
    }

    /// Parses `medtune-manifest.json` and checks its paths.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) if it is no manifest, of a newer format, or has a path that leads out of the
    /// package or comes twice.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| Error::package("not a manifest").with_source(e))?;
        if manifest.format_version != 1 {
            return Err(Error::package(format!(
                "format version {} is not supported, only 1: use a newer medtune",
                manifest.format_version
            )));
        }
        if let Some(file) = manifest.files.iter().find(|f| !safe_relative(&f.path)) {
            return Err(Error::package(format!("path '{}' must lie inside the package", file.path)));
        }
        let mut paths: Vec<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
        paths.sort_unstable();
        if let Some(pair) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::package(format!("path '{}' is listed twice", pair[0])));
        }
        Ok(manifest)
    }

    /// The manifest as it is written.
    ///
    /// # Errors
    /// None in practice; serialisation is fallible by type.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|e| Error::internal("cannot write the manifest").with_source(e))
    }
}

/// Whether `path` is a plain relative path with `/` that stays inside the folder it is relative to, on every platform.
#[must_use]
pub fn safe_relative(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Size and SHA-256 (lower-case hex) of a file, read in blocks.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) or [`Storage`](crate::ErrorKind::Storage).
pub fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(|e| Error::io("read", path, e))?;
        if count == 0 {
            return Ok((size, hex(&hash.finalize())));
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// All files under `dir` but the manifest and what readers leave there (`registered_model_meta`, `__pycache__`), as relative
/// path and full path, sorted by path. A link is an error: it could lead out of the package.
pub(super) fn list_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    walk(dir, "", &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(Error::package(format!("file name '{}' is not UTF-8: rename it", path.display())));
        };
        let relative = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(|e| Error::io("read", &path, e))?;
        if kind.is_dir() {
            if name != "__pycache__" {
                walk(&path, &format!("{relative}/"), files)?;
            }
        } else if kind.is_file() {
            if relative != MANIFEST_FILE && relative != "registered_model_meta" {
                files.push((relative, path));
            }
        } else {
            return Err(Error::package(format!(
                "'{}' is a link or special file, a package holds plain files: replace it by its content",
                path.display()
            )));
        }
    }
    Ok(())
}
