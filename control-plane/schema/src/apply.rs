//! Server-side apply and the bookkeeping of field managers.
//!
//! [`apply`] lays an applied configuration over the live object, takes out what its manager applied before and does
//! no longer, and refuses to take fields from others unless forced. [`update`] notes, on any other write, who
//! changed what. Both follow `apimachinery/pkg/util/managedfields` and `structured-merge-diff`; objects are to be
//! given as the server would write them ([`strict::settle`](crate::strict::settle)), and the applied configuration as
//! the client sent it, of the same version.
//!
//! Where this is less than upstream: entries of other versions of the kind are kept as they are (upstream converts
//! the object and adjusts them), and a schema that turned a list from atomic to granular or back does not rewrite
//! old entries. The result may hold `null` where a container lost its last field: decode it before storing.

mod compare;
mod fields_v1;
mod last_applied;
mod managers;
mod merge;
mod set;
#[cfg(test)]
mod tests;
mod typed;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::shape::{Schema, Shape, TypeId};
use managers::{Entry, ManagerKey, Managers};

pub use fields_v1::{FieldsError, decode as decode_fields, encode as encode_fields};
pub use set::{FieldSet, Node, Scalar, Step, path_text};
pub use typed::TypedError;

/// The kind at hand, and what the request may not own.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Where the type is.
    pub schema: &'a Schema,
    /// The type of the object.
    pub id: TypeId,
    /// Fields that a write through this resource or subresource does not change (`status` of a plain write), and so
    /// never owns.
    pub reset: &'a FieldSet,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager; `unknown` stands in for an empty one.
    pub manager: &'a str,
    /// The group and version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// When.
    pub now: Timestamp,
}

impl Writer<'_> {
    fn key(&self, applied: bool) -> ManagerKey {
        ManagerKey::new(self.manager, applied, self.api_version, self.subresource)
    }

    fn time(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

/// Why an apply or the bookkeeping fails.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Others own what the configuration would change. Status 409, reason `Conflict`.
    #[error("{0}")]
    Conflicts(Conflicts),
    /// The configuration brings `managedFields` of its own. Status 400.
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsSet,
    /// The object's `managedFields` cannot be read.
    #[error("failed to decode managed fields: {0}")]
    ManagedFields(String),
    /// The configuration does not fit the type.
    #[error("failed to create typed patch object ({0}): {1}")]
    Patch(String, TypedError),
    /// The live object does not fit the type.
    #[error("failed to create typed live object ({0}): {1}")]
    Live(String, TypedError),
    /// The written object does not fit the type.
    #[error("failed to convert new object ({0}) to smd typed: {1}")]
    New(String, TypedError),
    /// The objects cannot be merged or compared.
    #[error("failed to merge config: {0}")]
    Merge(TypedError),
}

/// Fields that others own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who, such as `"kubectl" using apps/v1`.
    pub manager: String,
    /// What.
    pub path: Vec<Step>,
}

impl Conflicts {
    /// The `causes` of the `Status`.
    pub fn to_causes(&self) -> Vec<Value> {
        let cause = |conflict: &Conflict| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {}", conflict.manager),
                "field": path_text(&conflict.path),
            })
        };
        self.0.iter().map(cause).collect()
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.0[..] {
            let path = path_text(&only.path);
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {path}", only.manager);
        }
        let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for conflict in &self.0 {
            by_manager.entry(&conflict.manager).or_default().push(format!("- {}", path_text(&conflict.path)));
        }
        let parts: Vec<String> = by_manager
            .iter()
            .map(|(manager, paths)| format!("conflicts with {manager}:\n{}", paths.join("\n")))
            .collect();
        write!(f, "Apply failed with {} conflicts: {}", self.0.len(), parts.join("\n"))
    }
}

