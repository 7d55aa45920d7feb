//! What a schema must be like before anybody may store objects of it: structural, complete, within the language.
//!
//! Rules and texts follow `apiextensions-apiserver`: `schema/validation.go`, `schema/complete.go`, and
//! `ValidateCustomResourceDefinitionOpenAPISchema`. The rules of one schema node are read together; errors come
//! sorted by text, as upstream's structural ones do.

use regex::Regex;
use serde_json::{Map, Value};

use super::{META, Patterns, Unenforced, formats, is_set, prune, text, validate};
use crate::field::{FieldError, Path};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// All that is wrong with a schema. Compiles its regular expressions on the way.
pub(super) fn check(raw: &Value, path: &Path, patterns: &mut Patterns) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new(), patterns };
    if !raw.is_object() {
        return vec![FieldError::required(path, "schemas are required")];
    }
    checker.node(raw, path, Level::Root, Defaults::Allowed);
    checker.errors.sort_by_cached_key(FieldError::to_string);
    checker.errors.dedup();
    checker.errors
}

/// Whether a node may carry a default.
#[derive(Clone, Copy, PartialEq)]
enum Defaults {
    Allowed,
    /// Within `apiVersion`, `kind` or `metadata` of the object itself.
    ForbiddenIn(&'static str),
}

struct Checker<'a> {
    errors: Vec<FieldError>,
    patterns: &'a mut Patterns,
}

