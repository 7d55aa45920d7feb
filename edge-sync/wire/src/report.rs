//! What a site reports, as bodies of the link.

use serde::{Deserialize, Serialize};

/// The key of what a site says of itself ([`About`]).
pub const ABOUT: &str = "site";

/// What a site says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its release.
    pub version: String,
    /// Its nodes, once they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
}

/// The nodes of a site, in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// How many there are.
    pub nodes: i64,
    /// How many are ready.
    pub nodes_ready: i64,
    /// Their CPUs, in thousandths.
    pub cpu_millis: i64,
    /// Their memory.
    pub memory_bytes: i64,
}

/// What has become of a model; its key is that of the assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The digest that this is about.
    pub digest: String,
    /// What it is doing.
    pub state: State,
    /// Bytes that are here and verified.
    pub bytes_done: u64,
    /// Bytes of the model.
    pub bytes_total: u64,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a model at a site is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// On its way.
    Pulling,
    /// Verified and in its place.
    Active,
    /// Something is wrong; the site tries again.
    Failed,
    /// Kept although the hub does not know it.
    Unclaimed,
}
