//! A job file: one kind with inputs, parameters and outputs, or a pipeline of such steps.
//!
//! Relative paths are relative to the job file's folder. An input is a path, a `file://` URI, a version (`data:NAME@7`,
//! `model:NAME@latest`), or inside a pipeline the output of another step: `${{ steps.STEP.outputs.OUTPUT }}`.

use super::compute::Compute;
use super::kinds::{Kind, PortType};
use super::mlflow::Mlflow;
use super::parameters::Parameters;
use super::store::StoreSection;
use super::suggest::did_you_mean;
use super::{Environment, apply_overrides, build, parse_yaml, read_yaml, render};
use crate::error::{Context, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::{Mapping, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The job file version that this program writes and reads.
pub const JOB_VERSION: u64 = 1;

/// How an output is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSpec {
    /// Name of the dataset or model; `JOB-STEP-OUTPUT` when left out.
    pub name: Option<String>,
    /// What a reader of the registry should know.
    pub description: String,
    /// Free key-value pairs.
    pub tags: BTreeMap<String, String>,
}

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum InputSource {
    /// An output of another step of the pipeline.
    Step {
        /// The step's name.
        step: String,
        /// The output's name.
        output: String,
    },
    /// A path, URI or version reference.
    External(String),
    /// Several of these, one after the other, for an input of images.
    List(Vec<String>),
}

impl InputSource {
    /// What it names outside of the job, in order; nothing for the output of a step.
    #[must_use]
    pub fn external(&self) -> &[String] {
        match self {
            InputSource::External(text) => std::slice::from_ref(text),
            InputSource::List(texts) => texts,
            InputSource::Step { .. } => &[],
        }
    }

    /// Parses `${{ steps.S.outputs.O }}`; anything else is external.
    fn parse(text: &str, place: &str) -> Result<InputSource> {
        let Some(inner) = text.strip_prefix("${{").and_then(|t| t.strip_suffix("}}")) else {
            if text.contains("${{") {
                return Err(Error::config(format!("{place}: '${{{{ ... }}}}' must be the whole value")));
            }
            return Ok(InputSource::External(text.to_owned()));
        };
        let parts: Vec<&str> = inner.trim().split('.').collect();
        match parts.as_slice() {
            ["steps", step, "outputs", output] => {
                Ok(InputSource::Step { step: (*step).to_owned(), output: (*output).to_owned() })
            }
            _ => Err(Error::config(format!("{place}: write ${{{{ steps.STEP.outputs.OUTPUT }}}}, not '{text}'"))),
        }
    }
}

/// One step: a job of one kind, or a member of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What it does.
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    /// Where its inputs come from, by the contract's names.
    pub inputs: BTreeMap<String, InputSource>,
    /// Its parameters, defaults filled in.
    pub parameters: Parameters,
    /// How its outputs are registered; outputs left out get default names.
    pub outputs: BTreeMap<String, OutputSpec>,
}

fn kind_name<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

/// What a job file says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Work {
    /// One step.
    Step(Box<Step>),
    /// A DAG of steps, in the order of the file.
    Pipeline {
        /// Names and steps; a step's inputs may name the outputs of any other.
        steps: Vec<(String, Step)>,
        /// Whether steps that do not depend on a failed one still run.
        continue_on_step_failure: bool,
    },
}

/// A job file, parsed and checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// The job's name: the file's stem unless given.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The store, when the file names one.
    pub store: Option<StoreSection>,
    /// Device and threads.
    pub compute: Compute,
    /// The MLflow server that the run and its models are registered at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<Mlflow>,
    /// The work itself.
    pub work: Work,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// The URI that they start from instead, for a job file that is not on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// Format version of job files; this program reads 1.
    pub(super) version: u64,
    /// The job's name; the file's stem when left out.
    pub(super) name: Option<String>,
    /// What the job is for.
    #[serde(default)]
    pub(super) description: String,
    /// The store: a URI or folder, or a mapping with `uri` and options; `--store` and MEDTUNE_STORE come first.
    pub(super) store: Option<StoreSection>,
    /// Device and threads.
    #[serde(default)]
    pub(super) compute: Compute,
    /// The MLflow server that the run and its models are registered at; none when left out.
    pub(super) mlflow: Option<Mlflow>,
}

const HEADER: [&str; 7] = ["version", "kind", "name", "description", "store", "compute", "mlflow"];
const STEP: [&str; 4] = ["kind", "inputs", "parameters", "outputs"];
const PIPELINE: [&str; 2] = ["steps", "continue_on_step_failure"];

