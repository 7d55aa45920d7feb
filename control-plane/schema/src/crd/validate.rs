//! Objects against the limits of their schema.
//!
//! Texts and order of kinds of complaint follow `kube-openapi/pkg/validation` and how `apiextensions-apiserver` turns
//! its results into field errors; members are visited by name. List keys follow `schema/listtype`.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use super::{Patterns, formats, is_set, member, text};
use crate::field::{ErrorKind, FieldError, Path};
use crate::go_text::{self, quote};

/// All that is wrong with a value, `base` being where it stands.
pub(super) fn validate(schema: &Value, value: &Value, base: &Path, patterns: &Patterns) -> Vec<FieldError> {
    let mut validator = Validator { base, patterns, errors: Vec::new() };
    validator.value(schema, value, "");
    let mut told: Vec<FieldError> = Vec::with_capacity(validator.errors.len());
    for error in validator.errors {
        if !told.contains(&error) {
            told.push(error); // Branches of a schema often say the same.
        }
    }
    told
}

struct Validator<'a> {
    base: &'a Path,
    patterns: &'a Patterns,
    errors: Vec<FieldError>,
}

impl Validator<'_> {
    fn path(&self, name: &str) -> Path {
        let name = name.trim_start_matches('.');
        if name.is_empty() { self.base.clone() } else { self.base.child(name) }
    }

    fn invalid(&mut self, name: &str, value: impl Into<Value>, detail: String) {
        let path = self.path(name);
        self.errors.push(FieldError::invalid(&path, value, detail));
    }

    fn wrong_type(&mut self, name: &str, wanted: &str, found: &str) {
        let path = self.path(name);
        let detail = format!("{name} in body must be of type {wanted}: {}", quote(found));
        self.errors.push(FieldError::type_invalid(&path, found, detail));
    }

    fn value(&mut self, schema: &Value, value: &Value, name: &str) {
        self.json_type(schema, value, name);
        if value.is_null() {
            return self.one_of_enum(schema, value, name); // `nullable` does not excuse an `enum` without null.
        }
        self.logic(schema, value, name);
        match value {
            Value::String(text) => self.string(schema, text, name),
            Value::Number(number) => self.number(schema, number, name),
            Value::Array(items) => self.array(schema, items, name),
            _ => {}
        }
        self.one_of_enum(schema, value, name);
        if let Value::Object(map) = value {
            self.object(schema, map, name);
        }
    }

    fn json_type(&mut self, schema: &Value, value: &Value, name: &str) {
        let int_or_string = is_set(schema, "x-kubernetes-int-or-string");
        let wanted = if int_or_string { "integer,string" } else { text(schema, "type") };
        if wanted.is_empty() {
            return;
        }
        let found = json_type(value);
        let is_whole = |number: &Number| number.as_f64().is_some_and(|float| float.fract() == 0.0);
        let fits = match value {
            Value::Null => is_set(schema, "nullable"),
            Value::Number(number) => {
                wanted == "number" || (int_or_string || wanted == "integer") && (!number.is_f64() || is_whole(number))
            }
            _ => wanted == found || int_or_string && found == "string",
        };
        // Where there is a format upstream names that, and the format of what it found.
        let format = text(schema, "format");
        match value {
            _ if fits => {}
            Value::Number(number) if !format.is_empty() => {
                self.wrong_type(name, format, if number.is_f64() { "double" } else { "int64" });
            }
            Value::Bool(_) | Value::Object(_) if !format.is_empty() => self.wrong_type(name, format, ""),
            _ => self.wrong_type(name, wanted, found),
        }
    }

    /// `anyOf`, `oneOf`, `allOf`, `not`.
    fn logic(&mut self, schema: &Value, value: &Value, name: &str) {
        let branches = |keyword: &str| schema.get(keyword).and_then(Value::as_array).filter(|list| !list.is_empty());
        if let Some(list) = branches("anyOf") {
            let results = self.branches(list, value, name);
            if results.iter().all(|errors| !errors.is_empty()) {
                self.whole(format!("{} must validate at least one schema (anyOf)", quote(name)));
                self.errors.extend(best(results));
            }
        }
        if let Some(list) = branches("oneOf") {
            let results = self.branches(list, value, name);
            let valid = results.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let found = if valid == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {valid} valid alternatives")
                };
                self.whole(format!("{} must validate one and only one schema (oneOf). {found}", quote(name)));
                if valid == 0 {
                    self.errors.extend(best(results));
                }
            }
        }
        if let Some(list) = branches("allOf") {
            let results = self.branches(list, value, name);
            let valid = results.iter().filter(|errors| errors.is_empty()).count();
            if valid != list.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.errors.extend(results.into_iter().flatten());
                self.whole(format!("{} must validate all the schemas (allOf){none}", quote(name)));
            }
        }
        if let Some(not) = schema.get("not").filter(|not| not.is_object())
            && self.branches(std::slice::from_ref(not), value, name)[0].is_empty()
        {
            self.whole(format!("{} must not validate the schema (not)", quote(name)));
        }
    }

    fn branches(&self, list: &[Value], value: &Value, name: &str) -> Vec<Vec<FieldError>> {
        let branch = |schema| {
            let mut validator = Validator { base: self.base, patterns: self.patterns, errors: Vec::new() };
            validator.value(schema, value, name);
            validator.errors
        };
        list.iter().map(branch).collect()
    }

    /// Upstream has no path for these.
    fn whole(&mut self, detail: String) {
        self.errors.push(FieldError::invalid(self.base, "", detail));
    }

    fn string(&mut self, schema: &Value, value: &str, name: &str) {
        let count = value.chars().count() as u64;
        if let Some(max) = limit(schema, "maxLength").filter(|max| count > *max) {
            let path = self.path(name);
            self.errors.push(FieldError::too_long(&path, max as usize));
        }
        if let Some(min) = limit(schema, "minLength").filter(|min| count < *min) {
            self.invalid(name, value, format!("{name} in body should be at least {min} chars long"));
        }
        let pattern = text(schema, "pattern");
        if !pattern.is_empty() && !self.patterns.0.get(pattern).is_some_and(|regex| regex.is_match(value)) {
            self.invalid(name, value, format!("{name} in body should match '{pattern}'"));
        }
        let format = text(schema, "format");
        if !format.is_empty() && !formats::accepts(format, value) {
            let path = self.path(name);
            let detail = format!("{name} in body must be of type {format}: {}", quote(value));
            self.errors.push(FieldError::type_invalid(&path, value, detail));
        }
    }

    fn number(&mut self, schema: &Value, value: &Number, name: &str) {
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_number).cloned();
        let shown = Value::Number(value.clone());
        let value_of = |number: &Number| number.as_f64().unwrap_or(f64::NAN);
        let own = value_of(value);
        if text(schema, "type") == "integer" {
            self.whole_numbers(schema, own, name);
        }
        if let Some(factor) = bound("multipleOf") {
            let quotient = own / value_of(&factor);
            if (quotient - quotient.round()).abs() > 1e-9 * quotient.abs().max(1.0) {
                let words = format!("{name} in body should be a multiple of {}", go_text::number(&factor));
                self.invalid(name, shown.clone(), words);
            }
        }
        if let Some(max) = bound("maximum") {
            let exclusive = is_set(schema, "exclusiveMaximum");
            if compare(value, &max) == Some(std::cmp::Ordering::Greater) || exclusive && own == value_of(&max) {
                let words = if exclusive { "less than" } else { "less than or equal to" };
                let max = go_text::number(&max);
                self.invalid(name, shown.clone(), format!("{name} in body should be {words} {max}"));
            }
        }
        if let Some(min) = bound("minimum") {
            let exclusive = is_set(schema, "exclusiveMinimum");
            if compare(value, &min) == Some(std::cmp::Ordering::Less) || exclusive && own == value_of(&min) {
                let words = if exclusive { "greater than" } else { "greater than or equal to" };
                let min = go_text::number(&min);
                self.invalid(name, shown, format!("{name} in body should be {words} {min}"));
            }
        }
    }

    /// An integer and its bounds must be whole, and fit the format. Upstream looks at a bound only when there is a
    /// value to compare, and has no path for the complaint.
    fn whole_numbers(&mut self, schema: &Value, value: f64, name: &str) {
        let format = text(schema, "format");
        let shown = if format.is_empty() { "(default format)".to_owned() } else { format!("with format {format}") };
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
        for (words, number) in [
            ("Checked", Some(value)),
            ("MultipleOf", bound("multipleOf")),
            ("Maximum boundary", bound("maximum")),
            ("Minimum boundary", bound("minimum")),
        ] {
            let fits = |number: f64| {
                number.fract() == 0.0 && (format != "int32" || (-2_147_483_648.0..=2_147_483_647.0).contains(&number))
            };
            if !number.is_none_or(fits) {
                self.whole(format!("{words} value must be of type integer {shown} in {name}"));
            }
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], name: &str) {
        if let Some(sub) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.value(sub, item, &format!("{name}[{index}]"));
            }
        }
        let count = items.len() as u64;
        if let Some(min) = limit(schema, "minItems").filter(|min| count < *min) {
            self.invalid(name, count, format!("{name} in body should have at least {min} items"));
        }
        if let Some(max) = limit(schema, "maxItems").filter(|max| count > *max) {
            let path = self.path(name);
            self.errors.push(FieldError::too_many(&path, items.len(), max as usize));
        }
    }

    fn one_of_enum(&mut self, schema: &Value, value: &Value, name: &str) {
        let Some(allowed) = schema.get("enum").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
            return;
        };
        let same = |other: &Value| other == value || other.as_f64().is_some_and(|float| Some(float) == value.as_f64());
        if allowed.iter().any(same) {
            return;
        }
        let shown: Vec<String> =
            allowed.iter().map(|item| item.as_str().map_or_else(|| go_text::json(item), str::to_owned)).collect();
        let path = self.path(name);
        self.errors.push(FieldError::not_supported(&path, value.clone(), &shown));
    }

    fn object(&mut self, schema: &Value, map: &Map<String, Value>, name: &str) {
        let count = map.len() as u64;
        if let Some(min) = limit(schema, "minProperties").filter(|min| count < *min) {
            self.invalid(name, count, format!("{name} in body should have at least {min} properties"));
        }
        if let Some(max) = limit(schema, "maxProperties").filter(|max| count > *max) {
            let path = self.path(name);
            self.errors.push(FieldError::too_many(&path, map.len(), max as usize));
        }
        for (key, value) in map {
            if let Some(sub) = member(schema, key) {
                // Upstream writes the dot before an additional property even at the root.
                let named = schema.get("properties").is_some_and(|properties| properties.get(key).is_some());
                let within = if name.is_empty() && named { key.clone() } else { format!("{name}.{key}") };
                self.value(sub, value, &within);
            }
        }
        for key in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(key) {
                let path = self.path(&format!("{name}.{key}"));
                self.errors.push(FieldError::required(&path, ""));
            }
        }
    }
}

