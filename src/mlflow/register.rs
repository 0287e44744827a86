//! The sequence of calls: experiment, run, what it measured, packages, model versions, aliases, the run's end.

use serde_json::{Value, json};

use super::artifacts::{source_uri, upload, wants_upload};
use super::client::{Answer, Client, Fault};
use super::facts::{MAX_TAG, RunFacts};
use super::flatten::{Metric, clean, cut};
use crate::config::mlflow::Mlflow;
use crate::error::{Context, Error, Result};
use crate::registry::{MlflowRecord, MlflowStatus, MlflowVersion, Version};
use crate::storage::Store;

/// How many parameters and tags a server takes at once.
const BATCH: usize = 100;
/// How many metrics; all three together are at most 1,000.
const METRICS: usize = 500;

/// What is to be registered.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where the packages are.
    pub store: &'a Store,
    /// Names, alias and tags.
    pub section: &'a Mlflow,
    /// The run.
    pub facts: &'a RunFacts,
    /// The models; none for a run that made none.
    pub versions: &'a [Version],
}

/// Registers a run and its models; what is there already is found and completed. `record` says how far it came, also when
/// an error ends it.
///
/// # Errors
/// [`crate::ErrorKind::Storage`] when the server cannot be reached or fails, [`crate::ErrorKind::Config`] when it refuses,
/// with what to do; those of the store when a package cannot be read.
pub fn register(client: &Client, request: &Request<'_>, record: &mut MlflowRecord) -> Result<()> {
    record.status = MlflowStatus::Failed;
    record.tracking_uri = client.server().to_owned();
    let experiment = experiment(client, request.section.experiment.as_ref().unwrap_or(&request.facts.experiment))?;
    let (run, root) = run(client, request, &experiment).context(|| "find or create the run")?;
    record.run_id = Some(run.clone());
    log(client, request, &run).context(|| format!("run {run}"))?;
    for version in request.versions {
        let made =
            model(client, request, version, (&run, &root)).context(|| format!("register {}", version.reference()))?;
        tracing::info!(version = %made.reference, model = %made.name, number = %made.version, "registered at the MLflow server");
        record.versions.retain(|v| v.reference != made.reference || v.name != made.name);
        record.versions.push(made);
    }
    if let Some(status) = request.facts.status {
        let mut body = json!({ "run_id": run, "status": status });
        if let Some(ended) = request.facts.ended {
            body["end_time"] = json!(ended);
        }
        client.post("runs/update", &body).map_err(Fault::into_error).context(|| format!("end the run {run}"))?;
    }
    record.status = MlflowStatus::Registered;
    record.error = None;
    Ok(())
}

/// The id of the experiment of that name.
fn experiment(client: &Client, name: &str) -> Result<String> {
    let place = || format!("experiment '{name}'");
    let found = client.retry(|| match client.get_once("experiments/get-by-name", &[("experiment_name", name)]) {
        Err(fault) if fault.missing() => match client.post_once("experiments/create", &json!({ "name": name })) {
            // somebody else was quicker, or the answer to an earlier attempt was lost
            Err(fault) if fault.exists() => client.get_once("experiments/get-by-name", &[("experiment_name", name)]),
            other => other,
        },
        other => other,
    });
    let found = found.map_err(Fault::into_error).context(place)?;
    if found["experiment"]["lifecycle_stage"] == "deleted" {
        return Err(Error::config(format!(
            "experiment '{name}' is deleted at the MLflow server: restore it there, or write another mlflow.experiment"
        )));
    }
    text(&found, &["/experiment/experiment_id", "/experiment_id"]).context(place)
}

/// The run's id and artifact root; it is found by its tag, or created.
fn run(client: &Client, request: &Request<'_>, experiment: &str) -> Result<(String, String)> {
    let (key, value) = &request.facts.identity;
    let mut tags = vec![
        ((*key).to_owned(), value.clone()),
        ("mlflow.source.name".to_owned(), "medtune".to_owned()),
        ("mlflow.source.type".to_owned(), "JOB".to_owned()),
    ];
    tags.extend(request.section.tags.clone());
    let search = json!({
        "experiment_ids": [experiment], "filter": format!("tags.`{key}` = '{value}'"), "max_results": 1,
    });
    let create = json!({
        "experiment_id": experiment, "run_name": request.facts.name, "start_time": request.facts.started,
        "tags": pairs(&tags),
    });
    let found = client.retry(|| {
        let found = client.post_once("runs/search", &search)?;
        match found.pointer("/runs/0") {
            Some(run) => Ok(json!({ "run": run })),
            None => client.post_once("runs/create", &create),
        }
    });
    let found = found.map_err(Fault::into_error)?;
    Ok((text(&found, &["/run/info/run_id"])?, text(&found, &["/run/info/artifact_uri"])?))
}

