//! The API server as a value: what it knows, and the way of a request through it.
//!
//! A request is *authenticated* by whoever took it in (TLS listener, or a part of this process that is trusted to
//! say who it is), then routed here: *authorised*, *read*, *carried out* by `rest`, *rendered*. Refusals become
//! `Status` objects in one place, at the end.

use std::collections::HashMap;
use std::future;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use hyper::upgrade::OnUpgrade;
use kedge_access::{Attributes, User};
use kedge_store::{ResourceId, Store};
use kedge_streams::NodeHandler;
use kedge_world::{Net, World};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::admission::Reservations;
use crate::body::Body;
use crate::customs;
use crate::derived::Derived;
use crate::discovery;
use crate::error::ApiError;
use crate::guard::Guard;
use crate::health::{Labels, Metrics};
use crate::negotiate;
use crate::openapi::Documents;
use crate::panics;
use crate::proxy;
use crate::registry::Registry;
use crate::request::{self, Query, ResourcePath, Target, Verb};
use crate::rest::{self, Call};
use crate::serve::{Gate, Taken};

/// Bodies larger than this are refused (upstream's `MaxRequestBodyBytes`).
pub(crate) const BODY_BYTES_MAX: usize = 3 << 20;

/// What the API server was set up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The range ClusterIPs are taken from.
    pub service_cidr: String,
    /// The ports that `NodePort` services may take.
    pub node_ports: (u16, u16),
    /// The version that `/version` reports.
    pub git_version: String,
    /// Where others reach this server, `HOST:PORT`: named as the place of the token issuer's keys.
    pub external_address: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            service_cidr: "10.43.0.0/16".into(),
            node_ports: (30_000, 32_767),
            git_version: "v1.36.3+kedge".into(),
            external_address: "127.0.0.1:6443".into(),
        }
    }
}

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    world: World,
    store: Store,
    settings: Settings,
    guard: Box<dyn Guard>,
    registry: Derived<Registry>,
    documents: Derived<Documents>,
    reservations: Reservations,
    /// The nodes that can be asked about their containers, by name.
    nodes: RwLock<HashMap<String, Arc<dyn NodeHandler>>>,
    /// The network that pods are in.
    network: RwLock<Option<Arc<dyn Net>>>,
    metrics: Metrics,
    /// What comes over the network.
    gate: Gate,
    /// How the parts of the control plane beside this one do, by the name in `componentstatuses`.
    components: RwLock<HashMap<&'static str, Check>>,
}

/// Looks at one part of the control plane; the error says why it is not well.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A request.
#[derive(Debug)]
pub struct Incoming {
    /// The method.
    pub method: Method,
    /// The path, still encoded.
    pub path: String,
    /// The query, still encoded.
    pub query: Option<String>,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body, once it is read.
    pub body: Bytes,
    /// Who asks.
    pub user: Arc<User>,
    /// The connection, for who takes it over; taken at most once.
    pub upgrade: Mutex<Option<OnUpgrade>>,
}

impl Api {
    /// An API server over `store`; `guard` says who may do what.
    pub fn new(world: World, store: Store, settings: Settings, guard: Box<dyn Guard>) -> Self {
        let builtin = Registry::builtin();
        let definitions = ResourceId::new("apiextensions.k8s.io", "customresourcedefinitions");
        let source = definitions.clone();
        let registry = Derived::new(vec![definitions.clone()], move |store| {
            customs::with_custom_kinds(builtin.clone(), store, &source)
        });
        let documents = Derived::new(vec![definitions], |_| Documents::default());
        Self(Arc::new(Inner {
            world,
            store,
            settings,
            guard,
            registry,
            documents,
            reservations: Reservations::default(),
            nodes: RwLock::default(),
            network: RwLock::default(),
            metrics: Metrics::default(),
            gate: Gate::default(),
            components: RwLock::default(),
        }))
    }

    /// From now on `node` answers about its containers through `handler`.
    pub fn attach_node(&self, node: &str, handler: Arc<dyn NodeHandler>) {
        self.0.nodes.write().insert(node.to_owned(), handler);
    }

    /// Who answers for `node`.
    pub(crate) fn node(&self, node: &str) -> Option<Arc<dyn NodeHandler>> {
        self.0.nodes.read().get(node).cloned()
    }

    /// From now on pods and Services are reached through `net`.
    pub fn attach_network(&self, net: Arc<dyn Net>) {
        *self.0.network.write() = Some(net);
    }

    /// The network that pods are in, if this server has a way there.
    pub(crate) fn network(&self) -> Option<Arc<dyn Net>> {
        self.0.network.read().clone()
    }

    /// From now on `componentstatuses` tells of `name` what `check` finds.
    pub fn attach_component(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.0.components.write().insert(name, Arc::new(check));
    }

