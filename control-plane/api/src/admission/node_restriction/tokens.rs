//! Tokens that nodes ask for: for a pod bound to them, and for an audience that the pod has a use for (KEP-4412).

use kedge_access::{Attributes, ephemeral_claim};
use kedge_store::{ObjectKey, ResourceId};
use serde_json::Value;

use crate::error::ApiError;
use crate::object;
use crate::rest::Call;

/// A stored object.
pub(super) fn stored(call: &Call<'_>, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
    let entry = call.api.store().get(&ResourceId::new(group, plural), &ObjectKey::new(namespace, name))?;
    Some(object::decode(&entry.bytes))
}

/// What is wrong with a TokenRequest of `node`.
pub(super) fn request(call: &Call<'_>, node: &str, request: &Value) -> Result<Option<String>, ApiError> {
    let reference = &request["spec"]["boundObjectRef"];
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Ok(Some("node requested token not bound to a pod".into()));
    }
    if text("uid").is_empty() {
        return Ok(Some("node requested token with a pod binding without a uid".into()));
    }
    let pod = stored(call, "", "pods", &call.path.namespace, text("name"));
    let pod = pod.ok_or_else(|| ApiError::not_found("", "pods", text("name")))?;
    if text("uid") != object::uid(&pod) {
        let why = "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated";
        return Ok(Some(why.replace("{uid}", text("uid"))));
    }
    if pod["spec"]["nodeName"] != node {
        return Ok(Some("node requested token bound to a pod scheduled on a different node".into()));
    }
    Ok(audience(call, &pod, &request["spec"]["audiences"]))
}

fn audience(call: &Call<'_>, pod: &Value, wanted: &Value) -> Option<String> {
    let wanted: Vec<&str> = wanted.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let wanted = match wanted[..] {
        [] => "",
        [one] => one,
        _ => return Some("node may only request 0 or 1 audiences".into()),
    };
    let driver = |volume: &Value| driver(call, pod, volume);
    let audiences = |driver: &str| match stored(call, "storage.k8s.io", "csidrivers", "", driver) {
        Some(driver) => object::items(&driver["spec"], "tokenRequests").any(|r| text(&r["audience"]) == wanted),
        None => false,
    };
    if names_audience(pod, wanted) || object::items(&pod["spec"], "volumes").filter_map(driver).any(|d| audiences(&d)) {
        return None;
    }
    let user = &call.incoming.user;
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience",
        version: "v1",
        resource: wanted,
        namespace: &call.path.namespace,
        name: &call.path.name,
        ..Attributes::default()
    };
    if !wanted.is_empty() && call.api.guard().decide(call.api, user, &attributes).is_allowed() {
        return None;
    }
    Some(format!(
        "audience {wanted:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        user.name
    ))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A projected volume of the pod holds a token for `audience`.
fn names_audience(pod: &Value, audience: &str) -> bool {
    let sources = object::items(&pod["spec"], "volumes").flat_map(|v| object::items(&v["projected"], "sources"));
    let mut tokens = sources.map(|source| &source["serviceAccountToken"]).filter(|token| token.is_object());
    tokens.any(|token| text(&token["audience"]) == audience)
}

/// The CSI driver behind a volume, which may be given tokens for the pod.
fn driver(call: &Call<'_>, pod: &Value, volume: &Value) -> Option<String> {
    if let Some(driver) = volume["csi"]["driver"].as_str() {
        return Some(driver.to_owned());
    }
    let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(name) => name.to_owned(),
        None if volume["ephemeral"].is_object() => ephemeral_claim(pod, volume),
        None => return None,
    };
    let claim = stored(call, "", "persistentvolumeclaims", &call.path.namespace, &claim)?;
    let volume = stored(call, "", "persistentvolumes", "", text(&claim["spec"]["volumeName"]))?;
    volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_has_a_use_for_the_audiences_of_its_projected_tokens() {
        let pod = json!({"spec": {"volumes": [{"projected": {"sources": [
            {"serviceAccountToken": {"path": "own"}}, {"serviceAccountToken": {"path": "v", "audience": "vault"}}]}}]}});
        assert!(names_audience(&pod, "") && names_audience(&pod, "vault") && !names_audience(&pod, "other"));
        let none = json!({"spec": {"volumes": [{"projected": {"sources": [{"configMap": {"name": "c"}}]}}]}});
        assert!(!names_audience(&none, ""));
    }
}
