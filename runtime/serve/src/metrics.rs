//! The numbers at `/metrics`, with vLLM's names where it has one.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

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

/// All of them.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) prompt_tokens: Family<Labels, Counter<u64, AtomicU64>>,
    pub(crate) waiting: Family<Labels, Gauge>,
    pub(crate) responses: Family<Status, Counter<u64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let (prompt_tokens, waiting, responses) = (Family::default(), Family::default(), Family::default());
        registry.register("vllm:prompt_tokens", "Tokens read", Family::clone(&prompt_tokens));
        registry.register("vllm:num_requests_waiting", "Requests that wait for the engine", Family::clone(&waiting));
        registry.register("kedge_infer_responses", "HTTP answers by status code", Family::clone(&responses));
        Self { registry, prompt_tokens, waiting, responses }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
