//! The `mlflow` section of a job: which MLflow server the run and its models are registered at; and the credentials, which
//! never stand in a job file.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Environment;
use super::job::Job;
use super::kinds::PortType;
use crate::error::{Error, Result};

/// How long a tag's value may be: what the oldest servers take.
const MAX_TAG: usize = 5000;

/// How a package becomes the `source` of a registered model version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The store's URI when the store is in the cloud, otherwise `upload`: servers refuse folders.
    #[default]
    Auto,
    /// The URI of the version in the store; nothing is copied.
    Uri,
    /// A copy among the artifacts of the MLflow run.
    Upload,
}

/// An MLflow server that runs and models are registered at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mlflow {
    /// The server: `http://HOST:PORT` or `https://HOST`; credentials come from the environment only.
    pub tracking_uri: String,
    /// The experiment that the run belongs to; the job's name when left out.
    pub experiment: Option<String>,
    /// The registered model; the name in the store when left out. Only for jobs that register one model.
    pub registered_model: Option<String>,
    /// An alias that then names the new version, such as `champion`.
    pub alias: Option<String>,
    /// Tags of the run and of the model version.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// How a package becomes the `source` of a version: `auto`, `uri` or `upload`.
    #[serde(default)]
    pub source: Source,
}

impl Mlflow {
    /// A section that says nothing but where the server is.
    #[must_use]
    pub fn at(tracking_uri: &str) -> Mlflow {
        Mlflow {
            tracking_uri: tracking_uri.to_owned(),
            experiment: None,
            registered_model: None,
            alias: None,
            tags: BTreeMap::new(),
            source: Source::Auto,
        }
    }

    /// Checks everything that a server would refuse.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] naming the key; a URI that may hold a secret is not shown.
    pub fn check(&self) -> Result<()> {
        check_uri(&self.tracking_uri)?;
        for (key, name) in [("experiment", &self.experiment), ("registered_model", &self.registered_model)] {
            let Some(name) = name else { continue };
            let bad = name.trim().is_empty() || name.len() > 250 || name.chars().any(char::is_control);
            if bad || (key == "registered_model" && name.contains(['/', ':', '\'', '"'])) {
                let name = name.escape_debug();
                return Err(Error::config(format!(
                    "mlflow.{key}: '{name}' is no name that MLflow takes; leave out '/', ':' and quotes"
                )));
            }
        }
        if let Some(alias) = &self.alias {
            let plain = alias.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
            let number = alias.strip_prefix(['v', 'V']).unwrap_or_default();
            let like_version = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            if alias.is_empty() || alias.len() > 255 || !plain || like_version || alias.eq_ignore_ascii_case("latest") {
                return Err(Error::config(format!(
                    "mlflow.alias: '{}' is no alias that MLflow takes: use letters, digits, '_' and '-', neither 'latest' \
                     nor 'v' with a number",
                    alias.escape_debug()
                )));
            }
        }
        for (key, value) in &self.tags {
            let place = format!("mlflow.tags.{}", key.escape_debug());
            let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-. ".contains(c));
            if key.is_empty() || key.len() > 250 || !plain {
                return Err(Error::config(format!("{place}: a tag's name has letters, digits, '.', '_', '-', spaces")));
            }
            if key.starts_with("medtune.") {
                return Err(Error::config(format!("{place}: names that begin with 'medtune.' are medtune's own")));
            }
            if value.len() > MAX_TAG {
                return Err(Error::config(format!("{place}: longer than {MAX_TAG} characters")));
            }
        }
        Ok(())
    }

    /// Checks that the section fits the job: one name and one alias cannot stand for several models, or for none.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] naming the key and the models.
    pub fn check_job(&self, job: &Job) -> Result<()> {
        let models = final_models(job);
        for (key, given) in [("registered_model", &self.registered_model), ("alias", &self.alias)] {
            if given.is_some() && models.is_empty() {
                return Err(Error::config(format!("mlflow.{key}: this job makes no model, leave it out")));
            }
        }
        if self.registered_model.is_some() && models.len() > 1 {
            let names: Vec<String> = models.iter().map(|(step, output)| format!("{step}.{output}")).collect();
            return Err(Error::config(format!(
                "mlflow.registered_model: this job makes several models ({}), which would become versions of one; leave it \
                 out, then each has its name in the store",
                names.join(", ")
            )));
        }
        Ok(())
    }
}

/// The models of a job that no further model of it is made from: pairs of step and output. A model that is only embedded
/// with or evaluated counts, unless it is evaluated for the report that another is made with.
#[must_use]
pub fn final_models(job: &Job) -> Vec<(String, String)> {
    let steps = job.steps();
    let makes_models = |step: &super::job::Step| step.kind.outputs().iter().any(|p| p.port_type == PortType::Model);
    // the model that was evaluated for the report that another takes is that other's candidate
    let candidates = steps.iter().filter_map(|(_, step)| {
        let Some(super::job::InputSource::Step { step: judge, .. }) = step.inputs.get("report") else { return None };
        let adapter = step.inputs.contains_key("adapter");
        let input = if adapter { "adapter_mlflow_model" } else { "zero_shot_mlflow_model" };
        steps.iter().find(|(name, _)| name == judge)?.1.inputs.get(input)
    });
    let used: Vec<(&str, &str)> = steps
        .iter()
        .filter(|(_, step)| makes_models(step))
        .flat_map(|(_, step)| step.inputs.values())
        .chain(candidates)
        .filter_map(|source| match source {
            super::job::InputSource::Step { step, output } => Some((step.as_str(), output.as_str())),
            _ => None,
        })
        .collect();
    let mut models = Vec::new();
    for (name, step) in &steps {
        for port in step.kind.outputs().iter().filter(|p| p.port_type == PortType::Model) {
            if !used.contains(&(name.as_str(), port.name)) {
                models.push((name.clone(), port.name.to_owned()));
            }
        }
    }
    models
}

