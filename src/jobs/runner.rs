//! Runs a job: steps in dependency order, each once for the same inputs, configuration and code.
//!
//! Guarantees:
//! - A step whose fingerprint (kind, parameters, content of its inputs, names of its outputs, code version) was finished
//!   before is not run again: its versions are reused. So a run that failed or was killed goes on where it stopped.
//! - Outputs become visible one version at a time, each whole, and only after the step has done its work and the files of all
//!   of them are in the store. A step that then refuses its own result (a requirement that is not met) fails all the same.
//! - Everything that can be checked without running a step is checked before the first one runs.
//! - The run record is in the store from the start on, and says at the end what went in, what came out, and how it ended.
//! - An MLflow server that is away fails no job.
//! - Of several processes the first runs the job; the others do what it tells them, see follow.rs.

use super::estimate::{self, Estimate};
use super::follow::{self, Task, announce};
use super::inputs::{self, Pins, ResolvedInput};
use super::models::first_time;
use super::scratch::Scratch;
use super::{Produced, StepContext, execute, tracking};
use crate::CODE_VERSION;
use crate::config::job::{Job, Step, Work, dependencies, order};
use crate::config::kinds::Kind;
use crate::config::mlflow::Credentials;
use crate::config::parameters::Parameters;
use crate::distributed::World;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::infer::device;
use crate::package::PythonLoader;
use crate::registry::{
    AssetKind, CachedStep, ErrorRecord, Lineage, NewVersion, OutputRecord, Reference, RunRecord, Selector, StepCache,
    StepRecord, StepStatus, Version, check_name, get, new_run_id, publish_all, step_lock,
};
use crate::storage::{Store, sha256_hex};
use crate::telemetry::duration;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// How a job is run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Run every step, also those that were finished before.
    pub rerun: bool,
    /// Where scratch folders are made; the system's temporary folder when left out.
    pub work_folder: Option<PathBuf>,
    /// What servers are shown.
    pub credentials: Credentials,
    /// The file that this process's log goes to, where it is one of several.
    pub rank_log: Option<PathBuf>,
    /// A Python with MLflow, whose loader must be able to use the packages that are made.
    pub python: Option<PythonLoader>,
}

/// What a dry run says of one step.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Plan {
    /// The step's name.
    pub step: String,
    /// Its kind.
    pub kind: String,
    /// `unchanged`, `run`, or `unknown` while steps before it have not run.
    pub action: String,
    /// The names its outputs get.
    pub outputs: BTreeMap<String, String>,
    /// What a Finetune step that would be run will take, when its inputs are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
}

type Made = BTreeMap<String, BTreeMap<String, Version>>;

/// Says what a run would do, without running anything.
///
/// # Errors
/// Those of [`run`] that can be known beforehand.
pub fn plan(store: &Store, job: &Job) -> Result<Vec<Plan>> {
    let steps = job.steps();
    let mut made: Made = BTreeMap::new();
    let mut plans = Vec::new();
    let mut pins = check_all(store, job)?;
    for index in run_order(job)? {
        let (name, step) = &steps[index];
        let ready = dependencies(step).all(|d| made.contains_key(d));
        let mut estimate = None;
        let action = if ready {
            let resolved = inputs::resolve(store, job, step, (&made, &mut pins)).context(|| format!("step {name}"))?;
            let fingerprint = fingerprint(job, name, step, &resolved);
            match finished(store, &fingerprint)? {
                Some((_, outputs)) => {
                    made.insert(name.clone(), outputs);
                    "unchanged"
                }
                None => {
                    if let Parameters::Finetune(parameters) = &step.parameters {
                        let found = estimate::of_finetune(&resolved, parameters, &job.compute);
                        estimate = Some(found.context(|| format!("step {name}"))?);
                    }
                    "run"
                }
            }
        } else {
            "unknown"
        };
        let outputs = step.kind.outputs().iter().map(|p| (p.name.to_owned(), job.output_name(name, step, p.name)));
        let (kind, action) = (step.kind.name().to_owned(), action.to_owned());
        plans.push(Plan { step: name.clone(), kind, action, outputs: outputs.collect(), estimate });
    }
    Ok(plans)
}

