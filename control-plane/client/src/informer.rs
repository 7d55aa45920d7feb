//! One watch-fed copy of a kind, shared by everybody in the process who needs it.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::Key;
use crate::events::Recorder;
use crate::trim::trim;

/// How long a writer waits to see its own write come back before it goes on without.
const SEEN_MAX: Duration = Duration::from_secs(5);

/// A built-in kind that can be watched over the whole cluster.
pub trait Watched: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Watched for K where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// What became of an object. An object that was replaced while nobody was connected shows as one change.
#[derive(Debug)]
pub struct Change<K> {
    /// Before; none when it is new.
    pub old: Option<Arc<K>>,
    /// After; none when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        Self { old: self.old.clone(), new: self.new.clone() }
    }
}

impl<K> Change<K> {
    /// The newest state there is.
    pub fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has at least one side")
    }
}

/// The informers of a process; one a kind, started when first asked for. A copy is fed for as long as this, or somebody who
/// was given it, is there.
#[derive(Clone)]
pub struct Informers {
    /// Asked by those who hold this.
    client: Client,
    /// What the copies are fed by, whoever asks for them first.
    watching: Client,
    by_kind: Arc<Mutex<HashMap<TypeId, Held>>>,
    /// Where those who hold this tell what happens, once somebody has; it is written through `client`.
    pub(crate) recorder: Arc<OnceLock<Recorder>>,
}

/// An informer without its type, and what tells whether its first list is complete.
struct Held {
    informer: Box<dyn Any + Send>,
    seen: watch::Receiver<Option<u64>>,
}

impl Informers {
    /// Informers that watch through `client`.
    pub fn new(client: Client) -> Self {
        Self { watching: client.clone(), client, by_kind: Arc::default(), recorder: Arc::default() }
    }

    /// The same copies, for somebody who asks and writes through `client`.
    pub fn acting_through(&self, client: Client) -> Self {
        Self { client, recorder: Arc::default(), ..self.clone() }
    }

    /// The client to ask and to write through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The shared copy of a kind.
    pub fn of<K: Watched>(&self) -> Informer<K> {
        let mut by_kind = self.by_kind.lock();
        let held = by_kind.entry(TypeId::of::<K>()).or_insert_with(|| {
            let informer = Informer::<K>::start(self.watching.clone());
            Held { seen: informer.0.seen.subscribe(), informer: Box::new(informer) }
        });
        held.informer.downcast_ref::<Informer<K>>().expect("filed under its own type").clone()
    }

    /// Returns once the first list of every kind asked for so far is complete: a reconciler that starts earlier
    /// would take what it has not seen for what is not there.
    pub async fn synced(&self) {
        let all: Vec<_> = self.by_kind.lock().values().map(|held| held.seen.clone()).collect();
        for mut seen in all {
            let _ = seen.wait_for(Option::is_some).await;
        }
    }
}

struct Shared<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    listeners: Mutex<Vec<mpsc::UnboundedSender<Change<K>>>>,
    /// The newest revision seen; none before the first list is complete.
    seen: watch::Sender<Option<u64>>,
    /// What keeps the copy up to date; it ends when nobody holds the copy any more.
    feed: OnceLock<AbortHandle>,
}

impl<K> Drop for Shared<K> {
    fn drop(&mut self) {
        if let Some(feed) = self.feed.get() {
            feed.abort();
        }
    }
}

