//! Number types of the computation: autocast, and the dynamic loss scale that float16 needs.
//!
//! Weights, gradients and optimizer state are f32 in every mode; autocast lowers matrix products and convolutions.

use crate::config::parameters::Precision;
use crate::error::{Error, Result};
use crate::model::engine_text;
use serde::{Deserialize, Serialize};
use tch::Device;

/// The number type that forward passes compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// 32-bit floats.
    F32,
    /// bfloat16 autocast.
    Bf16,
    /// float16 autocast with a loss scale.
    Fp16,
}

impl Mode {
    /// What the job's parameter and the training configuration's FP16 come to on `device`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for float16 on a CPU.
    pub fn resolve(precision: Precision, fp16: bool, device: Device) -> Result<Mode> {
        match (precision, fp16, device.is_cuda()) {
            (Precision::F32, ..) | (Precision::Auto, false, _) => Ok(Mode::F32),
            (Precision::Bf16, ..) => Ok(Mode::Bf16),
            (Precision::Auto | Precision::Fp16, _, true) => Ok(Mode::Fp16),
            (Precision::Auto, true, false) => Ok(Mode::Bf16),
            (Precision::Fp16, _, false) => {
                Err(Error::config("parameters.precision: fp16 needs a GPU; use bf16 or f32 on a CPU"))
            }
        }
    }

    /// The mode's name in job files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::F32 => "f32",
            Mode::Bf16 => "bf16",
            Mode::Fp16 => "fp16",
        }
    }

    /// What to tell whoever wrote `fp16: true` and gets something else by `precision: auto`.
    #[must_use]
    pub fn substitution(self, precision: Precision, fp16: bool) -> Option<&'static str> {
        let replaced = precision == Precision::Auto && fp16 && self == Mode::Bf16;
        replaced.then_some("FP16: true: a CPU computes in bfloat16 instead of float16")
    }

    /// The loss scale that this mode goes on with: float16 needs one, the others have none.
    #[must_use]
    pub fn loss_scale(self, earlier: Option<LossScale>) -> Option<LossScale> {
        (self == Mode::Fp16).then(|| earlier.unwrap_or_default())
    }

    /// Runs `work` with autocast as this mode has it; backward passes belong outside.
    ///
    /// # Errors
    /// Those of `work`, and [`crate::ErrorKind::Engine`].
    pub fn cast<T>(self, device: Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let enter = |bfloat16| medtune_native::Autocast::enter(device.is_cuda(), bfloat16);
        let _guard = match self {
            Mode::F32 => None,
            Mode::Bf16 => Some(enter(true).map_err(|text| engine_text(&text))?),
            Mode::Fp16 => Some(enter(false).map_err(|text| engine_text(&text))?),
        };
        work()
    }
}

/// The dynamic loss scale of float16, by the rule of PyTorch's GradScaler: halved when gradients overflow, doubled after
/// 2000 steps without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor on the loss.
    pub scale: f64,
    /// Steps without an overflow since the scale last changed.
    pub good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: 65_536.0, good_steps: 0 }
    }
}

const GROWTH_INTERVAL: u32 = 2000;

impl LossScale {
    /// Adapts the scale to how a step went.
    pub fn update(&mut self, overflow: bool) {
        if overflow {
            *self = LossScale { scale: self.scale * 0.5, good_steps: 0 };
            return;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            *self = LossScale { scale: self.scale * 2.0, good_steps: 0 };
        }
    }

    /// Whether an overflow at this scale is not the scale's fault: the gradients themselves are not finite.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.scale < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_follow_device_and_key() {
        let resolve = |p, fp16| Mode::resolve(p, fp16, Device::Cpu);
        assert_eq!(resolve(Precision::Auto, false).unwrap(), Mode::F32);
        assert_eq!(resolve(Precision::Auto, true).unwrap(), Mode::Bf16);
        assert!(Mode::Bf16.substitution(Precision::Auto, true).is_some());
        assert!(Mode::Bf16.substitution(Precision::Bf16, true).is_none());
        assert_eq!(resolve(Precision::F32, true).unwrap(), Mode::F32);
        // a checkpoint may come from a device that computed in another mode
        let halved = LossScale { scale: 2.0, good_steps: 7 };
        assert_eq!(Mode::Fp16.loss_scale(Some(halved)), Some(halved));
        assert_eq!(Mode::Fp16.loss_scale(None), Some(LossScale::default()));
        assert_eq!(Mode::Bf16.loss_scale(Some(halved)), None);
        assert_eq!(Mode::resolve(Precision::Auto, true, Device::Cuda(0)).unwrap(), Mode::Fp16);
        assert!(resolve(Precision::Fp16, true).unwrap_err().to_string().contains("precision"));
    }

    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_2000_good_steps() {
        let mut scale = LossScale::default();
        scale.update(true);
        assert_eq!(scale.scale, 32_768.0);
        (0..1999).for_each(|_| scale.update(false));
        assert_eq!((scale.scale, scale.good_steps), (32_768.0, 1999));
        scale.update(false);
        assert_eq!((scale.scale, scale.good_steps), (65_536.0, 0));
        assert!(!scale.exhausted());
        (0..17).for_each(|_| scale.update(true));
        assert!(scale.exhausted());
    }
}
