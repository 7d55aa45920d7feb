//! The seam to whatever gives pods their network.

use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kedge_runtimes::PodId;

/// A pod's place in the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// The namespace its containers join; none joins the one that the runtime runs in.
    pub namespace: Option<PathBuf>,
    /// Its addresses, the first one first in its status.
    pub ips: Vec<String>,
}

/// Gives pods their network. Pods on the host's own network never come here.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects a pod; asked again for a pod that is connected, gives the same answer.
    async fn setup(&self, id: &PodId, pod: &Pod) -> Result<PodNetwork, NetworkError>;
    /// Takes everything of a pod's away; what is gone already is fine.
    async fn teardown(&self, id: &PodId) -> Result<(), NetworkError>;
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
#[error("failed to set up the pod's network: {0}")]
pub struct NetworkError(pub String);
