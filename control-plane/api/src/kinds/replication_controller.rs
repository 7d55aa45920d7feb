//! ReplicationController: the older form of a replica set, with a map for a selector.
//! (`pkg/apis/core/v1/defaults.go`, `pkg/registry/core/replicationcontroller/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::fill::{keep_spec, labels_text, len};
use super::{Column, Rules, workload};
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