fn check_uri(uri: &str) -> Result<()> {
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    let Some(rest) = rest else {
        let scheme = uri.split_once("://").map_or("", |(scheme, _)| scheme);
        return Err(Error::config(format!(
            "mlflow.tracking_uri: write http://HOST:PORT or https://HOST{}",
            if scheme.is_empty() { String::new() } else { format!("; '{}' is not spoken", scheme.escape_debug()) }
        )));
    };
    // none of these messages shows the URI: what is wrong with it may be that a secret is in it
    if rest.contains('@') {
        return Err(Error::config(
            "mlflow.tracking_uri: there is a user or password in it, and job files are kept in run records; set \
             MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        ));
    }
    if rest.contains(['?', '#']) {
        return Err(Error::config("mlflow.tracking_uri: leave out what follows '?' or '#'"));
    }
    let host = rest.split('/').next().unwrap_or_default();
    let plain = uri.bytes().all(|b| b.is_ascii_graphic() && !b"'\"\\".contains(&b));
    if host.is_empty() || host.starts_with(':') || !plain {
        return Err(Error::config("mlflow.tracking_uri: write http://HOST:PORT or https://HOST"));
    }
    Ok(())
}

/// What a tracking server is shown: `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, else `MLFLOW_TRACKING_TOKEN`.
/// It cannot be printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing: the server is open.
    #[default]
    None,
    /// A bearer token.
    Token(String),
    /// User and password.
    Basic(String, String),
}

impl Credentials {
    /// Those that the environment holds; empty variables count as not set.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a user without a password, and for characters that no header can hold.
    pub fn from_environment(environment: &Environment) -> Result<Credentials> {
        let get = |name: &str| environment.get(name).filter(|v| !v.is_empty()).cloned();
        let (user, password) = (get("MLFLOW_TRACKING_USERNAME"), get("MLFLOW_TRACKING_PASSWORD"));
        let token = get("MLFLOW_TRACKING_TOKEN");
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::config(
                "MLFLOW_TRACKING_TOKEN holds a space, line break or other character that no token has; set it again",
            ));
        }
        match (user, password, token) {
            (Some(user), Some(password), _) => Ok(Credentials::Basic(user, password)),
            (_, _, Some(token)) => Ok(Credentials::Token(token)),
            (None, None, None) => Ok(Credentials::None),
            _ => Err(Error::config("set both MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or neither")),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::None => "None",
            Credentials::Token(_) => "Token(***)",
            Credentials::Basic(..) => "Basic(***)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(section: &Mlflow) -> String {
        section.check().expect_err("the section must be refused").to_string()
    }

    #[test]
    fn uris_with_secrets_are_refused_and_not_shown() {
        for good in ["http://localhost:5000", "https://mlflow.example.org", "http://h/prefix/", "http://[::1]:5000"] {
            Mlflow::at(good).check().unwrap();
        }
        for bad in ["http://me:hunter2@h", "https://hunter2@h/x", "http://h?token=hunter2", "http://h#hunter2"] {
            assert!(!message(&Mlflow::at(bad)).contains("hunter2"), "{bad}");
        }
        assert!(message(&Mlflow::at("http://me:x@h")).contains("MLFLOW_TRACKING_TOKEN"));
        assert!(message(&Mlflow::at("databricks://x")).contains("'databricks' is not spoken"));
        for bad in ["", "http://", "http://:5000", "h:5000", "file:///x", "http://a b", "http://h/'x"] {
            assert!(message(&Mlflow::at(bad)).contains("http://HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn names_that_servers_refuse_are_refused_before() {
        let base = Mlflow::at("http://h");
        for alias in ["latest", "v7", "a b", "", "ä"] {
            let section = Mlflow { alias: Some(alias.to_owned()), ..base.clone() };
            assert!(message(&section).contains("mlflow.alias"), "{alias}");
        }
        for alias in ["champion", "v", "v7b", "7"] {
            Mlflow { alias: Some(alias.to_owned()), ..base.clone() }.check().unwrap();
        }
        for name in ["a/b", "a:b", "", "it's"] {
            let section = Mlflow { registered_model: Some(name.to_owned()), ..base.clone() };
            assert!(message(&section).contains("mlflow.registered_model"), "{name}");
        }
        for tag in ["a@b", "medtune.run_id", ""] {
            let section = Mlflow { tags: [(tag.to_owned(), "x".to_owned())].into(), ..base.clone() };
            assert!(message(&section).contains("mlflow.tags."), "{tag}");
        }
    }

    #[test]
    fn credentials_cannot_be_printed() {
        let of = |pairs: &[(&str, &str)]| {
            let environment = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Credentials::from_environment(&environment)
        };
        let token = of(&[("MLFLOW_TRACKING_TOKEN", "hunter2")]).unwrap();
        let basic = of(&[
            ("MLFLOW_TRACKING_USERNAME", "me"),
            ("MLFLOW_TRACKING_PASSWORD", "hunter2"),
            ("MLFLOW_TRACKING_TOKEN", "t"),
        ])
        .unwrap();
        assert_eq!(token, Credentials::Token("hunter2".to_owned()));
        assert_eq!(basic, Credentials::Basic("me".to_owned(), "hunter2".to_owned()));
        assert!(!format!("{token:?} {basic:?}").contains("hunter2"));
        assert_eq!(of(&[("MLFLOW_TRACKING_TOKEN", "")]).unwrap(), Credentials::None);
        assert!(of(&[("MLFLOW_TRACKING_USERNAME", "me")]).is_err());
        let error = of(&[("MLFLOW_TRACKING_TOKEN", "hunter2\n")]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
