//! The numbers at `/metrics`, with vLLM's names where it has one.
//!
//! What is known here is counted here; what only the engine knows ([`Figures`]) is read when somebody asks, so that two who
//! ask at once see the same.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::engine::Engine;

/// Seconds: vLLM's own from 0.3 on, and below what an encoder needs.
const LATENCY_SECONDS: [f64; 29] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Tokens: vLLM's own, which end where the longest model does.
const TOKENS: [f64; 18] = [1e0, 2e0, 5e0, 1e1, 2e1, 5e1, 1e2, 2e2, 5e2, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];

/// Answers by status code.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Status {
    pub(crate) code: u32,
}

/// Answers by how they ended: `stop`, `length`, `abort` (whoever asked has left, or its time was over) or `error`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Ended {
    pub(crate) finished_reason: &'static str,
}

/// On what the model computes.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct On {
    device: &'static str,
    features: &'static str,
    /// Why it is not a GPU; empty where none was wanted.
    reason: String,
}

/// What is counted here.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) prompt_tokens: Counter<u64, AtomicU64>,
    /// Of requests for text or vectors that were answered, from the head of the request to the end of the answer.
    pub(crate) latency: Histogram,
    /// From the head of a request to the first token of its answer.
    pub(crate) first_token: Histogram,
    /// From a token of an answer to the next.
    pub(crate) between_tokens: Histogram,
    answers: Answers,
    pub(crate) ended: Family<Ended, Counter<u64, AtomicU64>>,
    pub(crate) responses: Family<Status, Counter<u64, AtomicU64>>,
    /// Connections beyond those that may be.
    pub(crate) refused: Counter<u64, AtomicU64>,
    /// Spans that no collector was told.
    pub(crate) spans_dropped: Counter<u64, AtomicU64>,
}

/// Of answers that ended by themselves: each is counted once, when its request is over.
#[derive(Debug)]
struct Answers {
    prompt_tokens: Histogram,
    tokens: Histogram,
    /// Of the answers to one prompt the longest.
    tokens_most: Histogram,
    /// From when it was asked for until it was admitted.
    queue: Histogram,
    /// From then to the first token, to the last, and from the first to the last.
    prefill: Histogram,
    inference: Histogram,
    decode: Histogram,
    /// The same for each token but the first.
    per_token: Histogram,
}

impl Answers {
    fn new(of_model: &mut Registry) -> Self {
        let mut made = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            of_model.register(name, help, histogram.clone());
            histogram
        };
        let queue = "Seconds that an answer waited for its turn";
        let prefill = "Seconds from an answer's turn to its first token";
        let inference = "Seconds from an answer's turn to its last token";
        let decode = "Seconds from the first token of an answer to its last";
        let per_token = "Seconds of an answer for each token but the first";
        Self {
            prompt_tokens: made("vllm:request_prompt_tokens", "Tokens of the prompt of an answer", &TOKENS),
            tokens: made("vllm:request_generation_tokens", "Tokens of an answer", &TOKENS),
            tokens_most: made(
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest answer to a prompt",
                &TOKENS,
            ),
            queue: made("vllm:request_queue_time_seconds", queue, &LATENCY_SECONDS),
            prefill: made("vllm:request_prefill_time_seconds", prefill, &LATENCY_SECONDS),
            inference: made("vllm:request_inference_time_seconds", inference, &LATENCY_SECONDS),
            decode: made("vllm:request_decode_time_seconds", decode, &LATENCY_SECONDS),
            per_token: made("vllm:request_time_per_output_token_seconds", per_token, &LATENCY_SECONDS),
        }
    }
}

/// An answer that ended by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) tokens: usize,
    pub(crate) times: Times,
}

/// When what happened to an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) asked: Instant,
    pub(crate) admitted: Option<Instant>,
    pub(crate) first: Option<Instant>,
    pub(crate) last: Option<Instant>,
}

impl Times {
    /// Nothing yet but that it was asked for then.
    pub(crate) fn new(asked: Instant) -> Self {
        Self { asked, admitted: None, first: None, last: None }
    }
}

impl Metrics {
    /// Counts those answers to a prompt of so many tokens that ended by themselves; `all` of them did, or not.
    pub(crate) fn answered(&self, prompt_tokens: usize, answers: &[Answered], all: bool) {
        let to = &self.answers;
        for Answered { tokens, times } in answers {
            to.prompt_tokens.observe(prompt_tokens as f64);
            to.tokens.observe(*tokens as f64);
            let Times { asked, admitted: Some(admitted), first: Some(first), last: Some(last) } = *times else {
                continue;
            };
            to.queue.observe((admitted - asked).as_secs_f64());
            to.prefill.observe((first - admitted).as_secs_f64());
            to.inference.observe((last - admitted).as_secs_f64());
            let decode = (last - first).as_secs_f64();
            to.decode.observe(decode);
            if *tokens > 1 {
                to.per_token.observe(decode / (*tokens - 1) as f64);
            }
        }
        let most = answers.iter().map(|answer| answer.tokens).max().filter(|_| all);
        most.into_iter().for_each(|tokens| to.tokens_most.observe(tokens as f64));
    }

