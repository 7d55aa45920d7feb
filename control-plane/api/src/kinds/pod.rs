//! Pod: the unit of scheduling. Immutable but for a few fields; deleted with grace, which the node ends.
//! (`pkg/registry/core/pod/strategy.go`, `SetDefaults_Pod` of `pkg/apis/core/v1/defaults.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::fill::{self, keep_spec, text};
use super::{Column, Rules};
use crate::object;

mod printed;
mod update;

pub(crate) use kedge_schema::pod_resources as resources;

pub(super) struct Pod;

impl Rules for Pod {
    fn default(&self, pod: &mut Value) {
        let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        for list in ["containers", "initContainers"] {
            object::items_mut(spec, list).for_each(request_limits);
        }
        pod_level_resources(spec);
        object::default(spec, "enableServiceLinks", true);
        if spec["hostNetwork"] == true {
            host_ports(spec);
        }
    }

    fn prepare_create(&self, pod: &mut Value) {
        object::as_map(pod).insert("status".into(), json!({ "phase": "Pending" }));
    }

    fn finish_create(&self, pod: &mut Value) {
        let class = resources::quality_of_service(&pod["spec"]);
        object::child(pod, "status").insert("qosClass".into(), class.into());
        if fill::len(&pod["spec"]["schedulingGates"]) > 0 {
            let gated = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                "lastTransitionTime": pod["metadata"]["creationTimestamp"],
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
            object::child(pod, "status").insert("conditions".into(), gated);
        }
        merge_label_keys(pod);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
        object::carry_over(&mut new["metadata"], &old["metadata"], "ownerReferences");
        let class = &old["status"]["qosClass"];
        if new["status"].is_object() && !class.is_null() {
            object::default(&mut new["status"], "qosClass", class.clone());
        }
    }

    fn validate(&self, pod: &Value) -> Vec<FieldError> {
        update::whole(pod)
    }

