//! The same figures for parts of the test data, such as each sex, age band or device: whether a model serves all of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::interval::Proportion;
use super::metrics::{Confusion, macro_over_occurring, mean, ranking};
use super::scores::{Labelled, Scores};
use crate::error::{Error, Result};

/// More values than this in a column are no subgroups.
const MOST_GROUPS: usize = 50;
/// The value of rows that do not have one.
const NONE: &str = "(none)";

/// A column of the test data: its name, and the value of each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The value of each row.
    pub values: Vec<Option<String>>,
}

/// The subgroups that a column makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubgroupTable {
    /// The column's name.
    pub column: String,
    /// One entry a value, in the order of their texts; rows without a value last.
    pub groups: Vec<Subgroup>,
}

/// The figures of the rows with one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subgroup {
    /// The value; `(none)` for rows that have none.
    pub value: String,
    /// How many rows.
    pub n: usize,
    /// The share of right rows.
    pub accuracy: Proportion,
    /// Mean F1 over the classes that occur in these rows, in truth or prediction.
    pub macro_f1: f64,
    /// Mean ROC AUC over the classes for which it is defined in these rows.
    pub mauc: Option<f64>,
}

/// The subgroups of `data` by `column`; rows of one of `groups`, an id a row, are not taken as independent.
///
/// # Errors
/// [`Data`](crate::ErrorKind::Data) if the column has no value at all, too many different ones, or not one entry a row.
pub fn subgroups(data: &Labelled<'_>, groups: Option<&[usize]>, column: &Column) -> Result<SubgroupTable> {
    let name = &column.name;
    if column.values.len() != data.rows() {
        return Err(Error::data(format!(
            "column '{name}' has {} values for {} rows",
            column.values.len(),
            data.rows()
        )));
    }
    let parts = column.groups()?.into_iter().map(|(value, rows)| subgroup(data, groups, value, &rows));
    Ok(SubgroupTable { column: name.clone(), groups: parts.collect::<Result<_>>()? })
}

impl Column {
    /// The rows of each value, in the order of their texts; those without a value last.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if there is no value at all, or too many different ones.
    pub fn groups(&self) -> Result<Vec<(&str, Vec<usize>)>> {
        let name = &self.name;
        let mut rows: BTreeMap<(bool, &str), Vec<usize>> = BTreeMap::new();
        for (row, value) in self.values.iter().enumerate() {
            rows.entry((value.is_none(), value.as_deref().unwrap_or(NONE))).or_default().push(row);
        }
        if rows.keys().all(|(none, _)| *none) {
            return Err(Error::data(format!("no row has a value of '{name}': check the name")));
        }
        if rows.len() > MOST_GROUPS {
            return Err(Error::data(format!(
                "column '{name}' has {} different values, at most {MOST_GROUPS} make subgroups: band them, as in \"60-69\"",
                rows.len()
            )));
        }
        Ok(rows.into_iter().map(|((_, value), rows)| (value, rows)).collect())
    }
}

fn subgroup(data: &Labelled<'_>, groups: Option<&[usize]>, value: &str, rows: &[usize]) -> Result<Subgroup> {
    let classes = data.scores().classes();
    let scores = Scores::new(rows.iter().flat_map(|&row| data.scores().row(row)).copied().collect(), classes)?;
    let truth: Vec<usize> = rows.iter().map(|&row| data.truth()[row]).collect();
    let predicted = scores.argmax();
    let tallies = Confusion::new(&truth, &predicted, classes).tallies();
    let right = truth.iter().zip(&predicted).map(|(truth, predicted)| truth == predicted);
    Ok(Subgroup {
        value: value.to_owned(),
        n: rows.len(),
        accuracy: Proportion::among(rows.iter().copied().zip(right), groups),
        macro_f1: macro_over_occurring(&tallies).f1,
        mauc: mean((0..classes).filter_map(|class| ranking(&scores, &truth, class)).map(|r| r.auc)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[Option<&str>]) -> Column {
        Column { name: "sex".to_owned(), values: values.iter().map(|v| v.map(str::to_owned)).collect() }
    }

    #[test]
    fn rows_are_told_apart_by_value_and_those_without_come_last() {
        let scores = Scores::new(vec![0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.6, 0.4], 2).unwrap();
        let data = Labelled::new(&scores, &[0, 1, 1, 1]).unwrap();
        let table = subgroups(&data, None, &column(&[Some("m"), Some("f"), Some("f"), None])).unwrap();
        let seen: Vec<_> = table.groups.iter().map(|g| (g.value.as_str(), g.n, g.accuracy.value)).collect();
        assert_eq!(seen, [("f", 2, Some(0.5)), ("m", 1, Some(1.0)), (NONE, 1, Some(0.0))]);
        assert!(subgroups(&data, None, &column(&[None; 4])).unwrap_err().to_string().contains("sex"));
        assert!(subgroups(&data, None, &column(&[Some("m")])).is_err());
    }

    #[test]
    fn a_column_of_keys_makes_no_subgroups() {
        let scores = Scores::new(vec![0.5; 60], 1).unwrap();
        let column = Column { name: "id".into(), values: (0..60).map(|i| Some(i.to_string())).collect() };
        let error = subgroups(&Labelled::new(&scores, &[0; 60]).unwrap(), None, &column).unwrap_err();
        assert!(error.to_string().contains("60 different"), "{error}");
    }
}