    /// How the part of the control plane called `name` does.
    pub(crate) fn component(&self, name: &str) -> Result<(), String> {
        let check = self.0.components.read().get(name).cloned();
        check.map_or_else(|| Err("it does not run in this process".into()), |check| check())
    }

    /// The clock and the random numbers.
    pub fn world(&self) -> &World {
        &self.0.world
    }

    /// The store. Only the API server writes to it.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// What the server was set up with.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The table of kinds as of now.
    pub fn registry(&self) -> Arc<Registry> {
        self.0.registry.get(&self.0.store)
    }

    /// Addresses and ports given to services that are being written.
    pub(crate) fn reservations(&self) -> &Reservations {
        &self.0.reservations
    }

    /// The OpenAPI documents of what is served now.
    pub(crate) fn documents(&self) -> Arc<Documents> {
        self.0.documents.get(&self.0.store)
    }

    /// Who may do what.
    pub fn guard(&self) -> &dyn Guard {
        &*self.0.guard
    }

    /// Counts of what was asked and answered.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What the listeners share.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Answers a request whose body is there; a defect that shows in one is that one's only.
    pub async fn handle(&self, mut incoming: Incoming) -> Response<Body> {
        let bytes = std::mem::take(&mut incoming.body);
        self.handle_reading(incoming, future::ready(Ok(Taken { bytes, room: None }))).await
    }

    /// The same for a request whose body is still to come: `body` is polled when its sender may ask for what it asks.
    pub(crate) async fn handle_reading(
        &self,
        incoming: Incoming,
        body: impl Future<Output = Result<Taken, ApiError>> + Send,
    ) -> Response<Body> {
        let what = format!("{} {}", incoming.method, incoming.path);
        panics::caught(&what, self.answer(incoming, body)).await.unwrap_or_else(|error| refusal(&error))
    }

    async fn answer(
        &self,
        incoming: Incoming,
        body: impl Future<Output = Result<Taken, ApiError>> + Send,
    ) -> Response<Body> {
        let path = match request::parse_path(&incoming.path) {
            Target::Resource(path) => path,
            Target::Other => return self.other(incoming, body).await.unwrap_or_else(|error| refusal(&error)),
        };
        let begin = self.world().clock.monotonic();
        let query = Query::parse(incoming.query.as_deref());
        let verb = request::verb(&incoming.method, &path, &query);
        let answer = match verb {
            Some(verb) => self.resource(incoming, path.clone(), query, verb, body).await,
            None => Err(ApiError::method_not_supported(&path.group, &path.resource, incoming.method.as_str())),
        };
        let answer = answer.unwrap_or_else(|error| refusal(&error));
        let labels = labels(&self.registry(), verb, path, answer.status().as_u16());
        self.metrics().request(labels, self.world().clock.monotonic().saturating_sub(begin));
        answer
    }

    async fn resource(
        &self,
        mut incoming: Incoming,
        path: ResourcePath,
        query: Query,
        verb: Verb,
        body: impl Future<Output = Result<Taken, ApiError>> + Send,
    ) -> Result<Response<Body>, ApiError> {
        self.authorize(&incoming.user, verb, &path, &query)?;
        let Taken { bytes, room } = body.await?;
        incoming.body = bytes;
        let ends_itself = runs_to_its_end(verb, &path);
        let api = self.clone();
        let what = format!("{} {}", incoming.method, incoming.path);
        let work = async move {
            let _room = room;
            api.carry_out(&incoming, &path, &query, verb).await
        };
        if !ends_itself {
            return work.await;
        }
        // A client that leaves takes this future with it, but not the write that is already on its way: what is held for
        // the write (an address, a quota's charge, an eviction's budget) has to be held until it is answered.
        match tokio::spawn(work).await {
            Ok(answer) => answer,
            Err(error) => Err(match error.try_into_panic() {
                Ok(panic) => panics::told(&what, &*panic),
                Err(_) => ApiError::unavailable("the server is shutting down"),
            }),
        }
    }

