//! What to do next about a set, from its pods, its two revisions and the claims there are. Pure.
//! (`pkg/controller/statefulset/stateful_set_control.go`.)
//!
//! Ordered sets go through their pods from the first on and stop at the first that is not available; so does
//! scaling down, from the last. Parallel sets stop at nothing. Updates replace one pod at a time, the last first
//! (`maxUnavailable` is a beta that is off in 1.36).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

use super::claims;
use crate::pods;

const REVISION: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A template under its revision's name.
#[derive(Clone, Debug)]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make a claim.
    Claim(Box<PersistentVolumeClaim>),
    /// Give a claim other owners.
    Own(Arc<PersistentVolumeClaim>, Vec<OwnerReference>),
    Create(Box<Pod>),
    /// Put back the labels that tell a pod's identity.
    Label(Arc<Pod>, BTreeMap<String, String>),
    Delete(Arc<Pod>),
}

/// What to do, in order, and what the set's status is as seen before.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
    /// When to look again though nothing changed.
    pub(super) next: Option<SignedDuration>,
}

/// The ordinal within a pod's name, if the name is one of the set's.
pub(super) fn ordinal(set: &StatefulSet, name: &str) -> Option<i32> {
    let digits = name.strip_prefix(&*set.name_any())?.strip_prefix('-')?;
    if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The name of the revision that a pod was made from.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION).map_or("", String::as_str)
}

/// The pod at one ordinal: there, or to be made.
enum Slot {
    There(Arc<Pod>),
    New(Box<Pod>),
}

impl Slot {
    fn pod(&self) -> &Pod {
        match self {
            Self::There(pod) => pod,
            Self::New(pod) => pod,
        }
    }
}

/// The claim of a name.
type ClaimOf<'a> = &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>;

struct View<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    claim_of: ClaimOf<'a>,
    seconds: i32,
    ordered: bool,
    now: Timestamp,
}

/// `revisions` are the current and the update one; `pods` are the set's, by name.
pub(super) fn plan(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    revisions: &[Revision; 2],
    collisions: i32,
    pods: &[Arc<Pod>],
    claim_of: ClaimOf<'_>,
    now: Timestamp,
) -> Plan {
    let seconds = spec.min_ready_seconds.unwrap_or(0);
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let view = View { set, spec, claim_of, seconds, ordered, now };
    let status = view.status(revisions, collisions, pods);
    let steps = if set.metadata.deletion_timestamp.is_some() {
        Vec::new()
    } else {
        view.steps(revisions, pods, status.current_replicas.unwrap_or(0))
    };
    let ready = pods.iter().filter(|pod| pods::is_ready(pod));
    let waits = ready.filter_map(|pod| pods::available_in(pod, seconds, now)).filter(|wait| wait.is_positive());
    Plan { steps, status: complete(spec, status), next: waits.min() }
}

