//! The images that a data set is made of, and what is known of each beside its pixels.

use crate::config::preparation::PrepareParameters;
use crate::config::split::SplitParameters;
use crate::data::{ImageFile, ImageMetadata, TextConstants, scan, tree};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The images, in the order of their keys.
pub(super) struct Images {
    pub(super) files: Vec<ImageFile>,
    /// Entries of the folder that are no images of a class.
    ignored: usize,
    /// How many more images the folder has.
    pub(super) unnamed: usize,
    described: Option<Described>,
}

/// What the CSV says of them.
struct Described {
    table: Table,
    /// The row of each image.
    rows: Vec<usize>,
}

/// A CSV, and where in it is what the parameters speak of.
pub(super) struct Table {
    metadata: ImageMetadata,
    /// The column whose values take the place of folders.
    label: Option<usize>,
    /// The column whose values are not to be divided.
    group: Option<usize>,
    /// Names and columns of the fields that text rows get.
    fields: Vec<(String, usize)>,
}

impl Table {
    /// Reads the CSV at `path`.
    ///
    /// # Errors
    /// Those of [`ImageMetadata::read`] and [`ImageMetadata::column`].
    pub(super) fn read(path: &Path, parameters: &PrepareParameters) -> Result<Table> {
        let metadata = ImageMetadata::read(path, &parameters.file_name_column)?;
        let column = |name: &String| metadata.column(name);
        let label = parameters.label_column.as_ref().map(column).transpose()?;
        let group = parameters.split.group_column.as_ref().map(column).transpose()?;
        let fields = parameters.fields.iter().map(|name| Ok((name.clone(), column(name)?))).collect::<Result<_>>()?;
        Ok(Table { metadata, label, group, fields })
    }
}

impl Images {
    /// Those in class folders; with a CSV, those that it names; with a column of labels, wherever they lie in the image folder. No image is read.
    ///
    /// # Errors
    /// Those of [`scan`], [`tree`] and [`ImageMetadata`].
    pub(super) fn find(folder: &Path, table: Option<Table>) -> Result<Images> {
        let Some(table) = table else {
            let (files, ignored) = in_class_folders(folder)?;
            return Ok(Images { files, ignored, unnamed: 0, described: None });
        };
        let find = if table.label.is_some() { in_any_folders } else { in_class_folders };
        let (files, ignored) = find(folder)?;
        let all = files.len();
        let (mut files, rows): (Vec<_>, Vec<_>) = table.metadata.select(files)?.into_iter().unzip();
        if files.is_empty() {
            return Err(Error::data(format!("{} names no image: it has no row", table.metadata.place(&[]))));
        }
        if let Some(label) = table.label {
            for (file, &row) in files.iter_mut().zip(&rows) {
                table.metadata.required(row, label)?.clone_into(&mut file.folder);
            }
        }
        let unnamed = all - files.len();
        Ok(Images { files, ignored, unnamed, described: Some(Described { table, rows }) })
    }

    /// Says what is left out.
    pub(super) fn warn(&self) {
        if self.ignored > 0 {
            let count = self.ignored;
            tracing::warn!(count, "entries of the image folder are no images of a class and are left out");
        }
        if self.unnamed > 0 {
            let count = self.unnamed;
            tracing::warn!(count, "images of the image folder have no row in image_metadata and are left out");
        }
    }

    /// Checks that every value of the column of labels has a label; with class folders there is nothing to check.
    ///
    /// # Errors
    /// `Config`, naming the line and not the value, which may be a patient's if the column is another one.
    pub(super) fn check_labels(&self, constants: &TextConstants) -> Result<()> {
        let Some(Described { table: Table { metadata, label: Some(_), .. }, rows }) = &self.described else {
            return Ok(());
        };
        let known = |file: &ImageFile| constants.folder_to_label.contains_key(&file.folder);
        let unknown = self.files.iter().zip(rows).filter(|(file, _)| !known(file)).map(|(_, &row)| row);
        let mut unknown: Vec<usize> = unknown.collect();
        unknown.sort_unstable();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::config(format!(
            "folder_to_label does not have the value of parameters.label_column in {}: add it, or remove the row",
            metadata.place(&unknown)
        )))
    }

    /// The fields that the text row of an image gets beside those of its class.
    pub(super) fn fields(&self, image: usize) -> Map<String, Value> {
        let Some(Described { table, rows }) = &self.described else { return Map::new() };
        let value = |column: usize| table.metadata.value(rows[image], column).map(Value::from);
        table.fields.iter().filter_map(|(name, column)| Some((name.clone(), value(*column)?))).collect()
    }

    /// What must not be divided, for each of the images `kept`; `None` when every image stands for itself.
    ///
    /// # Errors
    /// `Data`, naming the image, when its key does not say it; `Config` for a pattern that is none.
    pub(super) fn groups(&self, kept: &[usize], split: &SplitParameters) -> Result<Option<Vec<String>>> {
        if let Some(Described { table: Table { metadata, group: Some(column), .. }, rows }) = &self.described {
            let group = |&image: &usize| metadata.required(rows[image], *column).map(str::to_owned);
            return kept.iter().map(group).collect::<Result<_>>().map(Some);
        }
        let Some(pattern) = split.groups()? else { return Ok(None) };
        let group = |&image: &usize| {
            let key = &self.files[image].key;
            let found = pattern.captures(key).and_then(|c| c.get(1)).map(|m| m.as_str().to_owned());
            found.ok_or_else(|| {
                Error::data(format!(
                    "'{key}' does not match parameters.split.group_pattern '{}': rename the file or correct the pattern",
                    pattern.as_str()
                ))
            })
        };
        kept.iter().map(group).collect::<Result<_>>().map(Some)
    }
}

/// With how many entries are something else.
fn in_class_folders(folder: &Path) -> Result<(Vec<ImageFile>, usize)> {
    scan(folder).map(|found| (found.images, found.ignored))
}

/// The same, their labels still to be found.
fn in_any_folders(folder: &Path) -> Result<(Vec<ImageFile>, usize)> {
    let found = tree(folder)?;
    let file = |key: String| ImageFile { folder: String::new(), path: folder.join(&key), key };
    Ok((found.images.into_iter().map(file).collect(), found.ignored))
}
