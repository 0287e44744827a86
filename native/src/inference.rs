//! Linear layers for inference alone: no gradients, the weight laid out once as the processor likes it.

use std::ffi::{c_char, c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn mt_has_bfloat16_products() -> c_int;
    fn mt_pack_linear(weight: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn mt_inference_linear(
        x: *const c_void,
        weight: *const c_void,
        packed: c_int,
        bias: *const c_void,
        gelu: c_int,
        residual: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Whether this processor multiplies matrices of bf16 faster than those of f32.
#[must_use]
pub fn has_bfloat16_products() -> bool {
    // SAFETY: asks the processor only.
    unsafe { mt_has_bfloat16_products() == 1 }
}

/// A linear layer whose weight cannot change any more.
#[derive(Debug)]
pub struct FixedLinear {
    weight: Weight,
    bias: Tensor,
}

enum Weight {
    Plain(Tensor),
    /// Of oneDNN's layout: opaque to every other operation.
    Packed(Tensor),
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Weight::Plain(_)) { "Plain" } else { "Packed" })
    }
}

impl FixedLinear {
    /// Takes the weight `[out, in]` and the bias `[out]`, both of one type.
    ///
    /// # Errors
    /// The text of libtorch's error, e.g. when memory does not suffice.
    pub fn new(weight: Tensor, bias: Tensor) -> Result<FixedLinear, String> {
        let mut out = std::ptr::null_mut();
        // SAFETY: a live tensor, borrowed for the call.
        crate::check(unsafe { mt_pack_linear(super::ops::raw(&weight), &mut out) })?;
        let weight = match out.is_null() {
            true => Weight::Plain(weight),
            // SAFETY: a new at::Tensor that nobody else owns.
            false => Weight::Packed(unsafe { Tensor::from_ptr(out.cast()) }),
        };
        Ok(FixedLinear { weight, bias })
    }

    /// `x W^t + b`: x [..., in] to [..., out].
    ///
    /// # Errors
    /// The text of libtorch's error: shapes or types that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, String> {
        self.run(x, false, None)
    }

    /// GELU of [`FixedLinear::forward`]; in bfloat16 on a GPU by its approximation with tanh, of a sum that is not rounded before.
    ///
    /// # Errors
    /// As [`FixedLinear::forward`].
    pub fn gelu(&self, x: &Tensor) -> Result<Tensor, String> {
        self.run(x, true, None)
    }

    /// [`FixedLinear::forward`] plus `residual` [..., out].
    ///
    /// # Errors
    /// As [`FixedLinear::forward`].
    pub fn add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor, String> {
        self.run(x, false, Some(residual))
    }

    fn run(&self, x: &Tensor, gelu: bool, residual: Option<&Tensor>) -> Result<Tensor, String> {
        let (weight, packed) = match &self.weight {
            Weight::Plain(weight) => (weight, 0),
            Weight::Packed(weight) => (weight, 1),
        };
        let residual = residual.map_or(std::ptr::null(), super::ops::raw);
        let (x, weight, bias) = (super::ops::raw(x), super::ops::raw(weight), super::ops::raw(&self.bias));
        // SAFETY: live tensors, borrowed for the call; `residual` may be null.
        super::ops::result(|out| unsafe { mt_inference_linear(x, weight, packed, bias, gelu.into(), residual, out) })
    }
}
