//! How versions are named in job files and on the command line.

use std::fmt;

use crate::error::{Error, Result};

use super::version::{AssetKind, check_name};

/// Which version of a name is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one with the highest number.
    Latest,
    /// This one.
    Number(u64),
    /// The one that an alias names, such as `champion`: see [`super::set_alias`].
    Alias(String),
}

impl Selector {
    /// What stands behind the `@`; the error is the reason, for a message.
    fn parse(text: &str) -> Result<Selector, String> {
        if text == "latest" {
            return Ok(Selector::Latest);
        }
        if text.is_empty() || text.bytes().all(|b| b.is_ascii_digit()) {
            let number = text.parse().ok().filter(|_| !text.starts_with('0'));
            return number
                .map(Selector::Number)
                .ok_or_else(|| "the version is a number from 1, 'latest' or an alias".to_owned());
        }
        check_alias(text).map_err(|e| format!("the version is a number from 1, 'latest' or an alias, and {e}"))?;
        Ok(Selector::Alias(text.to_owned()))
    }
}

/// Checks an alias: letters, digits, `_` and `-` (not first), at most 255; not what reads as a version: `latest`, a
/// number, or `v` and a number. MLflow's rule, but for the `-` in front, which a command line takes for an option.
///
/// # Errors
/// [`crate::ErrorKind::Config`], naming the alias.
pub fn check_alias(alias: &str) -> Result<()> {
    let plain = alias.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let number = alias.strip_prefix(['v', 'V']).unwrap_or(alias);
    let reserved = alias.eq_ignore_ascii_case("latest") || number.bytes().all(|b| b.is_ascii_digit());
    // a lone 'v' is no number
    let reserved = reserved && !number.is_empty();
    if plain && !reserved && !alias.is_empty() && alias.len() <= 255 && !alias.starts_with('-') {
        return Ok(());
    }
    Err(Error::config(format!(
        "'{}' is not a valid alias: use letters, digits, '_' and '-' (not first), at most 255, and neither 'latest' nor a number, also after 'v'",
        alias.escape_default()
    )))
}

/// A dataset or model by name: `data:NAME@7`, `model:NAME@latest`, `model:NAME@champion`, `NAME@3`, `NAME`.
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
            Some((name, version)) => match Selector::parse(version) {
                Ok(version) => (name, version),
                Err(why) => return fail(why),
            },
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
        match &self.version {
            Selector::Latest => f.write_str("latest"),
            Selector::Number(number) => write!(f, "{number}"),
            Selector::Alias(alias) => f.write_str(alias),
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
        for text in
            ["data:a@7", "model:Mi2-x_1.0@latest", "data:1@9999999999", "model:a@champion", "data:a@v1x", "data:a@7_-b"]
        {
            assert_eq!(Reference::parse(text, None).unwrap().to_string(), text);
        }
        let model = Some(AssetKind::Model);
        assert_eq!(Reference::parse("a@3", model).unwrap().to_string(), "model:a@3");
        assert_eq!(Reference::parse("a", model).unwrap().to_string(), "model:a@latest");
        assert_eq!(Reference::parse("data:a", model).unwrap().to_string(), "data:a@latest");
        let champion = Reference::parse("a@champion", model).unwrap();
        assert_eq!(champion.version, Selector::Alias("champion".to_owned()));
        assert!(Reference::looks_like("model:x") && !Reference::looks_like("models/x"));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "a", "data:", "data:@1", "data:a@", "data:a@0", "data:a@01", "data:a@-1", "data:a@v1", "x:a@1"]
        {
            assert_eq!(Reference::parse(bad, None).unwrap_err().kind(), crate::ErrorKind::Config, "{bad}");
        }
        for bad in ["data:a@v1", "data:a@V22", "data:a@Latest", "data:a@a.b", "data:a@a b", "data:a@ä", "data:a@-a"] {
            let error = Reference::parse(bad, None).unwrap_err().to_string();
            assert!(error.contains("is not a valid alias"), "{error}");
        }
        for bad in ["data:../a", "data:a/b@1", "data:a@1@2", "data:.a", "data:a@99999999999999999999", "file:///a"] {
            assert_eq!(
                Reference::parse(bad, Some(AssetKind::Data)).unwrap_err().kind(),
                crate::ErrorKind::Config,
                "{bad}"
            );
        }
    }

    #[test]
    fn aliases_have_at_most_255_characters_and_are_no_versions() {
        for good in ["champion", "v", "V", "v1-rc", "a".repeat(255).as_str(), "_1", "7b", "latest-1"] {
            check_alias(good).unwrap();
        }
        for bad in ["", "latest", "LATEST", "7", "v7", "V07", "-", "a/b", "a@b", ".", "a".repeat(256).as_str()] {
            assert_eq!(check_alias(bad).unwrap_err().kind(), crate::ErrorKind::Config, "{bad}");
        }
    }
}
