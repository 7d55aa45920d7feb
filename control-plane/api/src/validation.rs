//! What is true of the metadata of every object (`k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use kedge_schema::shape::{Schema, Shape, TypeId};
use serde_json::Value;

use crate::kinds::Names;
use crate::object;
use crate::registry::Kind;

/// All annotations together, keys and values (`TotalAnnotationSizeLimitB`).
const ANNOTATION_BYTES_MAX: usize = 256 << 10;

/// What is wrong with the metadata of a new or changed object.
pub(crate) fn metadata(object: &Value, kind: &Kind) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let mut report = |path: Path, value: &Value, problems: Vec<String>| {
        errors.extend(problems.into_iter().map(|problem| FieldError::invalid(&path, value.clone(), problem)));
    };
    let rule = kind.rules.get().names();
    report(path.child("name"), &metadata["name"], name(rule, object::name(object)));
    if let Some(prefix) = metadata["generateName"].as_str() {
        // A prefix may end in what a suffix will follow.
        let problems = name(rule, prefix.trim_end_matches(['-', '.']));
        if !prefix.is_empty() {
            report(path.child("generateName"), &metadata["generateName"], problems);
        }
    }
    for (key, value) in pairs(&metadata["labels"]) {
        report(path.child("labels"), &key.into(), names::label_key(key));
        report(path.child("labels"), &value.into(), names::label_value(value));
    }
    let mut annotation_bytes = 0;
    for (key, value) in pairs(&metadata["annotations"]) {
        report(path.child("annotations"), &key.into(), names::label_key(&key.to_ascii_lowercase()));
        annotation_bytes += key.len() + value.len();
    }
    if annotation_bytes > ANNOTATION_BYTES_MAX {
        errors.push(FieldError::too_long(&path.child("annotations"), ANNOTATION_BYTES_MAX));
    }
    // What lies outside `pkg/apis` is validated without the names that are standard there.
    let custom = kind.custom.is_some() || &*kind.resource.group == "apiextensions.k8s.io";
    errors.extend(finalizers(metadata, custom, &path));
    errors.extend(owners(metadata, &path));
    errors
}

/// Fields that a built-in type requires and the object lacks, outside metadata and status. (Upstream's validation says
/// the same, field by field.)
pub(crate) fn required(schema: &Schema, id: TypeId, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in schema.object(id).fields.iter().filter(|field| !matches!(&*field.name, "metadata" | "status")) {
        let path = Path::new(&field.name);
        match object.get(&*field.name) {
            Some(value) if !value.is_null() => required_in(schema, &field.shape, value, &path, &mut errors),
            _ if field.required && !may_be_empty(&field.shape) => errors.push(FieldError::required(&path, "")),
            _ => {}
        }
    }
    errors
}

/// Go cannot tell an absent list, map, flag or number from an empty one, so "required" says nothing about them.
fn may_be_empty(shape: &Shape) -> bool {
    matches!(shape, Shape::List(_) | Shape::Map(_) | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double)
}

fn required_in(schema: &Schema, shape: &Shape, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            let at = |name: &str| path.child(name);
            for field in &schema.object(*id).fields {
                match map.get(&*field.name) {
                    Some(Value::String(text)) if field.required && text.is_empty() => {
                        errors.push(FieldError::required(&at(&field.name), ""));
                    }
                    Some(value) if !value.is_null() => {
                        required_in(schema, &field.shape, value, &at(&field.name), errors)
                    }
                    _ if field.required && !may_be_empty(&field.shape) => {
                        errors.push(FieldError::required(&at(&field.name), ""));
                    }
                    _ => {}
                }
            }
        }
        (Shape::List(list), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                required_in(schema, &list.item, item, &path.index(index), errors);
            }
        }
        (Shape::Map(map), Value::Object(members)) => {
            for (key, member) in members {
                required_in(schema, &map.value, member, &path.key(key), errors);
            }
        }
        _ => {}
    }
}

/// What is wrong with a change of metadata.
pub(crate) fn metadata_update(new: &Value, old: &Value, kind: &Kind) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = metadata(new, kind);
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let (is, was) = (&new["metadata"][key], &old["metadata"][key]);
        if is != was {
            errors.push(FieldError::invalid(&path.child(key), is.clone(), "field is immutable"));
        }
    }
    if object::is_deleting(old) {
        let known: Vec<&str> = object::finalizers(old).collect();
        let added: Vec<&str> = object::finalizers(new).filter(|f| !known.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden(&path.child("finalizers"), detail));
        }
    }
    errors
}

/// What is wrong with a name under a rule.
fn name(rule: Names, name: &str) -> Vec<String> {
    match rule {
        Names::Subdomain => names::dns_subdomain(name),
        Names::Label => names::dns_label(name),
        Names::Label1035 => dns_1035_label(name),
        Names::PathSegment => path_segment(name),
    }
}

fn dns_1035_label(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 63 {
        problems.push(names::length_words(63));
    }
    let mut letters = name.bytes();
    let starts = letters.next().is_some_and(|c| c.is_ascii_lowercase());
    let goes_on = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    if !(starts && goes_on && !name.ends_with('-')) {
        let rule = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                    character, and end with an alphanumeric character";
        problems.push(names::pattern_words(rule, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    problems
}

fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|part| name.contains(**part)).map(|part| format!("may not contain '{part}'")).collect()
}

fn pairs(map: &Value) -> impl Iterator<Item = (&str, &str)> {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

fn finalizers(metadata: &Value, custom: bool, path: &Path) -> Vec<FieldError> {
    let path = path.child("finalizers");
    let mut errors = Vec::new();
    for (index, finalizer) in object::items(metadata, "finalizers").enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        for problem in names::label_key(text) {
            errors.push(FieldError::invalid(&path, finalizer.clone(), problem));
        }
        let known = ["orphan", "foregroundDeletion", "kubernetes"].contains(&text);
        if !custom && !known && !text.contains('/') {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&path.index(index), finalizer.clone(), detail));
        }
    }
    let has = |name: &str| object::items(metadata, "finalizers").any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(&path, metadata["finalizers"].clone(), detail));
    }
    errors
}

fn owners(metadata: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("ownerReferences");
    let mut errors = Vec::new();
    let mut controllers = Vec::new();
    for (index, owner) in object::items(metadata, "ownerReferences").enumerate() {
        let path = path.index(index);
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                let detail = format!("{key} must not be empty");
                let value = owner.get(key).cloned().unwrap_or_else(|| "".into());
                errors.push(FieldError::invalid(&path.child(key), value, detail));
            }
        }
        if owner["controller"] == true {
            controllers.push(format!(
                "{}/{}",
                owner["kind"].as_str().unwrap_or_default(),
                owner["name"].as_str().unwrap_or_default()
            ));
        }
    }
    if controllers.len() > 1 {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {}",
            controllers.join(" and ")
        );
        errors.push(FieldError::invalid(&path, metadata["ownerReferences"].clone(), detail));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finalizers_without_a_domain_are_for_kinds_without_a_list_of_them() {
        let check = |finalizer: &str, custom: bool, expected: usize| {
            let metadata = json!({ "finalizers": [finalizer] });
            assert_eq!(finalizers(&metadata, custom, &Path::new("metadata")).len(), expected, "{finalizer}");
        };
        let cleanup = "customresourcecleanup.apiextensions.k8s.io";
        for (finalizer, built_in, custom) in
            [("orphan", 0, 0), ("example.test/a", 0, 0), (cleanup, 1, 0), ("bare", 1, 0), ("a b", 2, 1)]
        {
            check(finalizer, false, built_in);
            check(finalizer, true, custom);
        }
    }
}
