//! Pod garbage: pods that no node will ever end. (`pkg/controller/podgc`.)
//!
//! Those bound to a node that is gone, those deleted before they were bound, those stuck on a node that is out of
//! service, and ended ones beyond a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::{Api, ResourceExt};

use crate::{pods, write};

/// A node must be missing for so long before its pods go (`quarantineTime`).
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods that are kept (`--terminated-pod-gc-threshold`).
const ENDED_MAX: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Remembers since when nodes with pods have been missing.
#[derive(Default)]
pub(crate) struct Controller {
    missing: Mutex<HashMap<String, Duration>>,
}

/// Keys are pods; nodes, without a namespace; and nothing at all for the number of ended pods.
fn ended() -> Key {
    Key::new("", "")
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let nodes = context.informers.of::<Node>();
        context.watch::<Pod>(trigger, move |change| {
            let Some(pod) = &change.new else { return Vec::new() };
            let mut keys = Vec::new();
            if pod.metadata.deletion_timestamp.is_some() {
                keys.push(Key::of(&**pod));
            }
            let node = pods::node_name(pod).map(|name| Key::new("", name));
            keys.extend(node.filter(|key| nodes.get(key).is_none()));
            if pods::is_finished(pod) && change.old.as_ref().is_none_or(|old| !pods::is_finished(old)) {
                keys.push(ended());
            }
            keys
        });
        let pods = context.informers.of::<Pod>();
        context.watch::<Node>(trigger, move |change| {
            let node = change.latest();
            let mut keys = vec![Key::of(&**node)];
            if is_out_of_service(node) {
                let all = pods.list();
                let here = all.iter().filter(|pod| pods::node_name(pod) == Some(&node.name_any()));
                keys.extend(here.map(|pod| Key::of(&**pod)));
            }
            keys
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        if *key == ended() {
            let surplus = surplus(context.informers.of::<Pod>().list());
            return write::all(surplus.iter().map(|pod| write::delete_pod_now(context, pod)))
                .await
                .map(|()| Next::Change);
        }
        if key.namespace.is_empty() {
            return self.look_at_node(context, key).await;
        }
        let Some(pod) = context.informers.of::<Pod>().get(key) else { return Ok(Next::Change) };
        let node = pods::node_name(&pod).map(|name| context.informers.of::<Node>().get(&Key::new("", name)));
        if is_stuck(&pod, node.as_ref().map(Option::as_deref)) {
            fail(context, &pod, "DeletionByPodGC", "PodGC: nobody will end the pod").await?;
            write::delete_pod_now(context, &pod).await?;
        }
        Ok(Next::Change)
    }
}

impl Controller {
    /// Takes the pods of a node away that has been missing long enough, also for the API itself.
    async fn look_at_node(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let forget = || self.missing.lock().expect("nobody panics while holding it").remove(&key.name);
        let all = context.informers.of::<Pod>().list();
        let here: Vec<_> = all.into_iter().filter(|pod| pods::node_name(pod) == Some(&key.name)).collect();
        if here.is_empty() || context.informers.of::<Node>().get(key).is_some() {
            forget();
            return Ok(Next::Change);
        }
        let now = context.world.clock.monotonic();
        let since =
            *self.missing.lock().expect("nobody panics while holding it").entry(key.name.clone()).or_insert(now);
        let left = (since + QUARANTINE).saturating_sub(now);
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let api: Api<Node> = Api::all(context.informers.client().clone());
        if api.get_opt(&key.name).await?.is_none() {
            tracing::info!(node = key.name, pods = here.len(), "the node is gone: its pods go too");
            write::all(here.iter().map(|pod| async move {
                fail(context, pod, "DeletionByPodGC", "PodGC: node no longer exists").await?;
                write::delete_pod_now(context, pod).await
            }))
            .await?;
        }
        forget();
        Ok(Next::Change)
    }
}

/// A pod that has not ended has failed: nobody else will ever say so.
async fn fail(context: &Context, pod: &Pod, reason: &str, message: &str) -> kube::Result<()> {
    if pods::is_finished(pod) {
        return Ok(());
    }
    let told = pods::disrupted(reason, message, context.world.clock.wall());
    write::tell_of_pod(context, pod, true, &told).await
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let ready = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = ready.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !ready && taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether a deleted pod waits for a node that will not come. `node` is none for a pod that is not bound, and holds
/// none when its node is not known.
fn is_stuck(pod: &Pod, node: Option<Option<&Node>>) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        && match node {
            None => true,
            Some(None) => false,
            Some(Some(node)) => is_out_of_service(node),
        }
}

/// Ended pods beyond what is kept: evicted ones first, then the oldest.
fn surplus(mut all: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if all.len() <= ENDED_MAX {
        return Vec::new();
    }
    all.retain(|pod| pods::is_finished(pod));
    let evicted = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.reason.as_deref() == Some("Evicted"));
    all.sort_by_key(|pod| (!evicted(pod), pod.creation_timestamp().map(|time| time.0), pod.name_any()));
    let surplus = all.len().saturating_sub(ENDED_MAX);
    all.truncate(surplus);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deleted_pod_is_stuck_without_a_node_in_service() {
        let pod = |deleted: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": deleted}})).unwrap()
        };
        let node = |taint: &str, ready: &str| -> Node {
            serde_json::from_value(json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let going = pod(Some("2026-01-01T00:00:00Z"));
        assert!(is_stuck(&going, None) && !is_stuck(&pod(None), None) && !is_stuck(&going, Some(None)));
        assert!(is_stuck(&going, Some(Some(&node(OUT_OF_SERVICE, "Unknown")))));
        assert!(!is_stuck(&going, Some(Some(&node(OUT_OF_SERVICE, "True")))));
        assert!(!is_stuck(&going, Some(Some(&node("other", "Unknown")))));
    }

    #[test]
    fn the_oldest_ended_pods_go() {
        let pod = |at: usize| -> Arc<Pod> {
            let reason = (at == 7).then_some("Evicted");
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": format!("p{at:05}")},
                    "status": {"phase": "Failed", "reason": reason}}))
                .unwrap(),
            )
        };
        let all: Vec<_> = (0..ENDED_MAX + 2).map(pod).collect();
        let names: Vec<_> = surplus(all).iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["p00007", "p00000"]);
    }
}
