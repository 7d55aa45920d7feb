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

/// A sentence for each field of `object` that is stored and does nothing.
pub(super) fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    match (&*resource.group, &*resource.kind) {
        ("networking.k8s.io", "NetworkPolicy") => out.push(unenforced(&Path::new("spec"), "NetworkPolicy is")),
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
        }
    }
    out
}

fn unenforced(path: &Path, what: &str) -> String {
    format!("{}: {what} stored but not enforced by this version of Kedge", path.as_str())
}

fn pod(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (index, volume) in object::items(spec, "volumes").enumerate() {
        let directory = &volume["emptyDir"];
        if directory["medium"] != "Memory" && !directory["sizeLimit"].is_null() {
            let path = path.child("volumes").index(index).child("emptyDir").child("sizeLimit");
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
            assert!(found.iter().all(|text| text.ends_with(" stored but not enforced by this version of Kedge")));
        };
        check("networking.k8s.io/v1", "NetworkPolicy", json!({}), &["spec"]);
        check("networking.k8s.io/v1", "Ingress", json!({}), &[]);
        let labels =
            json!({ "metadata": { "labels": { "a": "b", "pod-security.kubernetes.io/enforce": "baseline" } } });
        check("v1", "Namespace", labels, &["metadata.labels[pod-security.kubernetes.io/enforce]"]);
        let limits = |name: &str| json!({ "resources": { "limits": { name: "1Gi" }, "requests": { name: "1Gi" } } });
        let spec = json!({
            "volumes": [
                { "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }, { "emptyDir": {} },
                { "emptyDir": { "sizeLimit": "1Mi" } },
            ],
            "containers": [limits("memory"), limits("ephemeral-storage")],
        });
        let below = |prefix: &str| {
            let ends = ["volumes[2].emptyDir.sizeLimit", "containers[1].resources.limits[ephemeral-storage]"];
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
