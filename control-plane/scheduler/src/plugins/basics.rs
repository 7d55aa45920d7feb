//! SchedulingGates and NodeUnschedulable, and the refusal of what no plugin here understands.

use crate::framework::{Event, Plugin, Refusal};
use crate::snapshot::{NodeView, PodView, Snapshot};

/// Gates hold a pod back; fields that would be ignored hold it back too, by name.
pub(super) struct Understood;

impl Plugin for Understood {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn cures(&self) -> &'static [Event] {
        &[]
    }

    fn prefilter(&self, pod: &PodView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        let Some(spec) = &pod.pod.spec else { return Ok(()) };
        if spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
            return Err(Refusal::for_good("Scheduling is blocked due to non-empty scheduling gates"));
        }
        let affinity = spec.affinity.as_ref();
        let required = |terms: Option<&Vec<_>>| terms.is_some_and(|terms| !terms.is_empty());
        let refused = [
            (
                "spec.affinity.podAffinity",
                required(affinity.and_then(|a| {
                    a.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
                })),
            ),
            (
                "spec.affinity.podAntiAffinity",
                required(affinity.and_then(|a| {
                    a.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
                })),
            ),
            ("spec.resourceClaims", spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty())),
        ];
        match refused.iter().find(|(_, asked)| *asked) {
            Some((field, _)) => Err(Refusal::for_good(format!("{field} is not supported by this scheduler yet"))),
            None => Ok(()),
        }
    }
}

/// A cordoned node takes only pods that tolerate it.
pub(super) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn cures(&self) -> &'static [Event] {
        &[Event::Node]
    }

    fn filter(&self, pod: &PodView, node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        let cordoned = node.node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
        let tolerates = || {
            let tolerations = pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
            tolerations.into_iter().flatten().any(|t| {
                t.operator.as_deref() == Some("Exists")
                    && matches!(t.key.as_deref(), None | Some("" | "node.kubernetes.io/unschedulable"))
            })
        };
        if cordoned && !tolerates() {
            return Err(Refusal::for_good("node(s) were unschedulable"));
        }
        Ok(())
    }
}
