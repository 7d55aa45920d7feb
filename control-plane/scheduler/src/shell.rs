//! The loop: pods and nodes in from the shared copies, decisions out as bindings and conditions.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, EventSource, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kedge_client::events::{Recorder, Told};
use kedge_client::{Change, Context, Key, is_finished};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use crate::decide::{Decision, decide};
use crate::framework::Event;
use crate::queue::Queue;
use crate::snapshot::{PodView, Snapshot};

/// The scheduler that pods name when they name none.
const NAME: &str = "default-scheduler";

/// What a background binding came to.
struct Bound {
    pod: PodView,
    node: String,
    attempts: u32,
    error: Option<kube::Error>,
}

/// Places pods until its task is dropped.
pub async fn run(context: Context) {
    let mut pods = context.informers.of::<Pod>().subscribe();
    let mut nodes = context.informers.of::<Node>().subscribe();
    context.informers.synced().await;
    let (sender, mut ended) = mpsc::unbounded_channel::<Bound>();
    let source = EventSource { component: Some(NAME.to_owned()), host: None };
    let events = Recorder::start(context.informers.client().clone(), context.world.clone(), source);
    let (snapshot, queue) = (Snapshot::default(), Queue::default());
    let mut scheduler = Scheduler { snapshot, queue, context, bindings: sender, events };
    loop {
        // Everything that is known already is taken in before anything is decided.
        while let Ok(change) = nodes.try_recv() {
            scheduler.node(&change);
        }
        while let Ok(change) = pods.try_recv() {
            scheduler.pod(&change);
        }
        while let Ok(bound) = ended.try_recv() {
            scheduler.bound(bound);
        }
        let now = scheduler.context.world.clock.monotonic();
        if let Some((pod, attempts)) = scheduler.queue.pop(now) {
            scheduler.place(pod, attempts);
            continue;
        }
        let wait = scheduler.queue.next_due().map(|due| due.saturating_sub(now));
        tokio::select! {
            Some(change) = nodes.recv() => scheduler.node(&change),
            Some(change) = pods.recv() => scheduler.pod(&change),
            Some(bound) = ended.recv() => scheduler.bound(bound),
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            else => return,
        }
    }
}

struct Scheduler {
    snapshot: Snapshot,
    queue: Queue,
    context: Context,
    bindings: mpsc::UnboundedSender<Bound>,
    events: Recorder,
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn is_ours(pod: &Pod) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(NAME);
    name == NAME && pod.meta().deletion_timestamp.is_none() && !is_finished(pod)
}

impl Scheduler {
    fn node(&mut self, change: &Change<Node>) {
        match &change.new {
            Some(node) => {
                // Heartbeats change nothing that matters here.
                let same = change.old.as_ref().is_some_and(|old| {
                    old.spec == node.spec
                        && old.metadata.labels == node.metadata.labels
                        && old.status.as_ref().map(|s| &s.allocatable) == node.status.as_ref().map(|s| &s.allocatable)
                });
                self.snapshot.put_node(node.clone());
                if !same {
                    self.queue.happened(Event::Node);
                }
            }
            None => self.snapshot.remove_node(&change.latest().name_any()),
        }
    }

    fn pod(&mut self, change: &Change<Pod>) {
        let key = Key::of(&**change.latest());
        match &change.new {
            Some(pod) if is_finished(pod) => self.gone(&key),
            Some(pod) => match node_of(pod) {
                Some(node) => {
                    self.queue.remove(&key);
                    let known = change
                        .old
                        .as_ref()
                        .is_some_and(|old| node_of(old).is_some() && old.metadata.labels == pod.metadata.labels);
                    self.snapshot.place(PodView::new(pod.clone()), node);
                    if !known {
                        self.queue.happened(Event::PodPlaced);
                    }
                }
                None if is_ours(pod) => {
                    // A change of the status alone is mostly our own condition.
                    let same = change
                        .old
                        .as_ref()
                        .is_some_and(|old| old.spec == pod.spec && old.metadata.labels == pod.metadata.labels);
                    if !same {
                        self.queue.put(PodView::new(pod.clone()));
                    }
                }
                None => self.queue.remove(&key),
            },
            None => self.gone(&key),
        }
    }

    fn gone(&mut self, key: &Key) {
        self.queue.remove(key);
        if self.snapshot.remove_pod(key) {
            self.queue.happened(Event::PodGone);
        }
    }

