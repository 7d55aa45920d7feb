//! What the kinds that make pods from a template have in common.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::selector::LabelSelector;
use serde_json::Value;

use super::fill::{containers_text, count, keep_spec, selector_text};
use super::{Column, check};
use crate::object;

/// Through `/status` neither the spec nor the labels change.
pub(super) fn keep_spec_and_labels(new: &mut Value, old: &Value) {
    keep_spec(new, old);
    object::carry_over(&mut new["metadata"], &old["metadata"], "labels");
}

/// A deployment's selector, where upstream prints nothing for nothing.
pub(super) fn selector_cell(selector: &Value) -> Value {
    match LabelSelector::from_object(Some(selector)) {
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<invalid>".into(),
    }
}

/// The columns of replica sets and replication controllers.
pub(super) const REPLICA_COLUMNS: &[Column] = &[
    Column::count("Desired"),
    Column::count("Current"),
    Column::count("Ready"),
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

/// The cells under [`REPLICA_COLUMNS`].
pub(super) fn replica_cells(owner: &Value, selector: Value) -> Vec<Value> {
    let (spec, status) = (&owner["spec"], &owner["status"]);
    let [names, images] = containers_text(&spec["template"]["spec"]);
    let numbers = [&spec["replicas"], &status["replicas"], &status["readyReplicas"]].map(|n| count(n).into());
    numbers.into_iter().chain([names, images, selector]).collect()
}

/// Names, images and selector of the pods, for the wide columns.
pub(super) fn pod_cells(spec: &Value) -> [Value; 3] {
    let [names, images] = containers_text(&spec["template"]["spec"]);
    [names, images, selector_text(&spec["selector"])]
}

/// The selector may not change: whose pods are whose would change with it.
pub(super) fn same_selector(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec").child("selector");
    check::immutable(&mut errors, &path, &new["spec"]["selector"], &old["spec"]["selector"]);
    errors
}
