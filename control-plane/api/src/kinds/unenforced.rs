//! What clients may ask for and nothing acts on yet: they are told with every answer, so that nobody relies on it.
//!
//! One line for each; who makes it true takes the line out.

use kedge_schema::field::Path;
use kedge_schema::shape::Resource;
use serde_json::Value;

use crate::object;

/// Where kinds have the specification of a pod.
const PODS: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &["spec"]),
    ("", "PodTemplate", &["template", "spec"]),
    ("", "ReplicationController", &["spec", "template", "spec"]),
    ("apps", "DaemonSet", &["spec", "template", "spec"]),
    ("apps", "Deployment", &["spec", "template", "spec"]),
    ("apps", "ReplicaSet", &["spec", "template", "spec"]),
    ("apps", "StatefulSet", &["spec", "template", "spec"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template", "spec"]),
    ("batch", "Job", &["spec", "template", "spec"]),
];

/// Kinds that are stored and that nothing here acts on: what does not happen.
const KINDS: &[(&str, &str, &str)] = &[
    ("", "PersistentVolume", "no claim is bound to volumes, and no pod mounts them"),
    ("", "PersistentVolumeClaim", "the claim stays Pending, for no volume is made for it or bound to it"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", "what it would change is not changed"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", "what it would change is not changed"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", "its webhooks are not called"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", "what it would refuse is not refused"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", "what it would refuse is not refused"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", "its webhooks are not called"),
    ("apiregistration.k8s.io", "APIService", "its API is not served"),
    ("autoscaling", "HorizontalPodAutoscaler", "its target is not scaled"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", "requests are not sorted by it"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", "requests are not limited by it"),
    ("resource.k8s.io", "ResourceClaim", "no device is allocated, and pods that name it are not placed"),
    ("resource.k8s.io", "ResourceClaimTemplate", "no claim is made of it, and pods that name it are not placed"),
    ("storage.k8s.io", "StorageClass", "no volume is made for claims that name it"),
];

/// A sentence for each field of `object` that is stored and does nothing.
pub(super) fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match (&*resource.group, &*resource.kind) {
        ("networking.k8s.io", "NetworkPolicy") => out.push(unenforced(&Path::new("spec"), "NetworkPolicy is")),
        // Who runs a controller for these in the cluster writes addresses there.
        ("" | "networking.k8s.io", "Service" | "Ingress") if has_address(object) => {}
        ("networking.k8s.io", "Ingress") => {
            let what = "no traffic is routed by it, unless an Ingress controller runs in the cluster";
            out.push(idle(&Path::new("spec"), "Ingress", what));
        }
        ("", "Service")
            if object["spec"]["type"] == "LoadBalancer" && object["spec"]["loadBalancerClass"].is_null() =>
        {
            let what = if object["spec"]["allocateLoadBalancerNodePorts"] == false {
                "no address is assigned to it"
            } else {
                "no address is assigned to it; clients outside the cluster reach it by its node ports"
            };
            out.push(idle(&Path::new("spec").child("type"), "LoadBalancer", what));
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
            if signer.starts_with("kubernetes.io/") {
                let path = Path::new("spec").child("signerName");
                out.push(idle(&path, signer, "no certificate is issued"));
            }
        }
        ("", "Namespace") => {
            let labels = object["metadata"]["labels"].as_object().into_iter().flatten().map(|(key, _)| key);
            let path = Path::new("metadata").child("labels");
            let levels = labels.filter(|label| label.starts_with("pod-security.kubernetes.io/"));
            out.extend(levels.map(|label| unenforced(&path.key(label), "Pod Security levels are")));
        }
        (group, kind) => {
            if let Some((_, _, keys)) = PODS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) {
                let spec = keys.iter().fold(object, |value, key| &value[*key]);
                let (first, rest) = keys.split_first().expect("a specification lies somewhere");
                pod(spec, &rest.iter().fold(Path::new(first), |path, key| path.child(key)), &mut out);
            }
            let claims = &object["spec"]["volumeClaimTemplates"];
            if kind == "StatefulSet" && claims.as_array().is_some_and(|claims| !claims.is_empty()) {
                let path = Path::new("spec").child("volumeClaimTemplates");
                out.push(idle(&path, "its claims", "they stay Pending, and pods of the set do not start"));
            }
            if let Some((_, kind, what)) = KINDS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) {
                out.push(idle(&Path::new(if object["spec"].is_null() { "kind" } else { "spec" }), kind, what));
            }
        }
    }
    out
}

