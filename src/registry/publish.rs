//! Publishing: reserve a number, upload the files, then make the version visible by one create-if-absent.
//!
//! A crash at any point leaves at most a claim and files that no manifest names. The same owner takes that claim up
//! again; nobody else does. Whether a version exists depends on its manifest only: neither on the lock, which merely
//! keeps two processes of one owner from uploading at once, nor on a claim.

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::storage::{Created, FileDigest, Store, sha256_file};

use super::content::size_problems;
use super::read::{numbers, read_manifest};
use super::version::{
    AssetKind, FileEntry, NewVersion, Version, check_name, check_paths, claim_key, digest, manifest_key, prefix,
};
use super::{json, now};

/// A number that is reserved.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    format_version: u32,
    owner: String,
    created: String,
    /// Tells two claims of one owner apart.
    nonce: String,
    /// The lock that is held while this number is worked on: that of the first of the versions that are published
    /// together. Claims of older programs do not say it.
    #[serde(default)]
    lock: Option<String>,
}

/// The lock that is held while the version of an owner, and those published with it, are worked on.
fn lock_name(kind: AssetKind, name: &str, owner: &str) -> String {
    format!("{kind}/{name}/{owner}")
}

/// The lock that is held while the claimed number is worked on; `None` if it is not claimed, or its claim is damaged, so
/// that no owner finds it again.
pub(super) fn lock_of_claim(store: &Store, kind: AssetKind, name: &str, number: u64) -> Result<Option<String>> {
    match json::read::<Claim>(store, &claim_key(kind, name, number)) {
        Ok(Some(claim)) => Ok(Some(claim.lock.unwrap_or_else(|| lock_name(kind, name, &claim.owner)))),
        Ok(None) => Ok(None),
        Err(error) if error.kind() == crate::ErrorKind::Data => Ok(None),
        Err(error) => Err(error),
    }
}

/// Publishes a version, and returns it once it is visible and on the disk.
///
/// The same owner publishing equal files of this name again gets the version that exists. `MLmodel` is uploaded last.
/// Names and sizes in the store are compared before the manifest is written.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for invalid names or paths, [`crate::ErrorKind::NotFound`] if a file is not there,
/// [`crate::ErrorKind::Conflict`] if the store holds files where the version would go that nobody has reserved,
/// [`crate::ErrorKind::NoSpace`] for a full disk, [`crate::ErrorKind::Storage`] otherwise. Nothing is visible then.
pub fn publish(store: &Store, new: NewVersion) -> Result<Version> {
    let published = publish_all(store, vec![new])?;
    published.into_iter().next().ok_or_else(|| Error::internal("publishing one version made none"))
}

/// Publishes versions that belong together, such as the outputs of one step: the files of all are in the store before the
/// first becomes visible, so that a full disk or a missing file leaves none of them visible. Returns them in the same order.
///
/// Attempts of the same owners must give them in the same order; the first stands for all where attempts wait for each other.
///
/// # Errors
/// As [`publish`].
pub fn publish_all(store: &Store, new: Vec<NewVersion>) -> Result<Vec<Version>> {
    for version in &new {
        check_new(version).context(|| title(version))?;
    }
    let Some(first) = new.first() else { return Ok(Vec::new()) };
    let name = lock_name(first.kind, &first.name, &first.owner);
    let lock = store.lock(&name)?;
    let mut staged: Vec<Staged> = Vec::with_capacity(new.len());
    for version in new {
        let title = title(&version);
        match stage(store, version, &name).context(|| title) {
            Ok(done) => staged.push(done),
            Err(error) => {
                staged.iter().for_each(|s| s.discard(store, &error));
                return Err(error);
            }
        }
    }
    // somebody who took this for dead may be writing the same files
    lock.check()?;
    staged.into_iter().map(|s| s.commit(store)).collect()
}

fn title(new: &NewVersion) -> String {
    format!("publish {}:{}", new.kind, new.name)
}

fn check_new(new: &NewVersion) -> Result<()> {
    check_name(&new.name)?;
    check_paths(new.files.iter().map(|(path, _)| path.as_str()))?;
    if new.files.is_empty() {
        return Err(Error::config("there is no file to publish"));
    }
    if new.owner.is_empty() {
        return Err(Error::internal("a version needs an owner"));
    }
    Ok(())
}

/// A version whose files are in the store.
enum Staged {
    /// It was visible before.
    Published(Box<Version>),
    /// Only its manifest is missing.
    Uploaded { new: Box<NewVersion>, number: u64, files: Vec<FileEntry> },
}

impl Staged {
    fn commit(self, store: &Store) -> Result<Version> {
        match self {
            Staged::Published(version) => Ok(*version),
            Staged::Uploaded { new, number, files } => {
                let title = title(&new);
                commit(store, *new, number, files).context(|| title)
            }
        }
    }

    /// Removes the files of a version that does not become visible.
    fn discard(&self, store: &Store, error: &Error) {
        if let Staged::Uploaded { new, number, .. } = self {
            discard(store, &prefix(new.kind, &new.name, *number), error);
        }
    }
}

fn stage(store: &Store, mut new: NewVersion, lock: &str) -> Result<Staged> {
    new.files.sort();
    let number = match earlier_attempt(store, &new)? {
        Some(Earlier::Published(version)) => return Ok(Staged::Published(version)),
        Some(Earlier::Claimed(number)) => number,
        None => allocate(store, &new, lock)?,
    };
    let folder = prefix(new.kind, &new.name, number);
    if !store.is_remote() {
        // what an interrupted attempt of this owner left
        store.delete_folder(&folder)?;
    }
    let files = upload(store, &new, &folder).inspect_err(|error| discard(store, &folder, error))?;
    if store.is_remote() {
        // the same files are written over: a lease can be lost, so that somebody else may have published them meanwhile
        remove_others(store, &folder, &files)?;
    }
    Ok(Staged::Uploaded { new: Box::new(new), number, files })
}

