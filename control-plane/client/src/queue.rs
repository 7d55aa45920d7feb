//! What waits to be reconciled: each name once, not before its time, and never twice at once. Pure.
//! (`k8s.io/client-go/util/workqueue`.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::Key;

/// How long a name that keeps failing waits: 5 ms, doubling, up to a thousand seconds
/// (`DefaultTypedControllerRateLimiter`).
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first wait.
    pub least: Duration,
    /// The longest wait.
    pub most: Duration,
}

/// The longest wait of a name that failed while it was changed.
const WAIT_AFTER_NEWS_MAX: Duration = Duration::from_secs(15);

impl Default for Backoff {
    fn default() -> Self {
        Self { least: Duration::from_millis(5), most: Duration::from_secs(1000) }
    }
}

impl Backoff {
    /// The wait after `failures` in a row.
    pub fn after(&self, failures: u32) -> Duration {
        self.least.saturating_mul(1 << failures.saturating_sub(1).min(31)).min(self.most)
    }
}

/// Names waiting, with the time from which each may be worked on.
#[derive(Debug, Default)]
pub struct Queue {
    due: BTreeSet<(Duration, Key)>,
    time_of: HashMap<Key, Duration>,
    working: HashSet<Key>,
    /// Names that changed while they were worked on.
    again: HashMap<Key, Duration>,
    failures: HashMap<Key, u32>,
    backoff: Backoff,
}

impl Queue {
    /// Puts a name in, to be worked on at `time` or whenever it was due before that.
    pub fn add(&mut self, key: Key, time: Duration) {
        if self.working.contains(&key) {
            let earliest = self.again.get(&key).map_or(time, |before| time.min(*before));
            self.again.insert(key, earliest);
            return;
        }
        match self.time_of.get(&key) {
            Some(before) if *before <= time => {}
            before => {
                if let Some(before) = before {
                    self.due.remove(&(*before, key.clone()));
                }
                self.time_of.insert(key.clone(), time);
                self.due.insert((time, key));
            }
        }
    }

    /// A name that is due at `now`; it is being worked on until [`Queue::done`].
    pub fn take(&mut self, now: Duration) -> Option<Key> {
        let (time, _) = self.due.first()?;
        if *time > now {
            return None;
        }
        let (_, key) = self.due.pop_first().expect("just seen");
        self.time_of.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// When the next name is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(time, _)| *time)
    }

    /// The work on a name ended well; it comes back at `next`, if there is one.
    pub fn done(&mut self, key: &Key, next: Option<Duration>) {
        self.failures.remove(key);
        self.finish(key, next);
    }

    /// The work on a name failed; it comes back after a wait that grows. Returns the failures in a row.
    pub fn failed(&mut self, key: &Key, now: Duration) -> u32 {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures += 1;
        let (failures, wait) = (*failures, self.backoff.after(*failures));
        // What it did itself is among the news, so that they may not undo the wait; but what failed for a cause that was
        // put right meanwhile must not wait as long as a cause that lasts.
        let wait = if self.again.remove(key).is_some() { wait.min(WAIT_AFTER_NEWS_MAX) } else { wait };
        self.finish(key, Some(now + wait));
        failures
    }

    fn finish(&mut self, key: &Key, next: Option<Duration>) {
        self.working.remove(key);
        let again = self.again.remove(key);
        if let Some(time) = next.into_iter().chain(again).min() {
            self.add(key.clone(), time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn key(name: &str) -> Key {
        Key::new("", name)
    }

    #[test]
    fn a_name_waits_once_and_the_earliest_time_counts() {
        let mut queue = Queue::default();
        queue.add(key("a"), at(5));
        queue.add(key("a"), at(9));
        queue.add(key("a"), at(3));
        queue.add(key("b"), at(4));
        assert_eq!(queue.take(at(2)), None);
        assert_eq!(queue.next_due(), Some(at(3)));
        assert_eq!(queue.take(at(9)), Some(key("a")));
        assert_eq!(queue.take(at(9)), Some(key("b")));
        assert_eq!(queue.take(at(9)), None);
    }

    #[test]
    fn news_during_the_work_brings_the_name_back_and_never_two_at_once() {
        let mut queue = Queue::default();
        queue.add(key("a"), at(0));
        assert_eq!(queue.take(at(0)), Some(key("a")));
        queue.add(key("a"), at(1));
        assert_eq!(queue.take(at(5)), None);
        queue.done(&key("a"), Some(at(100)));
        assert_eq!(queue.take(at(5)), Some(key("a")));
    }

    #[test]
    fn what_failed_while_it_was_changed_does_not_wait_long() {
        let mut queue = Queue::default();
        for changed in [false, true] {
            for _ in 0..30 {
                queue.add(key("a"), at(0));
                queue.take(at(5000)).unwrap();
                queue.failed(&key("a"), at(0));
            }
            queue.take(at(5000)).unwrap();
            if changed {
                queue.add(key("a"), at(0));
            }
            queue.failed(&key("a"), at(0));
            assert_eq!(queue.next_due(), Some(if changed { WAIT_AFTER_NEWS_MAX } else { at(1000) }));
            queue.take(at(5000)).unwrap();
            queue.done(&key("a"), None);
        }
    }

    #[test]
    fn failures_wait_longer_each_time_until_one_ends_well() {
        let mut queue = Queue::default();
        let mut now = at(0);
        for failures in 1..=3 {
            queue.add(key("a"), now);
            assert!(queue.take(now).is_some());
            assert_eq!(queue.failed(&key("a"), now), failures);
            let due = queue.next_due().unwrap();
            assert_eq!(due - now, Duration::from_millis(5 << (failures - 1)));
            now = due;
        }
        queue.take(now).unwrap();
        queue.done(&key("a"), None);
        assert_eq!(queue.next_due(), None);
        assert_eq!(Backoff::default().after(40), at(1000));
    }
}
