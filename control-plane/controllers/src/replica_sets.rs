//! ReplicaSet: as many pods as asked for. (`pkg/controller/replicaset/replica_set.go`.)
//!
//! A ReplicationController is the same thing with an older selector; it is looked at as a ReplicaSet
//! (`pkg/controller/replication/conversion.go`).

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;

use crate::write::Namespaced;
use crate::{adopt, pods, write};

/// Pods made or deleted in one look; the rest follow in the next (`BurstReplicas`).
const BURST: usize = 500;

/// A kind that asks for a number of equal pods.
pub(crate) trait Counted: Namespaced {
    /// The controller's name.
    const NAME: &'static str;

    /// The object as a ReplicaSet of the same name and uid.
    fn as_set(&self) -> Cow<'_, ReplicaSet>;
    /// The object with the status of that ReplicaSet.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Counted for ReplicaSet {
    const NAME: &'static str = "replicaset-controller";

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

pub(crate) struct Controller<K>(PhantomData<K>);

impl<K> Default for Controller<K> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<K: Counted> Reconcile for Controller<K> {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<K>(trigger);
        context.watch_owned::<Pod, K>(trigger);
        adopt::watch_orphans::<Pod, K>(context, trigger, |set| Some(set.as_set().spec.as_ref()?.selector.clone()));
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(owner) = context.informers.of::<K>().get(key) else { return Ok(Next::Change) };
        let set = owner.as_set();
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let all = context.informers.of::<Pod>().list_in(&key.namespace);
        let owned = adopt::claim(context, &*owner, &spec.selector, all).await?;
        let now = context.world.clock.wall();
        let steps = steps(&set, &owned);
        let mut failure = None;
        if set.metadata.deletion_timestamp.is_none() {
            failure = carry_out(context, &*owner, &set, &steps).await;
        }
        // The status tells what was seen before this look's own changes; those cause the next look.
        let status = status(&set, &owned, failure.as_ref(), now);
        let new = owner.with_status(status);
        // Compared as the kind can tell it.
        if new.as_set().status != set.status {
            write::replace_status(context, &new).await?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(next(&set, &owned, now)),
        }
    }
}

/// What to do about the number of pods.
#[derive(Debug, Default, PartialEq)]
struct Steps {
    create: usize,
    delete: Vec<String>,
}

fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn steps(set: &ReplicaSet, owned: &[Arc<Pod>]) -> Steps {
    let mut active: Vec<&Pod> = owned.iter().map(|pod| &**pod).filter(|pod| pods::is_active(pod)).collect();
    let wanted = usize::try_from(wanted(set)).unwrap_or(0);
    if active.len() <= wanted {
        return Steps { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
    }
    active.sort_by(|a, b| pods::by_dispensability(a, b));
    let surplus = (active.len() - wanted).min(BURST);
    Steps { create: 0, delete: active[..surplus].iter().map(|pod| pod.name_any()).collect() }
}

async fn carry_out<K: Counted>(context: &Context, owner: &K, set: &ReplicaSet, steps: &Steps) -> Option<kube::Error> {
    let namespace = set.namespace().unwrap_or_default();
    if steps.create > 0 {
        let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        let new = vec![pods::from_template(owner, &template); steps.create];
        return write::create_pods(context, K::NAME, owner, new).await.err();
    }
    let informer = context.informers.of::<Pod>();
    let doomed = steps.delete.iter().filter_map(|name| informer.get(&Key::new(&namespace, name)));
    let deletions = doomed.map(|pod| async move { write::delete_pod(context, K::NAME, owner, &pod).await });
    futures::future::join_all(deletions).await.into_iter().find_map(Result::err)
}

fn status(set: &ReplicaSet, owned: &[Arc<Pod>], failure: Option<&kube::Error>, now: Timestamp) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let labels = spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let active: Vec<&Pod> = owned.iter().map(|pod| &**pod).filter(|pod| pods::is_active(pod)).collect();
    let count = |fits: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| fits(pod)).count() as i32;
    let fully_labelled = |pod: &Pod| labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value));
    let terminating =
        owned.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_finished(pod)).count();
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: Some(count(&fully_labelled)),
        ready_replicas: Some(count(&pods::is_ready)),
        available_replicas: Some(count(&|pod| pods::is_available(pod, seconds, now))),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions(old.conditions, failure, active.len() as i32, wanted(set), now),
    }
}

/// `ReplicaFailure` says why pods are missing (or stay); it goes away with the reason.
fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&kube::Error>,
    active: i32,
    wanted: i32,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut list = old.unwrap_or_default();
    match failure {
        Some(error) => {
            let reason = if active < wanted { "FailedCreate" } else { "FailedDelete" };
            let known = list.iter().any(|c| c.type_ == FAILURE && c.reason.as_deref() == Some(reason));
            if !known {
                list.retain(|c| c.type_ != FAILURE);
                list.push(ReplicaSetCondition {
                    type_: FAILURE.into(),
                    status: "True".into(),
                    reason: Some(reason.into()),
                    message: Some(error.to_string()),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
        None => list.retain(|c| c.type_ != FAILURE),
    }
    (!list.is_empty()).then_some(list)
}

/// Pods become available by time alone; nothing else would tell.
fn next(set: &ReplicaSet, owned: &[Arc<Pod>], now: Timestamp) -> Next {
    let seconds = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let waits = owned.iter().filter(|pod| pods::is_ready(pod)).filter_map(|pod| pods::available_in(pod, seconds, now));
    match waits.filter(|wait| wait.is_positive()).min() {
        Some(wait) => Next::After(Duration::try_from(wait).unwrap_or_default()),
        None => Next::Change,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "generation": 3}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}}}))
        .unwrap()
    }

    fn pod(name: &str, phase: &str, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": "a"}},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn missing_pods_are_made_and_surplus_ones_go() {
        let owned = [pod("a", "Running", "True"), pod("b", "Running", "False"), pod("c", "Failed", "False")];
        assert_eq!(steps(&set(4), &owned), Steps { create: 2, delete: vec![] });
        assert_eq!(steps(&set(2), &owned), Steps::default());
        assert_eq!(steps(&set(1), &owned), Steps { create: 0, delete: vec!["b".into()] });
        assert_eq!(steps(&set(0), &owned).delete, ["b", "a"]);
        assert_eq!(steps(&set(10_000), &[]).create, BURST);
    }

    #[test]
    fn the_status_counts_what_is_there() {
        let now = Timestamp::UNIX_EPOCH;
        let owned = [pod("a", "Running", "True"), pod("b", "Running", "False"), pod("c", "Failed", "False")];
        let status = status(&set(2), &owned, None, now);
        let counts = (status.replicas, status.ready_replicas, status.available_replicas, status.fully_labeled_replicas);
        assert_eq!(counts, (2, Some(1), Some(1), Some(2)));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.conditions, None);
    }
}
