//! What an MLflow run is told of a medtune run.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::flatten::{self, Metric, clean, cut};
use crate::config::mlflow::Mlflow;
use crate::registry::{RunRecord, RunStatus, Version};

/// The longest value of a tag, in characters: what the oldest servers take.
pub(super) const MAX_TAG: usize = 5000;

/// A run as MLflow sees it: made from a run record, or from a version that no run made.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// The tag that the run is found by, and its value.
    pub(super) identity: (&'static str, String),
    /// The run's name.
    pub(super) name: String,
    /// The experiment when the job names none.
    pub(super) experiment: String,
    /// When it started and ended, in milliseconds since 1970.
    pub(super) started: i64,
    pub(super) ended: Option<i64>,
    /// MLflow's word for how it ended; `None` for one that goes on.
    pub(super) status: Option<&'static str>,
    pub(super) parameters: Vec<(String, String)>,
    pub(super) metrics: Vec<Metric>,
    pub(super) tags: Vec<(String, String)>,
}

impl RunFacts {
    /// What a run record says.
    #[must_use]
    pub fn of_record(record: &RunRecord) -> RunFacts {
        let mut parameters = Vec::new();
        flatten::parameters("compute", &record.config["compute"], &mut parameters);
        let work = &record.config["work"];
        match work["steps"].as_array() {
            Some(steps) => {
                for step in steps {
                    // a name and a step
                    let name = step[0].as_str().unwrap_or_default();
                    flatten::parameters(name, &step[1]["parameters"], &mut parameters);
                }
            }
            None => flatten::parameters("", &work["parameters"], &mut parameters),
        }
        flatten::unique(&mut parameters, |(name, _)| name);
        let mut tags = vec![
            ("medtune.kind".to_owned(), record.kind.clone()),
            ("medtune.version".to_owned(), record.medtune_version.clone()),
            ("medtune.code_version".to_owned(), record.code_version.clone()),
        ];
        let inputs = record.inputs.iter().map(|(name, input)| {
            let from = input.reference.as_deref().unwrap_or(&input.uri);
            (clean(&format!("medtune.input.{name}")), cut(&format!("{from} {}", input.identity()), MAX_TAG))
        });
        tags.extend(inputs);
        if let Some(text) = record.config["description"].as_str().filter(|t| !t.is_empty()) {
            tags.push(("mlflow.note.content".to_owned(), cut(text, MAX_TAG)));
        }
        let status = match record.status {
            RunStatus::Succeeded => Some("FINISHED"),
            RunStatus::Failed => Some("FAILED"),
            RunStatus::Running if record.is_abandoned() => Some("KILLED"),
            RunStatus::Running => None,
        };
        RunFacts {
            identity: ("medtune.run_id", record.run_id.clone()),
            name: record.run_id.clone(),
            experiment: record.job_name.clone(),
            started: milliseconds(&record.started).unwrap_or_default(),
            ended: record.ended.as_deref().and_then(milliseconds),
            status,
            parameters,
            metrics: metrics(record),
            tags,
        }
    }

    /// What a version says of itself that was not made by a run whose record is in the store.
    #[must_use]
    pub fn of_version(version: &Version) -> RunFacts {
        let created = milliseconds(&version.created).unwrap_or_default();
        let mut metrics = Vec::new();
        flatten::metrics("", 0, &version.metadata, &mut metrics);
        flatten::unique_metrics(&mut metrics);
        RunFacts {
            identity: ("medtune.reference", version.reference()),
            name: version.reference(),
            experiment: version.name.clone(),
            started: created,
            ended: Some(created),
            status: Some("FINISHED"),
            parameters: Vec::new(),
            metrics,
            tags: vec![("medtune.digest".to_owned(), version.digest.clone())],
        }
    }

    /// Adds what the job's section says of every run.
    pub(super) fn tags(&self, section: &Mlflow) -> Vec<(String, String)> {
        let (key, value) = &self.identity;
        let mut tags = vec![((*key).to_owned(), value.clone())];
        tags.extend(self.tags.iter().cloned());
        tags.extend(section.tags.clone());
        tags
    }
}

/// The numbers of all steps; those of a job that is one step are not named after it.
fn metrics(record: &RunRecord) -> Vec<Metric> {
    let mut out = Vec::new();
    let single = record.config["work"]["steps"].is_null();
    match (&record.metrics, single) {
        (Value::Object(steps), true) => steps.values().for_each(|m| flatten::metrics("", 0, m, &mut out)),
        (all, _) => flatten::metrics("", 0, all, &mut out),
    }
    flatten::unique_metrics(&mut out);
    out
}

fn milliseconds(time: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_becomes_parameters_metrics_and_tags() {
        let config = json!({"description": "why", "compute": {"device": "cpu", "threads": 1},
            "work": {"steps": [["embed", {"kind": "Embed", "parameters": {"batch_size": 8}}]]}});
        let mut record = RunRecord::start("r-1", "job", "Pipeline", config);
        record.started = "1970-01-01T00:00:01.500Z".to_owned();
        record.metrics = json!({"embed": {"rows": 5}});
        record.inputs.insert("embed.image_tsv".to_owned(), crate::registry::InputRecord::default());
        record.finish(std::time::Duration::from_secs(1), None);
        let facts = RunFacts::of_record(&record);
        let pairs: Vec<(&str, &str)> = facts.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("compute.device", "cpu"), ("compute.threads", "1"), ("embed.batch_size", "8")]);
        assert_eq!(facts.metrics, [Metric { name: "embed.rows".to_owned(), value: 5.0, step: 0 }]);
        assert_eq!((facts.started, facts.status), (1500, Some("FINISHED")));
        let section = Mlflow { tags: [("team".to_owned(), "x".to_owned())].into(), ..Mlflow::at("http://h") };
        let names: Vec<String> = facts.tags(&section).into_iter().map(|(k, _)| k).collect();
        for name in ["medtune.run_id", "medtune.input.embed.image_tsv", "mlflow.note.content", "team"] {
            assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
        }
    }

    #[test]
    fn a_single_step_does_not_name_its_numbers() {
        let config = json!({"work": {"kind": "Embed", "parameters": {"batch_size": 8}}});
        let mut record = RunRecord::start("r-1", "job", "Embed", config);
        record.metrics = json!({"embed": {"rows": 5}});
        let facts = RunFacts::of_record(&record);
        assert_eq!(facts.parameters, [("batch_size".to_owned(), "8".to_owned())]);
        assert_eq!(facts.metrics[0].name, "rows");
        assert_eq!(facts.status, None);
    }
}
