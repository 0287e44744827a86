//! What the other processes of a job do: the first one runs the job and tells them which step to compute with it.
//!
//! Guarantee: they compute with the same inputs, to the bit, and write nothing that anybody sees but their log.

use super::inputs::{Given, resolve_given};
use super::runner::{RunOptions, limit_threads};
use super::scratch::Scratch;
use super::{StepContext, execute};
use crate::config::job::Job;
use crate::distributed::World;
use crate::error::{Context, Error, Result};
use crate::storage::{Store, sha256_hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use time::OffsetDateTime;

/// A step that all processes are to compute together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    step: String,
    run: String,
    /// Seconds since 1970.
    begun: i64,
    continuation: String,
    inputs: BTreeMap<String, Given>,
    /// SHA-256 over the job as it was read, and this program's version.
    job: String,
}

impl Task {
    /// The step of this context.
    pub(super) fn new(job: &Job, context: &StepContext<'_>) -> Task {
        let (run, step) = context.run;
        Task {
            step: step.to_owned(),
            run: run.to_owned(),
            begun: context.begun.unix_timestamp(),
            continuation: context.continuation.to_owned(),
            inputs: context.inputs.iter().map(|(name, input)| (name.clone(), input.into())).collect(),
            job: fingerprint(job),
        }
    }
}

fn fingerprint(job: &Job) -> String {
    // of `compute` what each machine may set for itself does not count
    let buckets = job.compute.bucket_cap_mb;
    let job =
        serde_json::json!({ "code": crate::CODE_VERSION, "name": job.name, "work": job.work, "buckets": buckets });
    sha256_hex(job.to_string().as_bytes())
}

/// Tells the other processes, if there are any, to compute a step.
///
/// # Errors
/// [`crate::ErrorKind::Peer`].
pub(super) fn announce(world: &World, task: &Task) -> Result<()> {
    say(world, Some(task))
}

fn say(world: &World, task: Option<&Task>) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let text = serde_json::to_vec(&task).map_err(|e| Error::internal("cannot write a task").with_source(e));
    world.from_first(|| text).map(drop)
}

/// Lets the other processes end, well or with the error that the first one ends with.
///
/// # Errors
/// `outcome`.
pub(super) fn dismiss(world: &World, outcome: Result<()>) -> Result<()> {
    match outcome {
        Ok(()) => {
            // all is published: whoever was lost meanwhile was of no more use
            if let Err(error) = say(world, None).and_then(|()| world.part()) {
                tracing::warn!(%error, "another process did not end as it should");
            }
            Ok(())
        }
        Err(error) => {
            world.give_up(&error);
            Err(error)
        }
    }
}

/// Does what the first process tells, until it has no more to tell.
///
/// # Errors
/// What goes wrong here, and what the first process ends with.
pub fn follow(store: &Store, job: &Job, options: &RunOptions, world: &World) -> Result<()> {
    let mut run = None;
    let followed = steps(store, job, options, world, &mut run);
    if let Err(error) = &followed {
        // for the log that is kept
        tracing::error!("{error}");
        world.give_up(error);
    }
    if let (Some(run), Some(log)) = (run, &options.rank_log) {
        keep_log(store, (&run, world.rank()), log);
    }
    followed.and_then(|()| world.part())
}

fn steps(store: &Store, job: &Job, options: &RunOptions, world: &World, run: &mut Option<String>) -> Result<()> {
    limit_threads(job.compute.threads);
    let root = options.work_folder.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::create(&root)?;
    loop {
        let told = world.from_first(|| Err(Error::internal("rank 0 cannot follow")))?;
        let task: Option<Task> =
            serde_json::from_slice(&told).map_err(|e| Error::internal("cannot read a task").with_source(e))?;
        let Some(task) = task else { return Ok(()) };
        *run = Some(task.run.clone());
        one(store, job, (&task, &scratch), world).context(|| format!("step {}", task.step))?;
        scratch.clear(&task.step);
    }
}

fn one(store: &Store, job: &Job, (task, scratch): (&Task, &Scratch), world: &World) -> Result<()> {
    if task.job != fingerprint(job) {
        return Err(Error::config(
            "this process has another job file than rank 0, or another version of medtune: give all the same",
        ));
    }
    let steps = job.steps();
    let step = steps.iter().find(|(name, _)| *name == task.step).map(|(_, step)| step);
    let step = step.ok_or_else(|| Error::internal("there is no such step"))?;
    let inputs = resolve_given(store, job, step, &task.inputs)?;
    let folder = scratch.step(&task.step)?;
    let begun = OffsetDateTime::from_unix_timestamp(task.begun).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let context = StepContext {
        inputs: &inputs,
        scratch: &folder,
        compute: &job.compute,
        begun,
        store,
        run: (&task.run, &task.step),
        continuation: &task.continuation,
        // the first process keeps checkpoints
        lasting: false,
        world,
        // packages are made by the first process
        python: None,
        earlier_output: None,
    };
    execute(&context, &step.parameters).map(drop)
}

/// Puts this process's log beside the run record.
fn keep_log(store: &Store, (run, rank): (&str, usize), log: &Path) {
    let kept = std::fs::read(log)
        .map_err(|e| Error::io("read", log, e))
        .and_then(|text| store.put(&format!("runs/{run}/rank-{rank}.log"), text));
    if let Err(error) = kept {
        tracing::warn!(%error, "this process's log could not be put beside the run record");
    }
}
