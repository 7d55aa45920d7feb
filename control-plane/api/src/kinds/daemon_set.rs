//! DaemonSet: one pod on every node that fits.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/daemonset/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fill::{count, fill, keep_spec, labels_text};
use super::{Column, Rules, workload};
use crate::object;

pub(super) struct DaemonSet;

impl Rules for DaemonSet {
    fn default(&self, set: &mut Value) {
        let Some(spec) = set.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        object::default(spec, "updateStrategy", json!({}));
        let strategy = &mut spec["updateStrategy"];
        fill(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            object::default(strategy, "rollingUpdate", json!({}));
            object::default(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
            object::default(&mut strategy["rollingUpdate"], "maxSurge", 0);
        }
        object::default(spec, "revisionHistoryLimit", 10);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::count("Desired"),
            Column::count("Current"),
            Column::count("Ready"),
            Column::count("Up-to-date"),
            Column::count("Available"),
            Column::text("Node Selector"),
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, set: &Value, _now: Timestamp) -> Vec<Value> {
        const NUMBERS: [&str; 5] = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ];
        let numbers = NUMBERS.map(|key| count(&set["status"][key]).into());
        let chosen = labels_text(&set["spec"]["template"]["spec"]["nodeSelector"]);
        numbers.into_iter().chain([chosen]).chain(workload::pod_cells(&set["spec"])).collect()
    }
}