impl Checker<'_> {
    fn required(&mut self, path: &Path, detail: impl Into<String>) {
        self.errors.push(FieldError::required(path, detail));
    }

    fn forbidden(&mut self, path: &Path, detail: &str) {
        self.errors.push(FieldError::forbidden(path, detail));
    }

    fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: &str) {
        self.errors.push(FieldError::invalid(path, value, detail));
    }

    /// A node of the structural part: it says what the value is.
    fn node(&mut self, raw: &Value, path: &Path, level: Level, defaults: Defaults) {
        self.language(raw, path, defaults);
        self.types(raw, path, level);
        self.extensions(raw, path);
        self.values(raw, path, int_or_string_pattern(raw));
        if level == Level::Root {
            self.complete(raw, Some(raw), path, path); // Upstream asks this of the root only.
        }
        let embedded = is_set(raw, "x-kubernetes-embedded-resource");
        if let Some(items) = raw.get("items").filter(|items| items.is_object()) {
            self.node(items, &path.child("items"), Level::Item, defaults);
        }
        for (key, sub) in members(raw, "properties") {
            let at = path.child("properties").key(key);
            if key == "metadata" && (level == Level::Root || embedded) {
                self.metadata(sub, &at, level);
            }
            let defaults = match META.iter().find(|name| level == Level::Root && *name == key) {
                Some(name) => Defaults::ForbiddenIn(name),
                None => defaults,
            };
            if !(key == "metadata" && level == Level::Root) {
                self.node(sub, &at, Level::Field, defaults);
            } else {
                self.values_only(sub, &at);
            }
        }
        if let Some(additional) = raw.get("additionalProperties") {
            let at = path.child("additionalProperties");
            if level == Level::Root {
                self.forbidden(&at, "must not be used at the root");
            }
            if additional.is_object() {
                self.node(additional, &at, Level::Field, defaults);
            }
        }
    }

    /// Metadata of the object itself may only say more about names.
    fn values_only(&mut self, raw: &Value, path: &Path) {
        for key in ["name", "generateName"] {
            if let Some(sub) = raw.get("properties").and_then(|properties| properties.get(key)) {
                self.values(sub, &path.child("properties").key(key), false);
            }
        }
    }

    fn metadata(&mut self, raw: &Value, path: &Path, level: Level) {
        if text(raw, "type") != "object" {
            self.invalid(&path.child("type"), text(raw, "type"), "must be object");
        }
        let names_only = members(raw, "properties").all(|(key, _)| key == "name" || key == "generateName");
        let allowed = ["type", "properties", "description", "default"];
        let others = raw.as_object().into_iter().flatten().any(|(keyword, _)| !allowed.contains(&keyword.as_str()));
        if level == Level::Root && (!names_only || others || raw.get("description").is_some()) {
            let words =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.forbidden(path, words);
        }
    }

    /// Keywords that no schema of a custom resource may use, or only in one way.
    fn language(&mut self, raw: &Value, path: &Path, defaults: Defaults) {
        for keyword in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            if raw.get(keyword).is_some_and(|value| !value.is_null()) {
                self.forbidden(&path.child(keyword), &format!("{keyword} is not supported"));
            }
        }
        match text(raw, "type") {
            "" | "array" | "boolean" | "integer" | "number" | "object" | "string" => {}
            "null" => self.forbidden(&path.child("type"), "type cannot be set to null, use nullable as an alternative"),
            other => {
                let known = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.push(FieldError::not_supported(&path.child("type"), other, &known));
            }
        }
        if raw.get("items").is_some_and(Value::is_array) {
            self.forbidden(&path.child("items"), "items must be a schema object and not an array");
        }
        if is_set(raw, "uniqueItems") {
            let words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.forbidden(&path.child("uniqueItems"), words);
        }
        if members(raw, "properties").next().is_some()
            && raw.get("additionalProperties").is_some_and(|additional| *additional != Value::Bool(true))
        {
            let words = "additionalProperties and properties are mutual exclusive";
            self.forbidden(&path.child("additionalProperties"), words);
        }
        if let Defaults::ForbiddenIn(name) = defaults
            && raw.get("default").is_some()
        {
            self.forbidden(&path.child("default"), &format!("must not be set in top-level {name}"));
        }
    }

    fn types(&mut self, raw: &Value, path: &Path, level: Level) {
        let kind = text(raw, "type");
        let at = path.child("type");
        let embedded = is_set(raw, "x-kubernetes-embedded-resource");
        let preserve = is_set(raw, "x-kubernetes-preserve-unknown-fields");
        if kind == "array" && raw.get("items").is_none() {
            self.required(&path.child("items"), "must be specified");
        }
        if embedded && kind != "object" {
            let words = "must be object if x-kubernetes-embedded-resource is true";
            if kind.is_empty() { self.required(&at, words) } else { self.invalid(&at, kind, words) }
        } else if kind.is_empty() && !is_set(raw, "x-kubernetes-int-or-string") && !preserve {
            self.required(
                &at,
                match level {
                    Level::Root => "must not be empty at the root",
                    Level::Item => "must not be empty for specified array items",
                    Level::Field => "must not be empty for specified object fields",
                },
            );
        }
        if embedded && raw.get("additionalProperties").is_some() {
            let words = "must not be used if x-kubernetes-embedded-resource is set";
            self.forbidden(&path.child("additionalProperties"), words);
        }
        if level == Level::Root && !kind.is_empty() && kind != "object" {
            self.invalid(&at, kind, "must be object at the root");
        }
        if level == Level::Root || embedded {
            for name in ["kind", "apiVersion"] {
                let Some(sub) = raw.get("properties").and_then(|properties| properties.get(name)) else { continue };
                if text(sub, "type") != "string" {
                    let at = path.child("properties").key(name).child("type");
                    self.invalid(&at, text(sub, "type"), "must be string");
                }
            }
        }
        if embedded && !preserve && members(raw, "properties").next().is_none() {
            let words = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.required(&path.child("properties"), words);
        }
    }

    fn extensions(&mut self, raw: &Value, path: &Path) {
        let preserve = path.child("x-kubernetes-preserve-unknown-fields");
        if raw.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            self.invalid(&preserve, false, "must be true or undefined");
        }
        if is_set(raw, "x-kubernetes-int-or-string") {
            for keyword in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
                if is_set(raw, keyword) {
                    self.invalid(&path.child(keyword), true, "must be false if x-kubernetes-int-or-string is true");
                }
            }
        }
        self.typed_extension(raw, path, "x-kubernetes-map-type", "object", &["atomic", "granular"]);
        self.typed_extension(raw, path, "x-kubernetes-list-type", "array", &["atomic", "set", "map"]);
        self.list_type(raw, path);
        for (index, rule) in
            raw.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten().enumerate()
        {
            if text(rule, "rule").trim().is_empty() {
                let at = path.child("x-kubernetes-validations").index(index).child("rule");
                self.required(&at, "rule is not specified");
            }
        }
    }

    fn typed_extension(&mut self, raw: &Value, path: &Path, keyword: &str, wanted: &str, known: &[&str]) {
        let Some(value) = raw.get(keyword).and_then(Value::as_str) else { return };
        let kind = text(raw, "type");
        if kind != wanted {
            let at = path.child("type");
            let words = format!("must be {wanted} if {keyword} is specified");
            if kind.is_empty() { self.required(&at, words) } else { self.invalid(&at, kind, &words) }
        }
        if !known.contains(&value) {
            self.errors.push(FieldError::not_supported(&path.child(keyword), value, known));
        }
    }

    fn list_type(&mut self, raw: &Value, path: &Path) {
        let kind = text(raw, "x-kubernetes-list-type");
        let keys: Vec<&str> = raw
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let items = raw.get("items").filter(|items| items.is_object());
        if !keys.is_empty() && kind != "map" {
            let at = path.child("x-kubernetes-list-type");
            let words = "must be map if x-kubernetes-list-map-keys is non-empty";
            if kind.is_empty() { self.required(&at, words) } else { self.invalid(&at, kind, words) }
        }
        let at_items = path.child("items");
        if let Some(items) = items.filter(|items| matches!(kind, "set" | "map") && is_set(items, "nullable")) {
            debug_assert!(items.is_object(), "filtered above");
            let words = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
            self.forbidden(&at_items.child("nullable"), &words);
        }
        if let Some(items) = items.filter(|_| kind == "set") {
            let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let inner = text(items, "x-kubernetes-list-type");
            if text(items, "type") == "array" && !inner.is_empty() && inner != "atomic" {
                self.invalid(&at_items.child("x-kubernetes-list-type"), inner, words);
            }
            if text(items, "type") == "object" && text(items, "x-kubernetes-map-type") != "atomic" {
                self.invalid(&at_items.child("x-kubernetes-map-type"), Value::Null, words);
            }
        }
        if kind == "map" {
            self.list_map(items, &keys, path);
        }
    }

    fn list_map(&mut self, items: Option<&Value>, keys: &[&str], path: &Path) {
        let at_keys = path.child("x-kubernetes-list-map-keys");
        if keys.is_empty() {
            self.required(&at_keys, "must not be empty if x-kubernetes-list-type is map");
        }
        let Some(items) = items else {
            self.required(&path.child("items"), "must have a schema if x-kubernetes-list-type is map");
            return;
        };
        let at = path.child("items");
        if text(items, "type") != "object" {
            let words = "must be object if parent array's x-kubernetes-list-type is map";
            self.invalid(&at.child("type"), text(items, "type"), words);
            return;
        }
        let required = items.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].contains(key) {
                self.invalid(&at_keys, keys.to_vec(), "must not contain duplicate entries");
            }
            let Some(sub) = items.get("properties").and_then(|properties| properties.get(key)) else {
                self.invalid(&at_keys, keys.to_vec(), "entries must all be names of item properties");
                continue;
            };
            let at = at.child("properties").key(key);
            if matches!(text(sub, "type"), "array" | "object") {
                let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.invalid(&at.child("type"), text(items, "type"), words);
            }
            if !required.iter().any(|name| name.as_str() == Some(key)) && sub.get("default").is_none() {
                let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.required(&at.child("default"), words);
            }
            if is_set(sub, "nullable") {
                let words = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.forbidden(&at.child("nullable"), words);
            }
        }
    }

    /// What a node says beyond types: its pattern, and sub-schemas that only validate.
    fn values(&mut self, raw: &Value, path: &Path, skip_any_of: bool) {
        for (at, sub, keyword) in branches(raw, path) {
            if !(skip_any_of && keyword != "not" && is_int_or_string_branch(raw, keyword)) {
                self.nested(sub, &at);
            }
        }
        let pattern = text(raw, "pattern");
        if !pattern.is_empty() && !self.patterns.0.contains_key(pattern) {
            match Regex::new(pattern) {
                Ok(regex) => {
                    self.patterns.0.insert(pattern.to_owned(), regex);
                }
                Err(error) => {
                    let words = format!("must be a valid regular expression, but isn't: {error}");
                    self.invalid(&path.child("pattern"), pattern, &words);
                }
            }
        }
    }

    /// A node that only validates says nothing about types.
    fn nested(&mut self, raw: &Value, path: &Path) {
        self.values(raw, path, false);
        if let Some(items) = raw.get("items") {
            self.nested(items, &path.child("items"));
        }
        for (key, sub) in members(raw, "properties") {
            let at = path.child("properties").key(key);
            if key == "metadata" {
                self.forbidden(&at, "must not be specified in a nested context");
            }
            self.nested(sub, &at);
        }
        for (keyword, words) in [
            ("type", "must be empty to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("default", "must be undefined to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            ("nullable", "must be false to be structural"),
            ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
            ("x-kubernetes-embedded-resource", "must be false to be structural"),
            ("x-kubernetes-int-or-string", "must be false to be structural"),
            ("x-kubernetes-list-map-keys", "must be empty to be structural"),
            ("x-kubernetes-list-type", "must be undefined to be structural"),
            ("x-kubernetes-map-type", "must be undefined to be structural"),
            ("x-kubernetes-validations", "must be empty to be structural"),
        ] {
            let empty = match raw.get(keyword) {
                None | Some(Value::Null | Value::Bool(false)) => {
                    keyword != "additionalProperties" || raw.get(keyword).is_none()
                }
                Some(Value::String(text)) => text.is_empty(),
                Some(Value::Array(items)) => items.is_empty(),
                Some(_) => false,
            };
            if !empty {
                self.forbidden(&path.child(keyword), words);
            }
        }
    }

    /// Whatever a validating part speaks about must be known to the structural part.
    fn complete(&mut self, values: &Value, structural: Option<&Value>, at: &Path, from: &Path) {
        for (from, sub, _) in branches(values, from) {
            self.complete_nested(sub, structural, at, &from);
        }
    }

    fn complete_nested(&mut self, values: &Value, structural: Option<&Value>, at: &Path, from: &Path) {
        let Some(known) = structural else {
            self.required(at, format!("because it is defined in {from}"));
            return;
        };
        self.complete(values, structural, at, from);
        if let Some(items) = values.get("items") {
            let known = known.get("items");
            self.complete_nested(items, known, &at.child("items"), &from.child("items"));
        }
        for (key, sub) in members(values, "properties") {
            let known = known.get("properties").and_then(|properties| properties.get(key));
            let within = |path: &Path| path.child("properties").key(key);
            self.complete_nested(sub, known, &within(at), &within(from));
        }
    }
}

