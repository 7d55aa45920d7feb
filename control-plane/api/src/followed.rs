//! Values kept up with stored collections change by change, where computing them anew ([`crate::derived`]) would cost
//! every object there is.
//!
//! Nothing runs in the background here either: a reader first takes in what changed since the last one, and no reader
//! sees a value older than the store. Who falls out of the store's window of the past begins again from a list.

use kedge_store::{Entry, EventKind, ObjectKey, ResourceId, Store, Watcher};
use parking_lot::Mutex;

/// Takes in one object as it is now; none when it is gone.
type Apply<T> = Box<dyn Fn(&mut T, &ObjectKey, Option<&Entry>) + Send + Sync>;

/// A value that follows some collections.
pub(crate) struct Followed<T> {
    sources: Vec<(ResourceId, Apply<T>)>,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    value: T,
    /// Where each source has been read up to, in their order; empty before the first reader.
    watchers: Vec<Watcher>,
}

impl<T: Default> Followed<T> {
    /// The value that begins as the default and takes in every object of `sources`.
    pub(crate) fn new(sources: Vec<(ResourceId, Apply<T>)>) -> Self {
        Self { sources, held: Mutex::new(Held { value: T::default(), watchers: Vec::new() }) }
    }

    /// What `read` makes of the value as of now.
    pub(crate) fn read<R>(&self, store: &Store, read: impl FnOnce(&T) -> R) -> R {
        let mut held = self.held.lock();
        while !self.follow(&mut held) {
            self.begin(&mut held, store);
        }
        read(&held.value)
    }

    /// Takes in what changed; false when that can no longer be told.
    fn follow(&self, held: &mut Held<T>) -> bool {
        if held.watchers.len() < self.sources.len() {
            return false;
        }
        for (watcher, (_, apply)) in held.watchers.iter_mut().zip(&self.sources) {
            loop {
                let Ok((events, _)) = watcher.ready() else { return false };
                if events.is_empty() {
                    break;
                }
                for event in &events {
                    let now = (event.kind != EventKind::Deleted).then_some(&*event.entry);
                    apply(&mut held.value, &event.entry.key, now);
                }
            }
        }
        true
    }

    fn begin(&self, held: &mut Held<T>, store: &Store) {
        *held = Held { value: T::default(), watchers: Vec::new() };
        for (source, apply) in &self.sources {
            let page = store.list(source, None, None, None, usize::MAX, |_| true);
            let page = page.expect("the newest revision is never gone");
            page.entries.iter().for_each(|entry| apply(&mut held.value, &entry.key, Some(entry)));
            // Heavy change between the two steps makes the second fail, and this begin again.
            let Ok(watcher) = store.watch(source, page.revision) else { return };
            held.watchers.push(watcher);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use kedge_store::engine::{Engine, RedbEngine};
    use kedge_store::{Action, Durability, Expect, Facets, Payload, Write, Writer};
    use kedge_world::Disk;
    use kedge_world::sim::{SimDisk, SimRandom};

    type Seen = BTreeMap<String, u64>;

    fn store() -> Store {
        let disk = SimDisk::new(Arc::new(SimRandom::seeded(1)));
        disk.create_dir_all(std::path::Path::new("/")).unwrap();
        let engine: Box<dyn Engine> = Box::new(RedbEngine::open(&disk, std::path::Path::new("/state.redb")).unwrap());
        Store::start(Writer::open(engine).unwrap())
    }

    async fn put(store: &Store, resource: &ResourceId, name: &str, action: Action) {
        let key = ObjectKey::new("", name);
        let expect = store.get(resource, &key).map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        let write = Write { resource: resource.clone(), key, expect, action, durability: Durability::Soft };
        store.write(write).await.unwrap();
    }

    fn payload() -> Action {
        Action::Put(Payload::new(br#"{"metadata":{"name":"x"}}"#.to_vec(), 13, Facets::default()))
    }

    #[tokio::test]
    async fn a_reader_sees_the_newest_and_only_changes_are_taken_in() {
        let (store, resource) = (store(), ResourceId::new("", "pods"));
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let apply: Apply<Seen> = Box::new(move |seen, key, entry| {
            count.fetch_add(1, Ordering::Relaxed);
            match entry {
                Some(entry) => seen.insert(key.name.to_string(), entry.revision),
                None => seen.remove(&*key.name),
            };
        });
        let followed = Followed::new(vec![(resource.clone(), apply)]);
        let names = |followed: &Followed<Seen>| followed.read(&store, |seen| seen.keys().cloned().collect::<Vec<_>>());
        for n in 0..1000 {
            put(&store, &resource, &format!("{n:04}"), payload()).await;
        }
        assert_eq!(names(&followed).len(), 1000);
        put(&store, &resource, "new", payload()).await;
        put(&store, &resource, "0000", Action::Delete).await;
        let now = names(&followed);
        assert_eq!((now.len(), &*now[0], &*now[999]), (1000, "0001", "new"));
        assert_eq!(taken.load(Ordering::Relaxed), 1002, "each object once, then each change once");
        // Forgotten by the store before it was read: everything is read again.
        put(&store, &resource, "last", payload()).await;
        store.compact(&resource, store.revision());
        assert_eq!(names(&followed).len(), 1001);
        assert_eq!(taken.load(Ordering::Relaxed), 2003);
    }
}
