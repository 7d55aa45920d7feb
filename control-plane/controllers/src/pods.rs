//! What several controllers ask about pods. Pure. (`pkg/controller/controller_utils.go`, `pkg/api/v1/pod`.)

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
pub(crate) use kedge_client::is_finished;
pub(crate) use kedge_client::selects;
use kedge_world::later;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};

/// The letters of generated names (`k8s.io/apimachinery/pkg/util/rand`).
const SAFE_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether a pod has neither ended nor begun to go away.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a pod has begun to go away.
pub(crate) fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod has begun to go away and has not ended yet.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// When a pod ended: when its last container did; else when it stopped serving, else when it was told to go.
/// (`getFinishedTime` of the job controller.)
pub(crate) fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref();
    let specs = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let is_sidecar = |name: &str| {
        let mut all = specs.into_iter().flatten();
        all.any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
    };
    let mains = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let sidecars = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    let ends: Option<Vec<Timestamp>> = mains
        .chain(sidecars.filter(|container| is_sidecar(&container.name)))
        .map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .collect();
    let unready = || Some(condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.as_ref()?.0);
    let told = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        Some(later(pod.metadata.deletion_timestamp.as_ref()?.0, SignedDuration::from_secs(grace.saturating_neg())))
    };
    let created = || Some(pod.metadata.creation_timestamp.as_ref()?.0);
    ends.and_then(|ends| ends.into_iter().max()).or_else(unready).or_else(told).or_else(created)
}

/// The pod's phase; empty before a node has said one.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The condition of this type.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// The condition that says that a pod is going to end for a reason outside of it (KEP-3329).
pub(crate) fn disrupted(reason: &str, message: &str, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    }
}

/// The node that a pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether a pod serves.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Whether a pod has served for `seconds` without a break.
pub(crate) fn is_available(pod: &Pod, seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && available_in(pod, seconds, now).is_none_or(|wait| wait <= SignedDuration::ZERO)
}

/// How long until a ready pod will have served for `seconds`; none when nothing has to be waited for.
pub(crate) fn available_in(pod: &Pod, seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    if seconds == 0 {
        return None;
    }
    let since = condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
    Some(SignedDuration::from_secs(i64::from(seconds)) - now.duration_since(since))
}

/// Whether a selector says nothing at all; such a one is never taken to mean everything.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The one owner that controls an object.
pub(crate) fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls `object`.
pub(crate) fn is_controlled_by<K: Resource>(object: &K, owner: &impl Resource) -> bool {
    controller_of(object).is_some_and(|reference| Some(&reference.uid) == owner.meta().uid.as_ref())
}

/// The reference by which `owner` controls what it makes.
pub(crate) fn owned_by<O: Resource<DynamicType = ()>>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A pod of `template`, named after its owner.
pub(crate) fn from_template<O: Resource<DynamicType = ()>>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name_any())),
            namespace: owner.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A short name for the content of `value` that fits a label; `salt` makes another one when two contents clash.
pub(crate) fn content_hash(value: &impl serde::Serialize, salt: Option<i32>) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(value).expect("objects always encode"));
    if let Some(salt) = salt {
        hash.update(salt.to_le_bytes());
    }
    hash.finalize()[..10].iter().map(|byte| SAFE_LETTERS[usize::from(*byte) % 27] as char).collect()
}

/// Which of two pods goes first when there are too many: the one that does the least.
/// (`ActivePods`: unassigned, then pending, then not ready, then costing less to lose, ready for less long, restarted
/// more, younger.)
pub(crate) fn by_dispensability(a: &Pod, b: &Pod) -> Ordering {
    let assigned =
        |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let rank = |pod: &Pod| match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |pod: &Pod| -> i32 {
        let text = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost");
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let ready_since = |pod: &Pod| {
        condition(pod, "Ready")
            .filter(|c| c.status == "True")
            .and_then(|c| c.last_transition_time.as_ref().map(|t| t.0))
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    assigned(a)
        .cmp(&assigned(b))
        .then(rank(a).cmp(&rank(b)))
        .then(is_ready(a).cmp(&is_ready(b)))
        .then(cost(a).cmp(&cost(b)))
        .then(ready_since(b).cmp(&ready_since(a)))
        .then(restarts(b).cmp(&restarts(a)))
        .then(created(b).cmp(&created(a)))
        .then_with(|| a.name_any().cmp(&b.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let unassigned = pod(json!({"metadata": {"name": "a"}}));
        let pending = pod(json!({"metadata": {"name": "b"}, "spec": {"nodeName": "n", "containers": []}}));
        let running = |name: &str, ready: &str, cost: &str| {
            pod(json!({
                "metadata": {"name": name, "annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            }))
        };
        let mut pods =
            [running("f", "True", "5"), running("e", "True", "0"), running("d", "False", "9"), pending, unassigned];
        pods.sort_by(by_dispensability);
        assert_eq!(pods.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["a", "b", "d", "e", "f"]);
    }

    #[test]
    fn selectors_select() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let check = |selector: serde_json::Value, expected| {
            let selector: LabelSelector = serde_json::from_value(selector).unwrap();
            assert_eq!(selects(&selector, Some(&labels)), expected, "{selector:?}");
        };
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(json!({"matchLabels": {"app": "db"}}), false);
        check(json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}), true);
        check(json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}), true);
        check(json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), false);
        check(json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), true);
    }

    #[test]
    fn a_pod_is_available_once_it_has_been_ready_long_enough() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pod = pod(json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:30Z"}]}}));
        assert!(is_available(&pod, 0, now) && is_available(&pod, 30, now) && !is_available(&pod, 31, now));
        assert_eq!(available_in(&pod, 40, now), Some(SignedDuration::from_secs(10)));
    }
}
