//! ResourceQuota: what a namespace uses, counted anew from what there is. (`pkg/controller/resourcequota`.)
//!
//! Admission charges what is created before it is there; this controller gives back what ended or went, and counts
//! what was there before the quota. Both count by `kedge_schema::quota`. A charge whose object is not there yet must
//! not be given back: the amount goes down only when nobody has charged for a moment.

mod counts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kedge_client::{Change, Context, Informer, Key, Next, Reconcile, Trigger, Watched};
use kedge_schema::pod_resources::{self, Amounts};
use kedge_schema::quantity::Quantity;
use kedge_schema::quota;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{pods, write};
use counts::{Counts, Kind};

/// How long a quota must have stayed the same before less is written: longer than a creation takes from its charge
/// to the watch.
const SETTLED: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Controller {
    counts: Counts,
    /// When the amounts of each quota last changed, on the monotonic clock.
    changed: Arc<Mutex<HashMap<Key, Duration>>>,
}

impl Reconcile for Controller {
    type Error = Error;

    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let quotas = context.informers.of::<ResourceQuota>();
        self.counts.start(trigger, quotas.clone());
        let (changed, clock) = (self.changed.clone(), context.world.clock.clone());
        context.watch::<ResourceQuota>(trigger, move |change| {
            let key = Key::of(&**change.latest());
            let mut changed = changed.lock().expect("nobody panics while holding it");
            match &change.new {
                Some(_) => drop(changed.insert(key.clone(), clock.monotonic())),
                None => drop(changed.remove(&key)),
            }
            vec![key]
        });
        let ended = |change: &Change<Pod>| {
            let counts = |pod: &Option<Arc<Pod>>| pod.as_ref().is_some_and(|pod| !pods::is_finished(pod));
            counts(&change.old) != counts(&change.new) || change.old.is_none() || change.new.is_none()
        };
        wake::<Pod>(context, trigger, &quotas, ended);
        wake::<Service>(context, trigger, &quotas, |_| true);
        wake::<PersistentVolumeClaim>(context, trigger, &quotas, |_| true);
        // A kind that a quota names may be served from now on.
        let all = quotas;
        context.watch::<CustomResourceDefinition>(trigger, move |_| {
            all.list().iter().map(|quota| Key::of(&**quota)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> Result<Next, Error> {
        let Some(quota) = context.informers.of::<ResourceQuota>().get(key) else { return Ok(Next::Change) };
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let mut used = Amounts::new();
        for kind in counts::kinds(hard.keys().map(String::as_str)) {
            pod_resources::add(&mut used, &self.used(context, &quota, &kind).await?);
        }
        let new = status(&hard, &used);
        let now = context.world.clock.monotonic();
        let since = self.changed.lock().expect("nobody panics while holding it").get(key).copied().unwrap_or_default();
        match judge(quota.status.as_ref(), &new, (since + SETTLED).saturating_sub(now)) {
            Step::Nothing => {}
            Step::Wait(wait) => return Ok(Next::After(wait)),
            Step::Write => {
                write::replace_status(context, &ResourceQuota { status: Some(new), ..(*quota).clone() }).await?;
            }
        }
        Ok(Next::Change)
    }
}

/// Why a count failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// The watch of a kind has not brought its first list yet.
    #[error("{0} cannot be counted yet")]
    NotListed(String),
}

impl Controller {
    /// What the objects of one kind use of the quota.
    async fn used(&self, context: &Context, quota: &ResourceQuota, kind: &Kind) -> Result<Amounts, Error> {
        let namespace = quota.namespace().unwrap_or_default();
        let spec = json!(quota.spec);
        Ok(match (&*kind.group, &*kind.plural) {
            ("", "pods") => sum(&spec, &context.informers.of::<Pod>().list_in(&namespace)),
            ("", "services") => sum(&spec, &context.informers.of::<Service>().list_in(&namespace)),
            ("", "persistentvolumeclaims") => {
                sum(&spec, &context.informers.of::<PersistentVolumeClaim>().list_in(&namespace))
            }
            _ => {
                let (name, count) = self.counts.of(context, kind, &namespace).await?;
                let each = match quota::in_scope(&spec, &name, &Value::Null) {
                    true => quota::usage(&kind.group, &kind.plural, &name, &Value::Null),
                    false => Amounts::new(),
                };
                each.into_iter().map(|(name, amount)| (name, amount.times(count as i64))).collect()
            }
        })
    }
}

/// Wakes the quotas of the namespace where an object changed in a way that counts.
fn wake<K: Watched>(
    context: &Context,
    trigger: &Trigger,
    quotas: &Informer<ResourceQuota>,
    counts: impl Fn(&Change<K>) -> bool + Send + 'static,
) {
    let quotas = quotas.clone();
    context.watch::<K>(trigger, move |change| {
        if !counts(change) {
            return Vec::new();
        }
        let here = quotas.list_in(&change.latest().namespace().unwrap_or_default());
        here.iter().map(|quota| Key::of(&**quota)).collect()
    });
}

/// What these objects use together of a quota of this spec.
fn sum<K: Resource<DynamicType = ()> + Serialize>(spec: &Value, objects: &[Arc<K>]) -> Amounts {
    let (group, kind, plural) = (K::group(&()), K::kind(&()), K::plural(&()));
    let mut sum = Amounts::new();
    for object in objects.iter().map(|object| json!(**object)) {
        if quota::in_scope(spec, &kind, &object) {
            pod_resources::add(&mut sum, &quota::usage(&group, &plural, &kind, &object));
        }
    }
    sum
}

type Texts = std::collections::BTreeMap<String, Text>;

/// What a quota tells: of everything that it limits, how much is used.
fn status(hard: &Texts, used: &Amounts) -> ResourceQuotaStatus {
    let shown = |name: &String| used.get(name).map_or_else(|| "0".to_owned(), Quantity::to_string);
    let used = hard.keys().map(|name| (name.clone(), Text(shown(name)))).collect();
    ResourceQuotaStatus { hard: Some(hard.clone()), used: Some(used) }
}

#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Write,
    /// Less is used than was charged: later, when no charge can be on its way.
    Wait(Duration),
}

fn judge(old: Option<&ResourceQuotaStatus>, new: &ResourceQuotaStatus, unsettled: Duration) -> Step {
    let amounts = |texts: &Option<Texts>| pod_resources::amounts(&json!(texts));
    let Some(old) = old.filter(|old| old.used.is_some()) else { return Step::Write };
    let (before, now) = (amounts(&old.used), amounts(&new.used));
    if before == now && amounts(&old.hard) == amounts(&new.hard) {
        return Step::Nothing;
    }
    let less = now.iter().any(|(name, amount)| before.get(name).is_some_and(|before| amount < before));
    if less && !unsettled.is_zero() { Step::Wait(unsettled) } else { Step::Write }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_as_admission_charges_them() {
        let pod = |name: &str, phase: &str, cpu: &str| -> Arc<Pod> {
            let pod = json!({"metadata": {"name": name}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [pod("a", "Running", "500m"), pod("b", "Pending", "1"), pod("c", "Succeeded", "4")];
        let hard: Texts =
            serde_json::from_value(json!({"pods": "5", "cpu": "3", "count/pods": "9", "secrets": "1"})).unwrap();
        let found = status(&hard, &sum(&json!({"hard": hard}), &pods)).used.unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|(name, amount)| (&**name, &*amount.0)).collect();
        assert_eq!(found, [("count/pods", "3"), ("cpu", "1500m"), ("pods", "2"), ("secrets", "0")]);
        let scoped = sum(&json!({"hard": hard, "scopes": ["BestEffort"]}), &pods);
        assert!(scoped.is_empty());
    }

    #[test]
    fn less_is_written_only_when_no_charge_can_be_on_its_way() {
        let told = |pods: &str| -> ResourceQuotaStatus {
            serde_json::from_value(json!({"hard": {"pods": "5"}, "used": {"pods": pods}})).unwrap()
        };
        let check = |old: Option<&str>, new: &str, unsettled: u64, expected: Step| {
            let found = judge(old.map(told).as_ref(), &told(new), Duration::from_millis(unsettled));
            assert_eq!(found, expected, "{old:?} {new}");
        };
        check(None, "0", 400, Step::Write);
        check(Some("2"), "2000m", 400, Step::Nothing);
        check(Some("2"), "3", 400, Step::Write);
        check(Some("2"), "1", 400, Step::Wait(Duration::from_millis(400)));
        check(Some("2"), "1", 0, Step::Write);
    }
}
