//! CustomResourceDefinition: before a definition goes, every object of its kind does.
//! (`apiextensions-apiserver/pkg/controller/finalizer/crd_finalizer.go`.)
//!
//! The API server marks the definition and takes nothing new in from then on. Objects are deleted through it, so that
//! their own finalizers hold.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt};

use crate::write::is;

const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Objects that wait for finalizers of their own are looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Objects looked at together; what lies behind them comes with the next look.
const LOOK_MAX: u32 = 500;

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "customresourcedefinition-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<CustomResourceDefinition>(trigger);
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(definition) = context.informers.of::<CustomResourceDefinition>().get(key) else {
            return Ok(Next::Change);
        };
        let found = match kind(&definition) {
            Some(resource) if is_ending(&definition) => list(context, &resource).await?,
            _ => Vec::new(),
        };
        match plan(&definition, &found) {
            Plan::Nothing => Ok(Next::Change),
            Plan::Finish(told) => {
                let mut new = (*definition).clone();
                new.finalizers_mut().retain(|finalizer| finalizer != FINALIZER);
                tell(context, new, told).await.map(|()| Next::Change)
            }
            Plan::Wait(told) => {
                tell(context, (*definition).clone(), told).await?;
                Ok(Next::After(LOOK_AGAIN))
            }
            Plan::Delete(namespaces, told) => {
                tell(context, (*definition).clone(), told).await?;
                let Some(resource) = kind(&definition) else { return Ok(Next::Change) };
                for namespace in namespaces {
                    let api = objects::<DynamicObject>(context, &resource, namespace.as_deref());
                    match api.delete_collection(&DeleteParams::default(), &ListParams::default()).await {
                        Err(error) if !is(&error, 404) => return Err(error),
                        _ => {}
                    }
                }
                Ok(Next::After(Duration::ZERO))
            }
        }
    }
}

/// What a definition says about the condition `Terminating`: its status, its reason, and a sentence.
type Told = (&'static str, &'static str, &'static str);

/// What is to be done about a definition.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It is not being deleted, or no longer held.
    Nothing,
    /// Its objects in these namespaces (none: of no namespace) have not been told to go.
    Delete(BTreeSet<Option<String>>, Told),
    /// They go, or something keeps them.
    Wait(Told),
    /// Nothing is left.
    Finish(Told),
}

fn is_ending(definition: &CustomResourceDefinition) -> bool {
    definition.metadata.deletion_timestamp.is_some() && definition.finalizers().iter().any(|f| f == FINALIZER)
}

/// The kind as it can be reached: by a version that is served, or by the stored one, which is served until the end; none
/// if it was never established.
fn kind(definition: &CustomResourceDefinition) -> Option<ApiResource> {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    if !conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True") {
        return None;
    }
    let spec = &definition.spec;
    let versions = || spec.versions.iter();
    let version = versions().find(|version| version.served).or_else(|| versions().find(|version| version.storage))?;
    let api_version = format!("{}/{}", spec.group, version.name);
    let (group, version) = (spec.group.clone(), version.name.clone());
    let (kind, plural) = (spec.names.kind.clone(), spec.names.plural.clone());
    Some(ApiResource { group, version, api_version, kind, plural })
}

/// `found` are the first objects of the kind.
fn plan(definition: &CustomResourceDefinition, found: &[PartialObjectMeta<DynamicObject>]) -> Plan {
    if !is_ending(definition) {
        return Plan::Nothing;
    }
    if kind(definition).is_none() {
        return Plan::Finish(("False", "NeverEstablished", "resource was never established"));
    }
    if found.is_empty() {
        return Plan::Finish(("False", "InstanceDeletionCompleted", "removed all instances"));
    }
    let told = ("True", "InstanceDeletionInProgress", "CustomResource deletion is in progress");
    let untold = found.iter().filter(|object| object.metadata.deletion_timestamp.is_none());
    let namespaces: BTreeSet<_> = untold.map(|object| object.metadata.namespace.clone()).collect();
    if namespaces.is_empty() { Plan::Wait(told) } else { Plan::Delete(namespaces, told) }
}

fn objects<K>(context: &Context, resource: &ApiResource, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = ApiResource, Scope = kube::core::DynamicResourceScope>,
{
    let client = context.informers.client().clone();
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, resource),
        None => Api::all_with(client, resource),
    }
}

