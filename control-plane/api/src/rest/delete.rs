//! DELETE: at once, or in the two steps that finalizers and grace periods ask for.
//! (`k8s.io/apiserver/pkg/registry/rest/delete.go`, `registry/generic/registry/store.go`.)

use std::sync::Arc;

use http::Response;
use jiff::SignedDuration;
use kedge_store::{Entry, Expect};
use serde_json::{Value, json};

use super::save::{self, Failure, success, timestamp};
use super::update::ATTEMPTS_MAX;
use super::{Call, decode, encode, list};
use crate::admission;
use crate::body::Body;
use crate::error::ApiError;
use crate::object;
use crate::request::ResourcePath;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// `metav1.DeleteOptions`.
#[derive(Debug, Default)]
struct Options {
    grace_seconds: Option<i64>,
    policy: Option<String>,
    uid: Option<String>,
    revision: Option<String>,
    /// Nothing is to be changed: said in the query or in the body, which is where kubectl and client-go say it.
    dry_run: bool,
}

impl Options {
    fn parse(call: &Call<'_>) -> Result<Self, ApiError> {
        Self::from_body(call, &decode::options(call.incoming)?)
    }

    fn from_body(call: &Call<'_>, body: &Value) -> Result<Self, ApiError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut options = Self {
            grace_seconds: body["gracePeriodSeconds"].as_i64(),
            policy: text(&body["propagationPolicy"]),
            uid: text(&body["preconditions"]["uid"]),
            revision: text(&body["preconditions"]["resourceVersion"]),
            dry_run: dry_run(body)? | call.dry_run()?,
        };
        if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
            options.grace_seconds = Some(seconds as i64);
        }
        if let Some(policy) = call.query.get("propagationPolicy") {
            options.policy = Some(policy.to_owned());
        }
        let orphan = body["orphanDependents"]
            .as_bool()
            .or(call.query.get("orphanDependents").map(|_| call.query.flag("orphanDependents")));
        if let (None, Some(orphan)) = (&options.policy, orphan) {
            options.policy = Some(if orphan { "Orphan" } else { "Background" }.into());
        }
        match options.policy.as_deref() {
            None | Some("Orphan" | "Background" | "Foreground") => Ok(options),
            Some(other) => {
                let path = kedge_schema::field::Path::new("propagationPolicy");
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                let error = kedge_schema::field::FieldError::not_supported(&path, other, &allowed);
                Err(ApiError::invalid("", "DeleteOptions", "", &[error]))
            }
        }
    }

    fn check(&self, call: &Call<'_>, object: &Value) -> Result<(), ApiError> {
        let found = object::uid(object);
        if let Some(uid) = self.uid.as_deref().filter(|uid| *uid != found) {
            return Err(
                call.conflict(&format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"))
            );
        }
        let found = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if let Some(revision) = self.revision.as_deref().filter(|revision| *revision != found) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {found}"
            );
            return Err(call.conflict(&why));
        }
        Ok(())
    }
}

/// What `DeleteOptions` say of a dry run.
pub(crate) fn dry_run(options: &Value) -> Result<bool, ApiError> {
    super::dry_run(object::items(options, "dryRun").map(|value| value.as_str().unwrap_or_default()))
}

pub(super) async fn delete(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let options = Options::parse(&call)?;
    match addressed(&call, &options).await? {
        Outcome::Gone(last) => {
            let status = success(json!({
                "name": call.path.name, "group": call.path.group, "kind": call.path.resource, "uid": object::uid(&last),
            }));
            let shows_object = SHOWS_DELETED.contains(&&*call.kind.resource.kind);
            if shows_object { call.render(200, last) } else { encode(200, call.answer.format, &status) }
        }
        Outcome::Going(object) => call.render(200, object),
    }
}

/// Deletes the addressed object on behalf of another request, with `DeleteOptions` from its body.
pub(crate) async fn delete_addressed(call: &Call<'_>, options: &Value) -> Result<(), ApiError> {
    addressed(call, &Options::from_body(call, options)?).await.map(drop)
}

