//! Checks that many kinds share, with upstream's words (`pkg/apis/core/validation`, `apimachinery/pkg/util/validation`).
//!
//! Each looks at one value and adds what is wrong with it. Values are as their schema promises: where a text is
//! expected there is a text, or nothing.

use std::net::IpAddr;

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::fill::{count, text};
use crate::object;

/// What is wrong so far.
pub(super) type Errors = Vec<FieldError>;

/// Adds one `Invalid value` per problem.
pub(super) fn problems(errors: &mut Errors, path: &Path, value: impl Into<Value>, found: Vec<String>) {
    let value = value.into();
    errors.extend(found.into_iter().map(|problem| FieldError::invalid(path, value.clone(), problem)));
}

/// The text must be there and follow `rule`.
pub(super) fn name(errors: &mut Errors, path: &Path, value: &Value, rule: impl Fn(&str) -> Vec<String>) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        name => problems(errors, path, name, rule(name)),
    }
}

/// Where the text is there, it must follow `rule`.
pub(super) fn optional(errors: &mut Errors, path: &Path, value: &Value, rule: impl Fn(&str) -> Vec<String>) {
    if !text(value).is_empty() {
        problems(errors, path, text(value), rule(text(value)));
    }
}

/// The text must be there.
pub(super) fn required(errors: &mut Errors, path: &Path, value: &Value) {
    if text(value).is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

/// The text must be there and be one of `supported`, in the order in which upstream names them.
pub(super) fn one_of(errors: &mut Errors, path: &Path, value: &Value, supported: &[&str]) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        _ => among(errors, path, value, supported),
    }
}

/// The text, an empty one as well, must be one of `supported`, which is sorted.
pub(super) fn among_any(errors: &mut Errors, path: &Path, value: &Value, supported: &[&str]) {
    if !supported.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, text(value), supported));
    }
}

/// The text, if there is any value, must be one of `supported`, which is sorted.
pub(super) fn among(errors: &mut Errors, path: &Path, value: &Value, supported: &[&str]) {
    if !value.is_null() && !supported.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, text(value), supported));
    }
}

/// A number that may not be negative.
pub(super) fn not_negative(errors: &mut Errors, path: &Path, value: &Value) {
    if count(value) < 0 {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

/// A number that must be positive.
pub(super) fn positive(errors: &mut Errors, path: &Path, value: &Value) {
    if count(value) <= 0 {
        errors.push(FieldError::invalid(path, count(value), "must be greater than zero"));
    }
}

/// A number from `least` to `most`.
pub(super) fn within(errors: &mut Errors, path: &Path, value: &Value, least: i64, most: i64) {
    if !(least..=most).contains(&count(value)) {
        errors.push(FieldError::invalid(path, count(value), format!("must be between {least} and {most}, inclusive")));
    }
}

/// A port's number.
pub(super) fn port_number(errors: &mut Errors, path: &Path, value: &Value) {
    within(errors, path, value, 1, 65_535);
}

/// A port's number or name.
pub(super) fn port(errors: &mut Errors, path: &Path, value: &Value) {
    match value {
        Value::String(name) => problems(errors, path, name.as_str(), port_name(name)),
        number => port_number(errors, path, number),
    }
}

/// [`names::dns_label`] in the words of the older of upstream's two libraries, which kinds still use.
pub(super) fn dns_label(name: &str) -> Vec<String> {
    in_characters(names::dns_label(name))
}

/// [`names::dns_subdomain`] in the words of the older library.
pub(super) fn dns_subdomain(name: &str) -> Vec<String> {
    in_characters(names::dns_subdomain(name))
}

fn in_characters(found: Vec<String>) -> Vec<String> {
    found.into_iter().map(|problem| problem.replace(" bytes", " characters")).collect()
}

/// What is wrong with a port's name (`IsValidPortName`).
pub(super) fn port_name(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    if name.len() > 15 {
        found.push("must be no more than 15 characters".to_owned());
    }
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        found.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        found.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        found.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        found.push("must not begin or end with a hyphen".to_owned());
    }
    found
}

/// What is wrong with the key of a config map or secret (`IsConfigMapKey`).
pub(super) fn data_key(key: &str) -> Vec<String> {
    let mut found = Vec::new();
    if key.len() > 253 {
        found.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        found.push(names::pattern_words(rule, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match key {
        "." => found.push("must not be '.'".to_owned()),
        ".." => found.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => found.push("must not start with '..'".to_owned()),
        _ => {}
    }
    found
}

/// A map of labels.
pub(super) fn labels(errors: &mut Errors, path: &Path, map: &Value) {
    for (key, value) in map.as_object().into_iter().flatten() {
        problems(errors, path, key.as_str(), names::label_key(key));
        problems(errors, path, text(value), names::label_value(text(value)));
    }
}

/// A label selector object (`ValidateLabelSelector`).
pub(super) fn selector(errors: &mut Errors, path: &Path, selector: &Value) {
    labels(errors, &path.child("matchLabels"), &selector["matchLabels"]);
    for (index, expression) in object::items(selector, "matchExpressions").enumerate() {
        requirement(errors, &path.child("matchExpressions").index(index), expression, &[]);
    }
}

/// One expression of a label or node selector; `comparing` names operators beyond the common four.
pub(super) fn requirement(errors: &mut Errors, path: &Path, expression: &Value, comparing: &[&str]) {
    let values = expression["values"].as_array().map_or(&[][..], Vec::as_slice);
    let at = path.child("values");
    match text(&expression["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&at, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        operator if comparing.contains(&operator) => {
            if values.len() != 1 {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(&at, why));
            }
        }
        operator => {
            errors.push(FieldError::invalid(&path.child("operator"), operator, "not a valid selector operator"));
        }
    }
    problems(errors, &path.child("key"), text(&expression["key"]), names::label_key(text(&expression["key"])));
    for (index, value) in values.iter().enumerate() {
        problems(errors, &at.index(index), text(value), names::label_value(text(value)));
    }
}

/// An IP address.
pub(super) fn ip(errors: &mut Errors, path: &Path, value: &Value) -> Option<IpAddr> {
    let parsed = text(value).parse().ok();
    if parsed.is_none() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, text(value), why));
    }
    parsed
}

/// The network of a CIDR.
pub(super) fn cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = value.split_once('/')?;
    let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// A field that may not change.
pub(super) fn immutable(errors: &mut Errors, path: &Path, new: &Value, old: &Value) {
    if new != old {
        errors.push(FieldError::invalid(path, new.clone(), "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ports_and_keys() {
        let check =
            |found: Vec<String>, expected: usize, what: &str| assert_eq!(found.len(), expected, "{what}: {found:?}");
        for (name, expected) in
            [("http", 0), ("", 2), ("80", 1), ("a--b", 1), ("-a", 1), ("A", 2), ("abcdefghijklmnop", 1)]
        {
            check(port_name(name), expected, name);
        }
        for (key, expected) in [("a.b_c-D", 0), ("", 1), ("a/b", 1), ("..", 1), ("..a", 1), (".", 1), ("...a", 1)] {
            check(data_key(key), expected, key);
        }
        assert_eq!(cidr("10.0.0.0/8"), Some(("10.0.0.0".parse().unwrap(), 8)));
        assert_eq!(cidr("10.0.0.0/33"), None);
    }
}
