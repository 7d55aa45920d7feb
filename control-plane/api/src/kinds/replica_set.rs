//! ReplicaSet: a number of equal pods.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/replicaset/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::fill::{keep_spec, selector_text};
use super::{Column, Rules, check, pod_template, workload};
use crate::object;

pub(super) struct ReplicaSet;

impl Rules for ReplicaSet {
    fn default(&self, set: &mut Value) {
        if let Some(spec) = set.get_mut("spec") {
            object::default(spec, "replicas", 1);
        }
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, set: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&set["spec"], Path::new("spec"), Vec::new());
        for key in ["replicas", "minReadySeconds"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        pod_template::selector(&mut errors, spec, "deployment", &path);
        pod_template::validate_running(&mut errors, &spec["template"], "ReplicaSet", &path.child("template"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::same_selector(new, old)
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[(Cow::Borrowed("status.replicas"), "0")])
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        Cow::Borrowed(workload::REPLICA_COLUMNS)
    }

    fn row(&self, set: &Value, _now: Timestamp) -> Vec<Value> {
        workload::replica_cells(set, selector_text(&set["spec"]["selector"]))
    }
}
