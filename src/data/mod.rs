//! Image and text TSVs, class folders, labels, splits, embedding files.

pub mod embeddings;
