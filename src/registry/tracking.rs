//! What a run record says of the run's registration at an MLflow server.

use serde::{Deserialize, Serialize};

/// How a registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MlflowStatus {
    /// Everything is at the server.
    Registered,
    /// Something is missing there; nothing is missing in the store.
    #[default]
    Failed,
}

/// A model version at the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlflowVersion {
    /// The version in the store: `model:NAME@7`.
    pub reference: String,
    /// The registered model.
    pub name: String,
    /// Its version there.
    pub version: String,
    /// The alias that was given to it.
    pub alias: Option<String>,
    /// Where the server says that the package is.
    pub source: String,
}

/// A run's registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlflowRecord {
    /// How it stands.
    pub status: MlflowStatus,
    /// The server, without credentials.
    pub tracking_uri: String,
    /// The MLflow run, once there is one.
    pub run_id: Option<String>,
    /// The versions that are there.
    pub versions: Vec<MlflowVersion>,
    /// What went wrong.
    pub error: Option<String>,
    /// The commands that do what is missing.
    pub repeat: Vec<String>,
}
