//! NodeRestriction: a node's own account changes that node, its lease, and the pods bound to it, and nothing else.
//! (`plugin/pkg/admission/noderestriction`, KEP-279.)

use serde_json::Value;

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;
use crate::rest::Call;

const LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels that say what a node is trusted with; nodes may not give them to themselves.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

pub(super) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let Some(node) = node_of(attempt.call) else { return Ok(()) };
        let name = object::name(attempt.new);
        let refused = match (&*attempt.call.kind.resource.kind, attempt.old) {
            ("Node", old) if name == node => own_node(attempt.new, old),
            ("Node", _) => Some(format!("node \"{node}\" is not allowed to modify node \"{name}\"")),
            ("Pod", None) => mirror_pod(attempt.new, node),
            ("Pod", Some(old)) if old["spec"]["nodeName"] != node => {
                Some(format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"))
            }
            ("Lease", _) if object::namespace(attempt.new) != LEASES => {
                Some(format!("can only access leases in the \"{LEASES}\" system namespace"))
            }
            ("Lease", _) if name != node => {
                Some("can only access node lease with the same name as the requesting node".into())
            }
            _ => None,
        };
        refused.map_or(Ok(()), |why| Err(attempt.forbidden(&why)))
    }

    fn delete(&self, call: &Call<'_>, object: &Value) -> Result<(), ApiError> {
        let Some(node) = node_of(call) else { return Ok(()) };
        let name = object::name(object);
        let why = match &*call.kind.resource.kind {
            "Node" if name != node => format!("node \"{node}\" is not allowed to modify node \"{name}\""),
            "Pod" if object["spec"]["nodeName"] != node => {
                format!("node \"{node}\" can only delete pods with spec.nodeName set to itself")
            }
            "Lease" if name != node || object::namespace(object) != LEASES => {
                "can only access node lease with the same name as the requesting node".to_owned()
            }
            _ => return Ok(()),
        };
        Err(ApiError::forbidden(&call.path.group, &call.path.resource, name, &why))
    }
}

/// The node that asks, if a node asks.
fn node_of<'a>(call: &Call<'a>) -> Option<&'a str> {
    let user = &call.incoming.user;
    user.name.strip_prefix("system:node:").filter(|_| user.is_in("system:nodes"))
}

fn own_node(new: &Value, old: Option<&Value>) -> Option<String> {
    let nothing = Value::Null;
    let (is, was) = (&new["metadata"]["labels"], old.map_or(&nothing, |old| &old["metadata"]["labels"]));
    let restricted = |key: &str| {
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        prefix == RESTRICTED || prefix.ends_with(&format!(".{RESTRICTED}"))
    };
    let changed = is.as_object().into_iter().flatten().find(|(key, value)| restricted(key) && was[&**key] != **value);
    if let Some((key, _)) = changed {
        return Some(format!("is not allowed to modify labels: {key}"));
    }
    let old = old?;
    if old["spec"]["taints"] != new["spec"]["taints"] {
        return Some("node is not allowed to modify taints".to_owned());
    }
    None
}

fn mirror_pod(pod: &Value, node: &str) -> Option<String> {
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return Some(format!("pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"));
    }
    if pod["spec"]["nodeName"] != node {
        return Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_does_not_promote_itself() {
        let node = |label: &str| json!({"metadata": {"labels": {label: "x"}}, "spec": {}});
        assert!(own_node(&node("node-restriction.kubernetes.io/secure"), None).is_some());
        assert!(own_node(&node("a.node-restriction.kubernetes.io/secure"), Some(&node("b"))).is_some());
        let same = node("node-restriction.kubernetes.io/secure");
        assert!(own_node(&same, Some(&same)).is_none());
        assert!(own_node(&node("zone"), None).is_none());
        let mut untainted = node("zone");
        untainted["spec"]["taints"] = json!([{"key": "a"}]);
        assert!(own_node(&untainted, Some(&node("zone"))).is_some());
    }

    #[test]
    fn nodes_make_only_mirrors_of_their_own_pods() {
        let mirror = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "n"}});
        assert_eq!(mirror_pod(&mirror, "n"), None);
        assert!(mirror_pod(&mirror, "m").is_some());
        assert!(mirror_pod(&json!({"spec": {"nodeName": "n"}}), "n").is_some());
    }
}
