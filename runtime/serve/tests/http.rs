//! The server over a real socket with the real model, where `KEDGE_MINILM` names its directory.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kedge_engine::{Cpu, Encoder};
use kedge_serve::{Model, ServeOptions, serve};
use kedge_world::{Net, RealNet};
use serde_json::{Value, json};

type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>;

async fn call(client: &Http, base: &str, path: &str, body: Option<String>) -> (u16, String) {
    try_call(client, base, path, body).await.unwrap()
}

/// None when nobody took the connection.
async fn try_call(client: &Http, base: &str, path: &str, body: Option<String>) -> Option<(u16, String)> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let request = http::Request::builder().method(method).uri(format!("{base}{path}"));
    let response = client.request(request.body(Full::from(body.unwrap_or_default())).unwrap()).await.ok()?;
    let status = response.status().as_u16();
    Some((status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_give_the_engine_s_vectors() {
    let Some(directory) = std::env::var_os("KEDGE_MINILM").map(PathBuf::from) else {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_MODEL").is_none(), "KEDGE_MINILM names no model");
        println!("skipped: no model (KEDGE_MINILM is not set)");
        return;
    };
    let encoder = Arc::new(Encoder::open(&directory, &Cpu::new(None).unwrap()).unwrap());
    let expected = encoder.encode(&["hello world"]).unwrap().remove(0);
    let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.address().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve(
        ServeOptions { bodies_bytes_max: 4 << 20, ..ServeOptions::new("minilm".into(), 1_700_000_000) },
        Model::Encoder(encoder),
        listener,
        async { stopped.await.unwrap() },
    ));
    let client: Http = Client::builder(TokioExecutor::new()).build_http();

    let ask = json!({"model": "minilm", "input": ["hello world", "another"]}).to_string();
    let together = at_once(&client, &base, &ask, 8).await;
    for (status, body) in together.into_iter().map(Option::unwrap) {
        let answer: Value = serde_json::from_str(&body).unwrap();
        let close = |values: &Value| {
            values
                .as_array()
                .unwrap()
                .iter()
                .zip(&expected.vector)
                .all(|(a, e)| (a.as_f64().unwrap() - f64::from(*e)).abs() < 1e-6)
        };
        assert!(status == 200 && close(&answer["data"][0]["embedding"]), "{body}");
        assert_eq!(answer["usage"]["prompt_tokens"], expected.tokens + 3);
    }
    let infer =
        json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello world"]}]}).to_string();
    let (status, body) = call(&client, &base, "/v2/models/minilm/infer", Some(infer)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["outputs"][0]["shape"]), (200, &json!([1, 384])));
    let first = answer["outputs"][0]["data"][0].as_f64().unwrap();
    assert!((first - f64::from(expected.vector[0])).abs() < 1e-6);

    let long = json!({"model": "minilm", "input": vec!["a"; 1000]}).to_string();
    let (status, body) = call(&client, &base, "/v1/embeddings", Some(long)).await;
    assert!(status == 413 && body.contains("3145728 are held here: ask for fewer vectors at once"), "{status} {body}");
    let wrong = json!({"model": "other", "input": "a"}).to_string();
    for (path, body, status, says) in [
        ("/v1/models", None, 200, "\"id\":\"minilm\""),
        ("/v1/models", None, 200, "\"created\":1700000000"),
        ("/v1/models/minilm", None, 200, "\"created\":1700000000"),
        ("/v1/models/mini%6cm", None, 200, "\"object\":\"model\""),
        ("/v1/models/other", None, 404, "model_not_found"),
        ("/v1/embeddings", Some(json!({"input": "a"}).to_string()), 400, "\"param\":\"model\""),
        ("/v1/embeddings", Some(json!({"model": "minilm", "input": []}).to_string()), 400, "\"param\":\"input\""),
        ("/v1/embeddings", Some(json!({"model": "minilm", "input": ""}).to_string()), 200, "\"embedding\":["),
        ("/health", None, 200, "{}"),
        ("/v2/health/live", None, 200, "{\"live\":true}"),
        ("/v2/health/ready", None, 200, "{\"ready\":true}"),
        ("/v2/models/minilm/ready", None, 200, "\"ready\":true"),
        ("/v2/models/minilm", None, 200, "\"versions\":[\"1\"]"),
        ("/v2/models/minilm", None, 200, "\"platform\":\"kedge_encoder\""),
        ("/v2/models/minilm/versions/1", None, 200, "\"outputs\":[{"),
        ("/v2/models/minilm/versions/1/ready", None, 200, "\"ready\":true"),
        ("/v2/models/minilm/versions/2", None, 404, "has no version"),
        ("/v2/models/minilm/explain", None, 404, "is not served here"),
        ("/v2/models/other", None, 404, "other"),
        ("/v1/embeddings", None, 405, "takes POST, not GET"),
        ("/v1/embeddings", Some(wrong), 404, "model_not_found"),
        ("/v1/embeddings", Some("x".repeat((2 << 20) + 1)), 413, "longer than 2097152 bytes"),
        ("/metrics", None, 200, "vllm:e2e_request_latency_seconds_bucket{model_name=\"minilm\",le=\"0.3\"}"),
        ("/metrics", None, 200, "vllm:e2e_request_latency_seconds_count{model_name=\"minilm\"} 10"),
        ("/metrics", None, 200, "vllm:prompt_tokens_total{model_name=\"minilm\"}"),
        ("/metrics", None, 200, "kedge_infer_device{device=\"cpu\",features=\""),
    ] {
        let got = call(&client, &base, path, body).await;
        assert!(got.0 == status && got.1.contains(says), "{path}: {got:?}");
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(client.request(http::Request::get(format!("{base}/health")).body(Full::default()).unwrap()).await.is_err());
}

/// More than may wait are asked at once, then the stop comes: what was taken in is answered, the rest is told to come
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_said_and_what_was_taken_in_is_answered_after_the_stop() {
    let Some(directory) = std::env::var_os("KEDGE_MINILM").map(PathBuf::from) else {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_MODEL").is_none(), "KEDGE_MINILM names no model");
        println!("skipped: no model (KEDGE_MINILM is not set)");
        return;
    };
    let encoder = Arc::new(Encoder::open(&directory, &Cpu::new(None).unwrap()).unwrap());
    let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.address().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve(
        ServeOptions::new("minilm".into(), 1_700_000_000),
        Model::Encoder(encoder),
        listener,
        async { stopped.await.unwrap() },
    ));
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    let many: Vec<String> = (0..2).map(|index| format!("{index} {}", "word ".repeat(40))).collect();
    let ask = json!({"model": "minilm", "input": many}).to_string();
    let (asking, asked) = (client.clone(), base.clone());
    let all = tokio::spawn(async move { at_once(&asking, &asked, &ask, 400).await });
    loop {
        let (_, metrics) = call(&client, &base, "/metrics", None).await;
        if metrics.contains("kedge_infer_responses_total{code=\"429\"}") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    stop.send(()).unwrap();
    let statuses: Vec<u16> = all.await.unwrap().into_iter().flatten().map(|(status, _)| status).collect();
    let count = |status: u16| statuses.iter().filter(|got| **got == status).count();
    assert_eq!(count(200) + count(429) + count(503), statuses.len(), "{statuses:?}");
    assert!(count(429) >= 1 && count(200) >= 192, "what one client may have open was taken in: {statuses:?}");
    serving.await.unwrap().unwrap();
}

/// The same request `count` times at once.
async fn at_once(client: &Http, base: &str, ask: &str, count: usize) -> Vec<Option<(u16, String)>> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (client, base, ask) = (client.clone(), base.to_owned(), ask.to_owned());
        calls.spawn(async move { try_call(&client, &base, "/v1/embeddings", Some(ask)).await });
    }
    calls.join_all().await
}
