//! A little API server in memory: objects by kind and name, merge patches, watches, graceful deletion of pods, and a
//! switch that cuts it off.
#![allow(dead_code, reason = "each test program uses what it needs")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = UnsyncBoxBody<Bytes, std::io::Error>;

#[derive(Clone)]
pub(crate) struct ApiDouble(Arc<Mutex<State>>);

struct State {
    objects: BTreeMap<(String, String), Value>,
    revision: u64,
    /// Every change, for watches that begin at an earlier revision.
    past: Vec<(u64, String, Value)>,
    news: broadcast::Sender<(String, Value)>,
    cut: bool,
}

impl Default for ApiDouble {
    fn default() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            revision: 0,
            past: Vec::new(),
            news: broadcast::channel(1000).0,
            cut: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

fn key_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return *target = patch.clone() };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("made one");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl State {
    fn write(&mut self, kind: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let key = (kind.to_owned(), key_of(&object));
        let verb = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key, object.clone());
        self.tell(kind, json!({"type": verb, "object": object}));
        object
    }

    fn remove(&mut self, kind: &str, key: &str) {
        if let Some(object) = self.objects.remove(&(kind.to_owned(), key.to_owned())) {
            self.revision += 1;
            self.tell(kind, json!({"type": "DELETED", "object": object}));
        }
    }

    fn tell(&mut self, kind: &str, event: Value) {
        self.past.push((self.revision, kind.to_owned(), event.clone()));
        let _ = self.news.send((kind.to_owned(), event)); // Nobody may be watching.
    }
}

impl ApiDouble {
    pub(crate) fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.0.lock().write(kind, object);
    }

    pub(crate) fn get(&self, kind: &str, key: &str) -> Option<Value> {
        self.0.lock().objects.get(&(kind.to_owned(), key.to_owned())).cloned()
    }

    pub(crate) fn all(&self, kind: &str) -> Vec<Value> {
        let state = self.0.lock();
        state.objects.iter().filter(|((of, _), _)| of == kind).map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn remove(&self, kind: &str, key: &str) {
        self.0.lock().remove(kind, key);
    }

    pub(crate) fn delete_gracefully(&self, key: &str, seconds: i64) {
        let mut state = self.0.lock();
        let mut pod = state.objects[&("pods".to_owned(), key.to_owned())].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(seconds);
        state.write("pods", pod);
    }

    /// Cut off, it neither answers nor keeps a watch.
    pub(crate) fn cut(&self, cut: bool) {
        let mut state = self.0.lock();
        state.cut = cut;
        if cut {
            state.news = broadcast::channel(1000).0; // Ends every watch.
        }
    }

    pub(crate) fn dump(&self) -> String {
        self.0.lock().objects.iter().map(|(key, object)| format!("{key:?} {object}\n")).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Answer>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let path = if path[0] == "api" { &path[2..] } else { &path[3..] };
        let (namespace, rest) = if path[0] == "namespaces" { (Some(path[1]), &path[2..]) } else { (None, path) };
        let kind = rest[0];
        let mut state = self.0.lock();
        if state.cut {
            return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "cut off"));
        }
        let query = parts.uri.query().unwrap_or_default();
        if query.contains("watch=true") {
            let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")?.parse().ok());
            let since: u64 = since.unwrap_or(0);
            let missed = state.past.iter().filter(|(revision, of, _)| *revision > since && of == kind);
            return Ok(watch(kind, missed.map(|(_, _, event)| event.clone()).collect(), state.news.subscribe()));
        }
        let Some(name) = rest.get(1) else {
            if parts.method == Method::POST {
                let mut object = body;
                object["metadata"]["uid"] =
                    json!(format!("uid-of-{}", object["metadata"]["name"].as_str().unwrap_or_default()));
                let made = state.write(kind, object);
                return Ok(json_answer(StatusCode::CREATED, &made));
            }
            let fits = |(other, object): (&(String, String), &Value)| {
                (other.0 == kind && namespace.is_none_or(|ns| object["metadata"]["namespace"] == ns))
                    .then(|| object.clone())
            };
            let items: Vec<Value> = state.objects.iter().filter_map(fits).collect();
            let list = json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
            return Ok(json_answer(StatusCode::OK, &list));
        };
        let key = namespace.map_or_else(|| (*name).to_owned(), |namespace| format!("{namespace}/{name}"));
        let Some(mut object) = state.objects.get(&(kind.to_owned(), key.clone())).cloned() else {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
            return Ok(json_answer(StatusCode::NOT_FOUND, &status));
        };
        match parts.method {
            Method::PATCH => {
                if rest.get(2) == Some(&"status") {
                    merge(&mut object["status"], &body["status"]);
                } else {
                    merge(&mut object, &body);
                }
                object = state.write(kind, object);
            }
            Method::DELETE => state.remove(kind, &key),
            _ => {}
        }
        Ok(json_answer(StatusCode::OK, &object))
    }
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Answer> {
    let bytes = Bytes::from(serde_json::to_vec(value).expect("JSON"));
    let body = Answer::new(Full::new(bytes).map_err(|never| match never {}));
    Response::builder().status(status).header("content-type", "application/json").body(body).expect("an answer")
}

fn watch(kind: &str, missed: Vec<Value>, news: broadcast::Receiver<(String, Value)>) -> Response<Answer> {
    let kind = kind.to_owned();
    let missed = futures::stream::iter(missed.into_iter().map(line));
    let lines = futures::stream::unfold((news, kind), async |(mut news, kind)| {
        loop {
            let (of, event) = news.recv().await.ok()?;
            if of == kind {
                return Some((line(event), (news, kind)));
            }
        }
    });
    Response::new(Answer::new(StreamBody::new(futures::StreamExt::chain(missed, lines))))
}

fn line(event: Value) -> Result<hyper::body::Frame<Bytes>, std::io::Error> {
    Ok(hyper::body::Frame::data(Bytes::from(format!("{event}\n"))))
}
