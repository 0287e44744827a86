//! `${VAR}` from the environment, and `--set path=value` overrides, both on parsed YAML: a value can never change the
//! document's structure.

use crate::error::{Error, Result};
use serde_yaml_ng::{Mapping, Value};
use std::collections::BTreeMap;

/// The variables that a job file may use.
pub type Environment = BTreeMap<String, String>;

/// Replaces `${VAR}` and `${VAR:-default}` in every string of `value`; `$$` is a literal `$`, and `${{ ... }}` is left for
/// the pipeline. A string that is one reference alone takes the type its text has in YAML, so `size: ${SIZE}` can be a number.
///
/// # Errors
/// [`crate::ErrorKind::Config`] naming the key when a variable is not set and has no default.
pub fn render(value: Value, environment: &Environment) -> Result<Value> {
    walk(value, environment, "")
}

fn walk(value: Value, environment: &Environment, path: &str) -> Result<Value> {
    Ok(match value {
        Value::String(text) => render_scalar(&text, environment, path)?,
        Value::Sequence(items) => Value::Sequence(
            items
                .into_iter()
                .enumerate()
                .map(|(i, v)| walk(v, environment, &format!("{path}[{i}]")))
                .collect::<Result<_>>()?,
        ),
        Value::Mapping(map) => {
            let mut out = Mapping::new();
            for (key, inner) in map {
                let name = key.as_str().unwrap_or("?");
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                let inner = walk(inner, environment, &path)?;
                out.insert(key, inner);
            }
            Value::Mapping(out)
        }
        other => other,
    })
}

fn render_scalar(text: &str, environment: &Environment, path: &str) -> Result<Value> {
    if !text.contains('$') {
        return Ok(Value::String(text.to_owned()));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut whole = false;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if rest.starts_with("${{") {
            let end = rest.find("}}").ok_or_else(|| Error::config(format!("{path}: '${{{{' without '}}}}'")))?;
            out.push_str(&rest[..end + 2]);
            rest = &rest[end + 2..];
        } else if let Some(after) = rest.strip_prefix("${") {
            let end = after.find('}').ok_or_else(|| Error::config(format!("{path}: '${{' without '}}'")))?;
            let (name, default) = match after[..end].split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (&after[..end], None),
            };
            if is_secret(name) {
                return Err(Error::config(format!(
                    "{path}: '{name}' looks like a secret, and job files are kept in run records; leave it out: medtune reads \
                     credentials from the environment by itself"
                )));
            }
            let found = environment.get(name).map(String::as_str).filter(|v| !v.is_empty() || default.is_none());
            let value = found.or(default).ok_or_else(|| {
                Error::config(format!(
                    "{path}: environment variable '{name}' is not set; set it or write ${{{name}:-default}}"
                ))
            })?;
            whole = at == 0 && out.is_empty() && end + 3 == text.len();
            out.push_str(value);
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    if whole {
        return Ok(match serde_yaml_ng::from_str::<Value>(&out) {
            Ok(v @ (Value::Number(_) | Value::Bool(_))) => v,
            _ => Value::String(out),
        });
    }
    Ok(Value::String(out))
}

/// Whether a variable's name says that its value must not be written anywhere.
fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let words: Vec<&str> = upper.split('_').collect();
    let secret = ["TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "SAS"];
    words.iter().any(|w| secret.contains(w))
        || ["ACCESS_KEY", "ACCOUNT_KEY", "API_KEY", "PRIVATE_KEY", "APIKEY"].iter().any(|k| upper.contains(k))
}

/// Applies `path.to.key=value` overrides, the value parsed as YAML; missing sections are created, lists take an index.
///
/// # Errors
/// [`crate::ErrorKind::Usage`] for an override without `=`, with an empty path or through a value that has no keys.
pub fn apply_overrides(mut document: Value, overrides: &[String]) -> Result<Value> {
    for text in overrides {
        let (path, value) = text
            .split_once('=')
            .filter(|(path, _)| !path.is_empty())
            .ok_or_else(|| Error::usage(format!("--set '{text}': write key=value, e.g. parameters.seed=7")))?;
        let value: Value = serde_yaml_ng::from_str(value)
            .map_err(|e| Error::usage(format!("--set '{text}': the value is not valid YAML: {e}")))?;
        set(&mut document, path, path, value)?;
    }
    Ok(document)
}

fn set(at: &mut Value, path: &str, whole: &str, value: Value) -> Result<()> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    let slot = match at {
        Value::Mapping(map) => map.entry(Value::String(head.to_owned())).or_insert(Value::Null),
        Value::Sequence(items) => {
            let index: usize = head.parse().unwrap_or(usize::MAX);
            items
                .get_mut(index)
                .ok_or_else(|| Error::usage(format!("--set {whole}: '{head}' is no index of this list")))?
        }
        Value::Null => {
            *at = Value::Mapping(Mapping::new());
            return set(at, path, whole, value);
        }
        _ => return Err(Error::usage(format!("--set {whole}: '{head}' lies under a value that has no keys"))),
    };
    match rest {
        None => {
            *slot = value;
            Ok(())
        }
        Some(rest) => set(slot, rest, whole, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("SIZE", "32"), ("NAME", "a: b"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    fn rendered(yaml: &str) -> Result<Value> {
        render(serde_yaml_ng::from_str(yaml).unwrap(), &environment())
    }

    #[test]
    fn renders_values_not_structure() {
        let value =
            rendered("a: ${SIZE}\nb: x-${NAME}\nc: ${EMPTY:-d}\nd: $$5\ne: ${{ steps.x.outputs.y }}\nf: [\"${NAME}\"]")
                .unwrap();
        assert_eq!(value["a"], Value::Number(32.into()));
        assert_eq!(value["b"].as_str(), Some("x-a: b"));
        assert_eq!(value["c"].as_str(), Some("d"));
        assert_eq!(value["d"].as_str(), Some("$5"));
        assert_eq!(value["e"].as_str(), Some("${{ steps.x.outputs.y }}"));
        assert_eq!(value["f"][0].as_str(), Some("a: b"));
    }

    #[test]
    fn a_missing_variable_names_its_key() {
        let error = rendered("inputs:\n  image_tsv: ${NOPE}/x").unwrap_err().to_string();
        assert!(error.contains("inputs.image_tsv") && error.contains("NOPE"), "{error}");
    }

    #[test]
    fn secrets_are_refused_by_name() {
        for name in ["MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "AZURE_STORAGE_SAS_TOKEN", "API_KEY"] {
            let error = rendered(&format!("a: x${{{name}}}")).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("secret"), "{error}");
        }
        assert!(!is_secret("DATASET_KEYS") && !is_secret("TOKENIZER") && !is_secret("SASKATOON"));
    }

    #[test]
    fn overrides_create_replace_and_index() {
        let document: Value = serde_yaml_ng::from_str("a: {b: 1}\nl: [1, 2]").unwrap();
        let set = ["a.b=2", "a.c.d=[x]", "l.1=9"].map(str::to_owned);
        let value = apply_overrides(document.clone(), &set).unwrap();
        assert_eq!(value["a"]["b"].as_i64(), Some(2));
        assert_eq!(value["a"]["c"]["d"][0].as_str(), Some("x"));
        assert_eq!(value["l"][1].as_i64(), Some(9));
        assert!(apply_overrides(document.clone(), &["novalue".to_owned()]).is_err());
        assert!(apply_overrides(document, &["a.b.c=1".to_owned()]).is_err());
    }
}
