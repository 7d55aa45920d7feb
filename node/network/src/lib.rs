//! The network of one node: pods on a bridge, Services in nftables, cluster DNS in this process.
//!
//! Everything happens inside one network namespace, the node's ([`Namespace`]): the process's own, or a named one
//! that [`node::open`] makes. Every link, table and file is named after the data directory ([`names::NodeKey`]), so
//! two nodes on one machine never touch each other's.
//!
//! Pure, with the tests beside them: [`cidr`], [`addresses`], [`own_address`] (but for following it), [`pods::rules`], [`services`] (which endpoints a Service
//! port uses, the rules this means, the difference between two sets of rules), [`dns`] (zone and answer).
//! Shells: [`namespace`], [`NamespaceNet`] (streams inside it), [`links`] (netlink), [`nft`], [`pods`] (one pod's network from lease to address),
//! [`services::proxy`], [`dns::server`].
//!
//! [`NodeNetwork`] puts them together; [`PodNetworks::setup`] and [`PodNetworks::teardown`] are what a node's agent
//! calls for each pod.
//!
//! Not here: IPv6, other nodes' pods (VXLAN comes with the second node), NetworkPolicy, ingress.

pub mod addresses;
pub mod cidr;
pub mod dns;
mod error;
pub mod leases;
pub mod links;
pub mod names;
pub mod namespace;
mod net;
pub mod nft;
pub mod node;
pub mod own_address;
pub mod pods;
pub mod services;
mod start;

pub use cidr::Ipv4Cidr;
pub use dns::{DnsServer, DnsSettings, Resolvers};
pub use error::NetworkError;
pub use leases::{HostPort, PodRef, Protocol, host_ports_of};
pub use names::NodeKey;
pub use namespace::{Namespace, in_namespace};
pub use net::NamespaceNet;
pub use own_address::OwnAddress;
pub use pods::{PodNetwork, PodNetworks, PodSettings};
pub use services::{NodeFacts, ServiceProxy};
pub use start::{DnsPlan, NetworkSettings, NodeNetwork};
