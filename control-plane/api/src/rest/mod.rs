//! What can be done to any object of any kind: one file per verb, one path for all kinds.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use kedge_access::Attributes;
use kedge_store::{Entry, ObjectKey};
use serde_json::{Value, json};

use crate::api::{Api, Incoming, bytes_response, json_response};
use crate::body::Body;
use crate::convert;
use crate::error::ApiError;
use crate::negotiate::{Answer, Format, View};
use crate::object;
use crate::registry::{Kind, Registry};
use crate::request::{Query, ResourcePath, Verb};
use crate::table;

mod component_statuses;
pub(crate) mod computed;
mod create;
pub(crate) mod decode;
mod delete;
mod list;
mod operations;
mod patch;
pub(crate) mod save;
mod scale;
mod subresource;
mod update;
mod watch;

pub(crate) use decode::decode_any;
pub(crate) use delete::{delete_addressed, dry_run as delete_dry_run};

/// Everything about one request that its verb needs.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Api,
    pub(crate) registry: &'a Registry,
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) path: &'a ResourcePath,
    pub(crate) query: &'a Query,
    pub(crate) incoming: &'a Incoming,
    pub(crate) answer: Answer,
    pub(crate) now: Timestamp,
    pub(crate) verb: Verb,
}

/// Carries out a request on a stored kind.
pub(crate) async fn dispatch(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    if !call.path.subresource.is_empty() {
        return subresource::dispatch(call).await;
    }
    if !call.kind.offers(call.verb.as_str()) {
        return Err(ApiError::method_not_supported(
            &call.path.group,
            &call.path.resource,
            call.incoming.method.as_str(),
        ));
    }
    match (&*call.kind.resource.group, &*call.kind.resource.plural) {
        ("", "bindings") => return subresource::bind_named(call).await,
        ("", "componentstatuses") => return component_statuses::answer(call),
        _ => {}
    }
    match call.verb {
        Verb::Get => call.render_entry(200, &*call.stored()?),
        Verb::List => list::list(call),
        Verb::Watch => watch::watch(call),
        Verb::Create => create::create(call).await,
        Verb::Update => update::update(call, save::Part::Main).await,
        Verb::Patch => patch::patch(call, save::Part::Main).await,
        Verb::Delete => delete::delete(call).await,
        Verb::DeleteCollection => delete::delete_collection(call).await,
    }
}

impl<'a> Call<'a> {
    /// Where the addressed object lies.
    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.path.namespace, &self.path.name)
    }

    /// The addressed object as stored, or 404.
    pub(crate) fn stored(&self) -> Result<Arc<Entry>, ApiError> {
        let found = self.api.store().get(&self.kind.collection, &self.key());
        found.ok_or_else(|| self.not_found())
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.path.group, &self.path.resource, &self.path.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> ApiError {
        ApiError::conflict(&self.path.group, &self.path.resource, &self.path.name, why)
    }

    /// Whether the query says that nothing is to be changed (`dryRun=All`); other values are refused. What deletes has
    /// to look into its `DeleteOptions`, too.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        dry_run(self.query.all("dryRun"))
    }

    /// Lets an apply or a PUT that finds nothing create: who may change what is there may not therefore make it
    /// (`withAuthorization` in `apiserver/pkg/endpoints/handlers/update.go`).
    pub(crate) fn authorize_create(&self) -> Result<(), ApiError> {
        let attributes = Attributes {
            verb: Verb::Create.as_str(),
            group: &self.path.group,
            version: &self.path.version,
            resource: &self.path.resource,
            subresource: &self.path.subresource,
            namespace: &self.path.namespace,
            name: &self.path.name,
            ..Attributes::default()
        };
        self.api.guard().authorize(self.api, &self.incoming.user, &attributes)
    }

    /// A stored object in this call's version.
    pub(crate) fn decode(&self, entry: &Entry) -> Value {
        let mut value = object::decode(&entry.bytes);
        convert::from_stored(self.kind, &mut value);
        value
    }

    /// A stored object as the client wants it; sent on as it lies there when that is possible.
    pub(crate) fn render_entry(&self, code: u16, entry: &Entry) -> Result<Response<Body>, ApiError> {
        if self.kind.shows_as_stored(entry) && self.answer == (Answer { format: Format::Json, view: View::Plain }) {
            return Ok(bytes_response(code, "application/json", entry.bytes.clone()));
        }
        self.render(code, self.decode(entry))
    }

    /// An object in this call's version as the client wants it.
    pub(crate) fn render(&self, code: u16, value: Value) -> Result<Response<Body>, ApiError> {
        let value = match self.answer.view {
            View::Plain => value,
            View::Metadata => table::partial(&value, "PartialObjectMetadata"),
            View::Table => {
                let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
                table::table(self.kind, &[value], metadata, self.include()?, true, self.now)
            }
        };
        encode(code, self.answer.format, &value)
    }

    pub(crate) fn include(&self) -> Result<table::Include, ApiError> {
        let text = self.query.get("includeObject");
        table::Include::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid includeObject {:?}: None, Metadata and Object are",
                text.unwrap_or_default()
            ))
        })
    }
}

/// What values of `dryRun` mean, wherever they stand (`apimachinery/pkg/apis/meta/v1/validation`, ValidateDryRun).
pub(crate) fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, ApiError> {
    values.into_iter().try_fold(false, |_, value| match value {
        "All" => Ok(true),
        other => Err(ApiError::bad_request(format!("invalid dryRun value {other:?}: supported values: \"All\""))),
    })
}

/// The same request seen as one about another kind: for subresources that change a second object.
pub(crate) fn with_kind<'a>(call: &Call<'a>, kind: &'a Arc<Kind>) -> Call<'a> {
    Call { kind, ..*call }
}

/// An answer of any value in any format.
pub(crate) fn encode(code: u16, format: Format, value: &Value) -> Result<Response<Body>, ApiError> {
    match format {
        Format::Json => Ok(json_response(code, value)),
        Format::Yaml => {
            let text = serde_yaml_ng::to_string(value).map_err(ApiError::internal)?;
            Ok(bytes_response(code, "application/yaml", text.into_bytes()))
        }
        Format::Protobuf => {
            let bytes = kedge_schema::protobuf::encode(kedge_schema::facts::builtin(), value);
            let bytes = bytes.map_err(|_| ApiError::not_acceptable(&["application/json", "application/yaml"]))?;
            Ok(bytes_response(code, Format::Protobuf.media_type(), Bytes::from(bytes)))
        }
    }
}
