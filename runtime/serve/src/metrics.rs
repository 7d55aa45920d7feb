//! The numbers at `/metrics`, with vLLM's names where it has one.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds: vLLM's own from 0.3 on, and below what an encoder needs.
const LATENCY_SECONDS: [f64; 23] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0,
];

/// What a count is split by.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Labels {
    pub(crate) model_name: String,
}

/// Answers by status code.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Status {
    pub(crate) code: u32,
}

/// On what the model computes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct On {
    pub(crate) device: &'static str,
    pub(crate) features: &'static str,
    /// Why it is not a GPU; empty where none was wanted.
    pub(crate) reason: String,
}

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) prompt_tokens: Family<Labels, Counter<u64, AtomicU64>>,
    pub(crate) waiting: Family<Labels, Gauge>,
    /// Of requests that were answered, from the first byte of the request to the answer.
    pub(crate) latency: Family<Labels, Histogram, fn() -> Histogram>,
    /// From the first byte of a request to the first token of its answer.
    pub(crate) first_token: Family<Labels, Histogram, fn() -> Histogram>,
    pub(crate) running: Family<Labels, Gauge>,
    pub(crate) made_tokens: Family<Labels, Counter<u64, AtomicU64>>,
    pub(crate) cached_tokens: Family<Labels, Counter<u64, AtomicU64>>,
    /// Share of the pages of keys and values that are in use, 0 to 1.
    pub(crate) cache_used: Family<Labels, Gauge<f64, AtomicU64>>,
    pub(crate) responses: Family<Status, Counter<u64, AtomicU64>>,
    /// One for what the model is on.
    pub(crate) on: Family<On, Gauge>,
    /// Connections beyond those that may be.
    pub(crate) refused: Counter<u64, AtomicU64>,
    /// Spans that no collector was told.
    pub(crate) spans_dropped: Counter<u64, AtomicU64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let (prompt_tokens, waiting, responses) = (Family::default(), Family::default(), Family::default());
        registry.register("vllm:prompt_tokens", "Tokens read", Family::clone(&prompt_tokens));
        registry.register("vllm:num_requests_waiting", "Requests that wait for the engine", Family::clone(&waiting));
        let latency = Family::new_with_constructor((|| Histogram::new(LATENCY_SECONDS)) as fn() -> Histogram);
        let help = "Seconds from a request to its answer";
        registry.register("vllm:e2e_request_latency_seconds", help, Family::clone(&latency));
        let first_token = Family::new_with_constructor((|| Histogram::new(LATENCY_SECONDS)) as fn() -> Histogram);
        let help = "Seconds from a request to the first token of its answer";
        registry.register("vllm:time_to_first_token_seconds", help, Family::clone(&first_token));
        let (running, made_tokens, cached_tokens, cache_used) =
            (Family::default(), Family::default(), Family::default(), Family::default());
        registry.register("vllm:num_requests_running", "Requests that make text", Family::clone(&running));
        registry.register("vllm:generation_tokens", "Tokens made", Family::clone(&made_tokens));
        let help = "Tokens of prompts that were known from earlier requests";
        registry.register("vllm:prefix_cache_hits", help, Family::clone(&cached_tokens));
        let help = "Share of the pages of keys and values in use";
        registry.register("vllm:kv_cache_usage_perc", help, Family::clone(&cache_used));
        registry.register("kedge_infer_responses", "HTTP answers by status code", Family::clone(&responses));
        let on = Family::default();
        registry.register("kedge_infer_device", "On what the model computes, and why not on a GPU", Family::clone(&on));
        let refused = Counter::default();
        let help = "Connections that were refused since as many were open as may";
        registry.register("kedge_infer_connections_refused", help, Counter::clone(&refused));
        let spans_dropped = Counter::default();
        let help = "Spans that waited in vain or could not be sent";
        registry.register("kedge_infer_spans_dropped", help, Counter::clone(&spans_dropped));
        Self {
            registry,
            prompt_tokens,
            waiting,
            latency,
            first_token,
            running,
            made_tokens,
            cached_tokens,
            cache_used,
            responses,
            on,
            refused,
            spans_dropped,
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
