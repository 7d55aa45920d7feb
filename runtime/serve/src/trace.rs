//! Spans: what is told of a request when it is over, and how OTLP writes it down. Without I/O.
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions for generative AI, and vLLM's for latencies.
//! A client's `traceparent` (W3C Trace Context) makes the span a child of its own, and says whether it is told at all.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Value, json};

/// Where a span belongs: ids of its trace and of the span above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace: u128,
    pub(crate) span: u64,
    /// Whether whoever began the trace wants it told.
    pub(crate) sampled: bool,
    pub(crate) state: Option<String>,
}

/// The longest `tracestate` that is passed on; the standard asks for as much at least.
const STATE_MAX: usize = 512;

impl Parent {
    /// What a request says; none where it says nothing, or nothing that can be read, as the standard has it.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let parts: Vec<&str> = text("traceparent")?.trim().split('-').collect();
        let [version, trace, span, flags, rest @ ..] = &parts[..] else { return None };
        let number = |text: &str, digits: usize| {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let whole = text.len() == digits && text.bytes().all(is_hex);
            whole.then(|| u128::from_str_radix(text, 16).ok()).flatten()
        };
        let version = number(version, 2)?;
        // Later versions may have more parts, this one has not.
        if version == 0xff || (version == 0 && !rest.is_empty()) {
            return None;
        }
        let trace = number(trace, 32).filter(|trace| *trace != 0)?;
        let span = u64::try_from(number(span, 16)?).ok().filter(|span| *span != 0)?;
        let state = text("tracestate").filter(|state| state.len() <= STATE_MAX).map(str::to_owned);
        Some(Self { trace, span, sampled: number(flags, 2)? & 1 == 1, state })
    }
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Notes {
    /// What kind of thing was asked, in the words of the conventions.
    pub(crate) operation: &'static str,
    pub(crate) model: String,
    /// Path or method that was called.
    pub(crate) target: String,
    /// Status over HTTP, or what it would be.
    pub(crate) status: u16,
    pub(crate) input_tokens: Option<usize>,
    pub(crate) output_tokens: Option<usize>,
    pub(crate) tokens_max: Option<usize>,
    pub(crate) first_token: Option<Duration>,
    pub(crate) finish: Vec<&'static str>,
    /// What went wrong after the status was sent.
    pub(crate) failed: Option<String>,
    /// Whether the client left before the answer was whole.
    pub(crate) left: bool,
}

/// A span, over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) trace: u128,
    pub(crate) id: u64,
    pub(crate) parent: Option<Parent>,
    /// Nanoseconds since 1970.
    pub(crate) begin: u64,
    pub(crate) took: Duration,
    pub(crate) notes: Notes,
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// Numbers of 64 bits are texts in OTLP's JSON.
fn count(key: &str, value: usize) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn seconds(key: &str, value: Duration) -> Value {
    json!({"key": key, "value": {"doubleValue": value.as_secs_f64()}})
}

impl Span {
    /// As OTLP's JSON has it (`opentelemetry/proto/trace/v1/trace.proto`).
    fn json(&self) -> Value {
        let Notes { operation, model, target, status, .. } = &self.notes;
        let notes = &self.notes;
        let mut attributes = vec![
            text("gen_ai.operation.name", operation),
            text("gen_ai.provider.name", "kedge"),
            text("gen_ai.request.model", model),
            text("gen_ai.response.model", model),
            text("url.path", target),
            count("http.response.status_code", usize::from(*status)),
            seconds("gen_ai.latency.e2e", self.took),
        ];
        for (key, value) in [
            ("gen_ai.usage.input_tokens", notes.input_tokens),
            ("gen_ai.usage.output_tokens", notes.output_tokens),
            ("gen_ai.request.max_tokens", notes.tokens_max),
        ] {
            attributes.extend(value.map(|value| count(key, value)));
        }
        attributes.extend(notes.first_token.map(|time| seconds("gen_ai.latency.time_to_first_token", time)));
        if !notes.finish.is_empty() {
            let all: Vec<Value> = notes.finish.iter().map(|finish| json!({"stringValue": finish})).collect();
            attributes.push(json!({"key": "gen_ai.response.finish_reasons", "value": {"arrayValue": {"values": all}}}));
        }
        let failed = notes.failed.clone().or_else(|| (*status >= 500).then(|| format!("answered {status}")));
        let error = match (&failed, notes.left) {
            (Some(_), _) => Some(if *status >= 400 { status.to_string() } else { "stream".to_owned() }),
            (None, true) => Some("client_left".to_owned()),
            (None, false) if *status >= 400 => Some(status.to_string()),
            (None, false) => None,
        };
        attributes.extend(error.map(|error| text("error.type", &error)));
        let mut span = json!({
            "traceId": format!("{:032x}", self.trace), "spanId": format!("{:016x}", self.id),
            "name": format!("{operation} {model}"), "kind": 2,
            "startTimeUnixNano": self.begin.to_string(),
            "endTimeUnixNano": (u128::from(self.begin) + self.took.as_nanos()).to_string(),
            "attributes": attributes,
        });
        if let Some(parent) = &self.parent {
            span["parentSpanId"] = json!(format!("{:016x}", parent.span));
            if let Some(state) = &parent.state {
                span["traceState"] = json!(state);
            }
        }
        // What a client did wrong is no failure of the server's span.
        if let Some(failed) = failed {
            span["status"] = json!({"code": 2, "message": failed});
        }
        span
    }
}

