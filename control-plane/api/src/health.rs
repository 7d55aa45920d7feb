//! `/livez`, `/readyz`, `/healthz` and `/metrics`: how the server does.
//! (`apiserver/pkg/server/healthz`: the forms of the answers; `apiserver/pkg/endpoints/metrics`: the names.)

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::api::{Api, Incoming, bytes_response};
use crate::body::Body;
use crate::error::ApiError;

/// Looks at one thing; the error says why it is not well.
type Check = fn(&Api) -> Result<(), String>;

/// The checks behind each path, each of which can also be asked alone (`/readyz/store`).
const CHECKS: [(&str, Check); 2] = [("ping", |_| Ok(())), ("store", store)];

/// The store answers, and what was written last is on the disk.
pub(crate) fn store(api: &Api) -> Result<(), String> {
    let health = api.store().health().ok_or("the thread that writes has ended")?;
    health.failure.map_or(Ok(()), |failure| Err(failure.to_string()))
}

/// Answers `/readyz` and its like; `rest` is the path after it.
pub(crate) fn check(api: &Api, incoming: &Incoming, path: &str, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let query = incoming.query.as_deref().unwrap_or_default();
    let pairs = || form_urlencoded::parse(query.as_bytes());
    let excluded: Vec<String> =
        pairs().filter(|(key, _)| key == "exclude").map(|(_, value)| value.into_owned()).collect();
    let wanted: Vec<_> = match rest {
        [] => CHECKS.iter().filter(|(name, _)| !excluded.iter().any(|excluded| excluded == name)).collect(),
        [name] => CHECKS.iter().filter(|(known, _)| known == name).collect(),
        _ => Vec::new(),
    };
    if wanted.is_empty() && !rest.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut text = String::new();
    let mut failed = false;
    for (name, check) in wanted {
        match check(api) {
            Ok(()) => text += &format!("[+]{name} ok\n"),
            Err(reason) => {
                failed = true;
                text += &format!("[-]{name} failed: {reason}\n");
            }
        }
    }
    let verbose = pairs().any(|(key, _)| key == "verbose");
    let plain = "text/plain; charset=utf-8";
    if failed {
        return Ok(bytes_response(500, plain, format!("{text}{path} check failed\n").into_bytes()));
    }
    let text = if verbose { format!("{text}{path} check passed\n") } else { "ok".into() };
    Ok(bytes_response(200, plain, text.into_bytes()))
}

/// What requests are told apart by.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Labels {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) code: u16,
}

/// What durations are told apart by.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByVerb {
    verb: &'static str,
    resource: String,
}

/// The buckets of durations, in seconds: a few of upstream's sixty.
const BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The server's numbers.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter<u64, AtomicU64>>,
    durations: Family<ByVerb, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register("apiserver_request", "Requests by verb, resource and answer", Family::clone(&requests));
        registry.register_with_unit(
            "apiserver_request_duration",
            "From a request's arrival to its answer; watches are left out",
            Unit::Seconds,
            Family::clone(&durations),
        );
        Self { registry, requests, durations }
    }
}

impl Metrics {
    /// Counts a request that was answered.
    pub(crate) fn request(&self, labels: Labels, took: Duration) {
        if labels.verb != "watch" && labels.subresource.is_empty() {
            let by = ByVerb { verb: labels.verb, resource: labels.resource.clone() };
            self.durations.get_or_create(&by).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }
}

/// Answers `/metrics`.
pub(crate) fn metrics(api: &Api) -> Response<Body> {
    let mut text = String::new();
    encode(&mut text, &api.metrics().registry).expect("writing to a string does not fail");
    // What is read now and not counted along the way; its end mark closes the whole text.
    text.truncate(text.len() - "# EOF\n".len());
    let mut now = Registry::default();
    now.register_collector(Box::new(Now(api.clone())));
    encode(&mut text, &now).expect("writing to a string does not fail");
    bytes_response(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", text.into_bytes())
}

/// Numbers that are read when they are asked for.
struct Now(Api);

impl std::fmt::Debug for Now {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Now")
    }
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let store = self.0.store();
        let health = store.health().unwrap_or_default();
        let mut counter = |name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("kedge_store_groups", "Groups of writes made durable together", health.groups)?;
        counter("kedge_store_transactions", "Transactions in those groups", health.transactions)?;
        let mut gauge = |name: &str, help: &str, value: i64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("kedge_store_revision", "The newest revision", i64::try_from(store.revision()).unwrap_or(i64::MAX))?;
        gauge(
            "kedge_store_failing",
            "1 while the last write could not be made durable",
            i64::from(health.failure.is_some()),
        )?;
        if let Some(bytes) = resident_bytes() {
            gauge("process_resident_memory_bytes", "Memory of this process that is in use", bytes)?;
        }
        let counts = store.counts();
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut objects = encoder.encode_descriptor("apiserver_storage_objects", "Objects by resource", None, kind)?;
        for (resource, count) in counts {
            let labels = [("resource", resource.as_str().to_owned())];
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(objects.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// `VmRSS` of `/proc/self/status` (proc(5)), in bytes.
#[allow(clippy::disallowed_methods, reason = "the kernel's own account of this process")]
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}
