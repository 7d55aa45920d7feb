//! Bodies in: bytes in any format to a value of the kind that the path promises.

use bytes::Bytes;
use http::{HeaderValue, Response};
use kedge_schema::decode::{self, Decoded, FieldProblem, all_problems, strict_error};
use kedge_schema::{facts, protobuf, strict};
use serde_json::{Value, json};

use super::Call;
use crate::api::Incoming;
use crate::body::Body;
use crate::error::ApiError;
use crate::negotiate::{self, Format};
use crate::registry::{Kind, Registry, api_version};
use crate::request::{self, Query, Target};

/// An object, and what the client should hear about it.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) value: Value,
    pub(crate) warnings: Vec<String>,
}

/// The object in the call's body, of `kind`, in the addressed namespace.
pub(crate) fn body(call: &Call<'_>, kind: &Kind) -> Result<Checked, ApiError> {
    let (value, problems) = read(call.incoming)?;
    check(call, kind, value, problems)
}

/// Fits a value to its kind: type and place named right, fields checked as the client asked (`fieldValidation`).
pub(crate) fn check(
    call: &Call<'_>,
    kind: &Kind,
    mut value: Value,
    problems: Vec<FieldProblem>,
) -> Result<Checked, ApiError> {
    let r = &kind.resource;
    name_type(&mut value, &r.group, &r.version, &r.kind)?;
    place(call, &mut value)?;
    let unknown = kind.schema.conform(&mut value);
    let unknown = unknown.map_err(|error| cannot_handle(&r.kind, &r.version, &error.to_string()))?;
    let mut found = all_problems(problems, unknown);
    if kind.custom.is_none() {
        // Go's one pass over a typed body tells unknown fields where they stand, mostly before duplicates.
        found.sort_by_key(|problem| !matches!(problem, FieldProblem::Unknown(_)));
    }
    let warnings = judge(call.query, &r.kind, &r.version, &found)?;
    Ok(Checked { value, warnings })
}

/// The object in the call's body, of a kind that is not the path's own: a Scale, a Binding, an Eviction.
pub(crate) fn object_of(call: &Call<'_>, group: &str, version: &str, kind: &str) -> Result<Value, ApiError> {
    let (value, problems) = read(call.incoming)?;
    fit(call, value, problems, group, version, kind)
}

/// Fits a value to a kind that is not the path's own.
pub(super) fn fit(
    call: &Call<'_>,
    mut value: Value,
    problems: Vec<FieldProblem>,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Value, ApiError> {
    name_type(&mut value, group, version, kind)?;
    place(call, &mut value)?;
    let facts = facts::builtin();
    let id = facts.kind(group, version, kind).ok_or_else(|| ApiError::internal(format!("no type {kind}")))?;
    let conformed = strict::conform(&facts.schema, id, &mut value);
    let mut found = problems;
    found.extend(conformed.map_err(|error| cannot_handle(kind, version, &error.to_string()))?);
    judge(call.query, kind, version, &found)?;
    Ok(value)
}

/// The object posted to a computed kind.
pub(crate) fn decode_any(incoming: &Incoming, registry: &Registry, query: &Query) -> Result<Value, ApiError> {
    let Target::Resource(path) = request::parse_path(&incoming.path) else { return Err(ApiError::no_such_path()) };
    if incoming.method != http::Method::POST {
        return Err(ApiError::method_not_supported(&path.group, &path.resource, incoming.method.as_str()));
    }
    negotiate::answer(&incoming.headers, false)?;
    let kind = registry.find(&path.group, &path.version, &path.resource).ok_or_else(ApiError::no_such_path)?;
    let (mut value, problems) = read(incoming)?;
    let r = &kind.resource;
    name_type(&mut value, &r.group, &r.version, &r.kind)?;
    let (schema, id) = kind.schema.get();
    let mut found = problems;
    let conformed = strict::conform(schema, id, &mut value);
    found.extend(conformed.map_err(|error| cannot_handle(&r.kind, &r.version, &error.to_string()))?);
    judge(query, &r.kind, &r.version, &found)?;
    Ok(value)
}

/// `DeleteOptions`, from a body that may be missing.
pub(crate) fn options(incoming: &Incoming) -> Result<Value, ApiError> {
    if incoming.body.is_empty() {
        return Ok(json!({}));
    }
    let (mut value, _) = read(incoming)?;
    let kind = value["kind"].as_str().unwrap_or("DeleteOptions");
    if kind != "DeleteOptions" {
        return Err(ApiError::bad_request(format!("a deletion takes DeleteOptions, not {kind}")));
    }
    let facts = facts::builtin();
    let id = facts.kind("", "v1", "DeleteOptions").expect("the facts have DeleteOptions");
    strict::conform(&facts.schema, id, &mut value)
        .map_err(|error| cannot_handle("DeleteOptions", "v1", &error.to_string()))?;
    Ok(value)
}

/// JSON of no particular type.
pub(crate) fn raw_json(body: &Bytes) -> Result<Value, ApiError> {
    Ok(decode::json(body).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?.value)
}

/// YAML (or JSON, which is YAML) of no particular type.
pub(crate) fn raw_yaml(body: &Bytes) -> Result<Decoded, ApiError> {
    decode::yaml(body).map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))
}

