//! Cleaning up: removing what no version names and nothing works on.
//!
//! Guarantees:
//! - **A published version is never touched**: whatever has a manifest, and is not removed, keeps every file that the
//!   manifest names. Manifests, claims, removals, aliases and run records always stay, so numbers are never given twice.
//! - **Nobody is disturbed.** Only what has not been written for as long as [`GcOptions::older_than`] says goes: the
//!   youngest file of a folder counts for all of it. An unfinished version whose publisher holds its lock stays, and
//!   while it is cleaned up its owner waits; an owner that comes back later goes on with the number it has claimed.
//! - **What the registry does not know is left alone**: folders of names without any claim or version.
//! - It may be interrupted and run again, also several at once.
//!
//! Locks are seen by all machines that use a store (in a folder by `flock`, elsewhere by leases). Whoever has lost its lock,
//! since it could not reach the store for long, is protected by the age only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::error::{ErrorKind, Result};
use crate::storage::{ObjectInfo, Store, is_leftover};

use super::content::ignored;
use super::publish::lock_of_claim;
use super::read::{Numbers, known, read_manifest};
use super::runs::RunRecord;
use super::steps::{names_what_is_gone, step_lock};
use super::version::{AssetKind, check_name, manifest_key, prefix, removal_key};

/// How old the leftovers of writers must be outside of the folders of versions, where no lock tells whether the writer is
/// alive. Taking a file from a writer that is about to give it its name would let another use the same temporary name, and
/// the first publish what the second has written.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// How to clean up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcOptions {
    /// Only what was last written at least this long ago goes; zero stands for everything, but for the leftovers of
    /// writers outside of the folders of versions: these are at least a day old.
    pub older_than: Duration,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// Why something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DebrisKind {
    /// Files of a version that was never published.
    Unfinished,
    /// Files of a version that was removed.
    Removed,
    /// A file in the folder of a version that its manifest does not name.
    Stray,
    /// Checkpoints of a training, or shards of an embedding, that did not end.
    Checkpoints,
    /// The memory of a finished step whose versions are gone.
    CachedStep,
    /// What a killed writer left of one file.
    Leftover,
}

/// Something that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Debris {
    /// Why.
    pub kind: DebrisKind,
    /// The file, or the folder of the files.
    pub key: String,
    /// How many files.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
}

/// Something that would have been removed, but for `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The file or folder.
    pub key: String,
    /// Why it stays.
    pub reason: String,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Whether nothing was really removed.
    pub dry_run: bool,
    /// What was removed, or would be.
    pub removed: Vec<Debris>,
    /// What stays although no version names it.
    pub kept: Vec<Kept>,
}

impl GcReport {
    /// How many files were removed.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.removed.iter().map(|d| d.files).sum()
    }

    /// Their sizes together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|d| d.bytes).sum()
    }
}

/// Removes what no version names and nothing works on, or says what that would be.
///
/// # Errors
/// [`ErrorKind::Storage`] if the store cannot be read or something cannot be removed; what was removed until then stays
/// removed, and is in the log.
pub fn gc(store: &Store, options: &GcOptions) -> Result<GcReport> {
    let report = GcReport { dry_run: options.dry_run, removed: Vec::new(), kept: Vec::new() };
    let mut sweep = Sweep { store, options: *options, report };
    for kind in AssetKind::ALL {
        sweep.versions(kind)?;
    }
    let alive = RunRecord::list(store)?.into_iter().find(RunRecord::is_alive).map(|r| r.run_id);
    sweep.checkpoints(alive.as_deref())?;
    sweep.cached_steps()?;
    sweep.leftovers()?;
    Ok(sweep.report)
}

struct Sweep<'a> {
    store: &'a Store,
    options: GcOptions,
    report: GcReport,
}

