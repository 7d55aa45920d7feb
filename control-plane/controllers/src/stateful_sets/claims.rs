//! The claims of a set's pods: their names, and who takes them along when going. Pure.
//! (`pkg/controller/statefulset/stateful_set_utils.go`, KEP-1847.)

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::pods::owned_by;

/// The name of the claim that a pod of this ordinal has from a template.
pub(super) fn name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", set.name_any())
}

/// Whether a claim of this name can be one of the set's.
pub(super) fn may_be_of(set: &StatefulSet, claim: &str) -> bool {
    let templates = set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_ref());
    let mut stems = templates.into_iter().flatten().map(|t| format!("{}-{}-", t.name_any(), set.name_any()));
    stems.any(|stem| claim.strip_prefix(&*stem).is_some_and(|rest| rest.parse::<u32>().is_ok()))
}

/// The claims that a pod of this ordinal needs.
pub(super) fn wanted(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = spec.volume_claim_templates.iter().flatten();
    let made = templates.map(|template| {
        let mut claim = template.clone();
        claim.status = None;
        claim.metadata.name = Some(name(set, &template.name_any(), ordinal));
        claim.metadata.namespace = set.namespace();
        claim.metadata.labels.get_or_insert_default().extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim
    });
    made.collect()
}

/// What the retention policy says: whether claims go with the set, and with pods that scaling takes away.
fn deletes(spec: &StatefulSetSpec) -> (bool, bool) {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let is = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
    (is(policy.and_then(|p| p.when_deleted.as_ref())), is(policy.and_then(|p| p.when_scaled.as_ref())))
}

/// The owners that the policy gives a claim of `pod`; `stays` tells a pod that scaling does not take away.
pub(super) fn owners(set: &StatefulSet, spec: &StatefulSetSpec, pod: &Pod, stays: bool) -> Vec<OwnerReference> {
    match deletes(spec) {
        (_, true) if !stays => vec![owned_by(pod)],
        (true, _) => vec![owned_by(set)],
        (false, _) => Vec::new(),
    }
}

fn names<O: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &O) -> bool {
    reference.api_version == O::api_version(&())
        && reference.kind == O::kind(&())
        && reference.name == object.name_any()
}

/// Whether the claim belongs to a former object of this name, which is being cleaned up after.
fn is_stale<O: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, object: &O) -> bool {
    claim.owner_references().iter().any(|r| names(r, object) && Some(&r.uid) != object.meta().uid.as_ref())
}

/// Whether a pod must not be made yet because its claim is about to go with its predecessor.
pub(super) fn blocks(claim: &PersistentVolumeClaim, spec: &StatefulSetSpec, pod: &Pod) -> bool {
    claim.metadata.deletion_timestamp.is_some() || deletes(spec).1 && is_stale(claim, pod)
}

/// The owners that a claim should have instead of those it has; none when all is well, or none of our affair.
pub(super) fn corrected(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &Pod,
    stays: bool,
) -> Option<Vec<OwnerReference>> {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return None;
    }
    let ours = |reference: &OwnerReference| names(reference, set) || names(reference, pod);
    let (mine, mut rest): (Vec<_>, Vec<_>) = claim.owner_references().iter().cloned().partition(|r| ours(r));
    let foreign = deletes(spec) != (false, false) && rest.iter().any(|r| r.controller == Some(true));
    let wanted = if foreign { Vec::new() } else { owners(set, spec, pod, stays) };
    let same = mine.len() == wanted.len()
        && wanted.iter().all(|want| mine.iter().any(|have| have.uid == want.uid && have.controller == Some(true)));
    if same {
        return None;
    }
    rest.extend(wanted);
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "set"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}}))
        .unwrap()
    }

    #[test]
    fn policies_and_owners() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "s-1", "uid": "pod"}})).unwrap();
        let by = |kind: &str, uid: &str| match kind {
            "StatefulSet" => {
                json!({"apiVersion": "apps/v1", "kind": kind, "name": "s", "uid": uid, "controller": true})
            }
            "Pod" => json!({"apiVersion": "v1", "kind": kind, "name": "s-1", "uid": uid, "controller": true}),
            _ => json!({"apiVersion": "v1", "kind": kind, "name": "x", "uid": uid, "controller": true}),
        };
        let check = |(deleted, scaled): (&str, &str), stays: bool, have: Value, expected: Option<&[&str]>| {
            let set = set(deleted, scaled);
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({"metadata": {"name": "data-s-1", "ownerReferences": have}})).unwrap();
            let found = corrected(&claim, &set, set.spec.as_ref().unwrap(), &pod, stays);
            let uids = found.map(|owners| owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>());
            let expected = expected.map(|uids| uids.iter().map(|uid| uid.to_string()).collect());
            assert_eq!(uids, expected, "{deleted} {scaled} {stays} {have}");
        };
        check(("Retain", "Retain"), true, json!([]), None);
        check(("Retain", "Retain"), true, json!([by("StatefulSet", "set")]), Some(&[]));
        check(("Delete", "Retain"), true, json!([]), Some(&["set"]));
        check(("Delete", "Retain"), false, json!([by("StatefulSet", "set")]), None);
        check(("Retain", "Delete"), true, json!([by("Pod", "pod")]), Some(&[]));
        check(("Retain", "Delete"), false, json!([]), Some(&["pod"]));
        check(("Delete", "Delete"), false, json!([by("StatefulSet", "set")]), Some(&["pod"]));
        check(("Delete", "Delete"), true, json!([by("Pod", "pod")]), Some(&["set"]));
        // Somebody else's, and a former set's: not touched.
        check(("Delete", "Delete"), true, json!([by("Other", "x")]), None);
        check(("Delete", "Delete"), true, json!([by("StatefulSet", "old")]), None);
    }

    #[test]
    fn names_of_claims() {
        let set = set("Retain", "Retain");
        assert_eq!(wanted(&set, set.spec.as_ref().unwrap(), 3)[0].name_any(), "data-s-3");
        assert!(may_be_of(&set, "data-s-3") && !may_be_of(&set, "data-s-x") && !may_be_of(&set, "data-t-3"));
    }
}
