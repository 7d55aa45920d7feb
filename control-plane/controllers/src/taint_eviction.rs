//! Taint eviction: pods that do not bear a node's NoExecute taints go, at once or after the time they bear them.
//! (`pkg/controller/tainteviction`.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kedge_client::{Context, Key, Next, Reconcile, Trigger, tolerates};
use kube::ResourceExt;

use crate::jobs::after;
use crate::{pods, write};

/// Remembers since when each pod has been on a tainted node.
#[derive(Default)]
pub(crate) struct Controller {
    since: Mutex<HashMap<String, Timestamp>>,
}

/// What becomes of a pod.
#[derive(Debug, PartialEq)]
enum Fate {
    Stays,
    /// It goes when it has been there for so long.
    GoesAfter(SignedDuration),
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let nodes = context.informers.of::<Node>();
        context.watch::<Pod>(trigger, move |change| {
            let pod = change.latest();
            let node = pods::node_name(pod).and_then(|name| nodes.get(&Key::new("", name)));
            let concerned = change.new.is_none() || node.is_some_and(|node| drives_away(&node).next().is_some());
            if concerned { vec![Key::of(&**pod)] } else { Vec::new() }
        });
        let pods = context.informers.of::<Pod>();
        context.watch::<Node>(trigger, move |change| {
            let taints =
                |node: &Option<Arc<Node>>| node.as_ref().map(|node| drives_away(node).cloned().collect::<Vec<_>>());
            let (old, new) = (taints(&change.old).unwrap_or_default(), taints(&change.new).unwrap_or_default());
            if old == new {
                return Vec::new();
            }
            let name = change.latest().name_any();
            let all = pods.list();
            let here = all.iter().filter(|pod| pods::node_name(pod) == Some(&name));
            here.map(|pod| Key::of(&**pod)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let pod = context.informers.of::<Pod>().get(key).filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let Some(pod) = pod else {
            self.forget_gone(context);
            return Ok(Next::Change);
        };
        let name = pods::node_name(&pod).unwrap_or_default();
        let Some(node) = context.informers.of::<Node>().get(&Key::new("", name)) else { return Ok(Next::Change) };
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let uid = pod.uid().unwrap_or_default();
        let now = context.world.clock.wall();
        let Fate::GoesAfter(time) = fate(drives_away(&node), tolerations) else {
            self.since.lock().expect("nobody panics while holding it").remove(&uid);
            return Ok(Next::Change);
        };
        let since = *self.since.lock().expect("nobody panics while holding it").entry(uid).or_insert(now);
        let left = time.saturating_sub(now.duration_since(since));
        if left.is_positive() {
            return Ok(Next::After(after(left)));
        }
        tracing::info!(pod = %key, node = name, "the pod does not bear the node's taints any longer");
        let told = pods::disrupted("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now);
        write::tell_of_pod(context, &pod, false, &told).await?;
        write::delete(context, &*pod).await?;
        Ok(Next::Change)
    }
}

impl Controller {
    /// Deleted pods are not remembered.
    fn forget_gone(&self, context: &Context) {
        let mut since = self.since.lock().expect("nobody panics while holding it");
        if !since.is_empty() {
            let pods = context.informers.of::<Pod>().list();
            since.retain(|uid, _| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
        }
    }
}

/// The taints that drive pods away.
fn drives_away(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute")
}

/// A pod stays when it bears every taint without limit; the shortest limit counts, none at all is at once.
fn fate<'a>(taints: impl Iterator<Item = &'a Taint>, tolerations: &[Toleration]) -> Fate {
    let mut shortest = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Fate::GoesAfter(SignedDuration::ZERO);
        };
        if let Some(seconds) = toleration.toleration_seconds {
            shortest = Some(shortest.map_or(seconds, |before: i64| before.min(seconds)).max(0));
        }
    }
    shortest.map_or(Fate::Stays, |seconds| Fate::GoesAfter(SignedDuration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_shortest_patience_counts() {
        let check = |taints: Value, tolerations: Value, expected: Option<i64>| {
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            let expected = expected.map_or(Fate::Stays, |s| Fate::GoesAfter(SignedDuration::from_secs(s)));
            assert_eq!(fate(taints.iter(), &tolerations), expected, "{taints:?} {tolerations:?}");
        };
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute"});
        let bears =
            |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        check(json!([]), json!([]), None);
        check(json!([taint("a")]), json!([]), Some(0));
        check(json!([taint("a")]), json!([bears("a", None)]), None);
        check(json!([taint("a")]), json!([bears("a", Some(300))]), Some(300));
        check(json!([taint("a"), taint("b")]), json!([bears("a", Some(300)), bears("b", Some(20))]), Some(20));
        check(json!([taint("a"), taint("b")]), json!([bears("a", Some(300))]), Some(0));
        check(json!([taint("a")]), json!([bears("a", Some(-5))]), Some(0));
    }
}
