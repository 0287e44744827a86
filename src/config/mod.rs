//! Job files and training configurations: rendered, parsed, validated.
//!
//! Bytes become a job in four steps, each with its own errors: YAML is parsed, `${VAR}` is rendered from an environment that
//! is passed in (nothing else reads the process's variables), `--set` overrides are applied, and the result is built into
//! typed values. An unknown key is an error that names the nearest known one.

pub mod adapter;
pub mod compute;
pub mod embedding;
pub mod evaluation;
pub mod job;
pub mod kinds;
pub mod mlflow;
pub mod packaging;
pub mod parameters;
pub mod preparation;
pub mod prompts;
mod render;
pub mod schema;
pub mod split;
pub mod store;
mod suggest;
pub mod training;
mod training_rules;

pub use render::{Environment, apply_overrides, render};
pub use suggest::{did_you_mean, explain_unknown_field, nearest};

use crate::error::{Error, Result};
use serde_yaml_ng::Value;
use std::path::Path;

/// Parses YAML text; `origin` names the file in errors.
///
/// # Errors
/// [`crate::ErrorKind::Config`] with the line and column.
pub fn parse_yaml(text: &str, origin: &str) -> Result<Value> {
    serde_yaml_ng::from_str(text).map_err(|e| Error::config(format!("{origin}: not valid YAML: {e}")))
}

/// Reads and parses one YAML file.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when there is none, [`crate::ErrorKind::Config`] when it does not parse.
pub fn read_yaml(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::config(format!("'{}' is not UTF-8 text", path.display())),
        _ => Error::io("read", path, e),
    })?;
    parse_yaml(&text, &path.display().to_string())
}

/// Builds a typed value out of YAML; errors name the path of the key and, for unknown ones, the nearest known key.
///
/// # Errors
/// [`crate::ErrorKind::Config`].
pub fn build<T: serde::de::DeserializeOwned>(value: Value, origin: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let text = explain_unknown_field(&e.into_inner().to_string());
        let place = if path == "." { origin.to_owned() } else { format!("{origin}.{path}") };
        Error::config(format!("{place}: {text}"))
    })
}