async fn addressed(call: &Call<'_>, options: &Options) -> Result<Outcome, ApiError> {
    for _ in 0..ATTEMPTS_MAX {
        match attempt(call, &call.stored()?, options).await {
            Ok(outcome) => return Ok(outcome),
            Err(Failure::Changed) => {}
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(super::update::STALE))
}

/// Kinds whose deletion answers with the object (`ReturnDeletedObject`).
const SHOWS_DELETED: &[&str] = &[
    "Pod",
    "ServiceAccount",
    "ReplicationController",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ResourceQuota",
    "StorageClass",
    "Service",
    "LimitRange",
];

pub(super) async fn delete_collection(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let options = Options::parse(&call)?;
    let selection = list::Selection::parse(&call)?;
    let found = list::find(&call, &selection)?;
    let mut items = Vec::new();
    for entry in found.entries {
        let path = ResourcePath {
            namespace: entry.key.namespace.to_string(),
            name: entry.key.name.to_string(),
            ..call.path.clone()
        };
        let one = Call { path: &path, ..call };
        for _ in 0..ATTEMPTS_MAX {
            let Some(entry) = call.api.store().get(&call.kind.collection, &one.key()) else { break };
            match attempt(&one, &entry, &options).await {
                Ok(Outcome::Gone(object) | Outcome::Going(object)) => {
                    items.push(object);
                    break;
                }
                Err(Failure::Changed) => {}
                Err(Failure::Refused(error)) if error.code == 404 => break,
                Err(Failure::Refused(error)) => return Err(error),
            }
        }
    }
    let revision = call.api.store().revision().to_string();
    let list = json!({
        "kind": call.kind.list_kind(), "apiVersion": call.kind.api_version(),
        "metadata": { "resourceVersion": revision }, "items": items,
    });
    encode(200, call.answer.format, &list)
}

enum Outcome {
    /// It is deleted; its last state.
    Gone(Value),
    /// It is being deleted; its state.
    Going(Value),
}

async fn attempt(call: &Call<'_>, entry: &Arc<Entry>, options: &Options) -> Result<Outcome, Failure> {
    let mut object = call.decode(entry);
    options.check(call, &object)?;
    admission::delete(call, &object)?;
    let before = object.clone();
    begin(call, &mut object, options);
    let expect = Expect::Revision(entry.revision);
    if !waits(&object) {
        if !options.dry_run {
            save::remove(call, expect).await.map_err(save::failure(call))?;
        }
        return Ok(Outcome::Gone(object));
    }
    if object == before || options.dry_run {
        return Ok(Outcome::Going(object));
    }
    let entry = save::write(call, &object, expect).await.map_err(save::failure(call))?;
    Ok(Outcome::Going(call.decode(&entry)))
}

/// Marks the object as being deleted, with the finalizers that the propagation policy asks for.
fn begin(call: &Call<'_>, object: &mut Value, options: &Options) {
    let rules = call.kind.rules.get();
    let orphans = rules.orphans_by_default();
    let policy = options.policy.as_deref().unwrap_or(if orphans { "Orphan" } else { "" });
    let mut finalizers: Vec<String> = object::finalizers(object).map(str::to_owned).collect();
    if !policy.is_empty() || options.policy.is_some() {
        finalizers.retain(|f| f != FOREGROUND && f != ORPHAN);
        match policy {
            "Foreground" => finalizers.push(FOREGROUND.into()),
            "Orphan" => finalizers.push(ORPHAN.into()),
            _ => {}
        }
    }
    let grace = rules.grace_seconds(object, options.grace_seconds).unwrap_or(0).max(0);
    let already = object["metadata"]["deletionGracePeriodSeconds"].as_i64().filter(|_| object::is_deleting(object));
    let generation = object["metadata"]["generation"].as_i64();
    let metadata = object::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
    // A second deletion may only shorten the first one's grace.
    let grace = already.map_or(grace, |already| grace.min(already));
    if already != Some(grace) {
        let when = call.now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(call.now);
        metadata.insert("deletionTimestamp".into(), timestamp(when).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        if let (None, Some(generation)) = (already, generation) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    rules.begin_delete(object);
}

/// Whether something holds the deletion up.
fn waits(object: &Value) -> bool {
    object::finalizers(object).next().is_some()
        || object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0
        || object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, open};

    #[tokio::test]
    async fn a_dry_run_deletes_nothing_wherever_it_is_said() {
        let api = open().await;
        let target = "/api/v1/namespaces/default/configmaps";
        for (name, finalizers) in [("a", json!([])), ("b", json!(["example.test/held"]))] {
            let object = json!({ "metadata": { "name": name, "finalizers": finalizers } });
            assert_eq!(ask(&api, &format!("POST {target}"), object).await.0, 201);
        }
        let before = ask(&api, &format!("GET {target}"), Value::Null).await.1;
        let cases = [
            ("?dryRun=All", Value::Null, 200),
            ("", json!({ "dryRun": ["All"] }), 200),
            ("?dryRun=All", json!({ "dryRun": ["All"] }), 200),
            ("?dryRun=All", json!({ "gracePeriodSeconds": 0 }), 200),
            ("", json!({ "dryRun": ["Some"] }), 400),
            ("", json!({ "dryRun": ["All", "Some"] }), 400),
            ("?dryRun=", Value::Null, 400),
        ];
        for (query, body, code) in cases {
            for place in ["/a", "/b", ""] {
                let answer = ask(&api, &format!("DELETE {target}{place}{query}"), body.clone()).await;
                assert_eq!(answer.0, code, "{place} {query} {body}: {}", answer.1);
                assert_eq!(ask(&api, &format!("GET {target}"), Value::Null).await.1["items"], before["items"]);
            }
        }
        assert_eq!(ask(&api, &format!("DELETE {target}/a"), json!({ "dryRun": [] })).await.0, 200);
        assert_eq!(ask(&api, &format!("GET {target}/a"), Value::Null).await.0, 404);
    }
}
