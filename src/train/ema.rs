//! Weight smoothing: an exponential moving average of every parameter, which evaluation and export use.
//!
//! The shadow starts as a copy of the parameters. [`Ema::swap`] exchanges shadow and parameters in place, so the model that
//! holds the parameters computes with the smoothed ones until the next swap; an update in between is refused.

use crate::error::{Error, Result};
use crate::model::{engine, engine_text};
use tch::{Device, Tensor};

/// The moving average of a list of parameters.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    names: Vec<String>,
    params: Vec<Tensor>,
    shadow: Vec<Tensor>,
    swapped: bool,
}

impl Ema {
    /// A shadow of `params`, kept on `device`, or beside the parameters when that is `None`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a decay outside 0 to 1, [`crate::ErrorKind::Engine`] when memory runs out.
    pub fn new(params: &[(String, Tensor)], decay: f64, device: Option<Device>) -> Result<Ema> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::config(format!("WEIGHT_SMOOTHING.decay is {decay}: give a number from 0 to 1")));
        }
        let shadow = params
            .iter()
            .map(|(_, p)| {
                let device = device.unwrap_or(p.device());
                p.f_detach_copy().and_then(|p| p.f_to_device(device)).map_err(engine)
            })
            .collect::<Result<_>>()?;
        Ok(Ema {
            decay,
            names: params.iter().map(|(name, _)| name.clone()).collect(),
            params: params.iter().map(|(_, p)| p.shallow_clone()).collect(),
            shadow,
            swapped: false,
        })
    }

    /// After an optimizer step: shadow = decay * shadow + (1 - decay) * parameter.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] between two swaps, [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn update(&mut self) -> Result<()> {
        if self.swapped {
            return Err(Error::internal(
                "the moving average was updated while the parameters hold the smoothed weights",
            ));
        }
        let current: Vec<Tensor> = self
            .params
            .iter()
            .zip(&self.shadow)
            .map(|(p, s)| p.f_detach().and_then(|p| p.f_to_device(s.device())).map_err(engine))
            .collect::<Result<_>>()?;
        medtune_native::lerp(&self.shadow, &current, 1.0 - self.decay).map_err(|text| engine_text(&text))
    }

    /// Exchanges the values of shadow and parameters; a second call restores both exactly.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn swap(&mut self) -> Result<()> {
        tch::no_grad(|| {
            for (param, shadow) in self.params.iter_mut().zip(&mut self.shadow) {
                // one parameter at a time, so that a swap needs no second copy of the model
                let held = param.f_detach_copy().map_err(engine)?;
                param.f_copy_(shadow).map_err(engine)?;
                shadow.f_copy_(&held).map_err(engine)?;
            }
            Ok(())
        })?;
        self.swapped = !self.swapped;
        Ok(())
    }

    /// Whether the parameters hold the smoothed weights at present.
    #[must_use]
    pub fn swapped(&self) -> bool {
        self.swapped
    }

    /// The smoothed weights by parameter name, sharing memory with this object, for a checkpoint or an export.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let smoothed = if self.swapped { &self.params } else { &self.shadow };
        self.names.iter().cloned().zip(smoothed.iter().map(|t| t.detach())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: f32) -> Vec<(String, Tensor)> {
        vec![("a.weight".to_owned(), Tensor::from_slice(&[value, -value]).set_requires_grad(true))]
    }

    fn values(t: &Tensor) -> Vec<f32> {
        Vec::try_from(t).unwrap()
    }

    #[test]
    fn follows_the_recurrence_and_swaps_back() {
        let params = one(1.0);
        let mut ema = Ema::new(&params, 0.75, None).unwrap();
        let _ = tch::no_grad(|| params[0].1.shallow_clone().fill_(5.0));
        ema.update().unwrap();
        assert_eq!(values(&ema.tensors()[0].1), [2.0, 0.5]);
        ema.swap().unwrap();
        assert!(ema.swapped() && ema.update().is_err());
        assert_eq!(values(&params[0].1), [2.0, 0.5]);
        assert_eq!(values(&ema.tensors()[0].1), [2.0, 0.5]);
        ema.swap().unwrap();
        assert_eq!(values(&params[0].1), [5.0, 5.0]);
        assert!(params[0].1.requires_grad());
    }

    #[test]
    fn tensors_share_memory_so_that_a_checkpoint_is_loaded_through_them() {
        let mut ema = Ema::new(&one(1.0), 0.9, Some(Device::Cpu)).unwrap();
        let _ = tch::no_grad(|| ema.tensors()[0].1.shallow_clone().fill_(7.0));
        ema.update().unwrap();
        assert_eq!(values(&ema.tensors()[0].1), [6.4, 6.2]);
        assert!(Ema::new(&one(1.0), 1.5, None).is_err());
    }
}
