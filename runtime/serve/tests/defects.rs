//! What is broken: bodies that are no text, and a model whose numbers are none. Whoever asks is told what and where, and
//! others are answered.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod common;

use std::path::Path;

use bytes::Bytes;
use common::{CHAT, Served, TEXT, folder};
use http::Request;
use http_body_util::{BodyExt, Full};
use kedge_engine::DecoderOptions;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_utf_8_is_refused_and_said_where() {
    let served = Served::start().await;
    // Cut within a letter, no letter, a half of a pair, and one that is written with too many bytes.
    let wrong = [&b"caf\xc3"[..], b"\xff", b"\xed\xa0\x80", b"\xc0\xaf"];
    let infer = r#"{"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [""#;
    for (path, begin, end) in [
        (CHAT, r#"{"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": ""#, r#""}]}"#),
        (TEXT, "{\"model\": \"demo\",\n \"prompt\": \"", r#"", "max_tokens": 1}"#),
        ("/tokenize", r#"{"prompt": ""#, "\"}"),
        ("/tokenize", r#"{"prompt": "On", ""#, r#"": 1}"#),
        ("/v2/models/demo/infer", infer, r#""]}], "parameters": {"max_tokens": 1}}"#),
        ("/v2/models/demo/generate", r#"{"max_tokens": 1, "text_input": ""#, "\"}"),
        ("/v2/models/demo/generate_stream", r#"{"max_tokens": 1, "text_input": ""#, "\"}"),
    ] {
        let ask = async |text: &[u8]| {
            let body = [begin.as_bytes(), text, end.as_bytes()].concat();
            let request = Request::post(format!("{}{path}", served.base)).body(Full::from(body)).unwrap();
            let response = served.client.request(request).await.unwrap();
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        };
        for wrong in wrong {
            let (status, said) = ask(wrong).await;
            let said: Value = serde_json::from_slice(&said).unwrap();
            let (line, before) = (begin.lines().count(), begin.lines().last().unwrap().len());
            let good = std::str::from_utf8(wrong).unwrap_err().valid_up_to();
            let place = format!("line {line} column {}", before + good + 1);
            let message = format!("the body is not a JSON object: invalid unicode code point at {place}");
            let of_openai = json!({"message": message, "type": "invalid_request_error", "param": null, "code": null});
            let expected = if path.starts_with("/v2") { json!(message) } else { of_openai };
            assert_eq!((status, said), (400, json!({"error": expected})), "{path} {begin}");
        }
        let (status, said) = ask("café \u{10ffff}".as_bytes()).await;
        assert_eq!(status, 200, "{path}: {said:?}");
    }
}

/// A token of the demo model whose vector is spoilt.
const BAD: u32 = 300;

/// The demo model, whose vector of that token has a number that is none. What tokens are chosen by is kept as it was: where
/// both are the same table, every request would meet it.
fn write_spoilt(to: &Path) {
    let from = folder().join("model");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], true);
    config["tie_word_embeddings"] = json!(false);
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    // Eight bytes that say how long its head is, the head, and what it tells of.
    let file = std::fs::read(from.join("model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (head, numbers) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut head, mut numbers): (Value, Vec<u8>) = (serde_json::from_slice(head).unwrap(), numbers.to_vec());
    let mut table = head["model.embed_tokens.weight"].clone();
    assert_eq!(table["dtype"], "BF16");
    let offset = |index: usize| table["data_offsets"][index].as_u64().unwrap() as usize;
    let (begin, end, width) = (offset(0), offset(1), table["shape"][1].as_u64().unwrap() as usize);
    let copied = numbers.len();
    numbers.extend_from_within(begin..end);
    table["data_offsets"] = json!([copied, numbers.len()]);
    head["lm_head.weight"] = table;
    let at = begin + (BAD as usize * width + 7) * 2;
    numbers[at..at + 2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    let head = head.to_string();
    let whole = [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &numbers].concat();
    std::fs::write(to.join("model.safetensors"), whole).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_body_is_read_into_is_bounded_before_it_is_read() {
    let served = Served::start_with(|options| options.bodies_bytes_max = 32 << 20).await;
    let ask = |objects: usize| {
        let more = vec![json!({"": 0}); objects];
        served.answer(TEXT, json!({"model": "demo", "prompt": "On", "max_tokens": 1, "x": more}))
    };
    let (status, answer) = ask(290_000).await;
    let said = answer["error"]["message"].as_str().unwrap();
    assert!(status == 413 && said.contains("once it is read; 25165824 in all are taken"), "{status} {said}");
    // Two thirds of what one client may have: of many at once some have to come again, and the room is there again then.
    let all = futures::future::join_all((0..6).map(|_| ask(20_000))).await;
    assert!(all.iter().all(|(status, _)| [200, 429].contains(status)) && all.iter().any(|(status, _)| *status == 200));
    assert_eq!(ask(20_000).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_http_does_not_allow_are_refused_by_header() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = Served::start().await;
    for (headers, status, names) in [
        ("host: a\r\ntransfer-encoding: gzip, chunked", 501, "Transfer-Encoding"),
        ("transfer-encoding: chunked", 400, "Host"),
        ("host: a\r\nhost: b\r\ntransfer-encoding: chunked", 400, "Host"),
        (
            "host: a\r\nx-request-timeout: 1\r\nx-request-timeout: 2\r\ntransfer-encoding: chunked",
            400,
            "x-request-timeout",
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(served.address()).await.unwrap();
        let head = format!("POST /v1/completions HTTP/1.1\r\nconnection: close\r\n{headers}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"2\r\n{}\r\n0\r\n\r\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(names), "{headers}: {said}");
    }
}

/// The next piece of a stream that has not ended.
async fn piece(response: &mut http::Response<hyper::body::Incoming>) -> Bytes {
    response.frame().await.expect("the stream goes on").unwrap().into_data().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_a_model_that_are_none_are_an_error_of_the_request_that_meets_them() {
    let model = tempfile::tempdir().unwrap();
    write_spoilt(model.path());
    let options = DecoderOptions { tokens_kept: Some(8192), ..DecoderOptions::default() };
    let served = Served::start_of(model.path(), options, |_| {}).await;
    let ask = |prompt: &[u32], more: Value| {
        let mut body = json!({"model": "demo", "prompt": prompt, "max_tokens": 8, "ignore_eos": true});
        // That nobody else is made to choose it.
        body["logit_bias"] = json!({BAD.to_string(): -100});
        more.as_object().unwrap().iter().for_each(|(field, value)| body[field] = value.clone());
        body
    };
    let why = "the model's logits are not finite numbers";
    let error = json!({"message": why, "type": "server_error", "param": null, "code": null});

    let mut beside = served.ask(TEXT, ask(&[5, 6], json!({"stream": true, "max_tokens": 900, "n": 4}))).await;
    piece(&mut beside).await;
    for more in [json!({}), json!({"stream": true}), json!({"n": 3}), json!({"temperature": 0})] {
        let (status, answer) = served.answer(TEXT, ask(&[5, BAD, 6], more.clone())).await;
        assert_eq!((status, &answer["error"]), (500, &error), "{more}");
    }
    let text =
        json!({"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [word(&served).await]}]});
    let (status, answer) = served.answer("/v2/models/demo/infer", text).await;
    assert_eq!((status, &answer["error"]), (500, &json!(why)));

    // One that meets them later has its status already: it is told in its stream.
    let (first, forced) = (json!({BAD.to_string(): 100}), json!({"stream": true, "temperature": 0}));
    let mut forced = ask(&[5, 6], forced);
    forced["logit_bias"] = first;
    let told = served.ask(TEXT, forced.clone()).await.into_body().collect().await.unwrap().to_bytes();
    let told = String::from_utf8(told.to_vec()).unwrap();
    let pieces: Vec<Value> = told
        .split_terminator("\n\n")
        .map(|piece| serde_json::from_str(piece.trim_start_matches("data: ")).unwrap())
        .collect();
    assert!(pieces.len() > 1 && pieces[0]["choices"][0]["finish_reason"].is_null(), "{told}");
    assert_eq!(pieces.last().unwrap()["error"], error, "{told}");
    forced["stream"] = json!(false);
    assert_eq!(served.answer(TEXT, forced).await, (500, json!({"error": error})));

    // Nobody else is touched by it: neither who was there before nor who comes after.
    let rest = String::from_utf8(beside.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n") && !rest.contains("error"), "{rest}");
    assert_eq!(rest.matches("\"finish_reason\":\"length\"").count(), 4);
    let (status, answer) = served.answer(TEXT, ask(&[5, 6], json!({}))).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(8)), "{answer}");
    let (_, metrics) = served.get("/metrics").await;
    for line in ["finished_reason=\"length\"} 5", "_responses_total{code=\"500\"} 6"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

/// The text of the token that is spoilt.
async fn word(served: &Served) -> String {
    let (_, answer) = served.answer("/detokenize", json!({"tokens": [BAD]})).await;
    let text = answer["prompt"].as_str().unwrap().to_owned();
    let (_, tokens) = served.answer("/tokenize", json!({"prompt": text, "add_special_tokens": false})).await;
    assert_eq!(tokens["tokens"], json!([BAD]), "it is a word by itself");
    text
}
