//! Differentiable operations that are faster than libtorch's on CPUs.
//!
//! Guarantees: each equals the plain operations that it stands for up to rounding, forward and backward; results do not
//! depend on the number of threads or on the run. Sums are taken in f32 whatever the type of the tensors.

use std::ffi::{c_char, c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn mt_has_kernels(x: *const c_void) -> c_int;
    fn mt_linear(x: *const c_void, weight: *const c_void, bias: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn mt_gelu_linear(
        h: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_window_attention(
        qkv: *const c_void,
        bias: *const c_void,
        heads: i64,
        size: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_channel_attention(qkv: *const c_void, groups: i64, out: *mut *mut c_void) -> *mut c_char;
    fn mt_residual_depthwise(
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

pub(crate) fn raw(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr() as *const c_void
}

pub(crate) fn result(call: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, String> {
    let mut out = std::ptr::null_mut();
    crate::check(call(&mut out))?;
    // SAFETY: without an error `out` is a new at::Tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// Whether [`gelu_linear`], [`window_attention`], [`channel_attention`] and [`residual_depthwise`] take `x`: f32 or bf16 on the CPU.
#[must_use]
pub fn has_kernels(x: &Tensor) -> bool {
    // SAFETY: a live tensor, borrowed for the call.
    unsafe { mt_has_kernels(raw(x)) == 1 }
}

/// `x W^t + b`: x [..., in], weight `[out, in]`, bias `[out]`. In f32 on processors that are not Intel's by oneDNN, forward and
/// backward; everywhere else libtorch's own, autocast included.
///
/// # Errors
/// The text of libtorch's error.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, String> {
    // SAFETY: live tensors, borrowed for the call.
    result(|out| unsafe { mt_linear(raw(x), raw(weight), raw(bias), out) })
}

/// [`linear`] of GELU of `h`, which keeps `h` alone for the backward pass; `h` is one that [`has_kernels`].
///
/// # Errors
/// A text naming shapes or types that do not fit.
pub fn gelu_linear(h: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, String> {
    // SAFETY: as above.
    result(|out| unsafe { mt_gelu_linear(raw(h), raw(weight), raw(bias), out) })
}

/// Attention inside windows of `size` x `size` tokens: qkv [B, H, W, 3C], where q, k and v are each [heads, C / heads], to
/// [B, H, W, C]. The grid counts as padded up to whole windows with tokens whose key and value are `bias` `[3C]` (f32).
///
/// # Errors
/// A text naming shapes or types that do not fit.
pub fn window_attention(qkv: &Tensor, bias: &Tensor, heads: i64, size: i64) -> Result<Tensor, String> {
    // SAFETY: as above.
    result(|out| unsafe { mt_window_attention(raw(qkv), raw(bias), heads, size, out) })
}

/// Attention over the channels of each of `groups` groups, scaled by N^-0.5: qkv [B, N, 3C] to [B, N, C].
///
/// # Errors
/// A text naming shapes or types that do not fit.
pub fn channel_attention(qkv: &Tensor, groups: i64) -> Result<Tensor, String> {
    // SAFETY: as above.
    result(|out| unsafe { mt_channel_attention(raw(qkv), groups, out) })
}

/// `x` plus its 3x3 depthwise convolution with zero padding: x [B, H, W, C], weight [C, 1, 3, 3] and bias `[C]` in f32.
///
/// # Errors
/// A text naming shapes or types that do not fit.
pub fn residual_depthwise(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, String> {
    // SAFETY: as above.
    result(|out| unsafe { mt_residual_depthwise(raw(x), raw(weight), raw(bias), out) })
}

#[cfg(test)]
mod tests;
