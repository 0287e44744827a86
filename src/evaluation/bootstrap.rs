//! Bootstrap confidence intervals: the figures of many samples drawn from the rows with replacement.
//!
//! Where several rows come from one patient, they are not independent, and intervals over rows are too narrow: then whole groups
//! are drawn. The same seed gives the same intervals, whatever the number of threads.
//!
//! Of eight rows that are all right every sample is all right, which does not make the accuracy certain: intervals of accuracy, precision and
//! recall reach at least as far as Wilson's ([`Proportion::among`]).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::interval::{Interval, LEVEL, Proportion};
use super::metrics::{Confusion, Ranking, Tally, macro_average, macro_over_occurring, mean};
use super::scores::Labelled;
use crate::imaging::SampleRng;

/// How samples are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Bootstrap<'a> {
    /// How many samples.
    pub resamples: usize,
    /// Decides which.
    pub seed: u64,
    /// The group of each row, drawn whole: the name of what groups, and an id a row from 0 on without gaps.
    pub groups: Option<(&'a str, &'a [usize])>,
}

/// 95 % percentile intervals of a method's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// The share of samples between the ends.
    pub level: f64,
    /// How many samples were drawn.
    pub resamples: usize,
    /// What decided which.
    pub seed: u64,
    /// What was drawn whole; `None`: single rows.
    pub group: Option<String>,
    /// How many groups or rows there were to draw from.
    pub units: usize,
    /// Of the accuracy; at least Wilson's.
    pub accuracy: Interval,
    /// Of the macro F1 of the highest-scoring class.
    pub macro_f1: Interval,
    /// Of Matthews' correlation coefficient.
    pub mcc: Interval,
    /// Of the mean ROC AUC, over the samples for which it is defined.
    pub mauc: Option<Interval>,
    /// Of the mean average precision, over the same samples.
    pub mean_average_precision: Option<Interval>,
    /// Of the macro F1 after thresholds, the thresholds being fixed.
    pub thresholded_macro_f1: Option<Interval>,
    /// Of each class, by class id.
    pub per_class: Vec<ClassIntervals>,
}

/// Intervals of one class's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassIntervals {
    /// Of its precision; at least Wilson's.
    pub precision: Interval,
    /// Of its recall, over the samples that have rows of the class; at least Wilson's.
    pub recall: Option<Interval>,
    /// Of its F1, over the same samples.
    pub f1: Option<Interval>,
    /// Of its ROC AUC, over the samples that have rows of the class and of others.
    pub auc: Option<Interval>,
}

/// The figures of one sample.
struct Figures {
    accuracy: f64,
    macro_f1: f64,
    mcc: f64,
    mauc: Option<f64>,
    mean_average_precision: Option<f64>,
    thresholded_macro_f1: Option<f64>,
    /// Precision, recall and F1 of each class.
    classes: Vec<[f64; 3]>,
    /// Whether the sample has rows of the class.
    present: Vec<bool>,
    auc: Vec<Option<f64>>,
}

impl Figures {
    /// A figure of a class that the sample has rows of: without them it would be 0, which says nothing of the model.
    fn of_class(&self, class: usize, figure: usize) -> Option<f64> {
        self.present[class].then_some(self.classes[class][figure])
    }
}

