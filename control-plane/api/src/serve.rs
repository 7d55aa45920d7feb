//! The shell: connections in, requests through [`Api`], answers out. Over TLS for everybody, or in memory for the
//! parts of this process.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kedge_access::User;
use kedge_world::{BoxedListener, BoxedStream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, BODY_BYTES_MAX, Incoming, refusal};
use crate::body::Body;
use crate::connect;
use crate::error::ApiError;

/// A peer that has not finished the TLS handshake by then is cut off.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A peer that has not finished its headers by then is cut off.
const HEADERS_MAX: Duration = Duration::from_secs(30);
/// Connections served at once; the rest wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Watches share a connection: client-go opens hundreds of streams on one.
const STREAMS_MAX: u32 = 1000;

/// Serves the API on `listener` until `stop` resolves; then lets running answers end for a moment.
pub async fn serve(api: Api, listener: BoxedListener, tls: Arc<rustls::ServerConfig>, stop: impl Future<Output = ()>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::pin!(stop);
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return,
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
            if let Err(error) = connection(api, acceptor, stream).await {
                tracing::debug!(peer, %error, "a connection ended early");
            }
            drop(place);
        });
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(api: Api, acceptor: TlsAcceptor, stream: BoxedStream) -> Result<(), BoxError> {
    let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let by_certificate = match certificate {
        Some(certificate) => Some(kedge_access::certificate_user(&certificate)?),
        None => None,
    };
    let by_certificate = by_certificate.map(Arc::new);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (api, by_certificate) = (api.clone(), by_certificate.clone());
        async move { Ok::<_, Infallible>(answer(&api, by_certificate, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
}

async fn answer<B>(api: &Api, by_certificate: Option<Arc<User>>, request: Request<B>) -> Response<Body>
where
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
    B::Data: Send,
{
    let user = match identify(api, by_certificate, request.headers()) {
        Ok(user) => user,
        Err(error) => return refusal(&error),
    };
    forward(api, user, request).await
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

/// Reads the body and hands the request to the API.
async fn forward<B>(api: &Api, user: Arc<User>, request: Request<B>) -> Response<Body>
where
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
    B::Data: Send,
{
    let (mut parts, body) = request.into_parts();
    let upgrade = connect::is_upgrade(&parts.headers).then(|| parts.extensions.remove::<OnUpgrade>()).flatten();
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return refusal(&ApiError::too_large(BODY_BYTES_MAX)),
        Err(error) => return refusal(&ApiError::bad_request(format!("cannot read the body: {error}"))),
    };
    let incoming = Incoming {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        method: parts.method,
        headers: parts.headers,
        body,
        user,
        upgrade: Mutex::new(upgrade),
    };
    api.handle(incoming).await
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
        Box::pin(async move { Ok(forward(&api, user, request).await) })
    }
}
