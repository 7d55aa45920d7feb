//! Deployment: pods rolled out through replica sets.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/deployment/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fill::{containers_text, count, fill};
use super::{Column, Rules, workload};
use crate::object;

pub(super) struct Deployment;

impl Rules for Deployment {
    fn default(&self, deployment: &mut Value) {
        let Some(spec) = deployment.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        object::default(spec, "replicas", 1);
        object::default(spec, "strategy", json!({}));
        let strategy = &mut spec["strategy"];
        fill(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            object::default(strategy, "rollingUpdate", json!({}));
            object::default(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
            object::default(&mut strategy["rollingUpdate"], "maxSurge", "25%");
        }
        object::default(spec, "revisionHistoryLimit", 10);
        object::default(spec, "progressDeadlineSeconds", 600);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        workload::keep_spec_and_labels(new, old);
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::text("Ready"),
            Column::text("Up-to-date"),
            Column::text("Available"),
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, deployment: &Value, _now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&deployment["spec"], &deployment["status"]);
        let [names, images] = containers_text(&spec["template"]["spec"]);
        vec![
            format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"])).into(),
            count(&status["updatedReplicas"]).into(),
            count(&status["availableReplicas"]).into(),
            names,
            images,
            workload::selector_cell(&spec["selector"]),
        ]
    }
}