/// Intervals of what is reported of `data`; `thresholds`, one a class, are applied as they are. `None` when no sample is asked for.
#[must_use]
pub fn intervals(data: &Labelled<'_>, thresholds: Option<&[f64]>, bootstrap: Bootstrap<'_>) -> Option<Intervals> {
    let sampler = Sampler::new(data, thresholds);
    let units = bootstrap.groups.map_or(data.rows(), |(_, ids)| ids.iter().max().map_or(0, |last| last + 1));
    let figures: Vec<Figures> = (0..bootstrap.resamples)
        .into_par_iter()
        .map(|resample| {
            let mut rng = SampleRng::new(bootstrap.seed, resample as u64, 0);
            let mut drawn = vec![0_u32; units];
            (0..units).for_each(|_| drawn[rng.below(units)] += 1);
            match bootstrap.groups {
                None => sampler.figures(&drawn),
                Some((_, ids)) => sampler.figures(&ids.iter().map(|&id| drawn[id]).collect::<Vec<_>>()),
            }
        })
        .collect();
    let over = |of: &dyn Fn(&Figures) -> f64| Interval::of_resamples(figures.iter().map(of).collect());
    let defined =
        |of: &dyn Fn(&Figures) -> Option<f64>| Interval::of_resamples(figures.iter().filter_map(of).collect());
    // the share of right rows among those that `of` takes
    let (truth, predicted) = (data.truth(), &sampler.predicted);
    let right = |of: &dyn Fn(usize) -> bool| {
        let rows = (0..data.rows()).filter(|&row| of(row)).map(|row| (row, truth[row] == predicted[row]));
        Proportion::among(rows, bootstrap.groups.map(|(_, ids)| ids))
    };
    let per_class = (0..data.scores().classes())
        .map(|c| {
            Some(ClassIntervals {
                precision: over(&|f| f.classes[c][0])?.or_wider(right(&|row| predicted[row] == c)),
                recall: defined(&|f| f.of_class(c, 1)).map(|i| i.or_wider(right(&|row| truth[row] == c))),
                f1: defined(&|f| f.of_class(c, 2)),
                auc: defined(&|f| f.auc[c]),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Intervals {
        level: LEVEL,
        resamples: bootstrap.resamples,
        seed: bootstrap.seed,
        group: bootstrap.groups.map(|(name, _)| name.to_owned()),
        units,
        accuracy: over(&|f| f.accuracy)?.or_wider(right(&|_| true)),
        macro_f1: over(&|f| f.macro_f1)?,
        mcc: over(&|f| f.mcc)?,
        mauc: defined(&|f| f.mauc),
        mean_average_precision: defined(&|f| f.mean_average_precision),
        thresholded_macro_f1: defined(&|f| f.thresholded_macro_f1),
        per_class,
    })
}

/// What does not change from sample to sample.
struct Sampler<'a> {
    truth: &'a [usize],
    predicted: Vec<usize>,
    classes: usize,
    /// Of each class: its rows by falling score.
    ranked: Vec<Ranked>,
    /// Of each class: the rows that reach its threshold.
    positive: Option<Vec<Vec<u32>>>,
}

/// Rows by falling score, and where the score falls: the ends of the ties.
struct Ranked {
    rows: Vec<u32>,
    ends: Vec<u32>,
}

impl Ranked {
    fn new(column: &[f64]) -> Ranked {
        let mut rows: Vec<u32> = (0..column.len() as u32).collect();
        rows.sort_by(|&a, &b| column[b as usize].total_cmp(&column[a as usize]));
        let ties = rows.chunk_by(|&a, &b| column[a as usize] == column[b as usize]);
        let ends = ties.scan(0, |end, tie| {
            *end += tie.len() as u32;
            Some(*end)
        });
        let ends = ends.collect();
        Ranked { rows, ends }
    }

    fn ties(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.rows[start as usize..end as usize])
    }
}

impl<'a> Sampler<'a> {
    fn new(data: &Labelled<'a>, thresholds: Option<&[f64]>) -> Self {
        let scores = data.scores();
        let columns: Vec<Vec<f64>> = (0..scores.classes()).map(|class| scores.column(class)).collect();
        let ranked = columns.par_iter().map(|column| Ranked::new(column)).collect();
        let positive = thresholds.map(|thresholds| {
            let reach = |(column, &t): (&Vec<f64>, &f64)| {
                (0..column.len() as u32).filter(|&row| column[row as usize] >= t).collect()
            };
            columns.iter().zip(thresholds).map(reach).collect()
        });
        Sampler { truth: data.truth(), predicted: scores.argmax(), classes: scores.classes(), ranked, positive }
    }

    /// The figures of the sample that holds each row as often as `times` says.
    fn figures(&self, times: &[u32]) -> Figures {
        let confusion = Confusion::weighted(self.truth, &self.predicted, times, self.classes);
        let tallies = confusion.tallies();
        let rankings: Vec<Option<Ranking>> = (0..self.classes).map(|class| self.ranking(class, times)).collect();
        let thresholded = self.positive.as_ref().map(|positive| {
            let tally = |(class, rows): (usize, &Vec<u32>)| {
                let mut tally = Tally { actual: tallies[class].actual, ..Tally::default() };
                for &row in rows {
                    let times = u64::from(times[row as usize]);
                    tally.predicted += times;
                    tally.true_positives += if self.truth[row as usize] == class { times } else { 0 };
                }
                tally
            };
            macro_average(&positive.iter().enumerate().map(tally).collect::<Vec<_>>()).f1
        });
        Figures {
            accuracy: confusion.accuracy(),
            macro_f1: macro_over_occurring(&tallies).f1,
            mcc: confusion.mcc(),
            mauc: mean(rankings.iter().flatten().map(|r| r.auc)),
            mean_average_precision: mean(rankings.iter().flatten().map(|r| r.average_precision)),
            thresholded_macro_f1: thresholded,
            classes: tallies.iter().map(|t| t.prf()).map(|p| [p.precision, p.recall, p.f1]).collect(),
            present: tallies.iter().map(|t| t.actual > 0).collect(),
            auc: rankings.iter().map(|r| r.map(|r| r.auc)).collect(),
        }
    }

    /// The ranking of a class in that sample.
    fn ranking(&self, class: usize, times: &[u32]) -> Option<Ranking> {
        Ranking::of(self.ranked[class].ties().map(|tie| {
            tie.iter().fold((0, 0), |(hits, misses), &row| {
                let times = u64::from(times[row as usize]);
                if self.truth[row as usize] == class { (hits + times, misses) } else { (hits, misses + times) }
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Scores;
    use crate::evaluation::metrics::ranking;

    fn random(rows: usize, classes: usize, seed: u64) -> (Scores, Vec<usize>) {
        let mut rng = SampleRng::new(seed, 0, 0);
        let truth: Vec<usize> = (0..rows).map(|_| rng.below(classes)).collect();
        // in tenths, so that there are ties
        let scores = (0..rows * classes)
            .map(|i| {
                ((rng.unit() + f64::from(u8::from(truth[i / classes] == i % classes)) * 0.4) * 10.0).round() / 10.0
            })
            .collect();
        (Scores::new(scores, classes).unwrap(), truth)
    }

    #[test]
    fn each_row_once_gives_the_figures_themselves() {
        let (scores, truth) = random(60, 4, 3);
        let data = Labelled::new(&scores, &truth).unwrap();
        let figures = Sampler::new(&data, None).figures(&[1; 60]);
        for class in 0..4 {
            let expected = ranking(&scores, &truth, class).unwrap();
            assert!((figures.auc[class].unwrap() - expected.auc).abs() < 1e-12);
        }
        let confusion = Confusion::new(&truth, &scores.argmax(), 4);
        assert_eq!((figures.accuracy, figures.mcc), (confusion.accuracy(), confusion.mcc()));
    }

    #[test]
    fn groups_are_drawn_whole() {
        // five groups of equal rows: their intervals are those of five rows, far wider than those of 500
        let classes = [0, 0, 0, 1, 1];
        let (mut values, mut ids, mut truth) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..500 {
            values.extend([0.6, 0.4]);
            ids.push(row / 100);
            truth.push(classes[row / 100]);
        }
        let scores = Scores::new(values, 2).unwrap();
        let data = Labelled::new(&scores, &truth).unwrap();
        let width = |groups| {
            let found = intervals(&data, None, Bootstrap { resamples: 400, seed: 1, groups }).unwrap();
            (found.accuracy.high - found.accuracy.low, found.units)
        };
        let (rows, whole) = (width(None), width(Some(("patient", &ids[..]))));
        assert_eq!((rows.1, whole.1), (500, 5));
        assert!(rows.0 < 0.1 && whole.0 > 0.5, "{rows:?} {whole:?}");
    }

    /// Of 300 simulated tests the share whose interval holds the true accuracy; 95 % are meant, and the percentile interval of 150 rows
    /// misses that by little.
    #[test]
    fn intervals_cover_what_they_promise() {
        let accuracy = 0.8;
        let mut covered = 0;
        for test in 0..300 {
            let mut rng = SampleRng::new(17, test, 1);
            let truth: Vec<usize> = (0..150).map(|_| rng.below(2)).collect();
            let values = truth.iter().flat_map(|&t| {
                let right = rng.chance(accuracy);
                let first = if (t == 0) == right { 0.9 } else { 0.1 };
                [first, 1.0 - first]
            });
            let scores = Scores::new(values.collect(), 2).unwrap();
            let data = Labelled::new(&scores, &truth).unwrap();
            let found =
                intervals(&data, None, Bootstrap { resamples: 300, seed: test, groups: None }).unwrap().accuracy;
            covered += u32::from(found.low <= accuracy && accuracy <= found.high);
        }
        // within four standard errors (1.3 %) of 94 %
        assert!((267..=297).contains(&covered), "{covered} of 300");
    }
}