/// Lays a configuration over the live object (none when it is to be created); the result carries the new
/// `managedFields` and is still to be decoded, defaulted and validated.
pub fn apply(
    target: &Target<'_>,
    writer: &Writer<'_>,
    live: Option<&Value>,
    applied: &Value,
    force: bool,
) -> Result<Value, ApplyError> {
    if managed_fields(applied).is_some_and(|list| !list.is_null()) {
        return Err(ApplyError::ManagedFieldsSet);
    }
    let empty = Value::Object(Map::new());
    let mut live = live.unwrap_or(&empty).clone();
    let mut managers = Managers::decode(managed_fields(&live))?;
    drop_managed_fields(&mut live);
    let shape = Shape::Object(target.id);
    typed::validate(target.schema, &shape, applied, false)
        .map_err(|error| ApplyError::Patch(object_name(applied), error))?;
    typed::validate(target.schema, &shape, &live, true).map_err(|error| ApplyError::Live(object_name(&live), error))?;
    if managers.entries.is_empty() {
        let first = Writer { manager: "before-first-apply", ..*writer };
        track(target, &first, &empty, &live, &mut managers)?;
    }
    let mut result = lay_over(target, writer, &live, applied, managers.clone(), force);
    if let (Err(ApplyError::Conflicts(conflicts)), "kubectl") = (&result, writer.manager) {
        let remaining = last_applied::without_own(target, writer, &live, conflicts);
        result = match remaining {
            None => result,
            Some(conflicts) if conflicts.0.is_empty() => lay_over(target, writer, &live, applied, managers, true),
            Some(conflicts) => Err(ApplyError::Conflicts(conflicts)),
        };
    }
    let (mut object, managers) = result?;
    if writer.manager == "kubectl" {
        last_applied::renew(&mut object, applied);
    }
    set_managed_fields(&mut object, managers.encode());
    Ok(object)
}

/// Notes in `new` who changed what, on a create (no live object), update or patch. `new` may bring `managedFields`
/// of its own, which replace the live ones; an empty list resets them.
pub fn update(
    target: &Target<'_>,
    writer: &Writer<'_>,
    live: Option<&Value>,
    new: &mut Value,
) -> Result<(), ApplyError> {
    let mut managers = managers_to_update(writer, live, new);
    drop_managed_fields(new);
    let exists =
        live.and_then(|live| live.pointer("/metadata/uid")).and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
    // An object that nobody tracked so far stays untracked until someone applies.
    if managers.entries.is_empty() && exists {
        return Ok(());
    }
    let mut old = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    drop_managed_fields(&mut old);
    track(target, writer, &old, new, &mut managers)?;
    set_managed_fields(new, managers.encode());
    Ok(())
}

/// Whether two objects differ in nothing but the times of their `managedFields`, so that the write can be spared.
pub fn only_times_differ(old: &Value, new: &Value) -> bool {
    let timeless = |object: &Value| {
        let mut object = object.clone();
        if let Some(Value::Array(entries)) = object.pointer_mut("/metadata/managedFields") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                entry.remove("time");
            }
            entries.sort_by_cached_key(Value::to_string);
        }
        object
    };
    old != new && timeless(old) == timeless(new)
}

fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata").and_then(|metadata| metadata.get("managedFields"))
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

fn set_managed_fields(object: &mut Value, list: Option<Value>) {
    drop_managed_fields(object);
    if let (Some(list), Some(object)) = (list, object.as_object_mut()) {
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("managedFields".to_owned(), list);
        }
    }
}

/// `namespace/name; group/version, Kind=kind`, as upstream's errors name objects; the core group is empty.
fn object_name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let slash = if text("/apiVersion").contains('/') { "" } else { "/" };
    format!("{namespace}/{name}; {slash}{}, Kind={}", text("/apiVersion"), text("/kind"))
}

/// The entries to go on from: those of the request where it brings good ones, else the live ones.
fn managers_to_update(writer: &Writer<'_>, live: Option<&Value>, new: &Value) -> Managers {
    let of_live = || Managers::decode(live.and_then(managed_fields)).unwrap_or_default();
    if !writer.subresource.is_empty() {
        return of_live();
    }
    let list = managed_fields(new).and_then(Value::as_array);
    let blank = |entry: &Value| entry.as_object().is_some_and(Map::is_empty);
    match list.map(Vec::as_slice) {
        Some([]) => return Managers::default(),
        Some([entry]) if blank(entry) => return Managers::default(),
        _ => {}
    }
    match Managers::decode(managed_fields(new)) {
        Ok(managers) if !managers.entries.is_empty() => managers,
        _ => of_live(),
    }
}

