//! Namespace: made active with a finalizer of its own; deleted in two steps, of which the second is a
//! controller's. (`pkg/registry/core/namespace/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Names, Rules};
use crate::object;

pub(super) struct Namespace;

impl Rules for Namespace {
    fn prepare_create(&self, namespace: &mut Value) {
        let name = object::name(namespace).to_owned();
        let map = object::as_map(namespace);
        map.insert("status".into(), json!({"phase": "Active"}));
        let finalizers = object::child(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push("kubernetes".into());
        }
        label(namespace, &name);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        object::carry_over(new, old, "status");
        // Only `/finalize` may take finalizers away.
        let finalizers = old["spec"]["finalizers"].clone();
        if !finalizers.is_null() {
            object::child(new, "spec").insert("finalizers".into(), finalizers);
        }
        let name = object::name(new).to_owned();
        label(new, &name);
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[(Cow::Borrowed("status.phase"), "")])
    }

    fn has_status(&self) -> bool {
        true
    }

    fn begin_delete(&self, namespace: &mut Value) {
        object::child(namespace, "status").insert("phase".into(), "Terminating".into());
    }

    fn names(&self) -> Names {
        Names::Label
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[Column::text("Status")];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, namespace: &Value, _now: Timestamp) -> Vec<Value> {
        vec![namespace["status"]["phase"].clone()]
    }
}

/// `kubernetes.io/metadata.name` lets selectors name one namespace.
fn label(namespace: &mut Value, name: &str) {
    if name.is_empty() {
        return;
    }
    let labels = object::metadata_mut(namespace).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}