/// Spans as the body of a request for `/v1/traces`; `resource` is what is told of this server.
pub(crate) fn body(resource: &[(String, String)], spans: &[Span]) -> Value {
    let attributes: Vec<Value> = resource.iter().map(|(key, value)| text(key, value)).collect();
    let scope = json!({"name": "kedge-serve", "version": env!("CARGO_PKG_VERSION")});
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes}, "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_trace_is_gone_on_with_or_not_read() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([
                (http::HeaderName::from_static("traceparent"), text.parse().unwrap()),
                (http::HeaderName::from_static("tracestate"), "a=b".parse().unwrap()),
            ]);
            Parent::of(&headers)
        };
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = of(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((format!("{:x}", parent.trace), format!("{:x}", parent.span)), (trace[1..].into(), span.into()));
        assert_eq!((parent.sampled, parent.state.as_deref()), (true, Some("a=b")));
        assert!(!of(&format!("00-{trace}-{span}-00")).unwrap().sampled);
        assert!(of(&format!("01-{trace}-{span}-01-more")).is_some());
        for wrong in [
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            String::new(),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
        assert_eq!(Parent::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_span_is_written_as_otlp_has_it() {
        let notes = Notes {
            operation: "chat",
            model: "m".into(),
            target: "/v1/chat/completions".into(),
            status: 200,
            input_tokens: Some(7),
            output_tokens: Some(3),
            first_token: Some(Duration::from_millis(250)),
            finish: vec!["stop"],
            ..Notes::default()
        };
        let parent = Parent { trace: 10, span: 11, sampled: true, state: None };
        let took = Duration::from_millis(1500);
        let span = Span { trace: 10, id: 12, parent: Some(parent), begin: 1_000_000_000_000_000_000, took, notes };
        let of = |span: &Span| body(&[("service.name".into(), "s".into())], std::slice::from_ref(span));
        let told = of(&span);
        let resource = &told["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"], json!([text("service.name", "s")]));
        let told = &resource["scopeSpans"][0]["spans"][0];
        assert_eq!(told["traceId"], "0000000000000000000000000000000a");
        assert_eq!((&told["spanId"], &told["parentSpanId"]), (&json!("000000000000000c"), &json!("000000000000000b")));
        assert_eq!((&told["name"], &told["kind"], &told["status"]), (&json!("chat m"), &json!(2), &Value::Null));
        assert_eq!(told["endTimeUnixNano"], "1000000001500000000");
        for expected in [
            count("gen_ai.usage.input_tokens", 7),
            count("gen_ai.usage.output_tokens", 3),
            seconds("gen_ai.latency.time_to_first_token", Duration::from_millis(250)),
            json!({"key": "gen_ai.response.finish_reasons", "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}}),
        ] {
            assert!(told["attributes"].as_array().unwrap().contains(&expected), "{expected} in {told}");
        }
        let with = |change: &dyn Fn(&mut Notes)| {
            let mut changed = span.clone();
            change(&mut changed.notes);
            let told = of(&changed)["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone();
            let all = told["attributes"].as_array().unwrap().clone();
            let error = all.iter().find(|attribute| attribute["key"] == "error.type");
            (
                error.map(|error| error["value"]["stringValue"].as_str().unwrap().to_owned()),
                told["status"]["code"].clone(),
            )
        };
        assert_eq!(with(&|_| {}), (None, Value::Null));
        assert_eq!(with(&|notes| notes.status = 400), (Some("400".into()), Value::Null));
        assert_eq!(with(&|notes| notes.status = 504), (Some("504".into()), json!(2)));
        assert_eq!(with(&|notes| notes.failed = Some("x".into())), (Some("stream".into()), json!(2)));
        assert_eq!(with(&|notes| notes.left = true), (Some("client_left".into()), Value::Null));
    }
}
