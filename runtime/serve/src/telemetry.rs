//! Spans on their way to a collector: OTLP over HTTP, as JSON, in batches.
//!
//! What must hold: no request waits for a collector; the queue has a bound, and what does not fit or cannot be sent is
//! counted and let go of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use kedge_world::World;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::trace::{self, Notes, Parent, Span};

/// Spans that wait.
const QUEUE_MAX: usize = 2048;
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_EVERY: Duration = Duration::from_secs(2);
/// How often a batch is tried, and how long one try may take.
const TRIES: u32 = 3;
const TRY_MAX: Duration = Duration::from_secs(5);
/// How long spans have at the end of the server.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Where spans go, and what is told of this server.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryOptions {
    address: String,
    url: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    resource: Vec<(String, String)>,
}

impl TelemetryOptions {
    /// What OpenTelemetry's variables say (`variable` reads one), unless `endpoint` says where a collector is. None when
    /// nothing is to be told; an error names the variable.
    pub fn new(endpoint: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let is = |name: &str, value: &str| variable(name).is_some_and(|said| said.eq_ignore_ascii_case(value));
        let base = |base: &str| format!("{}/v1/traces", base.trim_end_matches('/'));
        let of_flag = endpoint.map(|endpoint| ("--otlp-endpoint", base(endpoint)));
        let of_traces =
            || variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").map(|url| ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url));
        let of_all = || variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(|url| ("OTEL_EXPORTER_OTLP_ENDPOINT", base(&url)));
        let Some((name, url)) = of_flag.or_else(of_traces).or_else(of_all) else { return Ok(None) };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        for protocol in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
            // A collector takes JSON wherever it takes protobuf over HTTP.
            if is(protocol, "grpc") {
                return Err(format!("{protocol}: grpc is not supported; http/json is"));
            }
        }
        // A client's word on sampling is heeded, and whoever says nothing is told of.
        let sampler = variable("OTEL_TRACES_SAMPLER");
        if let Some(sampler) = sampler.filter(|sampler| sampler != "parentbased_always_on") {
            return Err(format!("OTEL_TRACES_SAMPLER: {sampler:?} is not supported; parentbased_always_on is"));
        }
        let wrong = |reason: &str| format!("{name}: {url:?} {reason}");
        // What is said of all signals goes before a path; of traces alone it is all of the URL.
        let no_part = if name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" { &['#'][..] } else { &['#', '?'] };
        if url.contains(no_part) {
            return Err(wrong("has a query or a fragment, with which nothing can be done"));
        }
        let url: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!(
                "{name}: has a user or a password; what a collector wants to see goes into OTEL_EXPORTER_OTLP_HEADERS"
            ));
        }
        if url.scheme_str() != Some("http") {
            return Err(wrong("is not http://; run a collector beside this server, which speaks TLS onwards"));
        }
        let authority = url.authority().ok_or_else(|| wrong("names no host"))?;
        let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) {
            None => Some(80),
            Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0),
        };
        let port = port.ok_or_else(|| wrong("has no port from 1 to 65535"))?;
        let address = format!("{}:{port}", authority.host());
        let mut headers = Vec::new();
        for (key, value) in pairs("OTEL_EXPORTER_OTLP_HEADERS", variable("OTEL_EXPORTER_OTLP_HEADERS"))? {
            let wrong = |_| format!("OTEL_EXPORTER_OTLP_HEADERS: {key:?} cannot be sent");
            let name = HeaderName::try_from(&key).map_err(|error| wrong(error.to_string()))?;
            headers.push((name, HeaderValue::try_from(value).map_err(|error| wrong(error.to_string()))?));
        }
        let mut resource = pairs("OTEL_RESOURCE_ATTRIBUTES", variable("OTEL_RESOURCE_ATTRIBUTES"))?;
        let service = variable("OTEL_SERVICE_NAME");
        if service.is_some() || !resource.iter().any(|(key, _)| key == "service.name") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".into(), service.unwrap_or_else(|| "kedge-infer".into())));
        }
        Ok(Some(Self { address, url, headers, resource }))
    }
}

/// `key=value,key=value`.
fn pairs(name: &str, text: Option<String>) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let pair = pair.split_once('=').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
        pair.filter(|(key, _)| !key.is_empty()).ok_or_else(|| format!("{name}: must be key=value,key=value"))
    };
    text.unwrap_or_default().split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

enum Command {
    Tell(Box<Span>),
    Flush(oneshot::Sender<()>),
}

/// Tells a collector of requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Telemetry {
    world: World,
    queue: mpsc::Sender<Command>,
    /// Spans that are neither sent nor dropped.
    waiting: Arc<AtomicU64>,
    dropped: Counter<u64, AtomicU64>,
}

