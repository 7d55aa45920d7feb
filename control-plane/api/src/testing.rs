//! For tests: an API over a disk in memory, and requests as plain words.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use kedge_access::User;
use kedge_store::engine::{Engine, RedbEngine};
use kedge_store::{Store, Writer};
use kedge_world::sim::{SimDisk, SimRandom};
use kedge_world::{Disk, World};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::{Api, Incoming, Settings};
use crate::guard::{Guard, Open};

/// An API that holds the namespace `default` and lets everybody do what `guard` lets them.
pub(crate) async fn api(guard: impl Guard) -> Api {
    let disk = SimDisk::new(Arc::new(SimRandom::seeded(1)));
    disk.create_dir_all(std::path::Path::new("/")).unwrap();
    let engine: Box<dyn Engine> = Box::new(RedbEngine::open(&disk, std::path::Path::new("/state.redb")).unwrap());
    let store = Store::start(Writer::open(engine).unwrap());
    let api = Api::new(World::real(), store, Settings::default(), Box::new(guard));
    let namespace = json!({ "metadata": { "name": "default" } });
    assert_eq!(ask(&api, "POST /api/v1/namespaces", namespace).await.0, 201);
    api
}

/// The same where everybody may do everything.
pub(crate) async fn open() -> Api {
    api(Open).await
}

/// A request as its parts: `METHOD PATH[?QUERY]`, and what it carries.
pub(crate) fn incoming(user: &str, line: &str, media_type: &str, body: impl Into<Bytes>) -> Incoming {
    let (method, target) = line.split_once(' ').expect("METHOD PATH");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query.to_owned())));
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_str(media_type).unwrap());
    Incoming {
        method: Method::from_bytes(method.as_bytes()).unwrap(),
        path: path.to_owned(),
        query,
        headers,
        body: body.into(),
        user: Arc::new(User::new(user, &[])),
        upgrade: Mutex::default(),
    }
}

/// The code and the JSON of an answer.
pub(crate) async fn answer(api: &Api, incoming: Incoming) -> (u16, Value) {
    let response = api.handle(incoming).await;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Asks as the administrator with a body of JSON; `null` for none.
pub(crate) async fn ask(api: &Api, line: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    answer(api, incoming("admin", line, "application/json", body)).await
}

/// Sends a patch of one dialect (`json-patch+json`, `merge-patch+json`, …) as text.
pub(crate) async fn patch(api: &Api, target: &str, dialect: &str, body: &str) -> (u16, Value) {
    let body = Bytes::from(body.to_owned());
    answer(api, incoming("admin", &format!("PATCH {target}"), &format!("application/{dialect}"), body)).await
}