/// A shared copy of one kind.
pub struct Informer<K>(Arc<Shared<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Watched> Informer<K> {
    fn start(client: Client) -> Self {
        let shared = Arc::new(Shared {
            objects: RwLock::default(),
            listeners: Mutex::default(),
            seen: watch::Sender::new(None),
            feed: OnceLock::new(),
        });
        let feeding = Arc::downgrade(&shared);
        let task = tokio::spawn(async move { feed(Api::all(client), feeding).await });
        let _ = shared.feed.set(task.abort_handle()); // Set once, here.
        Self(shared)
    }

    /// The object at `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.objects.read().get(key).cloned()
    }

    /// Every object, in order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.objects.read().values().cloned().collect()
    }

    /// The objects of one namespace, in order of their names.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.0.objects.read();
        let from = objects.range(Key::new(namespace, "")..);
        from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// Every change from now on; objects that are already there come first, as new.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Under the objects' lock, so that nothing is missed and nothing told twice.
        let objects = self.0.objects.read();
        for object in objects.values() {
            let _ = sender.send(Change { old: None, new: Some(object.clone()) });
        }
        self.0.listeners.lock().push(sender);
        receiver
    }

    /// Returns once the first list is complete.
    pub async fn synced(&self) {
        let mut seen = self.0.seen.subscribe();
        let _ = seen.wait_for(Option::is_some).await;
    }

    /// Returns once everything up to `revision` has been seen, or after some seconds: a caller that just wrote
    /// waits here so that its next look includes what it did.
    pub async fn reached(&self, revision: u64) {
        let mut seen = self.0.seen.subscribe();
        let wait = seen.wait_for(|seen| seen.is_some_and(|seen| seen >= revision));
        let _ = tokio::time::timeout(SEEN_MAX, wait).await;
    }
}

/// Keeps the copy up to date for as long as somebody holds it; the watcher lists again after whatever went wrong.
async fn feed<K: Watched>(api: Api<K>, shared: Weak<Shared<K>>) {
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listing: Option<BTreeMap<Key, Arc<K>>> = None;
    while let Some(event) = events.next().await {
        let Some(shared) = shared.upgrade() else { return };
        match event {
            Ok(watcher::Event::Init) => listing = Some(BTreeMap::new()),
            Ok(watcher::Event::InitApply(mut object)) => {
                trim(&mut object);
                if let Some(listing) = &mut listing {
                    listing.insert(Key::of(&object), Arc::new(object));
                }
            }
            Ok(watcher::Event::InitDone) => replace(&shared, listing.take().unwrap_or_default()),
            Ok(watcher::Event::Apply(mut object)) => {
                trim(&mut object);
                let revision = revision(&object);
                let (key, object) = (Key::of(&object), Arc::new(object));
                let mut objects = shared.objects.write();
                let old = objects.insert(key, object.clone());
                tell(&shared, Change { old, new: Some(object) });
                drop(objects);
                see(&shared, revision);
            }
            Ok(watcher::Event::Delete(mut object)) => {
                trim(&mut object);
                let mut objects = shared.objects.write();
                let old = objects.remove(&Key::of(&object));
                let last = old.unwrap_or_else(|| Arc::new(object.clone()));
                tell(&shared, Change { old: Some(last), new: None });
                drop(objects);
                see(&shared, revision(&object));
            }
            Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "a watch is starting again"),
        }
    }
}

fn revision<K: Watched>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn see<K>(shared: &Shared<K>, revision: u64) {
    shared.seen.send_modify(|seen| *seen = Some(seen.unwrap_or(0).max(revision)));
}

/// A complete list takes the place of the copy; the differences are told as changes.
fn replace<K: Watched>(shared: &Shared<K>, listed: BTreeMap<Key, Arc<K>>) {
    let newest = listed.values().map(|object| revision(&**object)).max().unwrap_or(0);
    let mut objects = shared.objects.write();
    let before = std::mem::replace(&mut *objects, listed);
    for (key, object) in objects.iter() {
        let old = before.get(key).cloned();
        if old.as_ref().is_none_or(|old| old.meta().resource_version != object.meta().resource_version) {
            tell(shared, Change { old, new: Some(object.clone()) });
        }
    }
    for (_, old) in before.into_iter().filter(|(key, _)| !objects.contains_key(key)) {
        tell(shared, Change { old: Some(old), new: None });
    }
    drop(objects);
    see(shared, newest);
}

fn tell<K>(shared: &Shared<K>, change: Change<K>) {
    shared.listeners.lock().retain(|listener| listener.send(change.clone()).is_ok());
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[tokio::test]
    async fn a_copy_that_nobody_holds_is_fed_no_more() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let informers = Informers::new(client);
        let pods = informers.of::<Pod>();
        let feed = pods.0.feed.get().unwrap().clone();
        let mut changes = pods.subscribe();
        drop(pods);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!feed.is_finished(), "others may ask for it");
        drop(informers);
        assert!(changes.recv().await.is_none(), "who listens hears that it is over");
        while !feed.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
