//! One file a job kind; pipelines compose them.
//!
//! A job kind is a function from resolved inputs and parameters to produced files ([`StepContext`] in, [`Produced`] out). It
//! writes into a scratch folder and nowhere else; only the runner publishes, and only what a step finished. So a failed or
//! killed step leaves nothing that anybody can see, but for one that refuses its own result: that leaves the report that says why.

mod adapter;
mod assemble;
mod embed;
mod estimate;
mod evaluate;
pub mod export;
mod finetune;
mod follow;
mod inputs;
mod labelled;
mod leakage;
pub mod models;
pub mod predict;
mod prepare;
mod release;
mod runner;
mod scratch;
pub mod self_test;
mod tracking;

pub use estimate::{Estimate, Memory, ParameterCount, Steps, Time};
pub use follow::follow;
pub use inputs::ResolvedInput;
pub use runner::{Plan, RunOptions, plan, run};

use crate::config::compute::Compute;
use crate::config::parameters::Parameters;
use crate::distributed::World;
use crate::error::{Context, Error, Result};
use crate::package::{Package, PythonLoader, read_package, verify_package};
use crate::registry::{AssetKind, Version};
use crate::storage::Store;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// What a step works with.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The resolved inputs by the contract's names; optional ones may be missing.
    pub inputs: &'a BTreeMap<String, ResolvedInput>,
    /// An empty folder to write into.
    pub scratch: &'a Path,
    /// Device and threads.
    pub compute: &'a Compute,
    /// When this step was first begun: repeating it writes the same times.
    pub begun: OffsetDateTime,
    /// The store, for what a step keeps there while it runs; only the runner publishes.
    pub store: &'a Store,
    /// The run and the step, which name the folder of what can be watched.
    pub run: (&'a str, &'a str),
    /// Names what a later run of the same step may continue: equal for the same work, new for a rerun.
    pub continuation: &'a str,
    /// Whether a later run of the same work finds what is kept under that name.
    pub lasting: bool,
    /// The processes that do the step together.
    pub world: &'a World,
    /// A Python with MLflow, whose loader must be able to use the packages that are made.
    pub python: Option<&'a PythonLoader>,
    /// The newest version of the step's output, where its content can save work; known to the first process only.
    pub earlier_output: Option<Version>,
}

impl StepContext<'_> {
    /// An input that the job must have; the runner has checked it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`].
    pub fn input(&self, name: &str) -> Result<&ResolvedInput> {
        resolved(self.inputs, name)
    }

    /// The path of a required input.
    ///
    /// # Errors
    /// As [`StepContext::input`].
    pub fn path(&self, name: &str) -> Result<&Path> {
        Ok(&self.input(name)?.path)
    }

    /// The path of an optional input.
    #[must_use]
    pub fn optional_path(&self, name: &str) -> Option<&Path> {
        self.inputs.get(name).map(|i| i.path.as_path())
    }

    /// The model package of an input.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming the input and the file.
    pub fn package(&self, name: &str) -> Result<Package> {
        let input = self.input(name)?;
        let read = || {
            let package = read_package(&input.path)?;
            // versions of the store are watched over by the registry, other folders by nobody
            if input.version.is_none() {
                verify_package(&input.path)?;
            }
            Ok(package)
        };
        read().context(|| format!("input {name}"))
    }

    /// A new sub-folder of the scratch folder.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`], [`crate::ErrorKind::NoSpace`].
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(folder)
    }
}

/// One output of a step, not yet published.
#[derive(Debug)]
pub struct Artifact {
    /// Dataset or model.
    pub kind: AssetKind,
    /// Relative names and where the files are.
    pub files: Vec<(String, PathBuf)>,
    /// Said of the output when the job says nothing.
    pub description: String,
    /// Facts kept in the version's manifest.
    pub metadata: serde_json::Value,
}

/// What a step made.
#[derive(Debug, Default)]
pub struct Produced {
    /// Outputs by the contract's names.
    pub outputs: BTreeMap<String, Artifact>,
    /// Numbers for the run record.
    pub metrics: serde_json::Value,
    /// A table for the terminal, when there is something to say.
    pub summary: Option<String>,
    /// Why nothing may go on from these outputs although they are published: the step fails with it.
    pub refused: Option<Error>,
    /// A folder of the store that is of no use once the outputs are published.
    pub used_up: Option<String>,
}

/// An input that the job must have; the runner has checked it.
fn resolved<'a>(inputs: &'a BTreeMap<String, ResolvedInput>, name: &str) -> Result<&'a ResolvedInput> {
    inputs.get(name).ok_or_else(|| Error::internal(format!("input '{name}' was not resolved")))
}

/// Runs one step.
fn execute(context: &StepContext<'_>, parameters: &Parameters) -> Result<Produced> {
    match parameters {
        Parameters::Prepare(p) => prepare::run(context, p),
        Parameters::Finetune(p) => finetune::run(context, p),
        Parameters::Embed(p) => embed::run(context, p),
        Parameters::Adapter(p) => adapter::run(context, p),
        Parameters::Assemble(p) => assemble::run(context, p),
        Parameters::Evaluate(p) => evaluate::run(context, p),
    }
}

/// Writes pretty JSON with a final newline.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal("cannot write JSON").with_source(e))?;
    std::fs::write(path, text + "\n").map_err(|e| Error::io("write", path, e))
}