async fn list(context: &Context, resource: &ApiResource) -> kube::Result<Vec<PartialObjectMeta<DynamicObject>>> {
    let api = objects::<DynamicObject>(context, resource, None);
    Ok(api.list_metadata(&ListParams::default().limit(LOOK_MAX)).await?.items)
}

/// Sets the condition and writes the status, with which finalizers go, too. Somebody else's change wakes us again.
async fn tell(context: &Context, mut new: CustomResourceDefinition, told: Told) -> kube::Result<()> {
    let before = new.clone();
    set(&mut new, told, context.world.clock.wall());
    if new == before && is_ending(&new) {
        return Ok(());
    }
    let api: Api<CustomResourceDefinition> = Api::all(context.informers.client().clone());
    match api.replace_status(&new.name_any(), &PostParams::default(), &new).await {
        Err(error) if !is(&error, 404) && !is(&error, 409) => Err(error),
        _ => Ok(()),
    }
}

fn set(definition: &mut CustomResourceDefinition, (status, reason, message): Told, now: Timestamp) {
    let conditions = definition.status.get_or_insert_default().conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == "Terminating").map(|at| conditions.remove(at));
    let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time);
    conditions.push(CustomResourceDefinitionCondition {
        type_: "Terminating".into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since.or(Some(Time(now))),
        ..CustomResourceDefinitionCondition::default()
    });
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn definition(ending: bool, established: &str, served: bool) -> CustomResourceDefinition {
        let metadata = if ending {
            json!({ "name": "ws.x", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["own", FINALIZER] })
        } else {
            json!({ "name": "ws.x" })
        };
        serde_json::from_value(json!({ "metadata": metadata,
            "spec": { "group": "x", "scope": "Namespaced", "names": { "plural": "ws", "kind": "W" },
                "versions": [{ "name": "v1", "served": served, "storage": true }] },
            "status": { "conditions": [{ "type": "Established", "status": established }] } }))
        .unwrap()
    }

    fn objects(list: &[(&str, bool)]) -> Vec<PartialObjectMeta<DynamicObject>> {
        let object = |(namespace, going): &(&str, bool)| {
            let mut metadata = json!({ "name": "w" });
            if !namespace.is_empty() {
                metadata["namespace"] = Value::from(*namespace);
            }
            if *going {
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            serde_json::from_value(json!({ "metadata": metadata })).unwrap()
        };
        list.iter().map(object).collect()
    }

    #[test]
    fn objects_go_first_and_the_finalizer_last() {
        let ending = definition(true, "True", true);
        let check = |definition: &CustomResourceDefinition, found: &[(&str, bool)], expected: &str| {
            let text = match plan(definition, &objects(found)) {
                Plan::Nothing => "nothing".to_owned(),
                Plan::Delete(namespaces, told) => format!("delete {} {}", json!(namespaces), told.1),
                Plan::Wait(told) => format!("wait {}", told.1),
                Plan::Finish(told) => format!("finish {}", told.1),
            };
            assert_eq!(text, expected);
        };
        check(&definition(false, "True", true), &[("a", false)], "nothing");
        check(&ending, &[("b", false), ("a", false), ("a", true)], r#"delete ["a","b"] InstanceDeletionInProgress"#);
        check(&ending, &[("", false)], "delete [null] InstanceDeletionInProgress");
        check(&ending, &[("a", true)], "wait InstanceDeletionInProgress");
        check(&ending, &[], "finish InstanceDeletionCompleted");
        check(&definition(true, "False", true), &[], "finish NeverEstablished");
        let hidden = definition(true, "True", false);
        check(&hidden, &[("a", true)], "wait InstanceDeletionInProgress");
        assert_eq!(kind(&hidden).unwrap().version, "v1");
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let mut definition = definition(true, "True", true);
        let at = |second| Timestamp::from_second(second).unwrap();
        let since = |definition: &CustomResourceDefinition| {
            let conditions = definition.status.clone().unwrap().conditions.unwrap();
            (conditions.len(), conditions[1].last_transition_time.clone().unwrap().0)
        };
        set(&mut definition, ("True", "a", ""), at(1));
        set(&mut definition, ("True", "b", ""), at(2));
        assert_eq!(since(&definition), (2, at(1)));
        set(&mut definition, ("False", "c", ""), at(3));
        assert_eq!(since(&definition), (2, at(3)));
    }
}
