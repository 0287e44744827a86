//! `medtune model register`: a version of the store at an MLflow server.

use super::output;
use super::place::Place;
use super::store::find;
use crate::config::Environment;
use crate::config::mlflow::{Credentials, Mlflow, Source};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::mlflow::{Client, Request, RunFacts, register};
use crate::registry::{AssetKind, MlflowRecord, RunRecord, Version};
use crate::storage::Store;

#[derive(Debug, clap::Args)]
pub(super) struct RegisterArguments {
    /// NAME, NAME@VERSION or NAME@latest.
    reference: String,
    /// The server: http://HOST:PORT or https://HOST; that of the job that made the version when left out.
    #[arg(long, env = "MLFLOW_TRACKING_URI", hide_env_values = true, value_name = "URI")]
    tracking_uri: Option<String>,
    /// The experiment; that of the job, or the job's name, when left out.
    #[arg(long, value_name = "NAME")]
    experiment: Option<String>,
    /// The registered model; that of the job, or the name in the store, when left out.
    #[arg(long, value_name = "NAME")]
    registered_model: Option<String>,
    /// An alias that then names the version; none when left out, whatever the job says.
    #[arg(long)]
    alias: Option<String>,
    /// How the package becomes the version's source: auto, uri (where it is in the store) or upload.
    #[arg(long, value_name = "HOW")]
    source: Option<String>,
    /// The run whose parameters and metrics go along; the one that made the version when left out.
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Print what was registered as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: RegisterArguments, place: &Place, environment: &Environment) -> Result<()> {
    let credentials = Credentials::from_environment(environment)?;
    let store = place.open_existing()?;
    let version = find(&store, AssetKind::Model, &arguments.reference)?;
    let record = record_of(&store, &version, arguments.run.as_deref())?;
    let json = arguments.json;
    let section = section(arguments, record.as_ref())?;
    let client = Client::new(&section, &credentials)?;
    let facts = record.as_ref().map_or_else(|| RunFacts::of_version(&version), RunFacts::of_record);
    let versions = [version];
    let request = Request { store: &store, section: &section, facts: &facts, versions: &versions };
    let mut state = MlflowRecord::default();
    register(&client, &request, &mut state).context(|| "not registered, but safe in the store; repeat the command")?;
    if json {
        return output::json(&state);
    }
    let lines = state.versions.iter().map(|v| {
        let alias = v.alias.as_ref().map(|a| format!(", alias {a}")).unwrap_or_default();
        format!("{} is version {} of {} at {}{alias}", v.reference, v.version, v.name, state.tracking_uri)
    });
    output::line(&lines.collect::<Vec<_>>().join("\n"))
}

/// The record of the run that was asked for, or of the one that made the version; `None` if no run did, or its record is gone.
fn record_of(store: &Store, version: &Version, asked: Option<&str>) -> Result<Option<RunRecord>> {
    let id = asked.unwrap_or(&version.lineage.run_id);
    if id.is_empty() {
        return Ok(None);
    }
    match RunRecord::load(store, id) {
        Err(error) if asked.is_none() && error.kind() == ErrorKind::NotFound => {
            tracing::warn!(run = id, "the record of the run that made it is gone: parameters and metrics are left out");
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// What the command line says, and for the rest what the job of that run said.
fn section(arguments: RegisterArguments, record: Option<&RunRecord>) -> Result<Mlflow> {
    let of_job = record.and_then(|r| serde_json::from_value::<Mlflow>(r.config["mlflow"].clone()).ok());
    let uri = arguments.tracking_uri.or_else(|| of_job.as_ref().map(|m| m.tracking_uri.clone()));
    let uri = uri.ok_or_else(|| Error::usage("which server? give --tracking-uri URI or set MLFLOW_TRACKING_URI"))?;
    let mut section = Mlflow { alias: None, ..of_job.unwrap_or_else(|| Mlflow::at(&uri)) };
    section.tracking_uri = uri;
    section.alias = arguments.alias;
    section.experiment = arguments.experiment.or(section.experiment);
    section.registered_model = arguments.registered_model.or(section.registered_model);
    if let Some(source) = arguments.source {
        section.source = match source.as_str() {
            "auto" => Source::Auto,
            "uri" => Source::Uri,
            "upload" => Source::Upload,
            _ => return Err(Error::usage(format!("--source '{source}': write auto, uri or upload"))),
        };
    }
    section.check().map_err(|e| e.with_kind(ErrorKind::Usage))?;
    Ok(section)
}
