//! Whether an image is in two sets, by its key or by its content: what is measured on it in one was learned from it in the other.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use super::embeddings::Part;
use super::pairs::ImageTextPairs;
use crate::error::Result;

/// Bytes of a value that its hash is made of: enough to tell nearly all images apart.
const SAMPLE: usize = 64;

/// Images of one set that another one has too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// How many images of the set there are in the other.
    pub images: usize,
    /// The key of the first of them.
    pub key: String,
    /// The key that it has in the other set.
    pub other_key: String,
}

/// The encoded image of a row. Equal values have equal bytes; the hash reads the middle only.
#[derive(PartialEq, Eq)]
struct Value<'a>(&'a [u8]);

impl Hash for Value<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let from = (self.0.len() / 2).saturating_sub(SAMPLE / 2);
        let to = self.0.len().min(from + SAMPLE);
        (self.0.len(), &self.0[from..to]).hash(state);
    }
}

/// The images of `set` that are in `other` too, if any. Both files are gone through once; values are compared as a whole where sizes and
/// middles are the same.
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
    // of each image of the set the key that the other one has for it
    let mut found: Vec<(&str, Option<&str>)> = Vec::new();
    for (row, (key, content)) in set.enumerate() {
        keys.insert(key, row);
        if let Some(content) = content {
            contents.entry(content).or_default().push(row);
        }
        found.push((key, None));
    }
    for (key, content) in other {
        let alike = content.and_then(|content| contents.get(&content)).into_iter().flatten();
        for &row in keys.get(key).into_iter().chain(alike) {
            found[row].1.get_or_insert(key);
        }
    }
    let mut shared = found.iter().filter_map(|(key, other)| other.map(|other| (*key, other)));
    let (key, other_key) = shared.next()?;
    Some(Overlap { images: 1 + shared.count(), key: key.to_owned(), other_key: other_key.to_owned() })
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
        let found = |set: &[(&str, &str)]| overlap(rows(set), rows(&train)).map(|o| (o.images, o.key, o.other_key));
        let shared = |images, key: &str, other: &str| Some((images, key.to_owned(), other.to_owned()));
        assert_eq!(found(&[("x", "7"), ("y", "8")]), None);
        assert_eq!(found(&[("x", "7"), ("b", "8")]), shared(1, "b", "b"));
        assert_eq!(found(&[("x", "3"), ("y", "3"), ("z", "8")]), shared(2, "x", "c"));
        // an image that is found both ways counts once
        assert_eq!(found(&[("w", "9"), ("d", "4"), ("a", "2")]), shared(2, "d", "d"));
    }

    #[test]
    fn values_that_differ_outside_their_middle_are_not_alike() {
        let long = |end: char| format!("{}{end}", "v".repeat(500));
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
        assert_eq!(of_embeddings(&new, &old).map(|o| (o.images, o.key)), Some((1, "b".to_owned())));
        let renamed = part(&["e"], &["3"]);
        assert_eq!(of_embeddings(&renamed, &new).map(|o| o.other_key), Some("d".to_owned()));
        assert_eq!(of_embeddings(&renamed, &old), None);
        assert_eq!(of_embeddings(&part(&["b"], &[]), &new).map(|o| o.images), Some(1));
    }
}
