//! A split that keeps groups together, such as all images of one patient.

use super::check_fractions;
use crate::error::{Error, Result};
use crate::imaging::SampleRng;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Sets these draws apart from other uses of the same seed.
const STREAM: u64 = 0x0047_524f_5550;

/// Splits rows into parts of about the given `fractions`, of all rows and of each class, without dividing a group. Returns the row
/// indices of each part, ascending; every class is in every part. Depends on the names of the groups, not on their order. `labels` are
/// the texts of the classes, for errors.
///
/// # Errors
/// `Config` as [`super::stratified_split`]; `Data` naming a class that too few groups have.
pub fn grouped_split(
    class_ids: &[u32],
    groups: &[String],
    fractions: &[f64],
    (labels, seed): (&[String], u64),
) -> Result<Vec<Vec<usize>>> {
    check_fractions(fractions)?;
    let classes = class_ids.iter().max().map_or(0, |&c| c as usize + 1);
    let mut by_name: BTreeMap<&str, Group> = BTreeMap::new();
    for (row, (&class, name)) in class_ids.iter().zip(groups).enumerate() {
        let group = by_name.entry(name).or_insert_with(|| Group { rows: Vec::new(), counts: BTreeMap::new() });
        group.rows.push(row);
        *group.counts.entry(class as usize).or_insert(0) += 1;
    }
    let mut groups: Vec<Group> = by_name.into_values().collect();
    SampleRng::new(seed, STREAM, 0).shuffle(&mut groups);
    // large ones first, while there is room to make up for them; the sort keeps the order of equals
    groups.sort_by_key(|group| Reverse(group.rows.len()));
    let mut plan = Plan::new(&groups, fractions, classes);
    for group in 0..groups.len() {
        plan.place(group);
    }
    plan.fill(labels)?;
    let mut parts = vec![Vec::new(); fractions.len()];
    for (group, part) in groups.iter().zip(&plan.part_of) {
        parts[*part].extend(&group.rows);
    }
    parts.iter_mut().for_each(|part| part.sort_unstable());
    Ok(parts)
}

struct Group {
    rows: Vec<usize>,
    /// Rows by class.
    counts: BTreeMap<usize, usize>,
}

/// Which part each group goes to, and what that comes to.
struct Plan<'g> {
    groups: &'g [Group],
    part_of: Vec<usize>,
    /// Rows by part and class.
    have: Vec<Vec<usize>>,
    /// The same as it should be.
    want: Vec<Vec<f64>>,
    totals: Vec<usize>,
}