    fn validate_create(&self, pod: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&pod["spec"], Path::new("spec"), Vec::new());
        if fill::len(&spec["ephemeralContainers"]) > 0 {
            errors.push(FieldError::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
        }
        if !text(&spec["nodeName"]).is_empty() && fill::len(&spec["schedulingGates"]) > 0 {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.push(FieldError::forbidden(&path.child("nodeName"), why));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate(new, old)
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        const FIELDS: &[(Cow<'static, str>, &str)] = &[
            (Cow::Borrowed("spec.nodeName"), ""),
            (Cow::Borrowed("spec.restartPolicy"), ""),
            (Cow::Borrowed("spec.schedulerName"), ""),
            (Cow::Borrowed("spec.serviceAccountName"), ""),
            (Cow::Borrowed("spec.hostNetwork"), "false"),
            (Cow::Borrowed("status.phase"), ""),
            (Cow::Borrowed("status.podIP"), ""),
            (Cow::Borrowed("status.nominatedNodeName"), ""),
        ];
        Cow::Borrowed(FIELDS)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn grace_seconds(&self, pod: &Value, asked: Option<i64>) -> Option<i64> {
        let unassigned = text(&pod["spec"]["nodeName"]).is_empty();
        if unassigned || matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
            return Some(0);
        }
        let seconds = asked.or(pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(0);
        Some(if seconds < 0 { 1 } else { seconds })
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        Cow::Borrowed(printed::COLUMNS)
    }

    fn row(&self, pod: &Value, now: Timestamp) -> Vec<Value> {
        printed::row(pod, now)
    }
}

/// What is limited and not requested is requested at its limit.
fn request_limits(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else { return };
    object::default(&mut container["resources"], "requests", json!({}));
    for (name, amount) in limits {
        object::default(&mut container["resources"]["requests"], &name, amount);
    }
}

/// What the pod as a whole does not say of its own resources (KEP-2837): huge pages are limited to what the
/// containers may have, requests are those of the containers, or else the limits.
fn pod_level_resources(spec: &mut Value) {
    let is_huge = |name: &str| name.starts_with("hugepages-");
    if fill::len(&spec["resources"]["limits"]) + fill::len(&spec["resources"]["requests"]) == 0 {
        return;
    }
    for (name, amount) in resources::of_containers(spec, "limits") {
        if is_huge(&name) && spec["resources"]["requests"][&name].is_null() {
            object::default(&mut spec["resources"], "limits", json!({}));
            object::default(&mut spec["resources"]["limits"], &name, amount.to_string());
        }
    }
    let Some(limits) = spec["resources"]["limits"].as_object().cloned().filter(|limits| !limits.is_empty()) else {
        return;
    };
    let requested = resources::of_containers(spec, "requests");
    object::default(&mut spec["resources"], "requests", json!({}));
    let requests = &mut spec["resources"]["requests"];
    for (name, amount) in requested.iter().filter(|(name, _)| resources::is_pod_level(name) && !is_huge(name)) {
        object::default(requests, name, amount.to_string());
    }
    for (name, amount) in limits.into_iter().filter(|(name, _)| resources::is_pod_level(name)) {
        object::default(requests, &name, amount);
    }
    if fill::len(requests) == 0 {
        object::as_map(&mut spec["resources"]).remove("requests");
    }
}

/// On the host's network the ports are the host's (`defaultHostNetworkPorts`).
fn host_ports(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for port in object::items_mut(spec, list).flat_map(|container| object::items_mut(container, "ports")) {
            let number = port["containerPort"].clone();
            fill::fill(port, "hostPort", number);
        }
    }
}

/// `matchLabelKeys` become part of the selectors beside them, with the pod's own labels (KEP-3633, KEP-3243).
fn merge_label_keys(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in object::items_mut(spec, "topologySpreadConstraints") {
        merge_into(constraint, &labels);
    }
    for side in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|affinity| affinity.get_mut(side)) else { continue };
        object::items_mut(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
            .for_each(|t| merge_into(t, &labels));
        for weighted in object::items_mut(affinity, "preferredDuringSchedulingIgnoredDuringExecution") {
            weighted.get_mut("podAffinityTerm").into_iter().for_each(|term| merge_into(term, &labels));
        }
    }
}

fn merge_into(term: &mut Value, labels: &Value) {
    if !term["labelSelector"].is_object() {
        return;
    }
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys: Vec<String> = object::items(term, list).map(|key| text(key).to_owned()).collect();
        for key in keys {
            let Some(value) = labels[&key].as_str() else { continue };
            let expressions = &mut term["labelSelector"]["matchExpressions"];
            if !expressions.is_array() {
                *expressions = json!([]);
            }
            let requirement = json!({"key": key, "operator": operator, "values": [value]});
            expressions.as_array_mut().expect("just made one").push(requirement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_only_for_pods_that_a_node_runs() {
        let check = |spec: Value, phase: &str, asked: Option<i64>, expected: i64| {
            let pod = json!({"spec": spec, "status": {"phase": phase}});
            assert_eq!(Pod.grace_seconds(&pod, asked), Some(expected), "{pod} {asked:?}");
        };
        let assigned = json!({"nodeName": "n", "terminationGracePeriodSeconds": 30});
        check(assigned.clone(), "Running", None, 30);
        check(assigned.clone(), "Running", Some(5), 5);
        check(assigned.clone(), "Running", Some(0), 0);
        check(assigned.clone(), "Running", Some(-1), 1);
        check(assigned.clone(), "Failed", Some(5), 0);
        check(assigned, "Succeeded", None, 0);
        check(json!({"terminationGracePeriodSeconds": 30}), "Pending", None, 0);
    }

    #[test]
    fn limits_become_requests_and_label_keys_selectors() {
        let mut pod = json!({"metadata": {"labels": {"hash": "x"}}, "spec": {
            "containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}],
            "topologySpreadConstraints": [{"matchLabelKeys": ["hash", "none"], "labelSelector": {}}]}});
        Pod.default(&mut pod);
        Pod.finish_create(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        let expected = json!([{"key": "hash", "operator": "In", "values": ["x"]}]);
        assert_eq!(spec["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"], expected);
        assert_eq!(pod["status"]["qosClass"], "Burstable");
    }

    #[test]
    fn pod_level_requests_follow_the_containers_then_the_limits() {
        let mut pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}, "limits": {"hugepages-2Mi": "4Mi"}}}],
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}});
        Pod.default(&mut pod);
        assert_eq!(
            pod["spec"]["resources"],
            json!({
            "limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"},
            "requests": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi"}})
        );
    }
}
