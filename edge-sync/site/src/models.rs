//! The reconciler of what a site holds: makes its `Model` objects and their contents what the hub assigned, and
//! reports what has become of each. It works from what is held, whether the hub is there or not.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kedge_client::{Context, Key as Name, Next, Reconcile, Trigger};
use kedge_link::{Held, Key, Limits, Report, Saved};
use kedge_models::Digest;
use kedge_own::{INCOMING_DIGEST, Model};
use kedge_wire::report::{MESSAGE_BYTES_MAX, ModelReport, State};
use kedge_wire::{Assignment, VerifyingKey};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::transport::Channel;

use crate::plan::{ACTIVE_DIGEST, Step, plan, spec};
use crate::pull::{Progress, Puller};

/// Models fetched at one time: the link is the narrow place, not the box.
const PULLS_MAX: usize = 2;
/// Models looked at at once: those that wait for their turn to be fetched must not keep others from going.
const WORKERS: usize = 256;
/// After a pull was cut; a new connection ends the wait.
const CUT_PAUSE: Duration = Duration::from_secs(5);
/// After something was wrong that may be put right.
const WRONG_PAUSE: Duration = Duration::from_secs(30);

/// The reconciler.
pub(crate) struct Models {
    pub(crate) site: String,
    pub(crate) signing_key: VerifyingKey,
    pub(crate) puller: Puller,
    pub(crate) held: watch::Receiver<Arc<Saved>>,
    pub(crate) channel: watch::Receiver<Option<Channel>>,
    pub(crate) reports: mpsc::Sender<(Key, Report)>,
    pub(crate) pulls: Semaphore,
    /// How far pulls have come, for what is said while nobody is connected.
    pub(crate) progress: Mutex<HashMap<Key, Progress>>,
}

impl Models {
    pub(crate) fn pulls() -> Semaphore {
        Semaphore::new(PULLS_MAX)
    }
}

impl Reconcile for Models {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "hub-models"
    }

    fn concurrency(&self) -> usize {
        WORKERS
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Model>(trigger);
        context.informers.of::<Namespace>();
        let (mut held, trigger) = (self.held.clone(), trigger.clone());
        let mut channel = self.channel.clone();
        tokio::spawn(async move {
            let mut before = Arc::<Saved>::default();
            loop {
                let now = held.borrow_and_update().clone();
                // A new connection is a reason to go on with everything; other news concerns what changed.
                let connected = channel.has_changed().unwrap_or(false) && channel.borrow_and_update().is_some();
                let keys: BTreeSet<&Key> = before.held.keys().chain(now.held.keys()).collect();
                let concerned = keys.into_iter().filter(|key| connected || before.held.get(key) != now.held.get(key));
                for name in concerned.filter_map(name_of) {
                    if !trigger.wake(name) {
                        return;
                    }
                }
                before = now;
                let changed = tokio::select! {
                    changed = held.changed() => changed,
                    changed = channel.changed() => { channel.mark_changed(); changed }
                };
                if changed.is_err() {
                    return;
                }
            }
        });
    }

    async fn reconcile(&self, context: &Context, name: &Name) -> Result<Next, kube::Error> {
        let key = Key::new(&format!("Model/{name}"));
        let saved = self.held.borrow().clone();
        let object = context.informers.of::<Model>().get(name);
        let Some(held) = saved.held.get(&key) else {
            // Before the first word of the hub nothing is known of what is to go.
            if saved.position != Default::default() && plan(None, object.as_deref(), false) == Step::Delete {
                delete(context, object.as_deref()).await?;
            }
            self.progress.lock().expect("nobody panics with the lock").remove(&key);
            self.report(&key, None).await;
            return Ok(Next::Change);
        };
        let assigned = match self.signing_key.open(&held.body, &self.site, &key.0) {
            Ok(assigned) => assigned,
            Err(error) => {
                self.say(&key, "", State::Failed, Progress { done: 0, total: 0 }, Some(error.to_string())).await;
                return Ok(Next::Change);
            }
        };
        let Some(digest) = Digest::parse(&assigned.digest) else {
            let message = format!("{:?} is no digest", assigned.digest);
            self.say(&key, "", State::Failed, Progress { done: 0, total: 0 }, Some(message)).await;
            return Ok(Next::Change);
        };
        let here = Work { models: self, context, key: &key, name, held, assigned: &assigned, digest: &digest };
        here.step(object.as_deref()).await
    }
}

