//! A checked score matrix, and scores joined with their true classes.

use crate::error::{Error, Result};

/// One score for every row and class, row-major `[rows, classes]`. All values are finite: the constructors check.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    classes: usize,
    values: Vec<f64>,
}

impl Scores {
    /// Scores from row-major `values` of `[rows, classes]`.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if `classes` is 0, if the length is no multiple of it, or if a value is not finite.
    pub fn new(values: Vec<f64>, classes: usize) -> Result<Self> {
        if classes == 0 {
            return Err(Error::data("scores need at least one class"));
        }
        if !values.len().is_multiple_of(classes) {
            return Err(Error::data(format!("{} scores do not fill rows of {classes} classes", values.len())));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::data(format!(
                "the score of row {} for class {} is {}: the model or its input is damaged",
                at / classes + 1,
                at % classes,
                values[at]
            )));
        }
        Ok(Scores { classes, values })
    }

    /// Scores from `f32` values (the conversion is exact).
    ///
    /// # Errors
    /// As [`Scores::new`].
    pub fn from_f32(values: &[f32], classes: usize) -> Result<Self> {
        Self::new(values.iter().map(|&v| f64::from(v)).collect(), classes)
    }

    /// Probabilities from row-major logits `[rows, classes]`: softmax of each row, in `f64`.
    ///
    /// # Errors
    /// As [`Scores::new`].
    pub fn softmax(logits: &[f32], classes: usize) -> Result<Self> {
        let mut scores = Self::from_f32(logits, classes)?;
        for row in scores.values.chunks_exact_mut(classes) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        Ok(scores)
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.classes
    }

    /// How many classes each row scores.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The scores of one row, `[classes]`.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.classes..(row + 1) * self.classes]
    }

    /// All values, row-major `[rows, classes]`.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The scores of one class over all rows, `[rows]`.
    #[must_use]
    pub fn column(&self, class: usize) -> Vec<f64> {
        self.values.iter().skip(class).step_by(self.classes).copied().collect()
    }

    /// The class of the highest score of each row, `[rows]`; of equal scores the lowest class id, as NumPy does.
    #[must_use]
    pub fn argmax(&self) -> Vec<usize> {
        self.values
            .chunks_exact(self.classes)
            .map(|row| row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best }))
            .collect()
    }
}

/// Scores and the true class of each row. The constructor checks that they fit.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    scores: &'a Scores,
    truth: &'a [usize],
}

impl<'a> Labelled<'a> {
    /// Joins `scores` with the class ids of their rows.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if there are no rows, the lengths differ, or a class id has no score column.
    pub fn new(scores: &'a Scores, truth: &'a [usize]) -> Result<Self> {
        if truth.len() != scores.rows() {
            return Err(Error::data(format!("{} rows of scores but {} true classes", scores.rows(), truth.len())));
        }
        if truth.is_empty() {
            return Err(Error::data("nothing to evaluate: the dataset has no rows"));
        }
        if let Some(row) = truth.iter().position(|&c| c >= scores.classes()) {
            return Err(Error::data(format!(
                "row {} has class id {} but there are only {} labels: check the label file",
                row + 1,
                truth[row],
                scores.classes()
            )));
        }
        Ok(Labelled { scores, truth })
    }

    /// The scores.
    #[must_use]
    pub fn scores(&self) -> &'a Scores {
        self.scores
    }

    /// The true class id of each row.
    #[must_use]
    pub fn truth(&self) -> &'a [usize] {
        self.truth
    }

    /// How many rows there are; at least 1.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.truth.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_scores_and_classes_are_data_errors() {
        assert!(Scores::new(vec![0.0; 3], 2).is_err());
        assert!(Scores::new(vec![], 0).is_err());
        let error = Scores::new(vec![0.0, 1.0, f64::NAN, 0.0], 2).unwrap_err();
        assert!(error.to_string().contains("row 2 for class 0"), "{error}");
        let scores = Scores::new(vec![0.0, 1.0], 2).unwrap();
        assert!(Labelled::new(&scores, &[2]).unwrap_err().to_string().contains("class id 2"));
        assert!(Labelled::new(&scores, &[0, 1]).is_err());
        assert!(Labelled::new(&Scores::new(vec![], 2).unwrap(), &[]).is_err());
    }

    #[test]
    fn softmax_survives_large_logits() {
        let scores = Scores::softmax(&[1000.0, 1000.0, -1000.0, 0.0, 0.0, 0.0], 3).unwrap();
        assert_eq!(scores.row(0), &[0.5, 0.5, 0.0]);
        assert!((scores.row(1).iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(scores.argmax(), [0, 0]);
    }
}
