//! Tells the API a pod's status: the latest only, for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kedge_runtimes::PodId;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::Outcome;
use crate::agent::Shared;

const API_PAUSE_MIN: Duration = Duration::from_millis(200);
const API_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Tells the API the latest status until it has taken it; ends when the pod is deleted there.
pub(super) async fn tell_api(
    shared: Arc<Shared>,
    id: PodId,
    mut said: watch::Receiver<(Option<PodStatus>, bool)>,
    outcomes: mpsc::UnboundedSender<Outcome>,
) {
    let pods: Api<Pod> = Api::namespaced(shared.client.clone(), &id.namespace);
    let mut told: Option<Value> = None;
    let mut pause = API_PAUSE_MIN;
    loop {
        let (status, delete) = said.borrow_and_update().clone();
        let done = match tell_once(&pods, &id, status.as_ref(), &mut told).await {
            Ok(()) if delete => delete_pod(&pods, &id).await.map(|()| true),
            other => other.map(|()| false),
        };
        match done {
            Ok(true) => {
                let _ = outcomes.send(Outcome::Deleted); // A worker that has ended knows.
                return;
            }
            Ok(false) => {
                pause = API_PAUSE_MIN;
                if said.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(pod = %id.name, %error, "the API does not take the pod's status; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(API_PAUSE_MAX);
                if said.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

async fn tell_once(
    pods: &Api<Pod>,
    id: &PodId,
    status: Option<&PodStatus>,
    told: &mut Option<Value>,
) -> Result<(), kube::Error> {
    let Some(status) = status else { return Ok(()) };
    let mut value = serde_json::to_value(status).expect("a status has only JSON's types");
    if told.as_ref() == Some(&value) {
        return Ok(());
    }
    let full = value.clone();
    // A merge patch leaves what it does not name: what is gone must be named.
    let before = told.as_ref().and_then(Value::as_object).into_iter().flatten();
    for (key, _) in before {
        if let Some(object) = value.as_object_mut() {
            object.entry(key.clone()).or_insert(Value::Null);
        }
    }
    let patch = json!({"metadata": {"uid": id.uid.as_str()}, "status": value});
    match pods.patch_status(&id.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => *told = Some(full),
        // There is nobody to tell. A conflict may also be about anything else, and then the status is still to be told.
        Err(error) if is(&error, 404) || is(&error, 409) && is_another(pods, id).await? => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn delete_pod(pods: &Api<Pod>, id: &PodId) -> Result<(), kube::Error> {
    let uid = Preconditions { uid: Some(id.uid.to_string()), resource_version: None };
    match pods.delete(&id.name, &DeleteParams::default().grace_period(0).preconditions(uid)).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) || is(&error, 409) && is_another(pods, id).await? => Ok(()),
        Err(error) => Err(error),
    }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether no pod or another one has its name by now.
async fn is_another(pods: &Api<Pod>, id: &PodId) -> Result<bool, kube::Error> {
    let found = pods.get_opt(&id.name).await?;
    Ok(found.is_none_or(|found| found.metadata.uid.as_deref() != Some(id.uid.as_str())))
}
