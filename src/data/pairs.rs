//! An image TSV and a text TSV that belong together: same keys, same order, classes that the labels know.
//!
//! Sets that are evaluated or searched hold classification rows only; a training set may hold captions and tags among them.

use std::path::Path;

use rayon::prelude::*;

use super::labels::Labels;
use super::text::{ClassRow, TextRow, read_text_rows};
use super::tsv::TsvReader;
use crate::error::{Context, Error, Result};
use crate::imaging::check_image;

/// Paired rows of images and texts, checked against each other and against the labels. Shared freely between threads.
#[derive(Debug)]
pub struct ImageTextPairs {
    images: TsvReader,
    texts: TsvReader,
    rows: Vec<TextRow>,
    counts: Vec<usize>,
}

impl ImageTextPairs {
    /// Opens both files and checks every key and class; images are not decoded here.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when a file cannot be read; `Data`, naming file, row and key: damaged rows, duplicate keys,
    /// keys that differ between the files, another number of rows, a class id that the labels have not, a class name
    /// that is not the label of its id, a row of captions or tags, no row at all.
    pub fn open(image_tsv: impl AsRef<Path>, text_tsv: impl AsRef<Path>, labels: &Labels) -> Result<ImageTextPairs> {
        let pairs = ImageTextPairs::open_training(image_tsv, text_tsv, labels)?;
        pairs.class_ids()?;
        Ok(pairs)
    }

    /// The same for a training set, which may hold rows of captions and tags.
    ///
    /// # Errors
    /// As [`open`](Self::open), without that of captions and tags.
    pub fn open_training(
        image_tsv: impl AsRef<Path>,
        text_tsv: impl AsRef<Path>,
        labels: &Labels,
    ) -> Result<ImageTextPairs> {
        let images = TsvReader::open(image_tsv)?;
        let texts = TsvReader::open(text_tsv)?;
        if images.is_empty() {
            return Err(Error::data(format!("'{}' has no rows", images.path().display())));
        }
        check_keys(&images, &texts)?;
        let rows = read_text_rows(&texts)?;
        let mut counts = vec![0; labels.len()];
        for (index, row) in rows.iter().enumerate() {
            let Some(row) = row.class() else { continue };
            check_class(row, labels).map_err(|message| at_text(&texts, index, &message))?;
            counts[row.class_id as usize] += 1;
        }
        Ok(ImageTextPairs { images, texts, rows, counts })
    }

    /// Number of pairs; at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The image TSV's path.
    #[must_use]
    pub fn image_path(&self) -> &Path {
        self.images.path()
    }

    /// The text TSV's path.
    #[must_use]
    pub fn text_path(&self) -> &Path {
        self.texts.path()
    }

    /// The key of a pair.
    ///
    /// # Errors
    /// `Data` when there is no such pair.
    pub fn key(&self, index: usize) -> Result<&str> {
        Ok(self.images.row(index)?.key)
    }

    /// The key and the encoded image (JPEG bytes) of a pair.
    ///
    /// # Errors
    /// `Data`, naming file, row and key.
    pub fn image(&self, index: usize) -> Result<(String, Vec<u8>)> {
        self.images.decode_image(index)
    }

    /// The key and the value of an image as it stands in the file, base64.
    ///
    /// # Errors
    /// `Data`, naming file and row.
    pub(super) fn encoded(&self, index: usize) -> Result<(&str, &[u8])> {
        self.images.split(index)
    }

    /// The text rows, in the order of the files.
    #[must_use]
    pub fn rows(&self) -> &[TextRow] {
        &self.rows
    }

    /// The class id of every row, in the order of the files.
    ///
    /// # Errors
    /// `Data`, naming file, row and key of the first row of captions or tags.
    pub fn class_ids(&self) -> Result<Vec<u32>> {
        let class_id = |(index, row): (usize, &TextRow)| match row.class() {
            Some(row) => Ok(row.class_id),
            None => Err(at_text(&self.texts, index, &row.content.without_class().to_string())),
        };
        self.rows.iter().enumerate().map(class_id).collect()
    }

    /// Whether every row has a class: no captions, no tags.
    #[must_use]
    pub fn all_classified(&self) -> bool {
        self.rows.iter().all(|row| row.class().is_some())
    }

    /// Number of pairs of each class, captions and tags not among them; as many as there are labels.
    #[must_use]
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The class ids that have no pair.
    #[must_use]
    pub fn empty_classes(&self) -> Vec<u32> {
        (0..).zip(&self.counts).filter(|&(_, &count)| count == 0).map(|(id, _)| id).collect()
    }

