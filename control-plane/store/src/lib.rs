//! The revisioned store: one door for writes, snapshots for reads, watches over a bounded window.
//!
//! All objects live in memory, encoded once, exactly as they are sent to clients; an [`Engine`] keeps a durable
//! copy that is read only at start. A write travels *propose → commit → apply* through the [`Writer`]:
//! preconditions are checked and revisions given out, the engine makes the group durable, then memory changes and
//! watchers hear of it. Consensus takes the place of the middle step; nothing else has to know.
//!
//! What must always hold:
//! - an acknowledged write survives a power cut, unless it was asked to be [`Durability::Soft`];
//! - revisions never go back, not even after a crash, and no two changes share one;
//! - readers see only what is durable (or soft), in revision order.
//!
//! What is not here: kinds, validation, JSON. The store carries bytes and the few [`Facets`] that selectors need.

#![forbid(unsafe_code)]

mod entry;
mod record;
mod state;
mod store;
mod watch;
mod window;
mod writer;

pub mod engine;

pub use engine::{Change, Engine, EngineError};
pub use entry::{Entry, Facets, ObjectKey, Payload, ResourceId};
pub use state::Page;
pub use store::{Health, Store, StoreError};
pub use watch::{Gone, Watcher};
pub use window::{Event, EventKind};
pub use writer::{Action, Committed, Durability, Expect, Refusal, Verdict, Write, Writer};
