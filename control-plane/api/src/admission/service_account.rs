//! ServiceAccount: every pod runs as an account of its namespace and finds that account's token in its files.
//! (`plugin/pkg/admission/serviceaccount`, KEP-1205.)
//!
//! The token itself is made by the node, which asks for it when it prepares the volume. Mirror pods stand for
//! files on a node and may not name what only the API can give.

use kedge_store::{ObjectKey, ResourceId};
use serde_json::{Value, json};

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;

/// Where programs look for their token (`DefaultAPITokenMountPath`).
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How names of the volume begin.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and a bit, by which old clients that do not read the file again are told apart.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) struct ServiceAccount;

impl Plugin for ServiceAccount {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.creates("", "Pod") || is_mirror(attempt.new) || !attempt.new["spec"].is_object() {
            return Ok(());
        }
        let spec = &mut attempt.new["spec"];
        if spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
            spec["serviceAccountName"] = "default".into();
        }
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
        let account = account(attempt)?;
        let pod = &mut *attempt.new;
        let mounts =
            [&pod["spec"], &account].into_iter().find_map(|wish| wish["automountServiceAccountToken"].as_bool());
        if mounts.unwrap_or(true) {
            let suffix = attempt.call.api.world().random.suffix(5);
            mount_token(&mut pod["spec"], &suffix);
        }
        let secrets = object::items(&account, "imagePullSecrets").cloned().collect::<Vec<_>>();
        if !secrets.is_empty() && pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty) {
            pod["spec"]["imagePullSecrets"] = secrets.into();
        }
        Ok(())
    }

    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.creates("", "Pod") {
            return Ok(());
        }
        if !is_mirror(attempt.new) {
            return account(attempt).map(drop);
        }
        match mirror_fault(&attempt.new["spec"]) {
            Some(why) => Err(attempt.forbidden(why)),
            None => Ok(()),
        }
    }
}

fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][MIRROR].is_null()
}

/// The account that the pod names, or the refusal.
fn account(attempt: &Attempt<'_, '_>) -> Result<Value, ApiError> {
    let namespace = &*attempt.call.path.namespace;
    let name = attempt.new["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    let found = attempt.call.api.store().get(&ResourceId::new("", "serviceaccounts"), &ObjectKey::new(namespace, name));
    found.map(|entry| object::decode(&entry.bytes)).ok_or_else(|| {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        attempt.forbidden(&why)
    })
}

fn mirror_fault(spec: &Value) -> Option<&'static str> {
    if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let mut environments = containers.iter().flat_map(|list| object::items(spec, list));
    let by_variable = environments.any(|container| {
        object::items(container, "env").any(|variable| variable["valueFrom"]["secretKeyRef"].is_object())
            || object::items(container, "envFrom").any(|from| from["secretRef"].is_object())
    });
    let sources = || object::items(spec, "volumes").flat_map(|volume| object::items(&volume["projected"], "sources"));
    let by_volume = object::items(spec, "volumes").any(|volume| volume["secret"].is_object());
    if by_variable || by_volume || sources().any(|source| source["secret"].is_object()) {
        return Some("a mirror pod may not reference secrets");
    }
    let has_token = sources().any(|source| source["serviceAccountToken"].is_object());
    has_token.then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// Mounts the token into every container that has nothing there, from a volume made when none is there yet.
fn mount_token(spec: &mut Value, suffix: &str) {
    let existing = object::items(spec, "volumes").filter_map(|volume| volume["name"].as_str());
    let existing = existing.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in object::items_mut(spec, list) {
            if object::items(container, "volumeMounts").any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            push(container, "volumeMounts", json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if mounted && existing.is_none() {
        push(spec, "volumes", token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

fn push(parent: &mut Value, key: &str, item: Value) {
    let list = object::as_map(parent).entry(key).or_insert_with(|| json!([]));
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_token_once() {
        let taken = json!({"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]});
        let mut spec = json!({"containers": [{"name": "a"}, taken], "initContainers": [{"name": "i"}]});
        mount_token(&mut spec, "xxxxx");
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-xxxxx");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-xxxxx");
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["readOnly"], true);
        assert_eq!(spec["containers"][1], taken);
        let before = spec.clone();
        mount_token(&mut spec, "yyyyy");
        assert_eq!(spec, before);
    }

    #[test]
    fn mirror_pods_name_nothing_of_the_api() {
        let check = |spec: Value, refused: bool| assert_eq!(mirror_fault(&spec).is_some(), refused, "{spec}");
        check(
            json!({"containers": [{"env": [{"name": "A", "value": "b"}]}], "volumes": [{"hostPath": {"path": "/"}}]}),
            false,
        );
        check(json!({"serviceAccountName": "default"}), true);
        check(json!({"volumes": [{"secret": {"secretName": "s"}}]}), true);
        check(json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}), true);
        check(json!({"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), true);
    }
}
