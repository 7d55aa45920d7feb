//! Job: pods that run to their end, as many as asked for, tried again within limits. (`pkg/controller/job`.)
//!
//! [`plan`] decides; this file finds the pods and carries the plan out. A look is one step; what it changed causes
//! the next.

mod indexes;
mod orphans;
mod plan;
mod policy;
mod told;

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::Resource;

pub(crate) use orphans::Orphans;

use crate::{adopt, events, pods, write};

/// Keeps a job's pod until its end is counted.
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// What `spec.managedBy` says of jobs that are this controller's.
const NAME: &str = "kubernetes.io/job-controller";

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Job>(trigger);
        context.watch_owned::<Pod, Job>(trigger);
        adopt::watch_orphans::<Pod, Job>(context, trigger, |job| job.spec.as_ref()?.selector.clone());
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(job) = context.informers.of::<Job>().get(key) else { return Ok(Next::Change) };
        let Some(spec) = job.spec.as_ref().filter(|_| is_ours(&job) && ended(&job).is_none()) else {
            return Ok(Next::Change);
        };
        let selector = spec.selector.clone().unwrap_or_default();
        let all = context.informers.of::<Pod>().list_in(&key.namespace);
        let owned = adopt::claim_with(context, &*job, &selector, all, Some(FINALIZER)).await?;
        let plan = plan::plan(&job, spec, &owned, context.world.clock.wall());
        if Some(&plan.status) != job.status.as_ref() {
            let new = Job { status: Some(plan.status.clone()), ..(*job).clone() };
            match write::replace_status(context, &new).await {
                // The copy was behind; the change that made it so brings the next look.
                Err(error) if write::is(&error, 409) || write::is(&error, 404) => return Ok(Next::Change),
                other => other?,
            }
            for told in told::told(&job, &plan.status) {
                let about = &*job;
                if told.warning {
                    events::warn(context, self.name(), about, &told.reason, told.message);
                } else {
                    events::tell(context, self.name(), about, &told.reason, told.message);
                }
            }
        }
        carry_out(context, &job, &plan).await?;
        Ok(plan.next.map_or(Next::Change, |wait| Next::After(after(wait))))
    }
}

async fn carry_out(context: &Context, job: &Job, plan: &plan::Plan) -> kube::Result<()> {
    let name = Controller.name();
    write::all(plan.delete.iter().map(|pod| write::delete_pod(context, name, job, pod))).await?;
    write::all(plan.release.iter().map(|pod| write::remove_finalizer(context, &**pod, FINALIZER))).await?;
    write::all(plan.discard.iter().map(|pod| async move {
        write::remove_finalizer(context, &**pod, FINALIZER).await?;
        write::delete_pod(context, name, job, pod).await
    }))
    .await?;
    write::create_pods(context, name, job, plan.create.clone()).await
}

/// A wait as the queue takes it; what is past is now.
pub(crate) fn after(wait: SignedDuration) -> Duration {
    Duration::try_from(wait).unwrap_or_default()
}

/// Whether no other controller manages the job (KEP-4368).
fn is_ours(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_none_or(|manager| manager == NAME)
}

/// The condition of this type, when it holds.
fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// The condition that says how a job ended: `Complete` or `Failed`.
pub(crate) fn ended(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    condition(status, "Complete").or_else(|| condition(status, "Failed"))
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether a pod is replaced only when it has ended, not as soon as it is told to (KEP-3939).
fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !replaces_only_failed(spec) && pod.meta().deletion_timestamp.is_some(),
    }
}
