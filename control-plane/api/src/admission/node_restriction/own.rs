//! What a node may write about itself and its claims.

use serde_json::Value;

use crate::object;

/// Labels that say what a node is trusted with; nodes may not give them to themselves.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// The labels of Kubernetes that a node may have about itself, and the prefixes (`k8s.io/kubelet/pkg/apis`).
const LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const LABEL_PREFIXES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// What is wrong with what a node writes about itself.
pub(super) fn node(new: &Value, old: Option<&Value>) -> Option<String> {
    let nothing = Value::Null;
    let (is, was) = (&new["metadata"]["labels"], old.map_or(&nothing, |old| &old["metadata"]["labels"]));
    let keys = [is, was].into_iter().filter_map(Value::as_object).flat_map(|labels| labels.keys());
    let mut changed: Vec<&str> =
        keys.map(String::as_str).filter(|key| is[*key] != was[*key] && is_forbidden(key)).collect();
    changed.sort_unstable();
    changed.dedup();
    if !changed.is_empty() {
        return Some(format!("is not allowed to modify labels: {}", changed.join(", ")));
    }
    if !new["spec"]["configSource"].is_null() {
        return Some("node is not allowed to set a configSource".to_owned());
    }
    let old = old?;
    if old["spec"]["taints"] != new["spec"]["taints"] {
        return Some("node is not allowed to modify taints".to_owned());
    }
    None
}

fn is_forbidden(label: &str) -> bool {
    let prefix = label.split_once('/').map_or("", |(prefix, _)| prefix);
    let below = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let own = LABELS.contains(&label) || LABEL_PREFIXES.iter().any(|domain| below(domain));
    below(RESTRICTED) || ((below("kubernetes.io") || below("k8s.io")) && !own)
}

/// What is wrong with what a node writes about a claim: it measures, and decides nothing.
pub(super) fn claim_status(new: &Value, old: &Value, node: &str) -> Option<String> {
    let fixed = |claim: &Value| {
        let mut claim = claim.clone();
        let metadata = object::metadata_mut(&mut claim);
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
        let status = object::child(&mut claim, "status");
        for key in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            status.remove(key);
        }
        claim
    };
    (fixed(new) != fixed(old)).then(|| {
        format!("node \"{node}\" is not allowed to update fields other than status.quantity and status.conditions")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_does_not_promote_itself() {
        let with = |label: &str| json!({"metadata": {"labels": {label: "x"}}, "spec": {}});
        let bare = json!({"metadata": {}, "spec": {}});
        let cases = [
            ("node-restriction.kubernetes.io/secure", true),
            ("a.node-restriction.kubernetes.io/secure", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("x.k8s.io/y", true),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/anything", false),
            ("gpu.node.kubernetes.io/anything", false),
            ("example.com/zone", false),
            ("notkubernetes.io/zone", false),
            ("zone", false),
        ];
        for (label, forbidden) in cases {
            assert_eq!(node(&with(label), None).is_some(), forbidden, "{label} on a new node");
            assert_eq!(node(&with(label), Some(&bare)).is_some(), forbidden, "{label} added");
            assert_eq!(node(&bare, Some(&with(label))).is_some(), forbidden, "{label} removed");
            assert_eq!(node(&with(label), Some(&with(label))), None, "{label} kept");
        }
        let mut untainted = with("zone");
        untainted["spec"]["taints"] = json!([{"key": "a"}]);
        assert!(node(&untainted, Some(&with("zone"))).is_some());
        let sourced = json!({"metadata": {}, "spec": {"configSource": {"configMap": {}}}});
        assert!(node(&sourced, None).is_some());
    }

    #[test]
    fn a_node_measures_claims_and_no_more() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        let mut new = old.clone();
        new["status"]["capacity"] = json!({"storage": "2Gi"});
        new["status"]["conditions"] = json!([]);
        assert_eq!(claim_status(&new, &old, "n"), None);
        new["status"]["phase"] = "Lost".into();
        assert!(claim_status(&new, &old, "n").is_some());
        let mut labelled = old.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(claim_status(&labelled, &old, "n").is_some());
    }
}
