//! What every cluster holds from its first start: namespaces, roles, the service by which pods find the API.
//!
//! Everything is created through the API like a client would, all at once, so that the disk is waited for a few
//! times and not two hundred. What exists is left as it is, as an administrator may have changed it; but roles and
//! bindings get what they lack of this version's.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Method};
use kedge_access::{Reconciled, User, bootstrap_objects, reconciled};
use kedge_store::{ObjectKey, ResourceId};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admission::Range;
use crate::api::{Api, Incoming};
use crate::registry::{Kind, Registry};

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
    let mut objects = priority_classes().to_vec();
    let service = own_service(api)?;
    objects.push(service.clone());
    create_all(api, objects).await?;
    correct_ports(api, &service).await?;
    join_all(bootstrap_objects().into_iter().map(|object| reconcile(api, object)))
        .await
        .into_iter()
        .collect::<Result<(), _>>()?;
    retire(api).await?;
    for definition in definitions {
        put(api, definition).await?;
    }
    Ok(())
}

/// Creates a role or a binding, or adds what the stored one lacks of it.
async fn reconcile(api: &Api, expected: Value) -> Result<(), BootstrapError> {
    let registry = api.registry();
    let kind = by_kind(&registry, &expected);
    let Some(entry) = api.store().get(&kind.collection, &crate::object::key(&expected)) else {
        return create_all(api, vec![expected]).await;
    };
    let existing = crate::object::decode(&entry.bytes);
    match reconciled(&existing, &expected) {
        Reconciled::Kept => Ok(()),
        Reconciled::Changed(new) => put(api, new).await,
        Reconciled::Replaced(new) => {
            delete(api, &existing).await?;
            create_all(api, vec![new]).await
        }
    }
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
    delete(api, &crate::object::decode(&entry.bytes)).await
}

async fn delete(api: &Api, object: &Value) -> Result<(), BootstrapError> {
    let user = Arc::new(User::new("system:apiserver", &["system:masters"]));
    let mut incoming = request(&api.registry(), &user, object, Method::DELETE);
    incoming.path = format!("{}/{}", incoming.path, crate::object::name(object));
    incoming.body = Bytes::new();
    let response = api.handle(incoming).await;
    finish(object, response).await
}

/// The service by which pods find the API: the first address of the range, which nobody else may get.
/// (`pkg/controlplane/controller/kubernetesservice`.) Its endpoints follow when the server knows its address.
fn own_service(api: &Api) -> Result<Value, BootstrapError> {
    let cidr = &api.settings().service_cidr;
    let range = Range::parse(cidr).ok_or_else(|| BootstrapError {
        what: "Service kubernetes".into(),
        message: format!("service CIDR {cidr:?} is no CIDR with room for services"),
    })?;
    let address = &api.settings().external_address;
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port != 0);
    let port = port.ok_or_else(|| BootstrapError {
        what: "Service kubernetes".into(),
        message: format!("the address of this server, {address:?}, names no port"),
    })?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "clusterIP": range.first().to_string(), "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": port }],
        },
    }))
}

/// Sets the ports of a service that is there from a start with another port (`getMasterServiceUpdateIfNeeded`).
async fn correct_ports(api: &Api, service: &Value) -> Result<(), BootstrapError> {
    let entry = api.store().get(&ResourceId::new("", "services"), &crate::object::key(service));
    let Some(mut stored) = entry.map(|entry| crate::object::decode(&entry.bytes)) else { return Ok(()) };
    let told = |port: &Value| ["name", "protocol", "port", "targetPort"].map(|key| port[key].clone());
    let ports = |service: &Value| crate::object::items(&service["spec"], "ports").map(told).collect::<Vec<_>>();
    if ports(&stored) == ports(service) {
        return Ok(());
    }
    stored["spec"]["ports"] = service["spec"]["ports"].clone();
    put(api, stored).await
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

fn by_kind<'a>(registry: &'a Registry, object: &Value) -> &'a Kind {
    let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or(("", "v1"));
    let kind = registry.by_kind(group, version, object["kind"].as_str().unwrap_or_default());
    kind.expect("built-in objects are of built-in kinds")
}

fn request(registry: &Registry, user: &Arc<User>, object: &Value, method: Method) -> Incoming {
    let kind = by_kind(registry, object);
    let (group, version) = (&*kind.resource.group, &*kind.resource.version);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, open, patch};

    #[tokio::test]
    async fn the_service_of_the_api_follows_its_port() {
        let api = open().await;
        bootstrap(&api, Vec::new()).await.unwrap();
        let target = async || {
            let service = ask(&api, "GET /api/v1/namespaces/default/services/kubernetes", Value::Null).await.1;
            (service["spec"]["clusterIP"].clone(), service["spec"]["ports"][0]["targetPort"].clone())
        };
        let first = json!("10.43.0.1");
        assert_eq!(target().await, (first.clone(), json!(6443)), "the port of the settings");
        let moved = json!({ "spec": { "ports": [{ "name": "https", "port": 443, "targetPort": 7443 }] } }).to_string();
        let service = "/api/v1/namespaces/default/services/kubernetes";
        assert_eq!(patch(&api, service, "merge-patch+json", &moved).await.0, 200);
        assert_eq!(target().await.1, 7443);
        bootstrap(&api, Vec::new()).await.unwrap();
        assert_eq!(target().await, (first, json!(6443)));
    }

    #[tokio::test]
    async fn a_start_gives_default_roles_what_they_lack_and_writes_nothing_else() {
        let api = open().await;
        bootstrap(&api, Vec::new()).await.unwrap();
        let revision = api.store().revision();
        bootstrap(&api, Vec::new()).await.unwrap();
        assert_eq!(api.store().revision(), revision, "a second start has nothing to do");

        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let own = json!({ "verbs": ["get"], "apiGroups": ["example.test"], "resources": ["things"] });
        let emptied = json!({ "rules": [own] }).to_string();
        let left_alone = json!({ "rules": [own],
            "metadata": { "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "false" } } });
        for (name, body) in [("system:kube-scheduler", &emptied), ("system:kube-dns", &left_alone.to_string())] {
            assert_eq!(patch(&api, &format!("{roles}/{name}"), "merge-patch+json", body).await.0, 200);
        }
        let other = json!({ "metadata": { "name": "system:kube-scheduler" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
            "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "mine" }] });
        assert_eq!(ask(&api, &format!("DELETE {bindings}/system:kube-scheduler"), Value::Null).await.0, 200);
        assert_eq!(ask(&api, &format!("POST {bindings}"), other).await.0, 201);

        bootstrap(&api, Vec::new()).await.unwrap();
        let rules = async |name: &str| {
            let role = ask(&api, &format!("GET {roles}/{name}"), Value::Null).await.1;
            role["rules"].as_array().unwrap().clone()
        };
        let scheduler = rules("system:kube-scheduler").await;
        assert!(scheduler.len() > 10 && scheduler[0] == own, "{scheduler:?}");
        assert_eq!(rules("system:kube-dns").await, [own]);
        let binding = ask(&api, &format!("GET {bindings}/system:kube-scheduler"), Value::Null).await.1;
        assert_eq!(binding["roleRef"]["name"], "system:kube-scheduler");
        let subjects: Vec<&Value> =
            crate::object::items(&binding, "subjects").map(|subject| &subject["name"]).collect();
        assert_eq!(subjects, ["mine", "system:kube-scheduler"]);
    }
}