    fn place(&mut self, pod: PodView, attempts: u32) {
        let tie = self.context.world.random.number();
        match decide(&pod, &self.snapshot, tie) {
            Decision::Node(node) => {
                // Assumed at once: the next decision counts it, though the API does not know yet.
                self.snapshot.place(pod.clone(), &node);
                let (client, bindings) = (self.context.informers.client().clone(), self.bindings.clone());
                tokio::spawn(async move {
                    let error = bind(client, &pod, &node).await.err();
                    let _ = bindings.send(Bound { pod, node, attempts, error });
                });
            }
            Decision::Nowhere { message, cures } => {
                let now = self.context.world.clock.monotonic();
                let (client, wall, refused) =
                    (self.context.informers.client().clone(), self.context.world.clock.wall(), pod.pod.clone());
                let gated = message.starts_with("Scheduling is blocked");
                if !gated {
                    self.events.tell(refused_event(&pod, &message));
                }
                tokio::spawn(async move {
                    if let Err(error) = tell(client, &refused, &message, gated, wall).await {
                        tracing::debug!(pod = %Key::of(&*refused), %error, "cannot say why a pod has no node");
                    }
                });
                self.queue.park(pod, attempts, Some(cures), now);
            }
        }
    }

    fn bound(&mut self, bound: Bound) {
        let Some(error) = bound.error else { return self.events.tell(placed_event(&bound.pod, &bound.node)) };
        self.snapshot.remove_pod(&bound.pod.key);
        let gone = matches!(&error, kube::Error::Api(status) if status.code == 404);
        if gone {
            return;
        }
        tracing::debug!(pod = %bound.pod.key, %error, "a binding failed");
        let current = self.context.informers.of::<Pod>().get(&bound.pod.key);
        if current.is_some_and(|pod| node_of(&pod).is_none()) {
            self.events.tell(refused_event(&bound.pod, &format!("binding to {}: {error}", bound.node)));
            let now = self.context.world.clock.monotonic();
            self.queue.park(bound.pod, bound.attempts, None, now);
        }
    }
}

/// What is told of a pod that got a node (`finishBinding`).
fn placed_event(pod: &PodView, node: &str) -> Told {
    let Key { namespace, name } = &pod.key;
    told(pod, false, "Scheduled", "Binding", format!("Successfully assigned {namespace}/{name} to {node}"))
}

/// What is told of a pod that got none (`handleSchedulingFailure`).
fn refused_event(pod: &PodView, message: &str) -> Told {
    told(pod, true, "FailedScheduling", "Scheduling", message.to_owned())
}

fn told(pod: &PodView, warning: bool, reason: &str, action: &str, message: String) -> Told {
    let about = pod.pod.object_ref(&());
    Told { about, warning, reason: reason.to_owned(), message, action: Some(action.to_owned()) }
}

async fn bind(client: kube::Client, pod: &PodView, node: &str) -> kube::Result<()> {
    let binding = Binding {
        metadata: ObjectMeta { name: Some(pod.key.name.clone()), uid: pod.pod.uid(), ..ObjectMeta::default() },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    let _: serde_json::Value =
        api.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await?;
    Ok(())
}

/// Sets the pod's PodScheduled condition, unless it says the same already.
async fn tell(client: kube::Client, pod: &Arc<Pod>, message: &str, gated: bool, now: Timestamp) -> kube::Result<()> {
    let reason = if gated { "SchedulingGated" } else { "Unschedulable" };
    let known = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let old = known.and_then(|list| list.iter().find(|c| c.type_ == "PodScheduled"));
    if old.is_some_and(|old| {
        old.status == "False" && old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(message)
    }) {
        return Ok(());
    }
    let since = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since.or(Some(Time(now))),
        ..PodCondition::default()
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap_or_default());
    let patch = Patch::Strategic(json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [condition] } }));
    match api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
        Err(error) if !matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 409) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_and_a_refusal_are_told() {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": []}});
        let pod = PodView::new(Arc::new(serde_json::from_value(pod).unwrap()));
        let placed = placed_event(&pod, "n1");
        assert_eq!((placed.warning, &*placed.reason), (false, "Scheduled"));
        assert_eq!(placed.message, "Successfully assigned ns/p to n1");
        assert_eq!(placed.action.as_deref(), Some("Binding"));
        let about = (placed.about.kind.as_deref(), placed.about.name.as_deref(), placed.about.uid.as_deref());
        assert_eq!(about, (Some("Pod"), Some("p"), Some("u")));
        let refused = refused_event(&pod, "0/1 nodes are available: 1 Insufficient cpu.");
        assert_eq!((refused.warning, &*refused.reason), (true, "FailedScheduling"));
        assert_eq!(refused.message, "0/1 nodes are available: 1 Insufficient cpu.");
    }
}
