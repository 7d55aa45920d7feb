//! NodeAffinity and nodeSelector: which nodes a pod asks for, and which it prefers. (`plugins/nodeaffinity`,
//! `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.)

use kedge_client::{term_matches, wants_node};

use crate::framework::{Event, Plugin, Refusal, normalize};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        if matches(pod, node) {
            Ok(())
        } else {
            Err(Refusal::for_good("node(s) didn't match Pod's node affinity/selector"))
        }
    }

    fn scores(&self, pod: &PodView, nodes: &[&NodeView], _snapshot: &Snapshot) -> Option<Vec<i64>> {
        let affinity = pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &&NodeView| {
            preferred.iter().filter(|p| term_matches(&p.preference, &node.node)).map(|p| i64::from(p.weight)).sum()
        };
        Some(normalize(nodes.iter().map(score).collect(), false))
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// Whether a node is one that the pod asks for; spreading counts only such nodes.
pub(super) fn matches(pod: &PodView, node: &NodeView) -> bool {
    pod.pod.spec.as_ref().is_none_or(|spec| wants_node(spec, &node.node))
}
