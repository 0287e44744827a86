//! Text TSVs: `key \t JSON`. A row holds a class, captions or tags; whatever needs a class reads [`ClassRow`]s only.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tsv::{Row, TsvReader, TsvWriter};
use crate::error::{Error, Result};
use crate::imaging::SampleRng;

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
    /// `Data`, without file and row: as [`TextRow::parse`], and for a row of captions or tags.
    pub fn parse(json: &str) -> Result<ClassRow> {
        match TextRow::parse(json)?.content {
            TextContent::Class(row) => Ok(row),
            other => Err(other.without_class()),
        }
    }
}

/// A classification row with what else is known of the image, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DescribedRow {
    /// The row.
    #[serde(flatten)]
    pub class: ClassRow,
    /// Further fields, none of which a row has already.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// What the text of a training image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextContent {
    /// The name of its class, in a prompt template.
    Class(ClassRow),
    /// One of these, as it is; never empty.
    Captions(Vec<String>),
    /// One of these, in a prompt template; never empty.
    Tags(Vec<String>),
}

impl TextContent {
    /// Why a row of captions or tags cannot serve where a class is needed.
    pub(super) fn without_class(&self) -> Error {
        let kind = match self {
            TextContent::Class(_) => "a class",
            TextContent::Captions(_) => "captions",
            TextContent::Tags(_) => "tags",
        };
        Error::data(format!(
            "a row of {kind} has no class, and only training takes it: give class_id, class_name, source and task"
        ))
    }
}

/// One row of a text TSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRow {
    /// Words that are put in front of the text; usually none.
    pub queries: Vec<String>,
    /// The text itself.
    pub content: TextContent,
}

impl TextRow {
    /// Reads the JSON of one row. Fields that no kind of row has are passed over.
    ///
    /// # Errors
    /// `Data`, without file and row: not a JSON object, no or more than one of class, captions and tags, a missing, empty
    /// or wrong field.
    pub fn parse(json: &str) -> Result<TextRow> {
        let value: Value = serde_json::from_str(json).map_err(|e| Error::data(format!("not valid JSON ({e})")))?;
        let object = value.as_object().ok_or_else(|| Error::data("not a JSON object"))?;
        let queries = match object.get("queries") {
            None => Vec::new(),
            Some(Value::Array(list)) if list.is_empty() => Vec::new(),
            Some(_) => texts(object, "queries")?,
        };
        let kinds: Vec<&str> =
            ["class_id", "captions", "tags"].into_iter().filter(|key| object.contains_key(*key)).collect();
        if let [one, other, ..] = kinds[..] {
            return Err(Error::data(format!("has both '{one}' and '{other}': keep one of them")));
        }
        let content = match kinds[..] {
            ["captions"] => TextContent::Captions(texts(object, "captions")?),
            ["tags"] => TextContent::Tags(texts(object, "tags")?),
            [] if !object.contains_key("class_name") => {
                return Err(Error::data("has none of 'class_id' with 'class_name', 'captions' and 'tags': give one"));
            }
            _ => TextContent::Class(class_row(value)?),
        };
        Ok(TextRow { queries, content })
    }

    /// The row's class, if it has one.
    #[must_use]
    pub fn class(&self) -> Option<&ClassRow> {
        match &self.content {
            TextContent::Class(row) => Some(row),
            TextContent::Captions(_) | TextContent::Tags(_) => None,
        }
    }

    /// What makes rows positives of each other in training: source and class id. `None` for captions and tags: each such
    /// row is a positive of itself alone.
    #[must_use]
    pub fn positive(&self) -> Option<(&str, u32)> {
        self.class().map(|row| (row.source.as_str(), row.class_id))
    }

    /// The text for one epoch. A class name stands in one of the `prompts` (templates with `{}`, at least one); of captions
    /// one is drawn, and of tags one that stands in one of the prompts, as in the original. Takes one number of the
    /// stream, for tags two.
    #[must_use]
    pub fn text(&self, prompts: &[String], rng: &mut SampleRng) -> String {
        let mut one_of = |texts: &[String]| texts.get(rng.below(texts.len())).cloned().unwrap_or_default();
        let text = match &self.content {
            TextContent::Class(row) => one_of(prompts).replace("{}", &row.class_name),
            TextContent::Captions(captions) => one_of(captions),
            TextContent::Tags(tags) => {
                let prompt = one_of(prompts);
                prompt.replace("{}", &one_of(tags))
            }
        };
        if self.queries.is_empty() { text } else { format!("{}, {text}", self.queries.join(" ")) }
    }
}

fn class_row(value: Value) -> Result<ClassRow> {
    let row: ClassRow = serde_json::from_value(value).map_err(|e| Error::data(format!("not a class row ({e})")))?;
    if row.task != TASK {
        return Err(Error::data(format!("task '{}' is not supported: only '{TASK}' is", row.task)));
    }
    Ok(row)
}

/// A text or a list of texts, none of them blank.
fn texts(object: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
    let found = match object.get(key) {
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(list)) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let texts = found.ok_or_else(|| Error::data(format!("'{key}' must be a text or a list of texts")))?;
    if texts.is_empty() || texts.iter().any(|text| text.trim().is_empty()) {
        return Err(Error::data(format!("'{key}' has no text, or an empty one: give a text or leave the row out")));
    }
    Ok(texts)
}

