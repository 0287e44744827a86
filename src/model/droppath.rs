//! Drop path (stochastic depth): a branch is left out for a sample, and the kept ones are scaled up.
//!
//! Guarantee: what is dropped depends only on (seed, epoch, sample, branch), not on batch size, order, threads or processes.

use super::TchResult;
use crate::imaging::SampleRng;
use tch::{Device, Tensor};

/// Which samples a training batch holds, so that each draws its own randomness.
#[derive(Debug, Clone)]
pub struct DropPath {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// The index of each row of the batch in the training set.
    pub samples: Vec<u64>,
}

impl DropPath {
    /// `branch` scaled per sample by 0 or 1 / (1 - rate); [B, ...].
    pub(crate) fn apply(&self, branch: &Tensor, rate: f64, index: u64) -> TchResult<Tensor> {
        if rate <= 0.0 {
            return Ok(branch.shallow_clone());
        }
        let keep = 1.0 - rate;
        let factors: Vec<f32> = self
            .samples
            .iter()
            .map(|s| if unit(self.seed, self.epoch, *s, index) < keep { (1.0 / keep) as f32 } else { 0.0 })
            .collect();
        let mut shape = vec![1; branch.dim()];
        shape[0] = factors.len() as i64;
        let device: Device = branch.device();
        // of the branch's own type: a factor in f32 would make the whole residual stream f32 under autocast
        let mask = Tensor::f_from_slice(&factors)?.f_view(shape.as_slice())?.f_to_device(device)?;
        branch.f_mul(&mask.f_to_kind(branch.kind())?)
    }
}

/// A uniform number in [0, 1) keyed by its arguments; no other use draws from the same streams.
fn unit(seed: u64, epoch: u64, sample: u64, branch: u64) -> f64 {
    const DROP_PATH: u64 = 0x6472_6f70_7061_7468;
    SampleRng::new(seed ^ DROP_PATH.rotate_left((branch % 64) as u32).wrapping_add(branch), epoch, sample).unit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_expected_share_and_does_not_depend_on_the_batch() {
        let ones = Tensor::ones([4000, 3], (tch::Kind::Float, Device::Cpu));
        let all = DropPath { seed: 7, epoch: 2, samples: (0..4000).collect() };
        let out = all.apply(&ones, 0.3, 5).unwrap();
        let mean = out.mean(tch::Kind::Double).double_value(&[]);
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let part = DropPath { samples: (1000..1004).collect(), ..all };
        let small = part.apply(&ones.narrow(0, 0, 4), 0.3, 5).unwrap();
        assert!(small.equal(&out.narrow(0, 1000, 4)));
    }
}
