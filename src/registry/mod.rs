//! Named, numbered versions of datasets and models; run records; the cache of finished steps.
//!
//! Guarantees:
//! - **A version is visible whole or not at all.** Its manifest is one create-if-absent, written after all its files are
//!   in the store; readers start from manifests only, so what a killed publisher leaves is never listed.
//! - **A number is given once**, also when many processes publish at the same time, and numbers are contiguous as long
//!   as interrupted publishers are run again.
//! - **Publishing is idempotent for its owner:** the same owner publishing the same files again gets the version that
//!   exists; an owner that was interrupted goes on with the number that it had reserved.
//! - **Nothing is deleted but by [`gc()`]**: a version that is removed is marked, and one that is there keeps its files.
//! - **Versions never change.** [`verify_version`] finds every file that was changed, removed or added, by its SHA-256.
//!
//! Layout in the store:
//!
//! ```text
//! data/NAME/<version>/...                            the files of a dataset
//! models/NAME/<version>/...                          the files of a model: directly an MLflow model folder
//! registry/{data,models}/NAME/<10 digits>.claim.json reserves a number for an owner
//! registry/{data,models}/NAME/<10 digits>.json       the manifest
//! registry/{data,models}/NAME/<10 digits>.removed.json  says that the version was removed
//! registry/{data,models}/NAME/aliases/ALIAS/<10 digits>.json  a move of an alias; the highest counts
//! runs/<run id>/run.json                             the record of a run
//! runs/<run id>/<step>/...                           what can be watched while a step runs: see [`Series`]
//! checkpoints/<hash>/...                             of a step that is not finished; not the registry's
//! cache/steps/<fingerprint>.json                     what a finished step made
//! ```

mod aliases;
mod content;
mod diff;
mod gc;
mod json;
mod publish;
mod read;
mod reference;
mod removal;
mod runs;
mod series;
mod steps;
mod tracking;
mod version;

pub use aliases::{aliases, remove_alias, set_alias};
#[cfg(feature = "torch")]
pub(crate) use content::occupied;
pub use content::{folder_files, pull, verify_version};
pub use diff::{ChangedFile, FieldDiff, FileContent, FilesDiff, VersionDiff, diff};
pub use gc::{Debris, DebrisKind, GcOptions, GcReport, Kept, gc};
pub use publish::{publish, publish_all};
pub use read::{get, list_names, list_versions, open_local};
pub use reference::{Reference, Selector, check_alias};
pub use removal::{Removal, list_removed, remove_version};
pub use runs::{
    ComputeRecord, ErrorRecord, HostInfo, InputRecord, OutputRecord, RunRecord, RunStatus, StepRecord, StepStatus,
    new_run_id,
};
pub use series::{Earlier, Series, SeriesFolder, series_folders};
pub use steps::{CachedStep, StepCache, step_lock};
pub use tracking::{MlflowRecord, MlflowStatus, MlflowVersion};
pub use version::{AssetKind, FileEntry, Lineage, NewVersion, Version, check_name};

/// The time now in UTC as RFC 3339, to the millisecond.
#[must_use]
pub fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // the format has no part that can fail
    now.format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_aliases;
#[cfg(test)]
mod tests_gc;
#[cfg(test)]
mod tests_removal;
