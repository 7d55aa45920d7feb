//! What hub and site share besides the link: messages, join tokens, signed statements, and TLS that needs no clock.
//!
//! Not here: what either side does with them (`edge-sync/hub`, `edge-sync/site`).

#![forbid(unsafe_code)]

mod convert;
mod peer;
pub mod report;
mod statement;
mod tls;
mod token;

/// The messages and services of `proto/edge.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub, reason = "generated; its sentences are in the .proto file")]
pub mod proto {
    tonic::include_proto!("kedge.edge.v1");
}

pub use convert::{Malformed, from_hub, from_site, to_hub, to_site};
pub use peer::{Peer, PeerError, SITE_NAME_BYTES_MAX, check_site_name, key_hash};
pub use statement::{Assignment, Signed, SigningKey, StatementError, VerifyingKey};
pub use tls::{Connector, HUB_SERVER_NAME, HubRoots, TlsError, hub_config, site_config};
pub use token::{JoinToken, TokenError};
