//! Further fields of text rows: what a row says of its image beside the class, such as sex, site or patient.

use serde_json::Value;

use super::tsv::TsvReader;
use crate::error::Result;

/// The value of `name` in each of the rows `wanted` (from 0) of an open text TSV, as text; `None` where a row has none, null or a
/// blank text.
///
/// # Errors
/// `Data`, naming file, row and key, for a value that is neither text nor number nor truth value.
pub fn read_field(texts: &TsvReader, wanted: impl Iterator<Item = usize>, name: &str) -> Result<Vec<Option<String>>> {
    wanted
        .map(|index| {
            let row = texts.row(index)?;
            let value: Value = serde_json::from_str(row.value)
                .map_err(|e| texts.error(index, format!("key '{}': not valid JSON ({e})", row.key)))?;
            match value.get(name) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
                Some(_) => {
                    let what = format!("key '{}': '{name}' must be a text or a number", row.key);
                    Err(texts.error(index, what))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_text_and_lists_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.tsv");
        std::fs::write(&path, "a\t{\"x\":\"m\"}\nb\t{\"x\":7}\nc\t{\"x\":null}\nd\t{\"x\":\" \"}\ne\t{\"x\":[1]}\n")
            .unwrap();
        let texts = TsvReader::open(&path).unwrap();
        let found = read_field(&texts, [0, 1, 3, 2].into_iter(), "x").unwrap();
        assert_eq!(found, [Some("m".to_owned()), Some("7".to_owned()), None, None]);
        let error = read_field(&texts, 0..5, "x").unwrap_err().to_string();
        assert!(error.contains("row 5: key 'e'") && error.contains("'x'"), "{error}");
    }
}
