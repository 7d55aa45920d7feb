//! Which objects belong to a controller: those it owns, those that its selector takes in, less those it lets go.
//! (`pkg/controller/controller_ref_manager.go`.)

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kedge_client::{Context, Key, Trigger};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::pods::{controller_of, is_empty, owned_by, selects};
use crate::write::{self, Namespaced, is};

/// What is to become of one object.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Mine,
    Adopt,
    Release,
    NotMine,
}

fn judge<O: Resource, K: Resource>(owner: &O, selector: &LabelSelector, object: &K) -> Claim {
    let selected = !is_empty(selector) && selects(selector, object.meta().labels.as_ref());
    let leaving = owner.meta().deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.meta().uid.as_ref() => Claim::NotMine,
        Some(_) if selected || leaving => Claim::Mine,
        Some(_) => Claim::Release,
        None if selected && !leaving && object.meta().deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::NotMine,
    }
}

/// Wakes owners of kind `O` when an object without a controller appears that their selector takes in.
pub(crate) fn watch_orphans<K, O>(
    context: &Context,
    trigger: &Trigger,
    selector: impl Fn(&O) -> Option<LabelSelector> + Send + 'static,
) where
    O: Namespaced,
    K: Namespaced,
{
    let owners = context.informers.of::<O>();
    context.watch::<K>(trigger, move |change| {
        let object = change.latest();
        if change.new.is_none() || controller_of(&**object).is_some() {
            return Vec::new();
        }
        let here = owners.list_in(&object.namespace().unwrap_or_default());
        let wanting = here.iter().filter(|owner| {
            selector(owner)
                .is_some_and(|selector| !is_empty(&selector) && selects(&selector, object.meta().labels.as_ref()))
        });
        wanting.map(|owner| Key::of(&**owner)).collect()
    });
}

/// The objects of `all` that belong to `owner` from now on; orphans are adopted and strangers released on the way.
pub(crate) async fn claim<O, K>(
    context: &Context,
    owner: &O,
    selector: &LabelSelector,
    all: Vec<Arc<K>>,
) -> kube::Result<Vec<Arc<K>>>
where
    O: Namespaced,
    K: Namespaced,
{
    claim_with(context, owner, selector, all, None).await
}

/// Like [`claim`]; what is adopted also gets this finalizer.
pub(crate) async fn claim_with<O, K>(
    context: &Context,
    owner: &O,
    selector: &LabelSelector,
    all: Vec<Arc<K>>,
    finalizer: Option<&str>,
) -> kube::Result<Vec<Arc<K>>>
where
    O: Namespaced,
    K: Namespaced,
{
    let mut mine = Vec::new();
    let mut confirmed = false;
    for object in all {
        match judge(owner, selector, &*object) {
            Claim::Mine => mine.push(object),
            Claim::NotMine => {}
            Claim::Release => release(context, owner, &*object).await?,
            Claim::Adopt => {
                // A deleted owner that the copy still shows must not adopt: ask once before the first adoption.
                if !confirmed && !exists(context, owner).await? {
                    return Ok(mine);
                }
                confirmed = true;
                if let Some(adopted) = adopt(context, owner, &*object, finalizer).await? {
                    mine.push(Arc::new(adopted));
                }
            }
        }
    }
    Ok(mine)
}

async fn exists<O: Namespaced>(context: &Context, owner: &O) -> kube::Result<bool> {
    let api: Api<O> = write::api(context, &owner.namespace().unwrap_or_default());
    let found = api.get_opt(&owner.name_any()).await?;
    Ok(found.is_some_and(|found| found.uid() == owner.uid() && found.meta().deletion_timestamp.is_none()))
}

async fn adopt<O: Namespaced, K: Namespaced>(
    context: &Context,
    owner: &O,
    object: &K,
    finalizer: Option<&str>,
) -> kube::Result<Option<K>> {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.push(owned_by(owner));
    let mut finalizers = object.finalizers().to_vec();
    finalizers.extend(finalizer.filter(|new| !object.finalizers().iter().any(|f| f == new)).map(str::to_owned));
    change_owners(context, object, &owners, &finalizers).await
}

async fn release<O: Namespaced, K: Namespaced>(context: &Context, owner: &O, object: &K) -> kube::Result<()> {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|reference| Some(&reference.uid) != owner.meta().uid.as_ref());
    change_owners(context, object, &owners, object.finalizers()).await.map(drop)
}

/// Sets the owners of exactly this object at this revision; one that changed or went meanwhile is left alone.
async fn change_owners<K: Namespaced>(
    context: &Context,
    object: &K,
    owners: &[OwnerReference],
    finalizers: &[String],
) -> kube::Result<Option<K>> {
    let mut patch = json!({ "metadata": {
        "uid": object.uid(), "resourceVersion": object.resource_version(), "ownerReferences": owners,
    }});
    if finalizers != object.finalizers() {
        patch["metadata"]["finalizers"] = json!(finalizers);
    }
    match write::merge(context, object, &patch).await {
        Ok(changed) => Ok(Some(changed)),
        Err(error) if is(&error, 404) || is(&error, 409) || is(&error, 422) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn ownership_follows_the_selector_but_never_takes_from_another() {
        let owner: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "s", "uid": "me"}})).unwrap();
        let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"app": "a"}})).unwrap();
        let check = |pod: serde_json::Value, expected| {
            let pod: Pod = serde_json::from_value(json!({ "metadata": pod })).unwrap();
            assert_eq!(judge(&owner, &selector, &pod), expected, "{pod:?}");
        };
        let by = |uid: &str| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": uid, "controller": true}]);
        check(json!({"labels": {"app": "a"}, "ownerReferences": by("me")}), Claim::Mine);
        check(json!({"labels": {"app": "b"}, "ownerReferences": by("me")}), Claim::Release);
        check(json!({"labels": {"app": "a"}, "ownerReferences": by("you")}), Claim::NotMine);
        check(json!({"labels": {"app": "a"}}), Claim::Adopt);
        check(json!({"labels": {"app": "a"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}), Claim::NotMine);
        check(json!({"labels": {"app": "b"}}), Claim::NotMine);
        assert_eq!(judge(&owner, &LabelSelector::default(), &Pod::default()), Claim::NotMine);
    }
}
