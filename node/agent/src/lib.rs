//! The node agent: from a pod spec to running containers, as explicit state machines.
//!
//! Everything decided about a pod is decided by [`plan::plan`], from its spec, what runs, what is remembered and the
//! time: what to do next, what its status says, and when to look again. Pure beside it: [`probe`], [`backoff`],
//! [`env`](mod@env), [`resources`], [`security`], [`container`] (the runtime's spec of a container),
//! [`volumes`] (which files a volume holds), [`admission`] (whether the node takes it), [`events`] (what is told of it).
//! Shells: [`worker`] (one task for each pod), [`agent`] (the Node object,
//! its Lease, the watch on pods), [`prober`], [`volumes::writer`], [`cache`] (pod specs for a start without the API).
//!
//! [`streams`] answers the API server about logs and exec.
//!
//! Not here: networks ([`network::Network`] is the seam), what runs containers ([`kedge_runtimes`]).

pub mod admission;
pub mod agent;
pub mod backoff;
pub mod cache;
pub mod container;
mod disk;
pub mod env;
pub mod etc;
pub mod events;
pub mod network;
pub mod node;
pub mod plan;
pub mod probe;
pub mod prober;
mod pull_secrets;
mod report;
pub mod resources;
pub mod security;
pub mod streams;
pub mod volumes;
pub mod worker;
