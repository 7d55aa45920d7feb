//! DaemonSet: one pod on every node that fits.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/daemonset/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::fill::{count, fill, keep_spec, labels_text, text};
use super::{Column, Rules, check, pod_template, rollout, types, workload};
use crate::object;

/// Counts the changes of the template, for clients of the API before apps/v1 (`pkg/apis/apps/v1/conversion.go`).
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn count_template(set: &mut Value, generation: i64) {
    let annotations = object::metadata_mut(set).entry("annotations").or_insert_with(|| json!({}));
    object::as_map(annotations).insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
}

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

    fn prepare_create(&self, set: &mut Value) {
        object::as_map(set).remove("status");
        count_template(set, 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        object::carry_over(new, old, "status");
        let before = text(&old["metadata"]["annotations"][TEMPLATE_GENERATION]).parse().unwrap_or(0);
        let mut template = new["spec"]["template"].clone();
        types::complete_named("io.k8s.api.core.v1.PodTemplateSpec", &mut template);
        let changed = i64::from(template != old["spec"]["template"]);
        count_template(new, before + changed);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, set: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&set["spec"], Path::new("spec"), Vec::new());
        for key in ["minReadySeconds", "revisionHistoryLimit"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        pod_template::selector(&mut errors, spec, "daemonset", &path);
        pod_template::validate_running(&mut errors, &spec["template"], "DaemonSet", &path.child("template"));
        strategy(&mut errors, &spec["updateStrategy"], &path.child("updateStrategy"));
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

fn strategy(errors: &mut Vec<FieldError>, strategy: &Value, path: &Path) {
    let (at, rolling) = (path.child("rollingUpdate"), &strategy["rollingUpdate"]);
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "RollingUpdate" => {
            for key in ["maxUnavailable", "maxSurge"] {
                rollout::share(errors, &at.child(key), &rolling[key]);
            }
            let [missing, surge] =
                ["maxUnavailable", "maxSurge"].map(|key| rollout::amount(&rolling[key]).unwrap_or(0) != 0);
            if missing && surge {
                let why = "may not be set when maxUnavailable is non-zero";
                errors.push(FieldError::invalid(&at.child("maxSurge"), rolling["maxSurge"].clone(), why));
            } else if !missing && !surge {
                errors.push(FieldError::required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
            }
        }
        _ => errors.push(FieldError::not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"])),
    }
}