fn members<'a>(raw: &'a Value, keyword: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    raw.get(keyword).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// The sub-schemas that only validate, with their places.
fn branches<'a>(raw: &'a Value, path: &Path) -> Vec<(Path, &'a Value, &'static str)> {
    let mut found = Vec::new();
    for keyword in ["anyOf", "allOf", "oneOf"] {
        let list = raw.get(keyword).and_then(Value::as_array).into_iter().flatten().enumerate();
        found.extend(list.map(|(index, sub)| (path.child(keyword).index(index), sub, keyword)));
    }
    if let Some(not) = raw.get("not").filter(|not| not.is_object()) {
        found.push((path.child("not"), not, "not"));
    }
    found
}

/// `anyOf: [{type: integer}, {type: string}]`, which generators write beside `x-kubernetes-int-or-string`.
fn is_int_or_string_list(list: Option<&Value>) -> bool {
    let types: Vec<&str> =
        list.and_then(Value::as_array).into_iter().flatten().map(|item| text(item, "type")).collect();
    types == ["integer", "string"]
}

fn int_or_string_pattern(raw: &Value) -> bool {
    is_int_or_string_list(raw.get("anyOf"))
        || is_int_or_string_list(raw.get("allOf").and_then(|list| list.get(0)).and_then(|first| first.get("anyOf")))
}