/// `namespace/name` of a key.
fn name_of(key: &Key) -> Option<Name> {
    let (namespace, name) = key.0.strip_prefix("Model/")?.split_once('/')?;
    Some(Name::new(namespace, name))
}

/// One model that is assigned, being looked at.
struct Work<'a> {
    models: &'a Models,
    context: &'a Context,
    key: &'a Key,
    name: &'a Name,
    held: &'a Held,
    assigned: &'a Assignment,
    digest: &'a Digest,
}

impl Work<'_> {
    async fn step(&self, object: Option<&Model>) -> Result<Next, kube::Error> {
        let active = self.models.puller.is_active(self.digest);
        let all = Progress { done: self.assigned.bytes, total: self.assigned.bytes };
        if self.held.unclaimed {
            let message = "the hub does not know this model; it stays until the hub assigns or releases it";
            let progress = if active { all } else { self.progress() };
            self.say(State::Unclaimed, progress, Some(message.into())).await;
            return Ok(Next::Change);
        }
        match plan(Some(self.assigned), object, active) {
            Step::Nothing | Step::Delete => {}
            Step::Foreign => {
                let message = format!(
                    "the site has a Model {} of its own; rename or delete it there, then this one takes its place",
                    self.name
                );
                self.say(State::Failed, self.progress(), Some(message)).await;
            }
            Step::Create(model) => {
                self.namespace().await?;
                let made = self.api().create(&PostParams::default(), &model).await?;
                self.reached(&made).await;
            }
            Step::Announce => {
                self.patch(json!({ "metadata": { "annotations": { INCOMING_DIGEST: self.digest } } })).await?;
            }
            Step::Point => {
                let annotations = json!({ ACTIVE_DIGEST: self.digest, INCOMING_DIGEST: null });
                let patch = json!({ "metadata": { "annotations": annotations }, "spec": spec(self.assigned) });
                self.patch(patch).await?;
            }
            Step::Pull => return Ok(self.pull().await),
            Step::Settled => {
                let (state, message) = object.map_or((State::Pulling, None), |model| settled(model, self.digest));
                self.say(state, all, message).await;
            }
        }
        Ok(Next::Change)
    }

    /// Fetches, until the contents are here, the connection is gone or the hub wants something else.
    async fn pull(&self) -> Next {
        let place = tokio::select! {
            place = self.models.pulls.acquire() => place,
            () = self.something_else() => return Next::After(Duration::ZERO),
        };
        let Ok(_place) = place else { return Next::Change };
        let Some(channel) = self.models.channel.borrow().clone() else {
            self.say(State::Pulling, self.progress(), Some("waiting for the connection to the hub".into())).await;
            return Next::Change;
        };
        let tell = |progress: Progress| {
            self.models.progress.lock().expect("nobody panics with the lock").insert(self.key.clone(), progress);
            let report = self.text(State::Pulling, progress, None);
            // Progress that does not fit in is told a second later.
            let _ = self.models.reports.try_send((self.key.clone(), Some(report)));
        };
        let pulled = tokio::select! {
            pulled = self.models.puller.pull(channel, self.digest, tell) => pulled,
            () = self.something_else() => return Next::After(Duration::ZERO),
        };
        match pulled {
            Ok(()) => {
                tracing::info!(model = %self.name, digest = %self.digest, "a model is here and active");
                Next::After(Duration::ZERO)
            }
            Err(error) => {
                tracing::info!(model = %self.name, %error, "a model is not here yet");
                let cut = error.is_a_cut();
                let state = if cut { State::Pulling } else { State::Failed };
                self.say(state, self.progress(), Some(error.to_string())).await;
                Next::After(if cut { CUT_PAUSE } else { WRONG_PAUSE })
            }
        }
    }

    /// Returns when the hub assigns something else under this name, or nothing any more.
    async fn something_else(&self) {
        let mut held = self.models.held.clone();
        let other = |saved: &Arc<Saved>| saved.held.get(self.key).is_none_or(|held| held.body != self.held.body);
        if held.wait_for(other).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn progress(&self) -> Progress {
        let known = self.models.progress.lock().expect("nobody panics with the lock").get(self.key).copied();
        known
            .filter(|known| known.total == self.assigned.bytes)
            .unwrap_or(Progress { done: 0, total: self.assigned.bytes })
    }

    fn api(&self) -> Api<Model> {
        Api::namespaced(self.context.informers.client().clone(), &self.name.namespace)
    }

    async fn namespace(&self) -> Result<(), kube::Error> {
        if self.context.informers.of::<Namespace>().get(&Name::new("", &self.name.namespace)).is_some() {
            return Ok(());
        }
        let namespaces: Api<Namespace> = Api::all(self.context.informers.client().clone());
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(self.name.namespace.clone());
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        }
    }

    async fn patch(&self, patch: Value) -> Result<(), kube::Error> {
        let made = self.api().patch(&self.name.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.reached(&made).await;
        Ok(())
    }

    /// Waits until everybody's copy shows the object: contents that no copy names are removed.
    async fn reached(&self, model: &Model) {
        let revision = model.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        self.context.informers.of::<Model>().reached(revision).await;
    }

    fn text(&self, state: State, progress: Progress, message: Option<String>) -> Arc<str> {
        body(self.digest.as_str(), state, progress, message)
    }

    async fn say(&self, state: State, progress: Progress, message: Option<String>) {
        self.models.say(self.key, self.digest.as_str(), state, progress, message).await;
    }
}

