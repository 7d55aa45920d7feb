//! StatefulSet: pods with names and volumes of their own.
//! (`pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation`, `pkg/registry/apps/statefulset/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::fill::{containers_text, count, fill, keep_spec, text};
use super::{Column, Rules, check, pod_template, rollout};
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

    fn prepare_create(&self, set: &mut Value) {
        object::as_map(set).remove("status");
        drop_missing(set, &Value::Null);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        object::carry_over(new, old, "status");
        drop_missing(new, old);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, set: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&set["spec"], Path::new("spec"), Vec::new());
        let policy = text(&spec["podManagementPolicy"]);
        if !matches!(policy, "OrderedReady" | "Parallel") {
            let why = "must be 'OrderedReady' or 'Parallel'";
            errors.push(FieldError::invalid(&path.child("podManagementPolicy"), policy, why));
        }
        strategy(&mut errors, &spec["updateStrategy"], &path.child("updateStrategy"));
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            let when = &spec["persistentVolumeClaimRetentionPolicy"][key];
            check::among_any(&mut errors, &at.child(key), when, &["Retain", "Delete"]);
        }
        for key in ["replicas", "minReadySeconds"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        check::not_negative(&mut errors, &path.child("ordinals.start"), &spec["ordinals"]["start"]);
        pod_template::selector(&mut errors, spec, "statefulset", &path);
        let template = with_claims(spec);
        pod_template::validate_running(&mut errors, &template, "StatefulSet", &path.child("template"));
        errors
    }

    fn validate_create(&self, set: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let service = &set["spec"]["serviceName"];
        check::optional(&mut errors, &Path::new("spec").child("serviceName"), service, check::dns_label);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        const CHANGEABLE: [&str; 7] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        let mut rest = new["spec"].clone();
        CHANGEABLE.iter().for_each(|key| object::carry_over(&mut rest, &old["spec"], key));
        if rest == old["spec"] {
            return Vec::new();
        }
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                   'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                   'minReadySeconds' are forbidden";
        vec![FieldError::forbidden(&Path::new("spec"), why)]
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

/// How many pods may be missing at once is behind a gate that is off in 1.36 (KEP-961): the field is dropped.
fn drop_missing(set: &mut Value, old: &Value) {
    let rolling = |set: &Value| set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].clone();
    if rolling(old).is_null() && !rolling(set).is_null() {
        object::as_map(&mut set["spec"]["updateStrategy"]["rollingUpdate"]).remove("maxUnavailable");
    }
}

fn strategy(errors: &mut Vec<FieldError>, strategy: &Value, path: &Path) {
    let (at, rolling) = (path.child("rollingUpdate"), &strategy["rollingUpdate"]);
    match text(&strategy["type"]) {
        "OnDelete" if !rolling.is_null() => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(&at, rolling.clone(), why));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            check::not_negative(errors, &at.child("partition"), &rolling["partition"]);
            let (at, missing) = (at.child("maxUnavailable"), &rolling["maxUnavailable"]);
            rollout::share(errors, &at, missing);
            if !missing.is_null() && rollout::amount(missing).unwrap_or(0) == 0 {
                errors.push(FieldError::invalid(&at, missing.clone(), "cannot be 0"));
            }
        }
        _ => errors.push(FieldError::invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
}

/// The template as its pods will be: with the volumes of their claims, and without the name and subdomain that
/// the set itself gives.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims: Vec<&Value> =
        object::items(spec, "volumeClaimTemplates").map(|claim| &claim["metadata"]["name"]).collect();
    let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) else { return template };
    pod.remove("hostname");
    pod.remove("subdomain");
    if claims.is_empty() {
        return template;
    }
    let own = pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    let made = claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let own = own.into_iter().filter(|volume| !claims.contains(&&volume["name"]));
    pod.insert("volumes".into(), made.chain(own).collect());
    template
}
