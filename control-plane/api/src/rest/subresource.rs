//! Parts of objects that have a URL of their own: one line each.

use http::Response;
use kedge_store::Expect;
use serde_json::{Value, json};

use super::save::{self, Failure, Ownership, Part, success};
use super::update::{ATTEMPTS_MAX, STALE};
use super::{Call, decode, encode, patch, scale, update};
use crate::api::json_response;
use crate::body::Body;
use crate::error::ApiError;
use crate::object;
use crate::request::{ResourcePath, Verb};

pub(super) async fn dispatch(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let subresource = &*call.path.subresource;
    let offered = call.kind.subresource(subresource).ok_or_else(ApiError::no_such_path)?;
    if !offered.verbs.iter().any(|verb| &**verb == call.verb.as_str()) {
        let what = format!("{}/{subresource}", call.path.resource);
        return Err(ApiError::method_not_supported(&call.path.group, &what, call.incoming.method.as_str()));
    }
    match (subresource, call.verb) {
        ("log" | "exec" | "attach" | "portforward", Verb::Get | Verb::Create) if &*call.path.resource == "pods" => {
            crate::connect::connect(call).await
        }
        ("status", Verb::Get) => call.render_entry(200, &*call.stored()?),
        ("status", Verb::Update) => update::update(call, Part::Status).await,
        ("status", Verb::Patch) => patch::patch(call, Part::Status).await,
        ("scale", _) => scale::dispatch(call).await,
        ("finalize", Verb::Update) => finalize(call).await,
        ("binding", Verb::Create) => {
            let binding = decode::object_of(&call, "", "v1", "Binding")?;
            bind(call, binding).await
        }
        ("eviction", Verb::Create) => crate::eviction::evict(call).await,
        ("token", Verb::Create) => crate::token::request(call),
        ("approval", Verb::Get) => call.render_entry(200, &*call.stored()?),
        ("approval", Verb::Update) => update::update(call, Part::Other("approval")).await,
        ("approval", Verb::Patch) => patch::patch(call, Part::Other("approval")).await,
        ("ephemeralcontainers" | "resize", Verb::Get) => call.render_entry(200, &*call.stored()?),
        _ => Err(ApiError::method_not_supported(
            &call.path.group,
            &format!("{}/{subresource}", call.path.resource),
            call.incoming.method.as_str(),
        )),
    }
}

/// `namespaces/finalize`: the one way to take finalizers off a namespace's spec; the last one ends it.
async fn finalize(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let wanted = decode::body(&call, call.kind)?.value;
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored()?;
        let old = call.decode(&entry);
        update::check_identity(&call, &wanted, &old, entry.revision)?;
        let mut new = old.clone();
        object::child(&mut new, "spec").insert("finalizers".into(), wanted["spec"]["finalizers"].clone());
        if new["spec"]["finalizers"].is_null() {
            object::child(&mut new, "spec").remove("finalizers");
        }
        match save::replace(&call, &entry, &old, new, Part::Other("finalize"), Ownership::Updated).await {
            Ok(saved) => return super::create::render(&call, 200, &saved),
            Err(Failure::Changed) => {}
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(STALE))
}

/// `bindings`: the old way to `pods/binding`, with the pod's name in the object (`LegacyBindingREST`).
pub(super) async fn bind_named(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let binding = decode::object_of(&call, "", "v1", "Binding")?;
    let name = object::name(&binding);
    if name.is_empty() {
        return Err(ApiError::bad_request("Name parameter required."));
    }
    let kind = call.registry.find("", "v1", "pods").ok_or_else(ApiError::no_such_path)?;
    let (resource, subresource) = ("pods".to_owned(), "binding".to_owned());
    let path = ResourcePath { resource, name: name.to_owned(), subresource, ..call.path.clone() };
    bind(Call { kind, path: &path, ..call }, binding).await
}

