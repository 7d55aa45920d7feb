//! What the server says about itself: `/api`, `/apis`, versions, health, OpenAPI.
//!
//! Discovery comes in two forms: one document per group version (v1), and everything at once (aggregated, KEP-3352).

use http::Response;
use serde_json::{Value, json};

use crate::api::{Api, Incoming, bytes_response, json_response};
use crate::body::Body;
use crate::error::ApiError;
use crate::health;
use crate::openapi;
use crate::openid;
use crate::registry::{Kind, Registry};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers paths that name no resource.
pub(crate) fn serve(api: &Api, incoming: &Incoming) -> Result<Response<Body>, ApiError> {
    if incoming.method != http::Method::GET && incoming.method != http::Method::HEAD {
        return Err(ApiError::method_not_supported("", "", incoming.method.as_str()));
    }
    let registry = api.registry();
    let parts: Vec<&str> = incoming.path.trim_matches('/').split('/').collect();
    let aggregated = wants_aggregated(incoming);
    match parts[..] {
        ["api"] if aggregated => Ok(aggregate(&registry, true)),
        ["apis"] if aggregated => Ok(aggregate(&registry, false)),
        ["api"] => Ok(json_response(
            200,
            &json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }],
            }),
        )),
        ["apis"] => Ok(json_response(200, &groups(&registry))),
        ["apis", group] => group_document(&registry, group).map(|value| json_response(200, &value)),
        ["api", version] => resources(&registry, "", version),
        ["apis", group, version] => resources(&registry, group, version),
        ["version"] => Ok(json_response(200, &version(&api.settings().git_version))),
        [path @ ("healthz" | "livez" | "readyz"), ref rest @ ..] => health::check(api, incoming, path, rest),
        ["metrics"] => Ok(health::metrics(api)),
        [".well-known", "openid-configuration"] => openid::configuration(api),
        ["openid", "v1", "jwks"] => openid::keys(api),
        ["openapi", ..] => openapi::serve(api, incoming, &parts),
        [""] => Ok(json_response(200, &json!({ "paths": paths(&registry) }))),
        _ => Err(ApiError::no_such_path()),
    }
}

fn wants_aggregated(incoming: &Incoming) -> bool {
    let accept = incoming.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|clause| {
        let has = |part: &str| clause.split(';').any(|p| p.trim() == part);
        has("application/json") && has("as=APIGroupDiscoveryList") && has("v=v2") && has("g=apidiscovery.k8s.io")
    })
}

fn version(git: &str) -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": git, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none (rust)", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}

fn paths(registry: &Registry) -> Vec<String> {
    let mut paths =
        vec!["/.well-known/openid-configuration".to_owned(), "/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in registry.groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
            .map(String::from),
    );
    paths
}

fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry.groups().iter().map(|(group, versions)| group_value(group, versions)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let of = |version: &String| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({
        "name": group,
        "versions": versions.iter().map(of).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(of),
    })
}

fn group_document(registry: &Registry, group: &str) -> Result<Value, ApiError> {
    let groups = registry.groups();
    let (_, versions) = groups.iter().find(|(name, _)| name == group).ok_or_else(ApiError::no_such_path)?;
    let mut value = group_value(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(value)
}

fn kinds_of<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
    let of = move |kind: &&'a Kind| &*kind.resource.group == group && &*kind.resource.version == version;
    registry.all().map(|kind| &**kind).filter(of)
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let mut list = Vec::new();
    for kind in kinds_of(registry, group, version) {
        list.extend(resource_values(kind));
    }
    if list.is_empty() {
        return Err(ApiError::no_such_path());
    }
    Ok(json_response(
        200,
        &json!({
            "kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": crate::registry::api_version(group, version), "resources": list,
        }),
    ))
}

fn resource_values(kind: &Kind) -> Vec<Value> {
    let r = &kind.resource;
    let mut main = json!({
        "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs,
    });
    for (key, list) in [("shortNames", &r.short_names), ("categories", &r.categories)] {
        if !list.is_empty() {
            main[key] = json!(list);
        }
    }
    let mut out = vec![main];
    for sub in &r.subresources {
        let mut value = json!({
            "name": format!("{}/{}", r.plural, sub.name), "singularName": "", "namespaced": r.namespaced,
            "kind": sub.kind, "verbs": sub.verbs,
        });
        if (&sub.group, &sub.version) != (&r.group, &r.version) {
            value["group"] = json!(sub.group);
            value["version"] = json!(sub.version);
        }
        out.push(value);
    }
    out
}

fn aggregate(registry: &Registry, core: bool) -> Response<Body> {
    let groups = if core { vec![(String::new(), vec!["v1".to_owned()])] } else { registry.groups() };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = kinds_of(registry, group, version).map(aggregated_resource).collect();
                    json!({ "version": version, "freshness": "Current", "resources": resources })
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    bytes_response(200, AGGREGATED, serde_json::to_vec(&list).expect("JSON values always encode"))
}

fn aggregated_resource(kind: &Kind) -> Value {
    let r = &kind.resource;
    let response = |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let mut value = json!({
        "resource": r.plural, "responseKind": response(&r.group, &r.version, &r.kind),
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular, "verbs": r.verbs,
    });
    for (key, list) in [("shortNames", &r.short_names), ("categories", &r.categories)] {
        if !list.is_empty() {
            value[key] = json!(list);
        }
    }
    if !r.subresources.is_empty() {
        let subs = r.subresources.iter().map(|sub| json!({
            "subresource": sub.name, "responseKind": response(&sub.group, &sub.version, &sub.kind), "verbs": sub.verbs,
        }));
        value["subresources"] = subs.collect();
    }
    value
}
