//! CronJob: jobs by the clock. (`pkg/controller/cronjob`.)
//!
//! [`plan`] looks at the schedule and the jobs there are; nothing polls, a cron job is looked at again when its next
//! instant comes. A job is named after its instant, so that none is made twice.

mod plan;
mod schedule;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;

use crate::jobs::after;
use crate::{events, pods, write};

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<CronJob>(trigger);
        context.watch_owned::<Job, CronJob>(trigger);
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(cron) = context.informers.of::<CronJob>().get(key) else { return Ok(Next::Change) };
        let mut jobs = context.informers.of::<Job>().list_in(&key.namespace);
        jobs.retain(|job| pods::is_controlled_by(&**job, &*cron));
        let now = context.world.clock.wall();
        let mut plan = plan::plan(&cron, &jobs, now);
        for name in &plan.delete {
            let job = jobs.iter().find(|job| job.name_any() == *name).expect("plans name known jobs");
            write::delete(context, &**job).await?;
            events::tell(context, self.name(), &*cron, "SuccessfulDelete", format!("Deleted job {name}"));
        }
        if let Some((job, time)) = &plan.create {
            let made = match write::create(context, &key.namespace, job).await {
                Ok(made) => {
                    let message = format!("Created job {}", made.name_any());
                    events::tell(context, self.name(), &*cron, "SuccessfulCreate", message);
                    Some(made)
                }
                // It was made in an earlier look that did not get to telling so; or it is somebody else's.
                Err(error) if write::is(&error, 409) => {
                    let found = write::api::<Job>(context, &key.namespace).get(&job.name_any()).await?;
                    Some(found).filter(|found| pods::is_controlled_by(found, &*cron))
                }
                Err(error) => {
                    let message = format!("Error creating job: {}", events::text(&error));
                    events::warn(context, self.name(), &*cron, "FailedCreate", message);
                    return Err(error);
                }
            };
            if let Some(made) = made {
                plan::tell_started(&mut plan.status, &made, *time);
            }
        }
        if plan.status != cron.status.clone().unwrap_or_default() {
            let new = CronJob { status: Some(plan.status), ..(*cron).clone() };
            write::replace_status(context, &new).await?;
        }
        if let Some(problem) = plan.problem {
            events::warn(context, self.name(), &*cron, "InvalidSchedule", format!("invalid schedule: {problem}"));
        }
        Ok(plan.next.map_or(Next::Change, |wait| Next::After(after(wait))))
    }
}
