//! How large each set of a deployment should be next. Pure.
//! (`pkg/controller/deployment/{rolling,recreate,sync}.go`.)

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::share::{Round, share, sum};

use super::{DESIRED, MAX, Sets, size, wanted};

/// The sizes to set; sets that are not named stay as they are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Of the set of the present template, which may not exist yet.
    pub(super) new: Option<i32>,
    /// Of others, by name.
    pub(super) old: Vec<(String, i32)>,
}

/// `has_pods` says whether a set still has pods that run.
pub(super) fn plan(deployment: &Deployment, sets: &Sets, has_pods: &dyn Fn(&ReplicaSet) -> bool) -> Plan {
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    if paused || is_scaling(deployment, sets) {
        let plan = scale(deployment, sets);
        if paused || plan != Plan::default() {
            return plan;
        }
    }
    if strategy(deployment) == "Recreate" { recreate(deployment, sets, has_pods) } else { rolling(deployment, sets) }
}

fn strategy(deployment: &Deployment) -> &str {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate")
}

/// How many pods there may be beyond the wanted number.
pub(super) fn surge(deployment: &Deployment) -> i32 {
    limits(deployment).0
}

/// The most that may be missing while a rollout is under way.
pub(super) fn unavailable(deployment: &Deployment) -> i32 {
    limits(deployment).1
}

/// `maxSurge` rounded up and `maxUnavailable` rounded down; both nothing would never end (`ResolveFenceposts`).
fn limits(deployment: &Deployment) -> (i32, i32) {
    if strategy(deployment) == "Recreate" {
        return (0, 0);
    }
    let rolling = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
    let whole = wanted(deployment);
    let quarter = IntOrString::String("25%".to_owned());
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter), whole, Round::Up);
    let missing = share(rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter), whole, Round::Down);
    if surge == 0 && missing == 0 { (0, 1) } else { (surge, missing.min(whole)) }
}

fn recreate(deployment: &Deployment, sets: &Sets, has_pods: &dyn Fn(&ReplicaSet) -> bool) -> Plan {
    let running: Vec<(String, i32)> =
        sets.old.iter().filter(|set| size(set) > 0).map(|set| (set.name_any(), 0)).collect();
    if !running.is_empty() {
        return Plan { new: None, old: running };
    }
    if sets.old.iter().any(|set| has_pods(set)) {
        return Plan::default();
    }
    Plan { new: resized(sets, wanted(deployment)), old: Vec::new() }
}

/// The new set's size, if it is another than now.
fn resized(sets: &Sets, replicas: i32) -> Option<i32> {
    match &sets.new {
        Some(set) if size(set) == replicas => None,
        _ => Some(replicas),
    }
}

fn rolling(deployment: &Deployment, sets: &Sets) -> Plan {
    if let Some(new) = resized(sets, grown(deployment, sets)) {
        return Plan { new: Some(new), old: Vec::new() };
    }
    Plan { new: None, old: shrunk(deployment, sets) }
}

/// The new set grows as far as the surge leaves room.
fn grown(deployment: &Deployment, sets: &Sets) -> i32 {
    let now = sets.new.as_ref().map_or(0, |set| size(set));
    let wanted = wanted(deployment);
    if now >= wanted {
        return wanted;
    }
    let total = sum(sets.all().map(|set| size(set)));
    let room = wanted.saturating_add(surge(deployment)).saturating_sub(total);
    now + room.clamp(0, wanted - now)
}

/// The old sets shrink as far as the pods that serve allow: first what does not serve, then the oldest.
fn shrunk(deployment: &Deployment, sets: &Sets) -> Vec<(String, i32)> {
    let total = sum(sets.all().map(|set| size(set)));
    let least = wanted(deployment) - unavailable(deployment);
    let new_missing = sets.new.as_ref().map_or(0, |set| size(set) - available(set));
    let mut budget = total.saturating_sub(least).saturating_sub(new_missing);
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = sets.old.iter().map(|set| (set, size(set))).collect();
    if budget > 0 {
        for (set, size) in &mut sizes {
            let sick = (*size - available(set)).clamp(0, budget);
            *size -= sick;
            budget -= sick;
        }
        let serving = sum(sets.all().map(available));
        let mut spare = serving - least;
        for (_, size) in &mut sizes {
            let cut = (*size).min(spare.max(0));
            *size -= cut;
            spare -= cut;
        }
    }
    sizes.iter().filter(|(set, wanted)| size(set) != *wanted).map(|(set, wanted)| (set.name_any(), *wanted)).collect()
}

