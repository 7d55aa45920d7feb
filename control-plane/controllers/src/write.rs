//! Writing through the API so that the writer's next look includes what it did.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kedge_client::{Context, Watched, is_whole};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::events;

/// A kind that lives in namespaces and is watched by this process.
pub(crate) trait Namespaced: Watched + Resource<Scope = NamespaceResourceScope> + Serialize {}
impl<K> Namespaced for K where K: Watched + Resource<Scope = NamespaceResourceScope> + Serialize {}

/// Objects of kind `K` in `namespace`.
pub(crate) fn api<K: Namespaced>(context: &Context, namespace: &str) -> Api<K> {
    Api::namespaced(context.informers.client().clone(), namespace)
}

/// The revision at which an object was last changed.
pub(crate) fn revision<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Creates `object` and waits until the shared copy shows it.
pub(crate) async fn create<K: Namespaced>(context: &Context, namespace: &str, object: &K) -> kube::Result<K> {
    let made = api::<K>(context, namespace).create(&PostParams::default(), object).await?;
    context.informers.of::<K>().reached(revision(&made)).await;
    Ok(made)
}

/// Replaces `object`, at the revision it carries, and waits until the shared copy shows it. For kinds of which the
/// shared copies are whole.
pub(crate) async fn replace<K: Namespaced>(context: &Context, object: &K) -> kube::Result<K> {
    assert!(is_whole::<K>(), "what the shared copy of {} leaves out would be lost", K::kind(&()));
    let namespace = object.namespace().unwrap_or_default();
    let made = api::<K>(context, &namespace).replace(&object.name_any(), &PostParams::default(), object).await?;
    context.informers.of::<K>().reached(revision(&made)).await;
    Ok(made)
}

/// Replaces the status of `object`, at the revision it carries, and waits until the shared copy shows it.
pub(crate) async fn replace_status<K: Namespaced>(context: &Context, object: &K) -> kube::Result<()> {
    let namespace = object.namespace().unwrap_or_default();
    let made = api::<K>(context, &namespace).replace_status(&object.name_any(), &PostParams::default(), object).await?;
    context.informers.of::<K>().reached(revision(&made)).await;
    Ok(())
}

/// Merges `patch` into an object and waits until the shared copy shows it.
pub(crate) async fn merge<K: Namespaced>(context: &Context, object: &K, patch: &Value) -> kube::Result<K> {
    let namespace = object.namespace().unwrap_or_default();
    let api = api::<K>(context, &namespace);
    let made = api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    context.informers.of::<K>().reached(revision(&made)).await;
    Ok(made)
}

