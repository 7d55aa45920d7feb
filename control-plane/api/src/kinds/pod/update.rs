//! What may change of a pod: its images, deadlines, tolerations and gates, and little else.
//! (`ValidatePodUpdate` of `pkg/apis/core/validation/validation.go`.)

use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use crate::kinds::check::Errors;
use crate::kinds::fill::{len, text};
use crate::kinds::pod_spec;
use crate::object;

/// In the words of upstream (`updatablePodSpecFields`).
const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                          `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
                          (allow it to be set to 1 if it was previously negative)";

/// What is wrong with a change of a pod's specification.
pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (is, was, path) = (&new["spec"], &old["spec"], Path::new("spec"));
    if is == was {
        return errors;
    }
    for list in ["containers", "initContainers"] {
        if len(&is[list]) != len(&was[list]) {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&path.child(list), why));
            return errors;
        }
    }
    if !deadline(&mut errors, is, was, &path.child("activeDeadlineSeconds")) {
        return errors;
    }
    tolerations(&mut errors, is, was, &path.child("tolerations"));
    let known: Vec<&Value> = object::items(was, "schedulingGates").collect();
    for (index, gate) in object::items(is, "schedulingGates").enumerate().filter(|(_, gate)| !known.contains(gate)) {
        let why = format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
        errors.push(FieldError::forbidden(&path.child("schedulingGates").index(index).child("name"), why));
    }
    let mut rest = is.clone();
    put_back(&mut rest, was);
    if len(&was["schedulingGates"]) > 0 {
        gated(&mut errors, &mut rest, was, &path);
    }
    if rest != *was {
        let why = format!("pod updates may not change fields other than {CHANGEABLE}\n{}", difference(&rest, was));
        errors.push(FieldError::forbidden(&path, why));
    }
    errors
}

/// A deadline may be set, and then only come nearer.
fn deadline(errors: &mut Errors, is: &Value, was: &Value, path: &Path) -> bool {
    let before = errors.len();
    match (is["activeDeadlineSeconds"].as_i64(), was["activeDeadlineSeconds"].as_i64()) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Value::Null, why));
            return true;
        }
        _ => {}
    }
    errors.len() == before
}

fn tolerations(errors: &mut Errors, is: &Value, was: &Value, path: &Path) {
    let bare = |toleration: &Value| {
        let mut toleration = toleration.clone();
        object::as_map(&mut toleration).remove("tolerationSeconds");
        toleration
    };
    let kept = |old: &Value| object::items(is, "tolerations").any(|new| bare(new) == bare(old));
    if !object::items(was, "tolerations").all(kept) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(path, why));
    }
}

/// Takes back what may change, so that what remains may not differ.
fn put_back(rest: &mut Value, was: &Value) {
    for list in ["containers", "initContainers"] {
        for (container, old) in object::items_mut(rest, list).zip(object::items(was, list)) {
            object::carry_over(container, old, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        object::carry_over(rest, was, key);
    }
    if was["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0)
        && rest["terminationGracePeriodSeconds"] == 1
    {
        object::carry_over(rest, was, "terminationGracePeriodSeconds");
    }
}

/// A pod that nobody may schedule yet may become more choosy about nodes (KEP-3838).
fn gated(errors: &mut Errors, rest: &mut Value, was: &Value, path: &Path) {
    let old = was["nodeSelector"].as_object();
    if old.into_iter().flatten().any(|(key, value)| rest["nodeSelector"][key] != *value) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid(&path.child("nodeSelector"), rest["nodeSelector"].clone(), why));
    }
    object::carry_over(rest, was, "nodeSelector");
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = |spec: &Value| spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"].as_array().cloned();
    let (new_terms, old_terms) = (terms(rest).unwrap_or_default(), terms(was).unwrap_or_default());
    let at = path.child("affinity").child("nodeAffinity").child(REQUIRED).child("nodeSelectorTerms");
    if !old_terms.is_empty() && old_terms.len() != new_terms.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(&at, new_terms, why));
    } else {
        for (index, (new, old)) in new_terms.iter().zip(&old_terms).enumerate() {
            let kept = |list: &str| object::items(old, list).all(|r| object::items(new, list).any(|n| n == r));
            if !kept("matchExpressions") || !kept("matchFields") {
                let why = "only additions are allowed (no mutations or deletions)";
                errors.push(FieldError::invalid(&at.index(index), new.clone(), why));
            }
        }
    }
    let empty = serde_json::json!({});
    let mut affinity = if rest["affinity"].is_object() { rest["affinity"].clone() } else { empty.clone() };
    object::carry_over(&mut affinity, &was["affinity"], "nodeAffinity");
    if affinity == empty && was["affinity"].is_null() {
        object::as_map(rest).remove("affinity");
    } else {
        rest["affinity"] = affinity;
    }
}

/// The members that differ, as a person may read it.
fn difference(new: &Value, old: &Value) -> String {
    let empty = serde_json::Map::new();
    let (new, old) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let mut keys: Vec<&String> = new.keys().chain(old.keys()).collect();
    keys.sort();
    keys.dedup();
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let changed = keys.into_iter().filter(|key| new.get(*key) != old.get(*key));
    changed.map(|key| format!("  {key}: {} -> {}\n", shown(old.get(key)), shown(new.get(key)))).collect()
}

/// What is wrong with a pod beyond its metadata and specification as such.
pub(super) fn whole(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let (spec, path) = (&pod["spec"], Path::new("spec"));
    pod_spec::annotations(
        &mut errors,
        &pod["metadata"]["annotations"],
        spec,
        &Path::new("metadata").child("annotations"),
    );
    pod_spec::validate(&mut errors, spec, true, &path);
    for list in ["containers", "initContainers"] {
        for (index, container) in object::items(spec, list).enumerate() {
            pod_spec::image_is_trimmed(&mut errors, container, &path.child(list).index(index));
        }
    }
    if text(&spec["serviceAccountName"]).is_empty() {
        for (index, volume) in object::items(spec, "volumes").enumerate() {
            for (at, source) in object::items(&volume["projected"], "sources").enumerate() {
                if source["serviceAccountToken"].is_object() {
                    let path = path.child("volumes").index(index).child("projected").child("sources").index(at);
                    let why = "must not be specified when serviceAccountName is not set";
                    errors.push(FieldError::forbidden(&path.child("serviceAccountToken"), why));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(old: Value, new: Value, expected: &[&str]) {
        let found = validate(&json!({ "spec": new }), &json!({ "spec": old }));
        let fields: Vec<&str> = found.iter().map(|error| &*error.field).collect();
        assert_eq!(fields, expected, "{found:?}");
    }

    #[test]
    fn few_things_change() {
        let pod =
            json!({"containers": [{"name": "a", "image": "x:1"}], "tolerations": [{"key": "a", "operator": "Exists"}]});
        let with = |key: &str, value: Value| {
            let mut pod = pod.clone();
            pod[key] = value;
            pod
        };
        check(pod.clone(), with("containers", json!([{"name": "a", "image": "x:2"}])), &[]);
        check(pod.clone(), with("containers", json!([{"name": "b", "image": "x:1"}])), &["spec"]);
        check(pod.clone(), with("containers", json!([])), &["spec.containers"]);
        check(pod.clone(), with("activeDeadlineSeconds", json!(5)), &[]);
        check(
            with("activeDeadlineSeconds", json!(5)),
            with("activeDeadlineSeconds", json!(6)),
            &["spec.activeDeadlineSeconds"],
        );
        let more = json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 3}, {"operator": "Exists"}]);
        check(pod.clone(), with("tolerations", more), &[]);
        check(pod.clone(), with("tolerations", json!([])), &["spec.tolerations"]);
        check(pod.clone(), with("hostname", json!("x")), &["spec"]);
        // They have a path of their own, which is not served as long as no node runs them.
        check(pod.clone(), with("ephemeralContainers", json!([{"name": "d"}])), &["spec"]);
        check(pod.clone(), with("schedulingGates", json!([{"name": "g"}])), &["spec.schedulingGates[0].name"]);
    }

    #[test]
    fn a_gated_pod_may_become_choosy() {
        let gates = json!([{"name": "g"}]);
        let pod = json!({"schedulingGates": gates, "nodeSelector": {"a": "b"}});
        check(pod.clone(), json!({"schedulingGates": gates, "nodeSelector": {"a": "b", "c": "d"}}), &[]);
        check(pod.clone(), json!({"schedulingGates": gates, "nodeSelector": {"a": "c"}}), &["spec.nodeSelector"]);
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}});
        check(pod, json!({"nodeSelector": {"a": "b"}, "affinity": affinity}), &[]);
    }
}
