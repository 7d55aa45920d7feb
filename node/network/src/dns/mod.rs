//! Cluster DNS in this process, after Kubernetes' DNS-based service discovery, version 1.1.0.
//!
//! [`Zone`] is fed from Services and EndpointSlices and answers by labels; [`answer`](mod@answer) turns a packet into
//! a reply or into what must be asked elsewhere; both are pure. [`server`] is the shell: sockets on the cluster's DNS
//! address, inside the node's namespace; [`forward`] asks the node's own resolvers about everything else.
//!
//! Always holds: no packet makes it panic, a reply is never answered, a name below the cluster's domain never leaves
//! the node. Not here: a cache of what others answered, zone transfers, DNSSEC, IPv6 addresses.

pub mod answer;
pub mod forward;
pub mod server;
mod zone;

pub use forward::{Resolvers, resolvers_of};
pub use server::{DnsServer, DnsSettings};
pub use zone::{Data, Lookup, Zone};

/// The version of the specification, served as `dns-version.<domain>`.
pub const SPECIFICATION: &str = "1.1.0";

#[cfg(test)]
mod tests;
