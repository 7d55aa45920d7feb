//! A cluster as a site of a hub: its identity, the one connection that it opens, models on their way down, their
//! state on its way up.
//!
//! ```text
//! hub ──link──> what is held (one file) ──> reconciler of Model objects ──> pull, verify, activate
//!      <── reports (last state per key) <──────────┘          <── Model status (its own controller)
//! ```
//!
//! What must always hold: nothing here is needed to start, run or restart what the site serves; what the hub says is
//! acted on only when it is signed by the hub that was joined; a model takes another one's place only when all of it
//! is here. Not here: the protocol (`edge-sync/link`), contents of models (`edge-sync/models`).

#![forbid(unsafe_code)]

mod about;
mod hub;
mod identity;
mod join;
mod link;
mod models;
mod plan;
mod pull;
mod run;

pub use hub::{Address, AddressError};
pub use identity::{IdentityError, SiteIdentity, folder, identity_path};
pub use join::{JoinError, Joined, join, leave};
pub use link::StateError;
pub use run::{Site, SiteError, run};