/// Removes what an interrupted attempt with other files left.
fn remove_others(store: &Store, folder: &str, files: &[FileEntry]) -> Result<()> {
    for object in store.list(folder)? {
        let path = object.key.strip_prefix(folder).and_then(|k| k.strip_prefix('/')).unwrap_or_default();
        if !files.iter().any(|f| f.path == path) {
            store.delete(&object.key)?;
        }
    }
    Ok(())
}

/// The space may be needed; what cannot be removed is overwritten by the next attempt.
fn discard(store: &Store, folder: &str, error: &Error) {
    if let Err(left) = store.delete_folder(folder) {
        tracing::warn!(folder, %left, %error, "files of an unfinished version stay in the store");
    }
}

/// What the same owner did before.
enum Earlier {
    /// It published exactly these files.
    Published(Box<Version>),
    /// It reserved this number and was interrupted.
    Claimed(u64),
}

fn earlier_attempt(store: &Store, new: &NewVersion) -> Result<Option<Earlier>> {
    let mut reserved = None;
    let mut wanted = None;
    let known = numbers(store, new.kind, &new.name)?;
    // newest first: an owner that comes again mostly does so soon; what was removed stays so, and is made anew
    for number in known.claimed.into_iter().rev().filter(|n| !known.removed.contains(n)) {
        let key = claim_key(new.kind, &new.name, number);
        match json::read::<Claim>(store, &key) {
            Ok(Some(claim)) if claim.owner == new.owner => {}
            Ok(_) => continue,
            Err(error) if error.kind() == crate::ErrorKind::Data => {
                tracing::warn!(key, %error, "a damaged claim is taken for somebody else's");
                continue;
            }
            Err(error) => return Err(error),
        }
        let Some(version) = read_manifest(store, new.kind, &new.name, number)? else {
            reserved = Some(number);
            continue;
        };
        let wanted = match &wanted {
            Some(digest) => digest,
            None => wanted.insert(digest_of_sources(new)?),
        };
        if version.digest == *wanted && size_problems(store, &version)?.is_empty() {
            return Ok(Some(Earlier::Published(Box::new(version))));
        }
    }
    Ok(reserved.map(Earlier::Claimed))
}

fn digest_of_sources(new: &NewVersion) -> Result<String> {
    let mut entries = Vec::with_capacity(new.files.len());
    for (path, source) in &new.files {
        entries.push(entry(path, sha256_file(source)?));
    }
    Ok(digest(&entries))
}

fn entry(path: &str, digest: FileDigest) -> FileEntry {
    FileEntry { path: path.to_owned(), size: digest.size, sha256: digest.sha256 }
}

/// Reserves the next free number.
fn allocate(store: &Store, new: &NewVersion, lock: &str) -> Result<u64> {
    let known = numbers(store, new.kind, &new.name)?;
    let claim = Claim {
        format_version: json::FORMAT_VERSION,
        owner: new.owner.clone(),
        created: now(),
        nonce: uuid::Uuid::new_v4().simple().to_string(),
        lock: Some(lock.to_owned()),
    };
    let body = json::to_bytes(&claim)?;
    let mut number = known.highest() + 1;
    loop {
        let key = claim_key(new.kind, &new.name, number);
        let folder = prefix(new.kind, &new.name, number);
        // files without a claim are not ours to remove: the registry may have been lost, not the data
        if !store.list(&folder)?.is_empty() && !store.exists(&key)? {
            let uri = store.uri_of(&folder);
            return Err(Error::conflict(format!(
                "'{uri}' holds files that the registry does not know, move them away"
            )));
        }
        match store.create_exact(&key, body.clone())? {
            Created::Won => return Ok(number),
            Created::Lost(_) => number += 1,
        }
    }
}

fn upload(store: &Store, new: &NewVersion, folder: &str) -> Result<Vec<FileEntry>> {
    let mut entries = Vec::with_capacity(new.files.len());
    let (last, first): (Vec<_>, Vec<_>) = new.files.iter().partition(|(path, _)| path == "MLmodel");
    for (path, source) in first.into_iter().chain(last) {
        entries.push(entry(path, store.put_file(&format!("{folder}/{path}"), source)?));
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// Makes the version visible.
fn commit(store: &Store, new: NewVersion, number: u64, files: Vec<FileEntry>) -> Result<Version> {
    let version = Version {
        format_version: json::FORMAT_VERSION,
        prefix: prefix(new.kind, &new.name, number),
        kind: new.kind,
        name: new.name,
        version: number,
        created: now(),
        description: new.description,
        tags: new.tags,
        digest: digest(&files),
        files,
        owner: new.owner,
        lineage: new.lineage,
        metadata: new.metadata,
    };
    size_problems(store, &version)?.into_result(&version.reference())?;
    let key = manifest_key(version.kind, &version.name, number);
    match store.create_exact(&key, json::to_bytes(&version)?)? {
        Created::Won => Ok(version),
        Created::Lost(body) => {
            let other: Version = json::parse(store, &key, &body)?;
            if other.owner == version.owner && other.digest == version.digest {
                return Ok(other);
            }
            let reference = version.reference();
            Err(Error::conflict(format!("{reference} was published by '{}' meanwhile, run the job again", other.owner)))
        }
    }
}
