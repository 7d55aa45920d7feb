//! PodDisruptionBudget: how many pods may go at once by somebody's will. (`pkg/controller/disruption`.)
//!
//! The eviction of a pod spends what is told here; it notes the pod in `status.disruptedPods`, and this controller
//! takes the note off when the pod is gone, or was not taken away within [`DELETION_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodCondition, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Resource, ResourceExt};

use crate::jobs::after;
use crate::share::{Round, share, sum};
use crate::{pods, write};

/// A pod that was to be evicted and still is there so long after is not going (`DeletionTimeout`).
const DELETION_MAX: SignedDuration = SignedDuration::from_mins(2);
const CONDITION: &str = "DisruptionAllowed";

/// Budgets and their status.
pub(crate) struct Budgets;

impl Reconcile for Budgets {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<PodDisruptionBudget>(trigger);
        // The scales of these are read.
        let _ = (context.informers.of::<ReplicaSet>(), context.informers.of::<Deployment>());
        let _ = (context.informers.of::<StatefulSet>(), context.informers.of::<ReplicationController>());
        let budgets = context.informers.of::<PodDisruptionBudget>();
        context.watch::<Pod>(trigger, move |change| {
            let here = budgets.list_in(&change.latest().namespace().unwrap_or_default());
            let sides: Vec<&Arc<Pod>> = change.old.iter().chain(&change.new).collect();
            let concerned = here.iter().filter(|budget| sides.iter().any(|pod| covers(budget, pod)));
            concerned.map(|budget| Key::of(&**budget)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(budget) = context.informers.of::<PodDisruptionBudget>().get(key) else { return Ok(Next::Change) };
        let mut covered = context.informers.of::<Pod>().list_in(&key.namespace);
        covered.retain(|pod| covers(&budget, pod));
        let scales = scales(context, &key.namespace, &budget, &covered).await;
        let now = context.world.clock.wall();
        let (status, next) = match scales {
            Ok(scales) => status(&budget, &covered, &scales, now),
            Err(why) => (failed(&budget, &why, now), None),
        };
        if Some(&status) != budget.status.as_ref() {
            let new = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
            write::replace_status(context, &new).await?;
        }
        Ok(next.map_or(Next::Change, |wait| Next::After(after(wait))))
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    // In policy/v1 an empty selector is every pod, a missing one none.
    selector.is_some_and(|selector| pods::selects(selector, pod.metadata.labels.as_ref()))
}

/// The sizes of the pods' controllers, by uid, when the budget asks for a share of them.
async fn scales(
    context: &Context,
    namespace: &str,
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
) -> Result<BTreeMap<String, i32>, String> {
    let mut scales = BTreeMap::new();
    let Some(spec) = &budget.spec else { return Ok(scales) };
    if spec.max_unavailable.is_none() && !matches!(spec.min_available, Some(IntOrString::String(_))) {
        return Ok(scales);
    }
    let mut asked = BTreeSet::new();
    for pod in covered {
        let Some(owner) = pods::controller_of(&**pod) else { continue };
        if asked.insert(owner.uid.clone()) {
            let known = known_scale(context, namespace, owner);
            let found = match known {
                Some(found) => Some(found),
                None => asked_scale(context, namespace, owner).await?,
            };
            let Some((uid, scale)) = found else {
                return Err(format!("found no controllers for pod {:?}", pod.name_any()));
            };
            scales.insert(uid, scale);
        }
    }
    Ok(scales)
}

/// The size that one of the built-in controllers asks for; a deployment's when it stands behind a set.
fn known_scale(context: &Context, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
    fn found<K: crate::write::Namespaced>(
        context: &Context,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Option<Arc<K>> {
        if owner.kind != K::kind(&()) || owner.api_version != K::api_version(&()) {
            return None;
        }
        let found = context.informers.of::<K>().get(&Key::new(namespace, &owner.name))?;
        (found.uid().as_ref() == Some(&owner.uid)).then_some(found)
    }
    if let Some(set) = found::<ReplicaSet>(context, namespace, owner) {
        let above = pods::controller_of(&*set).filter(|above| above.kind == Deployment::kind(&()));
        if let Some(above) = above {
            let deployment = found::<Deployment>(context, namespace, above)?;
            return Some((above.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)));
        }
        return Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)));
    }
    if let Some(set) = found::<StatefulSet>(context, namespace, owner) {
        return Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)));
    }
    let controller = found::<ReplicationController>(context, namespace, owner)?;
    Some((owner.uid.clone(), controller.spec.as_ref()?.replicas.unwrap_or(1)))
}

