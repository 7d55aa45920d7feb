//! What a deployment says about itself. Pure. (`pkg/controller/deployment/{sync,progress}.go`.)

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::Next;
use kube::ResourceExt;

use crate::share;

use super::{Sets, rollout, size, wanted};

/// Sets whose last news is this long ago are given up (`progressDeadlineSeconds`), unless the deployment says else.
const DEADLINE_SECONDS: i32 = 600;

/// The status now, and when the deadline must be looked at again.
pub(super) fn status(
    deployment: &Deployment,
    sets: &Sets,
    clash: Option<i32>,
    now: Timestamp,
) -> (DeploymentStatus, Next) {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |of: &dyn Fn(&ReplicaSet) -> Option<i32>| share::sum(sets.all().filter_map(|set| of(set)));
    let count = |of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        sum(&move |set: &ReplicaSet| set.status.as_ref().and_then(of))
    };
    let replicas = count(|status| Some(status.replicas));
    let available = count(|status| status.available_replicas);
    let updated = sets.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let total = share::sum(sets.all().map(|set| size(set)));
    let some = |count: i32| (count != 0).then_some(count);
    let mut status = DeploymentStatus {
        replicas: some(replicas),
        updated_replicas: some(updated),
        ready_replicas: some(count(|status| status.ready_replicas)),
        available_replicas: some(available),
        unavailable_replicas: some((total - available).max(0)),
        terminating_replicas: some(count(|status| status.terminating_replicas)),
        observed_generation: deployment.metadata.generation,
        collision_count: clash.or(old.collision_count),
        conditions: None,
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let enough = available >= wanted(deployment) - rollout::unavailable(deployment);
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut conditions, "Available", value, reason, message, now);
    let next = progress(deployment, sets, &old, &status, &mut conditions, now);
    let failure = sets.all().find_map(failure_of);
    match failure {
        Some((reason, message)) => set_condition(&mut conditions, "ReplicaFailure", "True", &reason, &message, now),
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    status.conditions = Some(conditions);
    (status, next)
}

fn failure_of(set: &Arc<ReplicaSet>) -> Option<(String, String)> {
    let condition = set.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure")?;
    Some((condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default()))
}

/// Keeps `Progressing` true while things move, and says when they stopped for too long.
fn progress(
    deployment: &Deployment,
    sets: &Sets,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Next {
    let name = sets.new.as_ref().map_or_else(|| deployment.name_any(), |set| set.name_any());
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    let known = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    let was = |reason: &str| known.as_ref().is_some_and(|c| c.reason.as_deref() == Some(reason));
    if paused {
        if !was("DeploymentPaused") {
            set_condition(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", now);
        }
        return Next::Change;
    }
    if was("DeploymentPaused") {
        set_condition(conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", now);
    }
    let count = |value: Option<i32>| value.unwrap_or(0);
    let complete = [status.updated_replicas, status.replicas, status.available_replicas]
        .iter()
        .all(|c| count(*c) == wanted(deployment))
        && sets.new.is_some();
    if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        set_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", &message, now);
        return Next::Change;
    }
    let moved = count(status.updated_replicas) > count(old.updated_replicas)
        || count(status.replicas) - count(status.updated_replicas) < count(old.replicas) - count(old.updated_replicas)
        || count(status.ready_replicas) > count(old.ready_replicas)
        || count(status.available_replicas) > count(old.available_replicas);
    let new_rollout =
        known.is_none() || old.observed_generation != deployment.metadata.generation && was("NewReplicaSetAvailable");
    if moved || new_rollout {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        // A step forward restarts the clock even when nothing else about the condition changes.
        set_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", &message, now);
        if let Some(condition) = conditions.iter_mut().find(|c| c.type_ == "Progressing") {
            condition.last_update_time = Some(Time(now));
        }
    }
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds).unwrap_or(DEADLINE_SECONDS);
    let since = conditions
        .iter()
        .find(|c| c.type_ == "Progressing")
        .and_then(|c| c.last_update_time.as_ref())
        .map_or(now, |time| time.0);
    let left = SignedDuration::from_secs(i64::from(seconds)) - now.duration_since(since);
    if was("ProgressDeadlineExceeded") && !moved {
        return Next::Change;
    }
    if left.is_positive() {
        return Next::After(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1));
    }
    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
    set_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", &message, now);
    Next::Change
}

fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let old = conditions.iter().position(|condition| condition.type_ == kind).map(|at| conditions.remove(at));
    if let Some(old) = old.clone()
        && old.status == status
        && old.reason.as_deref() == Some(reason)
        && old.message.as_deref() == Some(message)
    {
        conditions.push(old);
        return;
    }
    let kept = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time);
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: kept.or(Some(Time(now))),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "template": {}, "progressDeadlineSeconds": 60}, "status": status}))
        .unwrap()
    }

    fn sets(available: i32) -> Sets {
        let set = json!({"metadata": {"name": "d-x"}, "spec": {"replicas": 2, "selector": {}},
            "status": {"replicas": 2, "readyReplicas": available, "availableReplicas": available}});
        Sets { new: Some(Arc::new(serde_json::from_value(set).unwrap())), old: Vec::new() }
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        let list = status.conditions.as_ref().unwrap();
        list.iter().find(|c| c.type_ == kind).and_then(|c| c.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn a_rollout_progresses_times_out_and_completes() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (first, next) = status(&deployment(json!({})), &sets(1), None, start);
        assert_eq!(reason(&first, "Progressing"), "ReplicaSetUpdated");
        assert_eq!(reason(&first, "Available"), "MinimumReplicasUnavailable");
        assert_eq!(next, Next::After(Duration::from_secs(61)));
        let later = start.checked_add(SignedDuration::from_secs(61)).unwrap();
        let (stuck, _) = status(&deployment(json!(first)), &sets(1), None, later);
        assert_eq!(reason(&stuck, "Progressing"), "ProgressDeadlineExceeded");
        let (done, next) = status(&deployment(json!(stuck)), &sets(2), None, later);
        assert_eq!(reason(&done, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(reason(&done, "Available"), "MinimumReplicasAvailable");
        assert_eq!((done.updated_replicas, done.unavailable_replicas, next), (Some(2), None, Next::Change));
        let (same, _) = status(&deployment(json!(done)), &sets(2), None, later);
        assert_eq!(same, done, "nothing changes when nothing changed");
    }
}
