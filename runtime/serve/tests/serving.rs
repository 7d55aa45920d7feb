//! The server around a model: who may ask, over what, for how long, and how it ends.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{CHAT, Served, TEXT, chat, endless};
use futures::Stream;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_serve::{Keys, Model, Opened, ServeError, ServeOptions, Tls, TlsFiles, serve_once_open};
use kedge_world::{Net, RealNet};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_only_who_shows_one_may_ask() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "sesame\n").unwrap();
    let served = Served::start_with(|options| options.keys = Some(Arc::new(Keys::open(&file).unwrap()))).await;
    let ask = async |path: &str, key: Option<&str>, body: Option<Value>| {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", served.base));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        served.client.request(request.body(Full::from(body)).unwrap()).await.unwrap()
    };
    let hello = chat(&json!([{"role": "user", "content": "hello"}]), json!({}));
    for (path, body) in [
        ("/v1/models", None),
        (CHAT, Some(hello.clone())),
        ("/v2/models/demo", None),
        ("/v2", None),
        ("/tokenize", Some(json!({"prompt": "a"}))),
        ("/detokenize", Some(json!({"tokens": [1]}))),
    ] {
        for key in [None, Some("open"), Some("")] {
            let response = ask(path, key, body.clone()).await;
            assert_eq!(
                (response.status(), &response.headers()["www-authenticate"]),
                (401.try_into().unwrap(), &"Bearer".parse().unwrap()),
                "{path}"
            );
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            let said: Value = serde_json::from_slice(&bytes).unwrap();
            if path.starts_with("/v2") {
                assert!(said["error"].as_str().unwrap().contains("API key"), "{said}");
            } else {
                assert_eq!(said["error"]["code"], "invalid_api_key", "{said}");
            }
        }
        assert_eq!(ask(path, Some("sesame"), body).await.status(), 200, "{path}");
    }
    for path in ["/health", "/metrics", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(ask(path, None, None).await.status(), 200, "{path}");
    }
    for path in ["/v1/nothing", "/nothing", "/", "/health/nothing"] {
        assert_eq!(ask(path, None, None).await.status(), 401, "{path}: nobody learns what is here");
    }
}

/// An authority, and what it signed.
struct Signed {
    authority: String,
    certificate: String,
    key: String,
}

