//! Deployment: moves pods from one template to the next by growing one ReplicaSet and shrinking the others.
//! (`pkg/controller/deployment`.)
//!
//! [`rollout`] says how large each set should be next; this file finds the sets, carries that out and tells the
//! status. A look changes sizes once; the sets' own changes cause the next look.

mod rollout;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;
use serde_json::json;

use crate::{adopt, events, pods, write};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Deployment>(trigger);
        context.watch_owned::<ReplicaSet, Deployment>(trigger);
        // Recreate waits for the last pod of the old sets to be gone.
        let sets = context.informers.of::<ReplicaSet>();
        context.watch::<Pod>(trigger, move |change| {
            let (None, Some(pod)) = (&change.new, &change.old) else { return Vec::new() };
            let namespace = pod.namespace().unwrap_or_default();
            let set = pods::controller_of(&**pod).and_then(|owner| sets.get(&Key::new(&namespace, &owner.name)));
            let owner = set.and_then(|set| Some(Key::new(&namespace, &pods::controller_of(&*set)?.name)));
            owner.into_iter().collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(deployment) = context.informers.of::<Deployment>().get(key) else { return Ok(Next::Change) };
        let Some(spec) = deployment.spec.clone() else { return Ok(Next::Change) };
        if pods::is_empty(&spec.selector) {
            return Ok(Next::Change);
        }
        let all = context.informers.of::<ReplicaSet>().list_in(&key.namespace);
        let sets = Sets::sort(&deployment, adopt::claim(context, &*deployment, &spec.selector, all).await?);
        let leaving = deployment.metadata.deletion_timestamp.is_some();
        let mut clash = None;
        if !leaving {
            match act(context, &deployment, &sets).await {
                Ok(()) => {}
                Err(Failure::Clash) => {
                    clash = Some(deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1)
                }
                Err(Failure::Kube(error)) => return Err(error),
            }
        }
        let now = context.world.clock.wall();
        let (status, next) = status::status(&deployment, &sets, clash, now);
        if Some(&status) != deployment.status.as_ref() {
            let mut new = (*deployment).clone();
            new.status = Some(status);
            match write::replace_status(context, &new).await {
                // This look's own annotation made the revision old; that change brings the next look.
                Err(error) if write::is(&error, 409) => {}
                other => other?,
            }
        }
        Ok(next)
    }
}

enum Failure {
    /// A set of the wanted name exists and is of another content.
    Clash,
    Kube(kube::Error),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Kube(error)
    }
}

/// A deployment's sets: the one of the present template, and the others, oldest first.
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn sort(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Self {
        all.sort_by_key(|set| (set.creation_timestamp().map(|time| time.0), set.name_any()));
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let same = |set: &Arc<ReplicaSet>| template.is_some_and(|template| same_template(template, set));
        let new = all.iter().find(|set| same(set)).cloned();
        all.retain(|set| new.as_ref().is_none_or(|new| new.name_any() != set.name_any()));
        Self { new, old: all }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }
}

/// Whether a set makes pods of this template; the label that tells sets apart does not count.
fn same_template(template: &PodTemplateSpec, set: &ReplicaSet) -> bool {
    let Some(mut theirs) = set.spec.as_ref().and_then(|spec| spec.template.clone()) else { return false };
    let mut ours = template.clone();
    for side in [&mut theirs, &mut ours] {
        let metadata = side.metadata.get_or_insert_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH);
        }
        metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
    }
    theirs == ours
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

async fn act(context: &Context, deployment: &Deployment, sets: &Sets) -> Result<(), Failure> {
    let spec = deployment.spec.as_ref().expect("checked by the caller");
    let paused = spec.paused == Some(true);
    let plan = rollout::plan(deployment, sets, &|set| has_pods(context, set));
    if sets.new.is_none() && !paused && plan.new.is_some() {
        create_set(context, deployment, sets, plan.new.unwrap_or(0)).await?;
        return Ok(());
    }
    if let Some(new) = &sets.new
        && !paused
    {
        number(context, deployment, sets, new).await?;
    }
    let sizes = plan.old.iter().map(|(name, size)| (name.as_str(), *size));
    let new = sets.new.as_ref().and_then(|set| Some((set.name_any(), plan.new?)));
    for (name, wanted) in sizes.chain(new.as_ref().map(|(name, size)| (name.as_str(), *size))) {
        let set = sets.all().find(|set| set.name_any() == name).expect("plans name known sets");
        resize(context, deployment, set, wanted).await?;
    }
    for name in rollout::forgotten(deployment, sets) {
        let set = sets.all().find(|set| set.name_any() == name).expect("plans name known sets");
        write::delete(context, &**set).await?;
    }
    Ok(())
}