/// The size that any other controller tells through its `scale`.
async fn asked_scale(
    context: &Context,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<(String, i32)>, String> {
    let client = context.informers.client();
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let kind = GroupVersionKind::gvk(group, version, &owner.kind);
    let (resource, _) = kube::discovery::pinned_kind(client, &kind).await.map_err(|error| error.to_string())?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    match api.get_scale(&owner.name).await {
        Ok(scale) if scale.metadata.uid.as_ref() == Some(&owner.uid) => {
            Ok(Some((owner.uid.clone(), scale.spec.and_then(|spec| spec.replicas).unwrap_or(0))))
        }
        Ok(_) => Ok(None),
        Err(error) if write::is(&error, 404) || write::is(&error, 405) => {
            let name = if group.is_empty() { resource.plural } else { format!("{}.{group}", resource.plural) };
            Err(format!("{name} does not implement the scale subresource"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// How many pods there should be, and how many of them must be healthy. (`getExpectedPodCount`.)
fn expected(budget: &PodDisruptionBudget, covered: &[Arc<Pod>], scales: &BTreeMap<String, i32>) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    let whole = sum(scales.values().copied());
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (whole, whole.saturating_sub(share(most, whole, Round::Up)).max(0)),
        (None, Some(IntOrString::Int(least))) => (covered.len() as i32, *least),
        (None, Some(least)) => (whole, share(least, whole, Round::Up)),
        (None, None) => (0, 0),
    }
}

/// The status, and when a note about an evicted pod has to be looked at again.
fn status(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    scales: &BTreeMap<String, i32>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<SignedDuration>) {
    let old = budget.status.clone().unwrap_or_default();
    let (expected, desired) = expected(budget, covered, scales);
    let staying = || covered.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut disrupted = old.disrupted_pods.unwrap_or_default();
    disrupted.retain(|name, since| {
        now.duration_since(since.0) <= DELETION_MAX && staying().any(|pod| pod.name_any() == *name)
    });
    let next = disrupted.values().map(|since| DELETION_MAX - now.duration_since(since.0)).min();
    let healthy =
        staying().filter(|pod| !disrupted.contains_key(&pod.name_any()) && pods::is_ready(pod)).count() as i32;
    let allowed = if expected <= 0 { 0 } else { healthy.saturating_sub(desired).max(0) };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set(&mut status, value, reason, "", now);
    (status, next.map(|wait| wait + SignedDuration::from_millis(1)))
}

/// The status when the controllers' sizes cannot be told: nothing may go. (`failSafe`.)
fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    status.current_healthy.get_or_insert(0);
    status.desired_healthy.get_or_insert(0);
    status.expected_pods.get_or_insert(0);
    set(&mut status, "False", "SyncFailed", why, now);
    status
}

fn set(status: &mut PodDisruptionBudgetStatus, value: &str, reason: &str, message: &str, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == CONDITION).map(|at| conditions.remove(at));
    let since = old.filter(|old| old.status == value).map_or(Time(now), |old| old.last_transition_time);
    conditions.push(Condition {
        type_: CONDITION.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since,
        observed_generation: status.observed_generation,
    });
}

/// Pods that were told to be on their way out and are not.
pub(crate) struct Stale;

impl Reconcile for Stale {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "disruption-controller-stale"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch::<Pod>(trigger, |change| match &change.new {
            Some(pod) if told(pod).is_some() => vec![Key::of(&**pod)],
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let pod = context.informers.of::<Pod>().get(key);
        let Some((pod, since)) = pod.as_ref().and_then(|pod| Some((pod, told(pod)?))) else { return Ok(Next::Change) };
        let now = context.world.clock.wall();
        let left = DELETION_MAX - now.duration_since(since);
        if left.is_positive() {
            return Ok(Next::After(after(left)));
        }
        let mut condition = pods::disrupted("", "", now);
        condition.status = "False".into();
        write::tell_of_pod(context, pod, false, &condition).await?;
        Ok(Next::Change)
    }
}

/// Since when a pod that stays says that it is about to be disrupted.
fn told(pod: &Pod) -> Option<Timestamp> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return None;
    }
    // What the node says may well take longer.
    let fits = |condition: &&PodCondition| {
        condition.status == "True" && condition.reason.as_deref() != Some("TerminationByKubelet")
    };
    pods::condition(pod, "DisruptionTarget").filter(fits)?.last_transition_time.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ready: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "labels": {"a": "b"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_a_budget_allows() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        // Expected, desired, healthy, allowed.
        let check = |spec: Value, disrupted: Value, scale: i32, numbers: [i32; 4]| {
            let budget = json!({"metadata": {"generation": 2}, "spec": spec, "status": {"disruptedPods": disrupted,
                "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}});
            let budget: PodDisruptionBudget = serde_json::from_value(budget).unwrap();
            let pods = [pod("a", "True"), pod("b", "True"), pod("c", "True"), pod("d", "False")];
            let (status, next) = status(&budget, &pods, &BTreeMap::from([("x".to_owned(), scale)]), now);
            let found =
                [status.expected_pods, status.desired_healthy, status.current_healthy, status.disruptions_allowed];
            assert_eq!(found, numbers.map(Some), "{budget:?}");
            let allowed = if numbers[3] > 0 { "True" } else { "False" };
            assert_eq!(status.conditions.unwrap()[0].status, allowed);
            next
        };
        check(json!({"minAvailable": 2}), json!({}), 0, [4, 2, 3, 1]);
        check(json!({"minAvailable": "50%"}), json!({}), 5, [5, 3, 3, 0]);
        check(json!({"maxUnavailable": 2}), json!({}), 4, [4, 2, 3, 1]);
        check(json!({"maxUnavailable": "30%"}), json!({}), 4, [4, 2, 3, 1]);
        check(json!({"maxUnavailable": 1}), json!({}), 0, [0, 0, 3, 0]);
        check(json!({}), json!({}), 4, [0, 0, 3, 0]);
        // Evicted and not gone yet; evicted long ago and still there; gone.
        let next = check(
            json!({"minAvailable": 1}),
            json!({"a": "2026-01-01T00:01:00Z", "gone": "2026-01-01T00:01:00Z"}),
            0,
            [4, 1, 2, 1],
        );
        assert_eq!(next.map(|wait| wait.as_secs()), Some(60));
        check(json!({"minAvailable": 1}), json!({"a": "2025-12-31T23:59:00Z"}), 0, [4, 1, 3, 2]);
    }

    #[test]
    fn a_failure_allows_nothing() {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({"status": {"disruptionsAllowed": 3,
            "currentHealthy": 3, "desiredHealthy": 0, "expectedPods": 3}}))
        .unwrap();
        let status = failed(&budget, "jobs.batch does not implement the scale subresource", Timestamp::UNIX_EPOCH);
        assert_eq!((status.disruptions_allowed, &*status.conditions.unwrap()[0].reason), (Some(0), "SyncFailed"));
    }
}
