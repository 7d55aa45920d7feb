//! Probes and hooks against servers on loopback.

use std::sync::Arc;

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kedge_runtimes::PodUid;
use kedge_runtimes::fake::Fake;
use kedge_world::{RealNet, World};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::*;

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

fn text(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

fn gives(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder().status(status).body(text(body)).unwrap()
}

/// Health/Check as a server answers it: a frame, then trailers.
fn health(status: u8, code: &str) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    let frames = [Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status])), Frame::trailers(trailers)];
    Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames.map(Ok)))))
}

async fn serve(request: Request<Incoming>) -> Result<Response<Body>, std::convert::Infallible> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = request.uri().path().to_owned();
    let redirect = |to: &str| Response::builder().status(302).header("location", to).body(text("gone")).unwrap();
    Ok(match path.as_str() {
        "/ok" => gives(200, "fine"),
        "/bad" => gives(500, "a secret"),
        "/away" => redirect("http://192.0.2.1:1/"),
        "/near" => redirect("/ok"),
        "/round" => redirect("/round"),
        "/nowhere" => gives(304, ""),
        "/large" => gives(200, vec![b'x'; 100 << 10]),
        "/agent" => gives(if header("user-agent").starts_with("kube-probe/") { 200 } else { 400 }, ""),
        "/host" => gives(if header("host") == "example.com" { 200 } else { 400 }, ""),
        "/slow" => std::future::pending().await,
        "/grpc.health.v1.Health/Check" => {
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            match &asked[7.min(asked.len())..] {
                b"well" => health(1, "0"),
                b"ill" => health(2, "0"),
                b"slow" => std::future::pending().await,
                b"unknown" => {
                    let response = Response::builder().header("grpc-status", "5").header("grpc-message", "no%20such");
                    response.body(text("")).unwrap()
                }
                _ => Response::builder().status(StatusCode::NOT_FOUND).body(text("")).unwrap(),
            }
        }
        _ => gives(404, ""),
    })
}

/// A server on a port of its own, with a certificate that nobody signed if `tls`.
async fn server(tls: bool) -> u16 {
    let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
    let port = listener.address().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let acceptor = tls.then(|| {
        let made = rcgen::generate_simple_self_signed(vec!["somebody.test".into()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let service = service_fn(serve);
                // Clients that go away are no trouble.
                match acceptor {
                    None => drop(server.serve_connection(TokioIo::new(stream), service).await),
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            drop(server.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            });
        }
    });
    port
}

/// Probes or hooks the pod at 127.0.0.1.
struct Pod {
    fake: Fake,
    id: ContainerId,
    container: Container,
}

impl Pod {
    fn new(port: u16) -> Self {
        let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]});
        Self {
            fake: Fake::new(World::real()),
            id: ContainerId::derive(&PodUid::new("u").unwrap(), "c", 0),
            container: serde_json::from_value(container).unwrap(),
        }
    }

    fn target(&self) -> Target<'_> {
        Target { runtime: &self.fake, net: &RealNet, id: &self.id, container: &self.container, pod_ip: "127.0.0.1" }
    }

    async fn probe(&self, probe: Value) -> Answer {
        self.target().probe(&serde_json::from_value(probe).unwrap()).await
    }

    async fn get(&self, get: Value) -> Answer {
        let mut whole = json!({"port": "web"});
        whole.as_object_mut().unwrap().extend(get.as_object().unwrap().clone());
        self.probe(json!({"httpGet": whole})).await
    }

    async fn hook(&self, get: Value) -> (Result<(), String>, bool) {
        self.target().hook(&serde_json::from_value(json!({"httpGet": get})).unwrap()).await
    }
}

