//! Which pods a daemon set makes and takes away next. Pure.
//! (`pkg/controller/daemon/{daemon_controller,update}.go`.)
//!
//! First every node gets the pod it should have and loses those it should not; only when nothing of that is left to
//! do, an update takes its next step.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use kedge_client::{untolerated, wants_node};
use kube::ResourceExt;

use super::HASH;
use crate::pods;
use crate::share::{Round, share};

const GENERATION: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
/// Pods made or deleted in one look (`BurstReplicas`).
const BURST: usize = 250;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Nodes whose failed pod goes now.
    pub(super) failed: Vec<String>,
    pub(super) status: DaemonSetStatus,
    /// When to look again though nothing changed.
    pub(super) next: Option<SignedDuration>,
}

/// The pods of a node that the update has come to, and that it has not.
type NewAndOld<'p> = (Option<&'p Arc<Pod>>, Option<&'p Arc<Pod>>);

struct View<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    hash: &'a str,
    /// What a pod of the set is, but for its node.
    model: PodSpec,
    /// By node; oldest first, bound before unbound.
    on: BTreeMap<String, Vec<Arc<Pod>>>,
    nodes: BTreeMap<String, Arc<Node>>,
    now: Timestamp,
}

/// `wait` tells how long a failed pod of a node must stay before it is replaced.
#[allow(clippy::too_many_arguments, reason = "everything a decision needs comes in here")]
pub(super) fn plan(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    hash: &str,
    collisions: i32,
    owned: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    wait: &dyn Fn(&str) -> Option<SignedDuration>,
    now: Timestamp,
) -> Plan {
    let view = View::of(set, spec, hash, owned, nodes, now);
    let mut plan = Plan { status: view.status(collisions), ..Plan::default() };
    let mut wanted = Vec::new();
    for (name, node) in &view.nodes {
        view.manage(name, node, wait, &mut wanted, &mut plan);
    }
    // Nobody binds or collects a pod whose node went before it was bound.
    let gone = view.on.iter().filter(|(name, _)| !view.nodes.contains_key(*name));
    plan.delete.extend(gone.flat_map(|(_, pods)| pods).filter(|pod| !is_bound(pod) && !pods::is_leaving(pod)).cloned());
    if wanted.is_empty() && plan.delete.is_empty() && kind(spec) == "RollingUpdate" {
        view.update(&mut wanted, &mut plan.delete);
    }
    plan.create = wanted.iter().take(BURST).map(|node| view.pod(node)).collect();
    plan.delete.truncate(BURST);
    let seconds = spec.min_ready_seconds.unwrap_or(0);
    let ready = owned.iter().filter(|pod| pods::is_ready(pod));
    let waits = ready.filter_map(|pod| pods::available_in(pod, seconds, now)).filter(|wait| wait.is_positive());
    plan.next = waits.chain(plan.next).min();
    plan
}

fn kind(spec: &DaemonSetSpec) -> &str {
    spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate")
}

impl<'a> View<'a> {
    fn of(
        set: &'a DaemonSet,
        spec: &'a DaemonSetSpec,
        hash: &'a str,
        owned: &[Arc<Pod>],
        nodes: &[Arc<Node>],
        now: Timestamp,
    ) -> Self {
        let mut on: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in owned.iter().filter(|pod| !(pods::is_finished(pod) && pods::is_leaving(pod))) {
            if let Some(node) = target(pod) {
                on.entry(node.to_owned()).or_default().push(pod.clone());
            }
        }
        let age = |pod: &Arc<Pod>| (!is_bound(pod), pod.creation_timestamp().map(|time| time.0), pod.name_any());
        on.values_mut().for_each(|pods| pods.sort_by_key(age));
        let mut model = spec.template.spec.clone().unwrap_or_default();
        tolerate(&mut model);
        let nodes = nodes.iter().map(|node| (node.name_any(), node.clone())).collect();
        Self { set, spec, hash, model, on, nodes, now }
    }