impl Job {
    /// Reads, renders, overrides, builds and checks the job file at `path`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] for a missing file, [`crate::ErrorKind::Config`] for everything wrong in it,
    /// [`crate::ErrorKind::Usage`] for a wrong override.
    pub fn load(path: &Path, overrides: &[String], environment: &Environment) -> Result<Job> {
        let document = read_yaml(path)?;
        let folder = std::path::absolute(path)
            .map_err(|e| Error::io("resolve", path, e))?
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("job").to_owned();
        Job::build(document, overrides, environment, (stem, folder)).context(|| path.display())
    }

    /// The same for the text of a job file that was fetched from `uri`: relative paths start at its folder there.
    ///
    /// # Errors
    /// As [`Job::load`].
    pub fn from_elsewhere(text: &[u8], uri: &str, overrides: &[String], environment: &Environment) -> Result<Job> {
        let text = std::str::from_utf8(text).map_err(|_| Error::config(format!("'{uri}' is not UTF-8 text")))?;
        let document = parse_yaml(text, uri)?;
        let (base, name) = uri.rsplit_once('/').unwrap_or(("", uri));
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
        let built = Job::build(document, overrides, environment, (stem, PathBuf::new()));
        Ok(Job { base: Some(base.to_owned()), ..built.context(|| uri.to_owned())? })
    }

    fn build(document: Value, overrides: &[String], environment: &Environment, at: (String, PathBuf)) -> Result<Job> {
        let document = render(apply_overrides(document, overrides)?, environment)?;
        let Value::Mapping(document) = document else {
            return Err(Error::config("not a job file: write 'version: 1', 'kind: ...' and so on"));
        };
        let kind_text = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = parse_kind(&kind_text, "kind")?;
        let body: &[&str] = if kind == Kind::Pipeline { &PIPELINE } else { &STEP };
        let (mut header, mut rest) = (Mapping::new(), Mapping::new());
        for (key, value) in document {
            let name = key.as_str().unwrap_or_default().to_owned();
            if name == "kind" {
                // read above: it decides which keys are known
            } else if HEADER.contains(&name.as_str()) {
                header.insert(key, value);
            } else if body.contains(&name.as_str()) {
                rest.insert(key, value);
            } else {
                let known = HEADER.iter().chain(body).copied().collect::<Vec<_>>();
                return Err(Error::config(format!("unknown key '{name}': {}", did_you_mean(&name, known))));
            }
        }
        let header: Header = build(Value::Mapping(header), "job")?;
        if header.version != JOB_VERSION {
            return Err(Error::config(format!(
                "version: {} is not known; this program reads {JOB_VERSION}",
                header.version
            )));
        }
        header.compute.check()?;
        let name = header.name.unwrap_or(at.0);
        check_name(&name, "name")?;
        let work = if kind == Kind::Pipeline {
            build_pipeline(rest)?
        } else {
            Work::Step(Box::new(build_step(kind, rest, "")?))
        };
        if let Work::Step(step) = &work
            && let Some((input, _)) = step.inputs.iter().find(|(_, s)| matches!(s, InputSource::Step { .. }))
        {
            return Err(Error::config(format!(
                "inputs.{input}: only a step of a Pipeline can take another step's output"
            )));
        }
        let Header { description, store, compute, mlflow, .. } = header;
        let job = Job { name, description, store, compute, mlflow, work, folder: at.1, base: None };
        if let Some(mlflow) = &job.mlflow {
            mlflow.check().and_then(|()| mlflow.check_job(&job))?;
        }
        Ok(job)
    }

    /// The steps with their names; a job that is one step has one, named like its kind in lower case.
    #[must_use]
    pub fn steps(&self) -> Vec<(String, &Step)> {
        match &self.work {
            Work::Step(step) => vec![(step.kind.name().to_lowercase(), step)],
            Work::Pipeline { steps, .. } => steps.iter().map(|(n, s)| (n.clone(), s)).collect(),
        }
    }

    /// The job's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.work {
            Work::Step(step) => step.kind,
            Work::Pipeline { .. } => Kind::Pipeline,
        }
    }

    /// The name under which an output of a step is registered.
    #[must_use]
    pub fn output_name(&self, step_name: &str, step: &Step, output: &str) -> String {
        if let Some(name) = step.outputs.get(output).and_then(|o| o.name.clone()) {
            return name;
        }
        match self.work {
            Work::Step(_) => format!("{}-{output}", self.name),
            Work::Pipeline { .. } => format!("{}-{step_name}-{output}", self.name),
        }
    }
}

