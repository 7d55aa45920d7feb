//! UPDATE: a whole object in place of another.

use http::Response;
use serde_json::Value;

use super::save::{self, Failure, Ownership, Part};
use super::{Call, create, decode};
use crate::body::Body;
use crate::error::ApiError;
use crate::kinds;
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
    if part == Part::Main {
        warnings.extend(kinds::warnings(call.kind, &new));
    }
    for _ in 0..ATTEMPTS_MAX {
        let Some(entry) = call.api.store().get(&call.kind.collection, &call.key()) else {
            if call.kind.rules.get().creates_on_update() && part == Part::Main && asked_revision(&new).is_none() {
                call.authorize_create()?;
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

#[cfg(test)]
mod tests {
    use kedge_access::{Attributes, Decision, User};
    use serde_json::json;

    use super::*;
    use crate::api::Api;
    use crate::guard::{Guard, Open};
    use crate::testing::{answer, api, incoming};

    /// Everybody may do everything but `create`, which the administrator alone may.
    struct NoCreate;

    impl Guard for NoCreate {
        fn decide(&self, _: &Api, user: &User, attributes: &Attributes<'_>) -> Decision {
            let allowed = user.name == "admin" || attributes.verb != "create";
            if allowed { Decision::Allow(String::new()) } else { Decision::NoOpinion(String::new()) }
        }
        fn rules(&self, api: &Api, user: &User, namespace: &str) -> Value {
            Open.rules(api, user, namespace)
        }
        fn authenticate(&self, api: &Api, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
            Open.authenticate(api, token, audiences)
        }
        fn issue(&self, api: &Api, account: &Value, request: Value) -> Result<Value, ApiError> {
            Open.issue(api, account, request)
        }
    }

    #[tokio::test]
    async fn who_may_not_create_does_not_by_changing_nothing() {
        let api = api(NoCreate).await;
        let role = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/l";
        let map = "/api/v1/namespaces/default/configmaps/c?fieldManager=m";
        let object = |name: &str| json!({ "metadata": { "name": name } }).to_string();
        let ask = async |user: &str, line: &str, media_type: &str, body: String| {
            answer(&api, incoming(user, line, media_type, body)).await
        };
        for (line, media_type, name) in [
            (format!("PUT {role}"), "application/json", "l"),
            (format!("PATCH {map}"), "application/apply-patch+yaml", "c"),
        ] {
            for dry_run in ["", "dryRun=All"] {
                let separator = if line.contains('?') { "&" } else { "?" };
                let line = format!("{line}{separator}{dry_run}");
                let (code, status) = ask("somebody", &line, media_type, object(name)).await;
                assert_eq!(code, 403, "{line}: {status}");
                assert!(status["message"].as_str().unwrap().contains("cannot create resource"), "{status}");
            }
            assert_eq!(ask("admin", &line, media_type, object(name)).await.0, 201, "{line}");
            assert_eq!(ask("somebody", &line, media_type, object(name)).await.0, 200, "{line}");
        }
    }
}
