//! How long a thing that keeps failing must wait: 10 s, doubled to 5 min, forgotten after 10 min without failing.
//! (client-go `util/flowcontrol/backoff.go` with the kubelet's figures, `pkg/kubelet/kubelet.go`.)
//!
//! Times are those of the clock that never jumps.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// The waiting of one container, or of one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    last: Option<(Duration, Duration)>,
}

impl Backoff {
    /// Until when it must wait, having failed at `failed_at`; `None` when it may go on at once, as the first time.
    pub fn until(&self, failed_at: Duration, now: Duration) -> Option<Duration> {
        let (delay, updated) = self.last?;
        if failed_at.saturating_sub(updated) > LONGEST * 2 {
            return None;
        }
        Some(failed_at.saturating_add(delay)).filter(|until| now < *until)
    }

    /// How long it waits now.
    pub fn delay(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |(delay, _)| delay)
    }

    /// Notes that it goes on after failing at `failed_at`; the next failure waits longer.
    pub fn next(&mut self, failed_at: Duration, now: Duration) {
        let delay = match self.last {
            Some((delay, updated)) if failed_at.saturating_sub(updated) <= LONGEST * 2 => (delay * 2).min(LONGEST),
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
        let mut now = Duration::ZERO;
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let failed_at = now;
            let until = backoff.until(failed_at, now).unwrap_or(now);
            waits.push(until.saturating_sub(now).as_secs());
            now = until;
            assert_eq!(backoff.until(failed_at, now), None, "the wait is over");
            backoff.next(failed_at, now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let later = now + Duration::from_secs(601);
        assert_eq!(backoff.until(later, later), None);
        backoff.next(later, later);
        assert_eq!(backoff.delay(), FIRST);
    }
}
