//! Metrics, thresholds, kNN, reports.
//!
//! Every figure equals scikit-learn's on the same input (checked to 1e-9 against a committed table), in `f64`, with
//! `zero_division = 0`. Plain vectors in, plain vectors out: no tensors. Scores that are not finite, class ids outside the
//! label list and lengths that do not fit are data errors, never a silent figure.

pub mod knn;
pub mod metrics;
pub mod render;
pub mod report;
pub mod scores;
pub mod thresholds;

pub use knn::{Bank, knn_scores};
pub use render::{render_markdown, render_text};
pub use report::{Method, MethodReport, evaluate_method};
pub use scores::{Labelled, Scores};
