//! The number type of inference.

use tch::Device;

/// The number type in which the towers compute. Embeddings are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InferencePrecision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16; norms, softmax and sums in f32. Faster on GPUs and on processors with AVX-512, at 8 bits of precision.
    Bf16,
}

impl InferencePrecision {
    /// Its name in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            InferencePrecision::F32 => "f32",
            InferencePrecision::Bf16 => "bf16",
        }
    }

    /// What is computed in on `device` when `self` is asked for: on a CPU that has no products in bf16 (oneDNN needs AVX-512),
    /// f32 is faster and more exact.
    #[must_use]
    pub fn on(self, device: Device) -> InferencePrecision {
        match self {
            InferencePrecision::Bf16 if !device.is_cuda() && !medtune_native::has_bfloat16_products() => {
                InferencePrecision::F32
            }
            asked => asked,
        }
    }
}