fn parse_kind(text: &str, place: &str) -> Result<Kind> {
    Kind::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
        match text {
            "" => Error::config(format!("{place}: missing; known: {}", known.join(", "))),
            _ => Error::config(format!("{place}: unknown kind '{text}': {}", did_you_mean(text, known))),
        }
    })
}

fn check_name(name: &str, place: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name.len() > 100
        || !name.chars().all(good)
        || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(Error::config(format!(
            "{place}: '{name}' must start with a letter or digit and hold only letters, digits, '.', '_' and '-', at most 100"
        )));
    }
    Ok(())
}

fn section(rest: &mut Mapping, key: &str, place: &str) -> Result<Mapping> {
    match rest.remove(key) {
        None | Some(Value::Null) => Ok(Mapping::new()),
        Some(Value::Mapping(map)) => Ok(map),
        Some(_) => Err(Error::config(format!("{place}{key}: must be a mapping"))),
    }
}

fn build_step(kind: Kind, mut rest: Mapping, place: &str) -> Result<Step> {
    let mut inputs = BTreeMap::new();
    for (key, value) in section(&mut rest, "inputs", place)? {
        let name = key.as_str().unwrap_or_default();
        let at = format!("{place}inputs.{name}");
        if !kind.inputs().iter().any(|p| p.name == name) {
            let known: Vec<&str> = kind.inputs().iter().map(|p| p.name).collect();
            return Err(Error::config(format!("{at}: {kind} has no such input: {}", did_you_mean(name, known))));
        }
        let one = |value: &Value, at: &str| {
            let text = value.as_str().map(str::trim).filter(|text| !text.is_empty());
            let text = text.ok_or_else(|| {
                let list = if port_type(kind, name) == Some(PortType::Rows) { ", or a list of them" } else { "" };
                Error::config(format!("{at}: must be one path, URI or version reference{list}"))
            })?;
            InputSource::parse(text, at)
        };
        let source = match &value {
            // the contract's conf_files is a list with one file
            Value::Sequence(items) if items.len() == 1 => one(&items[0], &at)?,
            Value::Sequence(items) if port_type(kind, name) == Some(PortType::Rows) && !items.is_empty() => {
                let item = |(number, item)| match one(item, &format!("{at}[{number}]"))? {
                    InputSource::External(text) => Ok(text),
                    _ => Err(Error::config(format!(
                        "{at}[{number}]: a list holds paths, URIs and version references; the output of a step stands alone"
                    ))),
                };
                InputSource::List(items.iter().enumerate().map(item).collect::<Result<_>>()?)
            }
            other => one(other, &at)?,
        };
        inputs.insert(name.to_owned(), source);
    }
    if let Some(missing) = kind.inputs().iter().find(|p| p.required && !inputs.contains_key(p.name)) {
        return Err(Error::config(format!("{place}inputs.{}: missing ({})", missing.name, missing.doc)));
    }
    let mut outputs = BTreeMap::new();
    for (key, value) in section(&mut rest, "outputs", place)? {
        let name = key.as_str().unwrap_or_default();
        let at = format!("{place}outputs.{name}");
        if !kind.outputs().iter().any(|p| p.name == name) {
            let known: Vec<&str> = kind.outputs().iter().map(|p| p.name).collect();
            return Err(Error::config(format!("{at}: {kind} has no such output: {}", did_you_mean(name, known))));
        }
        let spec: OutputSpec = match value {
            Value::String(name) => OutputSpec { name: Some(name), ..OutputSpec::default() },
            other => build(other, &at)?,
        };
        if let Some(name) = &spec.name {
            check_name(name, &format!("{at}.name"))?;
        }
        outputs.insert(name.to_owned(), spec);
    }
    let parameters =
        Parameters::build(kind, rest.remove("parameters").unwrap_or(Value::Null), &format!("{place}parameters"))?;
    let given = |name: &str| inputs.contains_key(name);
    let checked = match &parameters {
        Parameters::Prepare(prepare) => prepare.check_inputs(given),
        Parameters::Evaluate(evaluate) => evaluate.check_inputs(given),
        _ => Ok(()),
    };
    checked.map_err(|e| Error::config(format!("{place}{e}")))?;
    Ok(Step { kind, inputs, parameters, outputs })
}

