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
    /// Reads both. The texts must be those of the images that were embedded, row for row; rows whose image was bad are left out.
    /// Every class must be one of `labels`.
    pub(super) fn read(folder: &Path, text_tsv: &Path, labels: &Labels) -> Result<LabelledEmbeddings> {
        let embeddings = embeddings::read(folder).context(|| format!("embeddings '{}'", folder.display()))?;
        let texts = TsvReader::open(text_tsv)?;
        let rows = read_class_rows(&texts)?;
        let table = &embeddings.table;
        let mut embedded = table.rows.iter().zip(&table.names).peekable();
        let mut bad = embeddings.bad.iter().peekable();
        let mut classes = Vec::with_capacity(table.len());
        for (index, row) in rows.iter().enumerate() {
            let key = texts.row(index)?.key;
            let place = index as u64 + 1;
            let found = embedded.next_if(|(at, _)| **at == place).map(|(_, name)| name);
            // of a bad row the key may be unknown
            let name = match found {
                Some(name) => Some(name),
                None => match bad.next_if(|bad| bad.row == place) {
                    Some(bad) => bad.key.as_ref(),
                    None => break,
                },
            };
            if let Some(name) = name.filter(|name| *name != key) {
                return Err(texts.error(
                    index,
                    format!("key '{key}', but the embedding of that row in '{}' is of key '{name}'", folder.display()),
                ));
            }
            if found.is_some() {
                check_class(row, labels).map_err(|fault| texts.error(index, format!("key '{key}': {fault}")))?;
                classes.push(row.class_id as usize);
            }
        }
        let images = table.len() + embeddings.bad.len();
        if rows.len() != images {
            let (texts_path, row) = (texts.path().display(), rows.len().min(images));
            let key = if row < rows.len() {
                format!("key '{}' ", texts.row(row)?.key)
            } else {
                let at = table.rows.iter().position(|&place| place == row as u64 + 1);
                at.map_or_else(String::new, |at| format!("key '{}' ", table.names[at]))
            };
            return Err(Error::data(format!(
                "row {}: {key}has no partner: '{texts_path}' has {} rows, '{}' has {images}; give the texts of the images that \
                 were embedded",
                row + 1,
                rows.len(),
                folder.display(),
            )));
        }
        if classes.len() != table.len() {
            let text = format!("'{}': rows and ledger do not fit each other: embed again", folder.display());
            return Err(Error::data(text));
        }
        if !embeddings.bad.is_empty() {
            tracing::warn!(
                bad = embeddings.bad.len(),
                rows = table.len(),
                "some images could not be embedded: their rows are left out"
            );
        }
        Ok(LabelledEmbeddings { embeddings, classes })
    }
}
