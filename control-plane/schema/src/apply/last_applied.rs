//! Moving from client-side to server-side apply: the `last-applied-configuration` annotation.
//!
//! What `kubectl` wrote into the annotation and nobody changed since is its own, whoever the entries name. Follows
//! `managedfields/internal/lastapplied{manager,updater}.go`.

use serde_json::Value;

use super::{Conflicts, Target, Writer, compare, typed};
use crate::shape::Shape;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Upstream keeps all annotations below this size.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// The conflicts that the annotation does not excuse; none where there is no usable annotation.
pub(super) fn without_own(
    target: &Target<'_>,
    writer: &Writer<'_>,
    live: &Value,
    conflicts: &Conflicts,
) -> Option<Conflicts> {
    let text = annotation(live)?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last.get("apiVersion").and_then(Value::as_str) != Some(writer.api_version) {
        return None;
    }
    let shape = Shape::Object(target.id);
    typed::validate(target.schema, &shape, live, false).ok()?;
    typed::validate(target.schema, &shape, &last, false).ok()?;
    let found = compare::compare(target.schema, &shape, &last, live).ok()?;
    let own = typed::field_set(target.schema, &shape, &last)
        .difference(&found.modified)
        .difference(&found.added)
        .difference(&found.removed);
    let remaining = conflicts.0.iter().filter(|conflict| !own.has(&conflict.path));
    Some(Conflicts(remaining.cloned().collect()))
}

/// Keeps the annotation up to date where the object has one, so that clients can still go back.
pub(super) fn renew(object: &mut Value, applied: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let text = format!("{}\n", crate::go_text::json(&applied));
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    let others: usize = annotations
        .iter()
        .filter(|(key, _)| *key != ANNOTATION)
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + ANNOTATION.len() + text.len() > ANNOTATIONS_BYTES_MAX {
        annotations.remove(ANNOTATION);
    } else {
        annotations.insert(ANNOTATION.to_owned(), text.into());
    }
}

fn annotation(object: &Value) -> Option<&str> {
    let annotations = object.get("metadata")?.get("annotations")?;
    annotations.get(ANNOTATION)?.as_str().filter(|text| !text.is_empty())
}
