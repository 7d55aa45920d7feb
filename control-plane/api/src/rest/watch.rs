//! WATCH: what happens to a collection, as it happens, one JSON object a line.
//!
//! Events come from the store's bounded window. A watcher that falls behind gets `410 Gone` in the stream and
//! lists again; nothing is ever queued for it. (`k8s.io/apiserver/pkg/endpoints/handlers/watch.go`, and
//! `storage/cacher` for bookmarks and initial events.)

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::Response;
use jiff::Timestamp;
use kedge_store::{Entry, Event, EventKind, Watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Call;
use super::list::{Selection, not_ahead, parse_revision};
use crate::api::{Api, bytes_response};
use crate::body::{Body, Watched};
use crate::convert;
use crate::error::ApiError;
use crate::negotiate::{Answer, Format, View};
use crate::object;
use crate::registry::Kind;
use crate::table::{self, Include};

/// A watch without `timeoutSeconds` ends after this long plus up to as much again, so that clients of a restarted
/// server do not come back in step (`minRequestTimeout`).
const TIMEOUT_LEAST: Duration = Duration::from_secs(1800);
/// A watch that asks for more than this gets this: clocks do not reach as far as a client can count.
const TIMEOUT_MOST: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often a client that asked for bookmarks learns how far it is, if there is anything to learn.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

pub(super) fn watch(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    if call.answer.format != Format::Json {
        return Err(ApiError::not_acceptable(&["application/json"]));
    }
    let selection = Selection::parse(&call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let (from, initial, marks_end) = start(&call, &selection, bookmarks)?;
    let watcher = match call.api.store().watch(&call.kind.collection, from) {
        Ok(watcher) => watcher,
        Err(gone) => return Ok(over(&too_old(gone.revision))),
    };
    let timeout = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(TIMEOUT_MOST),
        _ => TIMEOUT_LEAST + TIMEOUT_LEAST.mul_f64(call.api.world().random.number() as f64 / u64::MAX as f64),
    };
    let mut pen =
        Pen { kind: call.kind.clone(), answer: call.answer, include: call.include()?, headings: true, now: call.now };
    let mut first = BytesMut::new();
    for entry in &initial {
        pen.event(&mut first, "ADDED", entry);
    }
    if marks_end {
        pen.bookmark(&mut first, from, true);
    }
    let stream = Stream {
        api: call.api.clone(),
        watcher,
        selection,
        namespace: call.path.namespace.clone(),
        pen,
        pending: first.freeze(),
        deadline: Instant::now() + timeout,
        next_bookmark: bookmarks.then(|| Instant::now() + BOOKMARK_EVERY),
        told: from,
        over: false,
    };
    let body = Body::stream(stream::unfold(stream, |mut stream| async { Some((stream.next().await?, stream)) }));
    let mut response = bytes_response(200, "application/json", body);
    response.extensions_mut().insert(Watched);
    Ok(response)
}

/// A watch that ends with what is wrong. What only the store can know is told as an event, never as the answer: clients
/// begin again with a list on the former, and some try the same for ever on the latter. (`newErrWatcher` in
/// `k8s.io/apiserver/pkg/storage/cacher`.)
fn over(error: &ApiError) -> Response<Body> {
    let mut line = BytesMut::new();
    write_line(&mut line, "ERROR", error.status().to_string().as_bytes());
    bytes_response(200, "application/json", Body::chunks(vec![line.freeze()]))
}

fn too_old(revision: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {revision}"))
}

/// Where to begin, what to send before, and whether the end of that is to be marked.
fn start(call: &Call<'_>, selection: &Selection, bookmarks: bool) -> Result<(u64, Vec<Arc<Entry>>, bool), ApiError> {
    let revision = call.query.get("resourceVersion").map(parse_revision).transpose()?;
    let send_initial = call.query.get("sendInitialEvents").map(|_| call.query.flag("sendInitialEvents"));
    match (send_initial, call.query.get("resourceVersionMatch")) {
        (None, Some(_)) => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        (Some(_), matching) if matching != Some("NotOlderThan") => {
            return Err(ApiError::bad_request(
                "resourceVersionMatch must be set to NotOlderThan if sendInitialEvents is set",
            ));
        }
        _ => {}
    }
    if let Some(revision) = revision {
        not_ahead(call, revision)?;
    }
    // An exact revision begins there; otherwise the present state comes first, unless it was declined.
    let wants_state = send_initial.unwrap_or(revision.is_none_or(|revision| revision == 0));
    if !wants_state {
        let from = revision.filter(|revision| *revision > 0).unwrap_or_else(|| call.api.store().revision());
        return Ok((from, Vec::new(), false));
    }
    let namespace = (!call.path.namespace.is_empty()).then_some(&*call.path.namespace);
    let page = call
        .api
        .store()
        .list(&call.kind.collection, namespace, None, None, usize::MAX, |entry| selection.matches(entry));
    let page = page.map_err(|gone| too_old(gone.revision))?;
    Ok((page.revision, page.entries, send_initial == Some(true) && bookmarks))
}

struct Stream {
    api: Api,
    watcher: Watcher,
    selection: Selection,
    namespace: String,
    pen: Pen,
    /// Written but not sent yet.
    pending: Bytes,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    /// The revision the client knows it has reached.
    told: u64,
    over: bool,
}

impl Stream {
    /// The next bytes to send; none when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.pending.is_empty() {
                return Some(std::mem::take(&mut self.pending));
            }
            if self.over {
                return None;
            }
            let mut out = BytesMut::new();
            match self.watcher.ready() {
                Ok((events, _)) => self.write(&mut out, &events),
                Err(gone) => {
                    self.pen.error(&mut out, &too_old(gone.revision));
                    self.over = true;
                }
            }
            self.pending = out.freeze();
            if self.pending.is_empty() && !self.over {
                self.wait().await;
            }
        }
    }

    /// Waits for news, for the time of a bookmark that has something to say, or for the end.
    async fn wait(&mut self) {
        let bookmark = self.next_bookmark.unwrap_or(self.deadline);
        tokio::select! {
            () = self.watcher.changed() => {}
            () = tokio::time::sleep_until(self.deadline) => self.over = true,
            () = tokio::time::sleep_until(bookmark), if self.next_bookmark.is_some() => {
                self.next_bookmark = Some(bookmark + BOOKMARK_EVERY);
                if self.watcher.position() > self.told {
                    self.told = self.watcher.position();
                    let mut out = BytesMut::new();
                    self.pen.bookmark(&mut out, self.told, false);
                    self.pending = out.freeze();
                }
            }
        }
    }

    fn write(&mut self, out: &mut BytesMut, events: &[Arc<Event>]) {
        self.pen.now = self.api.world().clock.wall();
        for event in events {
            if !self.namespace.is_empty() && *self.namespace != *event.entry.key.namespace {
                continue;
            }
            if let Some(word) = word(&self.selection, event) {
                self.told = event.entry.revision;
                self.pen.event(out, word, &event.entry);
            }
        }
    }
}