    /// Fails when a label has no pair in a set of nothing but classes, where that is a mistake. Captions and tags may be all
    /// that a training set has to say about a label: beside them a label without a pair is only logged.
    ///
    /// # Errors
    /// `Data`, naming the file and the labels.
    pub fn require_every_class(&self, labels: &Labels) -> Result<()> {
        let empty = self.empty_classes();
        if empty.is_empty() {
            return Ok(());
        }
        if !self.all_classified() {
            tracing::warn!(
                file = %self.texts.path().display(),
                labels = empty.len(),
                "labels without a classification row: only captions and tags can teach them"
            );
            return Ok(());
        }
        let names: Vec<String> =
            empty.iter().map(|&id| format!("{id} ('{}')", labels.get(id).unwrap_or_default())).collect();
        Err(Error::data(format!(
            "'{}' has no row of class {}: add images or remove the label",
            self.texts.path().display(),
            names.join(", ")
        )))
    }

    /// Checks the base64 and the header of every image, on all cores: cheap next to what follows.
    ///
    /// # Errors
    /// `Data`, naming file, row and key of the first damaged image.
    pub fn validate_images(&self) -> Result<()> {
        let images = &self.images;
        let check = |index| {
            let (key, bytes) = images.decode_image(index)?;
            check_image(&bytes).map(drop).context(|| locate(images, index, &key))
        };
        // the first in file order, so that the message is the same whichever thread is faster
        (0..images.len()).into_par_iter().find_map_first(|index| check(index).err()).map_or(Ok(()), Err)
    }

    /// How messages about a pair's image begin: file, row and key.
    #[must_use]
    pub fn locate(&self, index: usize, key: &str) -> String {
        locate(&self.images, index, key)
    }
}

fn locate(images: &TsvReader, index: usize, key: &str) -> String {
    format!("'{}' row {}: key '{key}'", images.path().display(), index + 1)
}

fn at_text(texts: &TsvReader, index: usize, message: &str) -> Error {
    match texts.row(index) {
        Ok(row) => texts.error(index, format!("key '{}': {message}", row.key)),
        Err(error) => error,
    }
}

fn check_keys(images: &TsvReader, texts: &TsvReader) -> Result<()> {
    let (image_keys, text_keys) = (images.keys()?, texts.keys()?);
    if let Some(index) = image_keys.iter().zip(&text_keys).position(|(a, b)| a != b) {
        return Err(Error::data(format!(
            "row {}: '{}' has key '{}' but '{}' has key '{}'; both files must hold the same keys in the same order",
            index + 1,
            images.path().display(),
            image_keys[index],
            texts.path().display(),
            text_keys[index]
        )));
    }
    if image_keys.len() == text_keys.len() {
        return Ok(());
    }
    let (longer, keys, shorter) =
        if image_keys.len() > text_keys.len() { (images, &image_keys, texts) } else { (texts, &text_keys, images) };
    Err(longer.error(
        shorter.len(),
        format!(
            "key '{}' has no partner: '{}' has {} rows only",
            keys[shorter.len()],
            shorter.path().display(),
            shorter.len()
        ),
    ))
}

