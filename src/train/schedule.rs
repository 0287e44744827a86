//! Learning rates as a pure function of the update number: nothing to save, nothing to replay after a restart.

use std::f64::consts::PI;

/// How the learning rate moves over optimizer updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// The base rate throughout.
    Constant,
    /// timm's `CosineLRScheduler` stepped per update, with one cycle and `warmup_prefix` off.
    Cosine(Cosine),
}

/// A linear warm-up followed by half a cosine. The cosine counts from update 0, so the rate after the warm-up continues
/// where the curve then is, a little below the base rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosine {
    /// Updates until the minimum is reached.
    pub total: u64,
    /// Updates of linear warm-up.
    pub warmup: u64,
    /// Rate of update 0 when there is a warm-up.
    pub warmup_lr: f64,
    /// Rate from `total` on; absolute, not scaled with the base rate.
    pub min_lr: f64,
}

impl Schedule {
    /// The rate of update number `update` (the first is 0) for a parameter group of base rate `base`.
    #[must_use]
    pub fn lr(&self, base: f64, update: u64) -> f64 {
        match self {
            Schedule::Constant => base,
            Schedule::Cosine(cosine) => cosine.lr(base, update),
        }
    }
}

impl Cosine {
    #[expect(clippy::cast_precision_loss, reason = "update numbers stay far below 2^53")]
    fn lr(&self, base: f64, update: u64) -> f64 {
        if update < self.warmup {
            return self.warmup_lr + update as f64 * ((base - self.warmup_lr) / self.warmup as f64);
        }
        if update >= self.total {
            return self.min_lr;
        }
        self.min_lr + 0.5 * (base - self.min_lr) * (1.0 + (PI * update as f64 / self.total as f64).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_timm() {
        // CosineLRScheduler(t_initial=40, lr_min=1e-9, warmup_t=5, warmup_lr_init=1e-9, t_in_epochs=False) of timm 1.0.31,
        // step_update(t), read from the optimizer.
        let schedule = Schedule::Cosine(Cosine { total: 40, warmup: 5, warmup_lr: 1e-9, min_lr: 1e-9 });
        let expected: [(u64, f64); 9] = [
            (0, 1e-9),
            (1, 1.0008000000000002e-6),
            (4, 4.0002e-6),
            (5, 4.809736891511962e-6),
            (6, 4.727570807208826e-6),
            (20, 2.5005000000000005e-6),
            (39, 8.705124334046656e-9),
            (40, 1e-9),
            (41, 1e-9),
        ];
        for (update, lr) in expected {
            let ours = schedule.lr(5e-6, update);
            assert!((ours - lr).abs() <= 1e-12 * lr, "update {update}: {ours} instead of {lr}");
        }
    }

    #[test]
    fn no_warmup_starts_at_the_base_rate() {
        let schedule = Schedule::Cosine(Cosine { total: 10, warmup: 0, warmup_lr: 1.0, min_lr: 0.0 });
        assert_eq!(schedule.lr(0.5, 0), 0.5);
        assert_eq!(Schedule::Constant.lr(0.5, 99), 0.5);
    }

    #[test]
    fn a_warmup_longer_than_the_run_never_divides_by_zero() {
        let schedule = Schedule::Cosine(Cosine { total: 0, warmup: 2, warmup_lr: 0.0, min_lr: 0.1 });
        assert_eq!(schedule.lr(1.0, 1), 0.5);
        assert_eq!(schedule.lr(1.0, 2), 0.1);
    }
}
