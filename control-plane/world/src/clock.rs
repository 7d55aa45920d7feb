//! Time as a value somebody hands in.

use std::time::Duration;

/// Reads time. Wall time may be wrong or jump; monotonic time may not.
pub trait Clock: Send + Sync + 'static {
    /// What the wall clock says now.
    fn wall(&self) -> jiff::Timestamp;
    /// Time since some fixed moment, never going back.
    fn monotonic(&self) -> Duration;
}

/// `by` after `at`, or before it; the end of time where there is none. Durations come from users, who may write any.
pub fn later(at: jiff::Timestamp, by: jiff::SignedDuration) -> jiff::Timestamp {
    at.checked_add(by).unwrap_or(if by.is_negative() { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX })
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the real clocks")]
impl Default for SystemClock {
    fn default() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the real clocks")]
impl Clock for SystemClock {
    fn wall(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn time_has_an_end_both_ways() {
        let at = Timestamp::UNIX_EPOCH;
        assert_eq!(super::later(at, SignedDuration::from_secs(5)).as_second(), 5);
        assert_eq!(super::later(at, SignedDuration::from_secs(-5)).as_second(), -5);
        assert_eq!(super::later(at, SignedDuration::MAX), Timestamp::MAX);
        assert_eq!(super::later(at, SignedDuration::MIN), Timestamp::MIN);
    }
}
