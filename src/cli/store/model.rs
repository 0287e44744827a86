//! Verbs on models.

#[cfg(feature = "torch")]
use super::versions::registered;
use super::versions::{VersionsVerb, find};
use crate::cli::output;
use crate::cli::place::Place;
use crate::cli::python::PythonArgument;
use crate::cli::register::{self, RegisterArguments};
use crate::config::Environment;
use crate::config::packaging::Packaging;
use crate::error::Result;
use crate::package::{self, Checked, PythonLoader};
use crate::registry::{AssetKind, open_local, verify_version};
use clap::Subcommand;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ModelVerb {
    /// Make a base model package with random weights from a size configuration, and register it.
    Init {
        /// Name in the registry.
        #[arg(long)]
        name: String,
        /// YAML with the sizes, in the format of MedImageInsight's config.yaml.
        #[arg(long)]
        config: PathBuf,
        /// Label texts that the tokenizer is trained on, one a line, when there is no vocabulary.
        #[arg(long)]
        label_texts: Option<PathBuf>,
        /// Folder with CLIP's vocab.json and merges.txt.
        #[arg(long)]
        vocabulary: Option<PathBuf>,
        /// Seed of the weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[command(flatten)]
        packaging: Packaging,
        #[command(flatten)]
        python: PythonArgument,
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Register a model package: one of medtune's, or MedImageInsight's published layout.
    Import {
        /// Name in the registry.
        #[arg(long)]
        name: String,
        /// The package's folder, or a URI of it.
        folder: String,
        /// Take a package of medtune's as it is, without loading its model.
        #[arg(long)]
        no_self_test: bool,
        #[command(flatten)]
        packaging: Packaging,
        #[command(flatten)]
        python: PythonArgument,
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hash every file of a version or package folder again, and ask its model what its self-test asks.
    Verify {
        /// NAME@VERSION, or a folder.
        target: String,
        /// Only hash: the model is not loaded.
        #[arg(long)]
        no_self_test: bool,
        #[command(flatten)]
        python: PythonArgument,
    },
    /// Write ONNX models of a version or package folder, for runtimes without Python, into a new folder with the weights that they refer to.
    ExportOnnx {
        /// NAME@VERSION, or a package's folder.
        target: String,
        /// The folder to make.
        folder: PathBuf,
    },
    #[command(flatten)]
    Versions(VersionsVerb),
    /// Register a version and its run at an MLflow server; what is there already is kept.
    Register(RegisterArguments),
}

impl ModelVerb {
    /// Whether tensors are computed with.
    #[cfg(feature = "torch")]
    pub(in crate::cli) fn computes(&self) -> bool {
        matches!(
            self,
            ModelVerb::Init { .. }
                | ModelVerb::Import { .. }
                | ModelVerb::ExportOnnx { .. }
                | ModelVerb::Verify { no_self_test: false, .. }
        )
    }

    pub(in crate::cli) fn run(self, store: &Place, environment: &Environment) -> Result<()> {
        match self {
            #[cfg(feature = "torch")]
            ModelVerb::Init { name, config, label_texts, vocabulary, seed, packaging, python, json } => {
                let python = python.find(environment, None)?;
                let request =
                    crate::jobs::models::InitRequest { name, config, label_texts, vocabulary, seed, packaging };
                let store = store.open()?;
                registered(&store, crate::jobs::models::init_model(&store, &request, python.as_ref())?, json)
            }
            #[cfg(feature = "torch")]
            ModelVerb::Import { name, folder, no_self_test, packaging, python, json } => {
                let python = python.find(environment, None)?;
                let folder = store.local(&folder)?;
                let store = store.open()?;
                let request = crate::jobs::models::ImportRequest { name, folder, packaging, self_test: !no_self_test };
                let imported = crate::jobs::models::import_model(&store, &request, python.as_ref())?;
                if let Some(report) = imported.report.filter(|_| !json) {
                    output::line(&report.summary())?;
                }
                registered(&store, (imported.version, imported.new), json)
            }
            #[cfg(feature = "torch")]
            ModelVerb::ExportOnnx { target, folder } => {
                let (source, _) = verified(store, &target)?;
                let models = crate::jobs::export::export_onnx(&package::read_package(&source)?, &folder)?;
                models.iter().try_for_each(|path| output::line(&path.display().to_string()))
            }
            #[cfg(not(feature = "torch"))]
            ModelVerb::Init { .. } | ModelVerb::Import { .. } | ModelVerb::ExportOnnx { .. } => {
                Err(crate::cli::needs_torch())
            }
            ModelVerb::Verify { target, no_self_test, python } => {
                let python = if no_self_test { None } else { python.find(environment, None)? };
                let (folder, shown) = verified(store, &target)?;
                output::line(&format!("{shown}: every file is as it was written"))?;
                if no_self_test { Ok(()) } else { ask(&folder, &shown, python.as_ref()) }
            }
            ModelVerb::Register(arguments) => register::run(arguments, store, environment),
            ModelVerb::Versions(verb) => verb.run(AssetKind::Model, store),
        }
    }
}

/// The folder of a version or package whose files are as they were written, and what it is called.
fn verified(store: &Place, target: &str) -> Result<(PathBuf, String)> {
    let folder = Path::new(target);
    let (folder, shown) = if folder.is_dir() {
        (folder.to_owned(), target.to_owned())
    } else {
        let store = store.open_existing()?;
        let version = find(&store, AssetKind::Model, target)?;
        verify_version(&store, &version)?;
        (open_local(&store, &version)?, version.reference())
    };
    package::verify_package(&folder)?;
    Ok((folder, shown))
}

/// Asks the model in a package what its self-test asks, in every way that this program can.
fn ask(folder: &Path, shown: &str, python: Option<&PythonLoader>) -> Result<()> {
    #[cfg(feature = "torch")]
    let checked = crate::jobs::self_test::check(&package::read_package(folder)?, python)?;
    #[cfg(not(feature = "torch"))]
    let checked = by_loader_alone(folder, python)?;
    let Some(Checked { own, others }) = checked else {
        return output::line(&format!(
            "{shown}: it has no self-test, which packages of earlier versions of medtune lack"
        ));
    };
    let passed = |by: &str, difference: f64| {
        output::line(&format!("{shown}: self-test passed by {by}, largest difference {difference:.1e}"))
    };
    own.map_or(Ok(()), |difference| passed("medtune", difference))?;
    others.passed.iter().try_for_each(|program| passed(&program.name, program.difference))?;
    others.not_asked.map_or(Ok(()), |why| output::line(&format!("{shown}: {why}")))
}

#[cfg(not(feature = "torch"))]
fn by_loader_alone(folder: &Path, python: Option<&PythonLoader>) -> Result<Option<Checked>> {
    tracing::warn!("self-test: this medtune was built without libtorch and has not computed the answers");
    let Some(test) = package::SelfTest::read(folder)? else { return Ok(None) };
    let others = python.map_or(Ok(package::Asked::default()), |python| python.check(folder, &test))?;
    Ok(Some(Checked { own: None, others }))
}
