//! The model card: `README.md` of a package.

use std::fmt::Write as _;

use time::OffsetDateTime;

use crate::config::packaging::TermsOfUse;

use super::config::{ClassifierKind, PackageConfig, Task};

/// Labels beyond this number are counted, not listed.
const LISTED_LABELS: usize = 200;

/// What the card says beyond the package's configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelCard {
    /// The model's name, the card's title.
    pub title: String,
    /// The model this one was made from, with version.
    pub base_model: String,
    /// The licence of the weights, and what the model is meant for, where known.
    pub terms: TermsOfUse,
    /// The datasets used and their versions, as (role, reference): `("train", "data:gastro-train@3")`.
    pub datasets: Vec<(String, String)>,
    /// The evaluation as Markdown, as [`render_markdown`](crate::evaluation::render_markdown) makes it; empty: not evaluated.
    pub metrics: String,
    /// Further remarks, one paragraph each.
    pub notes: Vec<String>,
    /// When the package was made; `None`: now. A fixed time makes a repeated job write the same bytes.
    pub created: Option<OffsetDateTime>,
}

impl ModelCard {
    /// The card's text. `labels` are the classifier's, empty for embeddings.
    pub(super) fn text(&self, config: &PackageConfig, labels: &[String]) -> String {
        let mut out = String::new();
        let (tag, task) = describe(config);
        let title = if self.title.trim().is_empty() { "medtune model" } else { &self.title };
        let _ = write!(out, "---\nlibrary_name: mlflow\npipeline_tag: {tag}\n---\n\n# {}\n\n{task}\n", plain(title));
        let intended = self.terms.intended_use.as_deref().map_or_else(|| "Research.".to_owned(), plain);
        let _ = write!(
            out,
            "\n## Intended use\n\n{intended}\n\nThis is not a medical device: do not use its answers for the care of patients \
             unless it was validated locally, on the images of the site that uses it, under the rules that apply there.\n"
        );
        let or_unknown = |text: &str| if text.trim().is_empty() { "not recorded".to_owned() } else { plain(text) };
        let _ = write!(out, "\n## Origin\n\n- Base model: {}\n", or_unknown(&self.base_model));
        let _ = writeln!(
            out,
            "- Licence of the weights: {}",
            or_unknown(self.terms.license.as_deref().unwrap_or_default())
        );
        if config.provenance["stored_weights"] == "bf16" {
            let _ = writeln!(
                out,
                "- Weights: stored in bfloat16 (norms, biases and scales in float32), computed with in float32"
            );
        }
        for (role, reference) in &self.datasets {
            let _ = writeln!(out, "- Data ({}): {}", plain(role), plain(reference));
        }
        self.pixels(&mut out, config);
        if !labels.is_empty() {
            let _ = write!(out, "\n## Labels ({}, in class order)\n\n", labels.len());
            for (id, label) in labels.iter().take(LISTED_LABELS).enumerate() {
                let _ = writeln!(out, "{id}. {}", plain(label));
            }
            if labels.len() > LISTED_LABELS {
                let _ = writeln!(out, "\nand {} more in the package's label file.", labels.len() - LISTED_LABELS);
            }
        }
        let metrics = if self.metrics.trim().is_empty() { "Not evaluated." } else { self.metrics.trim_end() };
        let _ = write!(out, "\n## Evaluation\n\n{metrics}\n");
        if !self.notes.is_empty() {
            let _ = write!(out, "\n## Remarks\n");
            for note in &self.notes {
                let _ = write!(out, "\n{}\n", plain(note));
            }
        }
        let _ = write!(
            out,
            "\n## Integrity\n\nNo file is a pickle. `medtune-manifest.json` lists every other file with its SHA-256; the \
             Python under `code/` runs when the package is loaded and is short enough to be read first.\n"
        );
        out
    }

    fn pixels(&self, out: &mut String, config: &PackageConfig) {
        let p = &config.pixels;
        let _ = write!(
            out,
            "\n## Input images\n\nOne or more images as JPEG, PNG or another common format, base64 or bytes. Each is turned \
             upright by its EXIF orientation, converted to RGB, resized to {s} x {s} ({i}, antialiased, aspect not kept), \
             encoded as JPEG of quality {q} and decoded again, resized to {h} x {w} ({i}, antialiased), scaled to 0..1, and \
             normalised with mean {m:?} and standard deviation {d:?}. Evaluation, embedding and this package do the same; training \
             takes random crops of the images as Prepare stored them.\n",
            s = p.standard_size,
            q = p.jpeg_quality,
            h = p.image_size[0],
            w = p.image_size[1],
            i = "bicubic",
            m = p.mean,
            d = p.std,
        );
    }
}

fn describe(config: &PackageConfig) -> (&'static str, String) {
    match &config.classifier {
        None => {
            debug_assert_eq!(config.task, Task::Embeddings);
            let text = "Answers with feature vectors of length 1 of images and texts, comparable by their dot product.";
            ("image-feature-extraction", text.to_owned())
        }
        Some(classifier) if classifier.kind == ClassifierKind::ZeroShot => (
            "zero-shot-image-classification",
            format!(
                "Classifies images by comparing them with the label texts (encoded as `{}`). Answers with all labels and \
                 their scores, best first; scores of one image add up to 1.",
                plain(&classifier.text_template)
            ),
        ),
        Some(_) => (
            "image-classification",
            "Classifies images with an adapter trained on image features. Answers with all labels and their scores, best \
             first; scores of one image add up to 1."
                .to_owned(),
        ),
    }
}

/// One line, without HTML.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "&lt;")
}