fn read(incoming: &Incoming) -> Result<(Value, Vec<FieldProblem>), ApiError> {
    let fail =
        |error: &dyn std::fmt::Display| ApiError::bad_request(format!("the object provided is unrecognized: {error}"));
    let decoded = match negotiate::body_format(&incoming.headers)? {
        Format::Json => decode::json(&incoming.body).map_err(|e| fail(&e))?,
        Format::Yaml => decode::yaml(&incoming.body).map_err(|e| fail(&e))?,
        Format::Protobuf => {
            let value = protobuf::decode(facts::builtin(), &incoming.body).map_err(|e| fail(&e))?;
            return Ok((value, Vec::new()));
        }
    };
    if !decoded.value.is_object() {
        return Err(fail(&"it is no object"));
    }
    Ok((decoded.value, decoded.problems))
}

/// Fills in `apiVersion` and `kind`, or refuses others, and what is no object at all.
pub(super) fn name_type(value: &mut Value, group: &str, version: &str, kind: &str) -> Result<(), ApiError> {
    if !value.is_object() {
        return Err(cannot_handle(kind, version, "it is no object"));
    }
    let wanted = api_version(group, version);
    for (key, expected) in [("kind", kind), ("apiVersion", &*wanted)] {
        match value[key].as_str().unwrap_or_default() {
            "" => value[key] = expected.into(),
            found if found == expected => {}
            found if key == "kind" => {
                let why = format!("no kind {found:?} is registered here, {kind} is");
                return Err(ApiError::bad_request(format!(
                    "{found} in version {version:?} cannot be handled as a {kind}: {why}"
                )));
            }
            found => {
                return Err(ApiError::bad_request(format!(
                    "the API version in the data ({found}) does not match the expected API version ({wanted})"
                )));
            }
        }
    }
    Ok(())
}

/// Fills in the namespace, or refuses another.
pub(super) fn place(call: &Call<'_>, value: &mut Value) -> Result<(), ApiError> {
    if value.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(ApiError::bad_request("metadata must be an object"));
    }
    let found = crate::object::namespace(value);
    if !found.is_empty() && found != call.path.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !call.path.namespace.is_empty() {
        crate::object::metadata_mut(value).insert("namespace".into(), call.path.namespace.clone().into());
    }
    Ok(())
}

fn cannot_handle(kind: &str, version: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// Unknown and duplicate fields: an error, warnings, or nothing (KEP-2885). The default is to warn.
pub(super) fn judge(
    query: &Query,
    kind: &str,
    version: &str,
    problems: &[FieldProblem],
) -> Result<Vec<String>, ApiError> {
    match query.get("fieldValidation") {
        Some("Strict") if !problems.is_empty() => Err(cannot_handle(kind, version, &strict_error(problems))),
        Some("Strict" | "Ignore") => Ok(Vec::new()),
        None | Some("Warn") => Ok(problems.iter().map(ToString::to_string).collect()),
        Some(other) => {
            let path = kedge_schema::field::Path::new("fieldValidation");
            let error = kedge_schema::field::FieldError::not_supported(&path, other, &["Ignore", "Strict", "Warn"]);
            Err(ApiError::invalid("meta.k8s.io", "CreateOptions", "", &[error]))
        }
    }
}

/// Adds `Warning` headers (RFC 9110, code 299).
pub(crate) fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Result<Response<Body>, ApiError> {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(|c: char| c.is_control(), " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
    Ok(response)
}
