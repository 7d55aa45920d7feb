//! Everything in memory: collections of entries and their recent past. Pure; the shell keeps it behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::watch;

use crate::entry::{Entry, ObjectKey, ResourceId};
use crate::watch::Gone;
use crate::window::{Event, EventKind, Window};

/// A run of a collection's objects, all as they were at one revision.
#[derive(Debug)]
pub struct Page {
    /// The revision at which every entry below was current.
    pub revision: u64,
    /// In key order.
    pub entries: Vec<Arc<Entry>>,
}

/// One collection.
pub(crate) struct Shard {
    pub(crate) objects: BTreeMap<ObjectKey, Arc<Entry>>,
    pub(crate) window: Window,
    /// Tells watchers that the window grew; the value is the newest revision in it.
    pub(crate) news: watch::Sender<u64>,
}

impl Shard {
    fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), window: Window::new(floor), news: watch::Sender::new(floor) }
    }
}

/// All collections at [`State::revision`].
pub(crate) struct State {
    pub(crate) revision: u64,
    /// Nothing before this can be told: revisions up to here were given out before the start.
    start: u64,
    shards: HashMap<ResourceId, Shard>,
}

impl State {
    /// How many objects each collection has.
    pub(crate) fn counts(&self) -> Vec<(ResourceId, usize)> {
        self.shards.iter().map(|(resource, shard)| (resource.clone(), shard.objects.len())).collect()
    }

    pub(crate) fn new(start: u64) -> Self {
        Self { revision: start, start, shards: HashMap::new() }
    }

    pub(crate) fn shard(&self, resource: &ResourceId) -> Option<&Shard> {
        self.shards.get(resource)
    }

    pub(crate) fn shard_mut(&mut self, resource: &ResourceId) -> &mut Shard {
        let start = self.start;
        self.shards.entry(resource.clone()).or_insert_with(|| Shard::new(start))
    }

    pub(crate) fn get(&self, resource: &ResourceId, key: &ObjectKey) -> Option<&Arc<Entry>> {
        self.shards.get(resource)?.objects.get(key)
    }

    /// Takes in an entry read from the engine, without an event.
    pub(crate) fn load(&mut self, resource: &ResourceId, entry: Entry) {
        self.shard_mut(resource).objects.insert(entry.key.clone(), Arc::new(entry));
    }

    /// Makes one committed change visible. `entry` carries the change's revision, for a deletion too.
    pub(crate) fn apply(&mut self, resource: &ResourceId, entry: Arc<Entry>, deleted: bool) {
        debug_assert!(entry.revision > self.revision, "revisions only grow");
        self.revision = entry.revision;
        let shard = self.shard_mut(resource);
        let previous = if deleted {
            shard.objects.remove(&entry.key)
        } else {
            shard.objects.insert(entry.key.clone(), entry.clone())
        };
        let kind = match (&previous, deleted) {
            (_, true) => EventKind::Deleted,
            (None, false) => EventKind::Added,
            (Some(_), false) => EventKind::Modified,
        };
        shard.news.send_replace(entry.revision);
        shard.window.push(Event { kind, entry, previous });
    }

    /// Objects of `resource` (in `namespace`, if given) behind `after`, at the newest revision or at revision `at`.
    /// Calls `keep` in key order until it has said yes `limit` times; the page holds one more if there is one.
    pub(crate) fn page(
        &self,
        resource: &ResourceId,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        at: Option<u64>,
        limit: usize,
        keep: &mut dyn FnMut(&Entry) -> bool,
    ) -> Result<Page, Gone> {
        let revision = at.unwrap_or(self.revision);
        let Some(shard) = self.shards.get(resource) else { return Ok(Page { revision, entries: Vec::new() }) };
        let undone = match at {
            Some(at) if at < self.revision => past(shard, at)?,
            _ => BTreeMap::new(),
        };
        let from = match (after, namespace) {
            (Some(key), _) => Bound::Excluded(key.clone()),
            (None, Some(namespace)) => Bound::Included(ObjectKey::new(namespace, "")),
            (None, None) => Bound::Unbounded,
        };
        let inside = |key: &ObjectKey| namespace.is_none_or(|namespace| &*key.namespace == namespace);
        let mut entries = Vec::new();
        let now = shard.objects.range((from.clone(), Bound::Unbounded)).filter(|(key, _)| !undone.contains_key(*key));
        let then = undone.range((from, Bound::Unbounded)).filter_map(|(key, entry)| Some((key, entry.as_ref()?)));
        for (key, entry) in merge(now, then) {
            if !inside(key) {
                break;
            }
            if keep(entry) {
                entries.push(entry.clone());
                if entries.len() > limit {
                    break;
                }
            }
        }
        Ok(Page { revision, entries })
    }
}

