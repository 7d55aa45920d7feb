//! Which nodes a pod may run on, for every client alike.
//! (`k8s.io/component-helpers/scheduling/corev1`.)

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration};
use kube::ResourceExt;

/// Whether a pod has ended for good: it takes up nothing any more. (`podutil.IsPodTerminal`.)
pub fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Every address of a node.
const ANY: &str = "0.0.0.0";

/// A port of a node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// On which address.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Which.
    pub number: i32,
}

impl HostPort {
    /// Whether only one pod can have the two. (`fitsPorts`, `HostPortInfo.CheckConflict`.)
    pub fn clashes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.number == other.number
            && (self.address == other.address || self.address == ANY || other.address == ANY)
    }
}

/// The ports of its node that a pod takes, for as long as it runs. (`schedutil.GetHostPorts`.)
pub fn host_ports(pod: &PodSpec) -> Vec<HostPort> {
    let sidecars = pod.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = pod.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| ANY.into());
            Some(HostPort { address, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()), number })
        })
        .collect()
}

/// Whether a node is one that a pod asks for, by `nodeSelector` and required node affinity.
pub fn wants_node(pod: &PodSpec, node: &Node) -> bool {
    let selected = pod.node_selector.iter().flatten().all(|(key, value)| node.labels().get(key) == Some(value));
    let affinity = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Whether a node is one that a term selects. An empty term selects nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|rule| rule_matches(rule, node.labels().get(&rule.key).map(String::as_str)))
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

/// Whether a pod with this toleration bears the taint. (`Toleration.ToleratesTaint`.)
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        Some(_) => false,
    }
}

/// The nodes' taints that none of the pod's tolerations bears, of those effects that `counts` names.
pub fn untolerated<'a>(
    pod: &PodSpec,
    node: &'a Node,
    counts: impl Fn(&str) -> bool,
) -> impl Iterator<Item = &'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    taints.filter(move |taint| counts(&taint.effect) && !pod.tolerations.iter().flatten().any(|t| tolerates(t, taint)))
}
