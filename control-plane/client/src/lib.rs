//! What every client of the API shares: one watch-fed copy per kind, and the loop around a reconciler.
//!
//! Controllers, the scheduler and the node are clients like any other. Inside one process a kind is watched once and
//! decoded once ([`Informers`]), without what nobody reads; everybody holds references to the same objects and never
//! edits them. A reconciler ([`Reconcile`]) is told a name and nothing else: it reads the present state, compares, acts, and is called again
//! when something it watches changes or when it asked to be. What happens is told in [`events`].
//!
//! What is not here: what any controller does.

#![forbid(unsafe_code)]

pub mod events;
mod informer;
mod placement;
mod queue;
mod runner;
mod selector;
mod trim;

pub use informer::{Change, Informer, Informers, Watched};
pub use placement::{HostPort, host_ports, is_finished, term_matches, tolerates, untolerated, wants_node};
pub use queue::{Backoff, Queue};
pub use runner::{Context, Next, Panicked, Reconcile, Trigger, caught, run};
pub use selector::selects;
pub use trim::is_whole;

/// An object's place: namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster scope.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}