/// What the client of a selection is told about a change; an object that stops being selected is gone for it.
fn word(selection: &Selection, event: &Event) -> Option<&'static str> {
    let was = event.previous.as_ref().is_some_and(|previous| selection.matches(previous));
    let is = event.kind != EventKind::Deleted && selection.matches(&event.entry);
    match (was, is) {
        (false, true) => Some("ADDED"),
        (true, true) => Some("MODIFIED"),
        (true, false) => Some("DELETED"),
        (false, false) => None,
    }
}

/// Writes events in the client's form.
struct Pen {
    kind: Arc<Kind>,
    answer: Answer,
    include: Include,
    /// The next table carries its headings; later ones do not.
    headings: bool,
    now: Timestamp,
}

impl Pen {
    fn event(&mut self, out: &mut BytesMut, word: &str, entry: &Entry) {
        if self.answer.view == View::Plain && self.kind.shows_as_stored(entry) {
            write_line(out, word, &entry.bytes);
            return;
        }
        let mut value = object::decode(&entry.bytes);
        convert::from_stored(&self.kind, &mut value);
        let shown = match self.answer.view {
            View::Plain => value,
            View::Metadata => table::partial(&value, "PartialObjectMetadata"),
            View::Table => {
                let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
                let headings = std::mem::take(&mut self.headings);
                table::table(&self.kind, &[value], metadata, self.include, headings, self.now)
            }
        };
        write_line(out, word, shown.to_string().as_bytes());
    }

    /// Says how far the client is; `end` marks the end of the initial state.
    fn bookmark(&self, out: &mut BytesMut, revision: u64, end: bool) {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.answer.view {
            View::Plain => {
                json!({ "kind": self.kind.resource.kind, "apiVersion": self.kind.api_version(), "metadata": metadata })
            }
            View::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            View::Table => {
                let row = json!({ "cells": [], "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata } });
                json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": revision.to_string() }, "columnDefinitions": Value::Null, "rows": [row] })
            }
        };
        write_line(out, "BOOKMARK", object.to_string().as_bytes());
    }

    fn error(&self, out: &mut BytesMut, error: &ApiError) {
        write_line(out, "ERROR", error.status().to_string().as_bytes());
    }
}

fn write_line(out: &mut BytesMut, word: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(word.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{ask, incoming, open};

    /// Clients that get this as the answer, not as an event, may ask for the same revision for ever.
    #[tokio::test]
    async fn a_revision_that_is_forgotten_is_told_as_an_event() {
        let api = open().await;
        let old = ask(&api, "GET /api/v1/namespaces", Value::Null).await.1["metadata"]["resourceVersion"].clone();
        ask(&api, "POST /api/v1/namespaces", json!({ "metadata": { "name": "new" } })).await;
        let resource = kedge_store::ResourceId::new("", "namespaces");
        api.store().compact(&resource, api.store().revision());
        let line = format!("GET /api/v1/namespaces?watch=true&resourceVersion={}", old.as_str().unwrap());
        let (code, event) = ask(&api, &line, Value::Null).await;
        assert_eq!((code, &event["type"], &event["object"]["code"]), (200, &json!("ERROR"), &json!(410)), "{event}");
        assert_eq!(event["object"]["reason"], "Expired");
    }

    #[tokio::test]
    async fn a_timeout_is_as_long_as_clocks_go() {
        let api = open().await;
        for seconds in ["1", "31536001", "9223372036854775807"] {
            let line = format!("GET /api/v1/namespaces?watch=true&timeoutSeconds={seconds}");
            assert_eq!(api.handle(incoming("a", &line, "application/json", "")).await.status(), 200, "{seconds}");
        }
        let line = "GET /api/v1/namespaces?watch=true&timeoutSeconds=9223372036854775808";
        assert_eq!(api.handle(incoming("a", line, "application/json", "")).await.status(), 400);
    }
}
