//! What every cluster holds from its first start: namespaces, roles, the service by which pods find the API.
//!
//! Everything is created through the API like a client would, all at once, so that the disk is waited for a few
//! times and not two hundred. What exists is left as it is: an administrator may have changed it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Method};
use kedge_access::{User, bootstrap_objects};
use serde_json::{Value, json};

use crate::api::{Api, Incoming};

/// The namespaces of every cluster (`pkg/controlplane/controller/systemnamespaces`).
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Why a cluster could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot create {what}: {message}")]
pub struct BootstrapError {
    what: String,
    message: String,
}

/// Creates what is missing.
pub async fn bootstrap(api: &Api) -> Result<(), BootstrapError> {
    let namespaces =
        NAMESPACES.iter().map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    create_all(api, namespaces.collect()).await?;
    let mut objects = bootstrap_objects();
    objects.extend(priority_classes());
    create_all(api, objects).await
}

/// The two classes that the node's own pods use (`pkg/apis/scheduling/types.go`).
fn priority_classes() -> [Value; 2] {
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)].map(|(name, value)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name }, "value": value,
            "description": "Used for system critical pods that must not be evicted.",
        })
    })
}

async fn create_all(api: &Api, objects: Vec<Value>) -> Result<(), BootstrapError> {
    let user = Arc::new(User::new("system:apiserver", &["system:masters"]));
    let registry = api.registry();
    let creations = objects.into_iter().map(|object| {
        let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or(("", "v1"));
        let kind = registry.by_kind(group, version, object["kind"].as_str().unwrap_or_default());
        let kind = kind.expect("built-in objects are of built-in kinds");
        let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
        let scope = object["metadata"]["namespace"].as_str().map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
        let incoming = Incoming {
            method: Method::POST,
            path: format!("{root}{scope}/{}", kind.resource.plural),
            query: Some("fieldManager=kedge".into()),
            headers: HeaderMap::new(),
            body: Bytes::from(object.to_string()),
            user: user.clone(),
        };
        create(api, object, incoming)
    });
    join_all(creations).await.into_iter().collect()
}

async fn create(api: &Api, object: Value, incoming: Incoming) -> Result<(), BootstrapError> {
    let response = api.handle(incoming).await;
    if response.status().is_success() || response.status() == http::StatusCode::CONFLICT {
        return Ok(());
    }
    let what = format!("{} {}", object["kind"].as_str().unwrap_or_default(), crate::object::name(&object));
    let body =
        http_body_util::BodyExt::collect(response.into_body()).await.expect("our own bodies do not fail").to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    Err(BootstrapError { what, message: status["message"].as_str().unwrap_or_default().to_owned() })
}
