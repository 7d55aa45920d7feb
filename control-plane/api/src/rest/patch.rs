//! PATCH in its four dialects: JSON (RFC 6902), merge (RFC 7386), strategic merge, and server-side apply.

use bytes::Bytes;
use http::Response;
use kedge_schema::apply::{self, ApplyError, Target, Writer};
use kedge_schema::decode::FieldProblem;
use kedge_schema::field::{FieldError, Path};
use kedge_schema::strategic;
use serde_json::Value;

use super::save::{self, Failure, Ownership, Part};
use super::update::{ATTEMPTS_MAX, STALE, asked_revision, check_identity};
use super::{Call, create, decode, operations};
use crate::body::Body;
use crate::error::ApiError;
use crate::kinds;
use crate::negotiate;
use crate::object;

const DIALECTS: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    Apply(Value, Vec<FieldProblem>),
}

pub(super) async fn patch(call: Call<'_>, part: Part) -> Result<Response<Body>, ApiError> {
    let patch = parse(&call)?;
    let ownership = if matches!(patch, Patch::Apply(..)) { Ownership::Applied } else { Ownership::Updated };
    for _ in 0..ATTEMPTS_MAX {
        let Some(entry) = call.api.store().get(&call.kind.collection, &call.key()) else {
            return apply_to_nothing(&call, part, patch).await;
        };
        let old = call.decode(&entry);
        let (new, mut warnings) = changed(&call, &patch, &old, part)?;
        if part == Part::Main {
            warnings.extend(kinds::warnings(call.kind, &new));
        }
        if object::name(&new) != call.path.name {
            let error = ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                object::name(&new),
                call.path.name
            ));
            return Err(error);
        }
        check_identity(&call, &new, &old, entry.revision)?;
        let names_revision = match &patch {
            Patch::Merge(p) | Patch::Strategic(p) | Patch::Apply(p, _) => asked_revision(p).is_some(),
            Patch::Json(_) => false,
        };
        match save::replace(&call, &entry, &old, new, part, ownership).await {
            Ok(saved) => return decode::with_warnings(create::render(&call, 200, &saved)?, &warnings),
            Err(Failure::Changed) if names_revision => break,
            Err(Failure::Changed) => {}
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(STALE))
}

fn parse(call: &Call<'_>) -> Result<Patch, ApiError> {
    let body = &call.incoming.body;
    let force = call.query.get("force").is_some();
    match negotiate::content_type(&call.incoming.headers) {
        dialect if force && dialect != DIALECTS[3] => {
            Err(ApiError::bad_request(format!("force is forbidden for non-apply patch ({dialect})")))
        }
        "application/json-patch+json" => operations::parse(decode::raw_json(body)?).map(Patch::Json),
        "application/merge-patch+json" => merge_patch(body).map(Patch::Merge),
        "application/strategic-merge-patch+json" if call.kind.custom.is_some() => {
            Err(ApiError::unsupported_media_type(&[DIALECTS[0], DIALECTS[1], DIALECTS[3]]))
        }
        "application/strategic-merge-patch+json" => merge_patch(body).map(Patch::Strategic),
        "application/apply-patch+yaml" => {
            if call.query.get("fieldManager").is_none() {
                return Err(ApiError::bad_request("fieldManager is required for apply patch"));
            }
            let read = decode::raw_yaml(body)?;
            Ok(Patch::Apply(read.value, read.problems))
        }
        _ => Err(ApiError::unsupported_media_type(&DIALECTS)),
    }
}

/// A merge patch of something else than an object would take the object's place.
fn merge_patch(body: &Bytes) -> Result<Value, ApiError> {
    let patch = decode::raw_json(body)?;
    let refusal = || ApiError::bad_request("error decoding patch: it is no object");
    if patch.is_object() { Ok(patch) } else { Err(refusal()) }
}

/// The object after the patch, and what to warn of.
fn changed(call: &Call<'_>, patch: &Patch, old: &Value, part: Part) -> Result<(Value, Vec<String>), ApiError> {
    let (schema, id) = call.kind.schema.get();
    let new = match patch {
        Patch::Json(patch) => {
            let mut new = old.clone();
            operations::apply(&mut new, patch)?;
            if !new.is_object() {
                let error = FieldError::invalid(&Path::new("patch"), new, "what it makes is no object");
                return Err(ApiError::invalid("", "", "", &[error]));
            }
            new
        }
        Patch::Merge(patch) => {
            let mut new = old.clone();
            json_patch::merge(&mut new, patch);
            new
        }
        Patch::Strategic(patch) => {
            let new = strategic::merge(schema, id, old, patch);
            new.map_err(|e| ApiError::bad_request(e.to_string()))?
        }
        Patch::Apply(applied, problems) => return applied_to(call, Some(old), applied, problems, part),
    };
    let decoded = decode::check(call, call.kind, new, Vec::new())?;
    Ok((decoded.value, decoded.warnings))
}