/// Gives what changed to the writer and takes it from all others.
fn track(
    target: &Target<'_>,
    writer: &Writer<'_>,
    old: &Value,
    new: &Value,
    managers: &mut Managers,
) -> Result<(), ApplyError> {
    let shape = Shape::Object(target.id);
    typed::validate(target.schema, &shape, new, true).map_err(|error| ApplyError::New(object_name(new), error))?;
    let found = compare::compare(target.schema, &shape, old, new)
        .map_err(|error| ApplyError::New(object_name(new), error))?
        .without(target.reset);
    take_from_others(writer, &found, managers, None);
    let changed = found.modified.union(&found.added).recursive_difference(target.reset);
    let changed = changed.difference(&managers::stripped());
    if !changed.is_empty() {
        let key = writer.key(false);
        let before = managers.entries.remove(&key).map(|entry| entry.set).unwrap_or_default();
        let entry = Entry {
            api_version: writer.api_version.to_owned(),
            time: Some(writer.time()),
            set: changed.union(&before),
        };
        managers.entries.insert(key, entry);
    }
    managers.cap();
    Ok(())
}

/// What changed is no longer owned by others, and what is gone by nobody. Entries of other versions are kept.
fn take_from_others(
    writer: &Writer<'_>,
    found: &compare::Comparison,
    managers: &mut Managers,
    except: Option<&ManagerKey>,
) {
    let gone = found.modified.union(&found.added).union(&found.removed);
    for (key, entry) in &mut managers.entries {
        if Some(key) != except && entry.api_version == writer.api_version {
            entry.set = entry.set.difference(&gone);
        }
    }
    managers.drop_empty();
}

/// The fields of others that a change would touch.
fn conflicts_of(writer: &Writer<'_>, found: &compare::Comparison, managers: &Managers, own: &ManagerKey) -> Conflicts {
    let changed = found.modified.union(&found.added);
    let others = managers.entries.iter().filter(|(key, entry)| *key != own && entry.api_version == writer.api_version);
    let conflicts = others.flat_map(|(key, entry)| {
        let paths = entry.set.intersection(&changed).paths();
        paths.into_iter().map(|path| Conflict { manager: key.shown(), path })
    });
    Conflicts(conflicts.collect())
}

/// Merges, prunes and checks for conflicts.
fn lay_over(
    target: &Target<'_>,
    writer: &Writer<'_>,
    live: &Value,
    applied: &Value,
    mut managers: Managers,
    force: bool,
) -> Result<(Value, Managers), ApplyError> {
    let shape = Shape::Object(target.id);
    let key = writer.key(true);
    let merged = merge::merge(target.schema, &shape, live, applied).map_err(ApplyError::Merge)?;
    let set = typed::field_set(target.schema, &shape, applied).recursive_difference(target.reset);
    let last = managers.entries.remove(&key);
    let time = last.as_ref().and_then(|entry| entry.time.clone());
    managers.entries.insert(key.clone(), Entry { api_version: writer.api_version.to_owned(), time, set });
    let pruned = match &last {
        Some(last) if !last.set.is_empty() && last.api_version == writer.api_version => {
            prune(target, &merged, &managers, &last.set)
        }
        _ => merged,
    };
    let found = compare::compare(target.schema, &shape, live, &pruned).map_err(ApplyError::Merge)?;
    let found = found.without(target.reset);
    let conflicts = conflicts_of(writer, &found, &managers, &key);
    if !force && !conflicts.0.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    take_from_others(writer, &found, &mut managers, Some(&key));
    let changed = !compare::equal(live, &pruned);
    if let Some(entry) = managers.entries.get_mut(&key) {
        entry.set = entry.set.difference(&managers::stripped());
        if changed {
            entry.time = Some(writer.time());
        }
    }
    managers.drop_empty();
    Ok((if changed { pruned } else { live.clone() }, managers))
}

/// Takes out what the manager applied before and does no longer, unless someone else owns it.
fn prune(target: &Target<'_>, merged: &Value, managers: &Managers, last: &FieldSet) -> Value {
    let (schema, shape) = (target.schema, Shape::Object(target.id));
    let full = |set: &FieldSet| typed::with_named_parents(schema, &shape, set);
    let set_of = |value: &Value| full(&typed::field_set(schema, &shape, value));
    let merged_set = set_of(merged);
    // First without all that was applied before, then back with what anyone owns now …
    let bare = merge::remove(schema, &shape, merged, &full(last));
    let owned = managers.entries.values().fold(FieldSet::default(), |all, entry| all.union(&entry.set));
    let keep = set_of(&bare).union(&full(&owned));
    let kept = merge::remove(schema, &shape, merged, &merged_set.difference(&keep));
    // … and with what was never the manager's but hung below what was.
    let gone = merged_set.difference(&set_of(&kept)).intersection(&full(last));
    merge::remove(schema, &shape, merged, &gone)
}