/// `pods/binding`: sets the node once, and says that the pod is scheduled (`pkg/registry/core/pod/storage`).
async fn bind(call: Call<'_>, binding: Value) -> Result<Response<Body>, ApiError> {
    if object::name(&binding) != call.path.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() || !matches!(binding["target"]["kind"].as_str(), None | Some("" | "Node")) {
        let path = kedge_schema::field::Path::new("target").child("name");
        let error = kedge_schema::field::FieldError::required(&path, "a binding names a Node");
        return Err(ApiError::invalid("", "Binding", &call.path.name, &[error]));
    }
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored()?;
        let old = call.decode(&entry);
        check_binding(&call, &binding, &old, node)?;
        let mut new = old.clone();
        object::child(&mut new, "spec").insert("nodeName".into(), node.into());
        let annotations = binding["metadata"]["annotations"].as_object().into_iter().flatten();
        for (key, value) in annotations {
            object::as_map(object::metadata_mut(&mut new).entry("annotations").or_insert_with(|| json!({})))
                .insert(key.clone(), value.clone());
        }
        scheduled(&mut new, &save::timestamp(call.now));
        if call.dry_run()? {
            return encode(201, call.answer.format, &success(Value::Null));
        }
        match save::write(&call, &new, Expect::Revision(entry.revision)).await.map_err(save::failure(&call)) {
            Ok(_) => {
                return Ok(json_response(
                    201,
                    &json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
                    }),
                ));
            }
            Err(Failure::Changed) => {}
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(STALE))
}

fn check_binding(call: &Call<'_>, binding: &Value, pod: &Value, node: &str) -> Result<(), ApiError> {
    let uid = object::uid(binding);
    if !uid.is_empty() && uid != object::uid(pod) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object::uid(pod));
        return Err(call.conflict(&why));
    }
    if object::is_deleting(pod) {
        return Err(call.conflict(&format!("pod {} is being deleted, cannot be assigned to a host", call.path.name)));
    }
    match pod["spec"]["nodeName"].as_str() {
        None | Some("") => {}
        Some(there) if there == node => {
            return Err(call.conflict(&format!("pod {} is already assigned to node \"{there}\"", call.path.name)));
        }
        Some(there) => {
            return Err(call.conflict(&format!("pod {} is already assigned to node \"{there}\"", call.path.name)));
        }
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(call.conflict(&format!("pod {} has non-empty .spec.schedulingGates", call.path.name)));
    }
    Ok(())
}

/// Sets the PodScheduled condition to true.
fn scheduled(pod: &mut Value, now: &str) {
    let condition =
        json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now });
    let conditions = object::child(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(existing) => *existing = condition,
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, open};

    #[tokio::test]
    async fn what_is_posted_names_the_pod_of_its_url() {
        let api = open().await;
        assert_eq!(
            ask(&api, "POST /api/v1/namespaces/default/serviceaccounts", json!({ "metadata": { "name": "s" } }))
                .await
                .0,
            201
        );
        let pods = "/api/v1/namespaces/default/pods";
        for name in ["p", "q"] {
            let pod = json!({ "metadata": { "name": name },
                "spec": { "serviceAccountName": "s", "containers": [{ "name": "c", "image": "i" }] } });
            assert_eq!(ask(&api, &format!("POST {pods}"), pod).await.0, 201);
        }
        let binding = |name: &str| json!({ "metadata": { "name": name }, "target": { "kind": "Node", "name": "n" } });
        let cases = [
            (format!("{pods}/p/binding"), binding("q"), 400),
            (format!("{pods}/p/binding"), binding(""), 400),
            (format!("{pods}/p/eviction"), json!({ "metadata": { "name": "q" } }), 400),
            ("/api/v1/namespaces/default/bindings".to_owned(), binding(""), 400),
            (format!("{pods}/p/binding"), binding("p"), 201),
            ("/api/v1/namespaces/default/bindings".to_owned(), binding("q"), 201),
            (format!("{pods}/p/eviction"), json!({ "metadata": { "name": "p" } }), 201),
        ];
        for (path, body, code) in cases {
            let answer = ask(&api, &format!("POST {path}"), body.clone()).await;
            assert_eq!(answer.0, code, "{path} {body}: {}", answer.1);
        }
    }
}
