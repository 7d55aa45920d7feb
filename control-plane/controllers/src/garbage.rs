//! Garbage collection: what nobody owns any more goes; what is to outlive its owner is let go of.
//! (`pkg/controller/garbagecollector`.)
//!
//! The graph is metadata of every kind that can be watched and deleted, fed by watches of metadata alone. For each
//! object the question is asked afresh: do its owners still exist (by uid, asked of the API before anything is
//! deleted), is one of them waiting for its dependents, does it itself wait for its own?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kedge_client::{Context, Queue};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiResource, Discovery, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use crate::write::is;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What is known of an object.
#[derive(Clone, Debug)]
struct Node {
    resource: Arc<ApiResource>,
    namespace: String,
    name: String,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
    /// The revision at which all this was so.
    revision: Option<String>,
}

/// Objects by uid, and who depends on whom.
#[derive(Debug, Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

/// What to do about one object. Pure.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Nothing,
    /// Take the foreground or orphan finalizer off: what it waited for is done.
    Unblock(&'static str),
    /// First let these go of their owner, then unblock.
    Orphan(Vec<String>),
    /// Let these go of their owner, which waits for them to go: others own them too.
    Release(Vec<String>),
    /// Delete these, whose owner waits for them; look again when they are gone.
    DeleteDependents(Vec<String>),
    /// Ask the API whether these owners exist; delete the object if none does.
    CheckOwners,
}

impl Graph {
    /// Takes in an object; returns the uids whose situation may have changed.
    fn put(&mut self, uid: &str, node: Node) -> Vec<String> {
        let mut touched = vec![uid.to_owned()];
        if let Some(old) = self.nodes.get(uid) {
            touched.extend(old.owners.iter().map(|owner| owner.uid.clone()));
            for owner in old.owners.clone() {
                self.forget_dependent(&owner.uid, uid);
            }
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
        if node.deleting {
            touched.extend(node.owners.iter().map(|owner| owner.uid.clone()));
        }
        self.nodes.insert(uid.to_owned(), node);
        touched
    }

    /// Takes an object out; its dependents have lost an owner, and its owners need not wait for it any more.
    fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut touched: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(old) = self.nodes.remove(uid) {
            for owner in old.owners {
                self.forget_dependent(&owner.uid, uid);
                touched.push(owner.uid);
            }
        }
        touched
    }

