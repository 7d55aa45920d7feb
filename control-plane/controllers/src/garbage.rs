//! Garbage collection: what nobody owns any more goes; what is to outlive its owner is let go of.
//! (`pkg/controller/garbagecollector`.)
//!
//! The graph ([`graph`]) is metadata of every kind that can be watched and deleted, fed by watches of metadata alone
//! ([`kinds`]). For each object the question is asked afresh: do its owners still exist (by uid, asked of the API before
//! anything is deleted), is one of them waiting for its dependents, does it itself wait for its own?

mod graph;
mod kinds;

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kedge_client::{Context, Queue};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use crate::write::is;
use graph::{FOREGROUND, Graph, Node, ORPHAN, Step};
use kinds::{Item, Kinds, News};

/// Before the API is asked again which kinds there are, when it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Runs the collector until its task is dropped.
pub(crate) async fn run(context: Context) {
    let client = context.informers.client().clone();
    let (sender, mut news) = mpsc::unbounded_channel();
    let (graph, queue, kinds) = (Graph::default(), Queue::default(), Kinds::default());
    let mut collector = Collector { client, graph, queue, kinds, context };
    // Custom kinds come and go; each change of a definition is a reason to ask which kinds there are.
    let mut definitions = collector.context.informers.of::<CustomResourceDefinition>().subscribe();
    let mut ask_at = collector.follow_kinds(&sender).await;
    loop {
        let now = collector.context.world.clock.monotonic();
        if collector.kinds.are_listed() {
            while let Some(key) = collector.queue.take(now) {
                match collector.work(&key.name).await {
                    Ok(()) => collector.queue.done(&key, None),
                    Err(error) => {
                        tracing::debug!(uid = key.name, %error, "garbage collection will try again");
                        collector.queue.failed(&key, now);
                    }
                }
                while let Ok(item) = news.try_recv() {
                    collector.take_in(item);
                }
            }
        }
        let due = collector.queue.next_due().filter(|_| collector.kinds.are_listed());
        let sleep = |at: Option<Duration>| tokio::time::sleep(at.map_or(Duration::MAX, |at| at.saturating_sub(now)));
        tokio::select! {
            Some(item) = news.recv() => collector.take_in(item),
            () = sleep(due), if due.is_some() => {}
            () = sleep(ask_at), if ask_at.is_some() => ask_at = collector.follow_kinds(&sender).await,
            Some(_) = definitions.recv() => {
                while definitions.try_recv().is_ok() {}
                ask_at = collector.follow_kinds(&sender).await;
            }
        }
    }
}

struct Collector {
    client: Client,
    graph: Graph,
    queue: Queue,
    kinds: Kinds,
    context: Context,
}

