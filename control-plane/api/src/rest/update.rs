//! UPDATE: a whole object in place of another.

use http::Response;
use serde_json::Value;

use super::save::{self, Failure, Ownership, Part};
use super::{Call, create, decode};
use crate::body::Body;
use crate::error::ApiError;
use crate::object;

/// How often a change without a revision of its own is tried again when somebody else was faster.
pub(super) const ATTEMPTS_MAX: usize = 5;

/// What upstream says when a revision is old (`registry.OptimisticLockErrorMsg`).
pub(super) const STALE: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

pub(super) async fn update(call: Call<'_>, part: Part) -> Result<Response<Body>, ApiError> {
    let decoded = decode::body(&call, call.kind)?;
    let new = decoded.value;
    if object::name(&new) != call.path.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            object::name(&new),
            call.path.name
        )));
    }
    let mut warnings = decoded.warnings;
    warnings.extend(call.kind.rules.get().warnings(&new));
    for _ in 0..ATTEMPTS_MAX {
        let Some(entry) = call.api.store().get(&call.kind.collection, &call.key()) else {
            if call.kind.rules.get().creates_on_update() && part == Part::Main && asked_revision(&new).is_none() {
                let saved = save::create(&call, new, Ownership::Updated).await?;
                return decode::with_warnings(create::render(&call, 201, &saved)?, &warnings);
            }
            return Err(call.not_found());
        };
        let old = call.decode(&entry);
        let asked = asked_revision(&new);
        check_identity(&call, &new, &old, entry.revision)?;
        match save::replace(&call, &entry, &old, new.clone(), part, Ownership::Updated).await {
            Ok(saved) => return decode::with_warnings(create::render(&call, 200, &saved)?, &warnings),
            Err(Failure::Changed) if asked.is_none() => {}
            Err(Failure::Changed) => break,
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(STALE))
}

/// The revision that the client says it changed, if it says one.
pub(super) fn asked_revision(new: &Value) -> Option<&str> {
    new["metadata"]["resourceVersion"].as_str().filter(|revision| !revision.is_empty() && *revision != "0")
}

/// Refuses a change of another object than the one that is there.
pub(super) fn check_identity(call: &Call<'_>, new: &Value, old: &Value, revision: u64) -> Result<(), ApiError> {
    match asked_revision(new) {
        Some(asked) if asked != revision.to_string() => return Err(call.conflict(STALE)),
        None if !call.kind.rules.get().updates_unconditionally() => {
            let path = kedge_schema::field::Path::new("metadata").child("resourceVersion");
            let error = kedge_schema::field::FieldError::invalid(&path, 0, "must be specified for an update");
            return Err(ApiError::invalid(&call.path.group, &call.kind.resource.kind, &call.path.name, &[error]));
        }
        _ => {}
    }
    let uid = object::uid(new);
    if !uid.is_empty() && uid != object::uid(old) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object::uid(old));
        return Err(call.conflict(&why));
    }
    Ok(())
}
