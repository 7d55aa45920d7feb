//! The HTTP shell: connections, routes, limits and draining.
//!
//! What must hold: a connection, its headers and a body each have a bound in size or time; after the stop signal no
//! connection is accepted, and those open finish the request they are in; one that does not in time is left behind, to
//! end with the process. When the engine has ended, health says so and the server ends with an error, so that whoever
//! started it starts it again.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use kedge_engine::{Decoder, Embedding, Encoder};
use kedge_world::{BoxedListener, World};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ServeError;
use crate::api::{self, Item, Refusal};
use crate::batch::{Queue, QueueError};
use crate::completions::Kind;
use crate::metrics::{Labels, Metrics, Status};
use crate::talk::{Answer, Talk};

/// Name and limits of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The name clients call the model by.
    pub name: String,
    /// When the model was made, in seconds since 1970: clients see it as `created`.
    pub created: u64,
    /// Longest request body.
    pub body_bytes_max: usize,
    /// Most connections at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Longest time for the headers, and again for the body.
    pub read_timeout: Duration,
    /// Longest time for open connections to finish after the stop signal.
    pub drain_timeout: Duration,
}

impl ServeOptions {
    /// The defaults: 2 MiB, 512 connections, 10 and 30 seconds.
    pub fn new(name: String, created: u64) -> Self {
        let seconds = Duration::from_secs;
        Self {
            name,
            created,
            body_bytes_max: 2 << 20,
            connections_max: 512,
            read_timeout: seconds(10),
            drain_timeout: seconds(30),
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

/// A model with what stands between it and requests.
enum Engine {
    Encoder { encoder: Arc<Encoder>, queue: Queue },
    Decoder(Arc<Talk>),
}

impl Engine {
    fn start(model: Model, name: &str) -> Result<Self, ServeError> {
        Ok(match model {
            Model::Encoder(encoder) => {
                let computing = encoder.clone();
                let queue = Queue::start(move |inputs| computing.encode_tokens(inputs))?;
                Self::Encoder { encoder, queue }
            }
            Model::Decoder(decoder) => Self::Decoder(Arc::new(Talk::new(decoder, name.to_owned(), World::real()))),
        })
    }

    /// Whether somebody computes.
    fn is_served(&self) -> bool {
        match self {
            Self::Encoder { queue, .. } => queue.is_served(),
            Self::Decoder(talk) => talk.decoder.is_served(),
        }
    }

    /// Resolves when nobody computes any more.
    async fn ended(&self) {
        match self {
            Self::Encoder { queue, .. } => queue.ended().await,
            Self::Decoder(talk) => talk.ended().await,
        }
    }
}

struct Server {
    options: ServeOptions,
    engine: Engine,
    metrics: Metrics,
}

type Body = BoxBody<Bytes, Infallible>;

/// Serves the model on the listener until `stop` resolves, then drains.
pub async fn serve(
    options: ServeOptions,
    model: Model,
    listener: BoxedListener,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let engine = Engine::start(model, &options.name)?;
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let server = Arc::new(Server { options, engine, metrics: Metrics::new() });
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(server.options.read_timeout);
    tokio::pin!(stop);
    let ended = server.engine.ended();
    tokio::pin!(ended);
    let result = loop {
        let accept = async {
            let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break Ok(()),
            () = &mut ended => break Err(ServeError::EngineEnded),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most often: some are freed as connections end.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let handler = server.clone();
        let service = service_fn(move |request| {
            let server = handler.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
            drop(permit);
        });
    };
    drop(listener);
    if tokio::time::timeout(server.options.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still busy at the end of the drain time");
    }
    result
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let v2 = request.uri().path().starts_with("/v2");
        let response = match self.route(request).await {
            Ok(response) => response,
            Err(refusal) => {
                let body = if v2 { refusal.v2() } else { refusal.openai() };
                let mut response = reply(refusal.status, "application/json", body.to_string());
                if refusal.status == 429 {
                    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
                }
                response
            }
        };
        self.metrics.responses.get_or_create(&Status { code: response.status().as_u16().into() }).inc();
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let begin = Instant::now();
        let (name, path) = (&self.options.name, request.uri().path().trim_end_matches('/').to_owned());
        let unknown = || Refusal::plain(404, format!("{path:?} is not served here"));
        let parts: Vec<String> =
            path.split('/').skip(1).map(api::decoded).collect::<Option<_>>().ok_or_else(unknown)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let model = || api::openai_model(name, self.options.created);
        let (wanted, answer) = match parts[..] {
            ["health"] => (Method::GET, json!({})),
            ["metrics"] => (Method::GET, Value::Null),
            ["v1", "models"] => (Method::GET, json!({"object": "list", "data": [model()]})),
            // Names may have slashes.
            ["v1", "models", ref asked @ ..] if asked.join("/") == *name => (Method::GET, model()),
            ["v1", "models", ref asked @ ..] => return Err(api::unknown_model(&asked.join("/"), name)),
            ["v1", "embeddings"] if self.is_encoder() => (Method::POST, Value::Null),
            ["v1", "completions"] | ["v1", "chat", "completions"] | ["tokenize"] | ["detokenize"]
                if !self.is_encoder() =>
            {
                (Method::POST, Value::Null)
            }
            ["v2"] => (Method::GET, json!({"name": "kedge", "version": env!("CARGO_PKG_VERSION"), "extensions": []})),
            ["v2", "health", "live"] => (Method::GET, json!({"live": true})),
            ["v2", "health", "ready"] => (Method::GET, json!({"ready": true})),
            ["v2", "models", ref rest @ ..] => self.v2_model(rest).ok_or_else(unknown)??,
            _ => return Err(unknown()),
        };
        if request.method() != wanted {
            return Err(Refusal::plain(405, format!("{path:?} takes {wanted}, not {}", request.method())));
        }
        let tells_health = matches!(parts[..], ["health"] | ["v2", "health", _] | ["v2", "models", .., "ready"]);
        if tells_health && !self.engine.is_served() {
            return Err(Refusal::plain(503, "the inference thread has ended"));
        }
        let computes = wanted == Method::POST;
        let answer = match parts[0] {
            "metrics" => {
                return Ok(reply(
                    200,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    self.metrics_text(),
                ));
            }
            "v1" | "v2" | "tokenize" | "detokenize" if computes => match &self.engine {
                Engine::Encoder { encoder, queue } => {
                    let body = self.body(request).await?;
                    let encode = Encode { server: self, encoder, queue };
                    if parts[0] == "v1" { encode.embeddings(&body).await? } else { encode.infer(&body).await? }
                }
                Engine::Decoder(talk) => {
                    let talk = talk.clone();
                    let body = self.body(request).await?;
                    let kind = match parts[..] {
                        ["tokenize"] => return Ok(reply(200, "application/json", talk.tokenize(&body)?.to_string())),
                        ["detokenize"] => {
                            return Ok(reply(200, "application/json", talk.detokenize(&body)?.to_string()));
                        }
                        ["v1", "completions"] => Kind::Text,
                        _ => Kind::Chat,
                    };
                    let (answer, ignored) = talk.complete(kind, body, &self.metrics).await?;
                    self.metrics.latency.get_or_create(&self.labels()).observe(begin.elapsed().as_secs_f64());
                    return Ok(completion(answer, &ignored));
                }
            },
            _ => answer,
        };
        if computes {
            self.metrics.latency.get_or_create(&self.labels()).observe(begin.elapsed().as_secs_f64());
        }
        Ok(reply(200, "application/json", answer.to_string()))
    }

    /// What lies below `/v2/models`: the model, and its one version. None for what is no resource.
    fn v2_model(&self, below: &[&str]) -> Option<Result<(Method, Value), Refusal>> {
        let name = &self.options.name;
        let own = below.iter().scan(String::new(), |joined, part| {
            if !joined.is_empty() {
                joined.push('/');
            }
            joined.push_str(part);
            Some(joined == name)
        });
        let Some(length) = own.into_iter().position(|whole| whole) else {
            let asked = below.first()?;
            return Some(Err(Refusal::plain(404, format!("model {asked:?} is not served here; {name:?} is"))));
        };
        let verb = match &below[length + 1..] {
            ["versions", version, ..] if *version != api::VERSION => {
                let reason =
                    format!("model {name:?} has no version {version:?}; its one version is {:?}", api::VERSION);
                return Some(Err(Refusal::plain(404, reason)));
            }
            ["versions", _, rest @ ..] => rest,
            rest => rest,
        };
        match verb {
            ["ready"] => Some(Ok((Method::GET, json!({"name": name, "ready": true})))),
            [] | ["infer"] if !self.is_encoder() => {
                let reason = "a model that makes text is asked at /v1/chat/completions and /v1/completions";
                Some(Err(Refusal::plain(404, reason)))
            }
            [] => Some(Ok((Method::GET, api::v2_model(name, self.dimensions())))),
            ["infer"] => Some(Ok((Method::POST, Value::Null))),
            _ => None,
        }
    }

    fn labels(&self) -> Labels {
        Labels { model_name: self.options.name.clone() }
    }

    fn is_encoder(&self) -> bool {
        matches!(self.engine, Engine::Encoder { .. })
    }

    fn dimensions(&self) -> usize {
        match &self.engine {
            Engine::Encoder { encoder, .. } => encoder.dimensions(),
            Engine::Decoder(_) => 0,
        }
    }

    fn metrics_text(&self) -> String {
        let (m, labels) = (&self.metrics, self.labels());
        match &self.engine {
            Engine::Encoder { queue, .. } => {
                m.waiting.get_or_create(&labels).set(queue.waiting() as i64);
            }
            Engine::Decoder(talk) => {
                let figures = talk.decoder.figures();
                let now = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
                m.waiting.get_or_create(&labels).set(now(&figures.waiting) as i64);
                m.running.get_or_create(&labels).set(now(&figures.running) as i64);
                let (kept, free) = (now(&figures.tokens_kept) as f64, now(&figures.tokens_free) as f64);
                m.cache_used.get_or_create(&labels).set(1.0 - free / kept);
                for (family, figure) in [
                    (&m.prompt_tokens, &figures.prompt_tokens),
                    (&m.made_tokens, &figures.made_tokens),
                    (&m.cached_tokens, &figures.cached_tokens),
                ] {
                    let counter = family.get_or_create(&labels);
                    counter.inc_by(now(figure).saturating_sub(counter.get()));
                }
            }
        }
        m.text()
    }

    async fn body(&self, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let max = self.options.body_bytes_max;
        let read =
            tokio::time::timeout(self.options.read_timeout, Limited::new(request.into_body(), max).collect()).await;
        match read {
            Err(_) => Err(Refusal::plain(408, "the body did not arrive in time")),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(Refusal::plain(413, format!("the body is longer than {max} bytes")))
            }
            Ok(Err(error)) => Err(Refusal::plain(400, format!("reading the body: {error}"))),
            Ok(Ok(body)) => Ok(body.to_bytes()),
        }
    }
}

/// Vectors for requests.
struct Encode<'a> {
    server: &'a Server,
    encoder: &'a Arc<Encoder>,
    queue: &'a Queue,
}

impl Encode<'_> {
    async fn embeddings(&self, body: &[u8]) -> Result<Value, Refusal> {
        let request = api::embeddings(body, &self.server.options.name, self.encoder.dimensions())?;
        let vectors = self.vectors(request.items).await?;
        Ok(api::embeddings_answer(&self.server.options.name, &vectors, request.base64))
    }

