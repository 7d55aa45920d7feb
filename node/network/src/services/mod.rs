//! Services as nftables rules: which endpoints a port uses, the rules this means, what changes between two states.
//!
//! A Service becomes a [`Fragment`] (chains, sets, map elements) by a pure function of the Service, its
//! EndpointSlices and the node's facts. [`Ruleset`] holds all fragments and tells, for each change, the batch that
//! takes the kernel from the old state to the new one: its size follows the change, not the number of Services,
//! because a packet finds its Service by one look-up in a map.
//!
//! What a packet meets, in this order (one table, hooks prerouting and output):
//!
//! ```text
//! nat -100     service-ips (address . protocol . port), node-ports (protocol . port)  ─> ext-* ─> svc-* | svl-* ─> ep-*
//! filter -80   not translated: no-endpoints, no-endpoint-node-ports ─> reject | drop; unknown Service address: reject
//! filter -110  firewall: source ranges of load balancers
//! nat srcnat   marked: masquerade
//! ```
//!
//! Not here: health check node ports of `externalTrafficPolicy: Local`; IPv6.

pub mod conntrack;
pub mod endpoints;
mod fragment;
pub mod proxy;
mod ruleset;

pub use endpoints::NodeFacts;
pub use fragment::{Element, Fragment, Map, fragment};
pub use proxy::ServiceProxy;
pub use ruleset::{Ruleset, TableFacts};

#[cfg(test)]
mod tests;
