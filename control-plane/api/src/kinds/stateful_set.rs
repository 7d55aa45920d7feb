//! StatefulSet: pods with names and volumes of their own.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/statefulset/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fill::{containers_text, count, fill, keep_spec};
use super::{Column, Rules};
use crate::object;

pub(super) struct StatefulSet;

impl Rules for StatefulSet {
    fn default(&self, set: &mut Value) {
        let Some(spec) = set.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        fill(spec, "podManagementPolicy", "OrderedReady");
        object::default(spec, "updateStrategy", json!({}));
        let strategy = &mut spec["updateStrategy"];
        if strategy["type"].as_str().unwrap_or_default().is_empty() {
            strategy["type"] = "RollingUpdate".into();
            object::default(strategy, "rollingUpdate", json!({}));
        }
        if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
            object::default(&mut strategy["rollingUpdate"], "partition", 0);
        }
        object::default(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
        fill(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenDeleted", "Retain");
        fill(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenScaled", "Retain");
        object::default(spec, "replicas", 1);
        object::default(spec, "revisionHistoryLimit", 10);
        for claim in object::items_mut(spec, "volumeClaimTemplates") {
            fill(claim, "apiVersion", "v1");
            fill(claim, "kind", "PersistentVolumeClaim");
            object::child(claim, "status");
            fill(&mut claim["status"], "phase", "Pending");
        }
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
        const COLUMNS: &[Column] = &[Column::text("Ready"), Column::wide("Containers"), Column::wide("Images")];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, set: &Value, _now: Timestamp) -> Vec<Value> {
        let ready = format!("{}/{}", count(&set["status"]["readyReplicas"]), count(&set["spec"]["replicas"]));
        let [names, images] = containers_text(&set["spec"]["template"]["spec"]);
        vec![ready.into(), names, images]
    }
}
