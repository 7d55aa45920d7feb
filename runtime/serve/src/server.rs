//! Connections: TLS, limits, and the end.
//!
//! What must hold: a connection, its headers and a body each have a bound in size or time, and a peer that does not read
//! what it is sent is given up; connections have a bound, and an address has three quarters of it at most; one beyond it is
//! told so at once; after the stop signal what was taken in is answered, what comes then is refused, and at the end of the
//! drain time what is left is told that it ends. While the model is being opened, health and whoever asks are told so. When
//! the engine has ended, health says so and the server ends with an error, so that whoever started it starts it
//! again.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kedge_engine::{Capabilities, Decoder, Encoder};
use kedge_world::{BoxedListener, BoxedStream, Listener};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::ServeError;
use crate::answer::Server;
use crate::api::Refusal;
use crate::auth::{Keys, Peer};
use crate::life::{Flights, Phase};
use crate::placement::Opened;
use crate::socket::Patient;
use crate::telemetry::TelemetryOptions;
use crate::templates::TemplateProgram;
use crate::tls::{FIRST_BYTES, Tls, speaks_http};
use crate::weights::Weights;

/// How long a peer that was told that its connection ends has to end it.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// How often a peer on HTTP/2 is asked whether it is there, and how long it has to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_MAX: Duration = Duration::from_secs(15);
/// Requests on one connection at once.
const STREAMS_MAX: u32 = 128;
/// What is read ahead on a connection of HTTP/1, and with it the most that its headers may have.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;
/// What may come of a body before somebody reads it, on a stream and on all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Peers at once that are told that there are too many, and how long each may take.
pub(crate) const GOODBYES_MAX: usize = 256;
const GOODBYE_LINGERS: Duration = Duration::from_millis(250);
/// Name and limits of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The name clients call the model by.
    pub name: String,
    /// When the model was made, in seconds since 1970: clients see it as `created`.
    pub created: u64,
    /// Keys, one of which a client must show; none to let everybody ask.
    pub keys: Option<Arc<Keys>>,
    /// Certificates; none for plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Where spans of requests are told; none for nowhere.
    pub telemetry: Option<TelemetryOptions>,
    /// Files of the weights, and the folder where packed ones are kept: once somebody writes into one, the server ends.
    pub model_files: Vec<PathBuf>,
    /// What runs the model's chat template.
    pub template_program: TemplateProgram,
    /// Longest request body.
    pub body_bytes_max: usize,
    /// Bytes that requests take at once: as they came, as they are read, and as long answers until their clients took them.
    pub bodies_bytes_max: usize,
    /// Most connections at once, of which one address may have three quarters; further ones are told to come again.
    pub connections_max: usize,
    /// Longest time for a handshake, for the first request, and for a body.
    pub read_timeout: Duration,
    /// A connection on which nothing was asked for so long is closed.
    pub idle_timeout: Duration,
    /// Longest time that a peer may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Longest time for an answer, whatever its client says; none to wait as long as it does.
    pub request_timeout: Option<Duration>,
    /// Longest time for what was taken in to be answered after the stop signal.
    pub drain_timeout: Duration,
}

impl ServeOptions {
    /// The defaults: everybody may ask, over plain HTTP; 2 MiB a body, 256 MiB all of them, 4096 connections; 10 seconds to read, 60 between
    /// requests, 60 to write, 25 to drain; as long as the client waits to answer.
    pub fn new(name: String, created: u64) -> Self {
        let seconds = Duration::from_secs;
        Self {
            name,
            created,
            keys: None,
            tls: None,
            telemetry: None,
            model_files: Vec::new(),
            template_program: TemplateProgram::default(),
            body_bytes_max: 2 << 20,
            bodies_bytes_max: 256 << 20,
            connections_max: 4096,
            read_timeout: seconds(10),
            idle_timeout: seconds(60),
            write_timeout: seconds(60),
            request_timeout: None,
            drain_timeout: seconds(25),
        }
    }
}

/// A model that is served.
#[derive(Clone)]
pub enum Model {
    /// Texts to vectors.
    Encoder(Arc<Encoder>),
    /// Texts to more text.
    Decoder(Arc<Decoder>),
}

impl Model {
    /// What it is on now, and why that is not the device that was wanted, if it is not.
    pub fn on(&self) -> (Capabilities, Option<String>) {
        match self {
            Self::Encoder(encoder) => encoder.on(),
            Self::Decoder(decoder) => decoder.on(),
        }
    }
}

