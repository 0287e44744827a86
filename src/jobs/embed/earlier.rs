//! Vectors of an earlier version, by the hash of their image: what is in it already is not computed again.

use crate::data::embeddings::{self, EmbeddingsManifest, Part, Space};
use crate::error::{Context, ErrorKind, Result};
use crate::registry::{self, Reference};
use crate::storage::Store;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

/// Parts whose vectors are kept at hand: images mostly stand in the order of before.
const KEPT: usize = 2;

/// Where each image's vector is.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<u128, (u32, u32)>);

/// An earlier version.
#[derive(Debug)]
pub(super) struct Earlier {
    folder: PathBuf,
    manifest: EmbeddingsManifest,
    /// Apart, since it alone is looked at by several threads.
    pub(super) places: Places,
    parts: RefCell<Vec<(u32, Part)>>,
}

impl Earlier {
    /// The vectors of a version; `None` if it is no embeddings, or was made by another model or from other pixels.
    ///
    /// # Errors
    /// Those of fetching it.
    pub(super) fn open(store: &Store, reference: &str, space: &Space) -> Result<Option<Earlier>> {
        let version = registry::get(store, &Reference::parse(reference, None)?)?;
        // its metadata say what is in it, without fetching it
        let known: Option<EmbeddingsManifest> = serde_json::from_value(version.metadata.clone()).ok();
        let fits = |other: &Space| other.differs(space).is_none() && other.precision == space.precision;
        if !known.is_some_and(|manifest| fits(&manifest.space)) {
            return Ok(None);
        }
        let folder = registry::open_local(store, &version)?;
        let manifest = match embeddings::read_manifest(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            manifest => manifest.context(|| reference)?,
        };
        let mut places = Places::default();
        for (part, entry) in (0..).zip(&manifest.parts) {
            for (row, hash) in (0..).zip(embeddings::read_hashes(&folder, entry)?) {
                places.0.extend(short(&hash).map(|hash| (hash, (part, row))));
            }
        }
        tracing::info!(from = reference, vectors = places.0.len(), "vectors of images that are known are taken over");
        Ok(Some(Earlier { folder, manifest, places, parts: RefCell::default() }))
    }

    /// Adds the vector of an image that is in [`Earlier::places`] to `into`.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the version is damaged.
    pub(super) fn vector(&self, sha256: &str) -> Result<Option<Vec<f32>>> {
        let Some(&(number, row)) = short(sha256).and_then(|hash| self.places.0.get(&hash)) else { return Ok(None) };
        let mut parts = self.parts.borrow_mut();
        if !parts.iter().any(|(n, _)| *n == number) {
            let entry = &self.manifest.parts[number as usize];
            let part = embeddings::read_part(&self.folder, &self.manifest, entry);
            let part = part.context(|| "an earlier version cannot be used, parameters.reuse: false does without it")?;
            parts.truncate(KEPT - 1);
            parts.insert(0, (number, part));
        }
        let (dim, row) = (self.manifest.space.dim, row as usize);
        let found = parts.iter().find(|(n, _)| *n == number);
        Ok(found.and_then(|(_, part)| part.features.get(row * dim..(row + 1) * dim)).map(<[f32]>::to_vec))
    }
}

impl Places {
    /// Whether there is a vector of the image with this SHA-256.
    pub(super) fn contain(&self, sha256: &str) -> bool {
        short(sha256).is_some_and(|hash| self.0.contains_key(&hash))
    }
}

/// The first half of a SHA-256: two images with the same one are not to be found.
fn short(sha256: &str) -> Option<u128> {
    u128::from_str_radix(sha256.get(..32)?, 16).ok()
}
