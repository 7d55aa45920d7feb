//! Custom resources: from CustomResourceDefinitions to kinds like any other.
//! (`apiextensions-apiserver/pkg/apiserver/customresource_handler.go`.)

use std::borrow::Cow;
use std::sync::Arc;

use kedge_schema::crd::CustomSchema;
use kedge_schema::facts;
use kedge_schema::field::Path as FieldPath;
use kedge_schema::openapi::CrdDocument;
use kedge_schema::shape::{Resource, Subresource};
use kedge_store::{ResourceId, Store};
use serde_json::{Value, json};

use crate::jsonpath::Path;
use crate::kinds::{Column, Custom};
use crate::object;
use crate::registry::{CustomKind, Kind, Registry, RulesRef, ScalePaths, SchemaRef, api_version};

/// What can be done with every custom resource.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The registry with every established custom kind.
pub(crate) fn with_custom_kinds(mut registry: Registry, store: &Store, definitions: &ResourceId) -> Registry {
    let page =
        store.list(definitions, None, None, None, usize::MAX, |_| true).expect("the newest revision is never gone");
    for entry in &page.entries {
        let definition = object::decode(&entry.bytes);
        if !has_condition(&definition, "Established") {
            continue;
        }
        for version in served(&definition) {
            // What could be stored was checked when it was; a definition that cannot be read serves nothing.
            if let Some(kind) = kind(&definition, version, entry.revision) {
                registry.insert(kind);
            }
        }
    }
    registry
}

fn has_condition(definition: &Value, kind: &str) -> bool {
    object::items(&definition["status"], "conditions").any(|c| c["type"] == kind && c["status"] == "True")
}

/// While a definition is being deleted the stored version is served in any case: what is there has to go through it.
fn served(definition: &Value) -> impl Iterator<Item = &Value> {
    let terminating = has_condition(definition, "Terminating");
    object::items(&definition["spec"], "versions")
        .filter(move |version| version["served"] == true || terminating && version["storage"] == true)
}

fn texts(list: &Value) -> Vec<Box<str>> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(Box::from).collect()
}

fn kind(definition: &Value, version: &Value, revision: u64) -> Option<Kind> {
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let group = spec["group"].as_str()?;
    let name = version["name"].as_str()?;
    let raw = version["schema"]["openAPIV3Schema"].clone();
    let raw =
        if raw.is_null() { json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }) } else { raw };
    let schema = CustomSchema::new(facts::builtin(), raw, &FieldPath::root()).ok()?;
    let status = version["subresources"].get("status").is_some();
    let scale = &version["subresources"]["scale"];
    let mut subresources = Vec::new();
    let mut offer = |name: &str, group: &str, version: &str, kind: &str| {
        let verbs = ["get", "patch", "update"].map(Box::from).to_vec();
        subresources.push(Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs,
        });
    };
    if scale.is_object() {
        offer("scale", "autoscaling", "v1", "Scale");
    }
    if status {
        offer("status", group, name, names["kind"].as_str()?);
    }
    let plural = names["plural"].as_str()?;
    let resource = Resource {
        group: group.into(),
        version: name.into(),
        kind: names["kind"].as_str()?.into(),
        plural: plural.into(),
        singular: names["singular"].as_str().unwrap_or_default().into(),
        namespaced: spec["scope"] == "Namespaced",
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        verbs: VERBS.map(Box::from).to_vec(),
        subresources,
        schema: schema.root(),
    };
    let stored = object::items(spec, "versions").find(|version| version["storage"] == true)?["name"].as_str()?;
    Some(Kind {
        resource,
        schema: SchemaRef::Custom(Arc::new(schema)),
        collection: ResourceId::new(group, plural),
        stored_as: api_version(group, stored),
        rules: RulesRef::Shared(Arc::new(Custom {
            status,
            columns: columns(version),
            selectable: selectable(version),
        })),
        custom: Some(Arc::new(CustomKind {
            revision,
            list_kind: names["listKind"].as_str()?.to_owned(),
            terminating: has_condition(definition, "Terminating"),
            scale: scale_paths(scale),
        })),
    })
}

fn columns(version: &Value) -> Vec<(Column, Path)> {
    let read = |column: &Value| {
        let text = |key: &str| Some(Cow::Owned(column[key].as_str()?.to_owned()));
        let path = Path::parse(column["jsonPath"].as_str()?).ok()?;
        Some((
            Column {
                name: text("name")?,
                kind: text("type")?,
                priority: column["priority"].as_i64().unwrap_or(0) as i32,
            },
            path,
        ))
    };
    object::items(version, "additionalPrinterColumns").filter_map(read).collect()
}

fn selectable(version: &Value) -> Vec<(Cow<'static, str>, &'static str)> {
    let path = |field: &Value| Some(field["jsonPath"].as_str()?.trim_start_matches('.').to_owned());
    object::items(version, "selectableFields").filter_map(path).map(|path| (Cow::Owned(path), "")).collect()
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    let path = |key: &str| Path::parse(scale[key].as_str()?).ok();
    Some(ScalePaths {
        spec_replicas: path("specReplicasPath")?,
        status_replicas: path("statusReplicasPath")?,
        label_selector: path("labelSelectorPath"),
    })
}

/// Custom kinds as OpenAPI publishes them.
pub(crate) fn documents(registry: &Registry) -> Vec<CrdDocument> {
    let custom = registry.all().filter_map(|kind| match &kind.schema {
        SchemaRef::Custom(schema) => Some((kind, schema)),
        SchemaRef::Builtin(_) => None,
    });
    custom
        .map(|(kind, schema)| CrdDocument {
            group: kind.resource.group.to_string(),
            version: kind.resource.version.to_string(),
            kind: kind.resource.kind.to_string(),
            list_kind: kind.list_kind(),
            plural: kind.resource.plural.to_string(),
            namespaced: kind.resource.namespaced,
            status: kind.subresource("status").is_some(),
            scale: kind.subresource("scale").is_some(),
            selectable_fields: kind.rules.get().selectable().iter().map(|(path, _)| format!(".{path}")).collect(),
            schema: schema.raw().clone(),
        })
        .collect()
}
