//! Label files: one text per line, the line number is the class id.

use std::collections::HashMap;
use std::path::Path;

use super::tsv::read_text;
use crate::error::{Error, Result};

/// The label texts of a data set or model, by class id. Never empty, no text twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    texts: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Labels {
    /// Labels from texts in the order of their class ids.
    ///
    /// # Errors
    /// `Data`, naming the 1-based line: no text at all, an empty text, a text that was there before, a line end in a text.
    pub fn new(texts: Vec<String>) -> Result<Labels> {
        if texts.is_empty() {
            return Err(Error::data("there are no labels: write one text per line"));
        }
        let mut ids = HashMap::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let line = index + 1;
            if text.trim().is_empty() {
                return Err(Error::data(format!("line {line}: the label is empty; write one text per line")));
            }
            if text.contains(['\n', '\r']) {
                return Err(Error::data(format!("line {line}: the label holds a line end")));
            }
            let id = u32::try_from(index).map_err(|_| Error::data("there are too many labels"))?;
            if let Some(first) = ids.insert(text.clone(), id) {
                return Err(Error::data(format!("line {line}: label '{text}' is on line {} already", first + 1)));
            }
        }
        Ok(Labels { texts, ids })
    }

    /// Reads a label file.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Data` as [`new`](Self::new), naming the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Labels> {
        let path = path.as_ref();
        let texts = read_text(path)?.lines().map(str::to_owned).collect();
        Labels::new(texts).map_err(|e| e.context(format!("label file '{}'", path.display())))
    }

    /// Writes a label file.
    ///
    /// # Errors
    /// `Storage` or `NoSpace`.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.texts.join("\n") + "\n").map_err(|e| Error::io("write", path, e))
    }

    /// Number of classes; at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The text of a class.
    #[must_use]
    pub fn get(&self, class_id: u32) -> Option<&str> {
        self.texts.get(class_id as usize).map(String::as_str)
    }

    /// The class with this very text.
    #[must_use]
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// All texts, in the order of their class ids.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_texts_and_ids() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.txt");
        let labels = Labels::new(vec!["b c".into(), "a".into()]).unwrap();
        labels.write(&path).unwrap();
        let read = Labels::read(&path).unwrap();
        assert_eq!((read.len(), read.get(0), read.id("a"), read.get(2)), (2, Some("b c"), Some(1), None));
        assert_eq!(read, labels);
    }

    #[test]
    fn wrong_files_are_named_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.txt");
        for (bytes, expected) in [
            (&b""[..], "no labels"),
            (b"a\n\nb\n", "line 2: the label is empty"),
            (b"a\nb\na\n", "line 3: label 'a' is on line 1"),
            (b"a\n\xff\n", "labels.txt"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Labels::read(&path).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Data);
            assert!(error.to_string().contains(expected) && error.to_string().contains("labels.txt"), "{error}");
        }
    }
}