    async fn carry_out(
        &self,
        incoming: &Incoming,
        path: &ResourcePath,
        query: &Query,
        verb: Verb,
    ) -> Result<Response<Body>, ApiError> {
        let registry = self.registry();
        if let Some(computed) = rest::computed::find(path) {
            let body = rest::decode_any(incoming, &registry, query)?;
            return computed(self, incoming, path, body).map(|value| json_response(201, &value));
        }
        let kind = registry.find(&path.group, &path.version, &path.resource).ok_or_else(ApiError::no_such_path)?;
        if kind.resource.namespaced && path.namespace.is_empty() && !path.name.is_empty() {
            return Err(ApiError::no_such_path());
        }
        if !kind.resource.namespaced && !path.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        if path.subresource == "proxy" && kind.resource.subresources.iter().any(|sub| &*sub.name == "proxy") {
            return proxy::proxy(self, incoming, path).await;
        }
        let answer = negotiate::answer(
            &incoming.headers,
            matches!(verb, Verb::Get | Verb::List | Verb::Watch | Verb::Create | Verb::Update | Verb::Patch),
        )?;
        let now = self.world().clock.wall();
        let call = Call { api: self, registry: &registry, kind, path, query, incoming, answer, now, verb };
        let answer = rest::dispatch(call).await;
        let Some(since) = kind.rules.get().deprecated() else { return answer };
        // Told with refusals, too.
        let warning = format!("{} {} is {since}", kind.api_version(), kind.resource.kind);
        rest::decode::with_warnings(answer.unwrap_or_else(|error| refusal(&error)), &[warning])
    }

    fn authorize(&self, user: &User, verb: Verb, path: &ResourcePath, query: &Query) -> Result<(), ApiError> {
        let fields = request::required_fields(verb, path, query);
        let attributes = Attributes {
            verb: verb.as_str(),
            group: &path.group,
            version: &path.version,
            resource: &path.resource,
            subresource: &path.subresource,
            namespace: &path.namespace,
            name: request::authorized_name(verb, path, &fields),
            path: "",
            fields: &fields,
        };
        self.guard().authorize(self, user, &attributes)
    }

    async fn other(
        &self,
        mut incoming: Incoming,
        body: impl Future<Output = Result<Taken, ApiError>> + Send,
    ) -> Result<Response<Body>, ApiError> {
        let verb = incoming.method.as_str().to_ascii_lowercase();
        let attributes = Attributes { verb: &verb, path: &incoming.path, ..Attributes::default() };
        self.guard().authorize(self, &incoming.user, &attributes)?;
        incoming.body = body.await?.bytes;
        discovery::serve(self, &incoming)
    }
}

/// Whether a request is carried out to its end although its client has left. What only carries bytes between the client
/// and somebody else ends with either.
fn runs_to_its_end(verb: Verb, path: &ResourcePath) -> bool {
    let changes = !matches!(verb, Verb::Get | Verb::List | Verb::Watch);
    changes && !matches!(&*path.subresource, "exec" | "attach" | "portforward" | "proxy" | "log")
}

/// What a request is counted as. Only what is served is told apart by its path: anybody can ask for anything, and what
/// was counted once is kept.
fn labels(registry: &Registry, verb: Option<Verb>, path: ResourcePath, code: u16) -> Labels {
    let kind = registry.find(&path.group, &path.version, &path.resource);
    let served = kind.is_some_and(|kind| path.subresource.is_empty() || kind.subresource(&path.subresource).is_some());
    let path = if served { path } else { ResourcePath::default() };
    Labels {
        verb: verb.map_or("", Verb::as_str),
        group: path.group,
        version: path.version,
        resource: path.resource,
        subresource: path.subresource,
        code,
    }
}

/// An answer of JSON.
pub(crate) fn json_response(code: u16, value: &Value) -> Response<Body> {
    bytes_response(code, "application/json", serde_json::to_vec(value).expect("JSON values always encode"))
}

/// An answer of bytes.
pub(crate) fn bytes_response(code: u16, media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a status of ours");
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    let cache = http::HeaderValue::from_static("no-cache, private");
    response.headers_mut().insert(http::header::CACHE_CONTROL, cache);
    response
}

/// A refusal as its `Status`.
pub(crate) fn refusal(error: &ApiError) -> Response<Body> {
    let mut response = json_response(error.code, &error.status());
    if let Some(seconds) = error.retry_after_seconds() {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_served_is_counted_by_its_path() {
        let registry = Registry::builtin();
        let check = |path: &str, expected: [&str; 4]| {
            for code in [200, 401, 403, 404] {
                let Target::Resource(path) = request::parse_path(path) else { panic!("{path}") };
                let found = labels(&registry, Some(Verb::Get), path, code);
                let texts = [&found.group, &found.version, &found.resource, &found.subresource];
                assert_eq!((found.code, texts.map(|text| &**text)), (code, expected));
            }
        };
        check("/api/v1/namespaces/a/pods/p", ["", "v1", "pods", ""]);
        check("/api/v1/namespaces/a/pods/p/log", ["", "v1", "pods", "log"]);
        check("/apis/apps/v1/deployments", ["apps", "v1", "deployments", ""]);
        check("/api/v1/namespaces/a/pods/p/anything", ["", "", "", ""]);
        check("/api/v7/namespaces/a/pods/p", ["", "", "", ""]);
        check("/apis/anything/v1/pods", ["", "", "", ""]);
        check("/api/v1/anything/at/all", ["", "", "", ""]);
    }
}