/// Deletes exactly this object. That it is gone already, or is another one by now, is as good.
pub(crate) async fn delete<K: Namespaced>(context: &Context, object: &K) -> kube::Result<()> {
    let namespace = object.namespace().unwrap_or_default();
    let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
    let parameters = DeleteParams { preconditions, ..DeleteParams::background() };
    match api::<K>(context, &namespace).delete(&object.name_any(), &parameters).await {
        Ok(either) => {
            let newest = either.left().map_or(0, |object| revision(&object));
            context.informers.of::<K>().reached(newest).await;
            Ok(())
        }
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the API refused because the namespace is being deleted.
pub(crate) fn is_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| &details.causes);
    causes.into_iter().flatten().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Whether the API answered with this HTTP status.
pub(crate) fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Creates pods: first one, then two, then four, so that a refusal that holds for all of them costs one request and
/// not all. (`slowStartBatch`.) The first refusal is the error, and is told as an event of `owner`.
pub(crate) async fn create_pods<O: Namespaced>(
    context: &Context,
    controller: &str,
    owner: &O,
    new: Vec<Pod>,
) -> kube::Result<()> {
    let api = api::<Pod>(context, &owner.namespace().unwrap_or_default());
    let (mut made, mut batch, mut newest) = (0, 1, 0);
    let mut refused = Ok(());
    while made < new.len() && refused.is_ok() {
        let upto = (made + batch).min(new.len());
        let parameters = PostParams::default();
        let results = futures::future::join_all(new[made..upto].iter().map(|pod| api.create(&parameters, pod))).await;
        for result in results {
            match result {
                Ok(pod) => {
                    newest = newest.max(revision(&pod));
                    let message = format!("Created pod: {}", pod.name_any());
                    events::tell(context, controller, owner, "SuccessfulCreate", message);
                }
                // Nothing can be made any more, and nothing has to be.
                Err(error) if is_ending(&error) => return Ok(()),
                Err(error) => refused = refused.and(Err(error)),
            }
        }
        made = upto;
        batch *= 2;
    }
    context.informers.of::<Pod>().reached(newest).await;
    if let Err(error) = &refused {
        events::warn(context, controller, owner, "FailedCreate", format!("Error creating: {}", events::text(error)));
    }
    refused
}

/// Deletes a pod, which is told as an event of `owner`. (`RealPodControl.DeletePod`.)
pub(crate) async fn delete_pod<O: Namespaced>(
    context: &Context,
    controller: &str,
    owner: &O,
    pod: &Pod,
) -> kube::Result<()> {
    let deleted = delete(context, pod).await;
    let (name, namespace_ends) = (pod.name_any(), deleted.as_ref().is_err_and(is_ending));
    match &deleted {
        Ok(()) => events::tell(context, controller, owner, "SuccessfulDelete", format!("Deleted pod: {name}")),
        Err(error) if !namespace_ends => {
            events::warn(
                context,
                controller,
                owner,
                "FailedDelete",
                format!("Error deleting: {}", events::text(error)),
            );
        }
        Err(_) => {}
    }
    deleted
}

/// Takes a finalizer off an object, whatever else changed about it. That it is gone is as good.
pub(crate) async fn remove_finalizer<K: Namespaced>(
    context: &Context,
    object: &K,
    finalizer: &str,
) -> kube::Result<()> {
    if !object.finalizers().iter().any(|f| f == finalizer) {
        return Ok(());
    }
    let api = api::<K>(context, &object.namespace().unwrap_or_default());
    let patch = json!({ "metadata": { "uid": object.uid(), "$deleteFromPrimitiveList/finalizers": [finalizer] } });
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(made) => context.informers.of::<K>().reached(revision(&made)).await,
        // By the uid, a conflict is another object of the same name.
        Err(error) if is(&error, 404) || is(&error, 409) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Runs what concerns many objects, all at once; the first error is the result.
pub(crate) async fn all(many: impl IntoIterator<Item = impl Future<Output = kube::Result<()>>>) -> kube::Result<()> {
    futures::future::join_all(many).await.into_iter().collect()
}

/// Tells something about a pod, and that it has failed if `failed`. That it is gone, or another one, is as good.
pub(crate) async fn tell_of_pod(context: &Context, pod: &Pod, failed: bool, told: &PodCondition) -> kube::Result<()> {
    let mut status = json!({ "conditions": [told] });
    if failed {
        status["phase"] = "Failed".into();
    }
    let patch = json!({ "metadata": { "uid": pod.uid() }, "status": status });
    let api = api::<Pod>(context, &pod.namespace().unwrap_or_default());
    match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(made) => context.informers.of::<Pod>().reached(revision(&made)).await,
        Err(error) if is(&error, 404) || is(&error, 409) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Deletes exactly this pod without waiting for its node.
pub(crate) async fn delete_pod_now(context: &Context, pod: &Pod) -> kube::Result<()> {
    let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
    let parameters = DeleteParams { preconditions, ..DeleteParams::default() }.grace_period(0);
    let api = api::<Pod>(context, &pod.namespace().unwrap_or_default());
    match api.delete(&pod.name_any(), &parameters).await {
        Err(error) if !is(&error, 404) && !is(&error, 409) => Err(error),
        _ => Ok(()),
    }
}
