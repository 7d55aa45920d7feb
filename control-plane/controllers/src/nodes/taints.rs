//! Which taints a node has by its conditions, and when its pods are driven away. Pure.
//! (`pkg/controller/nodelifecycle/node_lifecycle_controller.go`.)

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::is_ours;

/// A zone with so many nodes down is in trouble as a whole (`--unhealthy-zone-threshold` 0.55, and more than two).
const TROUBLE_PERCENT: usize = 55;
const TROUBLE_MIN: usize = 3;
/// A cluster of at most so many nodes drives nobody away while a zone is in trouble.
const SMALL_CLUSTER_MAX: usize = 50;
/// `--node-eviction-rate` 0.1 and `--secondary-node-eviction-rate` 0.01, as the pause between two nodes of a zone.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_IN_TROUBLE: Duration = Duration::from_secs(100);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// How careful to be with driving pods away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    /// One node after another.
    Normal,
    /// Much of the zone is down in a large cluster: slowly.
    Trouble,
    /// Much of the zone is down in a small cluster: not at all.
    Held,
    /// Every node is down at once: whoever looks is the one that is cut off. What was begun is taken back.
    AllDown,
}

impl Mode {
    /// The pause between two nodes; none when no node may be driven empty.
    pub(super) fn pause(self) -> Option<Duration> {
        match self {
            Self::Normal => Some(PAUSE),
            Self::Trouble => Some(PAUSE_IN_TROUBLE),
            Self::Held | Self::AllDown => None,
        }
    }
}

/// The condition of this type.
pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// `True`, `False` or `Unknown`; empty before anybody said.
pub(super) fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("", |condition| &condition.status)
}

/// The zone of a node, by its labels. (`GetZoneKey`.)
pub(super) fn zone(node: &Node) -> String {
    let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// How the zone of `node` fares, and the cluster. (`ComputeZoneState`, `handleDisruption`.)
pub(super) fn mode(all: &[Arc<Node>], node: &Node) -> Mode {
    let counts: Vec<&Arc<Node>> =
        all.iter().filter(|n| !n.labels().contains_key("node.kubernetes.io/exclude-disruption")).collect();
    let is_up = |node: &&&Arc<Node>| ready(node) == "True";
    if !counts.is_empty() && !counts.iter().any(|node| is_up(&node)) {
        return Mode::AllDown;
    }
    let here = zone(node);
    let zone: Vec<_> = counts.iter().filter(|node| zone(node) == here).collect();
    let down = zone.iter().filter(|node| !is_up(node)).count();
    let troubled = down >= TROUBLE_MIN && down * 100 >= zone.len() * TROUBLE_PERCENT && down < zone.len();
    match troubled {
        false => Mode::Normal,
        true if all.len() <= SMALL_CLUSTER_MAX => Mode::Held,
        true => Mode::Trouble,
    }
}

/// The taints to write.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// All of them; none when nothing changes.
    pub(super) taints: Option<Vec<Taint>>,
    /// Whether pods go from now on.
    pub(super) drives_away: bool,
    /// Whether one more is due as soon as it is this node's turn.
    pub(super) waits: bool,
}

/// `may_drive_away` says that it is this node's turn.
pub(super) fn plan(node: &Node, mode: Mode, may_drive_away: bool, now: Timestamp) -> Plan {
    let old = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let (mut plan, mut new) = (Plan::default(), old.clone());
    let wanted = no_schedule(node);
    let decided = |taint: &Taint| is_ours(taint) && taint.effect == "NoSchedule" && KEYS.contains(&&*taint.key);
    new.retain(|taint| !decided(taint) || wanted.contains(&&*taint.key));
    for key in wanted {
        add(&mut new, key, "NoSchedule", now);
    }
    let away = match (mode, ready(node)) {
        (Mode::AllDown, _) | (_, "True" | "") => None,
        (_, "False") => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let drives = |taint: &Taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&&*taint.key);
    let driven = new.iter().any(drives);
    new.retain(|taint| !drives(taint) || away == Some(&*taint.key));
    if let Some(key) = away
        && !new.iter().any(drives)
    {
        // Changing from one to the other takes nobody's turn.
        if may_drive_away || driven {
            add(&mut new, key, "NoExecute", now);
            plan.drives_away = !driven;
        } else {
            plan.waits = true;
        }
    }
    plan.taints = (new != old).then_some(new);
    plan
}