fn available(set: &Arc<ReplicaSet>) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn note(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.annotations().get(key)?.parse().ok()
}

/// Whether the deployment's size changed since its running sets were last told.
fn is_scaling(deployment: &Deployment, sets: &Sets) -> bool {
    let running = sets.all().filter(|set| size(set) > 0);
    running.filter_map(|set| note(set, DESIRED)).any(|told| told != wanted(deployment))
}

/// Shares a change of the deployment's size among the sets that run, in proportion to their sizes.
fn scale(deployment: &Deployment, sets: &Sets) -> Plan {
    let wanted = wanted(deployment);
    let running: Vec<&Arc<ReplicaSet>> = sets.all().filter(|set| size(set) > 0).collect();
    let named = |set: &ReplicaSet, replicas: i32| match &sets.new {
        Some(new) if new.name_any() == set.name_any() => Plan { new: resized(sets, replicas), old: Vec::new() },
        _ if size(set) == replicas => Plan::default(),
        _ => Plan { new: None, old: vec![(set.name_any(), replicas)] },
    };
    let latest = sets.new.as_ref().or(sets.old.last());
    match (&running[..], latest) {
        ([only], _) => return named(only, wanted),
        ([], Some(latest)) => return named(latest, wanted),
        ([], None) => return Plan::default(),
        _ => {}
    }
    let saturated = sets
        .new
        .as_ref()
        .is_some_and(|set| size(set) == wanted && note(set, DESIRED) == Some(wanted) && available(set) == wanted);
    if saturated {
        let stale = sets.old.iter().filter(|set| size(set) > 0).map(|set| (set.name_any(), 0));
        return Plan { new: None, old: stale.collect() };
    }
    if strategy(deployment) == "Recreate" {
        return Plan::default();
    }
    share_out(deployment, sets, running)
}

fn share_out(deployment: &Deployment, sets: &Sets, mut running: Vec<&Arc<ReplicaSet>>) -> Plan {
    let total = sum(running.iter().map(|set| size(set)));
    let allowed = if wanted(deployment) > 0 { wanted(deployment).saturating_add(surge(deployment)) } else { 0 };
    let mut left = allowed - total;
    // Largest first; of equals the newer grows first and the older shrinks first.
    running.sort_by_key(|set| set.creation_timestamp().map(|time| time.0));
    if left > 0 {
        running.reverse();
    }
    running.sort_by_key(|set| Reverse(size(set)));
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = Vec::new();
    for set in running {
        let before = note(set, MAX).unwrap_or(total).max(1);
        let exact = f64::from(size(set)) * f64::from(allowed) / f64::from(before);
        let fraction = (exact.round() as i32).saturating_sub(size(set));
        let step = if left > 0 { fraction.clamp(0, left) } else { fraction.clamp(left, 0) };
        left -= step;
        sizes.push((set, size(set).saturating_add(step)));
    }
    // What rounding left over goes to the largest.
    if let Some((_, first)) = sizes.first_mut() {
        *first = first.saturating_add(left).max(0);
    }
    let mut plan = Plan::default();
    for (set, wanted) in sizes {
        match &sets.new {
            Some(new) if new.name_any() == set.name_any() => plan.new = resized(sets, wanted),
            _ if size(set) != wanted => plan.old.push((set.name_any(), wanted)),
            _ => {}
        }
    }
    plan
}

