//! LIST: a snapshot of a collection at one revision, sent on as it lies encoded in the store.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::Response;
use kedge_schema::selector::{FieldSelector, LabelSelector};
use kedge_store::{Entry, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Call, encode};
use crate::api::bytes_response;
use crate::body::Body;
use crate::error::ApiError;
use crate::negotiate::{Answer, Format, View};
use crate::table;

/// What a list or a watch is restricted to.
#[derive(Debug)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// A name in the path of an old-style watch.
    name: String,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`; fields that the kind does not offer are refused by name.
    pub(crate) fn parse(call: &Call<'_>) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default());
        let labels = labels.map_err(|e| ApiError::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default());
        let fields = fields.map_err(|e| ApiError::bad_request(e.to_string()))?;
        let offered = call.kind.selectable();
        for term in fields.terms() {
            if !offered.iter().any(|(path, _)| *path == *term.field) {
                let message = format!("field label not supported: {}", term.field);
                return Err(ApiError::bad_request(format!(
                    "Unable to find {:?} that match label selector \"{}\", field selector \"{}\": {message}",
                    format!("{}, Resource={}", call.kind.api_version(), call.path.resource),
                    call.query.get("labelSelector").unwrap_or_default(),
                    call.query.get("fieldSelector").unwrap_or_default(),
                )));
            }
        }
        Ok(Self { labels, fields, name: call.path.name.clone() })
    }

    /// Whether everything is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_empty()
    }

    /// Whether the object is selected.
    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        let field = |path: &str| match path {
            "metadata.name" => &*entry.key.name,
            "metadata.namespace" => &*entry.key.namespace,
            other => entry.facets.field(other).unwrap_or_default(),
        };
        (self.name.is_empty() || *self.name == *entry.key.name)
            && self.labels.matches(|key| entry.facets.label(key))
            && self.fields.matches(|path| field(path).into())
    }
}

/// Where the next page begins; opaque to clients (`k8s.io/apiserver/pkg/storage/continue.go`).
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    /// The form of this token.
    v: String,
    /// The revision of the whole list; 0 for "whatever is newest" after the list's own was compacted.
    rv: u64,
    /// The last object sent.
    start: (String, String),
}

const CONTINUE_FORM: &str = "kedge/v1";

impl Continue {
    fn encode(&self) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("plain data"))
    }

    fn decode(text: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|token: &Self| token.v == CONTINUE_FORM)
    }
}

pub(super) fn list(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let selection = Selection::parse(&call)?;
    let found = find(&call, &selection)?;
    render(call, &found)
}

/// A list of objects that are made when asked for: selected, and without a revision or pages.
pub(super) fn computed(
    call: Call<'_>,
    entries: impl IntoIterator<Item = Arc<Entry>>,
) -> Result<Response<Body>, ApiError> {
    let selection = Selection::parse(&call)?;
    let entries = entries.into_iter().filter(|entry| selection.matches(entry)).collect();
    render(call, &Found { entries, metadata: json!({}) })
}

fn render(call: Call<'_>, found: &Found) -> Result<Response<Body>, ApiError> {
    match call.answer {
        Answer { format: Format::Json, view: View::Plain }
            if found.entries.iter().all(|entry| call.kind.shows_as_stored(entry)) =>
        {
            Ok(bytes_response(200, "application/json", stitch(&call, found)))
        }
        answer => {
            let objects: Vec<Value> = found.entries.iter().map(|entry| call.decode(entry)).collect();
            let metadata = found.metadata.clone();
            let value = match answer.view {
                View::Plain => list_value(&call.kind.list_kind(), &call.kind.api_version(), metadata, objects),
                View::Table => table::table(call.kind, &objects, metadata, call.include()?, true, call.now),
                View::Metadata => {
                    let items = objects.iter().map(|object| table::partial(object, "PartialObjectMetadata")).collect();
                    list_value("PartialObjectMetadataList", "meta.k8s.io/v1", metadata, items)
                }
            };
            encode(200, answer.format, &value)
        }
    }
}

/// A page and the list's metadata.
pub(crate) struct Found {
    pub(crate) entries: Vec<Arc<Entry>>,
    metadata: Value,
}

/// Finds the objects that the call's query asks for.
pub(crate) fn find(call: &Call<'_>, selection: &Selection) -> Result<Found, ApiError> {
    let store = call.api.store();
    let limit = call.query.number("limit")?.filter(|limit| *limit > 0).map_or(usize::MAX, |limit| limit as usize);
    let (at, after) = start(call)?;
    let namespace = (!call.path.namespace.is_empty()).then_some(&*call.path.namespace);
    let mut seen = 0;
    let page = store.list(&call.kind.collection, namespace, after.as_ref(), at, limit, |entry| {
        seen += 1;
        selection.matches(entry)
    });
    let page = page.map_err(|gone| match &after {
        Some(after) => expired_continue(after),
        None => ApiError::expired(format!("The resourceVersion for the provided list is too old: {}", gone.revision)),
    })?;
    let mut entries = page.entries;
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if entries.len() > limit {
        entries.truncate(limit);
        let last = &entries.last().expect("a limit is above zero").key;
        let token = Continue {
            v: CONTINUE_FORM.into(),
            rv: page.revision,
            start: (last.namespace.to_string(), last.name.to_string()),
        };
        metadata["continue"] = token.encode().into();
        if selection.is_everything() {
            let rest =
                store.list(&call.kind.collection, namespace, Some(last), Some(page.revision), usize::MAX, |_| true);
            metadata["remainingItemCount"] = rest.map_or(0, |rest| rest.entries.len()).into();
        }
    }
    Ok(Found { entries, metadata })
}

/// The revision to list at (none: the newest) and the object to go on behind.
fn start(call: &Call<'_>) -> Result<(Option<u64>, Option<ObjectKey>), ApiError> {
    let asked = call.query.get("resourceVersion");
    let matching = call.query.get("resourceVersionMatch");
    if let Some(token) = call.query.get("continue") {
        if asked.is_some_and(|rv| rv != "0") {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = Continue::decode(token).ok_or_else(|| {
            ApiError::bad_request(format!("continue key is not valid: {token:?} was not made by this server"))
        })?;
        let after = ObjectKey::new(&token.start.0, &token.start.1);
        return Ok(((token.rv != 0).then_some(token.rv), Some(after)));
    }
    let Some(text) = asked else {
        return match matching {
            Some(_) => {
                Err(ApiError::bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided"))
            }
            None => Ok((None, None)),
        };
    };
    let revision = parse_revision(text)?;
    match matching {
        Some("Exact") if revision == 0 => {
            Err(ApiError::bad_request("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
        }
        Some("Exact") => {
            not_ahead(call, revision)?;
            Ok((Some(revision), None))
        }
        None | Some("NotOlderThan") => {
            not_ahead(call, revision)?;
            Ok((None, None))
        }
        Some(other) => {
            Err(ApiError::bad_request(format!("resourceVersionMatch {other:?} is unknown: Exact and NotOlderThan are")))
        }
    }
}

/// A revision as text; the error names it.
pub(crate) fn parse_revision(text: &str) -> Result<u64, ApiError> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be a number")))
}

/// A revision that was not given out yet is waited for by upstream, and never comes here: another store made it.
pub(crate) fn not_ahead(call: &Call<'_>, revision: u64) -> Result<(), ApiError> {
    let newest = call.api.store().revision();
    if revision <= newest {
        return Ok(());
    }
    let message = format!("Too large resource version: {revision}, current: {newest}");
    let mut error = ApiError::timeout(message).with_cause("ResourceVersionTooLarge", "Too large resource version");
    error.details["retryAfterSeconds"] = json!(1);
    Err(error)
}

/// The token's revision is gone; the answer carries one that goes on at the newest, for clients that can bear it.
fn expired_continue(after: &ObjectKey) -> ApiError {
    let token =
        Continue { v: CONTINUE_FORM.into(), rv: 0, start: (after.namespace.to_string(), after.name.to_string()) };
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
         continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing \
         with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the \
         time the first chunk was returned and now may show up in the list.",
    );
    error.list_continue = Some(token.encode());
    error
}

fn list_value(kind: &str, api_version: &str, metadata: Value, items: Vec<Value>) -> Value {
    json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items })
}

/// The list around objects that stay as they are.
fn stitch(call: &Call<'_>, found: &Found) -> Body {
    let mut head =
        list_value(&call.kind.list_kind(), &call.kind.api_version(), found.metadata.clone(), Vec::new()).to_string();
    let at = head.rfind("\"items\":[").expect("just written") + "\"items\":[".len();
    let tail = head.split_off(at);
    let comma = Bytes::from_static(b",");
    let mut chunks = Vec::with_capacity(2 * found.entries.len() + 2);
    chunks.push(Bytes::from(head));
    for (index, entry) in found.entries.iter().enumerate() {
        if index > 0 {
            chunks.push(comma.clone());
        }
        chunks.push(entry.bytes.clone());
    }
    chunks.push(Bytes::from(tail));
    Body::chunks(chunks)
}
