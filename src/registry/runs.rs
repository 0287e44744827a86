//! The record of a run: what went in and out, with which configuration, and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::storage::{Store, check_key};

use super::read::near;
use super::{MlflowRecord, json, now};

/// How a run stands. A run whose process was killed stays `running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It has started and not said that it ended.
    Running,
    /// All of it is done.
    Succeeded,
    /// It ended with an error.
    Failed,
}

/// How a step of a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// It has started and not said that it ended.
    Running,
    /// It is done.
    Succeeded,
    /// It was done by an earlier run with the same inputs, configuration and code.
    Unchanged,
    /// It ended with an error.
    Failed,
    /// It was not run, since a step before it failed.
    Skipped,
}

/// Something that a run read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// The version that it was (`data:NAME@7`), if it came from the registry.
    pub reference: Option<String>,
    /// Where it was read from.
    pub uri: String,
    /// SHA-256 of the file, or over those of several and over names, or the digest of the version; empty for what was read in ranges from somewhere else.
    pub sha256: String,
    /// A hash over place, ETag and size of what was read in ranges from somewhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The size in bytes.
    pub size: u64,
}

impl InputRecord {
    /// What the content is known by: `sha256:` or `etag:` and a hash.
    #[must_use]
    pub fn identity(&self) -> String {
        self.etag.as_ref().map_or_else(|| format!("sha256:{}", self.sha256), |etag| format!("etag:{etag}"))
    }
}

/// Something that a run published or wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// The version that it became, if it was published.
    pub reference: Option<String>,
    /// Where it lies.
    pub uri: String,
    /// The digest of the version, or the SHA-256 of the file.
    pub digest: String,
}

/// Why a run or step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// The kind's name, as [`crate::ErrorKind::name`] gives it.
    pub kind: String,
    /// The message, one line.
    pub message: String,
    /// The exit code of this kind.
    pub exit_code: u8,
}

impl From<&Error> for ErrorRecord {
    fn from(error: &Error) -> Self {
        let kind = error.kind();
        ErrorRecord { kind: kind.name().to_owned(), message: error.to_string(), exit_code: kind.exit_code() }
    }
}

/// The machine and process that a run had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The machine's name; empty if it is not known.
    pub name: String,
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor's architecture, such as `x86_64`.
    pub arch: String,
    /// How many CPUs the process may use.
    pub cpus: usize,
    /// The process id.
    pub pid: u32,
    /// When the machine and the process were started, so that another process with the same number is told apart.
    #[serde(default)]
    pub process: String,
}

/// The machine's boot and the process's start in it; empty where there is no such process, or no /proc.
fn process_identity(pid: &str) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the program's name, in parentheses, may hold spaces; the start time is the 20th field after it
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    start.map_or_else(String::new, |start| format!("{}/{start}", boot.trim()))
}

impl HostInfo {
    /// This machine and process.
    #[must_use]
    pub fn current() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        HostInfo {
            name: name.trim().to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            pid: std::process::id(),
            process: process_identity("self"),
        }
    }
}

/// What a run computed with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeRecord {
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The version of libtorch, such as `2.11.0+cpu`.
    pub libtorch: String,
    /// How many CPU threads libtorch uses for one operation.
    pub threads: usize,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step's name in the pipeline.
    pub name: String,
    /// The kind of job.
    pub kind: String,
    /// How it stands.
    pub status: StepStatus,
    /// When it started, RFC 3339 in UTC.
    pub started: String,
    /// How long it took, in seconds.
    pub duration_s: f64,
    /// The hash of its inputs, configuration and code.
    pub fingerprint: String,
    /// What it read, by input name.
    pub inputs: BTreeMap<String, InputRecord>,
    /// What it made, by output name.
    pub outputs: BTreeMap<String, OutputRecord>,
    /// What it measured.
    pub metrics: Value,
    /// Why it failed.
    pub error: Option<ErrorRecord>,
}

