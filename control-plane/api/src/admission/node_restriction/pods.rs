//! What a node may write about pods: mirrors of its own, and the status of those bound to it.

use kedge_access::{ReferredKind, references_of_pod};
use serde_json::Value;

use crate::object;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Sources of volumes that need nothing of the API (`HasAPIObjectReference` in `pkg/api/pod/util.go`).
const LOCAL_VOLUMES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "downwardAPI",
    "emptyDir",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// What is wrong with a pod that a node creates. It may show what the node runs by itself, owned by that node, and names
/// no other object: the node would be let to read it.
pub(super) fn mirror(pod: &Value, node: &str, node_uid: &str) -> Option<String> {
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return Some(format!("pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"));
    }
    if pod["spec"]["nodeName"] != node {
        return Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    let owners: Vec<&Value> = object::items(&pod["metadata"], "ownerReferences").collect();
    let owner = match owners[..] {
        [owner] if owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node => owner,
        [_, _, ..] => {
            return Some(format!("node \"{node}\" can only create pods with a single owner reference set to itself"));
        }
        _ => return Some(format!("node \"{node}\" can only create pods with an owner reference set to itself")),
    };
    if owner["controller"] != true {
        return Some(format!("node \"{node}\" can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference"));
    }
    let uid = owner["uid"].as_str().unwrap_or_default();
    if uid != node_uid || uid.is_empty() {
        return Some(format!("node {node} UID mismatch: expected {uid} got {node_uid}"));
    }
    named(pod).map(|what| format!("node \"{node}\" can not create pods that reference {what}"))
}

/// The first kind of object that a pod names or needs.
fn named(pod: &Value) -> Option<&'static str> {
    let found = references_of_pod(pod);
    let first = found.iter().find_map(|(kind, _)| match kind {
        ReferredKind::ServiceAccount => Some("serviceaccounts"),
        ReferredKind::Secret => Some("secrets"),
        ReferredKind::ConfigMap => Some("configmaps"),
        ReferredKind::PersistentVolumeClaim => Some("persistentvolumeclaims"),
        _ => None,
    });
    if first.is_some() {
        return first;
    }
    if object::items(&pod["spec"], "resourceClaims").next().is_some() {
        return Some("resourceclaims");
    }
    object::items(&pod["spec"], "volumes").find_map(|volume| {
        if LOCAL_VOLUMES.iter().any(|source| volume[*source].is_object()) {
            return None;
        }
        let mut sources = object::items(&volume["projected"], "sources");
        let local = volume["projected"].is_object() && sources.all(|source| source["downwardAPI"].is_object());
        (!local).then_some("other objects via volumes")
    })
}

/// What is wrong with a status that a node writes.
pub(super) fn status(new: &Value, old: &Value, node: &str) -> Option<String> {
    if old["spec"]["nodeName"] != node {
        return Some(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"));
    }
    let labels = |pod: &Value| pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if labels(new) != labels(old) {
        return Some(format!("node \"{node}\" cannot update labels through pod status"));
    }
    let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    if claims(new) != claims(old) {
        return Some(format!("node \"{node}\" cannot update resource claim statues"));
    }
    let extended = |pod: &Value| pod["status"]["extendedResourceClaimStatus"].clone();
    (extended(new) != extended(old)).then(|| format!("node \"{node}\" cannot update extended resource claim status"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_make_only_mirrors_of_their_own_pods() {
        let good = json!({
            "metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n", "volumes": [{"name": "v", "hostPath": {"path": "/x"}},
                {"name": "w", "projected": {"sources": [{"downwardAPI": {}}]}}]},
        });
        assert_eq!(mirror(&good, "n", "u"), None);
        assert!(mirror(&good, "m", "u").is_some() && mirror(&good, "n", "other").is_some());
        let changes: &[(&str, Value)] = &[
            ("/metadata/annotations", json!({})),
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/ownerReferences/0/kind", json!("Pod")),
            ("/metadata/ownerReferences/0/controller", json!(false)),
            ("/metadata/ownerReferences/0/uid", json!("")),
            ("/metadata/ownerReferences/0/name", json!("m")),
            ("/spec/nodeName", json!("m")),
            ("/spec/volumes/0", json!({"secret": {"secretName": "s"}})),
            ("/spec/volumes/0", json!({"configMap": {"name": "s"}})),
            ("/spec/volumes/0", json!({"csi": {"driver": "s"}})),
            ("/spec/volumes/0", json!({"persistentVolumeClaim": {"claimName": "s"}})),
            ("/spec/volumes/0", json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
        ];
        for (path, value) in changes {
            let mut pod = good.clone();
            *pod.pointer_mut(path).unwrap() = value.clone();
            assert!(mirror(&pod, "n", "u").is_some(), "{path} {value}");
        }
        for (key, value) in [
            ("serviceAccountName", json!("bot")),
            ("imagePullSecrets", json!([{"name": "s"}])),
            ("containers", json!([{"envFrom": [{"configMapRef": {"name": "c"}}]}])),
            ("resourceClaims", json!([{"name": "r"}])),
        ] {
            let mut pod = good.clone();
            pod["spec"][key] = value;
            assert!(mirror(&pod, "n", "u").is_some(), "{key}");
        }
    }

    #[test]
    fn a_status_says_what_happened_on_the_node_and_no_more() {
        let old = json!({"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}});
        let mut new = old.clone();
        new["status"]["phase"] = "Running".into();
        new["metadata"]["labels"] = json!({});
        assert_eq!(status(&new, &old, "n"), None);
        assert!(status(&new, &old, "m").is_some());
        let mut labelled = new.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(status(&labelled, &old, "n").is_some());
        new["status"]["resourceClaimStatuses"] = json!([{"name": "r", "resourceClaimName": "another"}]);
        assert!(status(&new, &old, "n").is_some());
    }
}