    /// Whether a pod should start on a node, and whether one that is there may stay. (`NodeShouldRunDaemonPod`.)
    fn fits(&self, name: &str, node: &Node) -> (bool, bool) {
        let named = self.model.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name);
        if !named || !wants_node(&self.model, node) {
            return (false, false);
        }
        let bears = |effects: &[&str]| untolerated(&self.model, node, |e| effects.contains(&e)).next().is_none();
        (bears(&["NoExecute", "NoSchedule"]), bears(&["NoExecute"]))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        let generation = self.set.annotations().get(GENERATION_ANNOTATION);
        pod.labels().get(HASH).is_some_and(|hash| hash == self.hash)
            || generation.is_some() && pod.labels().get(GENERATION) == generation
    }

    /// Sees to it that a node has the pod it should have, and no others. (`podsShouldBeOnNode`.)
    fn manage(
        &self,
        name: &str,
        node: &Node,
        wait: &dyn Fn(&str) -> Option<SignedDuration>,
        wanted: &mut Vec<String>,
        plan: &mut Plan,
    ) {
        let (starts, stays) = self.fits(name, node);
        let here = self.on.get(name);
        if here.is_none() {
            if starts {
                wanted.push(name.to_owned());
            }
            return;
        }
        let mut live: Vec<&Arc<Pod>> = here.into_iter().flatten().filter(|pod| !pods::is_leaving(pod)).collect();
        if !stays {
            plan.delete.extend(live.into_iter().cloned());
            return;
        }
        for pod in live.extract_if(.., |pod| pods::is_finished(pod)) {
            if pods::phase(pod) == "Failed" {
                if let Some(left) = wait(name) {
                    plan.next = Some(plan.next.map_or(left, |next| next.min(left)));
                    continue;
                }
                plan.failed.push(name.to_owned());
            }
            plan.delete.push(pod.clone());
        }
        if self.surge(1) == 0 {
            plan.delete.extend(live.into_iter().skip(1).cloned());
            return;
        }
        if live.is_empty() && starts && here.into_iter().flatten().all(|pod| pods::is_leaving(pod)) {
            wanted.push(name.to_owned());
        }
        let (mut new, mut old): (Vec<_>, Vec<_>) = live.into_iter().partition(|pod| self.is_new(pod));
        if new.len() + old.len() > 1 {
            plan.delete.extend(new.drain(1.min(new.len())..).chain(old.drain(1.min(old.len())..)).cloned());
            if let (Some(new), Some(old)) = (new.first(), old.first())
                && (!pods::is_ready(old) || self.is_available(new))
            {
                plan.delete.push((*old).clone());
            }
        }
    }

    /// How many nodes may have a second pod during an update.
    fn surge(&self, whole: i32) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let surge =
            rolling.and_then(|rolling| rolling.max_surge.as_ref()).filter(|_| kind(self.spec) == "RollingUpdate");
        surge.map_or(0, |surge| share(surge, whole, Round::Up))
    }

    fn unavailable(&self, whole: i32) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).map_or(0, |most| share(most, whole, Round::Up))
    }

    /// The next step of an update. (`rollingUpdate`.)
    fn update(&self, wanted: &mut Vec<String>, delete: &mut Vec<Arc<Pod>>) {
        let starts: Vec<&String> =
            self.nodes.iter().filter(|(name, node)| self.fits(name, node).0).map(|(name, _)| name).collect();
        let whole = starts.len() as i32;
        let (surge, unavailable) = (self.surge(whole), self.unavailable(whole));
        if surge > 0 {
            return self.surge_on(&starts, surge, wanted, delete);
        }
        let most = if unavailable == 0 { 1 } else { unavailable } as usize;
        let missing = starts.iter().filter(|name| !self.on.contains_key(**name)).count();
        let (mut down, mut sick, mut candidates) = (missing, Vec::new(), Vec::new());
        for pods in self.on.values() {
            match self.both(pods) {
                Some((Some(new), None)) => down += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if !self.is_available(old) => {
                    sick.push(old.clone());
                    down += 1;
                }
                Some((None, Some(old))) => candidates.push(old.clone()),
                _ => down += 1,
            }
        }
        delete.extend(sick);
        delete.extend(candidates.into_iter().take(most.saturating_sub(down)));
    }

    /// The step of an update that makes the new pod before the old one goes.
    fn surge_on(&self, starts: &[&String], surge: i32, wanted: &mut Vec<String>, delete: &mut Vec<Arc<Pod>>) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut stranded) = (Vec::new(), Vec::new());
        for (name, pods) in &self.on {
            let Some((new, old)) = self.both(pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|pod| self.is_available(pod)));
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (self.is_available(old), starts.contains(&name)) {
                    (false, false) => delete.push(old.clone()),
                    (false, true) => wanted.push(name.clone()),
                    (true, false) => stranded.push(old.clone()),
                    (true, true) => candidates.push(name.clone()),
                },
                (Some(new), Some(old)) if self.is_available(new) => delete.push(old.clone()),
                (Some(_), Some(_)) => surging += 1,
            }
        }
        delete.extend(stranded.into_iter().take(available.saturating_sub(starts.len())));
        wanted.extend(candidates.into_iter().take((surge as usize).saturating_sub(surging)));
    }

    /// The new and the old pod of a node; none when there are several of one kind.
    fn both<'p>(&self, pods: &'p [Arc<Pod>]) -> Option<NewAndOld<'p>> {
        let live = pods.iter().filter(|pod| !pods::is_leaving(pod));
        let (new, old): (Vec<_>, Vec<_>) = live.partition(|pod| self.is_new(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    /// The pod for one node.
    fn pod(&self, node: &str) -> Pod {
        let mut pod = pods::from_template(self.set, &self.spec.template);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(HASH.into(), self.hash.into());
        if let Some(generation) = self.set.annotations().get(GENERATION_ANNOTATION) {
            labels.insert(GENERATION.into(), generation.clone());
        }
        let mut spec = self.model.clone();
        let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
        let named = NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        };
        let term = NodeSelectorTerm { match_fields: Some(vec![named]), match_expressions: None };
        affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: vec![term] });
        pod.spec = Some(spec);
        pod
    }

    fn status(&self, collisions: i32) -> DaemonSetStatus {
        let (mut desired, mut current, mut wrong, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
        for (name, node) in &self.nodes {
            let first = self.on.get(name).and_then(|pods| pods.first());
            if !self.fits(name, node).0 {
                wrong += i32::from(first.is_some());
                continue;
            }
            desired += 1;
            let Some(pod) = first else { continue };
            current += 1;
            ready += i32::from(pods::is_ready(pod));
            available += i32::from(self.is_available(pod));
            updated += i32::from(self.is_new(pod));
        }
        let some = |count: i32| (count != 0).then_some(count);
        let old = self.set.status.as_ref();
        DaemonSetStatus {
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: wrong,
            number_ready: ready,
            updated_number_scheduled: some(updated),
            number_available: some(available),
            number_unavailable: some(desired - available),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(collisions)
                .filter(|count| *count > 0 || old.is_some_and(|old| old.collision_count.is_some())),
            conditions: old.and_then(|status| status.conditions.clone()),
        }
    }
}

