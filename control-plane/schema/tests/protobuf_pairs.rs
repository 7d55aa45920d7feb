//! Protobuf bodies that upstream's own encoder wrote, beside the JSON that upstream's structs give for them.
//!
//! The committed pairs were made by a Go program of ours over upstream's scheme with random values, every stable
//! kind once filled and once bare. `KEDGE_PROTOBUF_PAIRS` names another file of that form, and
//! `KEDGE_PROTOBUF_OUT` a file to write our encodings to, line for line, so that Go can read them back.

#![allow(clippy::disallowed_methods, reason = "a test that reads its pairs from a file")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_schema::facts::builtin;
use kedge_schema::protobuf::{decode, encode};
use serde_json::Value;

#[test]
fn both_directions_agree_with_upstream() {
    let path = std::env::var("KEDGE_PROTOBUF_PAIRS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protobuf_pairs.txt").to_owned());
    let text = std::fs::read_to_string(&path).unwrap();
    let (mut ours, mut faults, mut kinds) = (String::new(), Vec::new(), BTreeSet::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [kind, body, json] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("three parts: {line}") };
        kinds.insert(kind);
        let body = STANDARD.decode(body).unwrap();
        let expected = without_nulls(serde_json::from_str(json).unwrap());
        match decode(builtin(), &body) {
            Err(error) => faults.push(format!("{kind}: {error}")),
            Ok(decoded) => {
                let shown = without_nulls(decoded.clone());
                if shown != expected {
                    faults.push(format!("{kind}: {}", difference(&shown, &expected)));
                }
                let again = encode(builtin(), &decoded).unwrap();
                assert_eq!(decode(builtin(), &again).as_ref(), Ok(&decoded), "{kind}: our own bytes");
                writeln!(ours, "{}", STANDARD.encode(again)).unwrap();
            }
        }
    }
    assert!(kinds.len() > 130, "{} kinds", kinds.len());
    if let Ok(out) = std::env::var("KEDGE_PROTOBUF_OUT") {
        std::fs::write(out, ours).unwrap();
    }
    let shown = faults.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} of {} differ:\n{shown}", faults.len(), text.lines().count());
}

/// Go writes `null` for empty lists and times; we leave them out, save as the value of a map.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// The first place where two values part.
fn difference(ours: &Value, theirs: &Value) -> String {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys()) {
                match (a.get(name), b.get(name)) {
                    (Some(x), Some(y)) if x == y => {}
                    (Some(x), Some(y)) => return format!("{name}.{}", difference(x, y)),
                    (x, y) => return format!("{name}: ours {x:?}, upstream {y:?}"),
                }
            }
            String::new()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let parted = a.iter().zip(b).position(|(x, y)| x != y);
            parted.map(|at| format!("[{at}]{}", difference(&a[at], &b[at]))).unwrap_or_default()
        }
        (x, y) => format!("ours {x}, upstream {y}"),
    }
}
