//! How far a server's life is, and what is on the way.
//!
//! ```text
//! opening ──open──▶ serving ──stop──▶ draining ──nothing on the way, the drain time is over, or stop again──▶ ending
//! ```
//!
//! While it drains, a server answers what it had taken in and refuses the rest; when it ends, what is still on the way is
//! told so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::Refusal;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are taken in, once the model is open.
    Serving,
    /// Those that were taken in are answered, no more are.
    Draining,
    /// Whatever is left is ended.
    Ending,
}

/// Requests that are on the way, of a connection or of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Flights {
    state: Arc<watch::Sender<State>>,
    /// Answers of which the peer has to take something before more can be sent, and since when.
    offered: Arc<Mutex<HashMap<u64, Instant>>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Requests that are not answered to their last byte.
    requests: usize,
    /// How many there were.
    began: u64,
    /// The last change of the above.
    since: Instant,
}

/// A request on the way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    flights: Flights,
    number: u64,
}

impl Flights {
    pub(crate) fn new() -> Self {
        let state = State { requests: 0, began: 0, since: Instant::now() };
        Self { state: Arc::new(watch::Sender::new(state)), offered: Arc::default() }
    }

    pub(crate) fn begin(&self) -> Flight {
        let mut number = 0;
        self.change(|state| {
            state.requests += 1;
            state.began += 1;
            number = state.began;
        });
        Flight { flights: self.clone(), number }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            change(state);
            state.since = Instant::now();
        });
    }

    /// Resolves when nothing is on the way.
    pub(crate) async fn none(&self) {
        let mut news = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = news.wait_for(|state| state.requests == 0).await;
    }

    /// Resolves when a peer took nothing of an answer for so long.
    pub(crate) async fn stalled(&self, patience: Duration) {
        while !self.offered.lock().values().any(|since| since.elapsed() >= patience) {
            tokio::time::sleep(patience / LOOKS).await;
        }
    }

    /// Resolves when there was no request for a while: `first` for the very first one, `next` between them.
    pub(crate) async fn quiet(&self, first: Duration, next: Duration) {
        let mut news = self.state.subscribe();
        loop {
            let state = *news.borrow_and_update();
            let over = state.since + if state.began > 0 { next } else { first };
            let waits = async {
                if state.requests > 0 { std::future::pending().await } else { tokio::time::sleep_until(over).await }
            };
            tokio::select! {
                () = waits => return,
                _ = news.changed() => {}
            }
        }
    }
}

/// How often it is looked whether a peer takes what it is sent, within the time it has for that.
const LOOKS: u32 = 4;

impl Flight {
    /// Says whose turn it is: the peer's, which has something to take, or the server's.
    pub(crate) fn offers(&self, something: bool) {
        let mut offered = self.flights.offered.lock();
        if something {
            offered.insert(self.number, Instant::now());
        } else {
            offered.remove(&self.number);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.offers(false);
        self.flights.change(|state| state.requests -= 1);
    }
}

/// A server's life.
#[derive(Debug)]
pub(crate) struct Life {
    phase: watch::Sender<Phase>,
    pub(crate) flights: Flights,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), flights: Flights::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Resolves when the server ends.
    pub(crate) fn ending(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.subscribe();
        async move {
            // A server that is gone has ended, too.
            let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
        }
    }

    /// How long a request may take that has to be answered by `deadline`.
    pub(crate) fn until(&self, deadline: Option<Instant>) -> Until {
        Until { deadline, phase: self.phase.subscribe() }
    }
}

/// What ends a request that has no end of its own: its deadline, or the server's end.
#[derive(Clone, Debug)]
pub(crate) struct Until {
    pub(crate) deadline: Option<Instant>,
    phase: watch::Receiver<Phase>,
}

impl Until {
    /// Resolves when the request has to end, with what it is told.
    pub(crate) async fn over(&mut self) -> Refusal {
        let late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = late => Refusal::plain(504, "the answer took longer than the request allows"),
            _ = self.phase.wait_for(|phase| *phase == Phase::Ending) => Refusal::plain(503, "the server is ending"),
        }
    }

    /// What the work gives, or why it was broken off.
    pub(crate) async fn bound<T>(&mut self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        tokio::select! {
            biased;
            done = work => done,
            why = self.over() => Err(why),
        }
    }
}

/// The header in which clients say how many seconds they wait for an answer.
const TIMEOUT: &str = "x-request-timeout";

