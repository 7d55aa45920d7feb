//! PodTopologySpread: pods that belong together stand apart. (`plugins/podtopologyspread`.)

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::node_affinity;
use crate::framework::{Event, Plugin, Refusal, normalize};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct TopologySpread;

impl Plugin for TopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::PodGone, Event::PodPlaced, Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, snapshot: &Snapshot) -> Result<(), Refusal> {
        for constraint in constraints(pod, "DoNotSchedule") {
            let Some(here) = node.label(&constraint.topology_key) else {
                return Err(Refusal::for_good(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let counts = counts(pod, constraint, snapshot);
            let domains = counts.len() as i32;
            let least = match constraint.min_domains {
                Some(wanted) if domains < wanted => 0,
                _ => counts.values().copied().min().unwrap_or(0),
            };
            let own = i32::from(selects(constraint, pod, pod));
            if counts.get(here).copied().unwrap_or(0) + own - least > constraint.max_skew {
                return Err(Refusal::now("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn scores(&self, pod: &PodView, nodes: &[&NodeView], snapshot: &Snapshot) -> Option<Vec<i64>> {
        let soft: Vec<_> = constraints(pod, "ScheduleAnyway").collect();
        if soft.is_empty() {
            return None;
        }
        let mut crowds = vec![0; nodes.len()];
        for constraint in soft {
            let counts = counts(pod, constraint, snapshot);
            let most = counts.values().copied().max().unwrap_or(0) + 1;
            for (crowd, node) in crowds.iter_mut().zip(nodes) {
                // A node without the label is as bad as the most crowded one.
                let here = node.label(&constraint.topology_key).and_then(|value| counts.get(value).copied());
                *crowd += i64::from(here.unwrap_or(most));
            }
        }
        Some(normalize(crowds, true))
    }

    fn weight(&self) -> i64 {
        2
    }
}

fn constraints<'a>(pod: &'a PodView, when: &'a str) -> impl Iterator<Item = &'a TopologySpreadConstraint> {
    let all = pod.pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
    all.into_iter().flatten().filter(move |constraint| constraint.when_unsatisfiable == when)
}

/// How many matching pods each domain holds, over the nodes that count for this pod.
fn counts<'a>(pod: &PodView, constraint: &TopologySpreadConstraint, snapshot: &'a Snapshot) -> HashMap<&'a str, i32> {
    let all_nodes = constraint.node_affinity_policy.as_deref() == Some("Ignore");
    let mut counts: HashMap<&str, i32> = HashMap::new();
    for node in snapshot.nodes().filter(|node| all_nodes || node_affinity::matches(pod, node)) {
        let Some(domain) = node.label(&constraint.topology_key) else { continue };
        let here = node
            .pods
            .values()
            .filter(|other| other.pod.metadata.deletion_timestamp.is_none() && selects(constraint, pod, other));
        *counts.entry(domain).or_insert(0) += here.count() as i32;
    }
    counts
}

/// Whether `other` is of the kind that `pod` wants to stand apart from.
fn selects(constraint: &TopologySpreadConstraint, pod: &PodView, other: &PodView) -> bool {
    let Some(selector) = &constraint.label_selector else { return false };
    let same_keys = constraint.match_label_keys.iter().flatten().all(|key| {
        let of = |view: &PodView| view.labels().and_then(|labels| labels.get(key)).cloned();
        of(pod) == of(other)
    });
    pod.key.namespace == other.key.namespace && same_keys && kedge_client::selects(selector, other.labels())
}