/// The keys that changed after `revision`, with what they were at it (none: they were not).
fn past(shard: &Shard, revision: u64) -> Result<BTreeMap<ObjectKey, Option<Arc<Entry>>>, Gone> {
    let events = shard.window.back_to(revision).ok_or(Gone { revision })?;
    Ok(events.map(|event| (event.entry.key.clone(), event.previous.clone())).collect())
}

type Item<'a> = (&'a ObjectKey, &'a Arc<Entry>);

/// Two runs in key order as one.
fn merge<'a>(a: impl Iterator<Item = Item<'a>>, b: impl Iterator<Item = Item<'a>>) -> impl Iterator<Item = Item<'a>> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some((x, _)), Some((y, _))) if x > y => b.next(),
        (None, _) => b.next(),
        _ => a.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Facets;

    fn entry(key: &str, revision: u64) -> Arc<Entry> {
        let (namespace, name) = key.split_once('/').unwrap();
        let key = ObjectKey::new(namespace, name);
        Arc::new(Entry { key, revision, bytes: revision.to_string().into(), facets: Facets::default() })
    }

    fn names(state: &State, namespace: Option<&str>, at: Option<u64>) -> Result<Vec<String>, Gone> {
        let page = state.page(&pods(), namespace, None, at, usize::MAX, &mut |_| true)?;
        Ok(page.entries.iter().map(|e| format!("{}/{}@{}", e.key.namespace, e.key.name, e.revision)).collect())
    }

    fn pods() -> ResourceId {
        ResourceId::new("", "pods")
    }

    #[test]
    fn a_list_shows_the_collection_as_it_was_at_the_revision() {
        let mut state = State::new(10);
        state.load(&pods(), Arc::into_inner(entry("a/old", 3)).unwrap());
        for (key, revision, deleted) in
            [("a/x", 11, false), ("b/y", 12, false), ("a/old", 13, true), ("a/x", 14, false)]
        {
            state.apply(&pods(), entry(key, revision), deleted);
        }
        assert_eq!(names(&state, None, None).unwrap(), ["a/x@14", "b/y@12"]);
        assert_eq!(names(&state, None, Some(13)).unwrap(), ["a/x@11", "b/y@12"]);
        assert_eq!(names(&state, None, Some(12)).unwrap(), ["a/old@3", "a/x@11", "b/y@12"]);
        assert_eq!(names(&state, Some("a"), Some(12)).unwrap(), ["a/old@3", "a/x@11"]);
        assert_eq!(names(&state, Some("b"), None).unwrap(), ["b/y@12"]);
        assert_eq!(names(&state, None, Some(10)).unwrap(), ["a/old@3"]);
        assert_eq!(names(&state, None, Some(9)).unwrap_err(), Gone { revision: 9 });
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let mut state = State::new(0);
        for revision in 1..=5 {
            state.apply(&pods(), entry(&format!("a/{revision}"), revision), false);
        }
        let page = state.page(&pods(), Some("a"), None, None, 2, &mut |_| true).unwrap();
        assert_eq!(page.entries.len(), 3, "one more than asked tells that there is more");
        let last = page.entries[1].key.clone();
        let page = state.page(&pods(), Some("a"), Some(&last), Some(5), 9, &mut |_| true).unwrap();
        assert_eq!(page.entries.iter().map(|e| e.revision).collect::<Vec<_>>(), [3, 4, 5]);
    }
}
