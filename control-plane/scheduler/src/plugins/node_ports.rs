//! NodePorts: two pods cannot take the same port of a node. (`plugins/nodeports`.)

use crate::framework::{Event, Plugin, Refusal};
use crate::snapshot::{NodeView, PodView, Snapshot};

const ANY: &str = "0.0.0.0";

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
        let taken = node.pods.values().flat_map(|other| &other.host_ports);
        let clashes = |(address, protocol, number): &(String, String, i32)| {
            let same = |wanted: &&(String, String, i32)| {
                wanted.1 == *protocol
                    && wanted.2 == *number
                    && (wanted.0 == *address || wanted.0 == ANY || address == ANY)
            };
            pod.host_ports.iter().find(same).is_some()
        };
        if taken.into_iter().any(clashes) {
            return Err(Refusal::now("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}
