//! How versions are named in job files and on the command line.

use std::fmt;

use crate::error::{Error, Result};

use super::version::{AssetKind, check_name};

/// Which version of a name is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one with the highest number.
    Latest,
    /// This one.
    Number(u64),
}

/// A dataset or model by name: `data:NAME@7`, `model:NAME@latest`, `NAME@3`, `NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// What it names.
    pub kind: AssetKind,
    /// The name.
    pub name: String,
    /// Which version.
    pub version: Selector,
}

impl Reference {
    /// Parses a reference; without `data:` or `model:` in front it is of kind `default`, without `@` it is the latest.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for anything else, quoting the text.
    pub fn parse(text: &str, default: Option<AssetKind>) -> Result<Reference> {
        let fail =
            |why: String| Err(Error::config(format!("'{}' is not a valid reference: {why}", text.escape_default())));
        let (kind, rest) = match text.split_once(':') {
            Some((prefix, rest)) => match AssetKind::ALL.into_iter().find(|k| k.name() == prefix) {
                Some(kind) => (Some(kind), rest),
                None => return fail("write data:NAME@VERSION or model:NAME@VERSION".to_owned()),
            },
            None => (default, text),
        };
        let Some(kind) = kind else {
            return fail("write data: or model: in front".to_owned());
        };
        let (name, version) = match rest.split_once('@') {
            Some((name, "latest")) => (name, Selector::Latest),
            Some((name, number)) => {
                let digits = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
                match number.parse() {
                    Ok(number) if digits => (name, Selector::Number(number)),
                    _ => return fail("the version is a number from 1, or 'latest'".to_owned()),
                }
            }
            None => (rest, Selector::Latest),
        };
        if let Err(error) = check_name(name) {
            return fail(error.to_string());
        }
        Ok(Reference { kind, name: name.to_owned(), version })
    }

    /// Whether `text` starts like a reference (`data:` or `model:`), as opposed to a path.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        AssetKind::ALL.iter().any(|k| text.strip_prefix(k.name()).is_some_and(|rest| rest.starts_with(':')))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@", self.kind, self.name)?;
        match self.version {
            Selector::Latest => f.write_str("latest"),
            Selector::Number(number) => write!(f, "{number}"),
        }
    }
}

impl std::str::FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        Reference::parse(text, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_round_trip_and_defaults_apply() {
        for text in ["data:a@7", "model:Mi2-x_1.0@latest", "data:1@9999999999"] {
            assert_eq!(Reference::parse(text, None).unwrap().to_string(), text);
        }
        let model = Some(AssetKind::Model);
        assert_eq!(Reference::parse("a@3", model).unwrap().to_string(), "model:a@3");
        assert_eq!(Reference::parse("a", model).unwrap().to_string(), "model:a@latest");
        assert_eq!(Reference::parse("data:a", model).unwrap().to_string(), "data:a@latest");
        assert!(Reference::looks_like("model:x") && !Reference::looks_like("models/x"));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "a", "data:", "data:@1", "data:a@", "data:a@0", "data:a@01", "data:a@-1", "data:a@v1", "x:a@1"]
        {
            assert_eq!(Reference::parse(bad, None).unwrap_err().kind(), crate::ErrorKind::Config, "{bad}");
        }
        for bad in ["data:../a", "data:a/b@1", "data:a@1@2", "data:.a", "data:a@99999999999999999999", "file:///a"] {
            assert_eq!(
                Reference::parse(bad, Some(AssetKind::Data)).unwrap_err().kind(),
                crate::ErrorKind::Config,
                "{bad}"
            );
        }
    }
}