impl<'g> Plan<'g> {
    fn new(groups: &'g [Group], fractions: &[f64], classes: usize) -> Plan<'g> {
        let mut totals = vec![0; classes];
        for (class, count) in groups.iter().flat_map(|g| &g.counts) {
            totals[*class] += count;
        }
        let want = fractions.iter().map(|f| totals.iter().map(|&t| f * t as f64).collect()).collect();
        let have = vec![vec![0; classes]; fractions.len()];
        Plan { groups, part_of: Vec::with_capacity(groups.len()), have, want, totals }
    }

    /// Puts the next group where it brings the shares of its classes closest to what they should be.
    fn place(&mut self, group: usize) {
        let counts = &self.groups[group].counts;
        let cost = |part: usize| -> f64 {
            let of_class = |(&class, &count): (&usize, &usize)| {
                let over = self.have[part][class] as f64 - self.want[part][class];
                let count = count as f64;
                // how much the square of the difference grows
                count * (2.0 * over + count) / self.totals[class] as f64
            };
            counts.iter().map(of_class).sum()
        };
        let costs: Vec<f64> = (0..self.want.len()).map(cost).collect();
        let best = (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or_default();
        for (&class, &count) in counts {
            self.have[best][class] += count;
        }
        self.part_of.push(best);
    }

    /// Gives every part a group of every class, from the part that has most of it.
    fn fill(&mut self, labels: &[String]) -> Result<()> {
        // each move fills a gap; a small number of them opens another one
        for _ in 0..self.groups.len() * self.want.len() {
            let gap = (0..self.want.len())
                .flat_map(|part| (0..self.totals.len()).map(move |class| (part, class)))
                .find(|&(part, class)| self.totals[class] > 0 && self.have[part][class] == 0);
            let Some((part, class)) = gap else { return Ok(()) };
            let movable = |&group: &usize| {
                let from = self.part_of[group];
                let counts = &self.groups[group].counts;
                from != part && counts.contains_key(&class) && counts.iter().all(|(&c, &n)| self.have[from][c] > n)
            };
            let smallest = (0..self.groups.len()).filter(movable).min_by_key(|&g| self.groups[g].rows.len());
            let Some(group) = smallest else { return Err(self.too_few(class, labels)) };
            let from = std::mem::replace(&mut self.part_of[group], part);
            for (&c, &n) in &self.groups[group].counts {
                self.have[from][c] -= n;
                self.have[part][c] += n;
            }
        }
        Err(Error::data(
            "no split was found that has every class in every part without dividing a group: try another seed, or add groups",
        ))
    }

    fn too_few(&self, class: usize, labels: &[String]) -> Error {
        let groups = self.groups.iter().filter(|g| g.counts.contains_key(&class)).count();
        Error::data(format!(
            "class '{}' has images of {groups} group{}, too few to be in {} parts: add groups or leave the class out",
            labels[class],
            if groups == 1 { "" } else { "s" },
            self.want.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const FRACTIONS: [f64; 3] = [0.6, 0.2, 0.2];

    fn split(ids: &[u32], groups: &[String], seed: u64) -> Result<Vec<Vec<usize>>> {
        let labels = ["a", "b", "c"].map(str::to_owned);
        grouped_split(ids, groups, &FRACTIONS, (&labels, seed))
    }

    fn rows(count: usize) -> (Vec<u32>, Vec<String>) {
        // groups of 1 to 7 rows, of which each has one class or two
        let group = |i: usize| (i * i / 9) % (count / 4);
        (
            (0..count).map(|i| ((group(i) + i % 2) % 3) as u32).collect(),
            (0..count).map(|i| format!("P{}", group(i))).collect(),
        )
    }

    #[test]
    fn groups_stay_together_and_shares_are_kept() {
        let (ids, groups) = rows(600);
        let parts = split(&ids, &groups, 42).unwrap();
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..600).collect::<Vec<_>>());
        let names: Vec<HashSet<&String>> = parts.iter().map(|p| p.iter().map(|&r| &groups[r]).collect()).collect();
        assert!(names[0].is_disjoint(&names[1]) && names[0].is_disjoint(&names[2]) && names[1].is_disjoint(&names[2]));
        for class in 0..3 {
            let total = ids.iter().filter(|&&id| id == class).count() as f64;
            for (part, fraction) in parts.iter().zip(FRACTIONS) {
                let share = part.iter().filter(|&&r| ids[r] == class).count() as f64 / total;
                assert!((share - fraction).abs() < 0.06, "class {class}: {share} instead of {fraction}");
            }
        }
    }

    #[test]
    fn the_seed_changes_a_split_and_the_order_of_rows_does_not() {
        let (ids, groups) = rows(300);
        assert_eq!(split_of(1), split_of(1));
        assert_ne!(split_of(1), split_of(2));
        let (ids, groups): (Vec<u32>, Vec<String>) = ids.into_iter().rev().zip(groups.into_iter().rev()).unzip();
        let reversed = split(&ids, &groups, 1).unwrap();
        let names = |part: &[usize], groups: &[String]| part.iter().map(|&r| groups[r].clone()).collect::<HashSet<_>>();
        let (_, forward) = rows(300);
        assert_eq!(names(&reversed[2], &groups), names(&split_of(1)[2], &forward));
    }

    fn split_of(seed: u64) -> Vec<Vec<usize>> {
        let (ids, groups) = rows(300);
        split(&ids, &groups, seed).unwrap()
    }

    #[test]
    fn rare_classes_are_in_every_part_or_named() {
        let ids: Vec<u32> = (0..43).map(|i| u32::from(i >= 40)).collect();
        let mut groups: Vec<String> = (0..43).map(|i| format!("P{i}")).collect();
        let parts = split(&ids, &groups, 3).unwrap();
        assert!(parts.iter().all(|part| part.iter().any(|&r| ids[r] == 1)));
        groups[42] = "P41".to_owned();
        let error = split(&ids, &groups, 3).unwrap_err().to_string();
        assert!(error.contains("class 'b' has images of 2 groups"), "{error}");
    }
}