/// Whether somebody has given a Service or an Ingress an address.
fn has_address(object: &Value) -> bool {
    object["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|addresses| !addresses.is_empty())
}

fn idle(path: &Path, what: &str, so: &str) -> String {
    format!("{}: this version of Kedge does nothing about {what}: {so}", path.as_str())
}

fn unenforced(path: &Path, what: &str) -> String {
    format!("{}: {what} stored but not enforced by this version of Kedge", path.as_str())
}

fn pod(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (index, volume) in object::items(spec, "volumes").enumerate() {
        let path = path.child("volumes").index(index);
        if let Some(kind) = unmounted(volume) {
            out.push(format!(
                "{}: this version of Kedge does not mount volumes of this kind: the pod will not start",
                path.child(kind).as_str()
            ));
        }
        let directory = &volume["emptyDir"];
        if directory["medium"] != "Memory" && !directory["sizeLimit"].is_null() {
            let path = path.child("emptyDir").child("sizeLimit");
            out.push(unenforced(&path, "the limit of a directory on disk is"));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in object::items(spec, list).enumerate() {
            if !container["resources"]["limits"]["ephemeral-storage"].is_null() {
                let path = path.child(list).index(index).child("resources").child("limits");
                out.push(unenforced(&path.key("ephemeral-storage"), "the limit is"));
            }
        }
    }
}

/// The kind of a volume that no node here mounts. (`node/agent/src/volumes`.)
fn unmounted(volume: &Value) -> Option<&str> {
    const MOUNTED: &[&str] = &["name", "configMap", "downwardAPI", "emptyDir", "hostPath", "projected", "secret"];
    let given = volume.as_object()?.iter().filter(|(_, source)| !source.is_null());
    given.map(|(key, _)| key.as_str()).find(|key| !MOUNTED.contains(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    #[test]
    fn what_does_nothing_is_named_where_it_stands() {
        let registry = Registry::builtin();
        let check = |api_version: &str, kind: &str, object: Value, expected: &[&str]| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = registry.by_kind(group, version, kind).expect("a kind of ours");
            let found = warnings(&kind.resource, &object);
            let paths: Vec<&str> = found.iter().map(|text| text.split(": ").next().unwrap()).collect();
            assert_eq!(paths, expected);
            assert!(found.iter().all(|text| text.contains("this version of Kedge")));
        };
        check("networking.k8s.io/v1", "NetworkPolicy", json!({}), &["spec"]);
        check("networking.k8s.io/v1", "Ingress", json!({ "spec": {} }), &["spec"]);
        let address = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
        check("networking.k8s.io/v1", "Ingress", json!({ "spec": {}, "status": address }), &[]);
        check("v1", "Service", json!({ "spec": { "type": "LoadBalancer" } }), &["spec.type"]);
        check("v1", "Service", json!({ "spec": { "type": "LoadBalancer" }, "status": address }), &[]);
        check("v1", "Service", json!({ "spec": { "type": "LoadBalancer", "loadBalancerClass": "a/b" } }), &[]);
        check("v1", "Service", json!({ "spec": { "type": "NodePort" } }), &[]);
        check("v1", "PersistentVolumeClaim", json!({ "spec": {} }), &["spec"]);
        check("storage.k8s.io/v1", "StorageClass", json!({ "provisioner": "p" }), &["kind"]);
        for version in ["v1", "v2"] {
            check(&format!("autoscaling/{version}"), "HorizontalPodAutoscaler", json!({ "spec": {} }), &["spec"]);
        }
        let signer = |name: &str| json!({ "spec": { "signerName": name } });
        let request = "CertificateSigningRequest";
        check("certificates.k8s.io/v1", request, signer("kubernetes.io/kubelet-serving"), &["spec.signerName"]);
        check("certificates.k8s.io/v1", request, signer("example.test/own"), &[]);
        let set = json!({ "spec": { "template": {}, "volumeClaimTemplates": [{}] } });
        check("apps/v1", "StatefulSet", set, &["spec.volumeClaimTemplates"]);
        for (group, kind, _) in KINDS {
            assert!(registry.all().any(|k| (&*k.resource.group, &*k.resource.kind) == (group, kind)), "{kind}");
        }
        let labels =
            json!({ "metadata": { "labels": { "a": "b", "pod-security.kubernetes.io/enforce": "baseline" } } });
        check("v1", "Namespace", labels, &["metadata.labels[pod-security.kubernetes.io/enforce]"]);
        let limits = |name: &str| json!({ "resources": { "limits": { name: "1Gi" }, "requests": { name: "1Gi" } } });
        let spec = json!({
            "volumes": [
                { "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }, { "emptyDir": {} },
                { "emptyDir": { "sizeLimit": "1Mi" } },
                { "name": "a", "configMap": {} }, { "name": "b", "hostPath": {} }, { "name": "c", "projected": {} },
                { "name": "d", "persistentVolumeClaim": { "claimName": "c" } }, { "name": "e", "ephemeral": {} },
                { "name": "f", "image": {} }, { "name": "g", "nfs": {}, "emptyDir": null },
            ],
            "containers": [limits("memory"), limits("ephemeral-storage")],
        });
        let below = |prefix: &str| {
            let ends = [
                "volumes[2].emptyDir.sizeLimit",
                "volumes[6].persistentVolumeClaim",
                "volumes[7].ephemeral",
                "volumes[8].image",
                "volumes[9].nfs",
                "containers[1].resources.limits[ephemeral-storage]",
            ];
            ends.map(|end| format!("{prefix}.{end}"))
        };
        for (group, kind, keys) in PODS {
            let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
            let object = keys.iter().rev().fold(spec.clone(), |inner, key| json!({ *key: inner }));
            let expected = below(&keys.join("."));
            check(&api_version, kind, object, &expected.each_ref().map(|text| &**text));
        }
        check("v1", "Pod", json!({ "spec": { "containers": [limits("cpu")] } }), &[]);
    }
}
