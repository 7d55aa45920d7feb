//! Pods that carry a job's finalizer and have no job that would take it off: it goes.
//! (`pkg/controller/job/job_controller.go`, `syncOrphanPod`.)

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::{Resource, ResourceExt};

use super::{FINALIZER, ended, is_ours};
use crate::{pods, write};

pub(crate) struct Orphans;

impl Reconcile for Orphans {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "job-controller-orphans"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let jobs = context.informers.of::<Job>();
        context.watch::<Pod>(trigger, move |change| match &change.new {
            Some(pod) if is_orphan(pod, |key| jobs.get(key)) => vec![Key::of(&**pod)],
            _ => Vec::new(),
        });
        let pods = context.informers.of::<Pod>();
        context.watch::<Job>(trigger, move |change| {
            if change.new.as_ref().is_some_and(|job| ended(job).is_none()) {
                return Vec::new();
            }
            let job = change.latest();
            let here = pods.list_in(&job.namespace().unwrap_or_default());
            here.iter().filter(|pod| pods::is_controlled_by(&***pod, &**job)).map(|pod| Key::of(&**pod)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let jobs = context.informers.of::<Job>();
        if let Some(pod) = context.informers.of::<Pod>().get(key).filter(|pod| is_orphan(pod, |key| jobs.get(key))) {
            write::remove_finalizer(context, &*pod, FINALIZER).await?;
        }
        Ok(Next::Change)
    }
}

/// Whether nobody will take the finalizer off this pod: no controller, or a job that is gone or over.
fn is_orphan(pod: &Pod, job: impl Fn(&Key) -> Option<Arc<Job>>) -> bool {
    if !pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return false;
    }
    let Some(owner) = pods::controller_of(pod) else { return true };
    if owner.kind != Job::kind(&()) || owner.api_version != Job::api_version(&()) {
        return false;
    }
    let found = job(&Key::new(&pod.namespace().unwrap_or_default(), &owner.name));
    match found.filter(|job| job.uid().as_ref() == Some(&owner.uid)) {
        Some(job) => is_ours(&job) && ended(&job).is_some(),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_is_an_orphan_when_no_job_looks_after_it() {
        let check = |owner: Value, job: Value, expected: bool| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n",
                "finalizers": [FINALIZER], "ownerReferences": owner}}))
            .unwrap();
            let job: Option<Arc<Job>> = serde_json::from_value::<Option<Job>>(job).unwrap().map(Arc::new);
            assert_eq!(is_orphan(&pod, |_| job.clone()), expected, "{pod:?}");
        };
        let by = |kind: &str, uid: &str| json!([{"apiVersion": "batch/v1", "kind": kind, "name": "j", "uid": uid, "controller": true}]);
        let running = json!({"metadata": {"name": "j", "uid": "1"}, "spec": {"template": {}}});
        let over = json!({"metadata": {"name": "j", "uid": "1"}, "spec": {"template": {}},
            "status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        let foreign = json!({"metadata": {"name": "j", "uid": "1"}, "spec": {"template": {}, "managedBy": "example.com/x"},
            "status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        check(json!(null), json!(null), true);
        check(by("Job", "1"), json!(null), true);
        check(by("Job", "2"), running.clone(), true);
        check(by("Job", "1"), running, false);
        check(by("Job", "1"), over, true);
        check(by("Job", "1"), foreign, false);
        check(by("Other", "1"), json!(null), false);
    }
}
