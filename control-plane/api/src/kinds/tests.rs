//! Objects with what upstream 1.36.3 makes of them: as they are stored, what is wrong with them, and their row.
//!
//! Each line of the tables in `cases/` holds one object (`old` with it for a change), and upstream's answers,
//! taken from its own strategies, validation and printers.

use serde_json::{Value, json};

use crate::object;
use crate::registry::Registry;
use crate::rest::save::Part;
use crate::validation;

const TABLES: &[(&str, &str)] = &[
    ("workloads", include_str!("cases/workloads.jsonl")),
    ("pods", include_str!("cases/pods.jsonl")),
    ("services", include_str!("cases/services.jsonl")),
    ("others", include_str!("cases/others.jsonl")),
];

/// Takes an object the way of `rest::save`, without a store.
fn take(registry: &Registry, mut object: Value, old: Option<&Value>, part: Part) -> (Value, Vec<String>) {
    let (group, version) = match object["apiVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), "v1".to_owned()),
    };
    let kind = registry.by_kind(&group, &version, object["kind"].as_str().unwrap()).expect("a kind of ours");
    let rules = kind.rules.get();
    kind.schema.conform(&mut object).expect("a decodable object");
    let complete = |object: &mut Value| {
        rules.default(object);
        kind.schema.complete(object);
    };
    let mut errors = match old {
        None => {
            object::metadata_mut(&mut object).insert("uid".into(), "uid".into());
            rules.prepare_create(&mut object);
            if rules.has_generation() {
                object::metadata_mut(&mut object).insert("generation".into(), 1.into());
            }
            complete(&mut object);
            rules.finish_create(&mut object);
            let mut errors = validation::metadata(&object, kind);
            errors.extend(rules.validate(&object));
            errors.extend(rules.validate_create(&object));
            errors
        }
        Some(old) => {
            match part {
                Part::Status => rules.prepare_status_update(&mut object, old),
                _ => rules.prepare_update(&mut object, old),
            }
            complete(&mut object);
            let mut errors = validation::metadata_update(&object, old, kind);
            if part == Part::Main {
                errors.extend(rules.validate(&object));
            }
            errors.extend(rules.validate_update(&object, old));
            errors
        }
    };
    errors.extend(kind.check_schema(&object, old));
    let mut texts: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.field, error.body())).collect();
    texts.sort();
    texts.dedup();
    (object, texts)
}

fn row(registry: &Registry, object: &Value) -> Value {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap_or(("", "v1"));
    let kind = registry.by_kind(group, version, object["kind"].as_str().unwrap()).unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let table =
        crate::table::table(kind, std::slice::from_ref(object), json!({}), crate::table::Include::None, true, now);
    let columns: Vec<String> = object::items(&table, "columnDefinitions")
        .map(|c| {
            format!(
                "{}|{}|{}|{}",
                c["name"].as_str().unwrap(),
                c["type"].as_str().unwrap(),
                c["format"].as_str().unwrap(),
                c["priority"]
            )
        })
        .collect();
    json!({ "columns": columns, "cells": table["rows"][0]["cells"] })
}

/// Upstream shows objects at fault as its own structures, with their Go names; what they are is not compared.
fn told(errors: Vec<String>) -> Vec<String> {
    let shown = |text: String| match (text.find(": {"), text.rfind("}: ")) {
        (Some(from), Some(to)) if from < to => format!("{}: {{}}{}", &text[..from], &text[to + 1..]),
        _ => {
            text.strip_suffix('}').and_then(|t| t.split_once(": {")).map_or(text.clone(), |(t, _)| format!("{t}: {{}}"))
        }
    };
    errors.into_iter().map(shown).collect()
}

/// Differences between ours and theirs, as lines for a person.
fn compare(registry: &Registry, case: &Value) -> Vec<String> {
    let part = if case["status"] == true { Part::Status } else { Part::Main };
    let old = case.get("old").map(|old| {
        let (mut old, _) = take(registry, old.clone(), None, Part::Main);
        if case["old"]["metadata"]["uid"].is_null() {
            object::metadata_mut(&mut old).remove("uid");
        }
        old
    });
    let (ours, errors) = take(registry, case["object"].clone(), old.as_ref(), part);
    let mut out = Vec::new();
    let mut theirs: Vec<String> =
        object::items(case, "errors").map(|error| error.as_str().unwrap_or_default().to_owned()).collect();
    theirs.sort();
    theirs.dedup();
    let (errors, theirs) = (told(errors), told(theirs));
    out.extend(errors.iter().filter(|error| !theirs.contains(error)).map(|error| format!("only ours:   {error}")));
    out.extend(theirs.iter().filter(|error| !errors.contains(error)).map(|error| format!("only theirs: {error}")));
    if case.get("created").is_some() && case.get("old").is_none() {
        differences(&ours, &case["created"], "", &mut out);
    }
    if case["table"].is_object() && errors.is_empty() && case.get("old").is_none() {
        differences(&row(registry, &ours), &case["table"], "table", &mut out);
    }
    out
}

fn differences(ours: &Value, theirs: &Value, path: &str, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let none = Value::from("(absent)");
                differences(a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| differences(a, b, &format!("{path}[{i}]"), out));
        }
        // What the clock says.
        _ if path.ends_with("lastPhaseTransitionTime") => {}
        // The table of facts writes some empty lists that upstream leaves out.
        (Value::Null, Value::String(text)) if text == "(absent)" => {}
        _ if ours != theirs => out.push(format!("{path}: ours {ours} theirs {theirs}")),
        _ => {}
    }
}

#[test]
fn objects_are_taken_as_upstream_takes_them() {
    let registry = Registry::builtin();
    let mut wrong = Vec::new();
    let mut total = 0;
    for (name, table) in TABLES {
        for (index, line) in table.lines().enumerate() {
            let case: Value = serde_json::from_str(line).expect("a line of JSON");
            total += 1;
            let found = compare(&registry, &case);
            if !found.is_empty() {
                wrong.push(format!("{name}:{} {}\n  {}", index + 1, case["object"]["kind"], found.join("\n  ")));
            }
        }
    }
    assert!(total > 100, "the tables are there");
    assert!(wrong.is_empty(), "{} of {total} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn defaults_are_stable() {
    let registry = Registry::builtin();
    for (_, table) in TABLES {
        for line in table.lines() {
            let case: Value = serde_json::from_str(line).expect("a line of JSON");
            let (once, _) = take(&registry, case["object"].clone(), None, Part::Main);
            let kind = case["object"]["kind"].as_str().unwrap();
            let (group, version) = once["apiVersion"].as_str().unwrap().split_once('/').unwrap_or(("", "v1"));
            let kind = registry.by_kind(group, version, kind).unwrap();
            let mut twice = once.clone();
            kind.rules.get().default(&mut twice);
            kind.schema.complete(&mut twice);
            assert_eq!(once, twice);
        }
    }
}
