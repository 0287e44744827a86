//! Batch jobs that fine-tune MedImageInsight, embed images, train adapters, evaluate, and publish MLflow packages.
//!
//! Data flows one way; a module may use those above it in this list and never those below it:
//!
//! | module | what it holds |
//! |---|---|
//! | [`error`] | one error type; its kind is the exit code |
//! | `panics` | code that may panic, run so that the rest goes on |
//! | [`telemetry`] | logging, progress, being asked to stop |
//! | [`config`] | job files and training configurations: rendered, parsed, validated |
//! | [`storage`] | one store: put, get, list, and the create-if-absent that publishing rests on |
//! | [`registry`] | named, numbered versions of datasets and models; run records |
//! | [`mlflow`] | runs and model versions at an MLflow tracking server |
//! | [`imaging`] | from encoded bytes to normalised pixels: the one pixel path |
//! | [`data`] | image and text TSVs, class folders, labels, splits, embedding files |
//! | [`evaluation`] | metrics, thresholds, kNN, reports |
//! | [`package`] | MLflow model folders: files and metadata, no tensors |
//! | `distributed` | several processes that compute one job |
//! | `model` | DaViT, text transformer, UniCL, adapter, weights |
//! | `infer` | batched encoding of images and texts |
//! | `train` | loss, optimizer, schedule, the loop |
//! | `jobs` | one file a job kind; pipelines compose them |
//! | [`cli`] | the command line, over all of them |
//!
//! `distributed`, `model`, `infer`, `train` and `jobs` need libtorch (feature `torch`); everything else builds without it.

pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluation;
pub mod imaging;
pub mod mlflow;
pub mod package;
mod panics;
pub mod registry;
pub mod storage;
pub mod telemetry;

#[cfg(feature = "torch")]
pub mod distributed;
#[cfg(feature = "torch")]
pub mod infer;
#[cfg(feature = "torch")]
pub mod jobs;
#[cfg(feature = "torch")]
pub mod model;
#[cfg(feature = "torch")]
pub mod train;

pub use error::{Context, Error, ErrorKind, Result};

/// A hash over the sources that this program was built from, as run records and step fingerprints carry it.
pub const CODE_VERSION: &str = env!("MEDTUNE_CODE_VERSION");
