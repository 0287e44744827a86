//! Verbs on models.

#[cfg(feature = "torch")]
use super::versions::registered;
use super::versions::{VersionsVerb, find};
use crate::cli::output;
use crate::cli::place::Place;
use crate::cli::register::{self, RegisterArguments};
use crate::config::Environment;
use crate::error::Result;
use crate::package;
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
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hash every file of a version or package folder again.
    Verify {
        /// NAME@VERSION, or a folder.
        target: String,
    },
    #[command(flatten)]
    Versions(VersionsVerb),
    /// Register a version and its run at an MLflow server; what is there already is kept.
    Register(RegisterArguments),
}

impl ModelVerb {
    pub(in crate::cli) fn run(self, store: &Place, environment: &Environment) -> Result<()> {
        match self {
            #[cfg(feature = "torch")]
            ModelVerb::Init { name, config, label_texts, vocabulary, seed, json } => {
                let request = crate::jobs::models::InitRequest { name, config, label_texts, vocabulary, seed };
                let store = store.open()?;
                registered(&store, crate::jobs::models::init_model(&store, &request)?, json)
            }
            #[cfg(feature = "torch")]
            ModelVerb::Import { name, folder, json } => {
                let folder = store.local(&folder)?;
                let store = store.open()?;
                let imported = crate::jobs::models::import_model(&store, &name, &folder)?;
                if let Some(report) = imported.report.filter(|_| !json) {
                    output::line(&report.summary())?;
                }
                registered(&store, (imported.version, imported.new), json)
            }
            #[cfg(not(feature = "torch"))]
            ModelVerb::Init { .. } | ModelVerb::Import { .. } => Err(crate::cli::needs_torch()),
            ModelVerb::Verify { target } => verify(store, &target),
            ModelVerb::Register(arguments) => register::run(arguments, store, environment),
            ModelVerb::Versions(verb) => verb.run(AssetKind::Model, store),
        }
    }
}

fn verify(store: &Place, target: &str) -> Result<()> {
    let folder = Path::new(target);
    if folder.is_dir() {
        package::verify_package(folder)?;
        return output::line(&format!("{target}: every file is as it was written"));
    }
    let store = store.open_existing()?;
    let version = find(&store, AssetKind::Model, target)?;
    verify_version(&store, &version)?;
    package::verify_package(&open_local(&store, &version)?)?;
    output::line(&format!("{}: every file is as it was written", version.reference()))
}