/// Runs a job to its end; the returned record is also in the store, whatever happens.
///
/// # Errors
/// The first failing step's error, with the step's name; the record says the same. With `continue_on_step_failure` the
/// steps that do not depend on it have run.
pub fn run(store: &Store, job: &Job, options: &RunOptions, world: &World) -> (RunRecord, Result<()>) {
    let run_id = new_run_id(&job.name);
    let config = serde_json::to_value(job).unwrap_or(Value::Null);
    let mut record = RunRecord::start(&run_id, &job.name, job.kind().name(), config);
    let started = Instant::now();
    tracing::info!(run = %run_id, store = %store.uri(), job = %job.name, "run started");
    let client = tracking::client(job, &options.credentials);
    let (outcome, client) = match client {
        Err(error) => (Err(error), None),
        Ok(client) => {
            let mut runner =
                Runner { store, job, options, world, record: &mut record, made: BTreeMap::new(), pins: Pins::new() };
            (runner.all(), client)
        }
    };
    // before what may take long: they have nothing more to do
    let outcome = follow::dismiss(world, outcome);
    record.finish(started.elapsed(), outcome.as_ref().err());
    let saved = record.save(store);
    // last, and only with the record in the store: whatever becomes of it, nothing is lost
    if let (Some(client), Ok(())) = (&client, &saved) {
        tracking::after(client, (store, job), &mut record);
        if let Err(error) = record.save(store) {
            tracing::warn!(%error, "what became of the registration could not be added to the run record");
        }
    }
    (record, outcome.and(saved))
}

struct Runner<'a> {
    store: &'a Store,
    job: &'a Job,
    options: &'a RunOptions,
    world: &'a World,
    record: &'a mut RunRecord,
    made: Made,
    pins: Pins,
}

