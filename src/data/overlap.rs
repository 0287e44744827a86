//! Whether an image is in two sets, by its key or by its content: what is measured on it in one was learned from it in the other.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use super::embeddings::Part;
use super::pairs::ImageTextPairs;
use crate::error::Result;

/// Bytes of a value that its hash is made of, in each of some places: enough to tell nearly all images apart.
const SAMPLE: usize = 32;
const SAMPLES: usize = 4;

/// Images of one set that another one has too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// How many images of the set have their content in the other.
    pub by_content: usize,
    /// How many others have only their key there: with another content, or nobody knows which.
    pub by_key: usize,
    /// The key of the first of them, one by content if there is any.
    pub key: String,
    /// The key that it has in the other set.
    pub other_key: String,
}

/// The encoded image of a row. Equal values have equal bytes; the hash reads a few places only.
#[derive(PartialEq, Eq)]
struct Value<'a>(&'a [u8]);

impl Hash for Value<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        // a part of the way, up to the end
        for part in 1..=SAMPLES {
            let to = self.0.len() * part / SAMPLES;
            self.0[to.saturating_sub(SAMPLE)..to].hash(state);
        }
    }
}

/// The images of `set` that are in `other` too, if any. Both files are gone through once; values are compared as a whole where sizes and
/// samples are the same.
///
/// # Errors
/// `Data`, naming file and row, when a row cannot be read.
pub fn of_pairs(set: &ImageTextPairs, other: &ImageTextPairs) -> Result<Option<Overlap>> {
    fn rows(pairs: &ImageTextPairs) -> Result<Vec<(&str, &[u8])>> {
        (0..pairs.len()).map(|row| pairs.encoded(row)).collect()
    }
    let (set, other) = (rows(set)?, rows(other)?);
    let values = |(key, value)| (key, Some(Value(value)));
    Ok(overlap(set.into_iter().map(values), other.into_iter().map(values)))
}

/// The embedded images of `set` that are in `other` too, if any: by key, and by SHA-256 where the embeddings have one.
#[must_use]
pub fn of_embeddings(set: &Part, other: &Part) -> Option<Overlap> {
    fn rows(part: &Part) -> impl Iterator<Item = (&str, Option<&str>)> {
        let hashes = part.hashes.iter().map(|hash| Some(hash.as_str()).filter(|hash| !hash.is_empty()));
        part.names.iter().map(String::as_str).zip(hashes.chain(std::iter::repeat(None)))
    }
    overlap(rows(set), rows(other))
}

fn overlap<'a, C: Hash + Eq>(
    set: impl Iterator<Item = (&'a str, Option<C>)>,
    other: impl Iterator<Item = (&'a str, Option<C>)>,
) -> Option<Overlap> {
    let mut keys = HashMap::new();
    let mut contents: HashMap<C, Vec<usize>> = HashMap::new();
    // of each image of the set the key of the first with its content in the other set, and whether its own key is there
    let mut found: Vec<(&str, Option<&str>, bool)> = Vec::new();
    for (row, (key, content)) in set.enumerate() {
        keys.insert(key, row);
        if let Some(content) = content {
            contents.entry(content).or_default().push(row);
        }
        found.push((key, None, false));
    }
    for (key, content) in other {
        for &row in content.and_then(|content| contents.get(&content)).into_iter().flatten() {
            found[row].1.get_or_insert(key);
        }
        if let Some(&row) = keys.get(key) {
            found[row].2 = true;
        }
    }
    let alike = || found.iter().filter_map(|&(key, other, _)| other.map(|other| (key, other)));
    let named_alike =
        || found.iter().filter(|(_, other, named)| other.is_none() && *named).map(|&(key, ..)| (key, key));
    let (key, other_key) = alike().next().or_else(|| named_alike().next())?;
    Some(Overlap {
        by_content: alike().count(),
        by_key: named_alike().count(),
        key: key.to_owned(),
        other_key: other_key.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<'a>(rows: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, Option<Value<'a>>)> {
        rows.iter().map(|(key, value)| (*key, Some(Value(value.as_bytes()))))
    }

    #[test]
    fn an_image_is_found_by_its_key_and_by_its_content() {
        let train = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];
        let found = |set: &[(&str, &str)]| {
            overlap(rows(set), rows(&train)).map(|o| ((o.by_content, o.by_key), o.key, o.other_key))
        };
        let shared = |counts, key: &str, other: &str| Some((counts, key.to_owned(), other.to_owned()));
        assert_eq!(found(&[("x", "7"), ("y", "8")]), None);
        assert_eq!(found(&[("x", "7"), ("b", "8")]), shared((0, 1), "b", "b"));
        assert_eq!(found(&[("x", "3"), ("y", "3"), ("z", "8")]), shared((2, 0), "x", "c"));
        // what both have is told before what is only named alike, and an image that is found both ways counts once
        assert_eq!(found(&[("b", "9"), ("d", "4"), ("a", "2")]), shared((2, 1), "d", "d"));
    }

    #[test]
    fn values_that_differ_where_the_hash_does_not_look_are_not_alike() {
        let long = |one: char| format!("{}{one}{}", "v".repeat(50), "v".repeat(450));
        let (a, b, same) = (long('a'), long('b'), long('a'));
        assert_eq!(overlap(rows(&[("x", &a)]), rows(&[("y", &b)])), None);
        assert!(overlap(rows(&[("x", &a)]), rows(&[("y", &same)])).is_some());
    }

    #[test]
    fn embeddings_without_hashes_are_compared_by_key() {
        let part = |names: &[&str], hashes: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect();
            Part { names: texts(names), hashes: texts(hashes), ..Part::default() }
        };
        let (old, new) = (part(&["a", "b"], &["", ""]), part(&["c", "b", "d"], &["1", "2", "3"]));
        assert_eq!(of_embeddings(&new, &old).map(|o| (o.by_key, o.key)), Some((1, "b".to_owned())));
        let renamed = part(&["e"], &["3"]);
        assert_eq!(of_embeddings(&renamed, &new).map(|o| o.other_key), Some("d".to_owned()));
        assert_eq!(of_embeddings(&renamed, &old), None);
        assert_eq!(of_embeddings(&part(&["b"], &[]), &new).map(|o| (o.by_content, o.by_key)), Some((0, 1)));
    }
}
