//! The one way of a changed object to the store, whichever verb changed it.
//!
//! Order matters, and is upstream's (`k8s.io/apiserver/pkg/registry/rest/{create,update}.go`): what the client may
//! not set is put back, defaults are filled in, admission may change and refuse, ownership of fields is noted, the
//! result is validated, the generation counted, and a change that changes nothing is not written.

use std::sync::Arc;

use kedge_schema::apply::{self, FieldSet, Target, Writer};
use kedge_schema::field::FieldError;
use kedge_store::{Action, Durability, Entry, Expect, Refusal, StoreError, Write};
use serde_json::{Value, json};

use super::Call;
use crate::admission::{self, Attempt};
use crate::convert;
use crate::error::ApiError;
use crate::object;
use crate::validation;

/// Which part of an object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
    /// A subresource with rules of its own that has already put back what it may not change.
    Other(&'static str),
}

impl Part {
    /// The name in managed fields and in admission; empty for the main path.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Other(name) => name,
        }
    }
}

/// How the ownership of fields is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// By what the request changed (`operation: Update`).
    Updated,
    /// Server-side apply has already noted it.
    Applied,
}

/// What came of a save.
#[derive(Debug)]
pub(crate) enum Saved {
    /// It is stored; or was already, exactly so.
    Stored(Arc<Entry>),
    /// It would have been stored (dry run); or it went away with its last finalizer.
    Shown(Value),
}

