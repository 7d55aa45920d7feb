//! ReplicationController: the older form of a replica set, with a map for a selector.
//! (`pkg/apis/core/v1/defaults.go`, `pkg/registry/core/replicationcontroller/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use kedge_schema::selector::LabelSelector;
use serde_json::Value;

use super::fill::{keep_spec, labels_text, len};
use super::{Column, Rules, check, pod_template, workload};
use crate::object;

pub(super) struct ReplicationController;

impl Rules for ReplicationController {
    fn default(&self, controller: &mut Value) {
        let labels = controller["spec"]["template"]["metadata"]["labels"].clone();
        let Some(spec) = controller.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        if labels.is_object() {
            if len(&spec["selector"]) == 0 {
                spec["selector"] = labels.clone();
            }
            if len(&controller["metadata"]["labels"]) == 0 {
                object::metadata_mut(controller).insert("labels".into(), labels);
            }
        }
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, controller: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&controller["spec"], Path::new("spec"), Vec::new());
        for key in ["replicas", "minReadySeconds"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        let selector = spec["selector"].as_object().filter(|selector| !selector.is_empty());
        match selector.map(LabelSelector::from_map) {
            None => errors.push(FieldError::required(&path.child("selector"), "")),
            Some(Ok(selector)) if spec["template"].is_object() => {
                pod_template::matches(&mut errors, &selector, spec, &path);
            }
            Some(Ok(_)) => {}
            // The labels of the template, which it cannot match either, tell of it.
            Some(Err(_)) => {}
        }
        match &spec["template"] {
            template @ Value::Object(_) => {
                let path = path.child("template");
                pod_template::validate_running(&mut errors, template, "ReplicationController", &path);
            }
            _ => errors.push(FieldError::required(&path.child("template"), "")),
        }
        errors
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

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        Cow::Borrowed(workload::REPLICA_COLUMNS)
    }

    fn row(&self, controller: &Value, _now: Timestamp) -> Vec<Value> {
        workload::replica_cells(controller, labels_text(&controller["spec"]["selector"]))
    }
}