impl View<'_> {
    fn is_running(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.is_running(pod) && pods::is_available(pod, self.seconds, self.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        !pods::is_available(pod, self.seconds, self.now) || pods::is_leaving(pod)
    }

    fn steps(&self, revisions: &[Revision; 2], pods: &[Arc<Pod>], current: i32) -> Vec<Step> {
        let start = self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let count = self.spec.replicas.unwrap_or(1);
        let mut there: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let named = pods.iter().filter_map(|pod| Some((ordinal(self.set, &pod.name_any())?, pod.clone())));
        there.extend(named);
        let replicas: Vec<(i32, Slot)> = (start..start.saturating_add(count))
            .map(|ordinal| match there.remove(&ordinal) {
                Some(pod) => (ordinal, Slot::There(pod)),
                None => (ordinal, Slot::New(Box::new(self.new_pod(revisions, ordinal, start, current)))),
            })
            .collect();
        let condemned: Vec<(i32, Arc<Pod>)> = there.into_iter().rev().collect();
        let mut steps = Vec::new();
        for (ordinal, slot) in &replicas {
            if self.keep(*ordinal, slot, &mut steps) && self.ordered {
                return steps;
            }
        }
        for (ordinal, pod) in &condemned {
            self.own_claims(*ordinal, pod, false, &mut steps);
        }
        if self.take_away(&replicas, &condemned, &mut steps) && self.ordered {
            return steps;
        }
        self.update(&replicas, &revisions[1].name, &mut steps);
        steps
    }

    /// Brings the pod at one ordinal a step further. True when those after it must wait. (`processReplica`.)
    fn keep(&self, ordinal: i32, slot: &Slot, steps: &mut Vec<Step>) -> bool {
        let pod = match slot {
            Slot::New(pod) => {
                if !self.make_claims(ordinal, pod, steps) {
                    steps.push(Step::Create(pod.clone()));
                }
                return true;
            }
            Slot::There(pod) => pod,
        };
        if pods::is_finished(pod) {
            if !pods::is_leaving(pod) {
                steps.push(Step::Delete(pod.clone()));
            }
            return true;
        }
        if pods::phase(pod) == "Pending" {
            self.make_claims(ordinal, pod, steps);
        }
        if self.ordered && (pods::is_leaving(pod) || !self.is_available(pod)) {
            return true;
        }
        let labels = identity(&pod.name_any(), ordinal);
        if pod.labels().get(POD_NAME) != labels.get(POD_NAME) {
            steps.push(Step::Label(pod.clone(), labels));
        }
        self.own_claims(ordinal, pod, true, steps);
        false
    }

    /// Makes the claims that a pod lacks. True when it has to wait for one to be gone first.
    fn make_claims(&self, ordinal: i32, pod: &Pod, steps: &mut Vec<Step>) -> bool {
        let wanted = claims::wanted(self.set, self.spec, ordinal);
        let found: Vec<_> = wanted.into_iter().map(|claim| ((self.claim_of)(&claim.name_any()), claim)).collect();
        if found.iter().any(|(there, _)| there.as_ref().is_some_and(|claim| claims::blocks(claim, self.spec, pod))) {
            return true;
        }
        for (_, mut claim) in found.into_iter().filter(|(there, _)| there.is_none()) {
            let owners = claims::owners(self.set, self.spec, pod, true);
            claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            steps.push(Step::Claim(Box::new(claim)));
        }
        self.own_claims(ordinal, pod, true, steps);
        false
    }

    fn own_claims(&self, ordinal: i32, pod: &Pod, stays: bool, steps: &mut Vec<Step>) {
        for wanted in claims::wanted(self.set, self.spec, ordinal) {
            let Some(claim) = (self.claim_of)(&wanted.name_any()) else { continue };
            let Some(owners) = claims::corrected(&claim, self.set, self.spec, pod, stays) else { continue };
            let step = Step::Own(claim, owners);
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
    }

    /// Takes pods beyond the wanted number away. True when there is anything to wait for. (`processCondemned`.)
    fn take_away(&self, replicas: &[(i32, Slot)], condemned: &[(i32, Arc<Pod>)], steps: &mut Vec<Step>) -> bool {
        let sick = |pod: &&Pod| self.is_unavailable(pod);
        let first_sick = replicas.iter().map(|(_, slot)| slot.pod()).find(sick);
        let first_sick = first_sick.or_else(|| condemned.iter().rev().map(|(_, pod)| &**pod).find(sick));
        for (_, pod) in condemned {
            if pods::is_leaving(pod) {
                if self.ordered {
                    return true;
                }
                continue;
            }
            let is_first = first_sick.is_some_and(|first| first.name_any() == pod.name_any());
            if self.ordered && !self.is_available(pod) && !is_first {
                return true;
            }
            steps.push(Step::Delete(pod.clone()));
            if self.ordered {
                return true;
            }
        }
        false
    }

    /// Takes the last pod of an old revision away, once those after it are available again.
    fn update(&self, replicas: &[(i32, Slot)], newest: &str, steps: &mut Vec<Step>) {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return;
        }
        let partition = usize::try_from(self.partition().unwrap_or(0)).unwrap_or(0);
        for (_, slot) in replicas.iter().skip(partition).rev() {
            let Slot::There(pod) = slot else { return };
            if revision(pod) != newest && !pods::is_leaving(pod) {
                let step = Step::Delete(pod.clone());
                if !steps.contains(&step) {
                    steps.push(step);
                }
                return;
            }
            if self.is_unavailable(pod) {
                return;
            }
        }
    }

    fn partition(&self) -> Option<i32> {
        Some(self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?.partition.unwrap_or(0))
    }

    /// A pod of the revision that its ordinal has at this point of an update. (`newVersionedStatefulSetPod`.)
    fn new_pod(&self, [current, update]: &[Revision; 2], ordinal: i32, start: i32, current_replicas: i32) -> Pod {
        let kind = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        let old = match self.partition() {
            Some(partition) => ordinal < start.saturating_add(partition),
            None => kind == Some("RollingUpdate") && ordinal < start.saturating_add(current_replicas),
        };
        let from = if old { current } else { update };
        let mut pod = pods::from_template(self.set, &from.template);
        let name = format!("{}-{ordinal}", self.set.name_any());
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.extend(identity(&name, ordinal));
        labels.insert(REVISION.into(), from.name.clone());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name.clone());
        spec.subdomain = self.spec.service_name.clone().filter(|service| !service.is_empty());
        let templates = self.spec.volume_claim_templates.iter().flatten();
        let mut volumes: Vec<Volume> = templates.map(|template| self.volume(&template.name_any(), ordinal)).collect();
        let own = spec.volumes.take().unwrap_or_default();
        let hidden = |volume: &Volume| volumes.iter().any(|claimed| claimed.name == volume.name);
        let own: Vec<Volume> = own.into_iter().filter(|volume| !hidden(volume)).collect();
        volumes.extend(own);
        spec.volumes = (!volumes.is_empty()).then_some(volumes);
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name);
        pod
    }

    fn volume(&self, template: &str, ordinal: i32) -> Volume {
        let claim_name = claims::name(self.set, template, ordinal);
        let source = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
        Volume { name: template.into(), persistent_volume_claim: Some(source), ..Volume::default() }
    }

    fn status(&self, [current, update]: &[Revision; 2], collisions: i32, pods: &[Arc<Pod>]) -> StatefulSetStatus {
        let count = |fits: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| fits(pod)).count() as i32;
        let of = |name: &str| count(&|pod| !pods::is_leaving(pod) && revision(pod) == name);
        let old = self.set.status.as_ref();
        StatefulSetStatus {
            replicas: pods.len() as i32,
            ready_replicas: some(count(&|pod| self.is_running(pod))),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: some(of(&current.name)),
            updated_replicas: some(of(&update.name)),
            current_revision: Some(current.name.clone()),
            update_revision: Some(update.name.clone()),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(collisions),
            conditions: old.and_then(|status| status.conditions.clone()),
        }
    }
}

