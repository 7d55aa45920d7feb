//! Namespace: empties a namespace that is being deleted, pods first, and then lets it go.
//! (`pkg/controller/namespace/deletion/namespaced_resources_deleter.go`; KEP-5080 for the order.)

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, ResourceExt};

use crate::write::is;

/// What still holds things up (finalizers, pods that take their time) is looked at again after this long at the earliest
/// and at the latest; pods that end wake the controller sooner. (Upstream's limits are 5 ms and 60 s.)
const LOOK_AGAIN: [SignedDuration; 2] = [SignedDuration::from_secs(1), SignedDuration::from_secs(60)];
const FINALIZER: &str = "kubernetes";

pub(crate) struct Controller;

/// What was left of a kind after its collection was deleted.
struct Rest {
    resource: String,
    objects: Vec<DynamicObject>,
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Namespace>(trigger);
        context.watch::<Pod>(trigger, |change| match (&change.new, &change.old) {
            (None, Some(pod)) => vec![Key::new("", &pod.namespace().unwrap_or_default())],
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(namespace) = context.informers.of::<Namespace>().get(key) else { return Ok(Next::Change) };
        let deleted = namespace.metadata.deletion_timestamp.as_ref().filter(|_| holds(&namespace));
        let Some(deleted) = deleted.map(|time| time.0) else { return Ok(Next::Change) };
        let rest = empty(context, &key.name).await?;
        if rest.is_empty() {
            return finalize(context, &namespace).await.map(|()| Next::Change);
        }
        tell(context, &namespace, &rest).await?;
        Ok(Next::After(pause(context.world.clock.wall().duration_since(deleted))))
    }
}

/// How long until a namespace that was deleted so long ago is looked at again: each look lists everything there is in
/// it, so what is stuck for days is not looked at every second.
fn pause(deleted: SignedDuration) -> Duration {
    let [least, most] = LOOK_AGAIN;
    Duration::try_from((deleted / 8).clamp(least, most)).expect("a positive time")
}

fn holds(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    finalizers.is_some_and(|list| list.iter().any(|finalizer| finalizer == FINALIZER))
}

/// Deletes everything in the namespace; nothing but pods as long as there are pods. Returns what stays behind.
async fn empty(context: &Context, namespace: &str) -> kube::Result<Vec<Rest>> {
    let client = context.informers.client();
    let pods = kube::discovery::ApiResource::erase::<Pod>(&());
    let rest = empty_kind(context, namespace, &pods).await?;
    if !rest.objects.is_empty() {
        return Ok(vec![rest]);
    }
    let mut left = Vec::new();
    let discovery = Discovery::new(client.clone()).run().await?;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let deletable = capabilities.scope == Scope::Namespaced
                && capabilities.supports_operation(verbs::LIST)
                && capabilities.supports_operation(verbs::DELETE_COLLECTION);
            if deletable {
                let rest = empty_kind(context, namespace, &resource).await?;
                if !rest.objects.is_empty() {
                    left.push(rest);
                }
            }
        }
    }
    Ok(left)
}

async fn empty_kind(context: &Context, namespace: &str, resource: &kube::discovery::ApiResource) -> kube::Result<Rest> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.informers.client().clone(), namespace, resource);
    let list = || async {
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            // A custom kind may have gone since discovery.
            Err(error) if is(&error, 404) || is(&error, 405) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    let name = if resource.group.is_empty() {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    };
    let objects = list().await?;
    if objects.is_empty() {
        return Ok(Rest { resource: name, objects });
    }
    if objects.iter().any(|object| object.metadata.deletion_timestamp.is_none()) {
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    }
    Ok(Rest { resource: name, objects: list().await? })
}

/// Takes the controller's own finalizer off, which ends the namespace.
async fn finalize(context: &Context, namespace: &Namespace) -> kube::Result<()> {
    let mut new = namespace.clone();
    let finalizers = new.spec.get_or_insert_default().finalizers.get_or_insert_default();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    let api: Api<Namespace> = Api::all(context.informers.client().clone());
    match api.replace_subresource("finalize", &namespace.name_any(), &PostParams::default(), &new).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says in the namespace's conditions what is still there and which finalizers it waits for.
async fn tell(context: &Context, namespace: &Namespace, rest: &[Rest]) -> kube::Result<()> {
    let remaining: Vec<String> =
        rest.iter().map(|rest| format!("{} has {} resource instances", rest.resource, rest.objects.len())).collect();
    let mut finalizers: Vec<(String, usize)> = Vec::new();
    for finalizer in rest.iter().flat_map(|rest| &rest.objects).flat_map(|object| object.finalizers()) {
        match finalizers.iter_mut().find(|(name, _)| name == finalizer) {
            Some((_, count)) => *count += 1,
            None => finalizers.push((finalizer.clone(), 1)),
        }
    }
    let finalizers: Vec<String> =
        finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let now = context.world.clock.wall();
    let mut new = namespace.clone();
    let conditions = new.status.get_or_insert_default().conditions.get_or_insert_default();
    let message = format!("Some resources are remaining: {}", remaining.join(", "));
    set(conditions, "NamespaceContentRemaining", "SomeResourcesRemain", &message, now);
    if finalizers.is_empty() {
        conditions.retain(|condition| condition.type_ != "NamespaceFinalizersRemaining");
    } else {
        let message = format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", "));
        set(conditions, "NamespaceFinalizersRemaining", "SomeFinalizersRemain", &message, now);
    }
    if new == *namespace {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(context.informers.client().clone());
    match api.replace_status(&namespace.name_any(), &PostParams::default(), &new).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(error),
    }
}

fn set(conditions: &mut Vec<NamespaceCondition>, kind: &str, reason: &str, message: &str, now: Timestamp) {
    let since = conditions.iter().find(|c| c.type_ == kind).and_then(|c| c.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(NamespaceCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since.or(Some(Time(now))),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stuck_is_looked_at_less_and_less() {
        for (deleted, expected) in [(-5, 1), (0, 1), (8, 1), (80, 10), (100_000, 60)] {
            assert_eq!(pause(SignedDuration::from_secs(deleted)), Duration::from_secs(expected), "{deleted}");
        }
    }
}
