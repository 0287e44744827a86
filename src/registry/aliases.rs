//! Aliases: names that people move from version to version, such as `champion`.
//!
//! Guarantees:
//! - **Moves are ordered, and none is lost.** Each is a new object with the next number, made by create-if-absent; the
//!   highest counts. Nothing is overwritten, so the history of an alias stays readable.
//! - **An alias never goes to a version that is not there**, and one that is named is not removed: see
//!   [`super::remove_version`]. Where both happen at once, the removal stands and the alias goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::storage::{Created, Store};

use super::reference::{Reference, Selector, check_alias};
use super::version::{AssetKind, Version, aliases_folder, check_name, number_of};
use super::{json, now, read, removal};

/// One move of an alias.
#[derive(Debug, Serialize, Deserialize)]
struct Move {
    format_version: u32,
    /// The version from now on; null when the alias was taken away. It must be there: a field that is missing is damage.
    #[serde(deserialize_with = "Option::deserialize")]
    version: Option<u64>,
    created: String,
    /// Tells two equal moves apart.
    nonce: String,
}

/// Where an alias stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// The number of its last move, 0 before the first.
    moves: u64,
    /// The version it names.
    version: Option<u64>,
}

/// The aliases of a name, each with the version it names.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an invalid name, [`crate::ErrorKind::Data`] for a damaged alias, naming the key;
/// [`crate::ErrorKind::Storage`] if the store cannot be read.
pub fn aliases(store: &Store, kind: AssetKind, name: &str) -> Result<BTreeMap<String, u64>> {
    check_name(name)?;
    let folder = aliases_folder(kind, name);
    let mut moves: BTreeMap<String, u64> = BTreeMap::new();
    for object in store.list(&folder)? {
        let relative = object.key.strip_prefix(&folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default();
        if let Some((alias, file)) = relative.split_once('/')
            && check_alias(alias).is_ok()
            && let Some(number) = number_of(file, ".json")
        {
            let last = moves.entry(alias.to_owned()).or_default();
            *last = number.max(*last);
        }
    }
    let mut named = BTreeMap::new();
    for (alias, number) in moves {
        if let Some(version) = version_of(store, &move_key(kind, name, &alias, number))? {
            named.insert(alias, version);
        }
    }
    Ok(named)
}

/// Makes `alias` name the version that `reference` names, and returns that version and the number that the alias named
/// before. An alias that names it already is left as it is.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an invalid alias, [`crate::ErrorKind::NotFound`] if there is no such version;
/// otherwise [`crate::ErrorKind::Data`], [`crate::ErrorKind::NoSpace`] or [`crate::ErrorKind::Storage`].
pub fn set_alias(store: &Store, reference: &Reference, alias: &str) -> Result<(Version, Option<u64>)> {
    check_alias(alias)?;
    let version = read::get(store, reference)?;
    let (kind, name) = (version.kind, version.name.as_str());
    let done = go_to(store, (kind, name, alias), Some(version.version))?;
    // whoever removes a version looks for its aliases after the removal too, so one of both sees the other
    if removal::read(store, kind, name, version.version)?.is_some() {
        step_back(store, (kind, name, alias), done)?;
        let exact = Reference { kind, name: name.to_owned(), version: Selector::Number(version.version) };
        return Err(read::get(store, &exact).err().unwrap_or_else(|| Error::internal("a removed version is back")));
    }
    Ok((version, done.before))
}

/// Takes `alias` away, and returns the number that it named.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an invalid name or alias, [`crate::ErrorKind::NotFound`] if there is no such alias,
/// with those that there are; otherwise [`crate::ErrorKind::Data`], [`crate::ErrorKind::NoSpace`] or
/// [`crate::ErrorKind::Storage`].
pub fn remove_alias(store: &Store, kind: AssetKind, name: &str, alias: &str) -> Result<u64> {
    check_name(name)?;
    check_alias(alias)?;
    if let Some(version) = go_to(store, (kind, name, alias), None)?.before {
        return Ok(version);
    }
    let known = text(&aliases(store, kind, name)?);
    Err(Error::not_found(format!("{kind}:{name} has no alias '{alias}': its aliases are {known}")))
}

/// The version that an alias names.
pub(super) fn named(store: &Store, kind: AssetKind, name: &str, alias: &str) -> Result<Option<u64>> {
    Ok(head(store, (kind, name, alias))?.version)
}

/// Takes away the aliases that name a version which is removed.
pub(super) fn drop_all_of(store: &Store, kind: AssetKind, name: &str, number: u64) -> Result<()> {
    for (alias, version) in aliases(store, kind, name)? {
        let place = (kind, name, alias.as_str());
        let head = head(store, place)?;
        if version == number && head.version == Some(number) {
            tracing::warn!(%kind, name, alias, number, "the alias goes with its version, which was removed meanwhile");
            step_back(store, place, Done { moves: Some(head.moves), before: None })?;
        }
    }
    Ok(())
}

/// Aliases for a message.
pub(super) fn text(aliases: &BTreeMap<String, u64>) -> String {
    if aliases.is_empty() {
        return "none".to_owned();
    }
    aliases.iter().map(|(alias, number)| format!("'{alias}' ({number})")).collect::<Vec<_>>().join(", ")
}

type Place<'a> = (AssetKind, &'a str, &'a str);

/// A move that was made, or none if nothing was to be done.
struct Done {
    moves: Option<u64>,
    before: Option<u64>,
}

/// Writes the move after the last one, unless the alias is there already.
fn go_to(store: &Store, place: Place<'_>, version: Option<u64>) -> Result<Done> {
    let mut lost = 0;
    loop {
        let head = head(store, place)?;
        if head.version == version {
            return Ok(Done { moves: None, before: head.version });
        }
        // a listing may be behind what a lost race has shown
        let number = head.moves.max(lost) + 1;
        if create(store, place, number, version)? {
            return Ok(Done { moves: Some(number), before: head.version });
        }
        lost = number;
    }
}

/// Undoes a move, if no other came after it.
fn step_back(store: &Store, place: Place<'_>, done: Done) -> Result<()> {
    if let Some(number) = done.moves {
        create(store, place, number + 1, done.before)?;
    }
    Ok(())
}

/// Whether the move `number` is this one.
fn create(store: &Store, (kind, name, alias): Place<'_>, number: u64, version: Option<u64>) -> Result<bool> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let entry = Move { format_version: json::FORMAT_VERSION, version, created: now(), nonce };
    let created = store.create_exact(&move_key(kind, name, alias, number), json::to_bytes(&entry)?)?;
    Ok(created == Created::Won)
}

fn head(store: &Store, (kind, name, alias): Place<'_>) -> Result<Head> {
    let folder = format!("{}/{alias}", aliases_folder(kind, name));
    let files = store.list(&folder)?.into_iter();
    let moves = files.filter_map(|o| number_of(o.key.strip_prefix(&folder)?.strip_prefix('/')?, ".json")).max();
    let Some(moves) = moves else { return Ok(Head::default()) };
    Ok(Head { moves, version: version_of(store, &move_key(kind, name, alias, moves))? })
}

fn version_of(store: &Store, key: &str) -> Result<Option<u64>> {
    match json::read::<Move>(store, key)? {
        Some(entry) => Ok(entry.version),
        None => Err(Error::data(format!("'{}' is gone, restore it", store.uri_of(key)))),
    }
}

fn move_key(kind: AssetKind, name: &str, alias: &str, number: u64) -> String {
    format!("{}/{alias}/{number:010}.json", aliases_folder(kind, name))
}
