//! The hub of sites, beside an API server: enrols them, tells each what it should hold, sends models in verified
//! pieces, and writes what it hears of them into their `Site` objects.
//!
//! ```text
//! Site, Model objects ──watch──> assign (pure) ──> one task a site: the link's half, its ledger ──> gRPC ──> site
//!                         Site.status <── status (pure) <──────────┘  <── acknowledgements, reports
//! ```
//!
//! What must always hold: what a site is told to hold is signed; a token is worth one identity; the task of a site
//! saves its ledger before it sends. Not here: the protocol (`edge-sync/link`), the site's side (`edge-sync/site`),
//! taking models in (`edge-sync/models`).

#![forbid(unsafe_code)]

mod api;
mod assign;
mod enrol;
mod keys;
mod run;
mod service;
mod site;
mod sites;
mod status;
mod tokens;

pub use api::{ApiError, As, connect};
pub use keys::{HubKeys, KeysError};
pub use run::{HubError, HubOptions, run};
pub use tokens::{Invitation, Lasting, TokenError, create as create_token, parse_lasting};

/// The folder of the hub's own files below a data directory.
pub fn folder(data_dir: &std::path::Path) -> std::path::PathBuf {
    data_dir.join("hub")
}