/// Old sets beyond the history that is kept, once the rollout is complete.
pub(super) fn forgotten(deployment: &Deployment, sets: &Sets) -> Vec<String> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let complete = sets.new.as_ref().is_some_and(|set| available(set) >= wanted(deployment));
    if !complete {
        return Vec::new();
    }
    let idle = |set: &&Arc<ReplicaSet>| {
        let status = set.status.as_ref();
        let seen = status.and_then(|status| status.observed_generation) >= set.metadata.generation;
        size(set) == 0
            && status.is_none_or(|status| status.replicas == 0)
            && seen
            && set.metadata.deletion_timestamp.is_none()
    };
    let mut old: Vec<&Arc<ReplicaSet>> = sets.old.iter().filter(idle).collect();
    old.sort_by_key(|set| super::revision(set));
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old[..surplus].iter().map(|set| set.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {},
            "template": {}, "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    fn set(name: &str, size: i32, available: i32, desired: i32, max: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {DESIRED: desired.to_string(), MAX: max.to_string()}},
            "spec": {"replicas": size, "selector": {}}, "status": {"replicas": size, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    fn check(
        deployment: &Deployment,
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
        new_size: Option<i32>,
        old_sizes: &[(&str, i32)],
    ) {
        let plan = plan(deployment, &Sets { new, old: old.to_vec() }, &|_| false);
        let expected = Plan { new: new_size, old: old_sizes.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect() };
        assert_eq!(plan, expected);
    }

    #[test]
    fn a_rollout_grows_and_shrinks_within_its_limits() {
        let d = deployment(4, 1, 1);
        check(&d, None, &[], Some(4), &[]);
        check(&d, None, &[set("o", 4, 4, 4, 5)], Some(1), &[]);
        check(&d, Some(set("n", 1, 0, 4, 5)), &[set("o", 4, 4, 4, 5)], None, &[("o", 3)]);
        check(&d, Some(set("n", 1, 0, 4, 5)), &[set("o", 3, 3, 4, 5)], Some(2), &[]);
        check(&d, Some(set("n", 2, 2, 4, 5)), &[set("o", 3, 3, 4, 5)], None, &[("o", 1)]);
        check(&d, Some(set("n", 4, 4, 4, 5)), &[set("o", 1, 1, 4, 5)], None, &[("o", 0)]);
        check(&d, Some(set("n", 4, 4, 4, 5)), &[set("o", 0, 0, 4, 5)], None, &[]);
    }

    #[test]
    fn pods_that_do_not_serve_go_first_and_are_no_loss() {
        let d = deployment(4, 0, 1);
        check(
            &d,
            Some(set("n", 0, 0, 4, 4)),
            &[set("sick", 2, 0, 4, 4), set("well", 2, 2, 4, 4)],
            None,
            &[("sick", 1)],
        );
    }

    #[test]
    fn a_change_of_size_is_shared_out_in_proportion() {
        let d = deployment(30, 0, 1);
        check(&d, Some(set("n", 5, 5, 10, 10)), &[set("o", 5, 5, 10, 10)], Some(15), &[("o", 15)]);
        let d = deployment(7, 0, 1);
        check(&d, Some(set("n", 3, 3, 4, 4)), &[], Some(7), &[]);
        let d = deployment(0, 1, 1);
        check(&d, Some(set("n", 2, 1, 4, 5)), &[set("o", 3, 3, 4, 5)], Some(0), &[("o", 0)]);
    }

    #[test]
    fn recreate_waits_until_the_last_pod_is_gone() {
        let mut d = deployment(2, 0, 0);
        d.spec.as_mut().unwrap().strategy.as_mut().unwrap().type_ = Some("Recreate".into());
        check(&d, None, &[set("o", 2, 2, 2, 2)], None, &[("o", 0)]);
        let sets = Sets { new: None, old: vec![set("o", 0, 0, 2, 2)] };
        assert_eq!(plan(&d, &sets, &|_| true), Plan::default());
        assert_eq!(plan(&d, &sets, &|_| false), Plan { new: Some(2), old: vec![] });
    }

    #[test]
    fn limits_round_as_upstream_rounds_them() {
        let mut d = deployment(10, 0, 0);
        assert_eq!(limits(&d), (0, 1));
        d.spec.as_mut().unwrap().strategy = None;
        assert_eq!(limits(&d), (3, 2));
    }
}