/// The keys that follow from conditions, and the one of a cordoned node.
const KEYS: [&str; 7] = [
    NOT_READY,
    UNREACHABLE,
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
    "node.kubernetes.io/unschedulable",
];

/// The taints that keep new pods away, by what the node says. (`doNoScheduleTaintingPass`.)
fn no_schedule(node: &Node) -> Vec<&'static str> {
    let is = |kind: &str, value: &str| condition(node, kind).is_some_and(|condition| condition.status == value);
    let all = [
        is("Ready", "False"),
        is("Ready", "Unknown"),
        is("MemoryPressure", "True"),
        is("DiskPressure", "True"),
        is("PIDPressure", "True"),
        is("NetworkUnavailable", "True"),
        node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)),
    ];
    KEYS.into_iter().zip(all).filter(|(_, holds)| *holds).map(|(key, _)| key).collect()
}

fn add(taints: &mut Vec<Taint>, key: &str, effect: &str, now: Timestamp) {
    if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
        taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added: Some(Time(now)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, spec: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    fn many(states: &[(&str, usize)]) -> Vec<Arc<Node>> {
        states.iter().flat_map(|(state, count)| vec![node(state, json!({})); *count]).collect()
    }

    #[test]
    fn who_looks_may_be_the_one_cut_off() {
        let check = |states: &[(&str, usize)], expected: Mode| {
            let all = many(states);
            assert_eq!(mode(&all, &all[0]), expected, "{states:?}");
        };
        check(&[("Unknown", 1)], Mode::AllDown);
        check(&[("Unknown", 5)], Mode::AllDown);
        check(&[("Unknown", 1), ("True", 1)], Mode::Normal);
        check(&[("Unknown", 3), ("True", 2)], Mode::Held);
        check(&[("Unknown", 40), ("True", 20)], Mode::Trouble);
        check(&[("False", 2), ("True", 8)], Mode::Normal);
    }

    fn check(node: &Node, mode: Mode, turn: bool, expected: Option<&[&str]>) -> Plan {
        let plan = plan(node, mode, turn, Timestamp::UNIX_EPOCH);
        let text = |taint: &Taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap(), taint.effect);
        let found = plan.taints.as_ref().map(|taints| taints.iter().map(text).collect::<Vec<_>>());
        assert_eq!(found, expected.map(|list| list.iter().map(|s| s.to_string()).collect()), "{node:?}");
        plan
    }

    #[test]
    fn taints_follow_conditions() {
        let none = json!({});
        check(&node("True", none.clone()), Mode::Normal, true, None);
        check(&node("True", json!({"unschedulable": true})), Mode::Normal, true, Some(&["unschedulable:NoSchedule"]));
        let gone = node("Unknown", none.clone());
        assert!(
            check(&gone, Mode::Normal, true, Some(&["unreachable:NoSchedule", "unreachable:NoExecute"])).drives_away
        );
        assert!(check(&gone, Mode::Normal, false, Some(&["unreachable:NoSchedule"])).waits);
        assert!(!check(&gone, Mode::AllDown, true, Some(&["unreachable:NoSchedule"])).waits);
        check(&node("False", none), Mode::Normal, true, Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]));
        let both = json!({"taints": [{"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"},
            {"key": "own", "effect": "NoExecute"}]});
        check(&node("True", both.clone()), Mode::Normal, false, Some(&["own:NoExecute"]));
        // From one to the other at once.
        let swapped = ["own:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"];
        assert!(!check(&node("Unknown", both.clone()), Mode::Normal, false, Some(&swapped)).drives_away);
        check(&node("False", both), Mode::AllDown, false, Some(&["not-ready:NoSchedule", "own:NoExecute"]));
    }
}
