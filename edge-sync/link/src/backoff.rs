//! When to try the hub again: full jitter, so that ten thousand sites do not come back in one second.

use std::time::Duration;

use kedge_world::Random;

/// The first wait lies below this.
const LEAST: Duration = Duration::from_secs(1);
/// No wait is longer: a link that is healed is used again within a minute.
const MOST: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next failure starts at the beginning.
const GOOD: Duration = Duration::from_secs(30);

/// Counts failures and says how long to wait.
#[derive(Clone, Debug, Default)]
pub struct Reconnect {
    failures: u32,
}

impl Reconnect {
    /// A connection ended, or could not be made, after `lasted`; `asked` is what the hub asked to wait at least.
    /// Returns the wait before the next attempt.
    pub fn ended(&mut self, lasted: Duration, asked: Duration, random: &dyn Random) -> Duration {
        if lasted >= GOOD {
            self.failures = 0;
        }
        let most = LEAST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        let milliseconds = u64::try_from(most.as_millis()).expect("a minute is small");
        asked + Duration::from_millis(random.number() % (milliseconds + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::sim::SimRandom;

    #[test]
    fn waits_grow_to_a_minute_and_differ_and_a_good_connection_starts_over() {
        let random = SimRandom::seeded(1);
        let mut reconnect = Reconnect::default();
        let waits: Vec<_> = (0..200).map(|_| reconnect.ended(Duration::ZERO, Duration::ZERO, &random)).collect();
        assert!(waits[0] <= LEAST && waits.iter().all(|wait| *wait <= MOST));
        assert!(waits[20..].iter().any(|wait| *wait > MOST / 2) && waits[20..].iter().any(|wait| *wait < MOST / 2));
        assert!(reconnect.ended(GOOD, Duration::ZERO, &random) <= LEAST);
        let asked = Duration::from_secs(90);
        assert!(reconnect.ended(Duration::ZERO, asked, &random) >= asked);
    }
}
