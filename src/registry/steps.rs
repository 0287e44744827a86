//! The cache of finished steps: a step whose inputs, configuration and code are the same is not run again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Store;

use super::content::size_problems;
use super::reference::{Reference, Selector};
use super::{json, read};

/// What a finished step made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The hash of the step's inputs, configuration and code: lower-case hexadecimal.
    pub fingerprint: String,
    /// The run that did the work.
    pub run_id: String,
    /// Output name to the exact version, such as `model:NAME@3`.
    pub outputs: BTreeMap<String, String>,
    /// What the step measured.
    pub metrics: Value,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    #[serde(flatten)]
    step: CachedStep,
}

/// The lock that is held while a step is worked on whose checkpoints are in `checkpoints/CONTINUATION/`.
#[must_use]
pub fn step_lock(continuation: &str) -> String {
    format!("step/{continuation}")
}

/// The finished steps of a store, by fingerprint.
#[derive(Debug, Clone, Copy)]
pub struct StepCache;

impl StepCache {
    /// The step with this fingerprint, if all that it made is still there (by manifest, file names and sizes).
    ///
    /// An entry that is damaged or whose outputs are gone or removed is as good as none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a fingerprint that is not hexadecimal, [`ErrorKind::Storage`] if the store cannot be
    /// read.
    pub fn get(store: &Store, fingerprint: &str) -> Result<Option<CachedStep>> {
        let found = usable(store, fingerprint);
        match found {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Data) => {
                tracing::warn!(fingerprint, %error, "a finished step is run again");
                Ok(None)
            }
            other => other,
        }
    }

    /// Remembers a finished step, whose outputs are published.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for an output that does not name an exact version, [`ErrorKind::Config`] for a
    /// fingerprint that is not hexadecimal, otherwise [`ErrorKind::NoSpace`] or [`ErrorKind::Storage`].
    pub fn put(store: &Store, step: &CachedStep) -> Result<()> {
        for reference in step.outputs.values() {
            exact(reference).map_err(|e| e.with_kind(ErrorKind::Internal))?;
        }
        let stored = Stored { format_version: json::FORMAT_VERSION, step: step.clone() };
        store.put(&key(&step.fingerprint)?, json::to_bytes(&stored)?)
    }
}

fn usable(store: &Store, fingerprint: &str) -> Result<Option<CachedStep>> {
    let key = key(fingerprint)?;
    let Some(Stored { step, .. }) = json::read::<Stored>(store, &key)? else {
        return Ok(None);
    };
    if step.fingerprint != fingerprint {
        return Err(Error::data(format!("'{}' is that of another step", store.uri_of(&key))));
    }
    for reference in step.outputs.values() {
        let reference = exact(reference).map_err(|e| e.with_kind(ErrorKind::Data))?;
        let version = read::get(store, &reference)?;
        size_problems(store, &version)?.into_result(&version.reference())?;
    }
    Ok(Some(step))
}

/// Whether the entry at `key` names a version that does not exist, or was removed. A damaged entry names none.
pub(super) fn names_what_is_gone(store: &Store, key: &str) -> Result<bool> {
    let named = match json::read::<Stored>(store, key) {
        Ok(Some(stored)) => stored.step.outputs,
        Ok(None) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::Data => return Ok(false),
        Err(error) => return Err(error),
    };
    for reference in named.values() {
        let found = exact(reference).map(|reference| read::get(store, &reference));
        match found {
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Ok(Err(error)) if error.kind() != ErrorKind::Data => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}

fn exact(text: &str) -> Result<Reference> {
    let reference = Reference::parse(text, None)?;
    match reference.version {
        Selector::Number(_) => Ok(reference),
        // both may name another version tomorrow
        Selector::Latest | Selector::Alias(_) => Err(Error::config(format!("'{text}' does not name an exact version"))),
    }
}

fn key(fingerprint: &str) -> Result<String> {
    let hex = fingerprint.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex || fingerprint.is_empty() || fingerprint.len() > 128 {
        return Err(Error::config(format!("'{}' is not a fingerprint", fingerprint.escape_default())));
    }
    Ok(format!("cache/steps/{fingerprint}.json"))
}
