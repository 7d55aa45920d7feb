//! Which pod is next: by priority, then by age; pods that did not fit wait until something could have changed that.
//! Pure. (`pkg/scheduler/backend/queue`.)

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kedge_client::Key;

use crate::framework::Event;
use crate::snapshot::PodView;

/// The first wait after a failure, doubling up to [`BACKOFF_MOST`] (`podInitialBackoffSeconds`).
const BACKOFF_LEAST: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A pod that waits for an event this long is tried anyway: no event may be forgotten for ever
/// (`podMaxInUnschedulablePodsDuration`).
const WAIT_MOST: Duration = Duration::from_secs(300);

type Rank = (Reverse<i32>, Option<jiff::Timestamp>, Key);

#[derive(Debug)]
struct Waiting {
    pod: PodView,
    attempts: u32,
    /// Not before this.
    ready_at: Duration,
    /// Only after one of these, or at `give_up_at`; none: only the time counts.
    cures: Option<Vec<Event>>,
    give_up_at: Duration,
}

/// Pods without a node.
#[derive(Debug, Default)]
pub struct Queue {
    active: BTreeMap<Rank, (PodView, u32)>,
    waiting: HashMap<Key, Waiting>,
}

fn rank(pod: &PodView) -> Rank {
    let priority = pod.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    let created = pod.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (Reverse(priority), created, pod.key.clone())
}

impl Queue {
    /// Puts a pod in, or takes in its change: a pod whose spec changed may fit now.
    pub fn put(&mut self, pod: PodView) {
        self.remove(&pod.key);
        self.active.insert(rank(&pod), (pod, 0));
    }

    /// Takes a pod out.
    pub fn remove(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.active.retain(|(_, _, known), _| known != key);
    }

    /// The next pod to place, with how often it was tried.
    pub fn pop(&mut self, now: Duration) -> Option<(PodView, u32)> {
        self.release(now);
        self.active.pop_first().map(|(_, entry)| entry)
    }

    /// Puts a pod back that fitted nowhere, until one of `cures` happens.
    pub fn park(&mut self, pod: PodView, attempts: u32, cures: Option<Vec<Event>>, now: Duration) {
        let wait = BACKOFF_LEAST.saturating_mul(1 << attempts.min(8)).min(BACKOFF_MOST);
        let waiting = Waiting { attempts: attempts + 1, ready_at: now + wait, cures, give_up_at: now + WAIT_MOST, pod };
        self.waiting.insert(waiting.pod.key.clone(), waiting);
    }

    /// Something happened that could make room.
    pub fn happened(&mut self, event: Event) {
        for waiting in self.waiting.values_mut() {
            if waiting.cures.as_ref().is_some_and(|cures| cures.contains(&event)) {
                waiting.cures = None;
            }
        }
    }

    /// When a waiting pod will be ready by time alone.
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.values().map(|w| if w.cures.is_none() { w.ready_at } else { w.give_up_at }).min()
    }

    fn release(&mut self, now: Duration) {
        let due = |w: &Waiting| if w.cures.is_none() { w.ready_at <= now } else { w.give_up_at <= now };
        let ready: Vec<Key> = self.waiting.iter().filter(|(_, w)| due(w)).map(|(key, _)| key.clone()).collect();
        for key in ready {
            let waiting = self.waiting.remove(&key).expect("just seen");
            self.active.insert(rank(&waiting.pod), (waiting.pod, waiting.attempts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, created: &str) -> PodView {
        let pod = json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"priority": priority, "containers": []}});
        PodView::new(std::sync::Arc::new(serde_json::from_value(pod).unwrap()))
    }

    fn names(queue: &mut Queue, now: u64) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(Duration::from_secs(now))).map(|(pod, _)| pod.key.name).collect()
    }

    #[test]
    fn important_pods_go_first_then_old_ones() {
        let mut queue = Queue::default();
        queue.put(pod("young", 0, "2026-01-01T00:00:02Z"));
        queue.put(pod("old", 0, "2026-01-01T00:00:01Z"));
        queue.put(pod("urgent", 9, "2026-01-01T00:00:03Z"));
        queue.put(pod("gone", 9, "2026-01-01T00:00:00Z"));
        queue.remove(&Key::new("", "gone"));
        assert_eq!(names(&mut queue, 0), ["urgent", "old", "young"]);
    }

    #[test]
    fn a_pod_that_did_not_fit_waits_for_a_reason_to_try_again() {
        let mut queue = Queue::default();
        let parked = pod("p", 0, "2026-01-01T00:00:00Z");
        queue.park(parked.clone(), 0, Some(vec![Event::PodGone]), Duration::ZERO);
        queue.happened(Event::PodPlaced);
        assert_eq!(names(&mut queue, 100), [""; 0]);
        queue.happened(Event::PodGone);
        assert_eq!(names(&mut queue, 0), [""; 0], "not before its back-off");
        assert_eq!(queue.next_due(), Some(Duration::from_secs(1)));
        assert_eq!(names(&mut queue, 1), ["p"]);
        queue.park(parked, 20, Some(vec![Event::Node]), Duration::ZERO);
        assert_eq!(names(&mut queue, 300), ["p"], "in the end it is tried anyway");
    }
}