/// Server-side apply may create.
async fn apply_to_nothing(call: &Call<'_>, part: Part, patch: Patch) -> Result<Response<Body>, ApiError> {
    let Patch::Apply(applied, problems) = patch else { return Err(call.not_found()) };
    if part != Part::Main {
        return Err(call.not_found());
    }
    let (new, mut warnings) = applied_to(call, None, &applied, &problems, part)?;
    warnings.extend(kinds::warnings(call.kind, &new));
    if asked_revision(&new).is_some() {
        return Err(call.conflict(STALE));
    }
    call.authorize_create()?;
    let saved = save::create(call, new, Ownership::Applied).await?;
    decode::with_warnings(create::render(call, 201, &saved)?, &warnings)
}

/// What is applied is checked by its schema alone: an unknown field is refused whatever `fieldValidation` says.
fn applied_to(
    call: &Call<'_>,
    old: Option<&Value>,
    applied: &Value,
    problems: &[FieldProblem],
    part: Part,
) -> Result<(Value, Vec<String>), ApiError> {
    let mut configuration = applied.clone();
    let r = &call.kind.resource;
    decode::name_type(&mut configuration, &r.group, &r.version, &r.kind)?;
    decode::place(call, &mut configuration)?;
    let warnings = decode::judge(call.query, &r.kind, &r.version, problems)?;
    let (manager, api_version) = (save::manager(call), call.kind.api_version());
    let reset = save::reset_fields(call, part);
    let (schema, id) = call.kind.schema.get();
    let target = Target { schema, id, reset: &reset };
    let writer =
        Writer { manager: &manager, api_version: &api_version, subresource: part.subresource(), now: call.now };
    let force = call.query.flag("force");
    let new = apply::apply(&target, &writer, old, &configuration, force).map_err(|error| match error {
        ApplyError::Conflicts(conflicts) => ApiError::apply_conflict(conflicts.to_string(), conflicts.to_causes()),
        other => ApiError::bad_request(other.to_string()),
    })?;
    let checked = decode::check(call, call.kind, new, Vec::new())?;
    Ok((checked.value, warnings))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{ask, open, patch};

    #[tokio::test]
    async fn what_is_no_object_is_refused_in_every_dialect() {
        let api = open().await;
        let target = "/api/v1/namespaces/default/configmaps/a";
        assert_eq!(
            ask(&api, "POST /api/v1/namespaces/default/configmaps", json!({ "metadata": { "name": "a" } })).await.0,
            201
        );
        let before = ask(&api, &format!("GET {target}"), Value::Null).await;
        let cases = [
            ("merge-patch+json", target, "[1]", 400),
            ("merge-patch+json", target, "null", 400),
            ("strategic-merge-patch+json", target, "[1]", 400),
            ("strategic-merge-patch+json", target, "\"a\"", 400),
            ("json-patch+json", target, r#"[{"op":"replace","path":"","value":[1]}]"#, 422),
            ("json-patch+json", target, r#"[{"op":"replace","path":"","value":null}]"#, 422),
            ("json-patch+json", target, r#"[{"op":"replace","path":"/metadata","value":[1]}]"#, 400),
            ("json-patch+json", target, r#"{"op":"remove","path":"/data"}"#, 400),
            ("merge-patch+json", target, r#"{"metadata":[1]}"#, 400),
            ("apply-patch+yaml", &format!("{target}?fieldManager=m"), "foo", 400),
            ("apply-patch+yaml", &format!("{target}?fieldManager=m"), "[1]", 400),
            ("apply-patch+yaml", &format!("{target}?fieldManager=m"), "", 400),
            ("apply-patch+yaml", &format!("{target}-new?fieldManager=m"), "foo", 400),
        ];
        for (dialect, target, body, code) in cases {
            let answer = patch(&api, target, dialect, body).await;
            assert_eq!(answer.0, code, "{dialect} {body}: {}", answer.1);
        }
        assert_eq!(ask(&api, &format!("GET {target}"), Value::Null).await, before);
    }
}
