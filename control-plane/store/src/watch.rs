//! Reading changes as they come, from a bounded window: a reader that is too slow is told so, and lists again.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::entry::ResourceId;
use crate::state::State;
use crate::window::Event;

/// Events handed over at once; bounds what one slow client can hold.
const BATCH_EVENTS: usize = 256;

/// The revision asked for has been compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {revision}")]
pub struct Gone {
    /// What was asked for.
    pub revision: u64,
}

/// A place in a collection's history.
pub struct Watcher {
    state: Arc<RwLock<State>>,
    resource: ResourceId,
    news: watch::Receiver<u64>,
    /// Everything up to here has been handed over.
    position: u64,
}

impl Watcher {
    pub(crate) fn new(state: Arc<RwLock<State>>, resource: ResourceId, from: u64) -> Result<Self, Gone> {
        let news = {
            let mut state = state.write();
            let shard = state.shard_mut(&resource);
            shard.window.since(from, 0).ok_or(Gone { revision: from })?;
            shard.news.subscribe()
        };
        Ok(Self { state, resource, news, position: from })
    }

    /// What happened after the last call, without waiting, and the revision up to which nothing is missing.
    pub fn ready(&mut self) -> Result<(Vec<Arc<Event>>, u64), Gone> {
        let state = self.state.read();
        let shard = state.shard(&self.resource).expect("made when the watcher was");
        let events = shard.window.since(self.position, BATCH_EVENTS).ok_or(Gone { revision: self.position })?;
        let seen = match events.last() {
            Some(last) if events.len() == BATCH_EVENTS => last.entry.revision,
            _ => state.revision.max(self.position),
        };
        self.news.mark_unchanged();
        if events.len() == BATCH_EVENTS {
            self.news.mark_changed();
        }
        self.position = seen;
        Ok((events, seen))
    }

    /// Returns once [`Watcher::ready`] may have something to say; safe to cancel.
    pub async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // The store is being dropped: there will never be news again.
            std::future::pending::<()>().await;
        }
    }

    /// Everything up to here has been handed over.
    pub fn position(&self) -> u64 {
        self.position
    }
}
