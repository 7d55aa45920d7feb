//! DaemonSet: a pod on every node that it fits. (`pkg/controller/daemon`.)
//!
//! The pods are bound by the scheduler: each asks for its node by name. [`plan`] says which to make and which to take
//! away.

mod plan;

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use kedge_client::{Change, Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;
use std::sync::Mutex;

use crate::jobs::after;
use crate::{adopt, history, pods, write};

/// The label of revisions and pods that tells the hash of the template.
const HASH: &str = "controller-revision-hash";
/// The wait before a failed pod is replaced again on the same node; it doubles. The first one goes at once.
const BACKOFF: SignedDuration = SignedDuration::from_secs(1);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(15);

/// A set on a node, at one generation.
type Place = (String, Option<i64>, String);

/// Pods that fail again and again, mostly because their node refuses them, must not be replaced in a hot loop.
#[derive(Default)]
pub(crate) struct Controller {
    failures: Mutex<HashMap<Place, Failures>>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    wait: SignedDuration,
    last: Timestamp,
}

impl Failures {
    /// How long the next replacement has to wait.
    fn left(&self, now: Timestamp) -> Option<SignedDuration> {
        Some(self.wait - now.duration_since(self.last)).filter(|left| left.is_positive())
    }

    /// After one more; long quiet forgets what was before.
    fn again(before: Option<Self>, now: Timestamp) -> Self {
        let recent = before.filter(|before| now.duration_since(before.last) < BACKOFF_MAX * 2);
        let wait = recent.map_or(BACKOFF, |before| (before.wait * 2).min(BACKOFF_MAX));
        Self { wait, last: now }
    }
}

impl history::Revised for DaemonSet {
    const HASH_LABEL: &'static str = HASH;

    fn template(&self) -> Option<&PodTemplateSpec> {
        Some(&self.spec.as_ref()?.template)
    }

    fn collisions(&self) -> i32 {
        self.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)
    }
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "daemon-set-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<DaemonSet>(trigger);
        context.watch_owned::<Pod, DaemonSet>(trigger);
        context.watch_owned::<ControllerRevision, DaemonSet>(trigger);
        adopt::watch_orphans::<Pod, DaemonSet>(context, trigger, |set| Some(set.spec.as_ref()?.selector.clone()));
        let sets = context.informers.of::<DaemonSet>();
        context.watch::<Node>(trigger, move |change| {
            if same_for_sets(change) {
                return Vec::new();
            }
            sets.list().iter().map(|set| Key::of(&**set)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(set) = context.informers.of::<DaemonSet>().get(key) else { return Ok(Next::Change) };
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        if pods::is_empty(&spec.selector) || set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let revisions = history::list(context, &*set, &spec.selector).await?;
        let (newest, collisions) = history::newest(context, &*set, &revisions).await?;
        let hash = newest.labels().get(HASH).cloned().unwrap_or_else(|| newest.name_any());
        let all = context.informers.of::<Pod>().list_in(&key.namespace);
        let owned = adopt::claim(context, &*set, &spec.selector, all).await?;
        let nodes = context.informers.of::<Node>().list();
        let now = context.world.clock.wall();
        let wait = |node: &str| {
            let failures = self.failures.lock().expect("nobody panics while holding it");
            failures.get(&place(&set, node))?.left(now)
        };
        let plan = plan::plan(&set, spec, &hash, collisions, &owned, &nodes, &wait, now);
        self.remember(&set, &plan.failed, now);
        let result = carry_out(context, self.name(), &set, &plan).await;
        if Some(&plan.status) != set.status.as_ref() {
            let new = DaemonSet { status: Some(plan.status.clone()), ..(*set).clone() };
            match write::replace_status(context, &new).await {
                Err(error) if write::is(&error, 409) || write::is(&error, 404) => {}
                other => other?,
            }
        }
        result?;
        let hash_of = |labels: &std::collections::BTreeMap<String, String>| labels.get(HASH).cloned();
        let used = |revision: &ControllerRevision| {
            let hash = hash_of(revision.labels());
            revision.name_any() == newest.name_any() || owned.iter().any(|pod| hash_of(pod.labels()) == hash)
        };
        let limit = spec.revision_history_limit.unwrap_or(10);
        write::all(history::surplus(&revisions, used, limit).iter().map(|old| write::delete(context, &**old))).await?;
        Ok(plan.next.map_or(Next::Change, |wait| Next::After(after(wait))))
    }
}

impl Controller {
    fn remember(&self, set: &DaemonSet, nodes: &[String], now: Timestamp) {
        let mut failures = self.failures.lock().expect("nobody panics while holding it");
        failures.retain(|_, failures| now.duration_since(failures.last) < BACKOFF_MAX * 2);
        for node in nodes {
            let place = place(set, node);
            let before = failures.get(&place).copied();
            failures.insert(place, Failures::again(before, now));
        }
    }
}

fn place(set: &DaemonSet, node: &str) -> Place {
    (set.uid().unwrap_or_default(), set.metadata.generation, node.to_owned())
}

async fn carry_out(context: &Context, name: &str, set: &DaemonSet, plan: &plan::Plan) -> kube::Result<()> {
    let made = write::create_pods(context, name, set, plan.create.clone()).await;
    made.and(write::all(plan.delete.iter().map(|pod| write::delete_pod(context, name, set, pod))).await)
}

/// Whether nothing about a node changed that decides where pods fit.
fn same_for_sets(change: &Change<Node>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return false };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels == new.metadata.labels && taints(old) == taints(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_on_one_node_wait_longer_each_time() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let first = Failures::again(None, at(0));
        assert_eq!(first.left(at(0)), Some(SignedDuration::from_secs(1)));
        assert_eq!(first.left(at(1)), None);
        let second = Failures::again(Some(first), at(1));
        assert_eq!(second.left(at(2)), Some(SignedDuration::from_secs(1)));
        assert_eq!(Failures::again(Some(second), at(4000)).wait, BACKOFF);
    }
}