/// The branch that came closest.
fn best(results: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    results.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

fn limit(schema: &Value, keyword: &str) -> Option<u64> {
    schema.get(keyword).and_then(Value::as_u64)
}

fn compare(a: &Number, b: &Number) -> Option<std::cmp::Ordering> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Items of sets and maps (`x-kubernetes-list-type`) that stand there twice.
pub(super) fn list_keys(schema: &Value, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    keys_of(schema, object, &mut Path::root(), &mut errors);
    errors
}

fn keys_of(schema: &Value, value: &Value, path: &mut Path, errors: &mut Vec<FieldError>) {
    let mark = path.mark();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let Some(sub) = member(schema, key) else { continue };
                match schema.get("properties").and_then(|properties| properties.get(key)) {
                    Some(_) => path.push_child(key),
                    None => path.push_key(key),
                }
                keys_of(sub, value, path, errors);
                path.reset(mark);
            }
        }
        Value::Array(items) => {
            match text(schema, "x-kubernetes-list-type") {
                "set" => duplicates(items.iter().map(|item| (item.clone(), item.clone())), path, errors),
                "map" => map_keys(schema, items, path, errors),
                _ => {}
            }
            let Some(sub) = schema.get("items") else { return };
            for (index, item) in items.iter().enumerate() {
                path.push_index(index);
                keys_of(sub, item, path, errors);
                path.reset(mark);
            }
        }
        _ => {}
    }
}