/// Parameters, metrics and tags; the same again changes nothing.
fn log(client: &Client, request: &Request<'_>, run: &str) -> Result<()> {
    let facts = request.facts;
    let time = facts.ended.unwrap_or(facts.started);
    let mut bodies: Vec<Value> = Vec::new();
    for part in facts.parameters.chunks(BATCH) {
        bodies.push(json!({ "run_id": run, "params": pairs(part) }));
    }
    for part in facts.metrics.chunks(METRICS) {
        let entry = |m: &Metric| json!({ "key": m.name, "value": m.value, "timestamp": time, "step": m.step });
        bodies.push(json!({ "run_id": run, "metrics": part.iter().map(entry).collect::<Vec<_>>() }));
    }
    for part in facts.tags(request.section).chunks(BATCH) {
        bodies.push(json!({ "run_id": run, "tags": pairs(part) }));
    }
    for body in bodies {
        client.post("runs/log-batch", &body).map_err(Fault::into_error)?;
    }
    Ok(())
}

/// One model version: found by its tags, or made of the package, which is there before the version is.
fn model(
    client: &Client,
    request: &Request<'_>,
    version: &Version,
    (run, root): (&str, &str),
) -> Result<MlflowVersion> {
    let section = request.section;
    let name = section.registered_model.as_ref().unwrap_or(&version.name);
    registered_model(client, name)?;
    let mut found = client.retry(|| find(client, name, version)).map_err(Fault::into_error)?;
    if found.is_none() {
        let source = if wants_upload(section.source, request.store) {
            upload(client, request.store, version, root)?
        } else {
            source_uri(&version.uri(request.store), request.store.azure_account().as_deref())?
        };
        let body = json!({
            "name": name, "source": source, "run_id": run, "description": version.description,
            "tags": pairs(&version_tags(request, version)),
        });
        let made = client.retry(|| match find(client, name, version)? {
            Some(found) => Ok(Some(found)),
            None => {
                client.post_once("model-versions/create", &body).map(|answer| Some(answer["model_version"].clone()))
            }
        });
        found = made.map_err(Fault::into_error)?;
    }
    let found = found.unwrap_or_default();
    let number = text(&found, &["/version"])?;
    if let Some(alias) = &section.alias {
        let body = json!({ "name": name, "alias": alias, "version": number });
        client.post("registered-models/alias", &body).map_err(Fault::into_error)?;
    }
    Ok(MlflowVersion {
        reference: version.reference(),
        name: name.clone(),
        version: number,
        alias: section.alias.clone(),
        source: text(&found, &["/source"])?,
    })
}

/// Makes the registered model, unless it is there.
fn registered_model(client: &Client, name: &str) -> Result<()> {
    let made = client.retry(|| match client.get_once("registered-models/get", &[("name", name)]) {
        Err(fault) if fault.missing() => match client.post_once("registered-models/create", &json!({ "name": name })) {
            Err(fault) if fault.exists() => Ok(Value::Null),
            other => other,
        },
        other => other,
    });
    made.map(drop).map_err(Fault::into_error)
}

/// The version that was made of this one, if there is one: of the same content under the same reference.
fn find(client: &Client, name: &str, version: &Version) -> Answer<Option<Value>> {
    let reference = version.reference();
    let filter = format!("name='{name}' and tags.`medtune.reference` = '{reference}'");
    let query = [("filter", filter.as_str()), ("max_results", "100")];
    let found = client.get_once("model-versions/search", &query)?;
    let same = |v: &&Value| {
        let digest = v["tags"].as_array().into_iter().flatten().find(|t| t["key"] == "medtune.digest");
        digest.is_some_and(|t| t["value"] == version.digest.as_str()) && v["status"] != "FAILED_REGISTRATION"
    };
    Ok(found["model_versions"].as_array().into_iter().flatten().find(same).cloned())
}

fn version_tags(request: &Request<'_>, version: &Version) -> Vec<(String, String)> {
    let mut tags = vec![
        ("medtune.reference".to_owned(), version.reference()),
        ("medtune.digest".to_owned(), version.digest.clone()),
        ("medtune.uri".to_owned(), version.uri(request.store)),
    ];
    if !version.lineage.run_id.is_empty() {
        tags.push(("medtune.run_id".to_owned(), version.lineage.run_id.clone()));
    }
    let own = version.tags.iter().map(|(k, v)| (clean(k), cut(v, MAX_TAG)));
    tags.extend(own.chain(request.section.tags.clone()));
    tags
}

fn pairs(of: &[(String, String)]) -> Vec<Value> {
    of.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

/// The first of these fields that holds a text.
fn text(answer: &Value, pointers: &[&str]) -> Result<String> {
    let found = pointers.iter().find_map(|p| answer.pointer(p)?.as_str());
    found.map(str::to_owned).ok_or_else(|| {
        Error::config(format!(
            "the MLflow server's answer has no {}: is mlflow.tracking_uri an MLflow server?",
            pointers.first().map_or("", |p| p.trim_start_matches('/'))
        ))
    })
}