impl Telemetry {
    /// Starts the task that sends spans; `dropped` counts those that are not.
    pub(crate) fn start(options: TelemetryOptions, world: World, dropped: Counter<u64, AtomicU64>) -> Self {
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(AtomicU64::new(0));
        let exporter = Exporter {
            options,
            world: world.clone(),
            waiting: waiting.clone(),
            dropped: dropped.clone(),
            fails: false,
        };
        tokio::spawn(exporter.run(commands));
        Self { world, queue, waiting, dropped }
    }

    fn tell(&self, span: Span) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Command::Tell(Box::new(span))).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.inc();
        }
    }

    /// Sends what waits, within bounds; how many spans were not sent.
    pub(crate) async fn flush(&self) -> u64 {
        let dropped = self.dropped.get();
        let (done, flushed) = oneshot::channel();
        let flush = async {
            // Whoever cannot be asked has nothing to send any more.
            let _ = self.queue.send(Command::Flush(done)).await;
            let _ = flushed.await;
        };
        let _ = timeout(FLUSH_MAX, flush).await;
        self.waiting.load(Ordering::Relaxed) + self.dropped.get() - dropped
    }
}

struct Exporter {
    options: TelemetryOptions,
    world: World,
    waiting: Arc<AtomicU64>,
    dropped: Counter<u64, AtomicU64>,
    /// Whether the last batch could not be sent: that is said once.
    fails: bool,
}

impl Exporter {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut spans: Vec<Span> = Vec::new();
        let mut due = Instant::now();
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                () = tokio::time::sleep_until(due), if !spans.is_empty() => {
                    self.send(&mut spans).await;
                    continue;
                }
            };
            match command {
                Some(Command::Tell(span)) => {
                    if spans.is_empty() {
                        due = Instant::now() + BATCH_EVERY;
                    }
                    spans.push(*span);
                    if spans.len() >= BATCH_MAX {
                        self.send(&mut spans).await;
                    }
                }
                Some(Command::Flush(done)) => {
                    self.send(&mut spans).await;
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                }
                None => return self.send(&mut spans).await,
            }
        }
    }

    async fn send(&mut self, spans: &mut Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let body = Bytes::from(trace::body(&self.options.resource, spans).to_string());
        let count = spans.len() as u64;
        spans.clear();
        let mut wait = Duration::from_secs(1);
        for left in (0..TRIES).rev() {
            let tried = timeout(TRY_MAX, self.post(body.clone())).await;
            let (error, again) = match tried.unwrap_or_else(|_| Err(("took too long".to_owned(), true))) {
                Ok(()) => {
                    self.waiting.fetch_sub(count, Ordering::Relaxed);
                    self.fails = false;
                    return;
                }
                Err(failed) => failed,
            };
            if again && left > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            self.dropped.inc_by(count);
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            if !std::mem::replace(&mut self.fails, true) {
                tracing::warn!(collector = %self.options.url, error, "spans cannot be sent; they are dropped until they can");
            }
            return;
        }
    }

    /// One try: an error comes with whether another might do better.
    async fn post(&self, body: Bytes) -> Result<(), (String, bool)> {
        let failed = |error: &dyn std::fmt::Display| (error.to_string(), true);
        let stream = self.world.net.connect(&self.options.address).await.map_err(|error| failed(&error))?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| failed(&error))?;
        let path = self.options.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.options.url.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::post(path).header(header::HOST, authority);
        request = request.header(header::CONTENT_TYPE, "application/json");
        for (name, value) in &self.options.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| (error.to_string(), false))?;
        let talk = async {
            let status = sender.send_request(request).await.map_err(|error| failed(&error))?.status().as_u16();
            match status {
                200..300 => Ok(()),
                // Those that OTLP names.
                429 | 502..=504 => Err((format!("answered {status}"), true)),
                _ => Err((format!("answered {status}"), false)),
            }
        };
        tokio::select! {
            told = talk => told,
            ended = connection => Err((ended.err().map_or("ended early".to_owned(), |error| error.to_string()), true)),
        }
    }
}

/// Watches one request; what it saw is told when the last of it is dropped.
pub(crate) struct Watch {
    begin: Instant,
    origin: String,
    latency: Option<Histogram>,
    span: Option<(Telemetry, u64, Option<Parent>)>,
    notes: Mutex<Notes>,
}

impl Watch {
    /// Begins; `latency`, if any, takes how long it took if it was answered.
    pub(crate) fn new(
        telemetry: Option<&Telemetry>,
        latency: Option<Histogram>,
        headers: &http::HeaderMap,
        origin: String,
        notes: Notes,
    ) -> Arc<Self> {
        let span = telemetry.and_then(|telemetry| {
            let parent = Parent::of(headers);
            let wanted = parent.as_ref().is_none_or(|parent| parent.sampled);
            let now = u64::try_from(telemetry.world.clock.wall().as_nanosecond()).unwrap_or_default();
            wanted.then(|| (telemetry.clone(), now, parent))
        });
        Arc::new(Self { begin: Instant::now(), origin, latency, span, notes: Mutex::new(notes) })
    }

    /// When it began.
    pub(crate) fn begin(&self) -> Instant {
        self.begin
    }

