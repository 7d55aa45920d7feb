//! When to probe a container, and what the answers add up to. No I/O, no clock: results and times come in, those of the
//! clock that never jumps.
//!
//! ```text
//! startup ──succeeded (or there is none)──> liveness and readiness run
//! liveness, startup ──failureThreshold failures in a row──> the container is to be killed
//! readiness ──successThreshold / failureThreshold in a row──> ready / not ready
//! ```
//! Rules: `pkg/kubelet/prober/worker.go`, `results_manager.go`. Readiness begins false, liveness true.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Probe};

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the others back until it succeeded once.
    Startup,
    /// Decides whether the container may go on.
    Liveness,
    /// Decides whether it gets traffic.
    Readiness,
}

impl ProbeKind {
    /// All, in the order they are looked at.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// This probe of a container.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// As events and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Well.
    Success,
    /// Well, in a way that somebody should look at.
    Warning(String),
    /// Not well.
    Failure(String),
    /// Nothing: it could not be carried out, and counts neither way.
    Unknown(String),
}

impl Answer {
    /// What it counts as.
    fn verdict(&self) -> Option<bool> {
        match self {
            Self::Success | Self::Warning(_) => Some(true),
            Self::Failure(_) => Some(false),
            Self::Unknown(_) => None,
        }
    }
}

/// The probes of one run of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probes {
    started_at: Timestamp,
    each: BTreeMap<ProbeKind, State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    next_at: Duration,
    running: bool,
    streak: (bool, i32),
    /// What the thresholds have let through.
    verdict: Option<bool>,
}

impl Probes {
    /// For a container that runs since `started_at`, which at the moment `now` is so long ago.
    pub fn new(container: &Container, started_at: Timestamp, ago: SignedDuration, now: Duration) -> Self {
        // What a clock that jumped says of the past is worth no more than the delay.
        let ago = Duration::try_from(ago).unwrap_or_default();
        let each = ProbeKind::ALL.iter().filter_map(|kind| {
            let probe = kind.of(container)?;
            let delay = seconds(probe.initial_delay_seconds.unwrap_or(0)).saturating_sub(ago);
            Some((
                *kind,
                State { next_at: now.saturating_add(delay), running: false, streak: (true, 0), verdict: None },
            ))
        });
        Self { started_at, each: each.collect() }
    }

    /// Which run this is about.
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Whether the container counts as started.
    pub fn started(&self) -> bool {
        self.each.get(&ProbeKind::Startup).is_none_or(|state| state.verdict == Some(true))
    }

    /// Whether the container counts as ready.
    pub fn ready(&self) -> bool {
        self.started() && self.each.get(&ProbeKind::Readiness).is_none_or(|state| state.verdict == Some(true))
    }

    /// The probe because of which the container is to be killed.
    pub fn condemned_by(&self) -> Option<ProbeKind> {
        let failed = |kind: &ProbeKind| self.each.get(kind).is_some_and(|state| state.verdict == Some(false));
        [ProbeKind::Startup, ProbeKind::Liveness].into_iter().find(failed)
    }

    /// The probes to run now; they count as running until [`Probes::answer`].
    pub fn due(&mut self, now: Duration) -> Vec<ProbeKind> {
        let started = self.started();
        let due = self
            .each
            .iter_mut()
            .filter(|(kind, state)| eligible(**kind, started, state) && !state.running && state.next_at <= now);
        due.map(|(kind, state)| {
            state.running = true;
            *kind
        })
        .collect()
    }

    /// When the next probe is due.
    pub fn wake_at(&self) -> Option<Duration> {
        let started = self.started();
        let waiting = self.each.iter().filter(|(kind, state)| eligible(**kind, started, state) && !state.running);
        waiting.map(|(_, state)| state.next_at).min()
    }

