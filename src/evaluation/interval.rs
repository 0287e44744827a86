//! Confidence intervals: of proportions in closed form, of other figures from resampled values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The share of samples that an interval is to cover.
pub const LEVEL: f64 = 0.95;
/// The normal distribution's quantile of (1 + [`LEVEL`]) / 2.
const Z: f64 = 1.959_963_984_540_054;

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The middle 95 % of `values`, interpolated linearly between neighbours as NumPy's `percentile` does; `None` without values.
    #[must_use]
    pub fn of_resamples(mut values: Vec<f64>) -> Option<Interval> {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        let tail = (1.0 - LEVEL) / 2.0;
        (!values.is_empty()).then(|| Interval { low: at(tail), high: at(1.0 - tail) })
    }

    /// The interval that holds this one and that of `share`.
    #[must_use]
    pub fn or_wider(self, share: Proportion) -> Interval {
        let other = share.interval().unwrap_or(self);
        Interval { low: other.low.min(self.low), high: other.high.max(self.high) }
    }
}

/// A share of rows with Wilson's 95 % interval. Of no rows there is no share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// The share, in 0..=1.
    pub value: Option<f64>,
    /// The interval's lower end.
    pub low: Option<f64>,
    /// The interval's upper end.
    pub high: Option<f64>,
    /// Of how many rows.
    pub n: u64,
}

impl Proportion {
    /// Its interval; `None` of no rows.
    #[must_use]
    pub fn interval(&self) -> Option<Interval> {
        Some(Interval { low: self.low?, high: self.high? })
    }

    /// The share of `hits` among `n` rows.
    #[must_use]
    pub fn new(hits: u64, n: u64) -> Proportion {
        Proportion::of_independent(hits, n, n as f64)
    }

    /// The share of hits among some of the rows of a dataset, given as (row, whether it is one). With `groups`, an id for each row of
    /// the dataset, the rows of a group, such as a patient, are not taken as independent: the interval is that of as many rows as
    /// independent ones would have the same variance, less what so few groups leave uncertain of it (Korn and Graubard, Survey
    /// Methodology 24, 1998). Where all rows or none are hits nothing is known of the variance, and the rows count.
    #[must_use]
    pub fn among(rows: impl IntoIterator<Item = (usize, bool)>, groups: Option<&[usize]>) -> Proportion {
        let (mut hits, mut n) = (0, 0);
        let mut of_group: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for (row, hit) in rows {
            (hits, n) = (hits + u64::from(hit), n + 1);
            if let Some(ids) = groups {
                let (hits, rows) = of_group.entry(ids[row]).or_default();
                (*hits, *rows) = (*hits + u64::from(hit), *rows + 1);
            }
        }
        if groups.is_none() {
            return Proportion::new(hits, n);
        }
        let (count, units, p) = (n as f64, of_group.len() as f64, hits as f64 / n as f64);
        if of_group.len() < 2 {
            return Proportion::of_independent(hits, n, units);
        }
        let squares: f64 = of_group.values().map(|&(hits, rows)| (hits as f64 - p * rows as f64).powi(2)).sum();
        let variance = units / (units - 1.0) * squares / (count * count);
        let known = hits > 0 && hits < n;
        let independent = if known { (p * (1.0 - p) / variance).min(count) } else { count };
        let independent = independent * (quantile(count - 1.0) / quantile(units - 1.0)).powi(2);
        Proportion::of_independent(hits, n, independent)
    }

    /// The share of `hits` among `n` rows with the interval of `count` rows.
    fn of_independent(hits: u64, n: u64, count: f64) -> Proportion {
        if n == 0 {
            return Proportion { value: None, low: None, high: None, n };
        }
        let p = hits as f64 / n as f64;
        let scale = 1.0 + Z * Z / count;
        let middle = (p + Z * Z / (2.0 * count)) / scale;
        let reach = Z / scale * (p * (1.0 - p) / count + Z * Z / (4.0 * count * count)).sqrt();
        // at no and at all hits the ends are exact in the formula, not in floating point
        let low = if hits == 0 { 0.0 } else { (middle - reach).max(0.0) };
        let high = if hits == n { 1.0 } else { (middle + reach).min(1.0) };
        Proportion { value: Some(p), low: Some(low), high: Some(high), n }
    }
}

/// Of Student's t distribution, as [`Z`] of the normal one.
fn quantile(freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(Z, |t| t.inverse_cdf((1.0 + LEVEL) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let interval = Interval::of_resamples((0..=100).rev().map(f64::from).collect()).unwrap();
        assert!((interval.low - 2.5).abs() < 1e-9 && (interval.high - 97.5).abs() < 1e-9, "{interval:?}");
        assert_eq!(Interval::of_resamples(vec![3.0]), Some(Interval { low: 3.0, high: 3.0 }));
        assert_eq!(Interval::of_resamples(vec![]), None);
    }

    #[test]
    fn no_rows_have_no_share_and_the_ends_are_exact() {
        assert_eq!(Proportion::new(0, 0).value, None);
        assert_eq!(Proportion::new(0, 9).low, Some(0.0));
        assert_eq!(Proportion::new(9, 9).high, Some(1.0));
    }

    #[test]
    fn the_last_miss_or_hit_takes_an_interval_further() {
        let groups: Vec<usize> = (0..100).map(|row| row / 10).collect();
        let share = |misses: usize| Proportion::among((0..100).map(|row| (row, row >= misses)), Some(&groups));
        assert!(share(1).low < share(0).low, "{:?} {:?}", share(1), share(0));
        assert!(share(100).high < share(99).high, "{:?} {:?}", share(100), share(99));
        // rows of one group say as much as one
        assert_eq!(Proportion::among([(0, true), (1, true)], Some(&[3, 3])).low, Proportion::new(1, 1).low);
        assert_eq!(Proportion::among([], Some(&[])).value, None);
        let alone: Vec<usize> = (0..100).collect();
        let (alone, rows) =
            (Proportion::among((0..100).map(|row| (row, row >= 100 - 30)), Some(&alone)), Proportion::new(30, 99));
        assert!((alone.low.unwrap() - rows.low.unwrap()).abs() < 0.005, "{alone:?} {rows:?}");
    }
}