impl StepRecord {
    /// A step that starts now.
    #[must_use]
    pub fn start(name: &str, kind: &str, fingerprint: &str) -> Self {
        StepRecord {
            name: name.to_owned(),
            kind: kind.to_owned(),
            status: StepStatus::Running,
            started: now(),
            duration_s: 0.0,
            fingerprint: fingerprint.to_owned(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            metrics: Value::Null,
            error: None,
        }
    }
}

/// The record of a run, kept at `runs/<run id>/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The version of this format: 1.
    pub format_version: u32,
    /// The run's id, as [`new_run_id`] makes it.
    pub run_id: String,
    /// The name in the job file.
    pub job_name: String,
    /// The kind of job.
    pub kind: String,
    /// How the run stands.
    pub status: RunStatus,
    /// When it started, RFC 3339 in UTC.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// How long it took, in seconds.
    pub duration_s: f64,
    /// [`crate::CODE_VERSION`] of the program.
    pub code_version: String,
    /// The program's version.
    pub medtune_version: String,
    /// The resolved configuration, without secrets.
    pub config: Value,
    /// What it read, by input name.
    pub inputs: BTreeMap<String, InputRecord>,
    /// What it made, by output name.
    pub outputs: BTreeMap<String, OutputRecord>,
    /// What it measured.
    pub metrics: Value,
    /// Why it failed.
    pub error: Option<ErrorRecord>,
    /// The exit code of the process, once it has ended.
    pub exit_code: Option<u8>,
    /// Its steps, in the order in which they were started.
    pub steps: Vec<StepRecord>,
    /// Where it ran.
    pub host: HostInfo,
    /// What it computed with; `None` for a run without a step that computes, and in records of older programs.
    #[serde(default)]
    pub compute: Option<ComputeRecord>,
    /// Its registration at an MLflow server; `None` for a job without one, and in records of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<MlflowRecord>,
}

impl RunRecord {
    /// A run that starts now, in this process.
    #[must_use]
    pub fn start(run_id: &str, job_name: &str, kind: &str, config: Value) -> Self {
        RunRecord {
            format_version: json::FORMAT_VERSION,
            run_id: run_id.to_owned(),
            job_name: job_name.to_owned(),
            kind: kind.to_owned(),
            status: RunStatus::Running,
            started: now(),
            ended: None,
            duration_s: 0.0,
            code_version: crate::CODE_VERSION.to_owned(),
            medtune_version: env!("CARGO_PKG_VERSION").to_owned(),
            config,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            metrics: Value::Null,
            error: None,
            exit_code: None,
            steps: Vec::new(),
            host: HostInfo::current(),
            compute: None,
            mlflow: None,
        }
    }

    /// Whether the record says `running` though its process, on this machine, is gone: it was killed. What runs on other
    /// machines cannot be known.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let here = HostInfo::current();
        self.status == RunStatus::Running
            && self.host.name == here.name
            && !here.process.is_empty()
            && process_identity(&self.host.pid.to_string()) != self.host.process
    }

    /// Whether the run's process is known to be running, on this machine.
    pub(super) fn is_alive(&self) -> bool {
        let here = HostInfo::current();
        self.status == RunStatus::Running
            && self.host.name == here.name
            && !self.host.process.is_empty()
            && process_identity(&self.host.pid.to_string()) == self.host.process
    }

    /// Notes that the run has ended: with `error`, or well.
    pub fn finish(&mut self, duration: std::time::Duration, error: Option<&Error>) {
        self.ended = Some(now());
        self.duration_s = duration.as_secs_f64();
        self.status = if error.is_some() { RunStatus::Failed } else { RunStatus::Succeeded };
        self.exit_code = Some(error.map_or(0, |e| e.kind().exit_code()));
        self.error = error.map(ErrorRecord::from);
    }

    /// Writes the record, replacing its earlier state.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for an invalid run id, [`crate::ErrorKind::NoSpace`] for a full disk, otherwise
    /// [`crate::ErrorKind::Storage`].
    pub fn save(&self, store: &Store) -> Result<()> {
        store.put(&run_key(&self.run_id)?, json::to_bytes(self)?)
    }

    /// The record of the run `run_id`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is none, with the ids that are near; [`crate::ErrorKind::Data`] if it is
    /// damaged, [`crate::ErrorKind::Storage`] if it cannot be read.
    pub fn load(store: &Store, run_id: &str) -> Result<RunRecord> {
        if let Some(record) = json::read(store, &run_key(run_id)?)? {
            return Ok(record);
        }
        let ids: Vec<String> = run_ids(store)?;
        let hint =
            near(run_id, &ids).map_or_else(|| "there are none yet".to_owned(), |n| format!("the nearest are {n}"));
        Err(Error::not_found(format!("there is no run '{run_id}' in '{}': {hint}", store.uri())))
    }

    /// All records, newest first. A damaged one is left out, with a warning.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`] if the store cannot be read.
    pub fn list(store: &Store) -> Result<Vec<RunRecord>> {
        let mut records: Vec<RunRecord> = Vec::new();
        for id in run_ids(store)? {
            match json::read(store, &run_key(&id)?) {
                Ok(record) => records.extend(record),
                Err(error) if error.kind() == crate::ErrorKind::Data => tracing::warn!(%error, "a run is left out"),
                Err(error) => return Err(error),
            }
        }
        records.sort_by(|a, b| b.run_id.cmp(&a.run_id));
        Ok(records)
    }
}

