//! Time as a value somebody hands in.

use std::time::Duration;

/// Reads time. Wall time may be wrong or jump; monotonic time may not.
pub trait Clock: Send + Sync + 'static {
    /// What the wall clock says now.
    fn wall(&self) -> jiff::Timestamp;
    /// Time since some fixed moment, never going back.
    fn monotonic(&self) -> Duration;
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
