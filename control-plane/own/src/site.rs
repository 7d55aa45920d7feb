//! `Site`: another cluster that takes what it should hold from this one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Serialize};

/// What is asked of a site. Who gets what is said by the objects that are assigned, and by this object's labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteSpec {}

/// What is known of a site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteStatus {
    /// `Connected`: the site is at the other end of a connection. `InStep`: it holds, active, what it should hold.
    /// `ClockInStep`: its clock agrees with the hub's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// When the site was last heard of, to within some minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_time: Option<Time>,
    /// The release that the site runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How the site proves who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SiteIdentity>,
    /// The site's nodes, in sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<SiteInventory>,
    /// The models that the site should hold, or still holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<SiteModel>,
}

/// How a site proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteIdentity {
    /// SHA-256 of the site's public key.
    pub key: String,
}

/// The nodes of a site, in sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteInventory {
    /// How many nodes there are.
    pub nodes: i64,
    /// How many of them are ready.
    pub nodes_ready: i64,
    /// The CPUs of all nodes, in thousandths.
    pub cpu_millis: i64,
    /// The memory of all nodes.
    pub memory_bytes: i64,
}

/// What has become of a model at a site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteModel {
    /// Its namespace, at the hub and at the site.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The digest that the site should hold, or holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What it is doing.
    pub state: SiteModelState,
    /// Bytes that are at the site and verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<i64>,
    /// Bytes of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a model at a site is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteModelState {
    /// Assigned; the site has said nothing of it yet.
    #[default]
    Pending,
    /// On its way.
    Pulling,
    /// Verified and in its place.
    Active,
    /// Something is wrong; the message says what. The site tries again.
    Failed,
    /// The site holds it from a time that this hub knows nothing of, and keeps it until the hub assigns or releases it.
    Unclaimed,
}
