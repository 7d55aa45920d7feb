//! Node lifecycle: nodes that fell silent are unknown, and nodes in trouble are tainted.
//! (`pkg/controller/nodelifecycle`.)
//!
//! A node lives as long as its Lease or its status changes. What is decided about taints, and when everything is
//! silent at once, is in [`taints`]; driving pods away is the taint eviction's part.

mod taints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::{pods, write};
use taints::{Mode, ready};

/// A node that neither renewed its Lease nor reported for so long is unknown (`NodeMonitorGracePeriod` of 1.36).
const GRACE: Duration = Duration::from_secs(50);
/// The same before its first report (`NodeStartupGracePeriod`).
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const LEASES: &str = "kube-node-lease";
/// The conditions that only the node itself knows.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was last heard of a node, by this process's own clock: clocks of nodes may be wrong.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    renewed: Option<Timestamp>,
    reported: Option<Timestamp>,
    /// On the monotonic clock.
    at: Duration,
}

#[derive(Default)]
pub(crate) struct Controller {
    heard: Mutex<HashMap<String, Heard>>,
    /// Per zone, when a node was last tainted so that its pods go.
    tainted: Mutex<HashMap<String, Duration>>,
    /// Whether every node was silent or in trouble at the last look.
    all_down: Mutex<bool>,
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let nodes = context.informers.of::<Node>();
        let _ = context.informers.of::<Pod>();
        context.watch::<Node>(trigger, move |change| {
            // Whether a node drives its pods away depends on how the others fare.
            let state = |node: &Option<Arc<Node>>| node.as_ref().map(|node| ready(node).to_owned());
            if state(&change.old) == state(&change.new) {
                return vec![Key::of(&**change.latest())];
            }
            nodes.list().iter().map(|node| Key::of(&**node)).collect()
        });
        context.watch::<Lease>(trigger, |change| match change.latest() {
            lease if lease.namespace().as_deref() == Some(LEASES) => vec![Key::new("", &lease.name_any())],
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let informer = context.informers.of::<Node>();
        let Some(node) = informer.get(key) else {
            lock(&self.heard).remove(&key.name);
            return Ok(Next::Change);
        };
        let lease = context.informers.of::<Lease>().get(&Key::new(LEASES, &key.name));
        let now = context.world.clock.monotonic();
        let left = self.listen(&node, lease.as_deref(), now);
        if left.is_zero()
            && let Some(changed) = silent(&node, context.world.clock.wall())
        {
            let was_ready = ready(&node) == "True";
            patch(context, &node, &json!({ "status": { "conditions": changed } }), true).await?;
            if was_ready {
                tracing::warn!(node = key.name, "the node has fallen silent");
            }
        }
        let Some(node) = informer.get(key) else { return Ok(Next::Change) };
        if ready(&node) != "True" {
            unready_pods(context, &key.name).await?;
        }
        let wait = self.taint(context, &node, now).await?;
        let silence = (!left.is_zero()).then_some(left);
        Ok(silence.into_iter().chain(wait).min().map_or(Next::Change, Next::After))
    }
}

impl Controller {
    /// Notes what is new of a node; returns how long it may stay silent from now on.
    fn listen(&self, node: &Node, lease: Option<&Lease>, now: Duration) -> Duration {
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
        let condition = taints::condition(node, "Ready");
        let reported = condition.and_then(|ready| ready.last_heartbeat_time.as_ref().map(|time| time.0));
        let grace = if condition.is_some() { GRACE } else { STARTUP_GRACE };
        let mut heard = lock(&self.heard);
        let entry = heard.entry(node.name_any()).or_insert(Heard { renewed, reported, at: now });
        if (&entry.renewed, &entry.reported) != (&renewed, &reported) {
            *entry = Heard { renewed, reported, at: now };
        }
        (entry.at + grace).saturating_sub(now)
    }