/// Why a save did not happen.
pub(crate) enum Failure {
    /// Somebody else changed the object meanwhile; the caller may read it again.
    Changed,
    /// For good.
    Refused(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

/// Stores a new object. `new` is complete but for what the server adds.
pub(crate) async fn create(call: &Call<'_>, mut new: Value, ownership: Ownership) -> Result<Saved, ApiError> {
    let rules = call.kind.rules.get();
    if call.kind.custom.as_ref().is_some_and(|custom| custom.terminating) {
        // (`apiextensions-apiserver/pkg/apiserver/customresource_handler.go`.)
        let message = "create not allowed while custom resource definition is terminating".to_owned();
        let error = ApiError::method_not_supported(&call.path.group, &call.path.resource, "create");
        return Err(ApiError { message, ..error });
    }
    begin_metadata(call, &mut new)?;
    rules.prepare_create(&mut new);
    if rules.has_generation() {
        object::metadata_mut(&mut new).insert("generation".into(), 1.into());
    }
    complete(call, &mut new);
    // Before admission: what the server adds is nobody's, so that nobody takes it away by not sending it again.
    if ownership == Ownership::Updated {
        note_owners(call, None, &mut new, Part::Main)?;
    }
    let dry_run = call.dry_run()?;
    let mut attempt = Attempt { call, new: &mut new, old: None, part: Part::Main, held: Vec::new() };
    let _held = admission::mutate(&mut attempt)?;
    complete(call, &mut new);
    rules.finish_create(&mut new);
    let mut errors = validation::metadata(&new, call.kind);
    errors.extend(call.kind.check_schema(&new, None));
    errors.extend(rules.validate(&new));
    errors.extend(rules.validate_create(&new));
    refuse_invalid(call, &new, &errors)?;
    let attempt = Attempt { call, new: &mut new, old: None, part: Part::Main, held: Vec::new() };
    admission::validate(&attempt)?;
    if dry_run {
        let exists = call.api.store().get(&call.kind.collection, &object::key(&new)).is_some();
        return if exists { Err(already_exists(call, &new)) } else { Ok(Saved::Shown(new)) };
    }
    let charged = admission::charge(call, &new, None).await?;
    match write(call, &new, Expect::Absent).await {
        Ok(entry) => Ok(Saved::Stored(entry)),
        Err(error) => {
            charged.give_back(call.api).await;
            Err(match error {
                StoreError::Refused(Refusal::Exists(_)) => already_exists(call, &new),
                other => store_failure(other),
            })
        }
    }
}

/// Stores `new` over `old`.
pub(crate) async fn replace(
    call: &Call<'_>,
    old_entry: &Arc<Entry>,
    old: &Value,
    mut new: Value,
    part: Part,
    ownership: Ownership,
) -> Result<Saved, Failure> {
    let rules = call.kind.rules.get();
    keep_metadata(&mut new, old);
    match part {
        Part::Main => rules.prepare_update(&mut new, old),
        Part::Status => rules.prepare_status_update(&mut new, old),
        Part::Other(_) => {}
    }
    complete(call, &mut new);
    if ownership == Ownership::Updated {
        note_owners(call, Some(old), &mut new, part)?;
    }
    let dry_run = call.dry_run()?;
    let mut attempt = Attempt { call, new: &mut new, old: Some(old), part, held: Vec::new() };
    let _held = admission::mutate(&mut attempt)?;
    complete(call, &mut new);
    if rules.has_generation() && part != Part::Status {
        count_generation(call, &mut new, old);
    }
    if same_but_times(&new, old) {
        return Ok(Saved::Stored(old_entry.clone()));
    }
    let mut errors = validation::metadata_update(&new, old, call.kind);
    errors.extend(call.kind.check_schema(&new, Some(old)));
    if part != Part::Status {
        errors.extend(rules.validate(&new));
    }
    errors.extend(rules.validate_update(&new, old));
    refuse_invalid(call, &new, &errors)?;
    let attempt = Attempt { call, new: &mut new, old: Some(old), part, held: Vec::new() };
    admission::validate(&attempt)?;
    if dry_run {
        return Ok(Saved::Shown(new));
    }
    let expect = Expect::Revision(old_entry.revision);
    if is_finished(&new) {
        let gone = remove(call, expect).await;
        return gone.map(|_| Saved::Shown(new)).map_err(failure(call));
    }
    let charged = if part == Part::Main { admission::charge(call, &new, Some(old)).await? } else { Default::default() };
    match write(call, &new, expect).await {
        Ok(entry) => Ok(Saved::Stored(entry)),
        Err(error) => {
            charged.give_back(call.api).await;
            Err(failure(call)(error))
        }
    }
}

/// What a refused write means to the caller.
pub(crate) fn failure(call: &Call<'_>) -> impl Fn(StoreError) -> Failure {
    let not_found = call.not_found();
    move |error| match error {
        StoreError::Refused(Refusal::Changed(_)) => Failure::Changed,
        StoreError::Refused(Refusal::Missing) => Failure::Refused(not_found.clone()),
        other => Failure::Refused(store_failure(other)),
    }
}

/// The engine said no, or the server is going down.
pub(crate) fn store_failure(error: StoreError) -> ApiError {
    match error {
        StoreError::Stopped => ApiError::unavailable("the server is shutting down"),
        other => ApiError::internal(other),
    }
}

fn already_exists(call: &Call<'_>, new: &Value) -> ApiError {
    ApiError::already_exists(&call.path.group, &call.path.resource, object::name(new))
}

/// Defaults: afterwards the object has the shape its schema and its rules promise.
fn complete(call: &Call<'_>, new: &mut Value) {
    call.kind.rules.get().default(new);
    call.kind.schema.complete(new);
}

fn refuse_invalid(call: &Call<'_>, new: &Value, errors: &[FieldError]) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&call.kind.resource.group, &call.kind.resource.kind, object::name(new), errors))
}

/// What the server alone decides about a new object.
fn begin_metadata(call: &Call<'_>, new: &mut Value) -> Result<(), ApiError> {
    let random = &call.api.world().random;
    let created = timestamp(call.now);
    let namespaced = call.kind.resource.namespaced;
    let generate = new["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    let named = !object::name(new).is_empty();
    let metadata = object::metadata_mut(new);
    if !named && !generate.is_empty() {
        // Names have at most 63 letters where it matters; the base gives way to the suffix (`names/generate.go`).
        let base: String = generate.chars().take(58).collect();
        metadata.insert("name".into(), format!("{base}{}", random.suffix(5)).into());
    }
    metadata.insert("uid".into(), random.uuid().into());
    metadata.insert("creationTimestamp".into(), created.into());
    for key in ["selfLink", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(key);
    }
    if namespaced {
        metadata.insert("namespace".into(), call.path.namespace.clone().into());
    } else {
        metadata.remove("namespace");
    }
    Ok(())
}

/// What an update may not change about the metadata.
fn keep_metadata(new: &mut Value, old: &Value) {
    let kept = &old["metadata"];
    let metadata = object::metadata_mut(new);
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"]
    {
        // A client that sends another uid is told so by validation.
        if key == "uid" && metadata.get("uid").is_some_and(|uid| *uid != "" && *uid != kept["uid"]) {
            continue;
        }
        match kept.get(key) {
            Some(value) => metadata.insert(key.into(), value.clone()),
            None => metadata.remove(key),
        };
    }
    for key in ["name", "namespace", "generateName"] {
        if let Some(value) = kept.get(key)
            && metadata.get(key).is_none_or(|v| *v == "")
        {
            metadata.insert(key.into(), value.clone());
        }
    }
}

/// Another generation for another spec (for custom resources: for anything but metadata and status).
fn count_generation(call: &Call<'_>, new: &mut Value, old: &Value) {
    let changed = if call.kind.custom.is_some() {
        let rest = |value: &Value| {
            let mut value = value.clone();
            let map = object::as_map(&mut value);
            map.remove("metadata");
            map.remove("status");
            value
        };
        if call.kind.rules.get().has_status() {
            rest(new) != rest(old)
        } else {
            let bare = |value: &Value| {
                let mut v = value.clone();
                object::as_map(&mut v).remove("metadata");
                v
            };
            bare(new) != bare(old)
        }
    } else {
        new["spec"] != old["spec"] || SPECLESS.iter().any(|key| new.get(key) != old.get(key))
    };
    if changed {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object::metadata_mut(new).insert("generation".into(), next.into());
    }
}

/// What stands in place of a spec in kinds that count generations without having one.
const SPECLESS: &[&str] = &["webhooks"];

fn note_owners(call: &Call<'_>, old: Option<&Value>, new: &mut Value, part: Part) -> Result<(), ApiError> {
    let manager = manager(call);
    let api_version = call.kind.api_version();
    let reset = reset_fields(call, part);
    let (schema, id) = call.kind.schema.get();
    let target = Target { schema, id, reset: &reset };
    let writer =
        Writer { manager: &manager, api_version: &api_version, subresource: part.subresource(), now: call.now };
    apply::update(&target, &writer, old, new).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// The fields that a write through this path cannot change and so never owns (`GetResetFields`).
pub(crate) fn reset_fields(call: &Call<'_>, part: Part) -> FieldSet {
    match part {
        Part::Main if call.kind.rules.get().has_status() => FieldSet::of_fields(&[&["status"]]),
        Part::Status => FieldSet::of_fields(&[&["spec"]]),
        _ => FieldSet::default(),
    }
}

/// Who changes fields: `fieldManager`, or the first word of the user agent.
pub(crate) fn manager(call: &Call<'_>) -> String {
    if let Some(manager) = call.query.get("fieldManager") {
        return manager.to_owned();
    }
    let agent = call.incoming.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
    agent.split('/').next().unwrap_or_default().chars().take(128).collect()
}

/// Equal but for the times at which managers last changed something, and the revision.
fn same_but_times(new: &Value, old: &Value) -> bool {
    let bare = |value: &Value| {
        let mut value = value.clone();
        let metadata = object::metadata_mut(&mut value);
        metadata.remove("resourceVersion");
        for entry in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            object::as_map(entry).remove("time");
        }
        value
    };
    bare(new) == bare(old)
}

/// A deletion had begun and nothing holds it up any more.
fn is_finished(new: &Value) -> bool {
    object::is_deleting(new)
        && object::finalizers(new).next().is_none()
        && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// Writes an object of the call's kind and version.
pub(crate) async fn write(call: &Call<'_>, new: &Value, expect: Expect) -> Result<Arc<Entry>, StoreError> {
    let mut stored = new.clone();
    convert::to_stored(call.kind, &mut stored);
    let selectable = call.kind.selectable();
    let facets = object::facets(&stored, selectable.iter().skip(2).map(|(path, absent)| (path.as_str(), *absent)));
    let payload = object::encode(&stored, facets);
    let write = Write {
        resource: call.kind.collection.clone(),
        key: object::key(new),
        expect,
        action: Action::Put(payload),
        durability: durability(call, new, expect),
    };
    call.api.store().write(write).await
}

/// Removes the addressed object.
pub(crate) async fn remove(call: &Call<'_>, expect: Expect) -> Result<Arc<Entry>, StoreError> {
    let write = Write {
        resource: call.kind.collection.clone(),
        key: call.key(),
        expect,
        action: Action::Delete,
        durability: Durability::Durable,
    };
    call.api.store().write(write).await
}

/// Renewals of node Leases are the only soft state: the node says again within seconds what a power cut takes.
fn durability(call: &Call<'_>, new: &Value, expect: Expect) -> Durability {
    let renewal =
        expect != Expect::Absent && &*call.kind.resource.kind == "Lease" && object::namespace(new) == "kube-node-lease";
    if renewal { Durability::Soft } else { Durability::Durable }
}

/// RFC 3339 with whole seconds, `metav1.Time`.
pub(crate) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The `metav1.Status` of something done.
pub(crate) fn success(details: Value) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
