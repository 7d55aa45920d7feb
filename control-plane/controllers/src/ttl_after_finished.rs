//! TTL after finished: jobs that ended go after the time they ask for. (`pkg/controller/ttlafterfinished`.)

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::jobs::{after, ended};
use crate::write;

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Job>(trigger);
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(job) = context.informers.of::<Job>().get(key) else { return Ok(Next::Change) };
        let Some(left) = left(&job, context.world.clock.wall()) else { return Ok(Next::Change) };
        if left.is_positive() {
            return Ok(Next::After(after(left)));
        }
        // At this revision: the time may just have been made longer.
        let preconditions = Some(Preconditions { uid: job.uid(), resource_version: job.resource_version() });
        let parameters = DeleteParams { preconditions, ..DeleteParams::foreground() };
        match write::api::<Job>(context, &key.namespace).delete(&key.name, &parameters).await {
            Err(error) if !write::is(&error, 404) && !write::is(&error, 409) => Err(error),
            _ => Ok(Next::Change),
        }
    }
}

/// The time left to a job that ended; none when it stays.
fn left(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = ended(job)?.last_transition_time.as_ref()?.0;
    Some(SignedDuration::from_secs(seconds.into()) - now.duration_since(ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_time_runs_from_the_end() {
        let check = |ttl: Value, condition: Value, leaving: Value, expected: Option<i64>| {
            let job = json!({"metadata": {"deletionTimestamp": leaving}, "status": {"conditions": [condition]},
                "spec": {"template": {}, "ttlSecondsAfterFinished": ttl}});
            let job: Job = serde_json::from_value(job).unwrap();
            let now = "2026-01-01T00:00:10Z".parse().unwrap();
            assert_eq!(left(&job, now), expected.map(SignedDuration::from_secs), "{job:?}");
        };
        let at = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        check(json!(30), at("Complete"), json!(null), Some(20));
        check(json!(0), at("Failed"), json!(null), Some(-10));
        check(json!(30), at("Suspended"), json!(null), None);
        check(json!(null), at("Complete"), json!(null), None);
        check(json!(0), at("Complete"), json!("2026-01-01T00:00:00Z"), None);
    }
}