fn signed(name: &str) -> Signed {
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    Signed { authority: certificate.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
}

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Asks for the models over TLS and the protocol that was agreed on; none when the server will not talk.
async fn models_over_tls(address: &str, trust: &Signed, own: Option<&Signed>, protocol: &[u8]) -> Option<u16> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("models.example").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    let request = Request::get("https://models.example/v1/models").header("host", "models.example");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let io = TokioIo::new(stream);
    let status = if protocol == b"h2" {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
        tokio::spawn(connection);
        sender.send_request(request).await.ok()?.status()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        sender.send_request(request).await.ok()?.status()
    };
    Some(status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_in_both_versions_of_http_and_clients_with_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client, stranger) = (signed("models.example"), signed("till"), signed("till"));
    let files = TlsFiles {
        certificate: write(folder.path(), "cert.pem", &server.certificate),
        key: write(folder.path(), "key.pem", &server.key),
        client_ca: None,
    };
    let tls = Arc::new(Tls::open(files.clone()).unwrap());
    let served = Served::start_with(|options| options.tls = Some(tls)).await;
    for protocol in [&b"h2"[..], b"http/1.1"] {
        assert_eq!(models_over_tls(served.address(), &server, None, protocol).await, Some(200));
    }
    assert_eq!(models_over_tls(served.address(), &client, None, b"h2").await, None, "of another authority");
    let mut plain = TcpStream::connect(served.address()).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut told = String::new();
    plain.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 Bad Request\r\n") && told.contains("this port speaks HTTPS"), "{told}");
    // One that comes byte by byte is waited for.
    let mut slow = TcpStream::connect(served.address()).await.unwrap();
    slow.write_all(b"\x16").await.unwrap();
    let read = tokio::time::timeout(Duration::from_millis(300), slow.read(&mut [0; 9])).await;
    assert!(read.is_err(), "{read:?}");

    let client_ca = Some(write(folder.path(), "clients.pem", &client.authority));
    let tls = Arc::new(Tls::open(TlsFiles { client_ca, ..files.clone() }).unwrap());
    let served = Served::start_with(|options| options.tls = Some(tls)).await;
    assert_eq!(models_over_tls(served.address(), &server, Some(&client), b"h2").await, Some(200));
    assert_eq!(models_over_tls(served.address(), &server, Some(&client), b"http/1.1").await, Some(200));
    assert_eq!(models_over_tls(served.address(), &server, None, b"http/1.1").await, None);
    assert_eq!(models_over_tls(served.address(), &server, Some(&stranger), b"http/1.1").await, None);

    let other = write(folder.path(), "other.pem", &client.key);
    for (files, says) in [
        (TlsFiles { key: other, ..files.clone() }, "--tls-key"),
        (TlsFiles { certificate: files.key.clone(), ..files.clone() }, "--tls-cert"),
        (TlsFiles { client_ca: Some(folder.path().join("none.pem")), ..files.clone() }, "none.pem (--client-ca)"),
    ] {
        let error = Tls::open(files).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_stop_streams_end_by_themselves_or_are_told_and_nothing_is_taken_in() {
    // What has the time for it ends as ever.
    let mut served = Served::start().await;
    let stop = served.stop.take();
    let pieces = served
        .pieces(TEXT, json!({"model": "demo", "prompt": "On", "max_tokens": 300, "ignore_eos": true, "stream": true}));
    let (pieces, ()) = tokio::join!(pieces, async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(stop);
    });
    assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "length");
    tokio::time::timeout(Duration::from_secs(20), served.serving).await.unwrap().unwrap().unwrap();

    let mut served = Served::start_with(|options| options.drain_timeout = Duration::from_millis(1500)).await;
    let mut response = served.ask(CHAT, endless(json!({"stream": true}))).await;
    response.frame().await.unwrap().unwrap();
    assert_eq!(served.get("/v2/health/ready").await.0, 200);
    drop(served.stop.take());
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (path, status) in [
        ("/health", 503),
        ("/v2/health/ready", 503),
        ("/v2/models/demo/ready", 503),
        ("/v2/health/live", 200),
        ("/metrics", 200),
    ] {
        assert_eq!(served.get(path).await.0, status, "{path}");
    }
    let refused = served.ask(TEXT, json!({"model": "demo", "prompt": "On"})).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let rest = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let last = rest.trim_end().rsplit("data: ").next().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["message"], "the server is ending", "{last}");
    served.idle().await;
    tokio::time::timeout(Duration::from_secs(10), served.serving).await.unwrap().unwrap().unwrap();
}

/// A server whose model is opened when somebody says what came of it.
async fn opened_later(
    signals: impl Stream<Item = ()> + Send + 'static,
) -> (Served, oneshot::Sender<Result<Opened, ServeError>>) {
    let decoder = Served::start().await.decoder;
    let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.address().unwrap());
    let (open, opened) = oneshot::channel();
    let options = ServeOptions { drain_timeout: Duration::from_secs(999), ..ServeOptions::new("demo".into(), 0) };
    let serving = tokio::spawn(serve_once_open(options, async { opened.await.unwrap() }, listener, signals));
    let client = Client::builder(TokioExecutor::new()).build_http();
    (Served { client, base, decoder, stop: None, serving }, open)
}

