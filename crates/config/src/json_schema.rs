//! `config schema`: the schema as a JSON Schema (draft 2020-12), for editors.

use serde_json::{Map, Value, json};

use crate::schema::{self, Key, Kind, State};
use crate::words;

/// The JSON Schema of the configuration. What it takes, `config check` takes as far as
/// keys and types go; it knows nothing of values.
#[must_use]
pub fn json_schema() -> Value {
    let mut root = table(schema::ROOT, "");
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("edgekeep configuration"));
    Value::Object(root)
}

fn table(keys: &'static [Key], path: &str) -> Map<String, Value> {
    let mut properties = Map::new();
    for key in keys {
        let path =
            if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        let mut value = of_kind(key.kind, &path);
        if let Some((meaning, _)) = words::of(&path) {
            value.insert("description".to_owned(), json!(meaning));
        }
        if !matches!(key.state, State::Used) {
            value.insert("deprecated".to_owned(), json!(true));
        }
        for alias in key.aliases {
            let mut other = value.clone();
            other.insert("deprecated".to_owned(), json!(true));
            properties.insert((*alias).to_owned(), Value::Object(other));
        }
        properties.insert(key.name.to_owned(), Value::Object(value));
    }
    let mut found = Map::new();
    found.insert("type".to_owned(), json!("object"));
    found.insert("properties".to_owned(), Value::Object(properties));
    found.insert("additionalProperties".to_owned(), json!(false));
    found
}

fn of_kind(kind: Kind, path: &str) -> Map<String, Value> {
    let value = match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Integer => json!({ "type": "integer" }),
        Kind::IntegerOrText => json!({ "type": ["integer", "string"] }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::TextsOrIntegers => {
            json!({ "type": "array", "items": { "type": ["string", "integer"] } })
        }
        Kind::TextOrTexts => {
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
        }
        Kind::Table(keys) => return table(keys, path),
        Kind::Tables(keys) => json!({ "type": "array", "items": table(keys, path) }),
        Kind::TextOrTable(keys) => json!({ "anyOf": [{ "type": "string" }, table(keys, path)] }),
        Kind::MapOf(kind) => {
            let path = format!("{path}.\"<name>\"");
            json!({ "type": "object", "additionalProperties": of_kind(*kind, &path) })
        }
        Kind::Free => json!({ "type": "object" }),
    };
    match value {
        Value::Object(value) => value,
        _ => Map::new(),
    }
}
