//! Embeddings and the classes of their rows.

use crate::data::embeddings::{self, Embeddings};
use crate::data::pairs::check_class;
use crate::data::{Labels, TsvReader, read_class_rows};
use crate::error::{Context, Error, Result};
use std::path::Path;

/// The embeddings of a folder with the class of each row.
#[derive(Debug)]
pub(super) struct LabelledEmbeddings {
    pub(super) embeddings: Embeddings,
    pub(super) classes: Vec<usize>,
}

impl LabelledEmbeddings {
    /// Reads both; the keys must be the same in the same order, and every class one of `labels`.
    pub(super) fn read(folder: &Path, text_tsv: &Path, labels: &Labels) -> Result<LabelledEmbeddings> {
        let embeddings = embeddings::read(folder).context(|| format!("embeddings '{}'", folder.display()))?;
        let texts = TsvReader::open(text_tsv)?;
        let rows = read_class_rows(&texts)?;
        let mut classes = Vec::with_capacity(rows.len());
        for (index, (row, name)) in rows.iter().zip(&embeddings.names).enumerate() {
            let key = texts.row(index)?.key;
            if key != name {
                return Err(texts.error(
                    index,
                    format!("key '{key}', but the embedding of that row in '{}' is of key '{name}'", folder.display()),
                ));
            }
            check_class(row, labels).map_err(|fault| texts.error(index, format!("key '{key}': {fault}")))?;
            classes.push(row.class_id as usize);
        }
        if rows.len() != embeddings.rows() {
            let (texts_path, row) = (texts.path().display(), rows.len().min(embeddings.rows()));
            let key =
                embeddings.names.get(row).map_or_else(|| texts.row(row).map(|r| r.key), |name| Ok(name.as_str()))?;
            return Err(Error::data(format!(
                "row {}: key '{key}' has no partner: '{texts_path}' has {} rows, '{}' has {}; give the texts of the images that \
                 were embedded",
                row + 1,
                rows.len(),
                folder.display(),
                embeddings.rows()
            )));
        }
        Ok(LabelledEmbeddings { embeddings, classes })
    }
}
