//! Requests to answers: which path is what, who may ask, and the engine behind it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming, SizeHint};
use kedge_engine::{Embedding, Encoder};
use kedge_world::World;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ServeError;
use crate::api::{self, Item, Refusal};
use crate::auth;
use crate::batch::{Queue, QueueError};
use crate::completions::Kind;
use crate::life::{self, Flight, Life, Phase};
use crate::metrics::{Labels, Metrics, Status};
use crate::server::{Model, ServeOptions};
use crate::talk::{Piece, Talk};

/// A model with what stands between it and requests.
pub(crate) enum Engine {
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
    pub(crate) async fn ended(&self) {
        match self {
            Self::Encoder { queue, .. } => queue.ended().await,
            Self::Decoder(talk) => talk.ended().await,
        }
    }
}

/// A model, and what answers requests for it.
pub(crate) struct Server {
    pub(crate) options: ServeOptions,
    pub(crate) engine: Engine,
    pub(crate) metrics: Metrics,
    pub(crate) life: Life,
}

/// Most fields that an answer warns of by name.
const WARNINGS_MAX: usize = 16;

/// An error in a body ends its connection: that is how a peer sees that an answer is not whole.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

impl Server {
    pub(crate) fn new(options: ServeOptions, model: Model) -> Result<Self, ServeError> {
        let engine = Engine::start(model, &options.name)?;
        Ok(Self { options, engine, metrics: Metrics::new(), life: Life::new() })
    }

    /// Answers a request; `flight` is over with the last byte of the answer.
    pub(crate) async fn answer(&self, request: Request<Incoming>, flight: Flight) -> Response<Body> {
        let _flights = (flight, self.life.flights.begin());
        let v2 = request.uri().path().starts_with("/v2");
        let response = self.route(request).await.unwrap_or_else(|refusal| refused(&refusal, v2));
        self.metrics.responses.get_or_create(&Status { code: response.status().as_u16().into() }).inc();
        response.map(|body| Counted { body, _flights }.boxed())
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let begin = Instant::now();
        let deadline = life::deadline(request.headers(), begin, self.options.request_timeout)?;
        let mut until = self.life.until(deadline);
        let (name, path) = (&self.options.name, request.uri().path().trim_end_matches('/').to_owned());
        let unknown = || Refusal::plain(404, format!("{path:?} is not served here"));
        let parts: Vec<String> =
            path.split('/').skip(1).map(api::decoded).collect::<Option<_>>().ok_or_else(unknown)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        if let Some(keys) = self.options.keys.as_ref().filter(|_| auth::is_guarded(&parts)) {
            keys.check(request.headers())?;
        }
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
        let computes = wanted == Method::POST;
        let tells_ready = matches!(parts[..], ["health"] | ["v2", "health", "ready"] | ["v2", "models", .., "ready"]);
        if (tells_ready || parts == ["v2", "health", "live"]) && !self.engine.is_served() {
            return Err(Refusal::plain(503, "the inference thread has ended"));
        }
        if (tells_ready || computes) && self.life.phase() > Phase::Serving {
            return Err(Refusal::plain(503, "the server is ending"));
        }
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
                    let work = async {
                        if parts[0] == "v1" { encode.embeddings(&body).await } else { encode.infer(&body).await }
                    };
                    until.bound(work).await?
                }
                Engine::Decoder(talk) => {
                    let talk = talk.clone();
                    let body = self.body(request).await?;
                    let kind = match parts[..] {
                        ["tokenize"] => return Ok(json_reply(&talk.tokenize(&body)?)),
                        ["detokenize"] => return Ok(json_reply(&talk.detokenize(&body)?)),
                        ["v1", "completions"] => Kind::Text,
                        _ => Kind::Chat,
                    };
                    let mut running = until.bound(talk.begin(kind, body, &self.metrics)).await?;
                    let ignored = std::mem::take(&mut running.ignored);
                    let mut response = if running.streams() {
                        events(running.pieces(until, self.options.write_timeout))
                    } else {
                        json_reply(&until.bound(running.whole()).await?)
                    };
                    self.metrics.latency.get_or_create(&self.labels()).observe(begin.elapsed().as_secs_f64());
                    warn(&mut response, &ignored);
                    return Ok(response);
                }
            },
            _ => answer,
        };
        if computes {
            self.metrics.latency.get_or_create(&self.labels()).observe(begin.elapsed().as_secs_f64());
        }
        Ok(json_reply(&answer))
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

/// Pieces as the body of an answer; one that stops before its end is broken off, which the client sees.
fn events(mut pieces: mpsc::Receiver<Piece>) -> Response<Body> {
    let next = move |context: &mut Context<'_>| {
        pieces.poll_recv(context).map(|piece| match piece {
            Some(Piece::Event(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => None,
            None => Some(Err(io::Error::other("the answer was broken off"))),
        })
    };
    let mut response = Response::new(StreamBody::new(futures::stream::poll_fn(next)).boxed());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Adds a warning for each field that was left out of account; a header has no room for more than a few.
fn warn(response: &mut Response<Body>, ignored: &[String]) {
    let is_word =
        |field: &&String| field.len() <= 64 && field.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let named = ignored.iter().filter(is_word).map(String::as_str).take(WARNINGS_MAX);
    let more = (named.clone().count() < ignored.len()).then_some("another field");
    let text = |field: &str| HeaderValue::from_str(&format!("299 kedge \"{field} is ignored\"")).ok();
    for warning in named.chain(more).filter_map(text) {
        response.headers_mut().append(header::WARNING, warning);
    }
}

/// A body, and the requests that are over with it.
struct Counted {
    body: Body,
    _flights: (Flight, Flight),
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A refusal in the shape of its protocol.
fn refused(refusal: &Refusal, v2: bool) -> Response<Body> {
    let body = if v2 { refusal.v2() } else { refusal.openai() };
    let mut response = reply(refusal.status, "application/json", body.to_string());
    let headers = response.headers_mut();
    match refusal.status {
        401 => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        429 | 503 => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
        _ => {}
    }
    response
}

fn json_reply(value: &Value) -> Response<Body> {
    reply(200, "application/json", value.to_string())
}

fn reply(status: u16, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::from_u16(status).expect("the codes above are valid");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
