//! Metrics, thresholds, kNN, reports.
