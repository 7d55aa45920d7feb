//! CustomResourceDefinition: checked in full when it is written, and in force from that moment.
//! (`apiextensions-apiserver/pkg/apis/apiextensions/validation`, `pkg/registry/customresourcedefinition`.)
//!
//! Upstream accepts names and establishes the kind in controllers; here the registry follows the stored definitions
//! at once, so the conditions are true as soon as they are written.

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::crd::CustomSchema;
use kedge_schema::facts;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::{Column, Rules};
use crate::jsonpath;
use crate::object;

/// Holds a definition until no object of its kind is left.
const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub(super) struct Definition;

impl Rules for Definition {
    fn default(&self, definition: &mut Value) {
        let spec = &mut definition["spec"];
        if !spec.is_object() {
            return;
        }
        let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
        if let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) {
            object::default(names, "singular", kind.to_lowercase());
            object::default(names, "listKind", format!("{kind}List"));
        }
        object::default(spec, "conversion", json!({ "strategy": "None" }));
    }

    fn prepare_create(&self, definition: &mut Value) {
        object::as_map(definition).insert("status".into(), json!({}));
        self.default(definition);
        accept(definition);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        object::carry_over(new, old, "status");
        self.default(new);
        accept(new);
    }

    fn validate(&self, definition: &Value) -> Vec<FieldError> {
        let spec = &definition["spec"];
        let path = Path::new("spec");
        let mut errors = Vec::new();
        let names = &spec["names"];
        let wanted =
            format!("{}.{}", names["plural"].as_str().unwrap_or_default(), spec["group"].as_str().unwrap_or_default());
        if object::name(definition) != wanted {
            let path = Path::new("metadata").child("name");
            errors.push(FieldError::invalid(
                &path,
                object::name(definition),
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        if !matches!(spec["scope"].as_str(), Some("Cluster" | "Namespaced")) {
            errors.push(FieldError::not_supported(
                &path.child("scope"),
                spec["scope"].clone(),
                &["Cluster", "Namespaced"],
            ));
        }
        if spec["conversion"]["strategy"] != "None" {
            let why = "only None is supported: conversion webhooks are not served yet";
            errors.push(FieldError::invalid(
                &path.child("conversion").child("strategy"),
                spec["conversion"]["strategy"].clone(),
                why,
            ));
        }
        let stored = object::items(spec, "versions").filter(|version| version["storage"] == true).count();
        if stored != 1 {
            let why = "must have exactly one version marked as storage version";
            errors.push(FieldError::invalid(&path.child("versions"), spec["versions"].clone(), why));
        }
        for (index, version) in object::items(spec, "versions").enumerate() {
            check_version(version, &path.child("versions").index(index), &mut errors);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        for (keys, path) in [
            (["group", ""], path.child("group")),
            (["scope", ""], path.child("scope")),
            (["names", "plural"], path.child("names").child("plural")),
            (["names", "kind"], path.child("names").child("kind")),
        ] {
            let at = |value: &Value| {
                if keys[1].is_empty() {
                    value["spec"][keys[0]].clone()
                } else {
                    value["spec"][keys[0]][keys[1]].clone()
                }
            };
            if at(new) != at(old) {
                errors.push(FieldError::invalid(&path, at(new), "field is immutable"));
            }
        }
        for version in object::items(&new["status"], "storedVersions") {
            if !object::items(&new["spec"], "versions").any(|v| v["name"] == *version) {
                let why = format!("must appear in spec.versions: {version} is still stored");
                errors.push(FieldError::invalid(
                    &Path::new("status").child("storedVersions").index(0),
                    version.clone(),
                    why,
                ));
            }
        }
        errors
    }

    fn warnings(&self, definition: &Value) -> Vec<String> {
        let mut out = Vec::new();
        for (index, version) in object::items(&definition["spec"], "versions").enumerate() {
            let path = schema_path(&Path::new("spec").child("versions").index(index));
            if let Ok(schema) = CustomSchema::new(facts::builtin(), version["schema"]["openAPIV3Schema"].clone(), &path)
            {
                out.extend(schema.unenforced().iter().map(|u| format!("{}: not enforced yet: {}", u.path, u.what)));
            }
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// The objects go before the kind does: a controller deletes them and takes the finalizer off.
    /// (`pkg/registry/customresourcedefinition/etcd.go`, Delete.)
    fn begin_delete(&self, definition: &mut Value) {
        let began =
            object::items(&definition["status"], "conditions").any(|condition| condition["type"] == "Terminating");
        if began {
            return;
        }
        let since = definition["metadata"]["deletionTimestamp"].clone();
        let list = |map: &mut serde_json::Map<String, Value>, key: &str, item: Value| {
            let list = map.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut().filter(|list| !list.contains(&item)) {
                list.push(item);
            }
        };
        list(object::metadata_mut(definition), "finalizers", CLEANUP_FINALIZER.into());
        let condition = json!({ "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            "lastTransitionTime": since });
        list(object::child(definition, "status"), "conditions", condition);
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[Column::text("Created At")];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, definition: &Value, _now: Timestamp) -> Vec<Value> {
        vec![definition["metadata"]["creationTimestamp"].clone()]
    }
}

fn schema_path(version: &Path) -> Path {
    version.child("schema").child("openAPIV3Schema")
}

fn check_version(version: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let schema = &version["schema"]["openAPIV3Schema"];
    if schema.is_null() {
        errors.push(FieldError::required(&schema_path(path), "schemas are required"));
    } else if let Err(found) = CustomSchema::new(facts::builtin(), schema.clone(), &schema_path(path)) {
        errors.extend(found);
    }
    for (index, column) in object::items(version, "additionalPrinterColumns").enumerate() {
        check_path(column, "jsonPath", &path.child("additionalPrinterColumns").index(index), errors);
    }
    let scale = &version["subresources"]["scale"];
    if scale.is_object() {
        for key in ["specReplicasPath", "statusReplicasPath", "labelSelectorPath"] {
            check_path(scale, key, &path.child("subresources").child("scale"), errors);
        }
    }
}

fn check_path(holder: &Value, key: &str, path: &Path, errors: &mut Vec<FieldError>) {
    match holder[key].as_str() {
        Some(text) => {
            if let Err(why) = jsonpath::Path::parse(text) {
                errors.push(FieldError::invalid(&path.child(key), text, why));
            }
        }
        None if key == "labelSelectorPath" => {}
        None => errors.push(FieldError::required(&path.child(key), "")),
    }
}

/// Accepts the names, notes what is stored, and says that the kind is in force.
fn accept(definition: &mut Value) {
    let names = definition["spec"]["names"].clone();
    let since = definition["metadata"]["creationTimestamp"].clone();
    let stored = object::items(&definition["spec"], "versions").find(|version| version["storage"] == true);
    let stored = stored.map(|version| version["name"].clone()).unwrap_or_default();
    let status = &mut definition["status"];
    if !status.is_object() {
        *status = json!({});
    }
    status["acceptedNames"] = names;
    let mut versions: Vec<Value> = status["storedVersions"].as_array().cloned().unwrap_or_default();
    if !versions.contains(&stored) {
        versions.push(stored);
    }
    status["storedVersions"] = versions.into();
    if !status["conditions"].is_array() {
        let condition = |kind: &str, reason: &str, message: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since });
        status["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
}