/// Whether pods of a set are still running or going away.
fn has_pods(context: &Context, set: &ReplicaSet) -> bool {
    let here = context.informers.of::<Pod>().list_in(&set.namespace().unwrap_or_default());
    here.iter().any(|pod| pods::is_controlled_by(&**pod, set) && !pods::is_finished(pod))
}

async fn create_set(context: &Context, deployment: &Deployment, sets: &Sets, replicas: i32) -> Result<(), Failure> {
    let spec = deployment.spec.as_ref().expect("checked by the caller");
    let salt = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = pods::content_hash(&spec.template, salt);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let number = sets.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
    let namespace = deployment.namespace().unwrap_or_default();
    let mut annotations = carried(deployment);
    annotations
        .extend([(REVISION.to_owned(), number.to_string()), (DESIRED.to_owned(), wanted(deployment).to_string())]);
    annotations.insert(MAX.into(), wanted(deployment).saturating_add(rollout::surge(deployment)).to_string());
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: Some(namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![pods::owned_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    match write::create(context, &namespace, &set).await {
        Ok(made) => {
            if replicas > 0 {
                tell_scaled(context, deployment, &made, 0, replicas);
            }
            Ok(show_revision(context, deployment, &made).await?)
        }
        Err(error) if write::is(&error, 409) => {
            let found = write::api::<ReplicaSet>(context, &namespace).get(&set.name_any()).await?;
            let ours = pods::is_controlled_by(&found, deployment) && same_template(&spec.template, &found);
            if ours { Ok(()) } else { Err(Failure::Clash) }
        }
        Err(error) => Err(error.into()),
    }
}

fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The deployment's annotations that its sets carry too.
fn carried(deployment: &Deployment) -> BTreeMap<String, String> {
    const OWN: &[&str] = &[
        REVISION,
        DESIRED,
        MAX,
        "kubectl.kubernetes.io/last-applied-configuration",
        "deprecated.deployment.rollback.to",
    ];
    let own = |key: &String| OWN.contains(&key.as_str()) || key == "deployment.kubernetes.io/revision-history";
    deployment.annotations().iter().filter(|(key, _)| !own(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A set that is (again) the newest gets the highest revision; the deployment shows it.
async fn number(context: &Context, deployment: &Deployment, sets: &Sets, new: &ReplicaSet) -> kube::Result<()> {
    let highest = sets.old.iter().map(|set| revision(set)).max().unwrap_or(0);
    let mut annotations = carried(deployment);
    annotations.retain(|key, value| new.annotations().get(key) != Some(value));
    if revision(new) <= highest {
        annotations.insert(REVISION.into(), (highest + 1).to_string());
    }
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let mut shown = new.clone();
    let differs = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0) != seconds.unwrap_or(0);
    if !annotations.is_empty() || differs {
        let patch =
            json!({ "metadata": { "annotations": annotations }, "spec": { "minReadySeconds": seconds.unwrap_or(0) } });
        shown = write::merge(context, new, &patch).await?;
    }
    show_revision(context, deployment, &shown).await
}

async fn show_revision(context: &Context, deployment: &Deployment, set: &ReplicaSet) -> kube::Result<()> {
    let number = revision(set).to_string();
    if deployment.annotations().get(REVISION) == Some(&number) {
        return Ok(());
    }
    let mut new = deployment.clone();
    new.metadata.annotations.get_or_insert_default().insert(REVISION.into(), number);
    write::replace(context, &new).await.map(drop)
}

/// Tells that a set has another size. (`scaleReplicaSet` of `pkg/controller/deployment/sync.go`.)
fn tell_scaled(context: &Context, deployment: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
    let way = if from < to { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {} from {from} to {to}", set.name_any());
    events::tell(context, Controller.name(), deployment, "ScalingReplicaSet", message);
}

/// Gives a set its next size, and the annotations by which a later change of the deployment's size is shared out.
async fn resize(context: &Context, deployment: &Deployment, set: &ReplicaSet, replicas: i32) -> kube::Result<()> {
    let desired = wanted(deployment).to_string();
    let most = wanted(deployment).saturating_add(rollout::surge(deployment)).to_string();
    let told = set.annotations().get(DESIRED) == Some(&desired) && set.annotations().get(MAX) == Some(&most);
    if size(set) == replicas && told {
        return Ok(());
    }
    let patch = json!({
        "metadata": { "annotations": { DESIRED: desired, MAX: most }, "resourceVersion": set.resource_version() },
        "spec": { "replicas": replicas },
    });
    write::merge(context, set, &patch).await?;
    if size(set) != replicas {
        tell_scaled(context, deployment, set, size(set), replicas);
    }
    Ok(())
}
