//! The shell: connections in, requests through [`Api`], answers out. Over TLS for everybody, or in memory for the
//! parts of this process.
//!
//! A peer that says nothing is cut off in each of its states: it has so long for the handshake, for its first request,
//! between requests, and for a body; one that has gone away is found by pings on HTTP/2. A body is read when its sender
//! may ask for what it asks, into room that all share. (`k8s.io/apiserver/pkg/server/secure_serving.go`.)

mod activity;
mod gate;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body as HttpBody;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kedge_access::User;
use kedge_world::{BoxedListener, BoxedStream};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Incoming, refusal};
use crate::body::{Body, Watched};
use crate::connect;
use crate::error::ApiError;
use crate::panics;
use activity::{Activity, Answer};
pub(crate) use gate::{Gate, Taken};

/// A peer that has not finished the TLS handshake by then is cut off.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A peer that has not asked for anything by then is cut off.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(32);
/// A connection is closed when nothing was asked for so long.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// A peer that was told that its connection ends, and has nothing on the way, has this long to end it.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// How often a peer on HTTP/2 is asked whether it is there, and how long it has to say so: as client-go asks servers.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_MAX: Duration = Duration::from_secs(15);
/// Requests on one connection at once; clients that want more make another connection.
const STREAMS_MAX: u32 = 100;
/// What may come of a body before somebody reads it, on a stream and on all of a connection: nearly every body of its own.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How long answers that are on the way have to end when the server does. Watches are ended at once: they come back.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves the API on `listener` until `stop` resolves, or another listener of the same API was stopped; then ends
/// watches and idle connections, and lets other answers end for up to ten seconds.
pub async fn serve(api: Api, listener: BoxedListener, tls: Arc<rustls::ServerConfig>, stop: impl Future<Output = ()>) {
    let acceptor = TlsAcceptor::from(tls);
    let mut closed = pin!(api.gate().closed());
    let mut stop = pin!(async {
        tokio::select! {
            () = stop => {}
            () = &mut closed => {}
        }
    });
    loop {
        let place = tokio::select! {
            place = api.gate().place() => place,
            () = &mut stop => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                // Out of file descriptors, mostly: going on at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (api, acceptor) = (api.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(&api, acceptor, stream).await {
                tracing::debug!(peer, %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    api.gate().close();
    if timeout(DRAIN_MAX, api.gate().empty()).await.is_err() {
        tracing::warn!("answers that take longer than {} s are broken off", DRAIN_MAX.as_secs());
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(api: &Api, acceptor: TlsAcceptor, stream: BoxedStream) -> Result<(), BoxError> {
    let mut closed = pin!(api.gate().closed());
    let stream = tokio::select! {
        stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)) => stream??,
        () = &mut closed => return Ok(()),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let by_certificate = match certificate {
        Some(certificate) => Some(kedge_access::certificate_user(&certificate)?),
        None => None,
    };
    let by_certificate = by_certificate.map(Arc::new);
    let activity = Activity::new();
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (api, by_certificate, busy) = (api.clone(), by_certificate.clone(), activity.begin());
        async move {
            let response = answer(&api, by_certificate, request).await;
            let ends = response.extensions().get::<Watched>().is_some();
            let end = ends.then(|| Box::pin(api.gate().closed()) as Pin<Box<dyn Future<Output = ()> + Send>>);
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, end, busy)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Counts from the end of the request before; within, it is `Activity` that looks.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_MAX + FIRST_REQUEST_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut connection => return ended,
        () = activity.quiet(FIRST_REQUEST_MAX, IDLE_MAX) => {}
        () = &mut closed => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = &mut connection => ended,
        () = activity.quiet(GOODBYE_MAX, GOODBYE_MAX) => Ok(()),
    }
}

async fn answer<B>(api: &Api, by_certificate: Option<Arc<User>>, request: Request<B>) -> Response<Body>
where
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
    B::Data: Send,
{
    let identified = async { identify(api, by_certificate, request.headers()) };
    match panics::caught("who asks", identified).await.and_then(|user| user) {
        Ok(user) => {
            let (incoming, body) = split(user, request);
            api.handle_reading(incoming, api.gate().read(body)).await
        }
        Err(error) => refusal(&error),
    }
}

/// Who asks: a bearer token, else a client certificate, else nobody in particular; then whom they act for.
fn identify(api: &Api, by_certificate: Option<Arc<User>>, headers: &HeaderMap) -> Result<Arc<User>, ApiError> {
    let authorization = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer =
        authorization.and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let user = match (bearer, by_certificate) {
        (Some((_, token)), _) => {
            let (user, _) = api.guard().authenticate(api, token.trim(), &[]).map_err(|why| {
                tracing::debug!(why, "a bearer token was refused");
                ApiError::unauthorized()
            })?;
            Arc::new(user)
        }
        (None, Some(user)) => user,
        (None, None) => Arc::new(User::anonymous()),
    };
    crate::impersonation::act_as(api, user, headers)
}

/// A request without its body, and the body.
fn split<B>(user: Arc<User>, request: Request<B>) -> (Incoming, B) {
    let (mut parts, body) = request.into_parts();
    let upgrade = connect::is_upgrade(&parts.headers).then(|| parts.extensions.remove::<OnUpgrade>()).flatten();
    let incoming = Incoming {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        method: parts.method,
        headers: parts.headers,
        body: Bytes::new(),
        user,
        upgrade: Mutex::new(upgrade),
    };
    (incoming, body)
}

/// The API as a part of this process sees it: a client's transport without a network, acting as one user.
#[derive(Clone)]
pub struct InProcess {
    api: Api,
    user: Arc<User>,
}

impl InProcess {
    /// A transport on which every request is `user`'s.
    pub fn new(api: Api, user: User) -> Self {
        Self { api, user: Arc::new(user) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move {
            let (incoming, body) = split(user, request);
            let read = async { gate::collect(body).await.map(|bytes| Taken { bytes, room: None }) };
            Ok(api.handle_reading(incoming, read).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kedge_access::{Authority, Names};
    use kedge_world::World;
    use kedge_world::sim::{SimDisk, SimRandom};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::*;

    /// A client's end of a connection to `api`, after the handshake; the other end runs in a task.
    async fn connect(api: &Api) -> TlsStream<DuplexStream> {
        let world = World { disk: Arc::new(SimDisk::new(Arc::new(SimRandom::seeded(1)))), ..World::real() };
        let authority = Authority::open(&world, Path::new("/tls"), &Names(Vec::new())).unwrap();
        let acceptor = TlsAcceptor::from(authority.server_config(Arc::default()).unwrap());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.server_ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        let (near, far) = tokio::io::duplex(1 << 16);
        let api = api.clone();
        tokio::spawn(async move { connection(&api, acceptor, Box::new(far)).await.map_err(|error| error.to_string()) });
        TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost").unwrap(), near).await.unwrap()
    }

    /// How long it takes until the server ends the connection, in seconds.
    async fn until_end(stream: &mut TlsStream<DuplexStream>) -> u64 {
        let begin = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_cut_off() {
        let api = crate::testing::open().await;
        assert_eq!(until_end(&mut connect(&api).await).await, 32, "after the handshake");
        let mut stream = connect(&api).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
        assert_eq!(until_end(&mut stream).await, 32, "within its headers");
        let mut stream = connect(&api).await;
        let post = b"POST /api/v1/namespaces HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{";
        stream.write_all(post).await.unwrap();
        assert_eq!(until_end(&mut stream).await, 60, "within a body");
        let mut stream = connect(&api).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(until_end(&mut stream).await, 90, "between requests");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_ends_watches_and_idle_connections() {
        let api = crate::testing::open().await;
        let mut idle = connect(&api).await;
        let mut watch = connect(&api).await;
        watch.write_all(b"GET /api/v1/namespaces?watch=true HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        watch.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        assert!(timeout(Duration::from_secs(600), until_end(&mut watch)).await.is_err(), "a watch goes on");
        api.gate().close();
        assert!(until_end(&mut watch).await <= 5);
        assert!(until_end(&mut idle).await == 0);
        api.gate().empty().await;
    }
}
