//! MLflow model folders: files and metadata, no tensors.
//!
//! A package is written once, whole: [`write_package`] ends with `medtune-manifest.json`, which lists every other file with
//! size and SHA-256, so a folder that has it is complete and [`verify_package`] can prove it unchanged. Packages hold no
//! pickle; the Python that MLflow imports is short, under a module name made from its own hash, so packages of different
//! versions can be loaded into one process. `self-test.json` has what the model answers to made-up images. No path of a package leads out of
//! it, and no link is followed.

pub mod card;
pub mod config;
pub mod loader;
pub mod manifest;
mod mlmodel;
mod reader;
mod runtime;
pub mod self_test;
mod writer;

pub use card::ModelCard;
pub use config::{ClassifierConfig, ClassifierKind, PackageConfig, Task, onnx_models};
pub use loader::PythonLoader;
pub use manifest::{FileEntry, Manifest};
pub use reader::{Package, package_files, read_package, verify_package};
pub use self_test::{Answers, Asked, Checked, SelfTest};
pub use writer::{PackageSpec, write_package};

/// The folder of weights and settings inside a package, which the MLflow loader is given.
pub const CHECKPOINTS: &str = "artifacts/checkpoints";
/// The settings file inside [`CHECKPOINTS`].
pub const CONFIG_FILE: &str = "medtune.json";
/// The list of all files at the package's top.
pub const MANIFEST_FILE: &str = "medtune-manifest.json";
/// The upstream architecture configuration inside [`CHECKPOINTS`].
pub const MODEL_CONFIG_FILE: &str = "config.yaml";
/// The self-test at the package's top.
pub const SELF_TEST_FILE: &str = "self-test.json";
