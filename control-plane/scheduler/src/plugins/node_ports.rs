//! NodePorts: two pods cannot take the same port of a node. (`plugins/nodeports`.)

use crate::framework::{Event, Plugin, Refusal};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::PodGone, Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        if pod.host_ports.is_empty() {
            return Ok(());
        }
        let mut taken = node.pods.values().flat_map(|other| &other.host_ports);
        if taken.any(|port| pod.host_ports.iter().any(|wanted| wanted.clashes(port))) {
            return Err(Refusal::now("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}
