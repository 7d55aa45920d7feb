//! Asking an OCI registry: who asks, and what its answers mean. (OCI distribution spec, `pull`;
//! docs.docker.com/registry/spec/auth/token.)
//!
//! Images and models come from registries in the same way. Not here: what manifests say, where blobs are kept, pushing.

#![forbid(unsafe_code)]

mod logins;
mod session;

use kedge_fetch::FetchError;

pub use logins::{Login, logins};
pub use session::Session;

/// Why a registry did not give something.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry, or the way there.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The registry wants to know who asks, and nobody it accepts does.
    #[error("{registry} refuses to give {repository}: {reason}")]
    Refused {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Its words.
        reason: String,
    },
    /// There is no such thing.
    #[error("{0} does not exist")]
    Missing(String),
    /// What came makes no sense.
    #[error("{what}: {reason}")]
    Invalid {
        /// The part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}
