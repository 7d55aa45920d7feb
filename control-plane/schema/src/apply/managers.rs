//! `metadata.managedFields`: who manages which fields, read from and written to an object.
//!
//! Follows `apimachinery/pkg/util/managedfields/internal/{managedfields,capmanagers,stripmeta}.go`. An applier has
//! one entry for each subresource whatever the version; an updater one for each version and subresource.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::ApplyError;
use super::fields_v1;
use super::set::FieldSet;
use crate::go_text::quote;

/// How many entries updaters may have before the oldest are merged.
const UPDATERS_MAX: usize = 10;

/// The name of merged old entries.
const ANCIENT: &str = "ancient-changes";

/// What an entry is known by. Appliers have no version here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerKey {
    pub(super) manager: String,
    pub(super) applied: bool,
    pub(super) api_version: String,
    pub(super) subresource: String,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) api_version: String,
    pub(super) time: Option<String>,
    pub(super) set: FieldSet,
}

/// All entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managers {
    pub(super) entries: BTreeMap<ManagerKey, Entry>,
}

impl ManagerKey {
    pub(super) fn new(manager: &str, applied: bool, api_version: &str, subresource: &str) -> Self {
        Self {
            manager: if manager.is_empty() { "unknown" } else { manager }.to_owned(),
            applied,
            api_version: if applied { "" } else { api_version }.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// As conflicts name it: `"x" with subresource "status" using apps/v1`.
    pub(super) fn shown(&self) -> String {
        let mut text = quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", quote(&self.subresource)));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Managers {
    /// Reads the entries of an object.
    pub(super) fn decode(list: Option<&Value>) -> Result<Self, ApplyError> {
        let mut managers = Self::default();
        for (index, entry) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let wrong = |text: String| ApplyError::ManagedFields(text);
            let applied = match text("operation") {
                "Apply" => true,
                "Update" => false,
                _ => return Err(wrong("operation must be `Apply` or `Update`".to_owned())),
            };
            if text("apiVersion").is_empty() {
                return Err(wrong("apiVersion must not be empty".to_owned()));
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(wrong(format!("missing fieldsType in managed fields entry {index}"))),
                other => {
                    let other = quote(other);
                    return Err(wrong(format!("invalid fieldsType {other} in managed fields entry {index}")));
                }
            }
            let set = match entry.get("fieldsV1").filter(|fields| !fields.is_null()) {
                Some(fields) => {
                    fields_v1::decode(fields).map_err(|error| wrong(format!("error decoding set: {error}")))?
                }
                None => FieldSet::default(),
            };
            // An entry without a name stays without one.
            let mut key = ManagerKey::new(text("manager"), applied, text("apiVersion"), text("subresource"));
            key.manager = text("manager").to_owned();
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managers.entries.insert(key, Entry { api_version: text("apiVersion").to_owned(), time, set });
        }
        Ok(managers)
    }

    /// The entries as they stand in an object, in upstream's order; none at all is no field.
    pub(super) fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&ManagerKey, &Entry)> = self.entries.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            let order = |key: &ManagerKey, entry: &Entry| {
                let text = |text: &str| text.to_owned();
                (!key.applied, seconds(entry), text(&key.manager), text(&entry.api_version), text(&key.subresource))
            };
            order(a, x).cmp(&order(b, y))
        });
        (!entries.is_empty()).then(|| entries.into_iter().map(|(key, entry)| encode_entry(key, entry)).collect())
    }

    /// Entries without fields say nothing.
    pub(super) fn drop_empty(&mut self) {
        self.entries.retain(|_, entry| !entry.set.is_empty());
    }

    /// Keeps updaters to a number by merging the oldest of a version.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<ManagerKey> = self.entries.keys().filter(|key| !key.applied).cloned().collect();
        if updaters.len() <= UPDATERS_MAX {
            return;
        }
        updaters.sort_by(|a, b| {
            let order = |key: &ManagerKey| (seconds(&self.entries[key]), identifier(key));
            order(a).cmp(&order(b))
        });
        let mut count = updaters.len();
        let mut first_of: BTreeMap<String, ManagerKey> = BTreeMap::new();
        for key in updaters {
            if count <= UPDATERS_MAX {
                break;
            }
            let Some(first) = first_of.get(&key.api_version) else {
                first_of.insert(key.api_version.clone(), key);
                continue;
            };
            let bucket = ManagerKey::new(ANCIENT, false, &key.api_version, "");
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            let (Some(entry), true) = (self.entries.remove(&key), key != bucket) else { continue };
            let merged =
                self.entries.entry(bucket).or_insert_with(|| Entry { set: FieldSet::default(), ..entry.clone() });
            merged.set = merged.set.union(&entry.set);
            merged.time = entry.time;
            count -= 1;
        }
    }
}

/// Upstream orders entries of one second by the JSON that identifies them.
fn identifier(key: &ManagerKey) -> String {
    let mut fields = vec![format!("\"manager\":{}", quote(&key.manager)), "\"operation\":\"Update\"".to_owned()];
    fields.push(format!("\"apiVersion\":{}", quote(&key.api_version)));
    if !key.subresource.is_empty() {
        fields.push(format!("\"subresource\":{}", quote(&key.subresource)));
    }
    fields.join(",")
}

fn seconds(entry: &Entry) -> i64 {
    entry.time.as_ref().and_then(|time| time.parse::<Timestamp>().ok()).map_or(0, |time| time.as_second())
}

fn encode_entry(key: &ManagerKey, entry: &Entry) -> Value {
    let mut map = Map::new();
    let mut put = |name: &str, text: &str| map.insert(name.to_owned(), text.into());
    put("apiVersion", &entry.api_version);
    put("fieldsType", "FieldsV1");
    put("operation", if key.applied { "Apply" } else { "Update" });
    if !key.manager.is_empty() {
        put("manager", &key.manager);
    }
    if !key.subresource.is_empty() {
        put("subresource", &key.subresource);
    }
    if let Some(time) = &entry.time {
        put("time", time);
    }
    map.insert("fieldsV1".to_owned(), fields_v1::encode(&entry.set));
    Value::Object(map)
}

/// What nobody manages: identity, and what the server keeps by itself.
pub(super) fn stripped() -> FieldSet {
    FieldSet::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
}
