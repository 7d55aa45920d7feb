//! Deployment: pods rolled out through replica sets.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/deployment/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::fill::{containers_text, count, fill};
use super::{Column, Rules, check, pod_template, rollout, workload};
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

    fn validate(&self, deployment: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&deployment["spec"], Path::new("spec"), Vec::new());
        for key in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        pod_template::selector(&mut errors, spec, "deployment", &path);
        pod_template::validate_running(&mut errors, &spec["template"], "ReplicaSet", &path.child("template"));
        strategy(&mut errors, &spec["strategy"], &path.child("strategy"));
        let deadline = &spec["progressDeadlineSeconds"];
        if !deadline.is_null() && count(deadline) <= count(&spec["minReadySeconds"]) {
            let path = path.child("progressDeadlineSeconds");
            errors.push(FieldError::invalid(&path, deadline.clone(), "must be greater than minReadySeconds"));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        workload::same_selector(new, old)
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

fn strategy(errors: &mut Vec<FieldError>, strategy: &Value, path: &Path) {
    let (at, rolling) = (path.child("rollingUpdate"), &strategy["rollingUpdate"]);
    match strategy["type"].as_str().unwrap_or_default() {
        "Recreate" if !rolling.is_null() => {
            errors.push(FieldError::forbidden(&at, "may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            for key in ["maxUnavailable", "maxSurge"] {
                rollout::positive(errors, &at.child(key), &rolling[key]);
            }
            let [unavailable, surge] = ["maxUnavailable", "maxSurge"].map(|key| rollout::amount(&rolling[key]));
            let missing = &rolling["maxUnavailable"];
            if unavailable.unwrap_or(0) == 0 && surge.unwrap_or(0) == 0 {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(&at.child("maxUnavailable"), missing.clone(), why));
            }
            if missing.is_string() && unavailable.is_some_and(|percent| percent > 100) {
                let why = "must not be greater than 100%";
                errors.push(FieldError::invalid(&at.child("maxUnavailable"), missing.clone(), why));
            }
        }
        _ => {
            errors.push(FieldError::not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"]));
        }
    }
}
