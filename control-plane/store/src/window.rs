//! The recent past of one collection: what watchers read from, and what lists at an older revision are undone with.
//!
//! Bounded in count and bytes; what falls out is compacted, and asking for it answers [`crate::Gone`].

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::Entry;

/// Enough for a client that reconnects after some seconds of heavy change; more would cost idle memory.
const EVENTS_MAX: usize = 4096;
/// The bytes that past states of one collection may hold.
const BYTES_MAX: usize = 8 << 20;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It came to be.
    Added,
    /// It changed.
    Modified,
    /// It is gone; the entry is its last state, under the revision of the deletion.
    Deleted,
}

/// One change, in revision order.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change.
    pub entry: Arc<Entry>,
    /// The object before it, for selectors that it may have left.
    pub previous: Option<Arc<Entry>>,
}

/// The events of one collection after `floor`.
#[derive(Debug)]
pub(crate) struct Window {
    floor: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

impl Window {
    /// An empty window: nothing at or before `floor` can be told.
    pub(crate) fn new(floor: u64) -> Self {
        Self { floor, events: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, event: Event) {
        debug_assert!(self.events.back().is_none_or(|last| last.entry.revision < event.entry.revision));
        self.bytes += cost(&event);
        self.events.push_back(Arc::new(event));
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            self.drop_oldest();
        }
    }

    /// Forgets every event at or before `revision`.
    pub(crate) fn compact(&mut self, revision: u64) {
        while self.events.front().is_some_and(|event| event.entry.revision <= revision) {
            self.drop_oldest();
        }
        self.floor = self.floor.max(revision);
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= cost(&event);
            self.floor = event.entry.revision;
        }
    }

    /// The events after `revision`, at most `count`; none when some of them are already forgotten.
    pub(crate) fn since(&self, revision: u64, count: usize) -> Option<Vec<Arc<Event>>> {
        if revision < self.floor {
            return None;
        }
        let start = self.events.partition_point(|event| event.entry.revision <= revision);
        Some(self.events.iter().skip(start).take(count).cloned().collect())
    }

    /// The events after `revision`, newest first, for undoing them; none when some are already forgotten.
    pub(crate) fn back_to(&self, revision: u64) -> Option<impl Iterator<Item = &Arc<Event>>> {
        (revision >= self.floor)
            .then(|| self.events.iter().rev().take_while(move |event| event.entry.revision > revision))
    }
}

fn cost(event: &Event) -> usize {
    event.entry.bytes.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Facets, ObjectKey};

    fn event(revision: u64) -> Event {
        let entry = Entry { key: ObjectKey::new("", "a"), revision, bytes: "{}".into(), facets: Facets::default() };
        Event { kind: EventKind::Modified, entry: Arc::new(entry), previous: None }
    }

    fn revisions(window: &Window, since: u64) -> Option<Vec<u64>> {
        window.since(since, 100).map(|events| events.iter().map(|event| event.entry.revision).collect())
    }

    #[test]
    fn what_fell_out_is_refused_and_what_is_left_is_told() {
        let mut window = Window::new(10);
        for revision in [12, 15, 20] {
            window.push(event(revision));
        }
        assert_eq!(revisions(&window, 9), None);
        assert_eq!(revisions(&window, 10), Some(vec![12, 15, 20]));
        assert_eq!(revisions(&window, 15), Some(vec![20]));
        assert_eq!(revisions(&window, 99), Some(vec![]));
        window.compact(15);
        assert_eq!(revisions(&window, 14), None);
        assert_eq!(revisions(&window, 15), Some(vec![20]));
    }

    #[test]
    fn the_window_is_bounded() {
        let mut window = Window::new(0);
        for revision in 1..=EVENTS_MAX as u64 + 5 {
            window.push(event(revision));
        }
        assert_eq!(window.events.len(), EVENTS_MAX);
        assert_eq!(window.floor, 5);
        assert_eq!(revisions(&window, 4), None);
    }
}