/// An update is over when every pod has been replaced and serves. (`completeRollingUpdate`.)
fn complete(spec: &StatefulSetSpec, mut status: StatefulSetStatus) -> StatefulSetStatus {
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("RollingUpdate");
    let wanted = spec.replicas.unwrap_or(1);
    let all = [status.updated_replicas, status.ready_replicas, Some(status.replicas)];
    if rolling && all.iter().all(|count| count.unwrap_or(0) == wanted) {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    status
}

/// The labels by which a pod is found.
fn identity(name: &str, ordinal: i32) -> BTreeMap<String, String> {
    BTreeMap::from([(POD_NAME.to_owned(), name.to_owned()), (POD_INDEX.to_owned(), ordinal.to_string())])
}

/// Zero is left out, as the API writes it.
fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Pods as text: name, what it does, and its revision: `s-0 ready old`.
    fn world(lines: &[&str]) -> Vec<Arc<Pod>> {
        let pod = |line: &&str| {
            let [name, state, of] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let phase = match state {
                "pending" => "Pending",
                "failed" => "Failed",
                _ => "Running",
            };
            let ready = if state == "ready" { "True" } else { "False" };
            let leaving = (state == "leaving").then_some("2026-01-01T00:00:00Z");
            let pod = json!({"metadata": {"name": name, "uid": name, "deletionTimestamp": leaving,
                "labels": {"controller-revision-hash": of, "statefulset.kubernetes.io/pod-name": name}},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        lines.iter().map(pod).collect()
    }

    fn look(spec: Value, lines: &[&str]) -> Plan {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"a": "b"}});
        spec["template"] = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        spec["serviceName"] = "svc".into();
        if spec["updateStrategy"].is_null() {
            spec["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
        }
        let set = json!({"metadata": {"name": "s", "namespace": "n", "uid": "set"}, "spec": spec});
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        let spec = set.spec.as_ref().unwrap();
        let revision = |name: &str| Revision { name: name.into(), template: spec.template.clone() };
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        plan(&set, spec, &[revision("old"), revision("new")], 0, &world(lines), &|_| None, now)
    }

    fn shown(plan: &Plan) -> Vec<String> {
        let show = |step: &Step| match step {
            Step::Claim(claim) => format!("claim {}", claim.name_any()),
            Step::Own(claim, _) => format!("own {}", claim.name_any()),
            Step::Create(pod) => format!("create {} {}", pod.name_any(), revision(pod)),
            Step::Label(pod, _) => format!("label {}", pod.name_any()),
            Step::Delete(pod) => format!("delete {}", pod.name_any()),
        };
        plan.steps.iter().map(show).collect()
    }

    fn check(spec: Value, lines: &[&str], expected: &[&str]) {
        assert_eq!(shown(&look(spec.clone(), lines)), expected, "{spec} {lines:?}");
    }

    #[test]
    fn pods_come_one_after_another() {
        check(json!({"replicas": 2}), &[], &["create s-0 new"]);
        check(json!({"replicas": 2}), &["s-0 pending new"], &[]);
        check(json!({"replicas": 2}), &["s-0 ready new"], &["create s-1 new"]);
        check(json!({"replicas": 2, "minReadySeconds": 10}), &["s-0 ready new"], &[]);
        check(json!({"replicas": 2}), &["s-0 failed new"], &["delete s-0"]);
        check(json!({"replicas": 2}), &["s-0 leaving new"], &[]);
        check(json!({"replicas": 2, "ordinals": {"start": 5}}), &["s-5 ready new"], &["create s-6 new"]);
        check(json!({"replicas": 2, "podManagementPolicy": "Parallel"}), &[], &["create s-0 new", "create s-1 new"]);
        let wait = look(json!({"replicas": 2, "minReadySeconds": 10}), &["s-0 ready new"]).next;
        assert_eq!(wait, Some(SignedDuration::from_secs(5)));
    }

    #[test]
    fn pods_go_one_after_another() {
        check(json!({"replicas": 1}), &["s-0 ready new", "s-1 ready new", "s-2 ready new"], &["delete s-2"]);
        check(json!({"replicas": 1}), &["s-0 ready new", "s-1 ready new", "s-2 leaving new"], &[]);
        // An unavailable pod goes only when it is the first one.
        check(json!({"replicas": 0}), &["s-0 pending new", "s-1 pending new"], &[]);
        check(json!({"replicas": 0}), &["s-0 ready new", "s-1 pending new"], &["delete s-1"]);
        check(json!({"replicas": 1}), &["s-0 pending new", "s-1 ready new"], &[]);
        check(
            json!({"replicas": 0, "podManagementPolicy": "Parallel"}),
            &["s-0 pending new", "s-1 ready new"],
            &["delete s-1", "delete s-0"],
        );
    }

    #[test]
    fn updates_replace_the_last_pod_first() {
        let partition = |at: i32| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": at}}});
        check(partition(0), &["s-0 ready old", "s-1 ready old", "s-2 ready old"], &["delete s-2"]);
        check(partition(0), &["s-0 ready old", "s-1 ready old", "s-2 ready new"], &["delete s-1"]);
        check(partition(0), &["s-0 ready old", "s-1 ready old", "s-2 pending new"], &[]);
        check(partition(2), &["s-0 ready old", "s-1 ready old", "s-2 ready new"], &[]);
        check(partition(2), &["s-0 ready old", "s-2 ready new"], &["create s-1 old"]);
        check(partition(0), &["s-0 ready old", "s-2 ready new"], &["create s-1 new"]);
        let on_delete = json!({"replicas": 2, "updateStrategy": {"type": "OnDelete"}});
        check(on_delete.clone(), &["s-0 ready old", "s-1 ready old"], &[]);
        check(on_delete, &["s-0 ready old"], &["create s-1 new"]);
        // Without a partition, what is still current decides.
        let bare = json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate"}});
        check(bare.clone(), &["s-0 ready old", "s-1 ready old"], &["create s-2 new"]);
        check(bare, &["s-1 ready old", "s-2 ready new"], &["create s-0 old"]);
    }

    #[test]
    fn a_pod_has_its_name_host_and_claims() {
        let templates = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        let plan = look(json!({"replicas": 1, "volumeClaimTemplates": templates}), &[]);
        assert_eq!(shown(&plan), ["claim data-s-0", "create s-0 new"]);
        let Step::Create(pod) = &plan.steps[1] else { panic!("{plan:?}") };
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-0"), Some("svc")));
        let volume = &spec.volumes.as_ref().unwrap()[0];
        assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-s-0");
        assert_eq!(pod.labels()[POD_INDEX], "0");
    }

    #[test]
    fn the_status_counts_by_revision_and_ends_an_update() {
        let status = look(json!({"replicas": 3}), &["s-0 ready old", "s-1 ready new", "s-2 leaving new"]).status;
        let counts = (status.replicas, status.ready_replicas, status.current_replicas, status.updated_replicas);
        assert_eq!(counts, (3, Some(2), Some(1), Some(1)));
        assert_eq!(status.current_revision.as_deref(), Some("old"));
        let status = look(json!({"replicas": 1}), &["s-0 ready new"]).status;
        assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("new"), Some(1)));
    }
}