/// The same of gRPC.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// When a request has to be answered that began at `begin`: what its client says, and never later than the server allows.
pub(crate) fn deadline(
    headers: &HeaderMap,
    begin: Instant,
    longest: Option<Duration>,
) -> Result<Option<Instant>, Refusal> {
    for name in [TIMEOUT, GRPC_TIMEOUT] {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(Refusal::field(name, "is there more than once"));
        }
    }
    let asked = match headers.get(TIMEOUT) {
        None => None,
        Some(value) => {
            let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
            let time = seconds.filter(|seconds| *seconds > 0.0).map(Duration::try_from_secs_f64);
            let wrong = || Refusal::field("X-Request-Timeout", format!("must be seconds above zero, is {value:?}"));
            // One beyond the end of time is none.
            Some(time.ok_or_else(wrong)?.unwrap_or(Duration::MAX))
        }
    };
    let by_grpc = headers.get(GRPC_TIMEOUT).map(|value| {
        let time = value.to_str().ok().and_then(grpc_timeout);
        time.ok_or_else(|| Refusal::field(GRPC_TIMEOUT, format!("must be up to 8 digits and a unit, is {value:?}")))
    });
    let shorter = [asked, by_grpc.transpose()?, longest].into_iter().flatten().min();
    Ok(shorter.and_then(|time| begin.checked_add(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_of_what_client_and_server_say_counts() {
        let begin = Instant::now();
        let check = |asked: &str, longest: Option<u64>| {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static(TIMEOUT), asked.parse().unwrap())]);
            let deadline = deadline(&headers, begin, longest.map(Duration::from_secs));
            deadline.map(|deadline| deadline.map(|deadline| (deadline - begin).as_millis())).map_err(|why| why.field)
        };
        for (asked, longest, expected) in [
            ("2.5", None, Ok(Some(2500))),
            (" 7 ", Some(3), Ok(Some(3000))),
            ("1", Some(3), Ok(Some(1000))),
            ("1e300", None, Ok(None)),
            ("1e300", Some(3), Ok(Some(3000))),
        ] {
            assert_eq!(check(asked, longest), expected, "{asked}");
        }
        for wrong in ["0", "-1", "soon", "NaN", ""] {
            assert_eq!(check(wrong, Some(3)), Err(Some("X-Request-Timeout".into())), "{wrong}");
        }
        assert_eq!(deadline(&HeaderMap::new(), begin, None), Ok(None));
        for name in [TIMEOUT, GRPC_TIMEOUT] {
            let mut twice = HeaderMap::new();
            for value in ["1", "2S"] {
                twice.append(name, value.parse().unwrap());
            }
            assert_eq!(deadline(&twice, begin, None).unwrap_err().field.as_deref(), Some(name));
        }
        for (text, expected) in [
            ("2H", Some(7200)),
            ("3M", Some(180)),
            ("00000009S", Some(9)),
            ("5000m", Some(5)),
            ("6000000u", Some(6)),
            ("7n", Some(0)),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("+5S", None),
            ("5é", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text).map(|time| time.as_secs()), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_counts_from_the_end_of_the_last_request() {
        let seconds = Duration::from_secs;
        let flights = Flights::new();
        let begin = Instant::now();
        flights.quiet(seconds(10), seconds(60)).await;
        assert_eq!(begin.elapsed(), seconds(10), "the first request did not come");
        let flight = flights.begin();
        let (waiting, none) = (flights.clone(), flights.clone());
        let quiet = tokio::spawn(async move { waiting.quiet(seconds(10), seconds(60)).await });
        let none = tokio::spawn(async move { none.none().await });
        tokio::time::sleep(seconds(1000)).await;
        assert!(!quiet.is_finished() && !none.is_finished());
        drop(flight);
        none.await.unwrap();
        let end = Instant::now();
        quiet.await.unwrap();
        assert_eq!(end.elapsed(), seconds(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_noticed_and_one_that_waits_for_us_is_not() {
        let (flights, patience) = (Flights::new(), Duration::from_secs(60));
        let (slow, waiting) = (flights.begin(), flights.begin());
        waiting.offers(true);
        waiting.offers(false);
        for _ in 0..5 {
            slow.offers(true);
            let stalled = tokio::time::timeout(Duration::from_secs(50), flights.stalled(patience)).await;
            assert!(stalled.is_err(), "it took something within its time");
        }
        let begin = Instant::now();
        flights.stalled(patience).await;
        assert!(begin.elapsed() <= patience / 2, "50 seconds were over already");
        drop(slow);
        let stalled = tokio::time::timeout(Duration::from_secs(999), flights.stalled(patience)).await;
        assert!(stalled.is_err(), "nobody is owed anything");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_at_its_deadline_or_with_the_server() {
        let life = Life::new();
        let pending = || std::future::pending::<Result<(), Refusal>>();
        let mut until = life.until(Some(Instant::now() + Duration::from_secs(3)));
        assert_eq!(until.bound(pending()).await.unwrap_err().status, 504);
        assert_eq!(until.bound(async { Ok(7) }).await, Ok(7), "who is done is not late");
        let mut until = life.until(None);
        life.enter(Phase::Draining);
        let waited = tokio::time::timeout(Duration::from_secs(9), until.over()).await;
        assert!(waited.is_err(), "what is on the way goes on while the server drains");
        life.enter(Phase::Ending);
        assert_eq!(until.bound(pending()).await.unwrap_err().status, 503);
    }
}
