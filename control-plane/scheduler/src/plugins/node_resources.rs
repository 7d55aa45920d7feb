//! NodeResourcesFit and NodeResourcesBalancedAllocation: enough of everything, and where most is left evenly.
//! (`plugins/noderesources`.)

use crate::framework::{Event, Plugin, Refusal};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct NodeResources;

impl Plugin for NodeResources {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::PodGone, Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        let mut missing = Vec::new();
        let mut for_good = false;
        if node.pods.len() as i64 + 1 > node.allocatable.get("pods") {
            missing.push("Too many pods".to_owned());
        }
        for (name, asked) in pod.requests.iter().filter(|(_, asked)| *asked > 0) {
            let whole = node.allocatable.get(name);
            if asked > whole - node.requested.get(name) {
                missing.push(format!("Insufficient {name}"));
                for_good |= asked > whole;
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(Refusal { reason: missing.join("\n"), for_good }) }
    }

    /// Half for what is left (`LeastAllocated`), half for how evenly CPU and memory are used.
    fn scores(&self, pod: &PodView, nodes: &[&NodeView], _snapshot: &Snapshot) -> Option<Vec<i64>> {
        let score = |node: &&NodeView| {
            let used = |name: &str| {
                let whole = node.allocatable.get(name).max(1) as f64;
                ((node.scored.get(name) + pod.scored.get(name)) as f64 / whole).min(1.0)
            };
            let (cpu, memory) = (used("cpu"), used("memory"));
            let left = ((1.0 - cpu) + (1.0 - memory)) / 2.0;
            let even = 1.0 - (cpu - memory).abs() / 2.0;
            ((left + even) * 50.0) as i64
        };
        Some(nodes.iter().map(score).collect())
    }

    fn weight(&self) -> i64 {
        2
    }
}
