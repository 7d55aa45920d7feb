//! Claims and volumes in use stay until nobody uses them: takes off the finalizers that admission puts on.
//! (`pkg/controller/volume/{pvcprotection,pvprotection}`.)

use std::sync::Arc;

use crate::pods::is_finished;
use crate::write;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::api::PostParams;
use kube::{Api, ResourceExt};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// Claims, kept by the pods that mount them.
pub(crate) struct Claims;

impl Reconcile for Claims {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<PersistentVolumeClaim>(trigger);
        context.watch::<Pod>(trigger, |change| {
            let ended = change.new.as_ref().is_none_or(|pod| is_finished(pod));
            if ended { claims_of(change.latest()) } else { Vec::new() }
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(claim) = context.informers.of::<PersistentVolumeClaim>().get(key) else { return Ok(Next::Change) };
        let held = claim.finalizers().iter().any(|finalizer| finalizer == CLAIM_FINALIZER);
        let pods = context.informers.of::<Pod>().list_in(&key.namespace);
        if claim.metadata.deletion_timestamp.is_some() && held && !is_used(key, &pods) {
            let mut new = (*claim).clone();
            new.finalizers_mut().retain(|finalizer| finalizer != CLAIM_FINALIZER);
            gone_is_fine(write::replace(context, &new).await)?;
        }
        Ok(Next::Change)
    }
}

/// The claims that a pod mounts.
fn claims_of(pod: &Pod) -> Vec<Key> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let names =
        volumes.into_iter().flatten().filter_map(|volume| Some(&volume.persistent_volume_claim.as_ref()?.claim_name));
    names.map(|name| Key::new(&pod.namespace().unwrap_or_default(), name)).collect()
}

fn is_used(claim: &Key, pods: &[Arc<Pod>]) -> bool {
    pods.iter().any(|pod| !is_finished(pod) && claims_of(pod).contains(claim))
}

/// Volumes, kept by the claim they are bound to.
pub(crate) struct Volumes;

impl Reconcile for Volumes {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<PersistentVolume>(trigger);
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(volume) = context.informers.of::<PersistentVolume>().get(key) else { return Ok(Next::Change) };
        let held = volume.finalizers().iter().any(|finalizer| finalizer == VOLUME_FINALIZER);
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if volume.metadata.deletion_timestamp.is_some() && held && !bound {
            let mut new = (*volume).clone();
            new.finalizers_mut().retain(|finalizer| finalizer != VOLUME_FINALIZER);
            let api: Api<PersistentVolume> = Api::all(context.informers.client().clone());
            gone_is_fine(api.replace(&key.name, &PostParams::default(), &new).await)?;
        }
        Ok(Next::Change)
    }
}

fn gone_is_fine<K>(result: kube::Result<K>) -> kube::Result<()> {
    match result {
        Err(error) if !write::is(&error, 404) && !write::is(&error, 409) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_used_by_pods_that_have_not_ended() {
        let pod = |phase: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": phase},
                "spec": {"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}))
                .unwrap(),
            )
        };
        assert!(is_used(&Key::new("n", "c"), &[pod("Running")]));
        assert!(!is_used(&Key::new("n", "c"), &[pod("Succeeded")]));
        assert!(!is_used(&Key::new("n", "other"), &[pod("Running")]));
        assert!(!is_used(&Key::new("m", "c"), &[pod("Running")]));
    }
}