    /// Brings the node's taints in order. Returns when one may be added that has to wait for its turn.
    async fn taint(&self, context: &Context, node: &Node, now: Duration) -> kube::Result<Option<Duration>> {
        let all = context.informers.of::<Node>().list();
        let mode = taints::mode(&all, node);
        if mode != Mode::AllDown && std::mem::replace(&mut *lock(&self.all_down), false) {
            // The first that is back says that it was this process that was cut off: everybody gets time to call.
            lock(&self.heard).values_mut().for_each(|heard| heard.at = now);
            tracing::info!("nodes are heard of again");
        } else if mode == Mode::AllDown
            && !std::mem::replace(&mut *lock(&self.all_down), true)
            && all.iter().any(|node| !ready(node).is_empty())
        {
            tracing::warn!("no node is ready: pods stay where they are");
        }
        let zone = taints::zone(node);
        let turn = lock(&self.tainted)
            .get(&zone)
            .map_or(Some(Duration::ZERO), |last| mode.pause().map(|pause| (*last + pause).saturating_sub(now)));
        let may_drive_away = mode.pause().is_some() && turn == Some(Duration::ZERO);
        let plan = taints::plan(node, mode, may_drive_away, context.world.clock.wall());
        if let Some(taints) = &plan.taints {
            patch(context, node, &json!({ "spec": { "taints": taints } }), false).await?;
            if plan.drives_away {
                lock(&self.tainted).insert(zone, now);
            }
        }
        Ok(turn.filter(|_| plan.waits))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

/// The node's own conditions, unknown from now on; none when they are already.
fn silent(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let known = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    if known.iter().all(|condition| condition.type_ != "Ready") {
        return Some(vec![NodeCondition {
            type_: "Ready".into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }]);
    }
    let unknown = known.iter().filter(|c| REPORTED.contains(&&*c.type_) && c.status != "Unknown").map(|condition| {
        NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            ..condition.clone()
        }
    });
    Some(unknown.collect::<Vec<_>>()).filter(|changed| !changed.is_empty())
}

/// Changes a node at the revision that was looked at, and waits until the shared copy shows it.
async fn patch(context: &Context, node: &Node, change: &serde_json::Value, status: bool) -> kube::Result<()> {
    let api: Api<Node> = Api::all(context.informers.client().clone());
    let mut change = change.clone();
    change["metadata"] = json!({ "uid": node.uid() });
    let parameters = PatchParams::default();
    let made = if status {
        api.patch_status(&node.name_any(), &parameters, &Patch::Strategic(change)).await
    } else {
        // The whole list is written, so nobody else may have changed it meanwhile.
        change["metadata"]["resourceVersion"] = json!(node.resource_version());
        api.patch(&node.name_any(), &parameters, &Patch::Merge(change)).await
    };
    match made {
        Ok(made) => context.informers.of::<Node>().reached(write::revision(&made)).await,
        Err(error) if write::is(&error, 404) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Pods of a node that does not answer do not serve. (`MarkPodsNotReady`.)
async fn unready_pods(context: &Context, node: &str) -> kube::Result<()> {
    let now = context.world.clock.wall();
    let all = context.informers.of::<Pod>().list();
    let concerned = all.iter().filter(|pod| pods::node_name(pod) == Some(node) && pods::is_ready(pod));
    let told = PodCondition {
        type_: "Ready".into(),
        status: "False".into(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    write::all(concerned.map(|pod| write::tell_of_pod(context, pod, false, &told))).await
}

/// Whether a taint is one that this controller adds and takes away.
fn is_ours(taint: &Taint) -> bool {
    taint.key.starts_with("node.kubernetes.io/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn a_node_is_silent_when_neither_lease_nor_report_changes() {
        let controller = Controller::default();
        let lease = |time: &str| -> Lease { serde_json::from_value(json!({"spec": {"renewTime": time}})).unwrap() };
        let node = node(json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]));
        let at = Duration::from_secs;
        let (first, second) = (lease("2026-01-01T00:00:00.000000Z"), lease("2026-01-01T00:00:10.000000Z"));
        assert_eq!(controller.listen(&node, Some(&first), at(100)), at(50));
        assert_eq!(controller.listen(&node, Some(&first), at(130)), at(20));
        assert_eq!(controller.listen(&node, Some(&second), at(140)), at(50));
        assert_eq!(controller.listen(&node, Some(&second), at(190)), at(0));
    }

    #[test]
    fn silence_makes_what_was_known_unknown_once() {
        let now = Timestamp::UNIX_EPOCH;
        let ready = json!([{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]);
        let changed = silent(&node(ready), now).unwrap();
        assert_eq!((changed.len(), &*changed[0].status), (1, "Unknown"));
        assert_eq!(silent(&node(json!([{"type": "Ready", "status": "Unknown"}])), now), None);
        let never = silent(&node(json!([])), now).unwrap();
        assert_eq!(never[0].reason.as_deref(), Some("NodeStatusNeverUpdated"));
    }
}
