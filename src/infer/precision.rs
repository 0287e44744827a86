//! The number type of inference.

use tch::Device;

pub use crate::config::embedding::InferencePrecision;

impl InferencePrecision {
    /// What is computed in on `device` when `self` is asked for: on a CPU that has no products in bf16 (AVX512-BF16),
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