fn run_key(run_id: &str) -> Result<String> {
    let fits = !run_id.contains('/') && check_key(run_id).is_ok();
    if !fits {
        return Err(Error::config(format!("'{}' is not a valid run id", run_id.escape_default())));
    }
    Ok(format!("runs/{run_id}/run.json"))
}

fn run_ids(store: &Store) -> Result<Vec<String>> {
    let objects = store.list("runs")?.into_iter();
    let ids = objects.filter_map(|o| Some(o.key.strip_prefix("runs/")?.strip_suffix("/run.json")?.to_owned()));
    Ok(ids.filter(|id| !id.contains('/')).collect())
}

/// A new run id: the UTC time, the job's name and a random part, such as `20261124T091500123Z-quickstart-0f3a9c1e`.
/// Ids sort by time.
#[must_use]
pub fn new_run_id(job_name: &str) -> String {
    let time: String = now().chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = job_name.chars().map(plain).take(64).collect();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{time}-{name}-{}", &random[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_saved_replaced_loaded_and_listed_newest_first() {
        let store = Store::in_memory();
        assert!(RunRecord::list(&store).unwrap().is_empty());
        let ids =
            ["20260102T000000000Z-b-00000000", "20260101T000000000Z-a-00000000", "20260103T000000000Z-c-00000000"];
        for id in ids {
            let mut record = RunRecord::start(id, "job", "Pipeline", serde_json::json!({"a": 1}));
            record.steps.push(StepRecord::start("s", "Embed", "00"));
            record.save(&store).unwrap();
            record.finish(std::time::Duration::from_millis(1500), Some(&Error::data("row 3 of 'x' is bad")));
            record.save(&store).unwrap();
            assert_eq!(RunRecord::load(&store, id).unwrap(), record);
        }
        store.put("runs/broken/run.json", b"{".to_vec()).unwrap();
        // what lies beside the records is none
        store.put("runs/x/steps/run.json", b"{}".to_vec()).unwrap();
        for file in ["metrics.jsonl", "events.out.tfevents.1.medtune", "run.json"] {
            store.put(&format!("runs/{}/finetune/{file}", ids[0]), b"{}".to_vec()).unwrap();
        }
        let listed = RunRecord::list(&store).unwrap();
        assert_eq!(listed.iter().map(|r| r.run_id.as_str()).collect::<Vec<_>>(), [ids[2], ids[0], ids[1]]);
        let value = serde_json::to_value(&listed[0]).unwrap();
        assert_eq!(
            (&value["status"], &value["exit_code"], &value["error"]["kind"]),
            (&"failed".into(), &11.into(), &"data".into())
        );
        let error = RunRecord::load(&store, "20260101T000000000Z-a").unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
        assert!(error.to_string().contains(ids[1]), "{error}");
        assert_eq!(RunRecord::load(&store, "../x").unwrap_err().kind(), crate::ErrorKind::Config);
    }

    #[test]
    fn records_from_before_compute_and_mlflow_were_kept_are_read() {
        let store = Store::in_memory();
        let mut record = RunRecord::start("old", "job", "Embed", Value::Null);
        let mut value = serde_json::to_value(&record).unwrap();
        value.as_object_mut().unwrap().remove("compute").unwrap();
        assert!(value.get("mlflow").is_none(), "{value}");
        store.put("runs/old/run.json", value.to_string().into_bytes()).unwrap();
        assert_eq!(RunRecord::load(&store, "old").unwrap(), record);
        record.compute = Some(ComputeRecord { device: "cpu".into(), libtorch: "2.11.0+cpu".into(), threads: 2 });
        record.mlflow = Some(MlflowRecord { tracking_uri: "http://h".into(), ..MlflowRecord::default() });
        record.save(&store).unwrap();
        assert_eq!(RunRecord::load(&store, "old").unwrap(), record);
    }

    #[test]
    fn run_ids_are_plain_distinct_and_sorted_by_time() {
        let first = new_run_id("grün / x");
        std::thread::sleep(std::time::Duration::from_millis(2));
        let second = new_run_id("A");
        assert!(first < second && run_key(&first).is_ok(), "{first} {second}");
        assert!(first.contains("Z-gr-n---x-"), "{first}");
    }
}
