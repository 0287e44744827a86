//! The layers that both towers are made of. Each holds shallow clones of its parameters.

use super::TchResult;
use super::params::Params;
use crate::error::Result;
use medtune_native::GpuKernels;
use tch::{Device, Kind, TchError, Tensor};

/// What activation checkpointing needs of a layer: a second handle for the segment to own, and whether it is worth it.
pub(crate) trait Shared {
    /// The same layer over the same parameters.
    fn shared(&self) -> Self;

    /// Whether a parameter asks for a gradient.
    fn trained(&self) -> bool;
}

/// `x W^t + b`, by whatever is fastest where `x` is: [`medtune_native::linear`].
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Shared for Linear {
    fn shared(&self) -> Linear {
        Linear { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    fn trained(&self) -> bool {
        self.weight.requires_grad() || self.bias.requires_grad()
    }
}

impl Linear {
    /// Takes `{path}.weight` `[out, in]` and `{path}.bias` `[out]`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when one is missing.
    pub fn new(params: &Params, path: &str) -> Result<Linear> {
        Linear::named(params, [&format!("{path}.weight"), &format!("{path}.bias")])
    }

    /// Takes the weight `[out, in]` and the bias `[out]` of these names.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when one is missing.
    pub fn named(params: &Params, [weight, bias]: [&str; 2]) -> Result<Linear> {
        Ok(Linear { weight: params.get(weight)?, bias: params.get(bias)? })
    }

    /// The bias, [out].
    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// The layer on GELU of `h`.
    pub(crate) fn after_gelu(&self, h: &Tensor) -> TchResult<Tensor> {
        if medtune_native::has_kernels(h) {
            return medtune_native::gelu_linear(h, &self.weight, &self.bias).map_err(TchError::Torch);
        }
        self.forward(&h.f_gelu("none")?)
    }

    pub(crate) fn forward(&self, x: &Tensor) -> TchResult<Tensor> {
        medtune_native::linear(x, &self.weight, &self.bias).map_err(TchError::Torch)
    }
}

/// Layer normalisation over the last dimension, computed in f32.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Shared for LayerNorm {
    fn shared(&self) -> LayerNorm {
        LayerNorm { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }

    fn trained(&self) -> bool {
        self.weight.requires_grad() || self.bias.requires_grad()
    }
}

impl LayerNorm {
    /// Whether a parameter of this name is a norm's.
    pub(crate) fn owns(name: &str) -> bool {
        let layer = name.rsplit('.').nth(1).unwrap_or_default();
        ["norm", "norms", "ln_1", "ln_2", "ln_final"].contains(&layer)
    }

    /// Takes `{path}.weight` and `{path}.bias`, both `[C]`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when one is missing.
    pub fn new(params: &Params, path: &str, eps: f64) -> Result<LayerNorm> {
        let (weight, bias) = (params.get(&format!("{path}.weight"))?, params.get(&format!("{path}.bias"))?);
        Ok(LayerNorm { weight, bias, eps })
    }

    /// [`LayerNorm::forward`] in bfloat16 by a GPU's kernel: x [..., C], C a multiple of 8 up to [`GpuKernels::MOST_CHANNELS`].
    pub(crate) fn on_gpu(&self, kernels: GpuKernels, x: &Tensor) -> TchResult<Tensor> {
        kernels.layer_norm(x, &self.weight, &self.bias, self.eps).map_err(TchError::Torch)
    }

    pub(crate) fn forward(&self, x: &Tensor) -> TchResult<Tensor> {
        let kind = x.kind();
        // on the CPU libtorch takes bf16 with weights in f32, and computes in f32 itself
        let direct = kind == Kind::Float || (kind == Kind::BFloat16 && x.device() == Device::Cpu);
        let x = if direct { x.shallow_clone() } else { x.f_to_kind(Kind::Float)? };
        let y = x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)?;
        if y.kind() == kind { Ok(y) } else { y.f_to_kind(kind) }
    }
}

/// A convolution on [B, C, H, W].
#[derive(Debug)]
pub struct Conv2d {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) groups: i64,
}

impl Shared for Conv2d {
    fn shared(&self) -> Conv2d {
        Conv2d {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            stride: self.stride,
            padding: self.padding,
            groups: self.groups,
        }
    }

    fn trained(&self) -> bool {
        self.weight.requires_grad() || self.bias.requires_grad()
    }
}

impl Conv2d {
    /// Takes `{path}.weight` `[out, in / groups, K, K]` and `{path}.bias` `[out]`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when one is missing.
    pub fn new(params: &Params, path: &str, (stride, padding, groups): (i64, i64, i64)) -> Result<Conv2d> {
        let (weight, bias) = (params.get(&format!("{path}.weight"))?, params.get(&format!("{path}.bias"))?);
        Ok(Conv2d { weight, bias, stride, padding, groups })
    }

    /// The same convolution, its weight laid out as grids [B, H, W, C] are.
    pub(crate) fn channels_last(&self) -> TchResult<Conv2d> {
        let weight = self.weight.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
        Ok(Conv2d { weight, ..self.shared() })
    }

    /// `x + convolution(x)` of a 3x3 depthwise convolution, on [B, H, W, C].
    pub(crate) fn residual_depthwise(&self, x: &Tensor) -> TchResult<Tensor> {
        if medtune_native::has_kernels(x) {
            return medtune_native::residual_depthwise(x, &self.weight, &self.bias).map_err(TchError::Torch);
        }
        x.f_add(&self.forward(&x.f_permute([0, 3, 1, 2])?)?.f_permute([0, 2, 3, 1])?)
    }

    /// [B, in, H, W] to [B, out, H', W'].
    pub(crate) fn forward(&self, x: &Tensor) -> TchResult<Tensor> {
        let (s, p) = ([self.stride; 2], [self.padding; 2]);
        x.f_conv2d(&self.weight, Some(&self.bias), s, p, [1, 1], self.groups)
    }
}
