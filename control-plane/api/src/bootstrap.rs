//! What every cluster holds from its first start: namespaces, roles, the service by which pods find the API.
//!
//! Everything is created through the API like a client would, all at once, so that the disk is waited for a few
//! times and not two hundred. What exists is left as it is: an administrator may have changed it.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Method};
use kedge_access::{User, bootstrap_objects};
use kedge_store::{ObjectKey, ResourceId};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admission::Range;
use crate::api::{Api, Incoming};
use crate::registry::Registry;

/// The namespaces of every cluster (`pkg/controlplane/controller/systemnamespaces`).
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Why a cluster could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what}: {message}")]
pub struct BootstrapError {
    what: String,
    message: String,
}

/// Creates what is missing, and brings `definitions`, the CustomResourceDefinitions of this version, up to date.
pub async fn bootstrap(api: &Api, definitions: Vec<Value>) -> Result<(), BootstrapError> {
    let namespaces =
        NAMESPACES.iter().map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    create_all(api, namespaces.collect()).await?;
    let mut objects = bootstrap_objects();
    objects.extend(priority_classes());
    objects.push(own_service(api)?);
    create_all(api, objects).await?;
    retire(api).await?;
    for definition in definitions {
        put(api, definition).await?;
    }
    Ok(())
}

/// Removes what earlier versions created and this one does without, unless somebody has made it theirs by taking the
/// label off. The one thing so far let every node read every Secret; nodes have an authorizer of their own now.
async fn retire(api: &Api) -> Result<(), BootstrapError> {
    const BINDING: &str = "kedge:nodes";
    let collection = ResourceId::new("rbac.authorization.k8s.io", "clusterrolebindings");
    let Some(entry) = api.store().get(&collection, &ObjectKey::new("", BINDING)) else { return Ok(()) };
    if entry.facets.label("kubernetes.io/bootstrapping") != Some("rbac-defaults") {
        tracing::warn!(
            binding = BINDING,
            "lets nodes read more than the pods bound to them need; kept, as it was changed"
        );
        return Ok(());
    }
    let user = Arc::new(User::new("system:apiserver", &["system:masters"]));
    let binding = crate::object::decode(&entry.bytes);
    let mut incoming = request(&api.registry(), &user, &binding, Method::DELETE);
    incoming.path = format!("{}/{BINDING}", incoming.path);
    incoming.body = Bytes::new();
    let response = api.handle(incoming).await;
    finish(&binding, response).await
}

/// The service by which pods find the API: the first address of the range, which nobody else may get.
/// (`pkg/controlplane/controller/kubernetesservice`.) Its endpoints follow when the server knows its address.
fn own_service(api: &Api) -> Result<Value, BootstrapError> {
    let cidr = &api.settings().service_cidr;
    let range = Range::parse(cidr).ok_or_else(|| BootstrapError {
        what: "Service kubernetes".into(),
        message: format!("service CIDR {cidr:?} is no CIDR with room for services"),
    })?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "clusterIP": range.first().to_string(), "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443 }],
        },
    }))
}

/// Says at which address and port this server can be reached: the endpoints of [`own_service`]. To be called when
/// the listener is known, and again when the address changes.
pub async fn advertise(api: &Api, address: IpAddr, port: u16) -> Result<(), BootstrapError> {
    let ports = json!([{ "name": "https", "port": port, "protocol": "TCP" }]);
    let metadata = json!({
        "name": "kubernetes", "namespace": "default",
        "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
    });
    let slice_metadata = json!({
        "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" },
    });
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let objects = [
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
            "subsets": [{ "addresses": [{ "ip": address }], "ports": ports }],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice_metadata,
            "addressType": family, "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            "ports": ports,
        }),
    ];
    for object in objects {
        put(api, object).await?;
    }
    Ok(())
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
        let incoming = request(&registry, &user, &object, Method::POST);
        create(api, object, incoming)
    });
    join_all(creations).await.into_iter().collect()
}

/// Creates the object, or replaces the one that is there.
async fn put(api: &Api, object: Value) -> Result<(), BootstrapError> {
    let user = Arc::new(User::new("system:apiserver", &["system:masters"]));
    let registry = api.registry();
    let mut incoming = request(&registry, &user, &object, Method::PUT);
    incoming.path = format!("{}/{}", incoming.path, crate::object::name(&object));
    let response = api.handle(incoming).await;
    if response.status() == http::StatusCode::NOT_FOUND {
        let incoming = request(&registry, &user, &object, Method::POST);
        return create(api, object, incoming).await;
    }
    finish(&object, response).await
}

fn request(registry: &Registry, user: &Arc<User>, object: &Value, method: Method) -> Incoming {
    let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or(("", "v1"));
    let kind = registry.by_kind(group, version, object["kind"].as_str().unwrap_or_default());
    let kind = kind.expect("built-in objects are of built-in kinds");
    let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
    let scope = object["metadata"]["namespace"].as_str().map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
    Incoming {
        method,
        path: format!("{root}{scope}/{}", kind.resource.plural),
        query: Some("fieldManager=kedge".into()),
        headers: HeaderMap::new(),
        body: Bytes::from(object.to_string()),
        user: user.clone(),
        upgrade: Mutex::default(),
    }
}

async fn create(api: &Api, object: Value, incoming: Incoming) -> Result<(), BootstrapError> {
    let response = api.handle(incoming).await;
    if response.status() == http::StatusCode::CONFLICT {
        return Ok(());
    }
    finish(&object, response).await
}

async fn finish(object: &Value, response: http::Response<crate::body::Body>) -> Result<(), BootstrapError> {
    if response.status().is_success() {
        return Ok(());
    }
    let what = format!("{} {}", object["kind"].as_str().unwrap_or_default(), crate::object::name(object));
    let body =
        http_body_util::BodyExt::collect(response.into_body()).await.expect("our own bodies do not fail").to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    Err(BootstrapError { what, message: status["message"].as_str().unwrap_or_default().to_owned() })
}