impl Models {
    async fn say(&self, key: &Key, digest: &str, state: State, progress: Progress, message: Option<String>) {
        self.report(key, Some(body(digest, state, progress, message))).await;
    }

    async fn report(&self, key: &Key, report: Report) {
        // Nobody takes reports once the cluster is no site any more.
        let _ = self.reports.send((key.clone(), report)).await;
    }
}

fn body(digest: &str, state: State, progress: Progress, message: Option<String>) -> Arc<str> {
    let message = message.map(|text| text.chars().take(MESSAGE_BYTES_MAX / 4).collect());
    let (bytes_done, bytes_total) = (progress.done, progress.total);
    let report = ModelReport { digest: digest.to_owned(), state, bytes_done, bytes_total, message };
    let text = serde_json::to_string(&report).expect("plain data");
    debug_assert!(text.len() <= Limits::BODY_BYTES_MAX);
    text.into()
}

/// What the cluster's own controller says of a model whose contents are here.
fn settled(model: &Model, digest: &Digest) -> (State, Option<String>) {
    let status = model.status.clone().unwrap_or_default();
    let current = status.observed_generation == model.metadata.generation;
    if current && status.is_ready() && status.digest.as_deref() == Some(digest.as_str()) {
        return (State::Active, None);
    }
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    match ready.filter(|condition| current && condition.reason != "Pulling") {
        Some(condition) => (State::Failed, Some(condition.message.clone())),
        None => (State::Pulling, Some("all bytes are here; the site looks at them".into())),
    }
}

async fn delete(context: &Context, object: Option<&Model>) -> Result<(), kube::Error> {
    let Some(object) = object else { return Ok(()) };
    let api: Api<Model> = Api::namespaced(context.informers.client().clone(), &object.namespace().unwrap_or_default());
    let preconditions = Some(Preconditions { uid: object.uid(), resource_version: None });
    let parameters = DeleteParams { preconditions, ..DeleteParams::background() };
    match api.delete(&object.name_any(), &parameters).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_says_is_what_is_reported() {
        let digest = Digest::of(b"x");
        let model = |ready: &str, reason: &str, generation: i64| -> Model {
            let condition = json!({"type": "Ready", "status": ready, "reason": reason, "message": "text",
                "lastTransitionTime": "2026-05-01T00:00:00Z"});
            serde_json::from_value(json!({"metadata": {"name": "m", "generation": 2},
                "spec": {"source": {"hub": {"uid": "u"}}},
                "status": {"observedGeneration": generation, "digest": digest, "conditions": [condition]}}))
            .unwrap()
        };
        assert_eq!(settled(&model("True", "Available", 2), &digest).0, State::Active);
        assert_eq!(settled(&model("True", "Available", 1), &digest).0, State::Pulling);
        assert_eq!(settled(&model("True", "Available", 2), &Digest::of(b"y")).0, State::Failed);
        assert_eq!(settled(&model("False", "FormatUnsupported", 2), &digest), (State::Failed, Some("text".into())));
        assert_eq!(settled(&model("False", "Pulling", 2), &digest).0, State::Pulling);
    }

    #[test]
    fn keys_name_models() {
        assert_eq!(name_of(&Key::new("Model/default/m")), Some(Name::new("default", "m")));
        assert_eq!(name_of(&Key::new("Other/default/m")), None);
    }
}
