//! NodeAffinity and nodeSelector: which nodes a pod asks for, and which it prefers. (`plugins/nodeaffinity`,
//! `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.)

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::framework::{Event, Plugin, Refusal, normalize};
use crate::snapshot::{NodeView, PodView, Snapshot};

pub(super) struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        if matches(pod, node) {
            Ok(())
        } else {
            Err(Refusal::for_good("node(s) didn't match Pod's node affinity/selector"))
        }
    }

    fn scores(&self, pod: &PodView, nodes: &[&NodeView], _snapshot: &Snapshot) -> Option<Vec<i64>> {
        let affinity = pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &&NodeView| {
            preferred.iter().filter(|p| term_matches(&p.preference, node)).map(|p| i64::from(p.weight)).sum()
        };
        Some(normalize(nodes.iter().map(score).collect(), false))
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// Whether a node is one that the pod asks for; spreading counts only such nodes.
pub(super) fn matches(pod: &PodView, node: &NodeView) -> bool {
    let Some(spec) = &pod.pod.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.label(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeView) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(&*node.name);
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|rule| rule_matches(rule, node.label(&rule.key)))
        && fields.iter().all(|rule| rule_matches(rule, field(&rule.key)))
}

fn rule_matches(rule: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = |found: &str| values.iter().any(|value| value == found);
    let numbers = || Some((found?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match &*rule.operator {
        "In" => found.is_some_and(listed),
        "NotIn" => !found.is_some_and(listed),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => numbers().is_some_and(|(found, than)| found > than),
        "Lt" => numbers().is_some_and(|(found, than)| found < than),
        _ => false,
    }
}