    /// All of them at zero, in that registry.
    pub(crate) fn new(registry: &mut Registry, model: &str) -> Self {
        let seconds = || Histogram::new(LATENCY_SECONDS);
        let of_model = registry.sub_registry_with_label(("model_name".into(), model.to_owned().into()));
        let metrics = Self {
            prompt_tokens: Counter::default(),
            latency: seconds(),
            first_token: seconds(),
            between_tokens: seconds(),
            answers: Answers::new(of_model),
            ended: Family::default(),
            responses: Family::default(),
            refused: Counter::default(),
            spans_dropped: Counter::default(),
        };
        of_model.register("vllm:prompt_tokens", "Tokens read", metrics.prompt_tokens.clone());
        let help = "Seconds from the head of a request to the end of its answer";
        of_model.register("vllm:e2e_request_latency_seconds", help, metrics.latency.clone());
        let help = "Seconds from the head of a request to the first token of its answer";
        of_model.register("vllm:time_to_first_token_seconds", help, metrics.first_token.clone());
        let help = "Seconds from a token of an answer to the next";
        of_model.register("vllm:inter_token_latency_seconds", help, metrics.between_tokens.clone());
        of_model.register("vllm:request_success", "Answers by how they ended", metrics.ended.clone());
        registry.register("kedge_infer_responses", "HTTP answers by status code", metrics.responses.clone());
        let help = "Connections that were refused since there were too many";
        registry.register("kedge_infer_connections_refused", help, metrics.refused.clone());
        let help = "Spans that waited in vain or could not be sent";
        registry.register("kedge_infer_spans_dropped", help, metrics.spans_dropped.clone());
        metrics
    }
}

/// As text, as they are now.
pub(crate) fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string does not fail");
    text
}

/// What the engine counts and is on.
pub(crate) struct Figures {
    pub(crate) engine: Engine,
    pub(crate) model: String,
    /// Why it was not on a GPU from the beginning, where one was wanted.
    pub(crate) no_gpu: Option<String>,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (on, moved) = self.engine.on();
        let reason = moved.or_else(|| self.no_gpu.clone()).unwrap_or_default();
        let on = On { device: on.name, features: on.features, reason };
        let help = "On what the model computes, and why not on a GPU";
        let mut device = encoder.encode_descriptor("kedge_infer_device", help, None, MetricType::Gauge)?;
        ConstGauge::new(1).encode(device.encode_family(&on)?)?;
        let labels = [("model_name", self.model.as_str())];
        for (name, help, figure) in figures(&self.engine) {
            let mut told = encoder.encode_descriptor(name, help, None, figure.metric_type())?;
            figure.encode(told.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

type Figure = (&'static str, &'static str, Box<dyn EncodeMetric>);

fn figures(engine: &Engine) -> Vec<Figure> {
    let waiting = |count: i64| -> Figure {
        ("vllm:num_requests_waiting", "Requests that wait for the engine", Box::new(ConstGauge::new(count)))
    };
    let talk = match engine {
        Engine::Encoder { queue, .. } => return vec![waiting(queue.waiting() as i64)],
        Engine::Decoder(talk) => talk,
    };
    let figures = talk.decoder.figures();
    let now = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    let total = |name, help, figure| -> Figure { (name, help, Box::new(ConstCounter::new(now(figure)))) };
    let used = 1.0 - now(&figures.tokens_free) as f64 / now(&figures.tokens_kept) as f64;
    let running = ConstGauge::new(now(&figures.running) as i64);
    vec![
        waiting(now(&figures.waiting) as i64),
        ("vllm:num_requests_running", "Requests that make text", Box::new(running)),
        ("vllm:kv_cache_usage_perc", "Share of the pages of keys and values in use", Box::new(ConstGauge::new(used))),
        total("vllm:generation_tokens", "Tokens made", &figures.made_tokens),
        total("vllm:prefix_cache_queries", "Tokens of prompts that were looked for", &figures.prompt_tokens),
        total("vllm:prefix_cache_hits", "Those of them that earlier requests had", &figures.cached_tokens),
        total("vllm:num_preemptions", "Requests that gave their pages up to others", &figures.preemptions),
    ]
}
