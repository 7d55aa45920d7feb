//! The `scale` subresource: one number, seen alike on every kind that has replicas.

use http::Response;
use kedge_schema::field::{FieldError, Path as FieldPath};
use kedge_schema::selector::LabelSelector;
use serde_json::{Value, json};

use super::save::{self, Failure, Ownership, Part};
use super::update::{ATTEMPTS_MAX, STALE};
use super::{Call, decode, encode, operations};
use crate::body::Body;
use crate::error::ApiError;
use crate::negotiate;
use crate::object;
use crate::request::Verb;

pub(super) async fn dispatch(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    match call.verb {
        Verb::Get => encode(200, call.answer.format, &view(&call, &call.decode(&*call.stored()?))),
        Verb::Update => {
            let scale = decode::object_of(&call, "autoscaling", "v1", "Scale")?;
            change(&call, |_| Ok(scale.clone())).await
        }
        Verb::Patch => {
            let patch = decode::raw_json(&call.incoming.body)?;
            let dialect = negotiate::content_type(&call.incoming.headers);
            let fit = |scale| decode::fit(&call, scale, Vec::new(), "autoscaling", "v1", "Scale");
            change(&call, |current| patched(dialect, current, &patch).and_then(fit)).await
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// A Scale is small and flat: a strategic merge is a merge.
fn patched(dialect: &str, current: Value, patch: &Value) -> Result<Value, ApiError> {
    let mut scale = current;
    match dialect {
        "application/json-patch+json" => {
            operations::apply(&mut scale, &operations::parse(patch.clone())?)?;
        }
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            json_patch::merge(&mut scale, patch)
        }
        _ => {
            return Err(ApiError::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ]));
        }
    }
    Ok(scale)
}

async fn change(
    call: &Call<'_>,
    wanted: impl Fn(Value) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored()?;
        let old = call.decode(&entry);
        let scale = wanted(view(call, &old))?;
        let asked = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !asked.is_empty() && asked != entry.revision.to_string() {
            return Err(call.conflict(STALE));
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let path = FieldPath::new("spec").child("replicas");
            let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", "Scale", &call.path.name, &[error]));
        }
        let mut new = old.clone();
        match call.kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
            Some(paths) => paths.spec_replicas.set(&mut new, replicas.into()),
            None => drop(object::child(&mut new, "spec").insert("replicas".into(), replicas.into())),
        }
        match save::replace(call, &entry, &old, new, Part::Other("scale"), Ownership::Updated).await {
            Ok(save::Saved::Stored(entry)) => {
                return encode(200, call.answer.format, &view(call, &call.decode(&entry)));
            }
            Ok(save::Saved::Shown(value)) => return encode(200, call.answer.format, &view(call, &value)),
            // A revision that the client asked for differs the next time; one that came from the view moves along.
            Err(Failure::Changed) => {}
            Err(Failure::Refused(error)) => return Err(error),
        }
    }
    Err(call.conflict(STALE))
}

/// An object as its Scale.
fn view(call: &Call<'_>, object: &Value) -> Value {
    let mut metadata = json!({ "name": object::name(object) });
    for key in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    let count = |value: Option<&Value>| value.and_then(Value::as_i64).unwrap_or(0);
    let (wanted, found, selector) = match call.kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(paths) => (
            count(paths.spec_replicas.find(object)),
            count(paths.status_replicas.find(object)),
            paths.label_selector.as_ref().and_then(|path| path.find(object)?.as_str().map(str::to_owned)),
        ),
        None => {
            (count(object["spec"].get("replicas")), count(object["status"].get("replicas")), selector(call, object))
        }
    };
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": wanted }, "status": { "replicas": found },
    });
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// The selector of a built-in kind as text; ReplicationControllers have a plain map.
fn selector(call: &Call<'_>, object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    if &*call.kind.resource.kind == "ReplicationController" {
        let pairs = selector.as_object()?.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
        return Some(pairs.collect::<Vec<_>>().join(","));
    }
    LabelSelector::from_object(Some(selector)).ok().map(|selector| selector.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, open, patch};

    #[tokio::test]
    async fn a_patched_scale_is_a_scale() {
        let api = open().await;
        let pod = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        let deployment = json!({ "metadata": { "name": "d" },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "a": "b" } }, "template": pod } });
        let made = ask(&api, "POST /apis/apps/v1/namespaces/default/deployments", deployment).await;
        assert_eq!(made.0, 201, "{}", made.1);
        let target = "/apis/apps/v1/namespaces/default/deployments/d";
        let cases = [
            ("merge-patch+json", r#"{"spec":{"replicas":"5"}}"#, 400, 2),
            ("merge-patch+json", r#"{"spec":{"replicas":1.5}}"#, 400, 2),
            ("merge-patch+json", r#"{"spec":[5]}"#, 400, 2),
            ("merge-patch+json", "[1]", 400, 2),
            ("merge-patch+json", r#"{"kind":"Deployment"}"#, 400, 2),
            ("merge-patch+json", r#"{"metadata":{"namespace":"other"}}"#, 400, 2),
            ("merge-patch+json", r#"{"spec":{"replicas":-1}}"#, 422, 2),
            ("strategic-merge-patch+json", r#"{"spec":{"replicas":true}}"#, 400, 2),
            ("json-patch+json", r#"[{"op":"replace","path":"/spec/replicas","value":"5"}]"#, 400, 2),
            ("json-patch+json", r#"[{"op":"replace","path":"/spec/replicas","value":5}]"#, 200, 5),
            ("merge-patch+json", r#"{"spec":{"replicas":3}}"#, 200, 3),
            ("merge-patch+json", r#"{"spec":{"replicas":null}}"#, 200, 0),
        ];
        for (dialect, body, code, replicas) in cases {
            let answer = patch(&api, &format!("{target}/scale"), dialect, body).await;
            assert_eq!(answer.0, code, "{body}: {}", answer.1);
            let found = ask(&api, &format!("GET {target}"), Value::Null).await.1;
            assert_eq!(found["spec"]["replicas"], replicas, "{body}");
        }
    }
}
