//! Removing versions: a version is marked as removed, by one create-if-absent, and nothing is deleted.
//!
//! Guarantees:
//! - **A removal is final and says why.** Whoever asks for the version is told when and why it was removed.
//! - **Its number is never given again.** Its manifest stays; [`super::gc()`] takes its files, some time later.
//! - **What an alias names is not removed.**

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::storage::{Created, Store};

use super::reference::{Reference, Selector};
use super::version::{AssetKind, Version, removal_key};
use super::{aliases, json, now, read as reading};

/// When and why a version was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The version of this format: 1.
    pub format_version: u32,
    /// When it was removed, RFC 3339 in UTC.
    pub created: String,
    /// Why, in one line.
    pub reason: String,
}

/// Marks the version that `reference` names by its number as removed, and returns it.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for a reference without a number and for a reason that is empty or has several lines;
/// [`crate::ErrorKind::NotFound`] if there is no such version, or it was removed before;
/// [`crate::ErrorKind::Conflict`] while an alias names it; otherwise [`crate::ErrorKind::Data`],
/// [`crate::ErrorKind::NoSpace`] or [`crate::ErrorKind::Storage`].
pub fn remove_version(store: &Store, reference: &Reference, reason: &str) -> Result<Version> {
    let Reference { kind, name, version: Selector::Number(number) } = reference else {
        // what 'latest' or an alias names may have changed since somebody looked
        return Err(Error::config(format!(
            "'{reference}' does not say which version is to be removed: write its number, such as {}:{}@7",
            reference.kind, reference.name
        )));
    };
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().any(char::is_control) {
        return Err(Error::config("say in one line why the version is removed"));
    }
    let version = reading::get(store, reference)?;
    let named = aliases::aliases(store, *kind, name)?;
    if let Some((alias, _)) = named.iter().find(|(_, n)| *n == number) {
        return Err(Error::conflict(format!(
            "{reference} is '{alias}': move the alias to another version, or take it away, and remove it then"
        )));
    }
    let removal = Removal { format_version: json::FORMAT_VERSION, created: now(), reason: reason.to_owned() };
    match store.create_exact(&removal_key(*kind, name, *number), json::to_bytes(&removal)?)? {
        Created::Won => {}
        Created::Lost(_) => {
            let gone = reading::get(store, reference).err();
            return Err(gone.unwrap_or_else(|| Error::internal("a removed version is back")));
        }
    }
    aliases::drop_all_of(store, *kind, name, *number)?;
    Ok(version)
}

/// All versions of a kind that were removed, by name and number, with their removals.
///
/// # Errors
/// [`crate::ErrorKind::Data`] for a damaged manifest or removal, [`crate::ErrorKind::Storage`] if the store cannot be
/// read.
pub fn list_removed(store: &Store, kind: AssetKind) -> Result<Vec<(Version, Removal)>> {
    let mut removed = Vec::new();
    for (name, numbers) in reading::known(store, kind)? {
        for number in numbers.removed {
            let version = reading::read_manifest(store, kind, &name, number)?;
            removed.extend(version.zip(read(store, kind, &name, number)?));
        }
    }
    Ok(removed)
}

/// The removal of a version, if it was removed.
pub(super) fn read(store: &Store, kind: AssetKind, name: &str, number: u64) -> Result<Option<Removal>> {
    json::read(store, &removal_key(kind, name, number))
}
