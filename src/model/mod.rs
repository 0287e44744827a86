//! DaViT, text transformer, UniCL, adapter, weights.
//!
//! Variable paths equal the upstream parameter names, which are a contract: checkpoints interchange. Shapes are written
//! with B images or texts, H and W the current grid, C channels, L tokens.

pub mod adapter;
pub mod config;
pub mod davit;
pub mod droppath;
pub mod init;
pub mod layers;
pub mod params;
pub mod text;
pub mod tokenizer;
pub mod unicl;
pub mod weights;

use crate::error::Error;
use tch::TchError;

/// The result of tensor code; the edges turn it into the crate's error by [`engine`].
pub(crate) type TchResult<T> = std::result::Result<T, TchError>;

/// A libtorch failure as the crate's error: its first line, without the C++ stack trace.
pub(crate) fn engine(error: TchError) -> Error {
    let text = error.to_string();
    let line = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("libtorch failed without a message");
    Error::engine(format!("libtorch: {}", line.trim()))
}