#[tokio::test]
async fn http_probes_ask_and_follow_as_the_kubelets_do() {
    let pod = Pod::new(server(false).await);
    for path in ["/ok", "/near", "/agent", "/large"] {
        assert_eq!(pod.get(json!({"path": path})).await, Answer::Success, "{path}");
    }
    let named = json!([{"name": "Host", "value": "example.com"}]);
    assert_eq!(pod.get(json!({"path": "/host", "httpHeaders": named})).await, Answer::Success);
    let warning = |body: &str| Answer::Warning(format!("Probe terminated redirects, Response body: {body}"));
    assert_eq!(pod.get(json!({"path": "/away"})).await, warning("gone"), "another host is not asked");
    assert_eq!(pod.get(json!({"path": "/nowhere"})).await, warning(""));
    let code = |code: u16| Answer::Failure(format!("HTTP probe failed with statuscode: {code}"));
    assert_eq!(pod.get(json!({"path": "/bad"})).await, code(500));
    for (path, expected) in [("/round", "stopped after 10 redirects"), ("/slow", "no answer within 1s")] {
        let Answer::Failure(error) = pod.get(json!({"path": path})).await else { panic!("{path}") };
        assert!(error.ends_with(expected), "{error}");
    }
    let Answer::Failure(error) = pod.get(json!({"port": 1})).await else { panic!("nobody listens there") };
    assert!(error.starts_with("Get \"http://127.0.0.1:1/\": "), "{error}");
    let broken = json!([{"name": "X", "value": "a\nb"}]);
    let Answer::Failure(error) = pod.get(json!({"path": "/ok", "httpHeaders": broken})).await else {
        panic!("no value")
    };
    assert!(error.ends_with("/ok\": net/http: invalid header field value for \"X\""), "{error}");
    let unknown = Answer::Unknown("the container has no port named \"no\"".into());
    assert_eq!(pod.get(json!({"port": "no"})).await, unknown);
}

#[tokio::test]
async fn https_probes_take_any_certificate_and_either_http() {
    let pod = Pod::new(server(true).await);
    assert_eq!(pod.get(json!({"path": "/near", "scheme": "HTTPS"})).await, Answer::Success);
    let failure = Answer::Failure("HTTP probe failed with statuscode: 500".into());
    assert_eq!(pod.get(json!({"path": "/bad", "scheme": "HTTPS"})).await, failure);
    let plain = Pod::new(server(false).await);
    let Answer::Failure(error) = plain.get(json!({"path": "/ok", "scheme": "HTTPS"})).await else { panic!("no TLS") };
    assert!(error.ends_with("http: server gave HTTP response to HTTPS client"), "{error}");
}

#[tokio::test]
async fn grpc_probes_ask_the_health_service() {
    let port = server(false).await;
    let pod = Pod::new(port);
    let probe = async |service: &str| pod.probe(json!({"grpc": {"port": port, "service": service}})).await;
    assert_eq!(probe("well").await, Answer::Success);
    let failure = |text: &str| Answer::Failure(text.to_owned());
    assert_eq!(probe("ill").await, failure("service unhealthy (responded with \"NOT_SERVING\")"));
    let unknown = "error: health rpc probe failed: rpc error: code = NotFound desc = no such";
    assert_eq!(probe("unknown").await, failure(unknown));
    assert_eq!(probe("slow").await, failure("timeout: health rpc did not complete within 1s"));
    let Answer::Failure(error) = probe("other").await else { panic!("404 is no answer") };
    assert!(error.contains("unexpected HTTP status code received from server: 404"), "{error}");
    let Answer::Failure(error) = pod.probe(json!({"grpc": {"port": 1}})).await else { panic!("nobody listens") };
    assert!(error.starts_with("error: failed to connect service at \"127.0.0.1:1\": "), "{error}");
}

#[tokio::test]
async fn hooks_take_any_answer_and_fall_back_from_tls() {
    let (plain, secure) = (server(false).await, server(true).await);
    let pod = Pod::new(plain);
    assert_eq!(pod.hook(json!({"port": "web", "path": "/bad"})).await, (Ok(()), false));
    assert_eq!(pod.hook(json!({"port": secure, "scheme": "HTTPS", "path": "/ok"})).await, (Ok(()), false));
    assert_eq!(pod.hook(json!({"port": plain, "scheme": "HTTPS", "path": "/ok"})).await, (Ok(()), true));
    let (failed, fell_back) = pod.hook(json!({"port": 1})).await;
    assert!(failed.is_err() && !fell_back);
}

#[tokio::test]
async fn tcp_probes_connect() {
    let port = server(false).await;
    let pod = Pod::new(port);
    assert_eq!(pod.probe(json!({"tcpSocket": {"port": port}})).await, Answer::Success);
    let refused = pod.probe(json!({"tcpSocket": {"port": 1}})).await;
    assert!(matches!(refused, Answer::Failure(_)), "{refused:?}");
    assert!(matches!(pod.probe(json!({})).await, Answer::Unknown(_)));
}
