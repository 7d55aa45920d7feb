//! Values computed from stored collections (the table of kinds, the RBAC rules), recomputed when those changed.
//!
//! Nothing runs in the background: the first reader after a change pays for it, and no reader ever sees a value
//! older than what it could have read from the store itself.

use std::sync::Arc;

use kedge_store::{ResourceId, Store};
use parking_lot::Mutex;

type Build<T> = Box<dyn Fn(&Store) -> T + Send + Sync>;

/// A value that follows some collections.
pub(crate) struct Derived<T> {
    sources: Vec<ResourceId>,
    build: Build<T>,
    /// The revision of the newest change that `value` knows, and the value.
    held: Mutex<Option<(u64, Arc<T>)>>,
}

impl<T> Derived<T> {
    /// The value `build` computes from `sources`.
    pub(crate) fn new(sources: Vec<ResourceId>, build: impl Fn(&Store) -> T + Send + Sync + 'static) -> Self {
        Self { sources, build: Box::new(build), held: Mutex::new(None) }
    }

    /// The value as of now.
    pub(crate) fn get(&self, store: &Store) -> Arc<T> {
        let newest = store.newest(&self.sources);
        let mut held = self.held.lock();
        match &*held {
            Some((revision, value)) if *revision == newest => value.clone(),
            _ => {
                let value = Arc::new((self.build)(store));
                *held = Some((newest, value.clone()));
                value
            }
        }
    }
}
