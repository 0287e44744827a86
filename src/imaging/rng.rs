//! A stream of random numbers keyed by (seed, epoch, sample).
//!
//! The n-th number of a stream depends on its key and on n alone: not on the thread, the machine, the number of processes
//! or what was drawn for other samples. A resumed run therefore repeats the augmentation of an uninterrupted one without
//! saving any generator state. The numbers are SplitMix64 outputs: good for augmentation and shuffling, not for secrets.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function: a bijection of 64 bits that scatters neighbouring counters.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The random stream of one sample in one epoch.
#[derive(Debug, Clone)]
pub struct SampleRng {
    counter: u64,
}

impl SampleRng {
    /// The stream that belongs to `(seed, epoch, sample)`.
    #[must_use]
    pub fn new(seed: u64, epoch: u64, sample: u64) -> Self {
        let key = mix(seed.wrapping_add(GAMMA));
        let key = mix(key ^ epoch.wrapping_add(GAMMA));
        SampleRng { counter: mix(key ^ sample.wrapping_add(GAMMA)) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(GAMMA);
        mix(self.counter)
    }

    /// The next number, uniform in [0, 1), with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The next number, uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// The next integer, uniform in 0..bound; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// True with this probability; draws one number whatever the probability is.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Puts `items` in random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_function_is_splitmix64() {
        // first outputs of the published SplitMix64 with state 1234567
        let mut rng = SampleRng { counter: 1_234_567 };
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn streams_depend_on_every_part_of_the_key() {
        let first = |seed, epoch, sample| SampleRng::new(seed, epoch, sample).next_u64();
        let all = [first(0, 0, 0), first(1, 0, 0), first(0, 1, 0), first(0, 0, 1), first(1, 1, 0), first(0, 1, 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(first(7, 8, 9), first(7, 8, 9));
    }

    #[test]
    fn numbers_fill_their_ranges() {
        let mut rng = SampleRng::new(1, 2, 3);
        let mean = (0..10_000).map(|_| rng.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let mut counts = [0; 7];
        (0..7_000).for_each(|_| counts[rng.below(7)] += 1);
        assert!(counts.iter().all(|&c| (800..1200).contains(&c)), "{counts:?}");
        let mut items: Vec<usize> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