/// Serves a model on the listener until `stop` resolves, then drains.
pub async fn serve(
    options: ServeOptions,
    model: Model,
    listener: BoxedListener,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let opened = Opened { on: model.on().0, no_gpu: None, model };
    serve_once_open(options, std::future::ready(Ok(opened)), listener, futures::stream::once(stop)).await
}

/// Serves a model once it is open, and tells until then that it is being opened. The first of the `signals` ends what is
/// there to end: the opening, or by and by the serving. The second ends that at once.
pub async fn serve_once_open(
    options: ServeOptions,
    opening: impl Future<Output = Result<Opened, ServeError>> + Send,
    listener: BoxedListener,
    signals: impl Stream<Item = ()> + Send,
) -> Result<(), ServeError> {
    let connections = Flights::new();
    let server = Arc::new(Server::new(options));
    let files = server.options.model_files.clone();
    let mut weights = watched(&files);
    let mut signals = pin!(signals.chain(futures::stream::pending()));
    let engine = tokio::select! {
        biased;
        opened = opening => server.open(opened?)?,
        _ = signals.next() => return Ok(()),
        never = accept(&server, &*listener, &connections) => match never {},
    };
    // Another file may have come in the place of one, and be the one that was opened.
    if let Some(weights) = &mut weights {
        weights.watch(&files).unwrap_or_else(|error| unwatched(&error));
    }
    let mut result = tokio::select! {
        never = accept(&server, &*listener, &connections) => match never {},
        _ = signals.next() => Ok(()),
        () = engine.ended() => Err(ServeError::EngineEnded),
        file = changed(weights.as_ref()) => Err(ServeError::Changed(file)),
    };
    // Out of changed weights nobody is answered any more.
    if !matches!(result, Err(ServeError::Changed(_))) {
        // Connections are still taken, so that probes and clients are told, and not left to guess.
        server.life.enter(Phase::Draining);
        tokio::select! {
            never = accept(&server, &*listener, &connections) => match never {},
            drained = timeout(server.options.drain_timeout, server.life.flights.none()) => {
                if drained.is_err() {
                    tracing::warn!("some answers were not whole at the end of the drain time; they are told so");
                }
            }
            _ = signals.next() => tracing::warn!("told to end at once; answers that are not whole are told so"),
            file = changed(weights.as_ref()) => result = Err(ServeError::Changed(file)),
        }
    }
    server.life.enter(Phase::Ending);
    drop(listener);
    if timeout(2 * GOODBYE_MAX, connections.none()).await.is_err() {
        tracing::warn!("some connections would not end; they end with the process");
    }
    if let Some(telemetry) = &server.telemetry {
        let spans = telemetry.flush().await;
        if spans > 0 {
            tracing::warn!(spans, "no collector took the last spans in time; they are lost");
        }
    }
    result
}

/// Those files, watched from now on.
fn watched(files: &[PathBuf]) -> Option<Weights> {
    let watched = || {
        let mut weights = Weights::new()?;
        weights.watch(files)?;
        Ok(weights)
    };
    watched().map_err(|error| unwatched(&error)).ok()
}

fn unwatched(error: &io::Error) {
    tracing::warn!(%error, "weights into which somebody writes while they are served will not be noticed");
}

/// Resolves with a file of the weights that was changed.
async fn changed(weights: Option<&Weights>) -> PathBuf {
    if let Some(weights) = weights {
        match weights.changed().await {
            Ok(file) => return file,
            Err(error) => unwatched(&error),
        }
    }
    std::future::pending().await
}

/// Takes connections.
async fn accept(server: &Arc<Server>, listener: &dyn Listener, connections: &Flights) -> Infallible {
    let goodbyes = Arc::new(Semaphore::new(GOODBYES_MAX));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most often: some are freed as connections end.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = Peer::at(&address);
        let mut place = server.intake.connections.part(peer.name());
        if let Err(refusal) = place.take(1) {
            server.metrics.refused.inc();
            // Over TLS a handshake would cost more than the answer is worth.
            if let Some(goodbye) = goodbyes.clone().try_acquire_owned().ok().filter(|_| server.options.tls.is_none()) {
                let told = goodbye_of(&Refusal { status: 503, ..refusal });
                tokio::spawn(async move {
                    // Whoever does not take it in time sees the connection end.
                    let _ = timeout(GOODBYE_LINGERS, turn_away(stream, &told)).await;
                    drop(goodbye);
                });
            }
            continue;
        }
        let server = server.clone();
        let of_server = connections.begin();
        tokio::spawn(async move {
            if let Err(error) = connection(server, stream, peer).await {
                tracing::debug!(peer = address, %error, "a connection ended early");
            }
            drop((place, of_server));
        });
    }
}

