//! Verbs on what a store holds: models, datasets, runs. All but `model init` and `model import` work without libtorch.

use super::output;
use crate::config::Environment;
use crate::error::{Error, Result};
use crate::package;
use crate::registry::{
    self, AssetKind, Lineage, NewVersion, Reference, RunRecord, Version, folder_files, get, list_names, list_versions,
    publish, pull, series_folders, verify_version,
};
use crate::storage::{Store, sha256_hex};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum ModelVerb {
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
        /// The package's folder.
        folder: PathBuf,
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List models and their versions.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one version.
    Show {
        /// NAME, NAME@VERSION or NAME@latest.
        reference: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copy a version into a folder, whole and verified or not at all.
    Pull {
        /// NAME, NAME@VERSION or NAME@latest.
        reference: String,
        /// The new folder.
        folder: PathBuf,
    },
    /// Hash every file of a version or package folder again.
    Verify {
        /// NAME@VERSION, or a folder.
        target: String,
    },
    /// Register a version and its run at an MLflow server; what is there already is kept.
    Register(super::register::RegisterArguments),
}

#[derive(Debug, Subcommand)]
pub(super) enum DataVerb {
    /// Register a file or folder as a new version of a dataset.
    Register {
        /// Name in the registry.
        #[arg(long)]
        name: String,
        /// The file or folder; a TSV takes its .lineidx along.
        path: PathBuf,
        /// What a reader should know.
        #[arg(long, default_value = "")]
        description: String,
        /// A tag; may be given several times.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<String>,
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List datasets and their versions.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one version.
    Show {
        /// NAME, NAME@VERSION or NAME@latest.
        reference: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hash every file of a version again.
    Verify {
        /// NAME, NAME@VERSION or NAME@latest.
        reference: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RunsVerb {
    /// List runs, the newest first.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one run.
    Show {
        /// The run's id.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Opens the store that the command line or the environment names.
fn open(store: Option<&str>) -> Result<Store> {
    Store::open(named(store)?)
}

/// The same for reading: a typing error must not make an empty store.
pub(super) fn open_existing(store: Option<&str>) -> Result<Store> {
    Store::open_existing(named(store)?)
}

fn named(store: Option<&str>) -> Result<&str> {
    store.ok_or_else(|| Error::usage("which store? give --store URI or set MEDTUNE_STORE"))
}

impl ModelVerb {
    pub(super) fn run(self, store: Option<&str>, environment: &Environment) -> Result<()> {
        match self {
            #[cfg(feature = "torch")]
            ModelVerb::Init { name, config, label_texts, vocabulary, seed, json } => {
                let request = crate::jobs::models::InitRequest { name, config, label_texts, vocabulary, seed };
                let store = open(store)?;
                registered(&store, crate::jobs::models::init_model(&store, &request)?, json)
            }
            #[cfg(feature = "torch")]
            ModelVerb::Import { name, folder, json } => {
                let store = open(store)?;
                let imported = crate::jobs::models::import_model(&store, &name, &folder)?;
                if let Some(report) = imported.report.filter(|_| !json) {
                    output::line(&report.summary())?;
                }
                registered(&store, (imported.version, imported.new), json)
            }
            #[cfg(not(feature = "torch"))]
            ModelVerb::Init { .. } | ModelVerb::Import { .. } => Err(super::needs_torch()),
            ModelVerb::List { json } => list(&open_existing(store)?, AssetKind::Model, json),
            ModelVerb::Show { reference, json } => show(&open_existing(store)?, AssetKind::Model, &reference, json),
            ModelVerb::Pull { reference, folder } => {
                let store = open_existing(store)?;
                let version = find(&store, AssetKind::Model, &reference)?;
                pull(&store, &version, &folder)?;
                output::line(&format!("pulled {} to {}", version.reference(), folder.display()))
            }
            ModelVerb::Verify { target } => verify(store, &target),
            ModelVerb::Register(arguments) => super::register::run(arguments, store, environment),
        }
    }
}

impl DataVerb {
    pub(super) fn run(self, store: Option<&str>) -> Result<()> {
        match self {
            DataVerb::List { json } => list(&open_existing(store)?, AssetKind::Data, json),
            DataVerb::Show { reference, json } => show(&open_existing(store)?, AssetKind::Data, &reference, json),
            DataVerb::Verify { reference } => {
                let store = open_existing(store)?;
                let version = find(&store, AssetKind::Data, &reference)?;
                verify_version(&store, &version)?;
                output::line(&format!("{}: every file is as it was registered", version.reference()))
            }
            DataVerb::Register { name, path, description, tags, json } => {
                let store = open(store)?;
                let tags = tags.iter().map(|t| tag(t)).collect::<Result<BTreeMap<_, _>>>()?;
                let existing = list_versions(&store, AssetKind::Data, &name)?;
                let version = register(&store, NewData { name, path: &path, description, tags })?;
                let new = !existing.iter().any(|v| v.version == version.version);
                registered(&store, (version, new), json)
            }
        }
    }
}

impl RunsVerb {
    pub(super) fn run(self, store: Option<&str>) -> Result<()> {
        let store = open_existing(store)?;
        match self {
            RunsVerb::List { json: true } => output::json(&RunRecord::list(&store)?),
            RunsVerb::List { json: false } => {
                let rows: Vec<Vec<String>> = RunRecord::list(&store)?
                    .into_iter()
                    .map(|r| {
                        let took = format!("{:.1} s", r.duration_s);
                        let state = state(&r);
                        vec![r.run_id, r.kind, state, r.started, took]
                    })
                    .collect();
                output::line(&output::table(&["RUN", "KIND", "STATUS", "STARTED", "TOOK"], &rows))
            }
            RunsVerb::Show { id, json } => {
                let record = RunRecord::load(&store, &id)?;
                print(&record, series_folders(&store, &id)?, json)
            }
        }
    }
}

struct NewData<'a> {
    name: String,
    path: &'a Path,
    description: String,
    tags: BTreeMap<String, String>,
}

/// The same content, description and tags again are the version that exists.
fn register(store: &Store, data: NewData<'_>) -> Result<Version> {
    let path = data.path;
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let files = if metadata.is_dir() {
        folder_files(path)?
    } else {
        let named = |p: &Path| (p.file_name().unwrap_or_default().to_string_lossy().into_owned(), p.to_owned());
        let index = crate::data::tsv::index_path(path);
        let mut files = vec![named(path)];
        if path.extension().is_some_and(|e| e == "tsv") && index.is_file() {
            files.push(named(&index));
        }
        files
    };
    let identity = json!([data.description, data.tags]).to_string();
    publish(
        store,
        NewVersion {
            kind: AssetKind::Data,
            name: data.name,
            description: data.description,
            tags: data.tags,
            files,
            owner: format!("register/{}", sha256_hex(identity.as_bytes())),
            lineage: Lineage { code_version: crate::CODE_VERSION.to_owned(), ..Lineage::default() },
            metadata: Value::Null,
        },
    )
}

fn tag(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(k, v)| (k.to_owned(), v.to_owned()))
        .ok_or_else(|| Error::usage(format!("--tag '{text}': write key=value")))
}

fn find(store: &Store, kind: AssetKind, text: &str) -> Result<Version> {
    let reference = Reference::parse(text, Some(kind))?;
    if reference.kind != kind {
        return Err(Error::usage(format!("'{text}' is a {}, not a {kind}", reference.kind)));
    }
    get(store, &reference)
}

fn with_uri(store: &Store, version: &Version) -> Value {
    let mut value = serde_json::to_value(version).unwrap_or_default();
    value["reference"] = json!(version.reference());
    value["uri"] = json!(version.uri(store));
    value
}

fn registered(store: &Store, (version, new): (Version, bool), json: bool) -> Result<()> {
    if json {
        return output::json(&with_uri(store, &version));
    }
    let what = if new { "registered" } else { "unchanged" };
    output::line(&format!("{what} {} at {}", version.reference(), version.uri(store)))
}

fn list(store: &Store, kind: AssetKind, json: bool) -> Result<()> {
    let mut versions = Vec::new();
    for name in list_names(store, kind)? {
        versions.extend(list_versions(store, kind, &name)?);
    }
    if json {
        return output::json(&versions.iter().map(|v| with_uri(store, v)).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = versions
        .into_iter()
        .map(|v| vec![v.reference(), output::bytes(v.total_size()), v.created.clone(), v.description])
        .collect();
    output::line(&output::table(&["VERSION", "SIZE", "CREATED", "DESCRIPTION"], &rows))
}

fn show(store: &Store, kind: AssetKind, text: &str, json: bool) -> Result<()> {
    let version = find(store, kind, text)?;
    if json {
        return output::json(&with_uri(store, &version));
    }
    let mut lines = vec![
        format!("{}  {}", version.reference(), version.description),
        format!("  at       {}", version.uri(store)),
        format!("  created  {}", version.created),
        format!("  digest   {}", version.digest),
    ];
    if !version.lineage.run_id.is_empty() {
        lines.push(format!(
            "  run      {} {}",
            version.lineage.run_id,
            version.lineage.step.clone().unwrap_or_default()
        ));
    }
    lines.extend(version.tags.iter().map(|(k, v)| format!("  tag      {k}={v}")));
    lines.extend(version.lineage.inputs.iter().map(|(name, from)| format!("  from     {name}: {from}")));
    lines.extend(version.files.iter().map(|f| format!("  file     {} ({})", f.path, output::bytes(f.size))));
    output::line(&lines.join("\n"))
}

fn verify(store: Option<&str>, target: &str) -> Result<()> {
    let folder = Path::new(target);
    if folder.is_dir() {
        package::verify_package(folder)?;
        return output::line(&format!("{target}: every file is as it was written"));
    }
    let store = open_existing(store)?;
    let version = find(&store, AssetKind::Model, target)?;
    verify_version(&store, &version)?;
    package::verify_package(&registry::open_local(&store, &version)?)?;
    output::line(&format!("{}: every file is as it was written", version.reference()))
}

/// Outputs of a step that a table names; the JSON record names all.
const SHOWN_OUTPUTS: usize = 2;

/// A run's state for people.
fn state(record: &RunRecord) -> String {
    if record.is_abandoned() { "killed".to_owned() } else { name(record.status) }
}

/// Prints a run record, and where the curves of its steps are.
pub(super) fn print(record: &RunRecord, series: BTreeMap<String, String>, json: bool) -> Result<()> {
    if json {
        let mut value = serde_json::to_value(record).unwrap_or_default();
        value["series"] = json!(series);
        return output::json(&value);
    }
    let mut text = String::new();
    if !series.is_empty() {
        let rows: Vec<Vec<String>> = series.into_iter().map(|(step, uri)| vec![step, uri]).collect();
        text = output::table(&["CURVE OF", "WHERE"], &rows) + "\n\n";
    }
    output::line(&(text + &summary(record)))
}

/// A run record for people.
fn summary(record: &RunRecord) -> String {
    let mut rows = Vec::new();
    for step in &record.steps {
        let mut outputs: Vec<String> = step.outputs.values().filter_map(|o| o.reference.clone()).collect();
        let more = outputs.len().saturating_sub(SHOWN_OUTPUTS);
        outputs.truncate(SHOWN_OUTPUTS);
        if more > 0 {
            outputs.push(format!("and {more} more"));
        }
        rows.push(vec![step.name.clone(), name(step.status), format!("{:.1} s", step.duration_s), outputs.join(", ")]);
    }
    let mut text = output::table(&["STEP", "STATUS", "TOOK", "OUTPUTS"], &rows);
    let methods: Vec<Vec<String>> = record.steps.iter().flat_map(|s| methods(&s.metrics)).collect();
    if !methods.is_empty() {
        text += "\n\n";
        text += &output::table(&["TEST SPLIT", "IMAGES", "ACCURACY", "MACRO F1", "MCC", "mAUC"], &methods);
    }
    let models: Vec<Vec<String>> = record
        .outputs
        .values()
        .filter(|o| o.reference.as_ref().is_some_and(|r| r.starts_with("model:")))
        .map(|o| vec![o.reference.clone().unwrap_or_default(), o.uri.clone()])
        .collect();
    if !models.is_empty() {
        text += "\n\n";
        text += &output::table(&["PACKAGE", "WHERE"], &models);
    }
    if let Some(error) = &record.error {
        text += &format!("\n\nfailed ({}, exit code {}): {}", error.kind, error.exit_code, error.message);
    }
    let started = record.steps.iter().filter(|s| name(s.status) != "unchanged").count();
    let ended = if record.error.is_none() && started == 0 && !record.steps.is_empty() {
        "; every step was unchanged, nothing had to be done".to_owned()
    } else {
        String::new()
    };
    format!("{text}\n\nrun {} {} in {:.1} s{ended}", record.run_id, state(record), record.duration_s)
}

/// The table rows of an Evaluate step's metrics.
fn methods(metrics: &Value) -> Vec<Vec<String>> {
    let number = |m: &Value, key: &str| m[key].as_f64().map_or("-".to_owned(), |v| format!("{v:.4}"));
    let rows = metrics["methods"].as_array().into_iter().flatten();
    rows.map(|m| {
        let mut row = vec![m["method"].as_str().unwrap_or_default().to_owned(), m["n"].to_string()];
        row.extend(["accuracy", "macro_f1", "mcc", "mauc"].iter().map(|key| number(m, key)));
        row
    })
    .collect()
}

/// The name of a state, as it is serialised.
fn name(state: impl serde::Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