/// Reads every row of an open text TSV, whatever it holds.
///
/// # Errors
/// `Data`, naming file, row and key.
pub fn read_text_rows(texts: &TsvReader) -> Result<Vec<TextRow>> {
    read_rows(texts, TextRow::parse)
}

/// Reads every row of an open text TSV of classification rows.
///
/// # Errors
/// `Data`, naming file, row and key; also for a row of captions or tags.
pub fn read_class_rows(texts: &TsvReader) -> Result<Vec<ClassRow>> {
    read_rows(texts, ClassRow::parse)
}

fn read_rows<T>(texts: &TsvReader, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let parse = |(index, row): (usize, Result<Row<'_>>)| {
        let row = row?;
        parse(row.value).map_err(|e| texts.error(index, format!("key '{}': {e}", row.key)))
    };
    texts.rows().enumerate().map(parse).collect()
}

/// Writes a text TSV and its `.lineidx`; returns the number of rows.
///
/// # Errors
/// `Data` for a key that cannot stand in a TSV; `Storage` or `NoSpace`.
pub fn write_text_rows<'a>(
    path: impl AsRef<Path>,
    rows: impl IntoIterator<Item = (&'a str, impl Serialize)>,
) -> Result<usize> {
    let mut writer = TsvWriter::create(path)?;
    for (key, row) in rows {
        let json =
            serde_json::to_string(&row).map_err(|e| Error::internal("cannot write a text row").with_source(e))?;
        writer.write(key, &json)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_survive_writing_and_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.tsv");
        let rows = [ClassRow::new(1, "barrett's \"x\"", "set"), ClassRow::new(0, "ulcer", "set")];
        assert_eq!(write_text_rows(&path, [("a", &rows[0]), ("b", &rows[1])]).unwrap(), 2);
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
            (r#"{"class_name":"a"}"#, "class_id"),
            (r#"{"class_id":1,"class_name":"a","task":"other"}"#, "task 'other'"),
            ("{}", "has none of 'class_id'"),
            (r#"{"captions":["a"],"tags":"b"}"#, "has both 'captions' and 'tags'"),
            (r#"{"class_id":1,"class_name":"a","captions":["a"]}"#, "has both 'class_id' and 'captions'"),
            (r#"{"captions":[]}"#, "'captions' has no text"),
            (r#"{"captions":["a"," "]}"#, "'captions' has no text"),
            (r#"{"captions":["a",1]}"#, "'captions' must be a text or a list"),
            (r#"{"tags":null}"#, "'tags' must be a text or a list"),
            (r#"{"tags":"a","queries":3}"#, "'queries' must be a text or a list"),
        ] {
            std::fs::write(&path, format!("k\t{json}\n")).unwrap();
            let error = read_text_rows(&TsvReader::open(&path).unwrap()).unwrap_err().to_string();
            assert!(error.contains("text.tsv' row 1: key 'k'") && error.contains(expected), "{error}");
        }
        for json in [r#"{"captions":["a"]}"#, r#"{"tags":"a"}"#] {
            std::fs::write(&path, format!("k\t{json}\n")).unwrap();
            let reader = TsvReader::open(&path).unwrap();
            assert_eq!(read_text_rows(&reader).unwrap()[0].positive(), None);
            let error = read_class_rows(&reader).unwrap_err().to_string();
            assert!(error.contains("text.tsv' row 1: key 'k'") && error.contains("has no class"), "{error}");
        }
    }

    /// Every text that a row gives over many epochs.
    fn texts_of(json: &str, prompts: &[&str]) -> BTreeSet<String> {
        let prompts: Vec<String> = prompts.iter().map(|p| (*p).to_owned()).collect();
        let row = TextRow::parse(json).unwrap();
        (0..200).map(|epoch| row.text(&prompts, &mut SampleRng::new(5, epoch, 0))).collect()
    }

    fn set(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn texts_are_drawn_as_the_original_does() {
        let prompts = ["{}.", "shows {}"];
        let class = r#"{"class_id":1,"class_name":"a polyp","source":"s"}"#;
        assert_eq!(texts_of(class, &prompts), set(&["a polyp.", "shows a polyp"]));
        assert_eq!(texts_of(r#"{"captions":"One {} of two."}"#, &prompts), set(&["One {} of two."]));
        assert_eq!(texts_of(r#"{"captions":["x","y","z"]}"#, &prompts), set(&["x", "y", "z"]));
        let tags = r#"{"tags":["x","y"]}"#;
        assert_eq!(texts_of(tags, &prompts), set(&["x.", "shows x", "y.", "shows y"]));
        let asked = r#"{"tags":"x","queries":["what","is it"]}"#;
        assert_eq!(texts_of(asked, &["{}."]), set(&["what is it, x."]));
        assert_eq!(texts_of(r#"{"captions":"x","queries":[]}"#, &prompts), set(&["x"]));
        assert_eq!(texts_of(r#"{"captions":"x","queries":"why"}"#, &prompts), set(&["why, x"]));
    }

    #[test]
    fn only_classes_have_a_positive() {
        let row = TextRow::parse(r#"{"class_id":7,"class_name":"a","source":"s","queries":["q"]}"#).unwrap();
        assert_eq!((row.positive(), row.class().unwrap().class_id), (Some(("s", 7)), 7));
        assert!(TextRow::parse(r#"{"captions":"a"}"#).unwrap().class().is_none());
    }
}