impl Runner<'_> {
    fn all(&mut self) -> Result<()> {
        self.pins = check_all(self.store, self.job)?;
        let computes = |k: Kind| matches!(k, Kind::Finetune | Kind::Embed | Kind::Adapter | Kind::Assemble);
        if self.job.steps().iter().any(|(_, s)| computes(s.kind)) {
            let device = device::select(&self.job.compute)?;
            let compute = device::record(device);
            tracing::info!(
                device = compute.device,
                libtorch = compute.libtorch,
                threads = compute.threads,
                "computing"
            );
            self.record.compute = Some(compute);
        }
        limit_threads(self.job.compute.threads);
        self.record.save(self.store)?;
        let root = self.options.work_folder.clone().unwrap_or_else(std::env::temp_dir);
        let scratch = Scratch::create(&root)?;
        let mut keep_going = matches!(&self.job.work, Work::Pipeline { continue_on_step_failure: true, .. });
        let steps = self.job.steps();
        let mut first_error: Option<Error> = None;
        for index in run_order(self.job)? {
            let (name, step) = &steps[index];
            let blocked = dependencies(step).any(|d| !self.made.contains_key(d));
            if blocked || (first_error.is_some() && !keep_going) {
                let mut skipped = StepRecord::start(name, step.kind.name(), "");
                skipped.status = StepStatus::Skipped;
                self.record.steps.push(skipped);
                continue;
            }
            if let Err(error) = self.one(name, step, &scratch) {
                let error = if steps.len() > 1 { error.context(format!("step {name}")) } else { error };
                tracing::error!(step = %name, "{error}");
                // the other processes may be gone with a step that failed
                let stopped = error.kind() == ErrorKind::Preempted || self.world.size() > 1;
                first_error.get_or_insert(error);
                keep_going &= !stopped;
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn one(&mut self, name: &str, step: &Step, scratch: &Scratch) -> Result<()> {
        let started = Instant::now();
        let mut record = StepRecord::start(name, step.kind.name(), "");
        // in the store before the work: the record of a killed run names the step it died in
        self.record.steps.push(record.clone());
        let result = self.record.save(self.store).and_then(|()| self.step(name, step, scratch, &mut record));
        self.record.steps.pop();
        record.duration_s = started.elapsed().as_secs_f64();
        scratch.clear(name);
        match &result {
            Err(error) => {
                record.status = StepStatus::Failed;
                record.error = Some(ErrorRecord::from(error));
            }
            Ok(summary) => {
                let unchanged = record.status == StepStatus::Unchanged;
                let what = if unchanged { "unchanged, not run again" } else { "finished" };
                tracing::info!(step = %name, took = %duration(started.elapsed()), "{what}");
                if let Some(text) = summary {
                    tracing::debug!("{text}");
                }
            }
        }
        if let Some(metrics) = self.metrics_map()
            && !record.metrics.is_null()
        {
            metrics.insert(name.to_owned(), record.metrics.clone());
        }
        for (output, made) in &record.outputs {
            let key =
                if self.record.kind == Kind::Pipeline.name() { format!("{name}.{output}") } else { output.clone() };
            self.record.outputs.insert(key, made.clone());
        }
        self.record.steps.push(record);
        let saved = self.record.save(self.store);
        result.and(saved)
    }

    fn metrics_map(&mut self) -> Option<&mut serde_json::Map<String, Value>> {
        if self.record.metrics.is_null() {
            self.record.metrics = json!({});
        }
        self.record.metrics.as_object_mut()
    }

    fn step(&mut self, name: &str, step: &Step, scratch: &Scratch, record: &mut StepRecord) -> Result<Option<String>> {
        let inputs = inputs::resolve(self.store, self.job, step, (&self.made, &mut self.pins))?;
        record.inputs = inputs.iter().map(|(n, i)| (n.clone(), i.record(self.store))).collect();
        for (input, resolved) in &inputs {
            if step.inputs.get(input).is_some_and(|source| !source.external().is_empty()) {
                let key =
                    if self.record.kind == Kind::Pipeline.name() { format!("{name}.{input}") } else { input.clone() };
                self.record.inputs.insert(key, resolved.record(self.store));
            }
        }
        let fingerprint = fingerprint(self.job, name, step, &inputs);
        record.fingerprint.clone_from(&fingerprint);
        if self.is_finished(name, &fingerprint, record)? {
            return Ok(None);
        }
        // a rerun is a new owner, so that it makes new versions; the same step otherwise finds its own again
        let owner =
            if self.options.rerun { format!("{}/{fingerprint}", self.record.run_id) } else { fingerprint.clone() };
        // what another attempt at the same work may go on from, also when it allows or writes something else
        let continuation = match step.parameters.for_resuming() {
            Some(parameters) if !self.options.rerun => {
                self::fingerprint(self.job, name, &Step { parameters, ..step.clone() }, &inputs)
            }
            _ => sha256_hex(owner.as_bytes()),
        };
        // one at a time for the same work, and nobody clears its checkpoints away meanwhile; who waited finds it done, if it wants the same
        let _lock = self.store.lock(&step_lock(&continuation))?;
        if self.is_finished(name, &fingerprint, record)? {
            return Ok(None);
        }
        tracing::info!(step = %name, kind = %step.kind, "started");
        let folder = scratch.step(name)?;
        let context = StepContext {
            inputs: &inputs,
            scratch: &folder,
            compute: &self.job.compute,
            begun: first_time(self.store, &owner)?,
            store: self.store,
            run: (&self.record.run_id, name),
            continuation: &continuation,
            lasting: !self.options.rerun,
            world: self.world,
            python: self.options.python.as_ref(),
            earlier_output: self.earlier_output(name, step)?,
        };
        if matches!(step.parameters, Parameters::Finetune(_) | Parameters::Embed(_)) {
            announce(self.world, &Task::new(self.job, &context))?;
        }
        let mut produced = execute(&context, &step.parameters)?;
        let refused = produced.refused.take();
        let lineage = Lineage {
            run_id: self.record.run_id.clone(),
            step: Some(name.to_owned()),
            code_version: CODE_VERSION.to_owned(),
            inputs: inputs.iter().map(|(n, i)| (n.clone(), format!("{} {}", i.origin(), i.identity()))).collect(),
        };
        let summary = produced.summary.clone();
        record.metrics = produced.metrics.clone();
        let used_up = produced.used_up.clone();
        let outputs = self.publish(name, step, produced, (&owner, lineage))?;
        if let Some(error) = refused {
            // what it made is to be seen, but neither taken over by a later run nor built upon
            record.outputs = outputs.iter().map(|(n, v)| (n.clone(), output_record(self.store, v))).collect();
            return Err(error);
        }
        let references = outputs.iter().map(|(n, v)| (n.clone(), v.reference())).collect();
        let cached = CachedStep {
            fingerprint,
            run_id: self.record.run_id.clone(),
            outputs: references,
            metrics: record.metrics.clone(),
        };
        StepCache::put(self.store, &cached)?;
        if let Some(folder) = used_up
            && let Err(error) = self.store.delete_folder(&folder)
        {
            tracing::warn!(%folder, %error, "what the step no longer needs could not be removed");
        }
        record.status = StepStatus::Succeeded;
        self.keep(name, outputs, record);
        Ok(summary)
    }

    /// The newest version of what the step makes, where its content can save work; not when everything is to be done again.
    fn earlier_output(&self, name: &str, step: &Step) -> Result<Option<Version>> {
        if self.options.rerun || !matches!(&step.parameters, Parameters::Embed(p) if p.reuse) {
            return Ok(None);
        }
        let output = self.job.output_name(name, step, "embeddings");
        let latest = Reference { kind: AssetKind::Data, name: output, version: Selector::Latest };
        match get(self.store, &latest) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::Data => {
                tracing::warn!(%error, "nothing can be taken over from the newest version");
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Takes over what an earlier run has made of the same, if there is that.
    fn is_finished(&mut self, name: &str, fingerprint: &str, record: &mut StepRecord) -> Result<bool> {
        if self.options.rerun {
            return Ok(false);
        }
        let Some((cached, outputs)) = finished(self.store, fingerprint)? else { return Ok(false) };
        record.status = StepStatus::Unchanged;
        record.metrics = cached.metrics;
        self.keep(name, outputs, record);
        Ok(true)
    }

    fn keep(&mut self, name: &str, outputs: BTreeMap<String, Version>, record: &mut StepRecord) {
        record.outputs = outputs.iter().map(|(n, v)| (n.clone(), output_record(self.store, v))).collect();
        self.made.insert(name.to_owned(), outputs);
    }

    fn publish(
        &self,
        name: &str,
        step: &Step,
        produced: Produced,
        (owner, lineage): (&str, Lineage),
    ) -> Result<BTreeMap<String, Version>> {
        let mut outputs = BTreeMap::new();
        let missing = step.kind.outputs().iter().find(|p| !produced.outputs.contains_key(p.name));
        if let Some(port) = missing {
            return Err(Error::internal(format!("{} made no output '{}'", step.kind, port.name)));
        }
        let mut names = Vec::new();
        let mut versions = Vec::new();
        for (output, artifact) in produced.outputs {
            let spec = step.outputs.get(&output).cloned().unwrap_or_default();
            versions.push(NewVersion {
                kind: artifact.kind,
                name: self.job.output_name(name, step, &output),
                description: if spec.description.is_empty() { artifact.description } else { spec.description },
                tags: spec.tags,
                files: artifact.files,
                owner: format!("{owner}/{output}"),
                lineage: lineage.clone(),
                metadata: artifact.metadata,
            });
            names.push(output);
        }
        // together, so that a disk that fills up half-way leaves none of them visible
        for (output, version) in names.into_iter().zip(publish_all(self.store, versions)?) {
            tracing::info!(step = %name, output = %output, version = %version.reference(), "registered");
            outputs.insert(output, version);
        }
        Ok(outputs)
    }
}

/// Image work uses as many threads as the job gives libtorch.
pub(super) fn limit_threads(threads: usize) {
    if threads > 0 && rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().is_err() {
        tracing::debug!("the threads of image work were started before and keep their number");
    }
}

/// Everything that can be said of the inputs before any step has run.
fn check_all(store: &Store, job: &Job) -> Result<Pins> {
    let steps = job.steps();
    let mut pins = Pins::new();
    for (name, step) in &steps {
        let checked = inputs::check(store, job, step, &mut pins).and_then(|()| {
            let names = step.kind.outputs().iter().map(|p| (p.name, job.output_name(name, step, p.name)));
            names.into_iter().try_for_each(|(output, name)| check_name(&name).context(|| format!("output {output}")))
        });
        if steps.len() > 1 { checked.context(|| format!("step {name}"))? } else { checked? }
    }
    Ok(pins)
}

fn run_order(job: &Job) -> Result<Vec<usize>> {
    match &job.work {
        Work::Step(_) => Ok(vec![0]),
        Work::Pipeline { steps, .. } => order(steps),
    }
}

fn output_record(store: &Store, version: &Version) -> OutputRecord {
    OutputRecord { reference: Some(version.reference()), uri: version.uri(store), digest: version.digest.clone() }
}

/// SHA-256 over everything that decides what a step makes and under which names.
fn fingerprint(job: &Job, name: &str, step: &Step, inputs: &BTreeMap<String, ResolvedInput>) -> String {
    let inputs: BTreeMap<&String, &String> = inputs.iter().map(|(n, i)| (n, &i.digest)).collect();
    let outputs: BTreeMap<&str, Value> = step
        .kind
        .outputs()
        .iter()
        .map(|p| (p.name, json!([job.output_name(name, step, p.name), step.outputs.get(p.name)])))
        .collect();
    let parts = json!({
        "code": CODE_VERSION,
        "kind": step.kind.name(),
        "parameters": step.parameters,
        "inputs": inputs,
        "outputs": outputs,
    });
    sha256_hex(parts.to_string().as_bytes())
}

/// A finished step of that fingerprint whose versions are all still there.
fn finished(store: &Store, fingerprint: &str) -> Result<Option<(CachedStep, BTreeMap<String, Version>)>> {
    let Some(cached) = StepCache::get(store, fingerprint)? else { return Ok(None) };
    let mut outputs = BTreeMap::new();
    for (name, reference) in &cached.outputs {
        outputs.insert(name.clone(), get(store, &Reference::parse(reference, None)?)?);
    }
    Ok(Some((cached, outputs)))
}
