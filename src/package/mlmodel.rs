//! The texts MLflow reads: `MLmodel`, environments, examples.
//!
//! YAML is written with every string double-quoted, JSON style: MLflow's YAML 1.1 parser would otherwise take `3.10` for a
//! number and the creation time for a date.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use super::CHECKPOINTS;
use super::config::{PackageConfig, Task};
use crate::error::{Error, Result};

/// The MLflow whose format this is; newer and older ones (2.14 to 3.x) read it.
const MLFLOW_VERSION: &str = "2.22.5";
const PYTHON_VERSION: &str = "3.11";

/// What differs from package to package.
pub(super) struct MlModel<'a> {
    pub(super) config: &'a PackageConfig,
    pub(super) metadata: &'a BTreeMap<String, Value>,
    pub(super) loader_module: &'a str,
    /// 32 hex digits.
    pub(super) uuid: &'a str,
    pub(super) size_bytes: u64,
    pub(super) created: OffsetDateTime,
}

impl MlModel<'_> {
    /// The text of `MLmodel`.
    pub(super) fn text(&self) -> Result<String> {
        let created = self
            .created
            .to_offset(time::UtcOffset::UTC)
            .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]"))
            .map_err(|e| Error::internal("cannot write the creation time").with_source(e))?;
        let (inputs, outputs, params) = signature(self.config);
        let quoted = |text: &str| scalar(&Value::from(text));
        let mut out = String::new();
        let mut line = |indent: usize, key: &str, value: String| {
            let _ = writeln!(out, "{:indent$}{key}:{}{value}", "", if value.is_empty() { "" } else { " " });
        };
        line(0, "flavors", String::new());
        line(2, "python_function", String::new());
        line(4, "code", "code".into());
        // defaults of what MLflow lets whoever loads the package choose; other keys it ignores
        line(4, "config", String::new());
        line(6, "device", "auto".into());
        line(6, "precision", "f32".into());
        line(4, "data", CHECKPOINTS.into());
        line(4, "env", String::new());
        line(6, "conda", "conda.yaml".into());
        line(6, "virtualenv", "python_env.yaml".into());
        line(4, "loader_module", quoted(self.loader_module));
        line(4, "python_version", quoted(&format!("{PYTHON_VERSION}.0")));
        line(4, "streamable", "false".into());
        line(0, "is_signature_from_type_hint", "false".into());
        line(0, "metadata", if self.metadata.is_empty() { "{}".into() } else { String::new() });
        for (key, value) in self.metadata {
            line(2, &quoted(key), scalar(value));
        }
        line(0, "mlflow_version", quoted(MLFLOW_VERSION));
        line(0, "model_size_bytes", self.size_bytes.to_string());
        line(0, "model_uuid", quoted(self.uuid));
        line(0, "saved_input_example_info", String::new());
        line(2, "artifact_path", "input_example.json".into());
        line(2, "pandas_orient", "split".into());
        line(2, "serving_input_path", "serving_input_example.json".into());
        line(2, "type", "dataframe".into());
        line(0, "signature", String::new());
        // strings that hold JSON
        line(2, "inputs", quoted(&inputs.to_string()));
        line(2, "outputs", quoted(&outputs.to_string()));
        line(2, "params", quoted(&params.to_string()));
        line(0, "type_hint_from_example", "false".into());
        line(0, "utc_time_created", quoted(&created));
        Ok(out)
    }
}

/// JSON is YAML, with two cares: YAML parsers refuse some characters raw, and have no surrogate pairs.
fn scalar(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        let _ = match c as u32 {
            0x20..=0x7e => write!(out, "{c}"),
            code @ 0..=0xffff => write!(out, "\\u{code:04x}"),
            code => write!(out, "\\U{code:08x}"),
        };
    }
    out
}

/// Inputs, outputs and parameters. Outputs are plain types only: Azure's scoring script dies of any other. Whole numbers are
/// `long`, which accepts NumPy's integers too.
fn signature(config: &PackageConfig) -> (Value, Value, Value) {
    let column = |kind: &str, name: &str, required: bool| json!({"type": kind, "name": name, "required": required});
    let param =
        |name: &str, kind: &str, default: Value| json!({"name": name, "type": kind, "default": default, "shape": null});
    let pixels = &config.pixels;
    let mut params = vec![
        param("image_standardization_jpeg_compression_ratio", "long", pixels.jpeg_quality.into()),
        param("image_standardization_image_size", "long", pixels.standard_size.into()),
    ];
    let (inputs, outputs) = match config.task {
        Task::Classification => {
            params.push(param("top_k", "long", 0.into()));
            (json!([column("binary", "image", true)]), json!([column("string", "predictions", false)]))
        }
        Task::Embeddings => {
            params.push(param("get_scaling_factor", "boolean", true.into()));
            let outputs = ["image_features", "text_features", "scaling_factor"];
            (
                json!([column("binary", "image", false), column("string", "text", false)]),
                outputs.map(|name| column("string", name, false)).into_iter().collect(),
            )
        }
    };
    params.push(param("output_format", "string", "records".into()));
    (inputs, outputs, params.into())
}

/// The table of the examples as `{"columns", "data"}`: one image, and for embeddings a text.
fn example_table(task: Task, image_base64: &str) -> Value {
    match task {
        Task::Classification => json!({"columns": ["image"], "data": [[image_base64]]}),
        Task::Embeddings => {
            json!({"columns": ["image", "text"], "data": [[image_base64, "normal chest radiograph"]]})
        }
    }
}

/// `input_example.json`: without parameters, with which Azure would build a wrong sample.
pub(super) fn input_example(config: &PackageConfig, image_base64: &str) -> String {
    example_table(config.task, image_base64).to_string()
}

/// `serving_input_example.json`: the body of a request to `/invocations`, with every parameter at its default.
pub(super) fn serving_input_example(config: &PackageConfig, image_base64: &str) -> String {
    let params: serde_json::Map<String, Value> = signature(config)
        .2
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| Some((p["name"].as_str()?.to_owned(), p["default"].clone())))
        .collect();
    json!({"dataframe_split": example_table(config.task, image_base64), "params": params}).to_string()
}

/// Ranges, not pins: pins make every other environment warn. Texts are only tokenized by embedding packages.
fn requirements_list(task: Task) -> Vec<&'static str> {
    let mut list = vec!["mlflow>=2.14,<4", "torch>=2.2", "numpy>=1.24", "pandas>=1.5", "pillow>=10", "pyyaml>=6"];
    if task == Task::Embeddings {
        list.push("tokenizers>=0.15");
    }
    list
}

/// `requirements.txt`.
pub(super) fn requirements(task: Task) -> String {
    requirements_list(task).iter().map(|r| format!("{r}\n")).collect()
}

/// `python_env.yaml`.
pub(super) fn python_env() -> String {
    format!(
        "python: \"{PYTHON_VERSION}\"\nbuild_dependencies:\n- pip\n- setuptools\n- wheel\n\
         dependencies:\n- -r requirements.txt\n"
    )
}

/// `conda.yaml`.
pub(super) fn conda(task: Task) -> String {
    let pip: String = requirements_list(task).iter().map(|r| format!("  - \"{r}\"\n")).collect();
    format!(
        "channels:\n- conda-forge\ndependencies:\n- python={PYTHON_VERSION}\n- pip\n- pip:\n{pip}name: mlflow-env\n"
    )
}