    /// Whom the server knows the client to be.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Notes something down.
    pub(crate) fn note(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.notes.lock());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut notes = std::mem::take(&mut *self.notes.lock());
        if notes.status == 0 {
            // Whoever asked did not wait for a status; nginx has a number for that.
            (notes.status, notes.left) = (499, true);
        }
        let took = self.begin.elapsed();
        if notes.status == 200 && notes.failed.is_none() && !notes.left {
            self.latency.iter().for_each(|latency| latency.observe(took.as_secs_f64()));
        }
        let Some((telemetry, begin, parent)) = self.span.take() else { return };
        let random = &telemetry.world.random;
        let new_trace = || u128::from(random.number()) << 64 | u128::from(random.number());
        let trace = parent.as_ref().map_or_else(new_trace, |parent| parent.trace).max(1);
        let span = Span { trace, id: random.number().max(1), parent, begin, took, notes };
        telemetry.tell(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<TelemetryOptions>, String> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        TelemetryOptions::new(flag, find)
    }

    #[tokio::test(start_paused = true)]
    async fn spans_that_nobody_took_are_counted_at_the_end() {
        // Whatever is there answers nothing that is HTTP.
        let options = options(Some("http://127.0.0.1:1"), &[]).unwrap().unwrap();
        let telemetry = Telemetry::start(options, World::real(), Counter::default());
        assert_eq!(telemetry.flush().await, 0, "there was none");
        for _ in 0..2 {
            let headers = http::HeaderMap::new();
            Watch::new(Some(&telemetry), Some(Histogram::new([1.0])), &headers, String::new(), Notes::default());
        }
        assert_eq!(telemetry.flush().await, 2);
    }

    #[test]
    fn variables_are_heeded_or_refused_by_name() {
        let (all, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let at = |found: Result<Option<TelemetryOptions>, String>| {
            found.map(|found| found.map(|found| (found.address, found.url.path().to_owned())))
        };
        let told = |address: &str, path: &str| Ok(Some((address.to_owned(), path.to_owned())));
        assert_eq!(at(options(None, &[])), Ok(None));
        assert_eq!(at(options(None, &[(all, "http://c:4318/")])), told("c:4318", "/v1/traces"));
        assert_eq!(at(options(None, &[(all, "http://c"), (traces, "http://t:1/x")])), told("t:1", "/x"));
        assert_eq!(at(options(None, &[(traces, "http://[::1]:1/x?y=z")])), told("[::1]:1", "/x"));
        assert_eq!(at(options(Some("http://f/p"), &[(all, "http://c:4318")])), told("f:80", "/p/v1/traces"));
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(at(options(Some("http://c"), &[off])), Ok(None), "{off:?}");
        }
        for (variable, says) in [
            ((all, "https://c:4318"), "OTEL_EXPORTER_OTLP_ENDPOINT: \"https://c:4318/v1/traces\" is not http://"),
            ((all, "::"), "OTEL_EXPORTER_OTLP_ENDPOINT: "),
            ((all, "http://c:99999"), "OTEL_EXPORTER_OTLP_ENDPOINT: \"http://c:99999/v1/traces\" has no port"),
            ((all, "http://c:0"), "OTEL_EXPORTER_OTLP_ENDPOINT: \"http://c:0/v1/traces\" has no port"),
            ((all, "http://[::1]:70000"), "OTEL_EXPORTER_OTLP_ENDPOINT: \"http://[::1]:70000/v1/traces\" has no port"),
            ((all, "http://c?q"), "OTEL_EXPORTER_OTLP_ENDPOINT: \"http://c?q/v1/traces\" has a query"),
            ((traces, "http://c#q"), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: \"http://c#q\" has a query or a fragment"),
            ((all, "http://me:secret@c"), "OTEL_EXPORTER_OTLP_ENDPOINT: has a user or a password; "),
            (("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not supported"),
            (("OTEL_TRACES_SAMPLER", "always_off"), "OTEL_TRACES_SAMPLER: \"always_off\" is not supported"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "a"), "OTEL_EXPORTER_OTLP_HEADERS: must be key=value"),
            (("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"), "OTEL_EXPORTER_OTLP_HEADERS: \"a b\" cannot be sent"),
        ] {
            let error = options(None, &[variable, (all, "http://c:4318")]).unwrap_err();
            assert!(error.starts_with(says), "{variable:?}: {error}");
        }
        let named = [(all, "http://c"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, site=bonn")];
        let resource = |variables: &[(&str, &str)]| options(None, variables).unwrap().unwrap().resource;
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(resource(&named), [pair("service.name", "a"), pair("site", "bonn")]);
        let named = [&named[..], &[("OTEL_SERVICE_NAME", "b")]].concat();
        assert_eq!(resource(&named), [pair("site", "bonn"), pair("service.name", "b")]);
        assert_eq!(resource(&[(all, "http://c")]), [pair("service.name", "kedge-infer")]);
    }
}
