//! TrivialAugmentWide: one random operation with a random magnitude for each image.

use super::decode::RgbImage;
use super::operation::{BINS, Operation};
use super::rng::SampleRng;

/// What was drawn for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrivialAugment {
    /// The operation.
    pub operation: Operation,
    /// Its magnitude, with its sign.
    pub magnitude: f64,
}

impl TrivialAugment {
    /// Draws an operation, one of its magnitudes and, where it has one, the sign, all evenly. Always takes three numbers
    /// of the stream, so that what follows does not depend on the operation.
    pub fn draw(rng: &mut SampleRng) -> TrivialAugment {
        let operation = Operation::ALL[rng.below(Operation::ALL.len())];
        let magnitude = operation.magnitude(rng.below(BINS));
        let negative = rng.chance(0.5);
        TrivialAugment { operation, magnitude: if negative && operation.is_signed() { -magnitude } else { magnitude } }
    }

    /// Applies what was drawn.
    #[must_use]
    pub fn apply(&self, image: RgbImage) -> RgbImage {
        self.operation.apply(image, self.magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_operation_bin_and_sign_is_drawn_evenly() {
        let mut counts: HashMap<(Operation, i64), usize> = HashMap::new();
        let mut operations: HashMap<Operation, usize> = HashMap::new();
        for sample in 0..50_000 {
            let drawn = TrivialAugment::draw(&mut SampleRng::new(3, 0, sample));
            *counts.entry((drawn.operation, (drawn.magnitude * 1000.0).round() as i64)).or_default() += 1;
            *operations.entry(drawn.operation).or_default() += 1;
        }
        for operation in Operation::ALL {
            assert!((3_300..3_850).contains(&operations[&operation]), "{operation:?} {operations:?}");
            let magnitudes = counts.keys().filter(|(o, _)| *o == operation).count();
            let expected = match operation {
                Operation::Identity | Operation::AutoContrast | Operation::Equalize => 1,
                Operation::Posterize => 7,
                Operation::Solarize => 31,
                // 30 of either sign, and 0
                _ => 61,
            };
            assert_eq!(magnitudes, expected, "{operation:?}");
        }
    }

    #[test]
    fn a_draw_takes_three_numbers() {
        let (mut one, mut other) = (SampleRng::new(1, 2, 3), SampleRng::new(1, 2, 3));
        TrivialAugment::draw(&mut one);
        let skipped = [other.next_u64(), other.next_u64(), other.next_u64()];
        assert!(skipped[0] != skipped[1] && skipped[1] != skipped[2]);
        assert_eq!(one.next_u64(), other.next_u64());
    }
}
