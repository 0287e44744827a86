//! JSON Schema of job files, one a kind, for editors and validators outside this program.

use super::job::{Header, OutputSpec};
use super::kinds::{Kind, Port, PortType};
use super::{evaluation, parameters, preparation};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// The JSON Schema (draft 2020-12) of job files of `kind`; of any kind when `None`.
#[must_use]
pub fn job_schema(kind: Option<Kind>) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let kinds = kind.map_or_else(|| Kind::ALL.to_vec(), |k| vec![k]);
    let schemas: Vec<Value> = kinds.into_iter().map(|k| one(k, &mut generator)).collect();
    let mut root = match <[Value; 1]>::try_from(schemas) {
        Ok([single]) => single,
        Err(many) => json!({ "oneOf": many }),
    };
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!(kind.map_or_else(|| "medtune job".to_owned(), |k| format!("medtune {k} job")));
    root["$defs"] = Value::Object(generator.take_definitions(true).into_iter().collect());
    allow_variables(&mut root);
    root
}

/// Lets `${VAR}` stand for every number and truth value, as it does in job files.
fn allow_variables(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(allow_variables),
        Value::Object(map) => {
            map.values_mut().for_each(allow_variables);
            let scalar = |t: &Value| matches!(t.as_str(), Some("integer" | "number" | "boolean"));
            let types = map.get("type");
            if types.is_some_and(scalar) || types.and_then(Value::as_array).is_some_and(|t| t.iter().any(scalar)) {
                let mut inner = std::mem::take(map);
                for note in ["description", "default"] {
                    if let Some(value) = inner.shift_remove(note) {
                        map.insert(note.to_owned(), value);
                    }
                }
                map.insert("anyOf".to_owned(), json!([inner, { "type": "string", "pattern": r"^\$\{.+\}$" }]));
            }
        }
        _ => {}
    }
}

fn one(kind: Kind, generator: &mut SchemaGenerator) -> Value {
    let header = generator.root_schema_for::<Header>().to_value();
    let mut properties: Map<String, Value> = header["properties"].as_object().cloned().unwrap_or_default();
    if let Some(definitions) = header["$defs"].as_object() {
        for (name, schema) in definitions {
            if let Ok(schema) = schemars::Schema::try_from(schema.clone()) {
                generator.definitions_mut().entry(name.clone()).or_insert(schema.to_value());
            }
        }
    }
    properties.insert("kind".to_owned(), json!({ "const": kind.name() }));
    properties.insert("version".to_owned(), json!({ "const": super::job::JOB_VERSION }));
    let mut required = vec!["version", "kind"];
    if kind == Kind::Pipeline {
        let steps: Vec<Value> = Kind::ALL
            .into_iter()
            .filter(|k| *k != Kind::Pipeline)
            .map(|k| {
                let mut step = body(k, generator);
                step.insert("kind".to_owned(), json!({ "const": k.name() }));
                object(step, &["kind", "inputs"])
            })
            .collect();
        properties.insert(
            "steps".to_owned(),
            json!({ "type": "object", "minProperties": 1, "additionalProperties": { "oneOf": steps } }),
        );
        properties.insert("continue_on_step_failure".to_owned(), json!({ "type": "boolean", "default": false }));
        required.push("steps");
    } else {
        properties.extend(body(kind, generator));
        required.push("inputs");
    }
    object(properties, &required)
}

fn body(kind: Kind, generator: &mut SchemaGenerator) -> Map<String, Value> {
    let parameters = match kind {
        Kind::Prepare => generator.subschema_for::<preparation::PrepareParameters>(),
        Kind::Finetune => generator.subschema_for::<parameters::FinetuneParameters>(),
        Kind::Embed => generator.subschema_for::<super::embedding::EmbedParameters>(),
        Kind::Adapter => generator.subschema_for::<super::adapter::AdapterParameters>(),
        Kind::Assemble => generator.subschema_for::<parameters::AssembleParameters>(),
        Kind::Evaluate => generator.subschema_for::<evaluation::EvaluateParameters>(),
        Kind::Pipeline => json_schema_any(),
    };
    let output = generator.subschema_for::<OutputSpec>().to_value();
    let input = |port: &Port| {
        let one = json!({ "type": "string", "minLength": 1 });
        let mut schema = match port.name {
            "conf_files" => json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": 1 }] }),
            _ if port.port_type == PortType::Rows => {
                json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
            }
            _ => one,
        };
        schema["description"] = json!(port.doc);
        (port.name.to_owned(), schema)
    };
    let required: Vec<&str> = kind.inputs().iter().filter(|p| p.required).map(|p| p.name).collect();
    let outputs = kind
        .outputs()
        .iter()
        .map(|p| (p.name.to_owned(), json!({ "description": p.doc, "anyOf": [{ "type": "string" }, output.clone()] })));
    let mut map = Map::new();
    map.insert("inputs".to_owned(), object(kind.inputs().iter().map(input).collect(), &required));
    map.insert("parameters".to_owned(), parameters.to_value());
    map.insert("outputs".to_owned(), object(outputs.collect(), &[]));
    map
}

fn json_schema_any() -> schemars::Schema {
    schemars::Schema::from(true)
}

fn object(properties: Map<String, Value>, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_with_its_ports() {
        for kind in Kind::ALL {
            let schema = job_schema(Some(kind));
            assert_eq!(schema["properties"]["kind"]["const"], kind.name());
            for port in kind.inputs() {
                assert!(schema["properties"]["inputs"]["properties"][port.name].is_object(), "{kind} {}", port.name);
            }
        }
        assert_eq!(job_schema(None)["oneOf"].as_array().map(Vec::len), Some(Kind::ALL.len()));
    }

    #[test]
    fn variables_may_stand_for_numbers() {
        let schema = job_schema(Some(Kind::Prepare)).to_string();
        assert!(
            schema.contains(r#""anyOf":[{"type":"integer"#) && schema.contains(r#"{"type":"string","pattern":"#),
            "{schema}"
        );
    }

    #[test]
    fn references_resolve() {
        let schema = job_schema(None);
        let text = schema.to_string();
        for part in text.split("\"#/$defs/").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            assert!(schema["$defs"][name].is_object(), "{name} is not defined");
        }
    }
}
