//! Dropping unknown fields, dropping `null`s, filling in defaults.
//!
//! Follows `apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting}`. Pruning comes first, so that
//! defaults only ever fill known fields. Types are not looked at: a value of a wrong type is left to validation.

use serde_json::Value;

use super::{META, is_set, member};
use crate::decode::{FieldProblem, note};
use crate::field::Path;

/// Drops what the schema does not know and tells the paths, sorted. The object is a whole resource.
pub(super) fn prune(schema: &Value, object: &mut Value) -> Vec<FieldProblem> {
    let mut pruner = Pruner { path: Path::root(), problems: Vec::new() };
    pruner.value(Some(schema), object, true, false);
    pruner.problems
}

struct Pruner {
    path: Path,
    problems: Vec<FieldProblem>,
}

impl Pruner {
    /// Without a schema nothing of an object is known. Items of a list that is kept are kept too.
    fn value(&mut self, schema: Option<&Value>, value: &mut Value, resource: bool, kept: bool) {
        let preserve = kept || schema.is_some_and(|schema| is_set(schema, "x-kubernetes-preserve-unknown-fields"));
        let embedded = resource || schema.is_some_and(|schema| is_set(schema, "x-kubernetes-embedded-resource"));
        let mark = self.path.mark();
        match value {
            Value::Object(map) => {
                let keys: Vec<String> = map.keys().cloned().collect();
                for key in keys {
                    if embedded && META.contains(&key.as_str()) {
                        continue;
                    }
                    let known = schema.and_then(|schema| known_member(schema, &key));
                    self.path.push_child(&key);
                    match known {
                        Some(sub) => self.value(sub, map.get_mut(&key).expect("the key was just listed"), false, false),
                        None if preserve => {}
                        None => {
                            note(&mut self.problems, FieldProblem::Unknown(self.path.as_str().to_owned()));
                            map.remove(&key);
                        }
                    }
                    self.path.reset(mark);
                }
            }
            Value::Array(items) => {
                let schema = schema.and_then(|schema| schema.get("items"));
                if preserve && schema.is_none() {
                    return;
                }
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push_index(index);
                    self.value(schema, item, false, preserve);
                    self.path.reset(mark);
                }
            }
            _ => {}
        }
    }
}

/// Whether a member is known, and its schema; `additionalProperties: true` knows members without a schema.
fn known_member<'a>(schema: &'a Value, key: &str) -> Option<Option<&'a Value>> {
    if let Some(sub) = member(schema, key) {
        return Some(Some(sub));
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(_)) => Some(None),
        _ => None,
    }
}

/// Drops members that are `null` although they may not be, unless a default replaces them.
pub(super) fn drop_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let Some(sub) = member(schema, key) else { return true };
            if value.is_null() && !is_set(sub, "nullable") && sub.get("default").is_none() {
                return false;
            }
            drop_nulls(sub, value);
            true
        }),
        Value::Array(items) => {
            if let Some(sub) = schema.get("items") {
                items.iter_mut().for_each(|item| drop_nulls(sub, item));
            }
        }
        _ => {}
    }
}

/// Fills in defaults where a member is absent, or `null` although it may not be.
pub(super) fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, sub) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let Some(default) = sub.get("default").filter(|default| !default.is_null()) else { continue };
                let absent = map.get(key).is_none_or(|value| value.is_null() && !is_set(sub, "nullable"));
                if absent {
                    map.insert(key.clone(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                let Some(sub) = member(schema, key) else { continue };
                replace_null(sub, value);
                default(sub, value);
            }
        }
        Value::Array(items) => {
            let Some(sub) = schema.get("items") else { return };
            for item in items {
                replace_null(sub, item);
                default(sub, item);
            }
        }
        _ => {}
    }
}

fn replace_null(schema: &Value, value: &mut Value) {
    if value.is_null() && !is_set(schema, "nullable") {
        *value = schema.get("default").cloned().unwrap_or(Value::Null);
    }
}
