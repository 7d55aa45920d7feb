//! `FieldsV1`: how a set of field paths is written in `metadata.managedFields`.
//!
//! `f:NAME` is a member of an object, `k:{…}` an item by its keys, `v:…` an item by its value, `i:N` one by its
//! place, and `.` says that the path up to here is in the set too. See `structured-merge-diff/fieldpath/serialize.go`.

use serde_json::{Map, Value};

use super::set::{FieldSet, Node, Scalar, Step};
use crate::go_text;

/// Why a `FieldsV1` cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// A set is an object all the way down.
    #[error("expected an object at {0}")]
    NotAnObject(String),
    /// The key is not of the form `X:…`.
    #[error("parsing key as path element: {0}")]
    Key(String),
}

/// The set as JSON.
pub fn encode(set: &FieldSet) -> Value {
    let mut map = Map::new();
    for (step, node) in set.nodes() {
        let mut below = match encode(&node.children) {
            Value::Object(below) => below,
            _ => Map::new(),
        };
        if node.member && !below.is_empty() {
            below.insert(".".to_owned(), Value::Object(Map::new()));
        }
        map.insert(step_text(step), Value::Object(below));
    }
    Value::Object(map)
}

fn step_text(step: &Step) -> String {
    match step {
        Step::Field(name) => format!("f:{name}"),
        Step::Key(fields) => {
            let fields: Map<String, Value> =
                fields.iter().map(|(name, value)| (name.to_string(), value.0.clone())).collect();
            format!("k:{}", go_text::json(&Value::Object(fields)))
        }
        Step::Value(value) => format!("v:{}", go_text::json(&value.0)),
        Step::Index(index) => format!("i:{index}"),
    }
}

/// The set that JSON stands for.
pub fn decode(value: &Value) -> Result<FieldSet, FieldsError> {
    let Value::Object(map) = value else { return Err(FieldsError::NotAnObject(value.to_string())) };
    let mut set = FieldSet::default();
    for (key, below) in map.iter().filter(|(key, _)| *key != ".") {
        let Some(step) = parse_step(key)? else { continue };
        let children = decode(below)?;
        let member = children.is_empty() || below.get(".").is_some();
        set.put(step, Node { member, children });
    }
    Ok(set)
}

/// Steps of kinds yet unknown are passed over, as upstream does.
fn parse_step(key: &str) -> Result<Option<Step>, FieldsError> {
    let wrong = || FieldsError::Key(key.to_owned());
    let (kind, rest) = key.split_at_checked(2).ok_or_else(wrong)?;
    if !kind.ends_with(':') {
        return Err(wrong());
    }
    let json = |text: &str| serde_json::from_str::<Value>(text).map_err(|_| wrong());
    Ok(Some(match kind {
        "f:" => Step::Field(rest.into()),
        "v:" => Step::Value(Scalar(json(rest)?)),
        "i:" => Step::Index(rest.parse().map_err(|_| wrong())?),
        "k:" => {
            let Value::Object(fields) = json(rest)? else { return Err(wrong()) };
            let mut fields: Vec<(Box<str>, Scalar)> =
                fields.into_iter().map(|(name, value)| (name.into(), Scalar(value))).collect();
            fields.sort();
            Step::Key(fields)
        }
        _ => return Ok(None),
    }))
}
