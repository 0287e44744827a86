//! Puts the files of an embeddings folder together, part by part.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

use super::{
    BadRow, EmbeddingsManifest, FORMAT_VERSION, MANIFEST, NPY, PICKLE, Part, PartEntry, ledger, npy, part, part_name,
    pickle,
};

/// Completes a folder whose Parquet files are made one after the other. Dropping it without [`finish`](Self::finish) leaves a folder
/// without a manifest.
#[derive(Debug)]
pub struct EmbeddingsWriter {
    dir: PathBuf,
    manifest: EmbeddingsManifest,
    bad: Vec<BadRow>,
    /// The row of each key, by the first half of the key's SHA-256: keys of millions of rows would need much memory.
    keys: HashMap<u128, u64>,
    names: Vec<String>,
    npy: Option<npy::Writer>,
    keep_npy: bool,
    pickle: bool,
}

impl EmbeddingsWriter {
    /// Starts a folder, which is created; the manifest of an earlier attempt is removed. Of `manifest`, what is counted is filled in
    /// by the writer. `npy` and `pickle` say whether those are written too.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if the dimension is 0; [`Storage`](crate::ErrorKind::Storage) or
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn create(dir: &Path, mut manifest: EmbeddingsManifest, (npy, pickle): (bool, bool)) -> Result<Self> {
        let dim = manifest.space.dim;
        if dim == 0 || i32::try_from(dim).is_err() {
            return Err(Error::config(format!("embeddings cannot have {dim} dimensions")));
        }
        manifest.format_version = FORMAT_VERSION;
        manifest.parts.clear();
        let parquet = dir.join("parquet");
        fs::create_dir_all(&parquet).map_err(|e| Error::io("create", &parquet, e))?;
        let complete = dir.join(MANIFEST);
        match fs::remove_file(&complete) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace", &complete, e)),
            _ => {}
        }
        // the pickle is made from the array, which then goes away unless it is wanted too
        let array = (npy || pickle).then(|| npy::Writer::create(&dir.join(NPY), dim)).transpose()?;
        Ok(EmbeddingsWriter {
            dir: dir.to_owned(),
            manifest,
            bad: Vec::new(),
            keys: HashMap::new(),
            names: Vec::new(),
            npy: array,
            keep_npy: npy,
            pickle,
        })
    }

    /// Where the next part's file is to be, for [`add`](Self::add).
    #[must_use]
    pub fn next_path(&self) -> PathBuf {
        self.dir.join(part_name(self.manifest.parts.len()))
    }

    /// Takes in the part that was written at [`next_path`](Self::next_path), and the bad rows among its own. A row whose key was there
    /// before goes to the ledger, and the file is written again without it.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the file is not a readable part; [`Storage`](crate::ErrorKind::Storage) or
    /// [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn add(&mut self, bad: Vec<BadRow>) -> Result<()> {
        let path = self.next_path();
        let dim = self.manifest.space.dim;
        let (space, rows, names) = part::read_keys(&path)?;
        if space.as_ref() != Some(&self.manifest.space) {
            return Err(Error::internal(format!("'{}' was made by another model or program", path.display())));
        }
        let mut keep = vec![true; names.len()];
        for (index, (name, &row)) in names.iter().zip(&rows).enumerate() {
            if let Some(first) = self.keys.get(&short(name)) {
                keep[index] = false;
                let reason = format!("the key was used in row {first} already");
                self.bad.push(BadRow { row, key: Some(name.clone()), reason });
            } else {
                self.keys.insert(short(name), row);
            }
        }
        let mut table = Part::default();
        if keep.contains(&false) || self.npy.is_some() {
            table = part::read(&path, dim)?.1;
        }
        if keep.contains(&false) {
            table.retain(&keep, dim);
            table.write(&path, &self.manifest.space)?;
        }
        self.bad.extend(bad);
        let kept = keep.iter().filter(|k| **k).count();
        if let Some(npy) = &mut self.npy {
            npy.push(&table.features)?;
        }
        if self.pickle {
            self.names.extend(names.into_iter().zip(&keep).filter(|(_, keep)| **keep).map(|(name, _)| name));
        }
        self.manifest.rows += kept as u64;
        let file = part_name(self.manifest.parts.len());
        self.manifest.parts.push(PartEntry { file, rows: kept as u64 });
        Ok(())
    }

    /// The bad rows so far.
    #[must_use]
    pub fn bad(&self) -> &[BadRow] {
        &self.bad
    }

    /// Completes all files, the manifest last, and returns it.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) or [`NoSpace`](crate::ErrorKind::NoSpace) if files cannot be written.
    pub fn finish(mut self) -> Result<EmbeddingsManifest> {
        self.bad.sort_by_key(|bad| bad.row);
        self.manifest.bad_rows = self.bad.len() as u64;
        ledger::write(&self.dir, &self.bad)?;
        let array = self.dir.join(NPY);
        if let Some(npy) = self.npy {
            npy.finish(self.manifest.rows as usize)?;
            if self.pickle {
                // columns come one after the other in a DataFrame, so the features are read back from the array file
                let features = npy::rows(&array, self.manifest.space.dim)?;
                pickle::write(&self.dir.join(PICKLE), &self.names, features)?;
            }
            if !self.keep_npy {
                fs::remove_file(&array).map_err(|e| Error::io("remove", &array, e))?;
            }
        }
        let json = serde_json::to_string_pretty(&self.manifest)
            .map_err(|e| Error::internal("cannot write the embeddings manifest").with_source(e))?;
        let path = self.dir.join(MANIFEST);
        fs::write(&path, json + "\n").map_err(|e| Error::io("write", &path, e))?;
        Ok(self.manifest)
    }
}

/// The first half of a key's SHA-256: two keys with the same one are not to be found.
fn short(key: &str) -> u128 {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().take(16).fold(0, |value, byte| value << 8 | u128::from(*byte))
}