/// Whether the row's class is one of `labels`, under its name.
///
/// # Errors
/// What is wrong, without the row's place.
pub fn check_class(row: &ClassRow, labels: &Labels) -> std::result::Result<(), String> {
    let id = row.class_id;
    let Some(label) = labels.get(id) else {
        return Err(format!("class_id {id} is out of range: the label file has {} lines", labels.len()));
    };
    if label == row.class_name {
        return Ok(());
    }
    Err(format!("class_name '{}' is not the label of class_id {id} ('{label}')", row.class_name))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::text::write_text_rows;
    use super::super::tsv::TsvWriter;
    use super::*;
    use crate::imaging::{RgbImage, encode_jpeg};

    struct Files {
        _folder: tempfile::TempDir,
        images: PathBuf,
        texts: PathBuf,
    }

    fn files(image_keys: &[&str], rows: &[(&str, u32, &str)]) -> Files {
        let jpeg = encode_jpeg(&RgbImage::new(2, 2, vec![9; 12]).unwrap(), 75).unwrap();
        files_with(image_keys, rows, &jpeg)
    }

    fn files_with(image_keys: &[&str], rows: &[(&str, u32, &str)], jpeg: &[u8]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let (images, texts) = (folder.path().join("images.tsv"), folder.path().join("text.tsv"));
        let mut writer = TsvWriter::create(&images).unwrap();
        image_keys.iter().for_each(|key| writer.write_image(key, jpeg).unwrap());
        writer.finish().unwrap();
        let rows: Vec<_> = rows.iter().map(|&(key, id, name)| (key, ClassRow::new(id, name, "s"))).collect();
        write_text_rows(&texts, rows.iter().map(|(key, row)| (*key, row))).unwrap();
        Files { _folder: folder, images, texts }
    }

    fn labels() -> Labels {
        Labels::new(vec!["zero".into(), "one".into(), "two".into()]).unwrap()
    }

    fn failure(files: &Files) -> String {
        ImageTextPairs::open(&files.images, &files.texts, &labels()).unwrap_err().to_string()
    }

    #[test]
    fn good_files_give_rows_counts_and_empty_classes() {
        let files = files(&["a", "b", "c"], &[("a", 0, "zero"), ("b", 2, "two"), ("c", 0, "zero")]);
        let pairs = ImageTextPairs::open(&files.images, &files.texts, &labels()).unwrap();
        assert_eq!((pairs.len(), pairs.counts(), pairs.class_ids().unwrap()), (3, &[2, 0, 1][..], vec![0, 2, 0]));
        assert_eq!(pairs.empty_classes(), [1]);
        assert!(pairs.require_every_class(&labels()).unwrap_err().to_string().contains("class 1 ('one')"));
        assert_eq!(pairs.key(1).unwrap(), "b");
        pairs.validate_images().unwrap();
    }

    #[test]
    fn training_sets_may_hold_captions_and_tags() {
        let files = files(&["a", "b", "c"], &[]);
        std::fs::remove_file(files.texts.with_extension("lineidx")).unwrap();
        let class = serde_json::to_string(&ClassRow::new(2, "two", "s")).unwrap();
        std::fs::write(&files.texts, format!("a\t{class}\nb\t{{\"captions\":[\"x\"]}}\nc\t{{\"tags\":\"y\"}}\n"))
            .unwrap();
        let pairs = ImageTextPairs::open_training(&files.images, &files.texts, &labels()).unwrap();
        assert_eq!((pairs.len(), pairs.counts(), pairs.all_classified()), (3, &[0, 0, 1][..], false));
        pairs.require_every_class(&labels()).unwrap();
        let positives: Vec<_> = pairs.rows().iter().map(TextRow::positive).collect();
        assert_eq!(positives, [Some(("s", 2)), None, None]);
        for message in [failure(&files), pairs.class_ids().unwrap_err().to_string()] {
            assert!(message.contains("text.tsv' row 2: key 'b': a row of captions has no class"), "{message}");
        }
        std::fs::write(&files.texts, "a\t{\"tags\":1}\nb\t{\"tags\":\"y\"}\nc\t{\"tags\":\"y\"}\n").unwrap();
        let error = ImageTextPairs::open_training(&files.images, &files.texts, &labels()).unwrap_err().to_string();
        assert!(error.contains("text.tsv' row 1: key 'a': 'tags' must be"), "{error}");
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let rows = [("a", 0, "zero"), ("b", 1, "one")];
        let message = failure(&files(&["a", "x"], &rows));
        assert!(message.contains("row 2") && message.contains("'x'") && message.contains("'b'"), "{message}");
        let message = failure(&files(&["a", "b", "c"], &rows));
        assert!(message.contains("images.tsv' row 3: key 'c' has no partner"), "{message}");
        let message = failure(&files(&["a"], &rows));
        assert!(message.contains("text.tsv' row 2: key 'b' has no partner"), "{message}");
        let message = failure(&files(&["a"], &[("a", 3, "three")]));
        assert!(message.contains("text.tsv' row 1: key 'a': class_id 3 is out of range"), "{message}");
        let message = failure(&files(&["a"], &[("a", 1, "zero")]));
        assert!(message.contains("class_name 'zero' is not the label of class_id 1 ('one')"), "{message}");
        assert!(failure(&files(&[], &[])).contains("no rows"));
    }

    #[test]
    fn damaged_images_are_found_before_the_work() {
        let jpeg = encode_jpeg(&RgbImage::new(9, 9, vec![200; 243]).unwrap(), 75).unwrap();
        let files = files_with(&["a"], &[("a", 0, "zero")], &jpeg[..jpeg.len() - 9]);
        let pairs = ImageTextPairs::open(&files.images, &files.texts, &labels()).unwrap();
        let message = pairs.validate_images().unwrap_err().to_string();
        assert!(message.contains("images.tsv' row 1: key 'a'") && message.contains("truncated"), "{message}");
    }
}