    /// Takes an answer in. `probe` is the spec of the probe that answered.
    pub fn answer(&mut self, kind: ProbeKind, probe: &Probe, answer: &Answer, now: Duration) {
        let Some(state) = self.each.get_mut(&kind) else { return };
        state.running = false;
        let period = probe.period_seconds.filter(|seconds| *seconds > 0).unwrap_or(10);
        state.next_at = now.saturating_add(seconds(period));
        let Some(succeeded) = answer.verdict() else { return };
        let count = if state.streak.0 == succeeded { state.streak.1 + 1 } else { 1 };
        state.streak = (succeeded, count);
        let threshold =
            if succeeded { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        if count >= threshold.max(1) {
            state.verdict = Some(succeeded);
        }
    }
}

fn seconds(number: i32) -> Duration {
    Duration::from_secs(u64::try_from(number).unwrap_or(0))
}

/// Startup runs until it succeeds, the others only after.
fn eligible(kind: ProbeKind, started: bool, state: &State) -> bool {
    match kind {
        ProbeKind::Startup => state.verdict != Some(true),
        ProbeKind::Liveness | ProbeKind::Readiness => started,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn probes(container: &Container, ago: i64, now: u64) -> Probes {
        Probes::new(container, Timestamp::UNIX_EPOCH, SignedDuration::from_secs(ago), at(now))
    }

    struct Run {
        container: Container,
        probes: Probes,
        now: u64,
    }

    impl Run {
        fn of(probes: serde_json::Value) -> Self {
            let mut container = json!({"name": "c"});
            container.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
            let container: Container = serde_json::from_value(container).unwrap();
            Self { probes: self::probes(&container, 0, 0), container, now: 0 }
        }

        /// Moves to the next probe that is due, and answers it; gives kind and time.
        fn next(&mut self, succeeded: bool) -> (ProbeKind, u64) {
            self.now = self.now.max(self.probes.wake_at().unwrap().as_secs());
            let kind = self.probes.due(at(self.now)).remove(0);
            let answer = if succeeded { Answer::Success } else { Answer::Failure(String::new()) };
            self.probes.answer(kind, kind.of(&self.container).unwrap(), &answer, at(self.now));
            (kind, self.now)
        }
    }

    #[test]
    fn without_probes_a_container_is_ready() {
        let run = Run::of(json!({}));
        assert!(run.probes.started() && run.probes.ready());
        assert_eq!((run.probes.condemned_by(), run.probes.wake_at()), (None, None));
    }

    #[test]
    fn readiness_waits_and_follows_its_thresholds() {
        let mut run = Run::of(
            json!({"readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 2, "successThreshold": 2, "failureThreshold": 3}}),
        );
        assert!(!run.probes.ready());
        assert_eq!(run.next(true), (ProbeKind::Readiness, 5));
        assert!(!run.probes.ready());
        assert_eq!(run.next(true), (ProbeKind::Readiness, 7));
        assert!(run.probes.ready());
        for expected in [true, true, false] {
            run.next(false);
            assert_eq!(run.probes.ready(), expected);
        }
        assert_eq!(run.probes.condemned_by(), None, "readiness never kills");
    }

    #[test]
    fn what_could_not_be_carried_out_counts_neither_way_and_a_warning_is_good() {
        let mut run =
            Run::of(json!({"livenessProbe": {"periodSeconds": 5, "failureThreshold": 2}, "readinessProbe": {}}));
        let probe = Probe { period_seconds: Some(5), failure_threshold: Some(2), ..Probe::default() };
        let mut answer = |kind, answer: Answer, now| {
            run.probes.due(at(now));
            run.probes.answer(kind, &probe, &answer, at(now));
            (run.probes.condemned_by(), run.probes.ready())
        };
        let failure = || Answer::Failure("f".into());
        assert_eq!(answer(ProbeKind::Liveness, failure(), 0), (None, false));
        assert_eq!(answer(ProbeKind::Liveness, Answer::Unknown("u".into()), 5), (None, false));
        assert_eq!(answer(ProbeKind::Readiness, Answer::Warning("w".into()), 5), (None, true));
        assert_eq!(answer(ProbeKind::Liveness, failure(), 10), (Some(ProbeKind::Liveness), true));
    }

    #[test]
    fn startup_holds_the_others_back() {
        let mut run = Run::of(
            json!({"startupProbe": {"periodSeconds": 1, "failureThreshold": 5}, "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1}, "readinessProbe": {}}),
        );
        for _ in 0..4 {
            assert_eq!(run.next(false).0, ProbeKind::Startup);
        }
        assert!(!run.probes.started() && run.probes.condemned_by().is_none());
        assert_eq!(run.next(true).0, ProbeKind::Startup);
        assert!(run.probes.started() && !run.probes.ready());
        assert_eq!(run.next(false).0, ProbeKind::Liveness);
        assert_eq!(run.probes.condemned_by(), Some(ProbeKind::Liveness));
    }

    #[test]
    fn a_startup_that_keeps_failing_condemns() {
        let mut run = Run::of(json!({"startupProbe": {"failureThreshold": 2}}));
        run.next(false);
        assert_eq!(run.probes.condemned_by(), None);
        assert_eq!(run.next(false).1, 10);
        assert_eq!(run.probes.condemned_by(), Some(ProbeKind::Startup));
    }

    #[test]
    fn the_first_probe_counts_from_the_start_as_far_as_that_can_be_told() {
        let probe = json!({"name": "c", "livenessProbe": {"initialDelaySeconds": 30}});
        let container: Container = serde_json::from_value(probe).unwrap();
        for (ago, expected) in [(0, 130), (10, 120), (30, 100), (1_800_000_000, 100), (-1_800_000_000, 130)] {
            assert_eq!(probes(&container, ago, 100).wake_at(), Some(at(expected)), "{ago} s ago");
        }
    }

    #[test]
    fn a_probe_runs_once_at_a_time() {
        let mut run = Run::of(json!({"livenessProbe": {"periodSeconds": 1}}));
        assert_eq!(run.probes.due(at(0)), [ProbeKind::Liveness]);
        assert_eq!(run.probes.due(at(100)), []);
        assert_eq!(run.probes.wake_at(), None);
    }
}
