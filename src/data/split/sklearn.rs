//! scikit-learn's stratified split, number for number, so that rows can be compared with those of a notebook.
//!
//! What it does is that of `train_test_split(rows, test_size=..., stratify=classes, random_state=seed)`: NumPy's `RandomState`
//! draws in the same order.

use crate::error::{Error, Result};
use rand_mt::Mt;

/// Splits rows into train, validation and test in two turns, as notebooks do: the train part from the rest, then that. Returns the
/// row indices of each part in scikit-learn's order. Classes count in the order of their ids; `labels` are their texts, for errors.
///
/// # Errors
/// `Config` for a seed that `RandomState` does not take; `Data` when a class has too few rows for a turn, or a part fewer rows than
/// there are classes.
pub fn sklearn_split(
    class_ids: &[u32],
    [_, validation, test]: [f64; 3],
    (labels, seed): (&[&str], u64),
) -> Result<Vec<Vec<usize>>> {
    let seed = u32::try_from(seed)
        .map_err(|_| Error::config(format!("split.seed: {seed} is more than scikit-learn takes, {}", u32::MAX)))?;
    // 0.1 + 0.2 is to be the 0.3 that somebody wrote
    let written = |share: f64| (share * 1e12).round() / 1e12;
    let (train, rest) = train_test_split(class_ids, written(validation + test), (labels, seed))?;
    let rest_ids: Vec<u32> = rest.iter().map(|&row| class_ids[row]).collect();
    let (validation, test) = train_test_split(&rest_ids, written(test / (validation + test)), (labels, seed))?;
    let rows = |part: Vec<usize>| part.into_iter().map(|i| rest[i]).collect();
    Ok(vec![train, rows(validation), rows(test)])
}

fn train_test_split(
    class_ids: &[u32],
    test_size: f64,
    (labels, seed): (&[&str], u32),
) -> Result<(Vec<usize>, Vec<usize>)> {
    if class_ids.is_empty() {
        return Err(Error::data("there are no rows to split"));
    }
    let n_test = (test_size * class_ids.len() as f64).ceil() as usize;
    let n_train = class_ids.len().saturating_sub(n_test);
    let mut classes: Vec<Vec<usize>> = Vec::new();
    {
        let mut sorted: Vec<u32> = class_ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        classes.resize(sorted.len(), Vec::new());
        for (row, id) in class_ids.iter().enumerate() {
            let place = sorted.binary_search(id).map_err(|_| Error::internal("a class was lost"))?;
            classes[place].push(row);
        }
        if let Some(small) = classes.iter().position(|rows| rows.len() < 2) {
            return Err(Error::data(format!(
                "a split needs two rows of class '{}', there is one: add images, leave the class out, or use the method per_class",
                labels[sorted[small] as usize]
            )));
        }
    }
    if n_train.min(n_test) < classes.len() {
        return Err(Error::data(format!(
            "a split into {n_train} and {n_test} rows has no room for {} classes in each: add images or change the shares",
            classes.len()
        )));
    }
    let mut random = RandomState::new(seed);
    let counts: Vec<usize> = classes.iter().map(Vec::len).collect();
    let of_train = random.approximate_mode(&counts, n_train);
    let left: Vec<usize> = counts.iter().zip(&of_train).map(|(count, taken)| count - taken).collect();
    let of_test = random.approximate_mode(&left, n_test);
    let (mut train, mut test) = (Vec::with_capacity(n_train), Vec::with_capacity(n_test));
    for (rows, (&first, &second)) in classes.iter().zip(of_train.iter().zip(&of_test)) {
        let order = random.permutation(rows.len());
        train.extend(order[..first].iter().map(|&i| rows[i]));
        test.extend(order[first..first + second].iter().map(|&i| rows[i]));
    }
    random.shuffle(&mut train);
    random.shuffle(&mut test);
    Ok((train, test))
}

/// What NumPy's `RandomState(seed)` draws.
struct RandomState(Mt);

impl RandomState {
    fn new(seed: u32) -> RandomState {
        RandomState(Mt::new(seed))
    }

    /// Uniform in 0 to `most`: draws until one fits.
    fn interval(&mut self, most: usize) -> usize {
        let mask = most
            .checked_next_power_of_two()
            .map_or(usize::MAX, |power| if power == most { 2 * power - 1 } else { power - 1 });
        loop {
            let value = self.0.next_u32() as usize & mask;
            if value <= most {
                return value;
            }
        }
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.interval(last);
            items.swap(last, other);
        }
    }

    fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        self.shuffle(&mut order);
        order
    }

    /// The most probable counts of `draws` rows by class; which of equally probable ones is drawn.
    fn approximate_mode(&mut self, counts: &[usize], draws: usize) -> Vec<usize> {
        let total: usize = counts.iter().sum();
        let shares: Vec<f64> = counts.iter().map(|&c| c as f64 / total as f64 * draws as f64).collect();
        let mut modes: Vec<usize> = shares.iter().map(|s| s.floor() as usize).collect();
        let mut missing = draws.saturating_sub(modes.iter().sum());
        let remainders: Vec<f64> = shares.iter().map(|s| s - s.floor()).collect();
        let mut values = remainders.clone();
        values.sort_by(|a, b| b.total_cmp(a));
        values.dedup();
        for value in values {
            if missing == 0 {
                break;
            }
            let equal: Vec<usize> = (0..remainders.len()).filter(|&i| remainders[i] == value).collect();
            let added = equal.len().min(missing);
            for place in self.permutation(equal.len()).into_iter().take(added) {
                modes[equal[place]] += 1;
            }
            missing -= added;
        }
        modes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [&str; 5] = ["a", "b", "c", "d", "e"];

    // scikit-learn itself is asked in tests/python/test_split.py
    #[test]
    fn draws_are_those_of_numpy() {
        // RandomState(42).permutation(10)
        assert_eq!(RandomState::new(42).permutation(10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let error = |ids: &[u32]| sklearn_split(ids, [0.6, 0.2, 0.2], (&LABELS, 1)).unwrap_err().to_string();
        assert!(error(&[0, 0, 0, 0, 0, 0, 4]).contains("class 'e'"));
        assert!(error(&[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]).contains("no room for 5 classes"));
        assert!(error(&[]).contains("no rows"));
        assert!(sklearn_split(&[0; 20], [0.6, 0.2, 0.2], (&LABELS, 1 << 40)).is_err());
    }
}
