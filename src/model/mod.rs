//! DaViT, text transformer, UniCL, adapter, weights.

pub mod adapter;
pub mod tokenizer;

use crate::error::Error;

/// An error of libtorch as ours: its first line only, since the rest is a C++ stack trace.
pub(crate) fn engine(error: tch::TchError) -> Error {
    engine_text(&error.to_string())
}

/// The same for the text of an error that comes from the native shim.
pub(crate) fn engine_text(text: &str) -> Error {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    Error::engine(format!("libtorch: {line}"))
}
