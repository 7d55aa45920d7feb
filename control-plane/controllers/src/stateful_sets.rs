//! StatefulSet: pods with names and volumes of their own, one after another. (`pkg/controller/statefulset`.)
//!
//! [`plan`] says what to do, in order; [`claims`] whom the volumes' claims belong to.

mod claims;
mod plan;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;
use serde_json::json;

use crate::jobs::after;
use crate::{adopt, events, history, pods, write};
use plan::{Revision, Step};

pub(crate) struct Controller;

impl history::Revised for StatefulSet {
    const HASH_LABEL: &'static str = "controller.kubernetes.io/hash";

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
        "statefulset-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<StatefulSet>(trigger);
        context.watch_owned::<Pod, StatefulSet>(trigger);
        context.watch_owned::<ControllerRevision, StatefulSet>(trigger);
        adopt::watch_orphans::<Pod, StatefulSet>(context, trigger, |set| Some(set.spec.as_ref()?.selector.clone()));
        // A pod waits for the claim of its predecessor to be gone.
        let sets = context.informers.of::<StatefulSet>();
        context.watch::<PersistentVolumeClaim>(trigger, move |change| {
            let (None, Some(claim)) = (&change.new, &change.old) else { return Vec::new() };
            let here = sets.list_in(&claim.namespace().unwrap_or_default());
            here.iter().filter(|set| claims::may_be_of(set, &claim.name_any())).map(|set| Key::of(&**set)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(set) = context.informers.of::<StatefulSet>().get(key) else { return Ok(Next::Change) };
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        if pods::is_empty(&spec.selector) {
            return Ok(Next::Change);
        }
        let all = context.informers.of::<Pod>().list_in(&key.namespace);
        // A pod of another name cannot be one of this set's.
        let named = all.into_iter().filter(|pod| plan::ordinal(&set, &pod.name_any()).is_some()).collect();
        let owned = adopt::claim(context, &*set, &spec.selector, named).await?;
        let revisions = history::list(context, &*set, &spec.selector).await?;
        let (update, collisions) = if set.metadata.deletion_timestamp.is_none() {
            history::newest(context, &*set, &revisions).await?
        } else {
            let Some(newest) = revisions.last() else { return Ok(Next::Change) };
            (newest.clone(), history::Revised::collisions(&*set))
        };
        let known = set.status.as_ref().and_then(|status| status.current_revision.clone());
        let current = revisions.iter().find(|revision| Some(revision.name_any()) == known).unwrap_or(&update);
        let both = [read(current), read(&update)];
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let claim_of = |name: &str| claims.get(&Key::new(&key.namespace, name));
        let plan = plan::plan(&set, spec, &both, collisions, &owned, &claim_of, context.world.clock.wall());
        let result = carry_out(context, self.name(), &set, &plan.steps).await;
        if Some(&plan.status) != set.status.as_ref() {
            let new = StatefulSet { status: Some(plan.status.clone()), ..(*set).clone() };
            match write::replace_status(context, &new).await {
                Err(error) if write::is(&error, 409) || write::is(&error, 404) => {}
                other => other?,
            }
        }
        // A conflict is a look at an old copy.
        if let Err(error) = &result
            && !write::is(error, 409)
        {
            let message = format!("{} failed error: {}", set.name_any(), events::text(error));
            events::warn(context, self.name(), &*set, "FailedUpdate", message);
        }
        result?;
        let used = |revision: &ControllerRevision| {
            let name = revision.name_any();
            both.iter().any(|used| used.name == name) || owned.iter().any(|pod| plan::revision(pod) == name)
        };
        let limit = spec.revision_history_limit.unwrap_or(10);
        write::all(history::surplus(&revisions, used, limit).iter().map(|old| write::delete(context, &**old))).await?;
        Ok(plan.next.map_or(Next::Change, |wait| Next::After(after(wait))))
    }
}

fn read(revision: &Arc<ControllerRevision>) -> Revision {
    Revision { name: revision.name_any(), template: history::template(revision).unwrap_or_default() }
}

/// One step after the other: what comes later may need what comes before.
async fn carry_out(context: &Context, controller: &str, set: &StatefulSet, steps: &[Step]) -> kube::Result<()> {
    let namespace = &set.namespace().unwrap_or_default();
    // (`recordPodEvent` of `pkg/controller/statefulset/stateful_pod_control.go`.)
    let tell = |verb: &str, reason: &str, pod: &Pod| {
        let message = format!("{verb} Pod {} in StatefulSet {} successful", pod.name_any(), set.name_any());
        events::tell(context, controller, set, reason, message);
    };
    for step in steps {
        match step {
            Step::Claim(claim) => match write::create(context, namespace, &**claim).await {
                Err(error) if write::is(&error, 409) => {}
                other => drop(other?),
            },
            Step::Own(claim, owners) => {
                let mut new = (**claim).clone();
                new.metadata.owner_references = Some(owners.clone());
                drop(write::replace(context, &new).await?);
            }
            Step::Create(pod) => {
                drop(write::create(context, namespace, &**pod).await?);
                tell("create", "SuccessfulCreate", pod);
            }
            Step::Label(pod, labels) => {
                drop(write::merge(context, &**pod, &json!({ "metadata": { "labels": labels } })).await?);
            }
            Step::Delete(pod) => {
                write::delete(context, &**pod).await?;
                tell("delete", "SuccessfulDelete", pod);
            }
        }
    }
    Ok(())
}