/// The node that a pod is on, or is meant for. (`GetTargetNodeName`.)
fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    match named.values.as_deref()? {
        [node] => Some(node),
        _ => None,
    }
}

/// What every daemon bears: a node in trouble needs its daemons. (`AddOrUpdateDaemonPodTolerations`.)
fn tolerate(spec: &mut PodSpec) {
    let mut taints = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        taints.push(("network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (taint, effect) in taints {
        let new = Toleration {
            key: Some(format!("node.kubernetes.io/{taint}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |t: &Toleration| t.key == new.key && t.effect == new.effect && t.operator == new.operator;
        if !tolerations.iter().any(|t| same(t) && t.toleration_seconds.is_none()) {
            tolerations.retain(|t| !same(t));
            tolerations.push(new);
        }
    }
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Pods as text: name, node, what it does, and its hash: `a n1 ready new`.
    fn pod(line: &&str) -> Arc<Pod> {
        let [name, node, state, hash] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let phase = match state {
            "pending" => "Pending",
            "failed" => "Failed",
            _ => "Running",
        };
        let ready = if state == "ready" { "True" } else { "False" };
        let leaving = (state == "leaving").then_some("2026-01-01T00:00:00Z");
        let pod = json!({"metadata": {"name": name, "uid": name, "deletionTimestamp": leaving,
            "labels": {"controller-revision-hash": hash}}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// Nodes as text: name, and a taint or none: `n1 NoSchedule`.
    fn node(line: &&str) -> Arc<Node> {
        let (name, effect) = line.split_once(' ').unwrap_or((line, ""));
        let taints = if effect.is_empty() { json!([]) } else { json!([{"key": "k", "effect": effect}]) };
        let node = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": {"taints": taints}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn look(strategy: Value, template: Value, nodes: &[&str], pods: &[&str]) -> Plan {
        let set = json!({"metadata": {"name": "d", "namespace": "n", "uid": "set"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy, "template": {"spec": template}}});
        let set: DaemonSet = serde_json::from_value(set).unwrap();
        let (nodes, pods): (Vec<_>, Vec<_>) = (nodes.iter().map(node).collect(), pods.iter().map(pod).collect());
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let wait = |name: &str| (name == "n9").then_some(SignedDuration::from_secs(3));
        plan(&set, set.spec.as_ref().unwrap(), "new", 0, &pods, &nodes, &wait, now)
    }

    fn shown(plan: &Plan) -> Vec<String> {
        let made = plan.create.iter().map(|pod| format!("+{}", target(pod).unwrap()));
        made.chain(plan.delete.iter().map(|pod| format!("-{}", pod.name_any()))).collect()
    }

    fn check(strategy: Value, nodes: &[&str], pods: &[&str], expected: &[&str]) {
        let plan = look(strategy.clone(), json!({"containers": []}), nodes, pods);
        assert_eq!(shown(&plan), expected, "{strategy} {nodes:?} {pods:?}");
    }

    fn rolling(unavailable: Value, surge: Value) -> Value {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
    }

    #[test]
    fn every_fitting_node_has_one_pod() {
        let one = rolling(json!(1), json!(0));
        check(one.clone(), &["n1", "n2"], &["a n1 ready new"], &["+n2"]);
        check(one.clone(), &["n1", "n2 NoSchedule"], &[], &["+n1"]);
        // What is there stays unless the node drives it away.
        check(one.clone(), &["n1 NoSchedule"], &["a n1 ready new"], &[]);
        check(one.clone(), &["n1 NoExecute"], &["a n1 ready new"], &["-a"]);
        check(one.clone(), &["n1"], &["a n1 ready new", "b n1 ready new"], &["-b"]);
        check(one.clone(), &["n1"], &["a n1 failed new"], &["-a"]);
        check(one.clone(), &["n9"], &["a n9 failed new"], &[]);
        check(one.clone(), &["n1"], &["a n1 leaving new"], &[]);
        assert_eq!(
            look(one.clone(), json!({"containers": []}), &["n9"], &["a n9 failed new"]).next,
            Some(SignedDuration::from_secs(3))
        );
        let only = json!({"containers": [], "nodeSelector": {"disk": "n2"}});
        assert_eq!(shown(&look(one, only, &["n1", "n2"], &["a n1 ready new"])), ["+n2", "-a"]);
    }

    #[test]
    fn updates_stay_within_their_limits() {
        let nodes = ["n1", "n2", "n3"];
        let old = ["a n1 ready old", "b n2 ready old", "c n3 ready old"];
        check(rolling(json!(1), json!(0)), &nodes, &old, &["-a"]);
        check(rolling(json!("50%"), json!(0)), &nodes, &old, &["-a", "-b"]);
        check(rolling(json!(1), json!(0)), &nodes, &["a n1 pending new", "b n2 ready old", "c n3 ready old"], &[]);
        // One that does not serve goes in any case.
        check(rolling(json!(1), json!(0)), &nodes, &["a n1 pending old", "b n2 ready old", "c n3 ready old"], &["-a"]);
        check(json!({"type": "OnDelete"}), &nodes, &old, &[]);
        check(rolling(json!(0), json!(1)), &nodes, &old, &["+n1"]);
        let surged = ["a n1 ready old", "x n1 pending new", "b n2 ready old", "c n3 ready old"];
        check(rolling(json!(0), json!(1)), &nodes, &surged, &[]);
        let over = ["a n1 ready old", "x n1 ready new", "b n2 ready old", "c n3 ready old"];
        check(rolling(json!(0), json!(1)), &nodes, &over, &["-a"]);
    }

    #[test]
    fn a_pod_asks_for_its_node_and_bears_its_troubles() {
        let plan = look(rolling(json!(1), json!(0)), json!({"containers": [], "hostNetwork": true}), &["n1"], &[]);
        let spec = plan.create[0].spec.as_ref().unwrap();
        assert_eq!(target(&plan.create[0]), Some("n1"));
        assert_eq!(spec.tolerations.as_ref().unwrap().len(), 7);
        assert_eq!(plan.create[0].labels()[HASH], "new");
    }

    #[test]
    fn the_status_counts_nodes() {
        let nodes = ["n1", "n2", "n3", "n4 NoSchedule"];
        let pods = ["a n1 ready new", "b n2 pending old", "d n4 ready old"];
        let status = look(rolling(json!(1), json!(0)), json!({"containers": []}), &nodes, &pods).status;
        let counts = (status.desired_number_scheduled, status.current_number_scheduled, status.number_misscheduled);
        assert_eq!(counts, (3, 2, 1));
        let more =
            (status.number_ready, status.updated_number_scheduled, status.number_available, status.number_unavailable);
        assert_eq!(more, (1, Some(1), Some(1), Some(2)));
    }
}
