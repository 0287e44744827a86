//! What an evaluation says of a classifier, on its way into the classifier's package.

use crate::error::{Error, Result};
use crate::evaluation::{Document, MethodReport, Requirement, gate, render_markdown};
use crate::package::ClassifierKind;
use serde_json::json;
use std::path::Path;

/// A classifier's evaluation.
pub(super) struct Evaluation {
    report: MethodReport,
    requirements: Vec<Requirement>,
}

impl Evaluation {
    /// The evaluation of the classifier of that [identity](crate::package::Package::classifier_with) in an output of Evaluate.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] for a report that cannot be read, or is of another classifier; [`crate::ErrorKind::Requirement`] when a requirement of it
    /// was not met.
    pub(super) fn read(folder: &Path, kind: ClassifierKind, identity: &str) -> Result<Evaluation> {
        let path = folder.join("report.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let document = Document::parse(&bytes).map_err(|e| e.context(format!("'{}'", path.display())))?;
        let method = kind.method();
        let report = document.methods.into_iter().find(|r| r.method == method);
        let same = document.classifiers.get(method.name()).is_some_and(|found| found == identity);
        let Some(report) = report.filter(|_| same) else {
            return Err(Error::data(format!(
                "'{}' is not about this {method} classifier: evaluate one of the same embedding model, labels, and adapter or text_template",
                path.display()
            )));
        };
        gate::hold(&document.requirements)?;
        Ok(Evaluation { report, requirements: document.requirements })
    }

    /// The figures for the model card.
    pub(super) fn markdown(&self) -> String {
        render_markdown(std::slice::from_ref(&self.report), &self.requirements)
    }

    /// Writes the thresholds for the package: by label those of the best F1, and the operating points with what they reach. False when there
    /// are none, for want of validation data.
    pub(super) fn write_operating_points(&self, path: &Path) -> Result<bool> {
        let Some(thresholded) = &self.report.thresholded else { return Ok(false) };
        let labels = self.report.argmax.per_class.iter().map(|c| c.label.clone());
        let thresholds: serde_json::Map<_, _> = labels.zip(thresholded.thresholds.iter().map(|&t| json!(t))).collect();
        let document = json!({
            "format_version": 1, "chosen_on": "validation", "best_f1": thresholds, "operating_points": self.report.operating_points,
        });
        super::write_json(path, &document).map(|()| true)
    }
}