impl Sweep<'_> {
    /// The folders of all versions of a kind.
    fn versions(&mut self, kind: AssetKind) -> Result<()> {
        // files first: what is published meanwhile is then known to be
        let files = self.store.list_raw(kind.folder())?;
        let names = known(self.store, kind)?;
        let registry = self.store.list(&format!("registry/{}", kind.folder()))?.into_iter();
        let removals: BTreeMap<String, OffsetDateTime> =
            registry.filter(|o| o.key.ends_with(".removed.json")).map(|o| (o.key, o.modified)).collect();
        let mut unknown = BTreeSet::new();
        for ((name, number), files) in by_version(kind, files) {
            let folder = prefix(kind, &name, number);
            match names.get(&name).filter(|numbers| numbers.highest() > 0) {
                None => {
                    unknown.insert(name);
                }
                Some(numbers) if numbers.removed.contains(&number) => {
                    // readers that found the version before have the time that the age gives
                    let removed = removals.get(&removal_key(kind, &name, number)).copied();
                    if self.is_old(&folder, removed.into_iter(), self.options.older_than) {
                        self.offer((DebrisKind::Removed, &folder), &files)?;
                    }
                }
                Some(numbers) => self.version((kind, &name, number), numbers, files)?,
            }
        }
        for name in unknown {
            self.keep(&format!("{}/{name}", kind.folder()), "the registry has no version or claim of that name");
        }
        Ok(())
    }

    /// The folder of a version that is not removed.
    fn version(&mut self, place: (AssetKind, &str, u64), numbers: &Numbers, files: Vec<ObjectInfo>) -> Result<()> {
        let (kind, name, number) = place;
        if !numbers.published.contains(&number) {
            return self.unfinished(place, &files);
        }
        let folder = prefix(kind, name, number);
        let version = match read_manifest(self.store, kind, name, number) {
            Ok(Some(version)) => version,
            Ok(None) => return Ok(()),
            // what it names is not known
            Err(error) if error.kind() == ErrorKind::Data => {
                self.keep(&folder, &error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let named: BTreeSet<String> = version.files.iter().map(|f| version.key(&f.path)).collect();
        for file in files {
            let path = file.key.strip_prefix(&folder).and_then(|p| p.strip_prefix('/')).unwrap_or(&file.key);
            if named.contains(&file.key) || ignored(path) {
                continue;
            }
            let what = if is_leftover(path) { DebrisKind::Leftover } else { DebrisKind::Stray };
            self.offer((what, &file.key.clone()), &[file])?;
        }
        Ok(())
    }

    /// The folder of a version without a manifest.
    fn unfinished(&mut self, (kind, name, number): (AssetKind, &str, u64), files: &[ObjectInfo]) -> Result<()> {
        let folder = prefix(kind, name, number);
        if !self.is_old(&folder, files.iter().map(|f| f.modified), self.options.older_than) {
            return Ok(());
        }
        let lock = lock_of_claim(self.store, kind, name, number)?;
        if let Some(lock) = &lock
            && self.store.is_locked(lock)?
        {
            self.keep(&folder, "it is being published");
            return Ok(());
        }
        // with the lock its owner waits, so that what is true now stays so; a dry run need not hold anybody up
        let lock = lock.filter(|_| !self.options.dry_run);
        let _held = lock.map(|lock| self.store.lock(&lock)).transpose()?;
        if self.store.exists(&manifest_key(kind, name, number))? {
            return Ok(());
        }
        let files = self.store.list_raw(&folder)?;
        self.offer((DebrisKind::Unfinished, &folder), &files)
    }

    /// What steps that are given up have left; `alive` is a run that goes on, here.
    fn checkpoints(&mut self, alive: Option<&str>) -> Result<()> {
        let mut folders: BTreeMap<String, Vec<ObjectInfo>> = BTreeMap::new();
        for file in self.store.list_raw("checkpoints")? {
            let hash = file.key.split('/').nth(1).unwrap_or_default();
            if is_hash(hash) && file.key.matches('/').count() > 1 {
                folders.entry(format!("checkpoints/{hash}")).or_default().push(file);
            }
        }
        for (folder, files) in folders {
            match alive {
                Some(run) => self.keep(&folder, &format!("run {run} is going on and may need it")),
                None if self.is_worked_on(&folder)? => self.keep(&folder, "its step is going on"),
                None => self.offer((DebrisKind::Checkpoints, &folder), &files)?,
            }
        }
        Ok(())
    }

    /// Whether the step of these checkpoints is going on, on whatever machine.
    fn is_worked_on(&self, folder: &str) -> Result<bool> {
        self.store.is_locked(&step_lock(folder.strip_prefix("checkpoints/").unwrap_or(folder)))
    }

    /// Entries that would not be used again, since what they name is gone.
    fn cached_steps(&mut self) -> Result<()> {
        for file in self.store.list("cache/steps")? {
            if file.key.ends_with(".json") && names_what_is_gone(self.store, &file.key)? {
                self.offer((DebrisKind::CachedStep, &file.key.clone()), &[file])?;
            }
        }
        Ok(())
    }

    /// What killed writers left outside of the folders of versions.
    fn leftovers(&mut self) -> Result<()> {
        let age = self.options.older_than.max(LEFTOVER_AGE);
        // a lease that is held is written several times a minute
        for folder in ["leases", "preflight"] {
            for file in self.store.list_raw(folder)? {
                self.offer_older((DebrisKind::Leftover, &file.key.clone()), &[file], age)?;
            }
        }
        for folder in ["cache", "checkpoints", "registry", "runs"] {
            for file in self.store.list_raw(folder)? {
                let counted = self.report.removed.iter().any(|d| file.key.starts_with(&format!("{}/", d.key)));
                if is_leftover(&file.key) && !counted {
                    let key = file.key.clone();
                    self.offer_older((DebrisKind::Leftover, &key), &[file], age)?;
                }
            }
        }
        Ok(())
    }

    /// Removes the files, unless one of them is too young.
    fn offer(&mut self, what: (DebrisKind, &str), files: &[ObjectInfo]) -> Result<()> {
        self.offer_older(what, files, self.options.older_than)
    }

    fn offer_older(&mut self, what: (DebrisKind, &str), files: &[ObjectInfo], age: Duration) -> Result<()> {
        let (kind, key) = what;
        if files.is_empty() || !self.is_old(key, files.iter().map(|f| f.modified), age) {
            return Ok(());
        }
        let bytes = files.iter().map(|f| f.size).sum();
        if !self.options.dry_run {
            for file in files {
                self.store.delete_raw(&file.key)?;
            }
            tracing::info!(key, files = files.len(), bytes, "removed");
        }
        self.report.removed.push(Debris { kind, key: key.to_owned(), files: files.len() as u64, bytes });
        Ok(())
    }

    /// Whether the youngest of these times is at least `age` ago; notes what is too young.
    fn is_old(&mut self, key: &str, times: impl Iterator<Item = OffsetDateTime>, age: Duration) -> bool {
        let newest = times.max();
        let found = newest.map_or(time::Duration::MAX, |newest| OffsetDateTime::now_utc() - newest);
        // a store's clock may be ahead of this one
        if found.max(time::Duration::ZERO) >= age {
            return true;
        }
        self.keep(key, "it was written too recently");
        false
    }

    fn keep(&mut self, key: &str, reason: &str) {
        self.report.kept.push(Kept { key: key.to_owned(), reason: reason.to_owned() });
    }
}

/// Groups files by the name and number of the version in whose folder they lie; others are left out.
fn by_version(kind: AssetKind, files: Vec<ObjectInfo>) -> BTreeMap<(String, u64), Vec<ObjectInfo>> {
    let mut folders: BTreeMap<(String, u64), Vec<ObjectInfo>> = BTreeMap::new();
    for file in files {
        let mut parts = file.key.splitn(4, '/');
        let (Some(_), Some(name), Some(number), Some(_)) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        // as `prefix` writes it: no zero or plus sign in front
        let number = number.parse::<u64>().ok().filter(|n| prefix(kind, name, *n).ends_with(&format!("/{number}")));
        if let Some(number) = number.filter(|n| *n > 0)
            && check_name(name).is_ok()
        {
            folders.entry((name.to_owned(), number)).or_default().push(file);
        }
    }
    folders
}

/// Checkpoint folders are named by a SHA-256; others are not this program's.
fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
