//! What pods and persistent volumes refer to by name. Pure.
//! (`pkg/api/v1/pod/util.go`, `pkg/api/v1/persistentvolume/util.go`.)

use serde_json::Value;

/// A kind of object that a node may have to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are Kubernetes' own kinds")]
pub enum Kind {
    ConfigMap,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    ResourceClaim,
    ResourceSlice,
    Secret,
    ServiceAccount,
    VolumeAttachment,
}

/// The objects in its own namespace that a pod names, each once, in order.
pub fn of_pod(pod: &Value) -> Vec<(Kind, String)> {
    let spec = &pod["spec"];
    let mut found = Vec::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push((kind, name.to_owned()));
        }
    };
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    items(&spec["imagePullSecrets"]).for_each(|secret| add(Kind::Secret, &secret["name"]));
    for container in ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|key| items(&spec[*key])) {
        for source in items(&container["envFrom"]) {
            add(Kind::ConfigMap, &source["configMapRef"]["name"]);
            add(Kind::Secret, &source["secretRef"]["name"]);
        }
        for source in items(&container["env"]).map(|variable| &variable["valueFrom"]) {
            add(Kind::ConfigMap, &source["configMapKeyRef"]["name"]);
            add(Kind::Secret, &source["secretKeyRef"]["name"]);
        }
    }
    for volume in items(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        for source in items(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
        add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        for source in WITH_SECRET_REF {
            add(Kind::Secret, &volume[*source]["secretRef"]["name"]);
        }
        add(Kind::PersistentVolumeClaim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            add(Kind::PersistentVolumeClaim, &ephemeral_claim(pod, volume).into());
        }
    }
    for claim in items(&spec["resourceClaims"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
        if claim["resourceClaimTemplateName"].is_string() {
            let made = items(&pod["status"]["resourceClaimStatuses"]).find(|made| made["name"] == claim["name"]);
            add(Kind::ResourceClaim, made.map_or(&Value::Null, |made| &made["resourceClaimName"]));
        }
    }
    add(Kind::ResourceClaim, &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
    found.sort_unstable();
    found.dedup();
    found
}

/// Volume sources with a secret in `secretRef`, as volumes of pods have them.
const WITH_SECRET_REF: &[&str] = &["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];

/// The name of the claim that is made for an ephemeral volume (`k8s.io/component-helpers/storage/ephemeral`).
pub fn ephemeral_claim(pod: &Value, volume: &Value) -> String {
    format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"]))
}

/// A namespace and a name in it.
pub(crate) type Named = (String, String);

/// The claim that a persistent volume is bound to, and the secrets that a node needs to mount it.
pub(crate) fn of_volume(volume: &Value) -> Option<(Named, Vec<Named>)> {
    let spec = &volume["spec"];
    let claim = spec.get("claimRef").filter(|claim| claim.is_object())?;
    let home = text(&claim["namespace"]);
    let mut secrets = Vec::new();
    let mut add = |namespace: &Value, name: &Value, fallback: &str| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            let namespace = namespace.as_str().filter(|namespace| !namespace.is_empty()).unwrap_or(fallback);
            secrets.push((namespace.to_owned(), name.to_owned()));
        }
    };
    add(&spec["azureFile"]["secretNamespace"], &spec["azureFile"]["secretName"], home);
    for source in WITH_SECRET_REF {
        // These two were never stored without the namespace, so that the claim's stands for nothing there.
        let fallback = if matches!(*source, "cinder" | "storageos") { "" } else { home };
        add(&spec[*source]["secretRef"]["namespace"], &spec[*source]["secretRef"]["name"], fallback);
    }
    // The secrets for publishing and expanding at the controller are none of a node's business.
    for reference in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        add(&spec["csi"][reference]["namespace"], &spec["csi"][reference]["name"], "");
    }
    Some(((home.to_owned(), text(&claim["name"]).to_owned()), secrets))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_name_an_object_is_found() {
        use Kind::{ConfigMap, PersistentVolumeClaim, ResourceClaim, Secret, ServiceAccount};
        let env = |source: Value| json!({"containers": [{"env": [{"valueFrom": source}]}]});
        let volume = |source: Value| json!({"volumes": [source]});
        let cases: &[(Value, &[(Kind, &str)])] = &[
            (json!({}), &[]),
            (json!({"serviceAccountName": "bot"}), &[(ServiceAccount, "bot")]),
            (json!({"imagePullSecrets": [{"name": "a"}, {"name": ""}, {}]}), &[(Secret, "a")]),
            (env(json!({"secretKeyRef": {"name": "a", "key": "k"}})), &[(Secret, "a")]),
            (env(json!({"configMapKeyRef": {"name": "a", "key": "k"}})), &[(ConfigMap, "a")]),
            (
                json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "a"}}, {"configMapRef": {"name": "b"}}]}]}),
                &[(ConfigMap, "b"), (Secret, "a")],
            ),
            (json!({"ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "a"}}]}]}), &[(Secret, "a")]),
            (volume(json!({"secret": {"secretName": "a"}})), &[(Secret, "a")]),
            (volume(json!({"configMap": {"name": "a"}})), &[(ConfigMap, "a")]),
            (
                volume(json!({"projected": {"sources": [{"secret": {"name": "a"}}, {"configMap": {"name": "b"}},
                    {"secret": {"name": "a"}}, {"serviceAccountToken": {"path": "t"}}]}})),
                &[(ConfigMap, "b"), (Secret, "a")],
            ),
            (volume(json!({"csi": {"nodePublishSecretRef": {"name": "a"}}})), &[(Secret, "a")]),
            (volume(json!({"azureFile": {"secretName": "a"}})), &[(Secret, "a")]),
            (volume(json!({"rbd": {"secretRef": {"name": "a"}}})), &[(Secret, "a")]),
            (volume(json!({"persistentVolumeClaim": {"claimName": "a"}})), &[(PersistentVolumeClaim, "a")]),
            (volume(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {}}})), &[(PersistentVolumeClaim, "p-v")]),
            (
                json!({"resourceClaims": [{"name": "x", "resourceClaimName": "a"},
                    {"name": "made", "resourceClaimTemplateName": "t"}, {"name": "later", "resourceClaimTemplateName": "t"}]}),
                &[(ResourceClaim, "a"), (ResourceClaim, "b"), (ResourceClaim, "extended")],
            ),
        ];
        let status = json!({"resourceClaimStatuses": [{"name": "made", "resourceClaimName": "b"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "extended"}});
        for (spec, expected) in cases {
            let status = if spec["resourceClaims"].is_array() { status.clone() } else { Value::Null };
            let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
            let expected: Vec<_> = expected.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect();
            assert_eq!(of_pod(&pod), expected, "{spec}");
        }
    }

    #[test]
    fn a_volume_names_what_a_node_needs_of_it() {
        let claim = json!({"namespace": "a", "name": "c"});
        let secrets = |source: &str, value: Value| {
            let volume = json!({"spec": {"claimRef": claim, source: value}});
            of_volume(&volume).unwrap().1.iter().map(|(ns, name)| format!("{ns}/{name}")).collect::<Vec<_>>().join(" ")
        };
        let csi = json!({"nodePublishSecretRef": {"namespace": "n", "name": "p"},
            "nodeStageSecretRef": {"namespace": "n", "name": "s"},
            "controllerPublishSecretRef": {"namespace": "n", "name": "not-for-nodes"}});
        assert_eq!(secrets("csi", csi), "n/p n/s");
        assert_eq!(secrets("azureFile", json!({"secretName": "s"})), "a/s");
        assert_eq!(secrets("azureFile", json!({"secretName": "s", "secretNamespace": "n"})), "n/s");
        assert_eq!(secrets("iscsi", json!({"secretRef": {"name": "s"}})), "a/s");
        assert_eq!(secrets("cinder", json!({"secretRef": {"name": "s"}})), "/s");
        assert_eq!(of_volume(&json!({"spec": {"hostPath": {"path": "/x"}}})), None);
    }
}
