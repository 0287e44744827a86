//! Metrics, thresholds, kNN, reports.
//!
//! Every figure that scikit-learn has equals its on the same input (checked to 1e-9), in `f64`, with
//! `zero_division = 0`. Plain vectors in, plain vectors out: no tensors. Scores that are not finite, class ids outside the
//! label list and lengths that do not fit are data errors, never a silent figure.

pub mod bootstrap;
pub mod calibration;
pub mod compare;
pub mod curves;
pub mod document;
pub mod gate;
pub mod html;
pub mod interval;
pub mod knn;
pub mod metrics;
pub mod operating;
pub mod render;
pub mod report;
pub mod scores;
pub mod subgroups;
pub mod thresholds;

pub use bootstrap::Bootstrap;
pub use curves::{ClassCurves, curves};
pub use document::{Document, Input};
pub use gate::Requirement;
pub use html::{Comparison, Page, Side, render_comparison, render_html, render_plots};
pub use knn::{Bank, knn_scores};
pub use operating::Goal;
pub use render::{render_markdown, render_text};
pub use report::{Extras, Method, MethodReport, evaluate_method};
pub use scores::{Labelled, Scores};
pub use subgroups::Column;
