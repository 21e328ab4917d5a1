//! A validator for the part of JSON Schema that `specs/cli` uses; an unknown keyword fails, so nothing goes unchecked.

use std::fs;

use serde_json::Value;

use crate::support::root;

/// Checks a record against `specs/cli/<name>`.
pub(crate) fn check(name: &str, record: &Value) {
    let path = root().join("specs/cli").join(name);
    let schema: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    validate(&schema, &schema, record, name);
}

fn validate(root: &Value, schema: &Value, value: &Value, at: &str) {
    for (keyword, argument) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "$ref" => {
                let name = argument.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                validate(root, &root["$defs"][name], value, at);
            }
            "const" => assert_eq!(value, argument, "{at}"),
            "enum" => assert!(
                argument.as_array().unwrap().contains(value),
                "{at}: {value}"
            ),
            "type" => assert!(is_of(argument, value), "{at}: {value} is no {argument}"),
            "minimum" => assert!(
                value.as_f64() >= argument.as_f64() || value.is_null(),
                "{at}: {value}"
            ),
            "required" if value.is_object() => {
                for key in argument.as_array().unwrap() {
                    assert!(
                        value.get(key.as_str().unwrap()).is_some(),
                        "{at}: {key} is missing"
                    );
                }
            }
            // Consumers must bear new members; here each member has to be described.
            "properties" => {
                for (key, _) in value.as_object().into_iter().flatten() {
                    assert!(argument.get(key).is_some(), "{at}: {key} is not described");
                }
                for (key, schema) in argument.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        validate(root, schema, value, &format!("{at}/{key}"));
                    }
                }
            }
            "items" => {
                for (i, value) in value.as_array().into_iter().flatten().enumerate() {
                    validate(root, argument, value, &format!("{at}/{i}"));
                }
            }
            "$schema" | "$defs" | "title" | "description" | "required" => {}
            other => panic!("{at}: the keyword {other} is not known here"),
        }
    }
}

fn is_of(types: &Value, value: &Value) -> bool {
    let one = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    };
    types
        .as_array()
        .map_or_else(|| one(types), |types| types.iter().any(one))
}
