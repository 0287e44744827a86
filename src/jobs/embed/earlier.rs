//! Vectors of an earlier version, by the hash of their image: what is in it already is not computed again.

use crate::data::embeddings::{self, EmbeddingsManifest, Part, Space};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::registry::{self, Reference};
use crate::storage::Store;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

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
    /// The part that was read last: images mostly stand in the order of before.
    last: RefCell<Option<(u32, Part)>>,
}

impl Earlier {
    /// The vectors of a version; `None` if it is no embeddings, or was made by another model or from other pixels, or is damaged, gone,
    /// or too large for this machine: then all vectors are computed.
    ///
    /// # Errors
    /// Those of fetching it.
    pub(super) fn open(store: &Store, reference: &str, space: &Space) -> Result<Option<Earlier>> {
        match Earlier::read(store, reference, space) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Data | ErrorKind::NoSpace) => {
                tracing::warn!(%error, "nothing can be taken over from {reference}");
                Ok(None)
            }
            found => found,
        }
    }

    fn read(store: &Store, reference: &str, space: &Space) -> Result<Option<Earlier>> {
        let version = registry::get(store, &Reference::parse(reference, None)?)?;
        // its metadata say what is in it, without fetching it
        let known: Option<EmbeddingsManifest> = serde_json::from_value(version.metadata.clone()).ok();
        let fits = |other: &Space| {
            let as_precise = (&other.precision, other.pixels_version) == (&space.precision, space.pixels_version);
            other.differs(space).is_none() && as_precise
        };
        if !known.is_some_and(|manifest| fits(&manifest.space)) {
            return Ok(None);
        }
        let folder = registry::open_local(store, &version)?;
        let manifest = embeddings::read_manifest(&folder)?;
        let mut places = Places::default();
        for (part, entry) in (0..).zip(&manifest.parts) {
            for (row, hash) in (0..).zip(embeddings::read_hashes(&folder, entry)?) {
                places.0.extend(short(&hash).map(|hash| (hash, (part, row))));
            }
        }
        tracing::info!(from = reference, vectors = places.0.len(), "vectors of images that are known are taken over");
        Ok(Some(Earlier { folder, manifest, places, last: RefCell::default() }))
    }

    /// The vectors of images that are in [`Earlier::places`], in this order. Each part is read once, whatever the order.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] if the version is damaged.
    pub(super) fn vectors(&self, hashes: &[&str]) -> Result<Vec<Vec<f32>>> {
        let lost = || Error::internal("a vector is not where it was");
        let place = |hash: &&str| short(hash).and_then(|hash| self.places.0.get(&hash)).copied().ok_or_else(lost);
        let places = hashes.iter().map(place).collect::<Result<Vec<(u32, u32)>>>()?;
        let mut order: Vec<usize> = (0..places.len()).collect();
        let mut last = self.last.borrow_mut();
        // what is at hand first
        let at_hand = last.as_ref().map(|(part, _)| *part);
        order.sort_by_key(|&i| (Some(places[i].0) != at_hand, places[i]));
        let mut vectors = vec![Vec::new(); places.len()];
        for i in order {
            let (number, row) = (places[i].0, places[i].1 as usize);
            if last.as_ref().is_none_or(|(part, _)| *part != number) {
                let entry = self.manifest.parts.get(number as usize).ok_or_else(lost)?;
                let part = embeddings::read_part(&self.folder, &self.manifest, entry);
                let hint = || "an earlier version cannot be used; parameters.reuse: false does without it";
                *last = Some((number, part.context(hint)?));
            }
            let dim = self.manifest.space.dim;
            let found = last.as_ref().and_then(|(_, part)| part.features.get(row * dim..(row + 1) * dim));
            vectors[i] = found.ok_or_else(lost)?.to_vec();
        }
        Ok(vectors)
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
