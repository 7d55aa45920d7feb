//! What a plugin can say, and when. (`k8s.io/kube-scheduler/framework/interface.go`.)

use crate::snapshot::{NodeView, PodView, Snapshot};

/// Why a node does not fit a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In upstream's words, counted over nodes in the pod's condition: "Insufficient cpu".
    pub reason: String,
    /// Even evicting every pod would not help.
    pub for_good: bool,
}

impl Refusal {
    /// Something that pods leaving could cure.
    pub fn now(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), for_good: false }
    }

    /// Something that only a change of the node or the pod can cure.
    pub fn for_good(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), for_good: true }
    }
}

/// What happened in the cluster, as far as it can make room for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node came, or its labels, taints or capacity changed.
    Node,
    /// A pod that had a node went away or ended.
    PodGone,
    /// A pod got a node, or its labels changed.
    PodPlaced,
}

/// A rule about where pods may run and where they should.
pub trait Plugin: Send + Sync {
    /// Upstream's name, such as `NodeResourcesFit`.
    fn name(&self) -> &'static str;

    /// Which events could change this plugin's refusal of a pod.
    fn cures(&self) -> &'static [Event];

    /// Refuses the pod as a whole, before any node is looked at.
    fn prefilter(&self, _pod: &PodView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        Ok(())
    }

    /// Whether the pod may run on the node.
    fn filter(&self, _pod: &PodView, _node: &NodeView, _snapshot: &Snapshot) -> Result<(), Refusal> {
        Ok(())
    }

    /// How good the node is, 0 to 100, before [`Plugin::weight`]; none for plugins that do not score.
    fn scores(&self, _pod: &PodView, _nodes: &[&NodeView], _snapshot: &Snapshot) -> Option<Vec<i64>> {
        None
    }

    /// How much this plugin's score counts.
    fn weight(&self) -> i64 {
        1
    }
}

/// Brings raw scores into 0 to 100; the greatest becomes 100, or 0 when `less_is_better`.
/// (`helper.DefaultNormalizeScore`.)
pub(crate) fn normalize(mut raw: Vec<i64>, less_is_better: bool) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    for score in &mut raw {
        let share = if most == 0 { 0 } else { *score * 100 / most };
        *score = if less_is_better { 100 - share } else { share };
    }
    raw
}
