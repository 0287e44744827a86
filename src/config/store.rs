//! `store:` of a job file: where results go, and how that place is reached.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_yaml_ng::Value;

/// A store with options. In a job file it is a URI or folder alone, or a mapping of `uri` and options such as `region`,
/// `endpoint` or `lease_seconds`; which there are depends on the kind of store, and is checked when it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSection {
    /// The URI or folder.
    pub uri: String,
    /// Option to value. None of them is a secret: those come from the environment.
    pub options: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for StoreSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fail = |text: &str| Err(D::Error::custom(text.to_owned()));
        let mut map = match Value::deserialize(deserializer)? {
            Value::String(uri) => return Ok(StoreSection { uri, options: BTreeMap::new() }),
            Value::Mapping(map) => map,
            _ => return fail("must be a URI or folder, or a mapping with 'uri' and options"),
        };
        let Some(Value::String(uri)) = map.remove("uri") else {
            return fail("'uri' is missing: the URI or folder of the store");
        };
        let mut options = BTreeMap::new();
        for (key, value) in map {
            let Some(key) = key.as_str() else { return fail("an option's name must be text") };
            let text = match value {
                Value::String(text) => text,
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                _ => return fail(&format!("'{key}' must be one value")),
            };
            options.insert(key.to_owned(), text);
        }
        Ok(StoreSection { uri, options })
    }
}

impl Serialize for StoreSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.options.is_empty() {
            return serializer.serialize_str(&self.uri);
        }
        let mut map = self.options.clone();
        map.insert("uri".to_owned(), self.uri.clone());
        map.serialize(serializer)
    }
}

impl JsonSchema for StoreSection {
    fn schema_name() -> Cow<'static, str> {
        "StoreSection".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "uri": { "type": "string" } },
                    "required": ["uri"],
                    "additionalProperties": { "type": ["string", "number", "boolean"] }
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_or_a_mapping() {
        let parse = |text: &str| serde_yaml_ng::from_str::<StoreSection>(text);
        assert_eq!(parse("some/folder").unwrap().uri, "some/folder");
        let section = parse("{uri: 's3://b/x', region: r, allow_http: true, lease_seconds: 9}").unwrap();
        assert_eq!(section.options["allow_http"], "true");
        assert_eq!(section.options["lease_seconds"], "9");
        let text = serde_json::to_string(&section).unwrap();
        assert_eq!(serde_json::from_str::<StoreSection>(&text).unwrap(), section);
        for bad in ["3", "{region: r}", "{uri: a, x: [1]}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
