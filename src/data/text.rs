//! Text TSVs: `key \t JSON`, of which classification rows are supported.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tsv::{TsvReader, TsvWriter};
use crate::error::{Error, Result};

/// The only task that rows may name.
pub const TASK: &str = "classification";

/// The JSON of a classification row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRow {
    /// Class id: the 0-based line of the label file.
    pub class_id: u32,
    /// The text of the class, as the label file has it.
    pub class_name: String,
    /// The data set that the image is from; rows share positives within a source only.
    #[serde(default)]
    pub source: String,
    /// Always [`TASK`].
    #[serde(default = "task")]
    pub task: String,
}

fn task() -> String {
    TASK.to_owned()
}

impl ClassRow {
    /// A classification row.
    pub fn new(class_id: u32, class_name: impl Into<String>, source: impl Into<String>) -> ClassRow {
        ClassRow { class_id, class_name: class_name.into(), source: source.into(), task: task() }
    }

    /// Reads the JSON of one row.
    ///
    /// # Errors
    /// `Data`, without file and row: not a JSON object, a missing or wrong field, a row of captions or tags.
    pub fn parse(json: &str) -> Result<ClassRow> {
        let value: serde_json::Value =
            serde_json::from_str(json).map_err(|e| Error::data(format!("not valid JSON ({e})")))?;
        let object = value.as_object().ok_or_else(|| Error::data("not a JSON object"))?;
        if let Some(other) = ["captions", "tags", "queries"].into_iter().find(|k| object.contains_key(*k)) {
            return Err(Error::data(format!(
                "rows with '{other}' are not supported: only classification rows (class_id, class_name, source, task) are"
            )));
        }
        let row: ClassRow = serde_json::from_value(value).map_err(|e| Error::data(format!("not a class row ({e})")))?;
        if row.task != TASK {
            return Err(Error::data(format!("task '{}' is not supported: only '{TASK}' is", row.task)));
        }
        Ok(row)
    }

    /// The row as JSON on one line.
    ///
    /// # Errors
    /// `Internal`; cannot happen.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::internal("cannot write a class row").with_source(e))
    }
}

/// Reads every row of an open text TSV.
///
/// # Errors
/// `Data`, naming file, row and key.
pub fn read_class_rows(texts: &TsvReader) -> Result<Vec<ClassRow>> {
    let parse = |(index, row): (usize, Result<super::tsv::Row<'_>>)| {
        let row = row?;
        ClassRow::parse(row.value).map_err(|e| texts.error(index, format!("key '{}': {e}", row.key)))
    };
    texts.rows().enumerate().map(parse).collect()
}

/// Writes a text TSV and its `.lineidx`; returns the number of rows.
///
/// # Errors
/// `Data` for a key that cannot stand in a TSV; `Storage` or `NoSpace`.
pub fn write_class_rows<'a>(
    path: impl AsRef<Path>,
    rows: impl IntoIterator<Item = (&'a str, &'a ClassRow)>,
) -> Result<usize> {
    let mut writer = TsvWriter::create(path)?;
    for (key, row) in rows {
        writer.write(key, &row.to_json()?)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_writing_and_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.tsv");
        let rows = [ClassRow::new(1, "barrett's \"x\"", "set"), ClassRow::new(0, "ulcer", "set")];
        assert_eq!(write_class_rows(&path, [("a", &rows[0]), ("b", &rows[1])]).unwrap(), 2);
        assert_eq!(read_class_rows(&TsvReader::open(&path).unwrap()).unwrap(), rows);
        let first = std::fs::read_to_string(&path).unwrap();
        assert!(first.starts_with(
            "a\t{\"class_id\":1,\"class_name\":\"barrett's \\\"x\\\"\",\"source\":\"set\",\"task\":\"classification\"}\n"
        ));
    }

    #[test]
    fn wrong_rows_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.tsv");
        for (json, expected) in [
            ("{", "not valid JSON"),
            ("[1]", "not a JSON object"),
            (r#"{"class_id":-1,"class_name":"a"}"#, "not a class row"),
            (r#"{"class_id":1}"#, "class_name"),
            (r#"{"captions":["a"]}"#, "'captions' are not supported"),
            (r#"{"class_id":1,"class_name":"a","task":"other"}"#, "task 'other'"),
        ] {
            std::fs::write(&path, format!("k\t{json}\n")).unwrap();
            let error = read_class_rows(&TsvReader::open(&path).unwrap()).unwrap_err().to_string();
            assert!(error.contains("text.tsv' row 1: key 'k'") && error.contains(expected), "{error}");
        }
    }
}
