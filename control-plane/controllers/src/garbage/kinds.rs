//! The kinds that are collected, and the watch of each one's metadata.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::graph::Node;

/// What the watches bring, each with the number of its watch.
pub(super) struct News {
    pub(super) watch: u64,
    pub(super) item: Item,
}

/// One thing that a watch brings.
pub(super) enum Item {
    Seen(String, Node),
    Gone(String),
    Listed,
}

/// A kind of object, and where its objects are.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) resource: Arc<ApiResource>,
    pub(super) is_namespaced: bool,
}

/// The kinds that there are.
#[derive(Default)]
pub(super) struct Kinds {
    followed: BTreeMap<String, Followed>,
    by_name: HashMap<(String, String), Known>,
    /// Watches whose first list is not complete.
    unlisted: HashSet<u64>,
    /// The number of the next watch.
    next: u64,
}

struct Followed {
    watch: u64,
    resource: Arc<ApiResource>,
    task: JoinHandle<()>,
}

impl Kinds {
    /// Whether every kind has been listed once: before that, an owner that is merely not listed yet would look missing.
    pub(super) fn are_listed(&self) -> bool {
        self.unlisted.is_empty()
    }

    /// The kind that an owner reference names.
    pub(super) fn named(&self, api_version: &str, kind: &str) -> Option<&Known> {
        self.by_name.get(&(api_version.to_owned(), kind.to_owned()))
    }

    /// Takes note that a first list is complete.
    pub(super) fn listed(&mut self, watch: u64) {
        self.unlisted.remove(&watch);
    }

    /// Whether what this watch brings still counts: what is on its way when a kind goes is of no interest any more.
    pub(super) fn counts(&self, watch: u64) -> bool {
        self.followed.values().any(|followed| followed.watch == watch)
    }

    /// Asks which kinds there are, watches those that are new and no more those that went; gives the latter.
    pub(super) async fn follow(
        &mut self,
        client: &Client,
        sender: &mpsc::UnboundedSender<News>,
    ) -> kube::Result<Vec<Arc<ApiResource>>> {
        let discovery = Discovery::new(client.clone()).run().await?;
        let found = discovery.groups().flat_map(|group| group.recommended_resources()).filter(is_collected).collect();
        Ok(self.take_in(found, |watch, resource| tokio::spawn(follow(client.clone(), watch, resource, sender.clone()))))
    }

    fn take_in(
        &mut self,
        found: Vec<(ApiResource, ApiCapabilities)>,
        start: impl Fn(u64, Arc<ApiResource>) -> JoinHandle<()>,
    ) -> Vec<Arc<ApiResource>> {
        self.by_name.clear();
        let mut names = HashSet::new();
        for (resource, capabilities) in found {
            let name = format!("{}.{}", resource.plural, resource.group);
            let (resource, is_namespaced) = (Arc::new(resource), capabilities.scope == Scope::Namespaced);
            let known = Known { resource: resource.clone(), is_namespaced };
            self.by_name.insert((resource.api_version.clone(), resource.kind.clone()), known);
            if !self.followed.contains_key(&name) {
                let watch = self.next;
                self.next += 1;
                self.unlisted.insert(watch);
                let task = start(watch, resource.clone());
                self.followed.insert(name.clone(), Followed { watch, resource, task });
            }
            names.insert(name);
        }
        let mut gone = Vec::new();
        self.followed.retain(|name, followed| {
            let stays = names.contains(name);
            if !stays {
                followed.task.abort();
                self.unlisted.remove(&followed.watch);
                gone.push(followed.resource.clone());
            }
            stays
        });
        gone
    }
}

fn is_collected((resource, capabilities): &(ApiResource, ApiCapabilities)) -> bool {
    let all = [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| capabilities.supports_operation(verb));
    // Events are told about objects, never own or are owned, and are far too many.
    all && resource.kind != "Event"
}

async fn follow(client: Client, watch: u64, resource: Arc<ApiResource>, sender: mpsc::UnboundedSender<News>) {
    let send = |item: Item| sender.send(News { watch, item }).is_ok();
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
                send(Item::Seen(uid, node(&resource, &object)))
            }
            Ok(watcher::Event::Delete(object)) => {
                let uid = object.uid().unwrap_or_default();
                known.remove(&uid);
                send(Item::Gone(uid))
            }
            Ok(watcher::Event::InitDone) => {
                let now = listing.take().unwrap_or_default();
                let gone = known.iter().filter(|uid| !now.contains(*uid)).all(|uid| send(Item::Gone(uid.clone())));
                known = now;
                let first = !std::mem::replace(&mut listed, true);
                gone && (!first || send(Item::Listed))
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node as ClusterNode, Pod, Secret};

    use super::*;

    fn kind<K: kube::Resource<DynamicType = ()>>(scope: Scope) -> (ApiResource, ApiCapabilities) {
        (ApiResource::erase::<K>(&()), ApiCapabilities { scope, subresources: Vec::new(), operations: Vec::new() })
    }

    #[tokio::test]
    async fn a_kind_that_goes_before_its_first_list_holds_nothing_up() {
        let mut kinds = Kinds::default();
        let start = |_, _| tokio::spawn(std::future::pending());
        let (pods, secrets) = (|| kind::<Pod>(Scope::Namespaced), || kind::<Secret>(Scope::Namespaced));
        assert!(kinds.take_in(vec![pods(), secrets(), kind::<ClusterNode>(Scope::Cluster)], start).is_empty());
        assert!(kinds.named("v1", "Pod").unwrap().is_namespaced && !kinds.named("v1", "Node").unwrap().is_namespaced);
        kinds.listed(0);
        kinds.listed(2);
        assert!(!kinds.are_listed(), "secrets are not");
        let gone = kinds.take_in(vec![pods()], start);
        assert_eq!(gone.iter().map(|kind| kind.kind.as_str()).collect::<Vec<_>>(), ["Node", "Secret"]);
        assert!(kinds.are_listed());
        assert!(kinds.counts(0) && !kinds.counts(1), "what is still on its way is not taken in");
        assert!(kinds.named("v1", "Secret").is_none());
        // It comes again, under another number: what the old watch said last is not about this one.
        kinds.take_in(vec![pods(), secrets()], start);
        kinds.listed(1);
        assert!(!kinds.are_listed() && !kinds.counts(1) && kinds.counts(3));
        kinds.listed(3);
        assert!(kinds.are_listed());
    }
}
