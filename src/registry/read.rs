//! Finding versions: readers start from manifests, never from what else lies in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::storage::Store;

use super::content::size_problems;
use super::reference::{Reference, Selector};
use super::removal::Removal;
use super::version::{AssetKind, Version, check_name, manifest_key, number_of, registry_folder};
use super::{aliases, json, removal};

/// The names that have at least one version that is not removed, sorted.
///
/// # Errors
/// [`crate::ErrorKind::Storage`] if the store cannot be listed.
pub fn list_names(store: &Store, kind: AssetKind) -> Result<Vec<String>> {
    let known = known(store, kind)?.into_iter();
    Ok(known.filter(|(_, numbers)| !numbers.published.is_empty()).map(|(name, _)| name).collect())
}

/// The versions of a name that are not removed, by rising number; empty if there are none.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an invalid name, [`crate::ErrorKind::Data`] for a damaged manifest,
/// [`crate::ErrorKind::Storage`] if the store cannot be read.
pub fn list_versions(store: &Store, kind: AssetKind, name: &str) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    for number in numbers(store, kind, name)?.published {
        versions.extend(read_manifest(store, kind, name, number)?);
    }
    Ok(versions)
}

/// The version that a reference names.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] if there is none, with the versions or aliases that there are or the names that are
/// near, or with when and why it was removed; [`crate::ErrorKind::Data`] for a damaged manifest,
/// [`crate::ErrorKind::Storage`] if the store cannot be read.
pub fn get(store: &Store, reference: &Reference) -> Result<Version> {
    let Reference { kind, name, version } = reference;
    check_name(name)?;
    let number = match version {
        Selector::Number(number) => Some(*number),
        Selector::Latest => numbers(store, *kind, name)?.published.last().copied(),
        Selector::Alias(alias) => aliases::named(store, *kind, name, alias)?,
    };
    if let Some(number) = number {
        if let Some(removal) = removal::read(store, *kind, name, number)? {
            return Err(gone(reference, number, &removal, &alternatives(store, reference)?));
        }
        if let Some(found) = read_manifest(store, *kind, name, number)? {
            return Ok(found);
        }
    }
    let alternatives = alternatives(store, reference)?;
    Err(Error::not_found(format!("there is no {reference} in '{}': {alternatives}", store.uri())))
}

/// What whoever asks for a removed version is told.
fn gone(reference: &Reference, number: u64, removal: &Removal, alternatives: &str) -> Error {
    let named = match reference.version {
        Selector::Number(_) => String::new(),
        _ => format!(" is version {number}, which"),
    };
    let Removal { created, reason, .. } = removal;
    // a message has one line, whatever a damaged object holds
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Error::not_found(format!("{reference}{named} was removed on {created} ({reason}); {alternatives}"))
}

/// The folder of a version's files on this machine: in place where the store is a folder, otherwise in the cache.
///
/// In place, files are checked to be there with their sizes; [`super::verify_version`] compares their content. What goes
/// through the cache was verified.
///
/// # Errors
/// [`crate::ErrorKind::Data`] if files are not what was published, [`crate::ErrorKind::Storage`] if the store cannot be read,
/// [`crate::ErrorKind::NoSpace`] if they do not fit into the cache.
pub fn open_local(store: &Store, version: &Version) -> Result<PathBuf> {
    let reference = version.reference();
    if let Some(folder) = store.local_path(&version.prefix) {
        size_problems(store, version)?.into_result(&reference)?;
        return Ok(folder);
    }
    let files: Vec<_> = version.files.iter().map(|f| (f.path.clone(), f.digest())).collect();
    let cache = store.cache().context(|| format!("fetch {reference}"))?;
    let opened = cache.folder(&version.digest, &files, |path, to, digest| {
        tracing::info!(file = path, bytes = digest.size, from = %reference, "fetching");
        store.fetch(&version.key(path), to, digest)
    });
    opened.context(|| format!("fetch {reference}"))
}

/// The numbers of a name, each rising.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Those with a manifest that are not removed.
    pub(super) published: BTreeSet<u64>,
    /// Those that were removed.
    pub(super) removed: BTreeSet<u64>,
    /// Those that are reserved, published or not.
    pub(super) claimed: BTreeSet<u64>,
}

impl Numbers {
    /// Takes in one file of the name's folder in the registry.
    fn add(&mut self, file: &str) {
        self.published.extend(number_of(file, ".json"));
        self.claimed.extend(number_of(file, ".claim.json"));
        self.removed.extend(number_of(file, ".removed.json"));
    }

    /// Once every file was taken in.
    fn finish(mut self) -> Numbers {
        self.published.retain(|n| !self.removed.contains(n));
        self
    }

    /// The highest number that was ever given; 0 if there is none.
    pub(super) fn highest(&self) -> u64 {
        let last = [self.published.last(), self.removed.last(), self.claimed.last()];
        last.into_iter().flatten().max().copied().unwrap_or(0)
    }
}

pub(super) fn numbers(store: &Store, kind: AssetKind, name: &str) -> Result<Numbers> {
    check_name(name)?;
    let folder = registry_folder(kind, name);
    let mut numbers = Numbers::default();
    for object in store.list(&folder)? {
        numbers.add(object.key.strip_prefix(&folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default());
    }
    Ok(numbers.finish())
}

/// Every name that the registry knows anything of, with its numbers.
pub(super) fn known(store: &Store, kind: AssetKind) -> Result<BTreeMap<String, Numbers>> {
    let folder = format!("registry/{}", kind.folder());
    let mut known: BTreeMap<String, Numbers> = BTreeMap::new();
    for object in store.list(&folder)? {
        let relative = object.key.strip_prefix(&folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default();
        if let Some((name, file)) = relative.split_once('/')
            && check_name(name).is_ok()
        {
            known.entry(name.to_owned()).or_default().add(file);
        }
    }
    Ok(known.into_iter().map(|(name, numbers)| (name, numbers.finish())).collect())
}

pub(super) fn read_manifest(store: &Store, kind: AssetKind, name: &str, number: u64) -> Result<Option<Version>> {
    let Some(version) = json::read::<Version>(store, &manifest_key(kind, name, number))? else {
        return Ok(None);
    };
    version.check(kind, name, number)?;
    Ok(Some(version))
}

/// What somebody who asked for something that is not there may have meant.
fn alternatives(store: &Store, reference: &Reference) -> Result<String> {
    let Reference { kind, name, version } = reference;
    let published = numbers(store, *kind, name)?.published;
    if let Selector::Alias(_) = version
        && !published.is_empty()
    {
        return Ok(format!("its aliases are {}", aliases::text(&aliases::aliases(store, *kind, name)?)));
    }
    if !published.is_empty() {
        let newest: Vec<String> = published.iter().rev().take(10).map(u64::to_string).collect();
        let more = if published.len() > newest.len() { ", and older ones" } else { "" };
        return Ok(format!("its versions are {}{more}", newest.join(", ")));
    }
    let names = list_names(store, *kind)?;
    Ok(near(name, &names).map_or_else(
        || format!("no {} has been published yet", kind.noun()),
        |near| format!("there is no {} of that name; the nearest are {near}", kind.noun()),
    ))
}

/// Up to five of `names` that are most like `name`, for a message; `None` if there are none at all.
pub(super) fn near(name: &str, names: &[String]) -> Option<String> {
    let mut scored: Vec<(f64, &String)> = names.iter().map(|n| (strsim::jaro_winkler(name, n), n)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let quoted: Vec<String> = scored.iter().take(5).map(|(_, n)| format!("'{n}'")).collect();
    if quoted.is_empty() { None } else { Some(quoted.join(", ")) }
}