fn build_pipeline(mut rest: Mapping) -> Result<Work> {
    let continue_on_step_failure = match rest.remove("continue_on_step_failure") {
        None => false,
        Some(Value::Bool(b)) => b,
        Some(_) => return Err(Error::config("continue_on_step_failure: must be true or false")),
    };
    let mut steps: Vec<(String, Step)> = Vec::new();
    for (key, value) in section(&mut rest, "steps", "")? {
        let name = key.as_str().unwrap_or_default().to_owned();
        let place = format!("steps.{name}.");
        check_name(&name, &format!("steps.{name}"))?;
        if name.contains('.') {
            return Err(Error::config(format!(
                "steps.{name}: a step's name must not hold a dot: references are split at dots"
            )));
        }
        let Value::Mapping(mut body) = value else {
            return Err(Error::config(format!(
                "steps.{name}: must be a mapping with kind, inputs, parameters, outputs"
            )));
        };
        let kind_text = body.remove("kind").and_then(|k| k.as_str().map(str::to_owned)).unwrap_or_default();
        let kind = parse_kind(&kind_text, &format!("{place}kind"))?;
        if kind == Kind::Pipeline {
            return Err(Error::config(format!("{place}kind: a pipeline cannot be a step of a pipeline")));
        }
        if let Some(unknown) = body.keys().filter_map(Value::as_str).find(|k| !STEP.contains(k)) {
            return Err(Error::config(format!("{place}{unknown}: unknown key: {}", did_you_mean(unknown, STEP))));
        }
        steps.push((name, build_step(kind, body, &place)?));
    }
    if steps.is_empty() {
        return Err(Error::config("steps: a pipeline needs at least one step"));
    }
    check_wiring(&steps)?;
    Ok(Work::Pipeline { steps, continue_on_step_failure })
}

/// Every reference names an existing output of a fitting type, and nothing waits for itself.
fn check_wiring(steps: &[(String, Step)]) -> Result<()> {
    let names: Vec<&str> = steps.iter().map(|(n, _)| n.as_str()).collect();
    for (name, step) in steps {
        for (input, source) in &step.inputs {
            let InputSource::Step { step: from, output } = source else { continue };
            let place = format!("steps.{name}.inputs.{input}");
            let Some((_, producer)) = steps.iter().find(|(n, _)| n == from) else {
                return Err(Error::config(format!(
                    "{place}: there is no step '{from}': {}",
                    did_you_mean(from, names)
                )));
            };
            if let (Parameters::Evaluate(evaluate), Parameters::Prepare(prepare), "test_text_tsv") =
                (&step.parameters, &producer.parameters, input.as_str())
            {
                evaluate.check_prepared(prepare).map_err(|e| Error::config(format!("steps.{name}.{e}")))?;
            }
            let outputs = producer.kind.outputs();
            let Some(made) = outputs.iter().find(|p| p.name == output) else {
                let known: Vec<&str> = outputs.iter().map(|p| p.name).collect();
                return Err(Error::config(format!(
                    "{place}: step '{from}' ({}) has no output '{output}': {}",
                    producer.kind,
                    did_you_mean(output, known)
                )));
            };
            let wanted = port_type(step.kind, input);
            if wanted.map(PortType::from_output) != Some(made.port_type) {
                return Err(Error::config(format!(
                    "{place}: '{output}' of step '{from}' is not what this input takes"
                )));
            }
        }
    }
    order(steps).map(|_| ())
}

fn port_type(kind: Kind, input: &str) -> Option<PortType> {
    kind.inputs().iter().find(|p| p.name == input).map(|p| p.port_type)
}

/// Indices of the steps in an order in which every step follows those it depends on; otherwise the order of the file.
///
/// # Errors
/// [`crate::ErrorKind::Config`] naming the steps of a cycle.
pub fn order(steps: &[(String, Step)]) -> Result<Vec<usize>> {
    let mut done: Vec<usize> = Vec::new();
    while done.len() < steps.len() {
        let ready = (0..steps.len())
            .find(|i| !done.contains(i) && dependencies(&steps[*i].1).all(|d| done.iter().any(|j| steps[*j].0 == d)));
        match ready {
            Some(i) => done.push(i),
            None => {
                let stuck: Vec<&str> =
                    (0..steps.len()).filter(|i| !done.contains(i)).map(|i| steps[i].0.as_str()).collect();
                return Err(Error::config(format!("steps: these wait for one another: {}", stuck.join(", "))));
            }
        }
    }
    Ok(done)
}

/// The names of the steps whose outputs `step` takes.
pub fn dependencies(step: &Step) -> impl Iterator<Item = &str> {
    step.inputs.values().filter_map(|s| match s {
        InputSource::Step { step, .. } => Some(step.as_str()),
        _ => None,
    })
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
