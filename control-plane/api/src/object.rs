//! Small tools for objects as JSON values: reading metadata, walking dotted paths, encoding for the store.
//!
//! Indexing a `Value` with a missing key reads `Null`, never panics; writing goes through the helpers here.

use kedge_store::{Facets, ObjectKey, Payload};
use serde_json::{Map, Value};

/// `metadata.name`, or nothing.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`, or nothing.
pub(crate) fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// `metadata.uid`, or nothing.
pub(crate) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Where the object lies in its collection.
pub(crate) fn key(object: &Value) -> ObjectKey {
    ObjectKey::new(namespace(object), name(object))
}

/// Whether a deletion has begun.
pub(crate) fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The texts of `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The member `key` as an object, made when it is missing (or is something else, which validation reports).
pub(crate) fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let map = as_map(value);
    let child = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    as_map(child)
}

/// The value as an object, replaced by an empty one when it is something else.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("just made one")
}

/// `metadata`, made when missing.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// Puts `value` at `key` of the object `parent` unless something other than `null` is there. A parent that is no
/// object is left alone.
pub(crate) fn default(parent: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = parent.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.into(), value.into());
    }
}

/// The items of the list at `key`; none when it is missing.
pub(crate) fn items_mut<'a>(parent: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    parent.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The items of the list at `key`; none when it is missing.
pub(crate) fn items<'a>(parent: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    parent[key].as_array().into_iter().flatten()
}

/// Moves the member `key` from `from` into `to`, or removes it there when `from` has none.
pub(crate) fn carry_over(to: &mut Value, from: &Value, key: &str) {
    let map = as_map(to);
    match from.get(key) {
        Some(value) => map.insert(key.into(), value.clone()),
        None => map.remove(key),
    };
}

/// The value at a dotted path (`spec.nodeName`) as selectors compare it; `absent` where there is none.
pub(crate) fn text_at(object: &Value, path: &str, absent: &str) -> String {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        _ => absent.to_owned(),
    }
}

/// What selectors look at: the labels, and the values at `selectable` (path, value when absent).
pub(crate) fn facets<'a>(object: &Value, selectable: impl Iterator<Item = (&'a str, &'a str)>) -> Facets {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    Facets {
        labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
        fields: selectable.map(|(path, absent)| (path.into(), text_at(object, path, absent).into())).collect(),
    }
}

/// The object as the store wants it: JSON without its revision, and where the revision goes.
pub(crate) fn encode(object: &Value, facets: Facets) -> Payload {
    let mut out = Vec::with_capacity(1024);
    let mut revision_at = 0;
    let mut separator = b'{';
    for (key, value) in object.as_object().into_iter().flatten() {
        out.push(separator);
        separator = b',';
        write_json(&mut out, key);
        out.push(b':');
        if key == "metadata" {
            revision_at = out.len() + 1;
            write_metadata(&mut out, value);
        } else {
            write_json(&mut out, value);
        }
    }
    out.push(b'}');
    Payload::new(out, revision_at, facets)
}

fn write_metadata(out: &mut Vec<u8>, metadata: &Value) {
    let mut separator = b'{';
    for (key, value) in metadata.as_object().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion") {
        out.push(separator);
        separator = b',';
        write_json(out, key);
        out.push(b':');
        write_json(out, value);
    }
    out.push(b'}');
}

fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("JSON values always encode");
}

/// Reads back what the store holds.
pub(crate) fn decode(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("the store holds what `encode` wrote")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_encoded_gets_its_revision_and_reads_back() {
        let object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "resourceVersion": "9"}, "spec": {"n": 1}});
        let payload = encode(&object, Facets::default());
        assert_eq!(payload.len(), object.to_string().len() - "\"resourceVersion\":\"9\"".len() - 1);
    }

    #[test]
    fn facets_take_labels_and_selected_fields() {
        let pod = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n1"}});
        let selectable = [("spec.nodeName", ""), ("spec.hostNetwork", "false"), ("status.phase", "")];
        let facets = facets(&pod, selectable.into_iter());
        assert_eq!(facets.label("app"), Some("web"));
        assert_eq!(facets.field("spec.nodeName"), Some("n1"));
        assert_eq!(facets.field("spec.hostNetwork"), Some("false"));
        assert_eq!(facets.field("status.phase"), Some(""));
    }

    #[test]
    fn defaults_do_not_overwrite_and_carry_over_removes() {
        let mut value = json!({"a": 1, "b": null});
        default(&mut value, "a", 2);
        default(&mut value, "b", 2);
        default(&mut value, "c", "x");
        assert_eq!(value, json!({"a": 1, "b": 2, "c": "x"}));
        carry_over(&mut value, &json!({"a": 5}), "a");
        carry_over(&mut value, &json!({"a": 5}), "c");
        assert_eq!(value, json!({"a": 5, "b": 2}));
    }
}
