//! Finding versions: readers start from manifests, never from what else lies in the store.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::error::{Context, Error, Result};
use crate::storage::Store;

use super::content::size_problems;
use super::json;
use super::reference::{Reference, Selector};
use super::version::{AssetKind, Version, check_name, manifest_key, number_of, registry_folder};

/// The names that have at least one version, sorted.
///
/// # Errors
/// [`crate::ErrorKind::Storage`] if the store cannot be listed.
pub fn list_names(store: &Store, kind: AssetKind) -> Result<Vec<String>> {
    let folder = format!("registry/{}", kind.folder());
    let mut names = BTreeSet::new();
    for object in store.list(&folder)? {
        let relative = object.key.strip_prefix(&folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default();
        if let Some((name, file)) = relative.split_once('/')
            && number_of(file, ".json").is_some()
            && check_name(name).is_ok()
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names.into_iter().collect())
}

/// The versions of a name, by rising number; empty if there are none.
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
/// [`crate::ErrorKind::NotFound`] if there is none, with the versions that there are or the names that are near;
/// [`crate::ErrorKind::Data`] for a damaged manifest, [`crate::ErrorKind::Storage`] if the store cannot be read.
pub fn get(store: &Store, reference: &Reference) -> Result<Version> {
    let Reference { kind, name, version } = reference;
    check_name(name)?;
    let number = match version {
        Selector::Number(number) => Some(*number),
        Selector::Latest => numbers(store, *kind, name)?.published.last().copied(),
    };
    if let Some(number) = number
        && let Some(found) = read_manifest(store, *kind, name, number)?
    {
        return Ok(found);
    }
    Err(Error::not_found(format!(
        "there is no {reference} in '{}': {}",
        store.uri(),
        alternatives(store, *kind, name)?
    )))
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
    /// Those with a manifest.
    pub(super) published: BTreeSet<u64>,
    /// Those that are reserved, published or not.
    pub(super) claimed: BTreeSet<u64>,
}

pub(super) fn numbers(store: &Store, kind: AssetKind, name: &str) -> Result<Numbers> {
    check_name(name)?;
    let folder = registry_folder(kind, name);
    let mut numbers = Numbers::default();
    for object in store.list(&folder)? {
        let file = object.key.strip_prefix(&folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default();
        numbers.published.extend(number_of(file, ".json"));
        numbers.claimed.extend(number_of(file, ".claim.json"));
    }
    Ok(numbers)
}

pub(super) fn read_manifest(store: &Store, kind: AssetKind, name: &str, number: u64) -> Result<Option<Version>> {
    let Some(version) = json::read::<Version>(store, &manifest_key(kind, name, number))? else {
        return Ok(None);
    };
    version.check(kind, name, number)?;
    Ok(Some(version))
}

/// What somebody who asked for something that is not there may have meant.
fn alternatives(store: &Store, kind: AssetKind, name: &str) -> Result<String> {
    let published = numbers(store, kind, name)?.published;
    if !published.is_empty() {
        let newest: Vec<String> = published.iter().rev().take(10).map(u64::to_string).collect();
        let more = if published.len() > newest.len() { ", and older ones" } else { "" };
        return Ok(format!("its versions are {}{more}", newest.join(", ")));
    }
    let names = list_names(store, kind)?;
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
