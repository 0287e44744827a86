//! The YAML file that turns class folders into label texts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::tsv::read_text;
use crate::error::{Context, Error, ErrorKind, Result};

/// How many similar names a message offers.
const SUGGESTIONS: usize = 3;

/// Folder names to labels, and labels to the view in which they are seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConstants {
    /// Name of a class folder -> label.
    pub folder_to_label: BTreeMap<String, String>,
    /// View -> the labels seen in it; without it, texts have no view.
    #[serde(default)]
    pub view_labels: Option<BTreeMap<String, Vec<String>>>,
}

impl TextConstants {
    /// Reads the YAML file.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Config` as [`parse`](Self::parse), naming the file.
    pub fn read(path: impl AsRef<Path>) -> Result<TextConstants> {
        let path = path.as_ref();
        let text = read_text(path).map_err(|e| match e.kind() {
            ErrorKind::Data => e.with_kind(ErrorKind::Config),
            _ => e,
        })?;
        TextConstants::parse(&text).context(|| format!("'{}'", path.display()))
    }

    /// Reads YAML text.
    ///
    /// # Errors
    /// `Config`: not YAML, unknown or missing keys, an empty label, a label in two views.
    pub fn parse(yaml: &str) -> Result<TextConstants> {
        let constants: TextConstants = serde_yaml_ng::from_str(yaml)
            .map_err(|e| Error::config("not a label text file: it needs folder_to_label").with_source(e))?;
        if let Some((folder, _)) = constants.folder_to_label.iter().find(|(_, label)| label.trim().is_empty()) {
            return Err(Error::config(format!("folder_to_label: folder '{folder}' has an empty label")));
        }
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (view, labels) in constants.view_labels.iter().flatten() {
            for label in labels {
                if let Some(first) = seen.insert(label, view).filter(|first| first != view) {
                    return Err(Error::config(format!(
                        "view_labels: label '{label}' is in view '{first}' and in view '{view}'"
                    )));
                }
            }
        }
        Ok(constants)
    }

    /// The label of a class folder.
    ///
    /// # Errors
    /// `Config`, naming the folder and the most similar known ones.
    pub fn label(&self, folder: &str) -> Result<&str> {
        if let Some(label) = self.folder_to_label.get(folder) {
            return Ok(label);
        }
        Err(Error::config(format!(
            "folder_to_label has no folder '{folder}'{}",
            did_you_mean(folder, self.folder_to_label.keys().map(String::as_str))
        )))
    }

    /// The text of a class folder: `template` with `{label}` and `{view}` filled in. Without `view_labels`, `{view}` is
    /// left out together with one space beside it.
    ///
    /// # Errors
    /// `Config`: unknown folder, a label in no view while the template has `{view}`, another placeholder, no `{label}`.
    pub fn text(&self, folder: &str, template: &str) -> Result<String> {
        let label = self.label(folder)?;
        check_template(template)?;
        let template = match &self.view_labels {
            None => template.replace("{view} ", "").replace(" {view}", "").replace("{view}", ""),
            Some(views) if template.contains("{view}") => template.replace("{view}", view_of(label, views)?),
            Some(_) => template.to_owned(),
        };
        let text = template.replace("{label}", label);
        if text.contains(['\n', '\r']) {
            return Err(Error::config(format!("the text of folder '{folder}' has a line end")));
        }
        Ok(text)
    }
}

fn view_of<'a>(label: &str, views: &'a BTreeMap<String, Vec<String>>) -> Result<&'a str> {
    if let Some((view, _)) = views.iter().find(|(_, labels)| labels.iter().any(|l| l == label)) {
        return Ok(view);
    }
    Err(Error::config(format!(
        "view_labels: label '{label}' is in no view{}; add it to one, or leave {{view}} out of the template",
        did_you_mean(label, views.values().flatten().map(String::as_str))
    )))
}

fn check_template(template: &str) -> Result<()> {
    let rest = template.replace("{label}", "").replace("{view}", "");
    if rest.contains(['{', '}']) {
        return Err(Error::config(format!(
            "text template '{template}': use the placeholders {{label}} and {{view}} only"
        )));
    }
    if !template.contains("{label}") {
        return Err(Error::config(format!("text template '{template}' has no {{label}}: all classes would be one")));
    }
    Ok(())
}

fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut ranked: Vec<(f64, &str)> =
        known.map(|k| (strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase()), k)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.truncate(SUGGESTIONS);
    if ranked.is_empty() {
        return String::new();
    }
    let names: Vec<String> = ranked.iter().map(|(_, k)| format!("'{k}'")).collect();
    format!("; the most similar are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "folder_to_label:\n  Colon polyps: colon polyps\n  Ulcer: ulcer\n  Other: other\n\
        view_labels:\n  lower: [colon polyps]\n  upper: [ulcer]\n";
    const TEMPLATE: &str = "endoscopy gastrointestinal {view} {label}";

    #[test]
    fn texts_follow_the_template() {
        let constants = TextConstants::parse(YAML).unwrap();
        assert_eq!(constants.text("Ulcer", TEMPLATE).unwrap(), "endoscopy gastrointestinal upper ulcer");
        assert_eq!(constants.text("Other", "a {label}").unwrap(), "a other");
        let plain = TextConstants { view_labels: None, ..constants };
        assert_eq!(plain.text("Ulcer", TEMPLATE).unwrap(), "endoscopy gastrointestinal ulcer");
        assert_eq!(plain.text("Ulcer", "{label} {view}").unwrap(), "ulcer");
    }

    #[test]
    fn mistakes_are_named_with_suggestions() {
        let constants = TextConstants::parse(YAML).unwrap();
        let message = |folder, template| {
            let error = constants.text(folder, template).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            error.to_string()
        };
        assert!(message("ulcers", TEMPLATE).contains("no folder 'ulcers'; the most similar are 'Ulcer'"));
        assert!(message("Other", TEMPLATE).contains("label 'other' is in no view"));
        assert!(message("Ulcer", "{name} {label}").contains("placeholders"));
        assert!(message("Ulcer", "x").contains("no {label}"));
    }

    #[test]
    fn wrong_files_are_refused() {
        for (yaml, expected) in [
            ("a: b", "folder_to_label"),
            ("folder_to_label: {a: ''}", "empty label"),
            ("folder_to_label: {a: b}\nviews: {}", "views"),
            ("folder_to_label: {a: b}\nview_labels: {x: [b], y: [b]}", "in view 'x' and in view 'y'"),
        ] {
            let message = TextConstants::parse(yaml).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }
}