fn is_int_or_string_branch(raw: &Value, keyword: &str) -> bool {
    match keyword {
        "anyOf" => is_int_or_string_list(raw.get("anyOf")),
        "allOf" => is_int_or_string_list(raw["allOf"].get(0).and_then(|first| first.get("anyOf"))),
        _ => false,
    }
}

/// Defaults must be valid objects of their own schema and know all their fields. Those below additional properties
/// are not looked at, as upstream has it.
pub(super) fn check_defaults(raw: &Value, path: &Path, patterns: &Patterns) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(default) = raw.get("default").filter(|default| !default.is_null()) {
        let at = path.child("default");
        let mut pruned = default.clone();
        // A resource keeps its own apiVersion, kind and metadata; other defaults have none.
        let wrapper = Value::Object(Map::from_iter([("properties".to_owned(), serde_json::json!({"value": raw}))]));
        let mut wrapped = Value::Object(Map::from_iter([("value".to_owned(), pruned)]));
        let unknown = prune::prune(&wrapper, &mut wrapped);
        pruned = wrapped["value"].take();
        if !unknown.is_empty() || pruned != *default {
            errors.push(FieldError::invalid(&at, default.clone(), "must not have unknown fields"));
        }
        errors.extend(validate::validate(raw, default, &at, patterns));
    }
    if let Some(items) = raw.get("items") {
        errors.extend(check_defaults(items, &path.child("items"), patterns));
    }
    for (key, sub) in members(raw, "properties") {
        errors.extend(check_defaults(sub, &path.child("properties").key(key), patterns));
    }
    errors
}

/// The rules and formats that nobody enforces.
pub(super) fn list_unenforced(raw: &Value, path: &Path, found: &mut Vec<Unenforced>) {
    for (index, rule) in raw.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        let path = path.child("x-kubernetes-validations").index(index).to_string();
        found.push(Unenforced { path, what: text(rule, "rule").to_owned() });
    }
    if formats::is_unenforced(text(raw, "format")) {
        found.push(Unenforced { path: path.child("format").to_string(), what: text(raw, "format").to_owned() });
    }
    for (at, sub, _) in branches(raw, path) {
        list_unenforced(sub, &at, found);
    }
    if let Some(items) = raw.get("items") {
        list_unenforced(items, &path.child("items"), found);
    }
    for (key, sub) in members(raw, "properties") {
        list_unenforced(sub, &path.child("properties").key(key), found);
    }
    if let Some(sub) = raw.get("additionalProperties") {
        list_unenforced(sub, &path.child("additionalProperties"), found);
    }
}