/// A refusal as the whole answer of a connection.
fn goodbye_of(refusal: &Refusal) -> Vec<u8> {
    let (status, again) = match refusal.status {
        503 => ("503 Service Unavailable", "retry-after: 1\r\n"),
        _ => ("400 Bad Request", ""),
    };
    let body = format!("{}\n", refusal.openai());
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{again}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Tells a peer why its connection ends. What it sends is read, since a socket that is closed before that takes the answer
/// back.
async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin, said: &[u8]) -> io::Result<()> {
    stream.write_all(said).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(server: Arc<Server>, stream: BoxedStream, peer: Peer) -> Result<(), BoxError> {
    let stream = Patient::new(stream, server.options.write_timeout);
    let Some(tls) = &server.options.tls else { return talk(server, TokioIo::new(stream), peer).await };
    let handshake = async {
        // Past the first bytes nothing is copied by this.
        let mut stream = BufReader::with_capacity(FIRST_BYTES, stream);
        let first = stream.fill_buf().await?;
        if first.is_empty() {
            // As probes of a port do.
            return Ok(None);
        }
        if speaks_http(first) {
            // Whoever does not take it in time sees the connection end.
            let told = goodbye_of(&Refusal::plain(400, "this port speaks HTTPS"));
            let _ = timeout(GOODBYE_LINGERS, turn_away(stream, &told)).await;
            return Err(io::Error::other("the peer speaks HTTP without TLS"));
        }
        TlsAcceptor::from(tls.current()).accept(stream).await.map(Some)
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it took too long");
    let stream = tokio::select! {
        stream = timeout(server.options.read_timeout, handshake) => stream.unwrap_or_else(|_| Err(late())),
        () = server.life.ending() => return Ok(()),
    };
    let stream = match stream {
        Ok(Some(stream)) => stream,
        Ok(None) => return Ok(()),
        Err(error) => {
            if let Some(failed) = server.handshakes.note(Instant::now()) {
                tracing::info!(peer = peer.name(), %error, failed, "TLS handshakes failed");
            }
            return Ok(());
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.map_or(peer, |certificate| Peer::with_certificate(certificate));
    Box::pin(talk(server, TokioIo::new(stream), peer)).await
}

async fn talk<S>(server: Arc<Server>, stream: S, peer: Peer) -> Result<(), BoxError>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let flights = Flights::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (server, flight) = (server.clone(), flights.begin());
        async move { Ok::<_, Infallible>(server.answer(request, flight).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let ServeOptions { read_timeout, idle_timeout, .. } = server.options;
    // Counts from the end of the request before; within, it is `quiet` that looks.
    let quiet_max = idle_timeout + read_timeout;
    builder.http1().timer(TokioTimer::new()).header_read_timeout(quiet_max).max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let mut connection = pin!(builder.serve_connection(stream, service));
    tokio::select! {
        ended = &mut connection => return ended,
        // A peer on HTTP/2 can leave an answer alone and everything else going, which the socket does not see.
        () = flights.stalled(server.options.write_timeout) => return Err("the peer does not take what it is sent".into()),
        () = flights.quiet(read_timeout, idle_timeout) => {}
        () = server.life.ending() => {}
    }
    connection.as_mut().graceful_shutdown();
    // One that never said anything is neither of the two protocols yet, and has nothing to end.
    timeout(GOODBYE_MAX, connection).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_is_told_in_whole() {
        for (status, line, again) in [(400, "HTTP/1.1 400 Bad Request\r\n", false), (503, "HTTP/1.1 503 Service", true)]
        {
            let told = String::from_utf8(goodbye_of(&Refusal::plain(status, "é"))).unwrap();
            let (head, body) = told.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(line) && head.contains("retry-after: 1\r\n") == again, "{head}");
            assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"]["message"], "é");
        }
    }
}
