//! DaViT, text transformer, UniCL, adapter, weights.
//!
//! Variable paths equal the upstream parameter names, which are a contract: checkpoints interchange. Shapes are written
//! with B images or texts, H and W the current grid, C channels, L tokens.

pub mod adapter;
mod archive;
pub mod config;
pub mod davit;
pub mod droppath;
pub mod init;
pub mod layers;
pub mod onnx;
pub mod params;
mod patches;
mod state_dict;
pub mod text;
pub mod tokenizer;
pub mod unicl;
pub mod weights;

use crate::error::Error;
use tch::TchError;

/// The result of tensor code; the edges turn it into the crate's error by [`engine`].
pub(crate) type TchResult<T> = std::result::Result<T, TchError>;

/// An error of libtorch as ours: its first line only, since the rest is a C++ stack trace.
pub(crate) fn engine(error: tch::TchError) -> Error {
    engine_text(&error.to_string())
}

/// The same for the text of an error that comes from the native shim.
pub(crate) fn engine_text(text: &str) -> Error {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    Error::engine(format!("libtorch: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn libtorch_errors_become_one_line() {
        let a = Tensor::from_slice(&[1f32, 2.0]);
        let error = a.f_matmul(&Tensor::from_slice(&[1f32])).map_err(engine).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Engine);
        assert!(!error.to_string().contains('\n') && error.to_string().len() < 300, "{error}");
        assert_eq!(engine_text("\n bad \nframe #0: x").to_string(), "libtorch: bad");
    }

    #[test]
    fn autocast_lasts_as_long_as_its_guard() {
        let x = Tensor::from_slice(&[1f32, 2.0]).view([1, 2]);
        let kind = || x.matmul(&x.tr()).kind();
        {
            let _guard = medtune_native::Autocast::enter(false, true).unwrap();
            assert_eq!(kind(), Kind::BFloat16);
        }
        assert_eq!(kind(), Kind::Float);
    }
}
