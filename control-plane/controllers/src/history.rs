//! ControllerRevision: the templates that a set had, so that it can tell its pods apart and go back.
//! (`pkg/controller/history`.)
//!
//! A revision holds a strategic merge patch that puts its template back; `kubectl rollout undo` applies it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kedge_client::Context;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::write::{self, Namespaced};
use crate::{adopt, pods};

/// The longest owner's name within a revision's (`ControllerRevisionName`).
const PREFIX_MAX: usize = 223;
/// So many names taken by other contents are no accident.
const CLASHES_MAX: i32 = 16;

/// A set that keeps its templates as revisions.
pub(crate) trait Revised: Namespaced {
    /// The label of a revision that tells its hash.
    const HASH_LABEL: &'static str;

    /// The present template.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// How many names were taken so far.
    fn collisions(&self) -> i32;
}

/// What must be done to have a revision of the present template as the newest.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing: it is the newest.
    Keep(Arc<ControllerRevision>),
    /// An older one has this template: it becomes the newest under this number.
    Renumber(Arc<ControllerRevision>, i64),
    /// None has it: one of this number is made.
    Create(i64),
}

/// The revisions of `owner`, oldest first; orphans that it selects are adopted.
pub(crate) async fn list<O: Revised>(
    context: &Context,
    owner: &O,
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
) -> kube::Result<Vec<Arc<ControllerRevision>>> {
    let all = context.informers.of::<ControllerRevision>().list_in(&owner.namespace().unwrap_or_default());
    let mut owned = adopt::claim(context, owner, selector, all).await?;
    owned.sort_by_key(|revision| (revision.revision, revision.creation_timestamp().map(|t| t.0), revision.name_any()));
    Ok(owned)
}

/// The revision of the present template, made if there is none, and the number of names found taken.
pub(crate) async fn newest<O: Revised>(
    context: &Context,
    owner: &O,
    revisions: &[Arc<ControllerRevision>],
) -> kube::Result<(Arc<ControllerRevision>, i32)> {
    let template = owner.template().cloned().unwrap_or_default();
    let collisions = owner.collisions();
    match step(revisions, &template) {
        Step::Keep(revision) => Ok((revision, collisions)),
        Step::Renumber(revision, number) => {
            let made = write::merge(context, &*revision, &json!({ "revision": number })).await?;
            Ok((Arc::new(made), collisions))
        }
        Step::Create(number) => {
            let namespace = owner.namespace().unwrap_or_default();
            let mut clashes = 0;
            loop {
                let new = revision(owner, &template, number, collisions + clashes);
                match write::create(context, &namespace, &new).await {
                    Ok(made) => return Ok((Arc::new(made), collisions + clashes)),
                    Err(error) if write::is(&error, 409) && clashes < CLASHES_MAX => {
                        let api = write::api::<ControllerRevision>(context, &namespace);
                        let found = api.get(&new.name_any()).await?;
                        if pods::is_controlled_by(&found, owner) && holds(&found, &template) {
                            return Ok((Arc::new(found), collisions + clashes));
                        }
                        clashes += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn step(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Step {
    let next = revisions.last().map_or(1, |newest| newest.revision + 1);
    match revisions.iter().rposition(|revision| holds(revision, template)) {
        Some(at) if at + 1 == revisions.len() => Step::Keep(revisions[at].clone()),
        Some(at) => Step::Renumber(revisions[at].clone(), next),
        None => Step::Create(next),
    }
}

fn revision<O: Revised>(owner: &O, template: &PodTemplateSpec, number: i64, clashes: i32) -> ControllerRevision {
    let hash = pods::content_hash(template, Some(clashes));
    let mut name = owner.name_any();
    name.truncate(PREFIX_MAX);
    let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(O::HASH_LABEL.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![pods::owned_by(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(patch(template))),
        revision: number,
    }
}

/// The patch that puts a template back.
fn patch(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template that a revision holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.as_ref()?.0["spec"]["template"].clone()).ok()
}

/// Whether a revision holds this template, however it is written.
fn holds(revision: &ControllerRevision, wanted: &PodTemplateSpec) -> bool {
    template(revision).is_some_and(|template| template == *wanted)
}

/// The oldest of those that nobody uses, beyond `limit`.
pub(crate) fn surplus(
    revisions: &[Arc<ControllerRevision>],
    is_used: impl Fn(&ControllerRevision) -> bool,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let unused: Vec<_> = revisions.iter().filter(|revision| !is_used(revision)).cloned().collect();
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    unused.into_iter().take(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        let value =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
        serde_json::from_value(value).unwrap()
    }

    fn revision(name: &str, image: &str, number: i64) -> Arc<ControllerRevision> {
        let mut data = patch(&template(image));
        // Upstream's encoder writes this; it means nothing.
        data["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        let data = Some(RawExtension(data));
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        Arc::new(ControllerRevision { metadata, data, revision: number })
    }

    #[test]
    fn the_present_template_has_the_newest_revision() {
        let all = [revision("one", "i:1", 1), revision("two", "i:2", 2), revision("three", "i:3", 3)];
        assert_eq!(step(&all, &template("i:3")), Step::Keep(all[2].clone()));
        assert_eq!(step(&all, &template("i:1")), Step::Renumber(all[0].clone(), 4));
        assert_eq!(step(&all, &template("i:4")), Step::Create(4));
        assert_eq!(step(&[], &template("i:4")), Step::Create(1));
    }

    #[test]
    fn history_forgets_the_oldest_unused() {
        let all = [revision("one", "i:1", 1), revision("two", "i:2", 2), revision("three", "i:3", 3)];
        let names = |used: &str, limit| -> Vec<String> {
            let surplus = surplus(&all, |revision| revision.name_any() == used, limit);
            surplus.iter().map(|revision| revision.name_any()).collect()
        };
        assert_eq!(names("three", 1), ["one"]);
        assert_eq!(names("one", 0), ["two", "three"]);
        assert_eq!(names("one", 10), [""; 0]);
    }
}
