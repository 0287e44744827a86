//! The content of `report.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gate::Requirement;
use super::report::MethodReport;
use crate::error::{Error, Result};

/// An evaluation with what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Version of the format; 1.
    pub format_version: u32,
    /// The program that made it.
    pub code_version: String,
    /// The label texts in class order.
    pub labels: Vec<String>,
    /// What was read, by the names of the inputs.
    pub inputs: BTreeMap<String, Input>,
    /// What each classifier decides by, by the [method's name](super::Method::name), as the package's `classifier_identity` gives it.
    pub classifiers: BTreeMap<String, String>,
    /// What was required, and how it came out.
    pub requirements: Vec<Requirement>,
    /// The figures of each method.
    pub methods: Vec<MethodReport>,
}

/// An input of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The version or place.
    pub reference: String,
    /// What its content is known by: SHA-256 in hex.
    pub sha256: String,
}

impl Document {
    /// SHA-256 in hex of the texts of the test set; `None` where they are not recorded.
    #[must_use]
    pub fn test_set(&self) -> Option<&str> {
        self.inputs.get("test_text_tsv").map(|input| input.sha256.as_str())
    }

    /// Reads `report.json`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data), without the file's name, for what another version of this program has written, or damage.
    pub fn parse(bytes: &[u8]) -> Result<Document> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::data("not a report of this version of the program: evaluate again").with_source(e))
    }
}
