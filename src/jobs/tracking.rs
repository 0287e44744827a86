//! After a job: its run and its final models at the MLflow server that the job names.
//!
//! Everything is in the store by then. So nothing that goes wrong here makes a job fail: it becomes a warning and a part of
//! the run record, with the commands that do what is missing.

use crate::config::job::Job;
use crate::config::mlflow::{Credentials, Mlflow, final_models};
use crate::error::{ErrorKind, Result};
use crate::mlflow::{Client, Request, RunFacts, register};
use crate::registry::{AssetKind, MlflowRecord, Reference, RunRecord, Version, get};
use crate::storage::Store;

/// A client of the job's server, if it names one; nothing is sent yet.
///
/// # Errors
/// [`ErrorKind::Config`] for what no server would take.
pub(super) fn client(job: &Job, credentials: &Credentials) -> Result<Option<Client>> {
    job.mlflow.as_ref().map(|section| Client::new(section, credentials)).transpose()
}

/// Registers the run that `record` says has ended, and notes in it what came of that. A run that was asked to stop is left
/// out: it goes on later, and there is little time now.
pub(super) fn after(client: &Client, (store, job): (&Store, &Job), record: &mut RunRecord) {
    let Some(section) = &job.mlflow else { return };
    let stopped = record.error.as_ref().is_some_and(|e| e.kind == ErrorKind::Preempted.name());
    if stopped || record.steps.is_empty() {
        return;
    }
    let mut state = MlflowRecord { tracking_uri: client.server().to_owned(), ..MlflowRecord::default() };
    let outcome = versions(store, job, record).and_then(|versions| {
        state.repeat = versions.iter().map(|v| repeat(store, section, record, v)).collect();
        let facts = RunFacts::of_record(record);
        let request = Request { store, section, facts: &facts, versions: &versions };
        register(client, &request, &mut state)
    });
    match outcome {
        Ok(()) => state.repeat.clear(),
        Err(error) => {
            let what =
                if state.repeat.is_empty() { "run the same job again".to_owned() } else { state.repeat.join("; ") };
            tracing::warn!(
                "the run is not registered at the MLflow server, but everything is in the store: {error}; to register it \
                 later: {what}"
            );
            state.error = Some(error.to_string());
        }
    }
    record.mlflow = Some(state);
}

/// The final models that there are; those of failed and skipped steps are not, and none where a requirement was not met.
fn versions(store: &Store, job: &Job, record: &RunRecord) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    // models that were found wanting are none that anybody should deploy
    let errors = record.error.iter().chain(record.steps.iter().filter_map(|s| s.error.as_ref()));
    if errors.into_iter().any(|e| e.kind == ErrorKind::Requirement.name()) {
        return Ok(versions);
    }
    for (step, output) in final_models(job) {
        let made = record.steps.iter().find(|s| s.name == step).and_then(|s| s.outputs.get(&output));
        if let Some(reference) = made.and_then(|o| o.reference.as_ref()) {
            versions.push(get(store, &Reference::parse(reference, Some(AssetKind::Model))?)?);
        }
    }
    Ok(versions)
}

/// The command that registers one model of the run, complete, so that it can be pasted.
fn repeat(store: &Store, section: &Mlflow, record: &RunRecord, version: &Version) -> String {
    let mut words =
        vec!["medtune", "--store", store.uri(), "model", "register"].into_iter().map(quoted).collect::<Vec<_>>();
    words.push(version.reference());
    let mut option = |name: &str, value: &str| words.extend([name.to_owned(), quoted(value)]);
    option("--tracking-uri", &section.tracking_uri);
    for (name, value) in [
        ("--experiment", &section.experiment),
        ("--registered-model", &section.registered_model),
        ("--alias", &section.alias),
    ] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    // a step that was not run again made its model in an earlier run
    if version.lineage.run_id != record.run_id {
        option("--run", &record.run_id);
    }
    words.join(" ")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("http://h:5000/x"), "http://h:5000/x");
        assert_eq!(quoted("my experiment"), "'my experiment'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
