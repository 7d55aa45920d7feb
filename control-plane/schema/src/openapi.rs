//! OpenAPI documents of what is served: one v3 document per group version, and one v2 document of everything,
//! as JSON or in the gnostic protobuf form that older clients ask for.
//!
//! Built-in types are rendered from the facts table, custom resources from their own schema, both on the same
//! paths. What kubectl relies on must always hold: definition names, `x-kubernetes-group-version-kind`, list types,
//! merge keys, and the query parameters of each operation. Documents are values made when asked for; whoever serves
//! them keeps the bytes. Not here: the index of `/openapi/v3`, hashes, caching, and the texts of descriptions, which
//! the caller may pass in.

mod custom;
mod definitions;
mod gnostic;
mod operation;
mod paths;
#[cfg(test)]
mod tests;

use serde_json::{Map as Object, Value, json};

use crate::facts::Facts;
use definitions::Definitions;
use operation::PathItem;
use paths::Served;

pub use custom::CrdDocument;
pub use gnostic::{GnosticError, gnostic_v2};

/// Finds a description: of a definition by its name and `""`, or of one of its fields.
pub type Describe<'a> = dyn Fn(&str, &str) -> Option<String> + 'a;

/// No descriptions.
pub fn undescribed(_definition: &str, _field: &str) -> Option<String> {
    None
}

/// The two forms of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

/// The version that documents give for the API as a whole.
const TITLE: &str = "Kubernetes";

/// The OpenAPI v3 document of one group version, custom resources of that group version included; none where
/// nothing is served there.
pub fn document_v3(
    facts: &Facts,
    group: &str,
    version: &str,
    custom: &[CrdDocument],
    describe: &Describe<'_>,
) -> Option<Value> {
    let mut served: Vec<Served<'_>> = Vec::new();
    served.extend(facts.resources.iter().filter(|known| known.is_of(group, version)).map(Served::Builtin));
    served.extend(custom.iter().filter(|crd| crd.group == group && crd.version == version).map(Served::Custom));
    if served.is_empty() {
        return None;
    }
    let mut items = vec![paths::resource_list(group, version)];
    for resource in &served {
        items.extend(paths::of(facts, *resource));
    }
    Some(whole_v3(facts, &items, &served, &[(group, version)], describe))
}

/// The OpenAPI v3 document of a path that is outside any group version: `api`, `apis`, `apis/GROUP`, `version`, and
/// those of the issuer of service account tokens. None for any other path.
pub fn document_v3_of_path(facts: &Facts, path: &str, describe: &Describe<'_>) -> Option<Value> {
    let root = paths::roots().into_iter().find(|root| root.path.trim_matches('/') == path);
    let item = match (root, path.split_once('/')) {
        (Some(root), _) => root,
        (None, Some(("apis", group))) if !group.contains('/') => paths::group(group),
        (None, _) => return None,
    };
    Some(whole_v3(facts, &[item], &[], &[], describe))
}

/// The OpenAPI v2 document of everything that is served.
pub fn document_v2(facts: &Facts, custom: &[CrdDocument], release: &str, describe: &Describe<'_>) -> Value {
    let mut versions: Vec<(&str, &str)> = facts.group_versions();
    for crd in custom {
        if !versions.contains(&(&crd.group, &crd.version)) {
            versions.push((&crd.group, &crd.version));
        }
    }
    let mut items = paths::roots();
    let mut groups: Vec<&str> = versions.iter().map(|(group, _)| *group).filter(|group| !group.is_empty()).collect();
    groups.sort_unstable();
    groups.dedup();
    items.extend(groups.into_iter().map(paths::group));
    items.extend(versions.iter().map(|(group, version)| paths::resource_list(group, version)));
    let served: Vec<Served<'_>> =
        facts.resources.iter().map(Served::Builtin).chain(custom.iter().map(Served::Custom)).collect();
    for resource in &served {
        items.extend(paths::of(facts, *resource));
    }
    let mut definitions = Definitions::new(facts, Form::V2, &versions, describe);
    let paths = render_paths(&items, &mut definitions);
    render_custom(&served, &mut definitions);
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": release},
        "paths": paths,
        "definitions": definitions.finish(),
        "securityDefinitions": bearer_token(),
        "security": [{"BearerToken": []}],
    })
}

fn whole_v3(
    facts: &Facts,
    items: &[PathItem],
    served: &[Served<'_>],
    versions: &[(&str, &str)],
    describe: &Describe<'_>,
) -> Value {
    let mut definitions = Definitions::new(facts, Form::V3, versions, describe);
    let paths = render_paths(items, &mut definitions);
    render_custom(served, &mut definitions);
    let mut document = json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": "unversioned"},
        "paths": paths,
        "components": {"securitySchemes": bearer_token()},
    });
    let schemas = definitions.finish();
    if schemas.as_object().is_none_or(|schemas| !schemas.is_empty()) {
        document["components"]["schemas"] = schemas;
    }
    document
}

fn render_paths(items: &[PathItem], definitions: &mut Definitions<'_>) -> Value {
    let paths: Object<String, Value> = items.iter().map(|item| (item.path.clone(), item.render(definitions))).collect();
    Value::Object(paths)
}

fn render_custom(served: &[Served<'_>], definitions: &mut Definitions<'_>) {
    for resource in served {
        if let Served::Custom(crd) = resource {
            custom::define(crd, definitions);
        }
    }
}

fn bearer_token() -> Value {
    json!({"BearerToken": {
        "type": "apiKey", "in": "header", "name": "authorization",
        "description": "A bearer token",
    }})
}