    async fn infer(&self, body: &[u8]) -> Result<Value, Refusal> {
        let (id, items) = api::infer(body)?;
        Ok(api::infer_answer(&self.server.options.name, id, &self.vectors(items).await?))
    }

    async fn vectors(&self, items: Vec<Item>) -> Result<Vec<Embedding>, Refusal> {
        let encoder = self.encoder.clone();
        let tokenized = tokio::task::spawn_blocking(move || api::tokens(&encoder, &items)).await;
        let tokens = tokenized.map_err(|error| Refusal::plain(500, format!("tokenizing: {error}")))??;
        let vectors = self.queue.embed(tokens).await.map_err(|error| match error {
            QueueError::Full => Refusal::plain(429, "as many requests wait as may; try again"),
            QueueError::Failed(reason) => Refusal::plain(500, reason),
        })?;
        let tokens: usize = vectors.iter().map(|embedding| embedding.tokens).sum();
        self.server.metrics.prompt_tokens.get_or_create(&self.server.labels()).inc_by(tokens as u64);
        Ok(vectors)
    }
}

/// An answer with a warning for each field that was left out of account.
fn completion(answer: Answer, ignored: &[String]) -> Response<Body> {
    let mut response = match answer {
        Answer::Whole(value) => reply(200, "application/json", value.to_string()),
        Answer::Pieces(mut pieces) => {
            let next = move |context: &mut std::task::Context<'_>| {
                pieces.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
            };
            let mut response = Response::new(StreamBody::new(futures::stream::poll_fn(next)).boxed());
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
            headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
            response
        }
    };
    let named = |field: &String| header::HeaderValue::from_str(&format!("299 kedge \"{field} is ignored\"")).ok();
    for warning in ignored.iter().filter_map(named) {
        response.headers_mut().append(header::WARNING, warning);
    }
    response
}

fn reply(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
    *response.status_mut() = StatusCode::from_u16(status).expect("the codes above are valid");
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
