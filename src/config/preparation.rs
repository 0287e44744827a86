//! The parameters of Prepare.

use super::parameters::in_range;
use super::split::SplitParameters;
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of Prepare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareParameters {
    /// The text of an image; `{label}` and `{view}` come from text_constants.
    pub text_template: String,
    /// Images are resized to this square, in pixels.
    pub image_size: u32,
    /// JPEG quality of the standardised images, 1 to 100.
    pub jpeg_quality: u8,
    /// Keep only the classes with the most images; 0 keeps all.
    pub keep_most_frequent: usize,
    /// How rows are divided.
    pub split: SplitParameters,
    /// The `source` field of the text rows; training positives share source and class.
    pub source: String,
    /// The column of image_metadata that names the images.
    pub file_name_column: String,
    /// The column of image_metadata whose value takes the place of the image's folder.
    pub label_column: Option<String>,
    /// The columns of image_metadata that the text rows get as fields; no other column is published.
    pub fields: Vec<String>,
}

impl Default for PrepareParameters {
    fn default() -> Self {
        PrepareParameters {
            text_template: "{label}".to_owned(),
            image_size: 512,
            jpeg_quality: 95,
            keep_most_frequent: 0,
            split: SplitParameters::default(),
            source: "medtune".to_owned(),
            file_name_column: FILE_NAME.to_owned(),
            label_column: None,
            fields: Vec::new(),
        }
    }
}

/// The column that names the images where the job says nothing else.
const FILE_NAME: &str = "file_name";
/// Fields that every text row has.
const OF_EVERY_ROW: [&str; 4] = ["class_id", "class_name", "source", "task"];
/// Fields that mean something in text rows of other kinds.
const OF_OTHERS: [&str; 3] = ["captions", "tags", "queries"];

impl PrepareParameters {
    pub(super) fn validate(&self) -> Result<()> {
        self.split.validate()?;
        in_range("image_size", self.image_size.into(), 8, 4096)?;
        in_range("jpeg_quality", self.jpeg_quality.into(), 1, 100)?;
        if !self.text_template.contains("{label}") {
            return Err(Error::config("parameters.text_template: must contain {label}"));
        }
        for (at, field) in self.fields.iter().enumerate() {
            let wrong = |what: &str| Err(Error::config(format!("parameters.fields: '{field}' {what}")));
            if OF_EVERY_ROW.iter().chain(&OF_OTHERS).any(|known| known == field) {
                return wrong("is a field of text rows already: give the column another name");
            }
            if self.fields[..at].contains(field) {
                return wrong("is named twice");
            }
        }
        Ok(())
    }

    /// Whether the inputs that are named hold what the parameters speak of.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`], naming the parameter.
    pub fn check_inputs(&self, given: impl Fn(&str) -> bool) -> Result<()> {
        if given("image_metadata") {
            return Ok(());
        }
        let asked = [
            ("file_name_column", self.file_name_column != FILE_NAME),
            ("label_column", self.label_column.is_some()),
            ("fields", !self.fields.is_empty()),
            ("split.group_column", self.split.group_column.is_some()),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            None => Ok(()),
            Some((key, _)) => Err(Error::config(format!(
                "parameters.{key}: speaks of a column of inputs.image_metadata, which is not given"
            ))),
        }
    }

    /// The fields of the text rows that are made with these parameters.
    pub fn row_fields(&self) -> impl Iterator<Item = &str> + Clone {
        OF_EVERY_ROW.into_iter().chain(self.fields.iter().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_refused_before_any_file_is_read() {
        let read = |text: &str| serde_yaml_ng::from_str::<PrepareParameters>(text).unwrap();
        for (text, named) in [
            ("{fields: [sex, task]}", "'task' is a field of text rows already"),
            ("{fields: [captions]}", "'captions'"),
            ("{fields: [sex, age, sex]}", "'sex' is named twice"),
            ("{text_template: polyp}", "{label}"),
        ] {
            let error = read(text).validate().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        for (text, key) in [
            ("{fields: [sex]}", "parameters.fields"),
            ("{label_column: dx}", "parameters.label_column"),
            ("{file_name_column: image_id}", "parameters.file_name_column"),
            ("{split: {group_column: patient}}", "parameters.split.group_column"),
        ] {
            let parameters = read(text);
            assert!(parameters.validate().is_ok() && parameters.check_inputs(|_| true).is_ok(), "{text}");
            let error = parameters.check_inputs(|name| name != "image_metadata").unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("image_metadata"), "{error}");
        }
        assert!(PrepareParameters::default().check_inputs(|_| false).is_ok());
        let fields = read("{fields: [sex, site]}");
        assert_eq!(fields.row_fields().skip(3).collect::<Vec<_>>(), ["task", "sex", "site"]);
    }
}