    fn forget_dependent(&mut self, owner: &str, uid: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(uid);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents(&self, uid: &str) -> Vec<String> {
        let mut all: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        all.sort();
        all
    }

    fn step(&self, uid: &str) -> Step {
        let Some(node) = self.nodes.get(uid) else { return Step::Nothing };
        let has = |finalizer: &str| node.finalizers.iter().any(|f| f == finalizer);
        if node.deleting {
            if has(ORPHAN) {
                return Step::Orphan(self.dependents(uid));
            }
            if has(FOREGROUND) {
                let blocking = |dependent: &&String| {
                    let owners = self.nodes.get(*dependent).map(|node| &node.owners);
                    owners
                        .into_iter()
                        .flatten()
                        .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
                };
                let all = self.dependents(uid);
                if !all.iter().any(|dependent| blocking(&dependent)) {
                    return Step::Unblock(FOREGROUND);
                }
                let waiting = all.into_iter().filter(|uid| self.nodes.get(uid).is_some_and(|node| !node.deleting));
                let (shared, waiting): (Vec<_>, Vec<_>) = waiting.partition(|dependent| self.is_kept(dependent));
                return match (shared.is_empty(), waiting.is_empty()) {
                    (false, _) => Step::Release(shared),
                    (true, false) => Step::DeleteDependents(waiting),
                    (true, true) => Step::Nothing,
                };
            }
            return Step::Nothing;
        }
        if node.owners.is_empty() || self.is_kept(uid) { Step::Nothing } else { Step::CheckOwners }
    }

    /// Whether an owner that the graph knows keeps the object: one that does not wait for its dependents to go.
    fn is_kept(&self, uid: &str) -> bool {
        let keeps = |owner: &OwnerReference| {
            let owner = self.nodes.get(&owner.uid);
            owner.is_some_and(|node| !(node.deleting && node.finalizers.iter().any(|f| f == FOREGROUND)))
        };
        self.nodes.get(uid).is_some_and(|node| node.owners.iter().any(keeps))
    }
}

/// What the watches bring.
enum News {
    Seen(String, Node),
    Gone(String),
    Listed,
}

/// Runs the collector until its task is dropped.
pub(crate) async fn run(context: Context) {
    let client = context.informers.client().clone();
    let (sender, mut news) = mpsc::unbounded_channel();
    let mut kinds: BTreeMap<String, tokio::task::JoinHandle<()>> = BTreeMap::new();
    let mut resources: HashMap<(String, String), Arc<ApiResource>> = HashMap::new();
    let mut collector = Collector { client, graph: Graph::default(), queue: Queue::default(), unlisted: 0, context };
    // Custom kinds come and go; each change of a definition is a reason to ask which kinds there are.
    let mut definitions = collector.context.informers.of::<CustomResourceDefinition>().subscribe();
    collector.unlisted += follow_kinds(&collector.client, &mut kinds, &mut resources, &sender).await;
    loop {
        let now = collector.context.world.clock.monotonic();
        // Before every kind has been listed once, an owner that is merely not listed yet would look missing.
        if collector.unlisted == 0 {
            while let Some(key) = collector.queue.take(now) {
                match collector.work(&key.name, &resources).await {
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
        let due = collector.queue.next_due().filter(|_| collector.unlisted == 0).map(|due| due.saturating_sub(now));
        tokio::select! {
            Some(item) = news.recv() => collector.take_in(item),
            () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => {}
            Some(_) = definitions.recv() => {
                while definitions.try_recv().is_ok() {}
                collector.unlisted += follow_kinds(&collector.client, &mut kinds, &mut resources, &sender).await;
            }
        }
    }
}

/// Watches the metadata of kinds that are new, stops watching those that went. Returns how many are new.
async fn follow_kinds(
    client: &Client,
    kinds: &mut BTreeMap<String, tokio::task::JoinHandle<()>>,
    resources: &mut HashMap<(String, String), Arc<ApiResource>>,
    sender: &mpsc::UnboundedSender<News>,
) -> usize {
    let discovery = match Discovery::new(client.clone()).run().await {
        Ok(discovery) => discovery,
        Err(error) => {
            tracing::debug!(%error, "the API's kinds cannot be listed now");
            return 0;
        }
    };
    let mut found = HashSet::new();
    let mut started = 0;
    for (resource, capabilities) in discovery.groups().flat_map(|group| group.recommended_resources()) {
        let collectable =
            [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| capabilities.supports_operation(verb));
        // Events are told about objects, never own or are owned, and are far too many.
        if !collectable || resource.kind == "Event" {
            continue;
        }
        let name = format!("{}.{}", resource.plural, resource.group);
        found.insert(name.clone());
        let resource = Arc::new(resource);
        resources.insert((resource.api_version.clone(), resource.kind.clone()), resource.clone());
        if kinds.contains_key(&name) {
            continue;
        }
        started += 1;
        kinds.insert(name, tokio::spawn(follow(client.clone(), resource, sender.clone())));
    }
    kinds.retain(|name, task| {
        let stays = found.contains(name);
        if !stays {
            task.abort();
        }
        stays
    });
    started
}

async fn follow(client: Client, resource: Arc<ApiResource>, sender: mpsc::UnboundedSender<News>) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &*resource);
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut known: HashSet<String> = HashSet::new();
    let mut listing: Option<HashSet<String>> = None;
    let mut listed = false;
    while let Some(event) = events.next().await {
        let sent = match event {
            Ok(watcher::Event::Init) => {
                listing = Some(HashSet::new());
                true
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                let uid = object.uid().unwrap_or_default();
                known.insert(uid.clone());
                if let Some(listing) = &mut listing {
                    listing.insert(uid.clone());
                }
                sender.send(News::Seen(uid, node(&resource, &object))).is_ok()
            }
            Ok(watcher::Event::Delete(object)) => {
                let uid = object.uid().unwrap_or_default();
                known.remove(&uid);
                sender.send(News::Gone(uid)).is_ok()
            }
            Ok(watcher::Event::InitDone) => {
                let now = listing.take().unwrap_or_default();
                let gone = known
                    .iter()
                    .filter(|uid| !now.contains(*uid))
                    .all(|uid| sender.send(News::Gone(uid.clone())).is_ok());
                known = now;
                let first = !std::mem::replace(&mut listed, true);
                gone && (!first || sender.send(News::Listed).is_ok())
            }
            Err(_) => true,
        };
        if !sent {
            return;
        }
    }
}

fn node(resource: &Arc<ApiResource>, object: &PartialObjectMeta<DynamicObject>) -> Node {
    Node {
        resource: resource.clone(),
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        owners: object.owner_references().to_vec(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        finalizers: object.finalizers().to_vec(),
        revision: object.resource_version(),
    }
}

struct Collector {
    client: Client,
    graph: Graph,
    queue: Queue,
    /// Kinds whose first list is not complete.
    unlisted: usize,
    context: Context,
}

impl Collector {
    fn take_in(&mut self, news: News) {
        let touched = match news {
            News::Seen(uid, node) => self.graph.put(&uid, node),
            News::Gone(uid) => self.graph.remove(&uid),
            News::Listed => {
                self.unlisted -= 1;
                Vec::new()
            }
        };
        let now = self.context.world.clock.monotonic();
        for uid in touched {
            self.queue.add(kedge_client::Key::new("", &uid), now);
        }
    }

    fn api(&self, node: &Node) -> Api<DynamicObject> {
        api(&self.client, &node.resource, &node.namespace)
    }

    async fn work(&self, uid: &str, resources: &HashMap<(String, String), Arc<ApiResource>>) -> kube::Result<()> {
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
                    if self.any_owner_lives(node, resources).await? {
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
                if self.any_owner_lives(node, resources).await? {
                    return Ok(());
                }
                self.delete(node, uid, PropagationPolicy::Background).await
            }
        }
    }

    /// Whether one of the owners exists, under its own uid. An owner of an unknown kind is taken to exist.
    async fn any_owner_lives(
        &self,
        node: &Node,
        resources: &HashMap<(String, String), Arc<ApiResource>>,
    ) -> kube::Result<bool> {
        for owner in &node.owners {
            if self
                .graph
                .nodes
                .get(&owner.uid)
                .is_some_and(|owner| owner.deleting && owner.finalizers.iter().any(|f| f == FOREGROUND))
            {
                continue;
            }
            let Some(resource) = resources.get(&(owner.api_version.clone(), owner.kind.clone())) else {
                return Ok(true);
            };
            let found = match api(&self.client, resource, &node.namespace).get_metadata_opt(&owner.name).await {
                // A cluster-wide owner is not found below a namespace.
                Err(error) if is(&error, 404) || is(&error, 405) => {
                    api(&self.client, resource, "").get_metadata_opt(&owner.name).await?
                }
                Ok(None) => api(&self.client, resource, "").get_metadata_opt(&owner.name).await.unwrap_or_default(),
                other => other?,
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(owners: &[(&str, bool)], deleting: bool, finalizers: &[&str]) -> Node {
        let owner = |(uid, blocks): &(&str, bool)| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(*blocks),
            ..OwnerReference::default()
        };
        Node {
            resource: Arc::new(ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())),
            namespace: "n".into(),
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            deleting,
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            revision: None,
        }
    }

    fn graph(nodes: &[(&str, Node)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, node) in nodes {
            graph.put(uid, node.clone());
        }
        graph
    }

    #[test]
    fn what_lost_its_last_owner_is_asked_about_and_nothing_else() {
        let graph = graph(&[
            ("o", node(&[], false, &[])),
            ("kept", node(&[("o", true), ("gone", true)], false, &[])),
            ("lost", node(&[("gone", true)], false, &[])),
            ("free", node(&[], false, &[])),
        ]);
        let steps = ["kept", "lost", "free", "o"].map(|uid| graph.step(uid));
        assert_eq!(steps, [Step::Nothing, Step::CheckOwners, Step::Nothing, Step::Nothing]);
    }

    #[test]
    fn a_foreground_deletion_waits_for_the_dependents_that_block_it() {
        let owner = node(&[], true, &[FOREGROUND]);
        let mut graph =
            graph(&[("o", owner), ("a", node(&[("o", true)], false, &[])), ("b", node(&[("o", false)], false, &[]))]);
        assert_eq!(graph.step("o"), Step::DeleteDependents(vec!["a".into(), "b".into()]));
        assert_eq!(graph.step("a"), Step::CheckOwners);
        assert!(graph.put("a", node(&[("o", true)], true, &["x/y"])).contains(&"o".to_owned()));
        graph.remove("b");
        assert_eq!(graph.step("o"), Step::Nothing);
        assert_eq!(graph.remove("a"), ["o"]);
        assert_eq!(graph.step("o"), Step::Unblock(FOREGROUND));
    }

    #[test]
    fn a_foreground_deletion_spares_what_others_own_too() {
        let owners = [("o", true), ("other", false)];
        let graph = graph(&[
            ("o", node(&[], true, &[FOREGROUND])),
            ("other", node(&[], false, &[])),
            ("a", node(&owners, false, &[])),
            ("b", node(&[("o", true)], false, &[])),
        ]);
        assert_eq!(graph.step("o"), Step::Release(vec!["a".into()]));
        assert_eq!(graph.step("a"), Step::Nothing);
    }

    #[test]
    fn an_orphaning_deletion_lets_its_dependents_go() {
        let graph = graph(&[("o", node(&[], true, &[ORPHAN])), ("a", node(&[("o", true)], false, &[]))]);
        assert_eq!(graph.step("o"), Step::Orphan(vec!["a".into()]));
        assert_eq!(graph.step("a"), Step::Nothing);
    }
}