impl Collector {
    /// Follows the kinds that there are now; when to ask again, if the API did not say.
    async fn follow_kinds(&mut self, sender: &mpsc::UnboundedSender<News>) -> Option<Duration> {
        match self.kinds.follow(&self.client, sender).await {
            Ok(gone) => {
                let touched = gone.iter().flat_map(|resource| self.graph.remove_kind(resource)).collect();
                self.look_at(touched);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "the API's kinds cannot be listed now");
                Some(self.context.world.clock.monotonic() + ASK_AGAIN)
            }
        }
    }

    fn take_in(&mut self, News { watch, item }: News) {
        if !self.kinds.counts(watch) {
            return;
        }
        let touched = match item {
            Item::Seen(uid, node) => self.graph.put(&uid, node),
            Item::Gone(uid) => self.graph.remove(&uid),
            Item::Listed => {
                self.kinds.listed(watch);
                Vec::new()
            }
        };
        self.look_at(touched);
    }

    fn look_at(&mut self, uids: Vec<String>) {
        let now = self.context.world.clock.monotonic();
        for uid in uids {
            self.queue.add(kedge_client::Key::new("", &uid), now);
        }
    }

    fn api(&self, node: &Node) -> Api<DynamicObject> {
        api(&self.client, &node.resource, &node.namespace)
    }

    async fn work(&self, uid: &str) -> kube::Result<()> {
        let Some(node) = self.graph.nodes.get(uid) else { return Ok(()) };
        match self.graph.step(uid) {
            Step::Nothing => Ok(()),
            Step::Unblock(finalizer) => self.unblock(node, uid, finalizer).await,
            Step::Orphan(dependents) => {
                for dependent in dependents.iter().filter_map(|dependent| self.graph.nodes.get_key_value(dependent)) {
                    self.release(dependent, uid).await?;
                }
                self.unblock(node, uid, ORPHAN).await
            }
            Step::Release(dependents) => {
                for dependent in dependents.iter().filter_map(|dependent| self.graph.nodes.get_key_value(dependent)) {
                    self.release(dependent, uid).await?;
                }
                Ok(())
            }
            Step::DeleteDependents(dependents) => {
                for (dependent, node) in
                    dependents.iter().filter_map(|dependent| self.graph.nodes.get_key_value(dependent))
                {
                    // The graph does not know every owner.
                    if self.any_owner_lives(node).await? {
                        self.release((dependent, node), uid).await?;
                        continue;
                    }
                    let waits = !self.graph.dependents(dependent).is_empty();
                    self.delete(
                        node,
                        dependent,
                        if waits { PropagationPolicy::Foreground } else { PropagationPolicy::Background },
                    )
                    .await?;
                }
                Ok(())
            }
            Step::CheckOwners => {
                if self.any_owner_lives(node).await? {
                    return Ok(());
                }
                self.delete(node, uid, PropagationPolicy::Background).await
            }
        }
    }

    /// Whether one of the owners exists, under its own uid. An owner of an unknown kind is taken to exist, and so is one
    /// that is said to lie in a namespace by something that lies in none (upstream's `OwnerRefInvalidNamespace`).
    async fn any_owner_lives(&self, node: &Node) -> kube::Result<bool> {
        for owner in &node.owners {
            let waits = |owner: &Node| owner.deleting && owner.finalizers.iter().any(|f| f == FOREGROUND);
            if self.graph.nodes.get(&owner.uid).is_some_and(waits) {
                continue;
            }
            let Some(known) = self.kinds.named(&owner.api_version, &owner.kind) else { return Ok(true) };
            if known.is_namespaced && node.namespace.is_empty() {
                return Ok(true);
            }
            let namespace = if known.is_namespaced { node.namespace.as_str() } else { "" };
            // What cannot be asked now is no answer.
            let found = api(&self.client, &known.resource, namespace).get_metadata_opt(&owner.name).await?;
            if found.is_some_and(|found| found.uid().as_deref() == Some(&owner.uid)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn delete(&self, node: &Node, uid: &str, policy: PropagationPolicy) -> kube::Result<()> {
        // Somebody else may own it by now: then its change brings it back here.
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: node.revision.clone() });
        let parameters = DeleteParams { preconditions, propagation_policy: Some(policy), ..DeleteParams::default() };
        // The answer may be the object or a Status; neither matters.
        let path = self.api(node).resource_url().to_owned();
        let request =
            kube::core::Request::new(path).delete(&node.name, &parameters).map_err(kube::Error::BuildRequest)?;
        match self.client.request::<serde_json::Value>(request).await {
            Err(error) if !is(&error, 404) && !is(&error, 409) => Err(error),
            _ => Ok(()),
        }
    }

    async fn unblock(&self, node: &Node, uid: &str, finalizer: &str) -> kube::Result<()> {
        let left: Vec<&String> = node.finalizers.iter().filter(|f| *f != finalizer).collect();
        self.patch(node, &json!({ "metadata": { "uid": uid, "finalizers": left } })).await
    }

    async fn release(&self, (uid, node): (&String, &Node), owner: &str) -> kube::Result<()> {
        let left: Vec<&OwnerReference> = node.owners.iter().filter(|reference| reference.uid != owner).collect();
        self.patch(node, &json!({ "metadata": { "uid": uid, "ownerReferences": left } })).await
    }

    async fn patch(&self, node: &Node, patch: &serde_json::Value) -> kube::Result<()> {
        match self.api(node).patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // Gone, or another object of that name by now.
            Err(error) if !is(&error, 404) && !is(&error, 409) && !is(&error, 422) => Err(error),
            _ => Ok(()),
        }
    }
}

fn api(client: &Client, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
    if namespace.is_empty() {
        Api::all_with(client.clone(), resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, resource)
    }
}
