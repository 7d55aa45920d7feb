//! How many objects of a kind each namespace has: watches of metadata, one a kind, started when a quota first names
//! the kind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ResourceQuota;
use kedge_client::{Context, Informer, Key, Trigger};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiResource, Discovery};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use super::Error;

/// A first list that takes longer is waited for in a later look.
const LIST_MAX: Duration = Duration::from_secs(5);

/// A kind as quotas name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) plural: String,
}

impl Kind {
    fn new(group: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }
}

/// The kinds whose objects these names of limits count. Pure.
pub(super) fn kinds<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<Kind> {
    const COUNTED: [&str; 6] =
        ["configmaps", "secrets", "replicationcontrollers", "resourcequotas", "services", "persistentvolumeclaims"];
    let kind = |name: &str| match name.strip_prefix("count/") {
        Some(counted) => {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            Kind::new(group, plural)
        }
        None if COUNTED.contains(&name) => Kind::new("", name),
        None if name.starts_with("services.") => Kind::new("", "services"),
        None if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") => {
            Kind::new("", "persistentvolumeclaims")
        }
        None => Kind::new("", "pods"),
    };
    names.map(kind).collect()
}

/// What a watch has seen of one kind.
struct Seen {
    /// The kind's name, such as `Deployment`.
    name: String,
    objects: RwLock<HashSet<Key>>,
    listed: watch::Receiver<bool>,
}

fn read(seen: &Seen) -> std::sync::RwLockReadGuard<'_, HashSet<Key>> {
    seen.objects.read().expect("nobody panics while holding it")
}

fn write(seen: &Seen) -> std::sync::RwLockWriteGuard<'_, HashSet<Key>> {
    seen.objects.write().expect("nobody panics while holding it")
}

/// The watches, and whom they wake.
#[derive(Default)]
pub(super) struct Counts {
    of: Mutex<HashMap<Kind, Arc<Seen>>>,
    wakes: OnceLock<(Trigger, Informer<ResourceQuota>)>,
}

impl Counts {
    /// From now on, objects that come or go wake the quotas of their namespace.
    pub(super) fn start(&self, trigger: &Trigger, quotas: Informer<ResourceQuota>) {
        let _ = self.wakes.set((trigger.clone(), quotas));
    }

    /// The kind's name, and how many of it there are in a namespace; nothing of a kind that is not served.
    pub(super) async fn of(&self, context: &Context, kind: &Kind, namespace: &str) -> Result<(String, usize), Error> {
        let known = self.of.lock().expect("nobody panics while holding it").get(kind).cloned();
        let seen = match known {
            Some(seen) => seen,
            None => match find(context.informers.client(), kind).await? {
                Some(resource) => self.follow(context, kind, resource),
                None => return Ok((String::new(), 0)),
            },
        };
        let mut listed = seen.listed.clone();
        let complete = tokio::time::timeout(LIST_MAX, listed.wait_for(|listed| *listed)).await;
        if !matches!(complete, Ok(Ok(_))) {
            return Err(Error::NotListed(kind.plural.clone()));
        }
        let count = read(&seen).iter().filter(|key| key.namespace == namespace).count();
        Ok((seen.name.clone(), count))
    }

    fn follow(&self, context: &Context, kind: &Kind, resource: ApiResource) -> Arc<Seen> {
        let mut all = self.of.lock().expect("nobody panics while holding it");
        if let Some(seen) = all.get(kind) {
            return seen.clone();
        }
        let (sender, listed) = watch::channel(false);
        let seen = Arc::new(Seen { name: resource.kind.clone(), objects: RwLock::default(), listed });
        let client = context.informers.client().clone();
        if let Some((trigger, quotas)) = self.wakes.get().cloned() {
            tokio::spawn(feed(client, resource, seen.clone(), sender, trigger, quotas));
        }
        all.insert(kind.clone(), seen.clone());
        seen
    }
}

/// The resource that serves a kind; none when there is no such kind.
async fn find(client: &Client, kind: &Kind) -> kube::Result<Option<ApiResource>> {
    let discovery = Discovery::new(client.clone()).filter(&[&kind.group]).run().await?;
    let found = discovery.get(&kind.group).and_then(|group| {
        let mut resources = group.recommended_resources().into_iter();
        resources.find(|(resource, _)| resource.plural == kind.plural).map(|(resource, _)| resource)
    });
    Ok(found)
}

/// Keeps the count of a kind up to date, for ever; the watcher lists again after whatever went wrong.
async fn feed(
    client: Client,
    resource: ApiResource,
    seen: Arc<Seen>,
    listed: watch::Sender<bool>,
    trigger: Trigger,
    quotas: Informer<ResourceQuota>,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listing = HashSet::new();
    let wake = |namespace: &str| {
        for quota in quotas.list_in(namespace) {
            trigger.wake(Key::of(&*quota));
        }
    };
    while let Some(event) = events.next().await {
        let key = |object: &PartialObjectMeta<DynamicObject>| {
            Key::new(object.metadata.namespace.as_deref().unwrap_or_default(), &object.name_any())
        };
        match event {
            Ok(watcher::Event::Init) => listing = HashSet::new(),
            Ok(watcher::Event::InitApply(object)) => drop(listing.insert(key(&object))),
            Ok(watcher::Event::InitDone) => {
                let old = std::mem::replace(&mut *write(&seen), std::mem::take(&mut listing));
                let namespaces: BTreeSet<String> = old.into_iter().map(|key| key.namespace).collect();
                listed.send_replace(true);
                namespaces.iter().for_each(|namespace| wake(namespace));
            }
            Ok(watcher::Event::Apply(object)) => {
                let key = key(&object);
                if write(&seen).insert(key.clone()) {
                    wake(&key.namespace);
                }
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = key(&object);
                write(&seen).remove(&key);
                wake(&key.namespace);
            }
            Err(error) => tracing::debug!(kind = resource.plural, %error, "a watch is starting again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_limits_name_kinds() {
        let check = |name: &str, group: &str, plural: &str| {
            let found: Vec<Kind> = kinds([name].into_iter()).into_iter().collect();
            assert_eq!(found, [Kind::new(group, plural)], "{name}");
        };
        check("pods", "", "pods");
        check("limits.memory", "", "pods");
        check("requests.nvidia.com/gpu", "", "pods");
        check("services.nodeports", "", "services");
        check("requests.storage", "", "persistentvolumeclaims");
        check("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims");
        check("secrets", "", "secrets");
        check("count/secrets", "", "secrets");
        check("count/deployments.apps", "apps", "deployments");
        check("count/models.kedge.example.com", "kedge.example.com", "models");
    }
}
