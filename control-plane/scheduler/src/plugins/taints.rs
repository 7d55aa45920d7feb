//! TaintToleration: nodes push pods away, pods may bear it. (`plugins/tainttoleration`.)

use k8s_openapi::api::core::v1::{Taint, Toleration};
use kedge_client::tolerates;

use crate::framework::{Event, Plugin, Refusal, normalize};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        let hard = |taint: &&Taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute");
        if taints(node).filter(hard).all(|taint| tolerations(pod).any(|t| tolerates(t, taint))) {
            return Ok(());
        }
        Err(Refusal::for_good("node(s) had untolerated taint(s)"))
    }

    fn scores(&self, pod: &PodView, nodes: &[&NodeView], _snapshot: &Snapshot) -> Option<Vec<i64>> {
        let soft = |taint: &&Taint| taint.effect == "PreferNoSchedule";
        let unbearable = |node: &&NodeView| {
            taints(node).filter(soft).filter(|taint| !tolerations(pod).any(|t| tolerates(t, taint))).count()
        };
        Some(normalize(nodes.iter().map(|node| unbearable(node) as i64).collect(), true))
    }

    fn weight(&self) -> i64 {
        3
    }
}

fn taints(node: &NodeView) -> impl Iterator<Item = &Taint> {
    node.node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten()
}

fn tolerations(pod: &PodView) -> impl Iterator<Item = &Toleration> {
    pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref()).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_match_as_upstream_matches_them() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        let cases = [
            (json!({"key": "k", "operator": "Equal", "value": "v"}), true),
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
        ];
        for (toleration, expected) in cases {
            let toleration: Toleration = serde_json::from_value(toleration).unwrap();
            assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?}");
        }
    }
}
