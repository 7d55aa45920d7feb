//! How long a thing that keeps failing must wait: 10 s, doubled to 5 min, forgotten after 10 min without failing.
//! (client-go `util/flowcontrol/backoff.go` with the kubelet's figures, `pkg/kubelet/kubelet.go`.)

use jiff::{SignedDuration, Timestamp};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);

/// The waiting of one container, or of one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    last: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// Until when it must wait, having failed at `failed_at`; `None` when it may go on at once, as the first time.
    pub fn until(&self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (delay, updated) = self.last?;
        if failed_at.duration_since(updated) > LONGEST * 2 {
            return None;
        }
        Some(failed_at.saturating_add(delay).expect("a duration")).filter(|until| now < *until)
    }

    /// How long it waits now.
    pub fn delay(&self) -> SignedDuration {
        self.last.map_or(SignedDuration::ZERO, |(delay, _)| delay)
    }

    /// Notes that it goes on after failing at `failed_at`; the next failure waits longer.
    pub fn next(&mut self, failed_at: Timestamp, now: Timestamp) {
        let delay = match self.last {
            Some((delay, updated)) if failed_at.duration_since(updated) <= LONGEST * 2 => (delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((delay, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_to_five_minutes_and_is_forgotten() {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let failed_at = now;
            let until = backoff.until(failed_at, now).unwrap_or(now);
            waits.push(until.duration_since(now).as_secs());
            now = until;
            assert_eq!(backoff.until(failed_at, now), None, "the wait is over");
            backoff.next(failed_at, now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let later = now + SignedDuration::from_secs(601);
        assert_eq!(backoff.until(later, later), None);
        backoff.next(later, later);
        assert_eq!(backoff.delay(), FIRST);
    }
}