fn opened(served: &Served) -> Opened {
    let model = Model::Decoder(served.decoder.clone());
    Opened { on: model.on().0, no_gpu: Some("none was wanted".into()), model }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_model_is_opened_whoever_asks_is_told_and_then_answered() {
    let (served, open) = opened_later(futures::stream::pending()).await;
    for (path, status, says) in [
        ("/health", 503, "\"message\":\"the model is being opened; try again\""),
        ("/v2/health/live", 200, "{\"live\":true}"),
        ("/v2/health/ready", 503, "{\"error\":\"the model is being opened; try again\"}"),
        ("/v2/models/demo", 503, "{\"error\":\"the model is being opened; try again\"}"),
        ("/v1/models", 503, "\"type\":\"server_error\""),
        ("/nothing", 503, "is being opened"),
        ("/metrics", 200, "kedge_infer_responses_total{code=\"503\"}"),
    ] {
        let (got, said) = served.get(path).await;
        assert!(got == status && said.contains(says), "{path}: {got} {said}");
    }
    let hello = chat(&json!([{"role": "user", "content": "hello"}]), json!({"max_tokens": 1}));
    let refused = served.ask(TEXT, hello).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    open.send(Ok(opened(&served))).ok().unwrap();
    let ready = async {
        while served.get("/health").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("it is served");
    let (status, answer) = served.answer(TEXT, json!({"model": "demo", "prompt": "On", "max_tokens": 1})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(served.get("/metrics").await.1.contains("reason=\"none was wanted\""));

    let (served, open) = opened_later(futures::stream::pending()).await;
    open.send(Err(ServeError::EngineEnded)).ok().unwrap();
    assert!(matches!(served.serving.await.unwrap(), Err(ServeError::EngineEnded)), "what cannot be opened ends it");
    let (served, _open) = opened_later(futures::stream::iter([()])).await;
    served.serving.await.unwrap().expect("who ends it while it opens ends it well");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_stop_twice_does_not_wait_for_answers() {
    let (signal, signals) = futures::channel::mpsc::unbounded();
    let (served, open) = opened_later(signals).await;
    open.send(Ok(opened(&served))).ok().unwrap();
    let long = json!({"model": "demo", "prompt": "On", "stream": true, "n": 16, "max_tokens": 900, "ignore_eos": true});
    let mut response = loop {
        let response = served.ask(TEXT, long.clone()).await;
        if response.status() != 503 {
            break response;
        }
    };
    response.frame().await.unwrap().unwrap();
    signal.unbounded_send(()).unwrap();
    while served.get("/health").await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal.unbounded_send(()).unwrap();
    let rest = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let last: Value = serde_json::from_str(rest.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "the server is ending", "{last}");
    served.serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_and_computed_for_no_longer() {
    let served = Served::start_with(|options| options.write_timeout = Duration::from_millis(500)).await;
    let body = endless(json!({"stream": true, "logprobs": true, "top_logprobs": 20})).to_string();
    let mut slow = TcpStream::connect(served.address()).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    slow.write_all((head + &body).as_bytes()).await.unwrap();
    while served.decoder.figures().made_tokens.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, answer) = served.answer(TEXT, json!({"model": "demo", "prompt": "On", "max_tokens": 4})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 4, "others are answered meanwhile");
    served.idle().await;
    let made = served.decoder.figures().made_tokens.load(Ordering::Relaxed);
    assert!(made < 16 * 900, "all {made} tokens were made for nobody");
    // Whatever the kernel holds for it may still be read; then the connection ends before the answer does.
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(!rest.windows(6).any(|window| window == b"[DONE]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_of_a_stream_of_http_2_is_cut_too() {
    let served = Served::start_with(|options| {
        options.write_timeout = Duration::from_millis(500);
        // A whole answer is handed over at once, so that for the server nothing is on the way any more.
        options.idle_timeout = Duration::from_millis(500);
    })
    .await;
    for body in [endless(json!({"stream": true})), chat(&json!([{"role": "user", "content": "hello"}]), json!({}))] {
        let io = TokioIo::new(TcpStream::connect(served.address()).await.unwrap());
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.initial_stream_window_size(16).handshake(io).await.unwrap();
        let connection = tokio::spawn(connection);
        let request =
            Request::post(format!("{}{CHAT}", served.base)).body(Full::<Bytes>::from(body.to_string())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let cut = tokio::time::timeout(Duration::from_secs(30), connection).await;
        assert!(cut.is_ok(), "the connection goes on");
        served.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_told_others_find_the_rest_and_silent_ones_end() {
    let served = Served::start_with(|options| {
        options.connections_max = 4;
        options.read_timeout = Duration::from_secs(3);
    })
    .await;
    // All of 127/8 is this machine.
    let connect = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(served.address().parse().unwrap()).await.unwrap()
    };
    let told = async |from: &str| {
        let mut told = String::new();
        connect(from).await.read_to_string(&mut told).await.unwrap();
        told
    };
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(connect("127.0.0.2").await);
    }
    let beyond = told("127.0.0.2").await;
    assert!(beyond.starts_with("HTTP/1.1 503 ") && beyond.contains("retry-after: 1\r\n"), "{beyond}");
    assert!(beyond.contains("too many connections from this client; try again"), "{beyond}");
    let mut other = connect("127.0.0.3").await;
    other.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut line = [0; 15];
    other.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 200 OK");
    let beyond = told("127.0.0.4").await;
    assert!(beyond.contains("too many connections; try again"), "{beyond}");
    for mut silent in silent {
        let read = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut [0; 9])).await;
        assert_eq!(read.unwrap().unwrap_or(0), 0, "it said nothing for too long");
    }
    let (_, metrics) = served.get("/metrics").await;
    assert!(metrics.contains("kedge_infer_connections_refused_total 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_heads_of_requests_say_is_heeded_or_refused() {
    let served = Served::start().await;
    let hello = json!({"model": "demo", "prompt": "On", "max_tokens": 1}).to_string();
    let post = |head: &str, body: &str| format!("POST {TEXT} HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n{body}");
    let packed = |how: &str| post(&format!("content-encoding: {how}\r\ncontent-length: {}", hello.len()), &hello);
    let models = served.get("/v1/models").await.1.len();
    let long = (2 << 20) + 1;
    for (request, begins, has) in [
        ("HEAD /v1/models HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "200 OK", format!("content-length: {models}\r\n")),
        (format!("HEAD {TEXT} HTTP/1.1\r\nhost: a\r\n\r\n"), "405 ", "application/json".into()),
        (packed("Identity"), "200 OK", "text_completion".into()),
        (packed("gzip"), "415 ", "Content-Encoding: \\\"gzip\\\" is not supported".into()),
        (post("expect: 100-continue\r\ncontent-length: 9", ""), "100 Continue", String::new()),
        (post(&format!("expect: 100-continue\r\ncontent-length: {long}"), ""), "413 ", "longer than".into()),
    ] {
        let mut stream = TcpStream::connect(served.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut told, mut more) = (String::new(), [0; 4096]);
        let whole = |told: &str| told.contains("\r\n\r\n") && told.contains(&has);
        while !whole(&told) {
            let read = stream.read(&mut more).await.unwrap();
            assert!(read > 0, "{request:?}: {told:?}");
            told += std::str::from_utf8(&more[..read]).unwrap();
        }
        assert!(told.starts_with(&format!("HTTP/1.1 {begins}")), "{request:?}: {told:?}");
        assert!(!request.starts_with("HEAD") || told.ends_with("\r\n\r\n"), "{told:?}");
    }
    let http2: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let head = Request::head(format!("{}/health", served.base)).body(Full::default()).unwrap();
    let response = http2.request(head).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-length"]), (200, &"2".parse().unwrap()));
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

/// Sends a request whose head says that it is that long, and so much of its body.
async fn begun(served: &Served, length: usize, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_bound_together_and_who_sends_nothing_takes_none_of_it() {
    let served = Served::start_with(|options| options.bodies_bytes_max = 400_000).await;
    let hello = chat(&json!([{"role": "user", "content": "hello"}]), json!({"max_tokens": 1}));
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(begun(&served, 1 << 20, b"").await);
    }
    assert_eq!(served.ask(CHAT, hello.clone()).await.status(), 200);
    let large =
        chat(&json!([{"role": "user", "content": "hello"}]), json!({"max_tokens": 1, "x": " ".repeat(150_000)}));
    let (held, refused) = loop {
        let held = begun(&served, 200_001, &[b' '; 200_000]).await;
        // Whichever of the two comes first has the room.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let response = served.ask(CHAT, large.clone()).await;
        if response.status() != 200 {
            break (held, response);
        }
    };
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    drop(held);
    let again = async {
        while served.ask(CHAT, large.clone()).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_keep_others_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = write(folder.path(), "keys", "one\nother\n");
    let served = Served::start_with(|options| options.keys = Some(Arc::new(Keys::open(&keys).unwrap()))).await;
    let ask = async |key: &str, body: Value| {
        let request = Request::post(format!("{}{CHAT}", served.base)).header("authorization", format!("Bearer {key}"));
        served.client.request(request.body(Full::from(body.to_string())).unwrap()).await.unwrap()
    };
    // The last waits for a place in the engine, so none of them can wait for its first token.
    let opening = (0..12).map(|_| ask("one", endless(json!({"stream": true}))));
    let opened = futures::future::join_all(opening);
    let hello = chat(&json!([{"role": "user", "content": "hello"}]), json!({"max_tokens": 1}));
    let others = async {
        while served.decoder.figures().open.load(Ordering::Relaxed) < 192 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ask("one", hello.clone()).await.status(), 429);
        assert_eq!(ask("other", hello.clone()).await.status(), 200);
    };
    tokio::select! {
        _ = opened => panic!("all of them began"),
        () = others => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_with_much_to_read_keeps_nobody_waiting() {
    let served = Served::start().await;
    let from = |address: &str| {
        let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
        connector.set_local_address(Some(address.parse().unwrap()));
        let client: common::Http = Client::builder(TokioExecutor::new()).build(connector);
        let base = served.base.clone();
        move |path: &str, body: Value| {
            let request = Request::post(format!("{base}{path}")).body(Full::from(body.to_string())).unwrap();
            let response = client.request(request);
            async move { response.await.unwrap().status().as_u16() }
        }
    };
    let (many, other) = (from("127.0.0.2"), from("127.0.0.3"));
    // Too long for the model, which is known when all of it was read.
    let long = json!({"model": "demo", "prompt": ["word ".repeat(12_000), "word ".repeat(12_000)]});
    let mut reading: tokio::task::JoinSet<_> = (0..32).map(|_| many(TEXT, long.clone())).collect();
    assert_eq!(reading.join_next().await.unwrap().unwrap(), 400);
    let one = async { assert_eq!(other(TEXT, json!({"model": "demo", "prompt": "On", "max_tokens": 1})).await, 200) };
    let mut before = 0;
    let mut one = std::pin::pin!(one);
    loop {
        tokio::select! {
            () = &mut one => break,
            Some(read) = reading.join_next() => before += u32::from(read.unwrap() == 400),
        }
    }
    assert!(before < 16, "{before} of another client were read before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_too_long_is_broken_off() {
    let served = Served::start().await;
    let ask = async |timeout: &str, body: Value| {
        let request = Request::post(format!("{}{CHAT}", served.base)).header("X-Request-Timeout", timeout);
        let response = served.client.request(request.body(Full::from(body.to_string())).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    let (status, said) = ask("0.2", endless(json!({}))).await;
    assert!(status == 504 && said.contains("longer than the request allows"), "{status} {said}");
    served.idle().await;
    let (status, said) = ask("0.2", endless(json!({"stream": true}))).await;
    let last: Value = serde_json::from_str(said.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((status, last["error"]["type"].as_str()), (200, Some("server_error")), "{last}");
    served.idle().await;
    let made = served.decoder.figures().made_tokens.load(Ordering::Relaxed);
    assert!(made < 3 * 16 * 900, "{made}");
    // Whoever leaves before the answer is whole is waited for no more than one who does not wait any longer.
    let left = tokio::time::timeout(Duration::from_millis(200), served.ask(CHAT, endless(json!({})))).await;
    assert!(left.is_err());
    served.idle().await;
    let request = Request::post(format!("{}{TEXT}", served.base)).header("X-Request-Timeout", "0.05");
    let long = json!({"model": "demo", "prompt": vec!["word ".repeat(12_000); 16]}).to_string();
    assert_eq!(served.client.request(request.body(Full::from(long)).unwrap()).await.unwrap().status(), 504);
    let (status, said) = ask("soon", endless(json!({}))).await;
    assert!(status == 400 && said.contains("X-Request-Timeout"), "{said}");

    let served = Served::start_with(|options| options.request_timeout = Some(Duration::from_millis(200))).await;
    assert_eq!(served.ask(CHAT, endless(json!({}))).await.status(), 504);
    served.idle().await;
}

/// What a collector was told, span by span, until `count` have come.
async fn collected(listener: &tokio::net::TcpListener, count: usize) -> Vec<Value> {
    let mut spans = Vec::new();
    while spans.len() < count {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = Vec::new();
        let body = loop {
            let mut more = vec![0; 65536];
            let read = stream.read(&mut more).await.unwrap();
            text.extend_from_slice(&more[..read]);
            let whole = String::from_utf8_lossy(&text).into_owned();
            let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces ") && head.contains("content-type: application/json"), "{head}");
            assert!(head.contains("x-team: till"), "{head}");
            let length: usize =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
            if body.len() == length {
                break body.to_owned();
            }
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        let told: Value = serde_json::from_str(&body).unwrap();
        spans.extend(told["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    spans
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    all.iter().find(|attribute| attribute["key"] == key).map_or(&Value::Null, |attribute| &attribute["value"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_told_of_each_request_and_one_that_is_gone_is_waited_for_by_nobody() {
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let headers = |name: &str| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "x-team=till".to_owned());
    let telemetry = kedge_serve::TelemetryOptions::new(Some(&endpoint), headers).unwrap();
    let served = Served::start_with(|options| options.telemetry = telemetry.clone()).await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    let (_, answer) = served.answer(CHAT, chat(&hello, json!({"max_tokens": 9, "ignore_eos": true}))).await;
    served.answer(CHAT, chat(&hello, json!({"temperature": 9}))).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for flags in ["00", "01"] {
        let request = Request::post(format!("{}{CHAT}", served.base));
        let request = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-{flags}"));
        let body = chat(&hello, json!({"stream": true})).to_string();
        let response = served.client.request(request.body(Full::from(body)).unwrap()).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    served.get("/health").await;
    served.answer("/tokenize", json!({"prompt": "a"})).await;
    let mut left = served.ask(CHAT, endless(json!({"stream": true}))).await;
    left.frame().await.unwrap().unwrap();
    drop(left);
    let spans = tokio::time::timeout(Duration::from_secs(20), collected(&collector, 5)).await.unwrap();
    assert_eq!(spans.len(), 5, "what is not sampled is not told, and health is nothing to tell: {spans:?}");
    let whole = &spans[0];
    assert_eq!(
        (&whole["name"], &whole["kind"], &whole["parentSpanId"]),
        (&json!("chat demo"), &json!(2), &Value::Null)
    );
    assert_eq!(attribute(whole, "gen_ai.request.model")["stringValue"], "demo");
    for (key, expected) in [("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")] {
        let told = attribute(whole, &format!("gen_ai.usage.{key}"));
        assert_eq!(told["intValue"], answer["usage"][expected].to_string(), "{key}");
    }
    let first = attribute(whole, "gen_ai.latency.time_to_first_token")["doubleValue"].as_f64().unwrap();
    assert!(first > 0.0 && first <= attribute(whole, "gen_ai.latency.e2e")["doubleValue"].as_f64().unwrap());
    assert_eq!(attribute(&spans[1], "error.type")["stringValue"], "400");
    assert_eq!((&spans[2]["traceId"], &spans[2]["parentSpanId"]), (&json!(trace), &json!("b7ad6b7169203331")));
    let finish = &attribute(&spans[2], "gen_ai.response.finish_reasons")["arrayValue"]["values"];
    assert_eq!(finish[0]["stringValue"], "stop", "{finish}");
    assert_eq!(attribute(&spans[4], "error.type")["stringValue"], "client_left");
    let (_, metrics) = served.get("/metrics").await;
    let latency = "vllm:e2e_request_latency_seconds_count{model_name=\"demo\"} 3\n";
    assert!(metrics.contains(latency), "/tokenize makes no text: {metrics}");

    // Nobody listens there any more.
    drop(collector);
    let begin = Instant::now();
    let mut served = Served::start_with(|options| options.telemetry = telemetry).await;
    served.answer(CHAT, chat(&hello, json!({}))).await;
    drop(served.stop.take());
    served.serving.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}
