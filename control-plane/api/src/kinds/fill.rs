//! Small tools for defaults and cells: what every kind's file would otherwise write again.
//!
//! Upstream's defaults look at Go zero values: an empty text or a zero is as absent as a missing member, unless the
//! field is a pointer. [`fill`] is for plain fields, [`object::default`] for pointers.

use jiff::Timestamp;
use kedge_schema::selector::LabelSelector;
use serde_json::Value;

use crate::object;
use crate::table;

/// Puts `value` at `key` where there is nothing, an empty text or a zero. A parent that is no object is left alone.
pub(super) fn fill(parent: &mut Value, key: &str, value: impl Into<Value>) {
    let absent = match parent.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_f64() == Some(0.0),
        Some(_) => false,
    };
    if let Some(map) = parent.as_object_mut().filter(|_| absent) {
        map.insert(key.into(), value.into());
    }
}

/// The text, or an empty one.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The whole number, or zero.
pub(super) fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// How many items or members there are.
pub(super) fn len(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, |map| map.len()), Vec::len)
}

/// Keeps everything of `old` but the status and the metadata: the `/status` of pods, nodes and their like.
pub(super) fn keep_spec(new: &mut Value, old: &Value) {
    let (status, metadata) = (new["status"].take(), new["metadata"].take());
    *new = old.clone();
    let map = object::as_map(new);
    map.insert("metadata".into(), metadata);
    if status.is_null() {
        map.remove("status");
    } else {
        map.insert("status".into(), status);
    }
}

/// How long ago the time at `since` was.
pub(super) fn age(since: &Value, now: Timestamp) -> String {
    table::age(text(since), now)
}

/// How old the object is.
pub(super) fn object_age(object: &Value, now: Timestamp) -> Value {
    age(&object["metadata"]["creationTimestamp"], now).into()
}

/// `text`, or `<none>` when it is empty.
pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>" } else { text }.into()
}

/// A map as `a=b,c=d` in the order of keys (`labels.FormatLabels`).
pub(super) fn labels_text(map: &Value) -> Value {
    let mut pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    pairs.sort();
    or_none(&pairs.join(","))
}

/// A selector object as text (`metav1.FormatLabelSelector`).
pub(super) fn selector_text(selector: &Value) -> Value {
    match LabelSelector::from_object(Some(selector)) {
        Ok(selector) => or_none(&selector.to_string()),
        Err(_) => "<error>".into(),
    }
}

/// The names and the images of a pod spec's containers, each joined by commas.
pub(super) fn containers_text(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|key| {
        let texts: Vec<&str> = object::items(spec, "containers").map(|container| text(&container[key])).collect();
        texts.join(",").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn zeros_are_absent() {
        let mut value = json!({"a": "", "b": 0, "c": null, "d": false, "e": "x"});
        for key in ["a", "b", "c", "d", "e", "f"] {
            fill(&mut value, key, 7);
        }
        assert_eq!(value, json!({"a": 7, "b": 7, "c": 7, "d": false, "e": "x", "f": 7}));
    }

    #[test]
    fn selectors_and_labels_as_text() {
        let check = |selector: Value, expected: &str| assert_eq!(selector_text(&selector), expected, "{selector}");
        check(json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2");
        check(json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), "a");
        check(json!({}), "<none>");
        check(Value::Null, "<none>");
        check(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}), "<error>");
        assert_eq!(labels_text(&json!({"b": "2", "a": "1"})), "a=1,b=2");
        assert_eq!(labels_text(&Value::Null), "<none>");
    }
}