fn map_keys(schema: &Value, items: &[Value], path: &Path, errors: &mut Vec<FieldError>) {
    if let Some((index, item)) = items.iter().enumerate().find(|(_, item)| !item.is_object() && !item.is_null()) {
        let words = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(&path.index(index), item.clone(), words));
        return;
    }
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let key_of = |item: &Value| -> Value {
        let present = keys.iter().filter_map(|key| Some(((*key).to_owned(), item.get(key)?.clone())));
        Value::Object(present.collect())
    };
    duplicates(items.iter().map(|item| (key_of(item), key_of(item))), path, errors);
}

/// Tells the second of equal items, once.
fn duplicates(items: impl Iterator<Item = (Value, Value)>, path: &Path, errors: &mut Vec<FieldError>) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, (key, shown)) in items.enumerate() {
        let times = seen.entry(key.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            errors.push(FieldError { kind: ErrorKind::Duplicate, ..FieldError::duplicate(&path.index(index), shown) });
        }
    }
}

/// What stands at a field error's path, as far as the path can be followed without doubt.
pub(super) fn at_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    for part in path.split('.') {
        let (name, indices) = part.split_once('[').unwrap_or((part, ""));
        value = value.get(name)?;
        for index in indices.split(['[', ']']).filter(|index| !index.is_empty()) {
            value = match value {
                Value::Array(items) => items.get(index.parse::<usize>().ok()?)?,
                other => other.get(index)?,
            };
        }
    }
    Some(value)
}
