//! The shards of an Embed step in the store, while it is not finished: `checkpoints/KEY/`.
//!
//! ```text
//! plan.json           what all runs of the step keep to
//! shard-00000.json    written last: what became of the shard's rows, and what its file must be
//! shard-00000.parquet
//! ```

use crate::data::embeddings::{BadRow, Space, part_name};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::jobs::StepContext;
use crate::registry::Version;
use crate::storage::{FileDigest, Store};
use crate::train::checkpoint;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u32 = 1;

/// What all runs of one step keep to, so that they make the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    format_version: u32,
    /// Its own, so that shards of another plan are not taken for its.
    id: String,
    /// Rows of a shard.
    shard_rows: usize,
    /// What all vectors share.
    pub(super) space: Space,
    /// `cpu` or `cuda`: numbers of both differ in the last digits.
    device: String,
    /// The version that vectors are taken over from.
    pub(super) earlier: Option<String>,
}

impl Plan {
    /// Whether a process that computes this there makes the numbers of the plan.
    pub(super) fn is_of(&self, space: &Space, device: &str) -> bool {
        self.space == *space && self.device == device
    }

    /// How the vectors are computed, for messages.
    pub(super) fn how(&self) -> String {
        format!("with {} in {} on {}", self.space.model_reference, self.space.precision, self.device)
    }
}

/// What became of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// Whose plan it was made by.
    plan: String,
    /// Vectors that were taken over.
    pub(super) reused: u64,
    /// Rows without a vector.
    pub(super) bad: Vec<BadRow>,
    /// Bytes of the file.
    size: u64,
    /// SHA-256 of the file.
    sha256: String,
}

/// The shards of one step.
#[derive(Debug)]
pub(super) struct Work {
    store: Store,
    /// Where they are in the store.
    pub(super) folder: String,
    /// Where their files are on this machine.
    pub(super) dir: PathBuf,
    rows: usize,
    pub(super) plan: Plan,
}

impl Work {
    /// The shards of a plan.
    pub(super) fn new(context: &StepContext<'_>, dir: &Path, rows: usize, plan: Plan) -> Result<Work> {
        let folder = checkpoint::folder(context.continuation);
        let work = Work { store: context.store.clone(), folder, dir: dir.to_owned(), rows, plan };
        let parts = work.dir.join("parquet");
        std::fs::create_dir_all(&parts).map_err(|e| Error::io("create", &parts, e))?;
        Ok(work)
    }

    /// The plan that an earlier run has made, or a new one where this process would compute other numbers. One run at a time works on a
    /// step.
    pub(super) fn begin(
        context: &StepContext<'_>,
        dir: &Path,
        (rows, shard_rows): (usize, usize),
        (space, device): (&Space, &str),
    ) -> Result<Work> {
        let key = format!("{}/plan.json", checkpoint::folder(context.continuation));
        let plan = match read::<Plan>(context.store, &key)?.filter(|plan| plan.format_version == FORMAT_VERSION) {
            Some(plan) if plan.is_of(space, device) => plan,
            other => {
                let earlier = context.earlier_output.as_ref().map(Version::reference);
                let (id, space, device) = (uuid::Uuid::new_v4().to_string(), space.clone(), device.to_owned());
                let plan = Plan { format_version: FORMAT_VERSION, id, shard_rows, space, device, earlier };
                if let Some(other) = other {
                    tracing::warn!("an earlier run computed {}, this one {}: it begins anew", other.how(), plan.how());
                }
                write(context.store, &key, &plan)?;
                plan
            }
        };
        Work::new(context, dir, rows, plan)
    }

    /// How many there are.
    pub(super) fn shards(&self) -> usize {
        self.rows.div_ceil(self.plan.shard_rows)
    }

    /// The rows of one, from 0.
    pub(super) fn rows_of(&self, shard: usize) -> Range<usize> {
        let start = shard * self.plan.shard_rows;
        start..(start + self.plan.shard_rows).min(self.rows)
    }

    /// Where the file of one is on this machine.
    pub(super) fn path(&self, shard: usize) -> PathBuf {
        self.dir.join(part_name(shard))
    }

    /// Takes the file of a shard to the store.
    pub(super) fn publish(&self, shard: usize, (reused, bad): (u64, Vec<BadRow>)) -> Result<Done> {
        let FileDigest { size, sha256 } = self.store.put_file(&self.key(shard, "parquet"), &self.path(shard))?;
        let done = Done { plan: self.plan.id.clone(), reused, bad, size, sha256 };
        write(&self.store, &self.key(shard, "json"), &done)?;
        Ok(done)
    }

    /// Brings a shard that is done to this machine; `None` if it is not done, or not what it should be.
    pub(super) fn fetch(&self, shard: usize) -> Result<Option<Done>> {
        let key = self.key(shard, "json");
        let Some(done) = read::<Done>(&self.store, &key)?.filter(|done| done.plan == self.plan.id) else {
            return Ok(None);
        };
        let expected = FileDigest { size: done.size, sha256: done.sha256.clone() };
        match self.store.download(&self.key(shard, "parquet"), &self.path(shard), &expected) {
            Ok(()) => Ok(Some(done)),
            Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::NotFound) => {
                tracing::warn!(shard, %error, "a shard is not what was written and is done again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn key(&self, shard: usize, extension: &str) -> String {
        format!("{}/shard-{shard:05}.{extension}", self.folder)
    }
}

/// A small object; one that cannot be read as what it should be counts as missing.
fn read<T: serde::de::DeserializeOwned>(store: &Store, key: &str) -> Result<Option<T>> {
    let Some(bytes) = store.get(key)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    if let Err(error) = &parsed {
        tracing::warn!(key, %error, "this object is damaged and is made again");
    }
    Ok(parsed.ok())
}

fn write(store: &Store, key: &str, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::internal("cannot write JSON").with_source(e))?;
    store.put(key, text).context(|| format!("keep '{key}'"))
}
