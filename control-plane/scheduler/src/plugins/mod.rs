//! The plugins, in the order in which they filter: cheap and telling ones first. A plugin is one file and one line.

mod basics;
mod node_affinity;
mod node_ports;
mod node_resources;
mod taints;
mod topology_spread;

use crate::framework::Plugin;

/// Every plugin.
pub(crate) fn all() -> &'static [&'static dyn Plugin] {
    &[
        &basics::Understood,
        &basics::NodeUnschedulable,
        &taints::TaintToleration,
        &node_affinity::NodeAffinity,
        &node_ports::NodePorts,
        &node_resources::NodeResources,
        &topology_spread::TopologySpread,
    ]
}
