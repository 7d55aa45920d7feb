//! Requests to answers: who may ask, what is asked, and the answer over HTTP.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use kedge_world::World;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::ServeError;
use crate::api::{self, Refusal};
use crate::completions::Kind;
use crate::engine::Engine;
use crate::intake::{Intake, Part};
use crate::life::{self, Flight, Life, Phase, Until};
use crate::metrics::{self, Figures, Metrics, Status};
use crate::placement::Opened;
use crate::routes::{Route, segments};
use crate::server::ServeOptions;
use crate::talk::{Ask, Asked, Piece, Talk};
use crate::telemetry::{Telemetry, Watch};
use crate::tls::Failures;
use crate::trace::Notes;
use crate::{auth, grpc, v2, weight};

/// A model, and what answers requests for it.
pub(crate) struct Server {
    pub(crate) options: ServeOptions,
    /// Nothing while the model is being opened.
    engine: OnceLock<Engine>,
    pub(crate) intake: Intake,
    pub(crate) metrics: Arc<Metrics>,
    /// Held while somebody is told of it.
    registry: Mutex<Registry>,
    pub(crate) life: Life,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) handshakes: Failures,
}

/// Bytes that are much for a request to take once it is read.
const MUCH_BYTES: usize = 1 << 20;

/// Most fields that an answer warns of by name.
const WARNINGS_MAX: usize = 16;

/// An error in a body ends its connection: that is how a peer sees that an answer is not whole.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Server {
    pub(crate) fn new(options: ServeOptions) -> Self {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry, &options.name));
        let start = |options| Telemetry::start(options, World::real(), metrics.spans_dropped.clone());
        let telemetry = options.telemetry.clone().map(start);
        let intake = Intake::new(options.bodies_bytes_max, options.connections_max);
        Self {
            options,
            engine: OnceLock::new(),
            intake,
            metrics,
            registry: Mutex::new(registry),
            life: Life::new(),
            telemetry,
            handshakes: Failures::default(),
        }
    }

    /// Takes requests for that model from here on.
    pub(crate) fn open(&self, Opened { model, no_gpu, .. }: Opened) -> Result<&Engine, ServeError> {
        let engine = Engine::start(model, &self.options)?;
        let figures = Figures { engine: engine.clone(), model: self.options.name.clone(), no_gpu };
        self.registry.lock().register_collector(Box::new(figures));
        Ok(self.engine.get_or_init(|| engine))
    }

    /// What the model is asked through; refused while it is being opened.
    pub(crate) fn engine(&self) -> Result<&Engine, Refusal> {
        self.engine.get().ok_or_else(|| Refusal::plain(503, "the model is being opened; try again"))
    }

    /// Answers a request; `flight` is over with the last byte of the answer.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>, flight: Flight) -> Response<Body> {
        let of_server = self.life.flights.begin();
        let is_head = request.method() == Method::HEAD;
        let response = if grpc::is_grpc(&request) {
            grpc::answer(self, request).await
        } else {
            let v2 = request.uri().path().starts_with("/v2");
            let response = self.route(request).await.unwrap_or_else(|refusal| refused(&refusal, v2));
            self.count(response.status().as_u16());
            if is_head { without_body(response) } else { response }
        };
        // Until it is asked for the first of it, it is the peer that has no room.
        flight.offers(true);
        let mut response = response;
        let room = response.extensions_mut().remove::<Arc<Part>>();
        response.map(|body| Counted { body, flight, _of_server: of_server, _room: room }.boxed_unsync())
    }

    /// Counts an answer.
    pub(crate) fn count(&self, status: u16) {
        self.metrics.responses.get_or_create(&Status { code: status.into() }).inc();
    }

    /// Whom the server knows the sender of a request to be.
    pub(crate) fn origin(&self, headers: &HeaderMap, extensions: &Extensions) -> String {
        auth::origin(self.options.keys.as_deref(), headers, extensions)
    }

    /// Watches a request that computes; `target` is what was called.
    pub(crate) fn watch(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        operation: &'static str,
        target: &str,
    ) -> Arc<Watch> {
        // Tokens by themselves are neither text nor vectors; milliseconds of theirs would hide what those take.
        let latency = (!["tokenize", "detokenize"].contains(&operation)).then(|| self.metrics.latency.clone());
        let model = self.options.name.clone();
        let notes = Notes { operation, model, target: target.to_owned(), ..Notes::default() };
        let origin = self.origin(headers, extensions);
        Watch::new(self.telemetry.as_ref(), latency, headers, origin, notes)
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        // RFC 9112, 3.2.
        if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
            return Err(Refusal::field("Host", "must be there once"));
        }
        let path = request.uri().path();
        let unknown = || Refusal::plain(404, format!("{path:?} is not served here"));
        let parts = segments(path).ok_or_else(unknown)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let engine = self.engine();
        let is_encoder = engine.as_ref().is_ok_and(|engine| engine.task() != v2::Task::Text);
        let route = Route::of(&parts, &self.options.name, is_encoder);
        let is_open = route.as_ref().is_ok_and(|route| route.is_open());
        if let Some(keys) = self.options.keys.as_ref().filter(|_| !is_open) {
            keys.check(request.headers())?;
        }
        if !is_open {
            engine?;
        }
        let route = route?;
        let wanted = route.method();
        let as_get = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        if *as_get != wanted {
            return Err(Refusal::plain(405, format!("{path:?} takes {wanted}, not {}", request.method())));
        }
        let Some(operation) = route.operation() else { return self.tell(route) };
        let watch = self.watch(request.headers(), request.extensions(), operation, path);
        let work = |_, body, place, until| self.compute(route, body, place, until, &watch);
        let answered = self.admit(request, &watch, work).await;
        watch.note(|notes| notes.status = answered.as_ref().map_or_else(|refusal| refusal.status, |_| 200));
        answered
    }

    /// Has `work` done with a request that computes, whatever its protocol: none is taken in that is not to be, before its
    /// body is read; all of it has to be over by its deadline; and it has a place among those that are open.
    pub(crate) async fn admit<T, Work: Future<Output = Result<T, Refusal>>>(
        &self,
        request: Request<Incoming>,
        watch: &Watch,
        work: impl FnOnce(Parts, Bytes, Part, Until) -> Work,
    ) -> Result<T, Refusal> {
        self.takes_in()?;
        as_it_is(request.headers())?;
        let deadline = life::deadline(request.headers(), watch.begin(), self.options.request_timeout)?;
        let until = self.life.until(deadline);
        let work = async {
            let is_grpc = grpc::is_grpc(&request);
            let (parts, body) = request.into_parts();
            let (body, mut room) = self.body(&parts.headers, body, watch.origin()).await?;
            let weight = if is_grpc { grpc::weight(&body) } else { weight::of_json(&body) };
            let most = self.intake.bodies.of_one();
            if body.len() + weight > most {
                let reason = format!("the body takes {weight} bytes more once it is read; {most} in all are taken");
                return Err(Refusal::plain(413, reason));
            }
            room.take(weight)?;
            let _back = GivesBack::of(weight);
            let mut place = self.intake.open.part(watch.origin());
            place.take(1)?;
            work(parts, body, place, until.clone()).await
        };
        until.clone().bound(work).await
    }

    /// What needs no computing.
    fn tell(&self, route: Route) -> Result<Response<Body>, Refusal> {
        let name = &self.options.name;
        let model = || api::openai_model(name, self.options.created);
        if route.tells_ready() {
            self.takes_in()?;
        }
        Ok(json_reply(&match route {
            Route::Health => json!({}),
            Route::Models => json!({"object": "list", "data": [model()]}),
            Route::Model => model(),
            Route::Server => v2::server(self.task()?),
            Route::Live => json!({"live": self.lives()?}),
            Route::Ready => json!({"ready": true}),
            Route::ModelReady => json!({"name": name, "ready": true}),
            Route::ModelMetadata => v2::model(name, self.task()?),
            Route::Metrics => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                return Ok(reply(200, kind, metrics::text(&self.registry.lock())));
            }
            Route::Embeddings
            | Route::Completions(_)
            | Route::Tokenize
            | Route::Detokenize
            | Route::Infer
            | Route::Generate { .. } => return Err(Refusal::plain(500, "that wants computing")),
        }))
    }

    /// What the model is asked. Whoever asks has the place until the answer is made; `until` ends what comes in pieces.
    async fn compute(
        &self,
        route: Route,
        body: Bytes,
        place: Part,
        until: Until,
        watch: &Arc<Watch>,
    ) -> Result<Response<Body>, Refusal> {
        let (name, engine) = (self.options.name.clone(), self.engine()?);
        let task = engine.task();
        match (route, engine) {
            (Route::Embeddings, Engine::Encoder { encoder, .. }) => {
                let dimensions = encoder.dimensions();
                let request =
                    self.intake.read(watch.origin(), move || api::embeddings(&body, &name, dimensions)).await?;
                let vectors = engine.vectors(request.items, &self.intake, &self.metrics, watch);
                let vectors = vectors.await?;
                let answer = api::embeddings_answer(&self.options.name, &vectors, request.base64);
                let mut response = self.long_reply(answer, watch.origin())?;
                warn(&mut response, &request.ignored);
                Ok(response)
            }
            (Route::Infer, _) => {
                let mut asked = self.intake.read(watch.origin(), move || v2::infer(task, &body)).await?;
                let id = asked.id.take();
                let infer = engine.infer(asked, place, &self.intake, &self.metrics, watch);
                let (output, ignored) = infer.await?;
                let mut given = task.output();
                given.shape[0] = output.count() as i64;
                let answer = v2::answer(&self.options.name, id.as_deref(), &given, &output.data());
                let mut response = self.long_reply(answer, watch.origin())?;
                warn(&mut response, &ignored);
                Ok(response)
            }
            (Route::Completions(kind), Engine::Decoder(talk)) => {
                let ask = Ask { kind, body: Asked::Json(body), asked_as: None, place, watch: watch.clone() };
                self.complete(talk, ask, until).await
            }
            (Route::Generate { streams }, Engine::Decoder(talk)) => {
                let asked = self.intake.read(watch.origin(), move || v2::generate(&body, streams)).await?;
                let fields = Asked::Fields(asked.completion(&name));
                let ask = Ask { kind: Kind::Generate, body: fields, asked_as: asked.id, place, watch: watch.clone() };
                self.complete(talk, ask, until).await.map_err(|refusal| v2::refusal(refusal, "text_input"))
            }
            (Route::Tokenize | Route::Detokenize, Engine::Decoder(talk)) => {
                let talk = talk.clone();
                let work = move || if route == Route::Tokenize { talk.tokenize(&body) } else { talk.detokenize(&body) };
                let (answer, ignored) = self.intake.read(watch.origin(), work).await?;
                let mut response = json_reply(&answer);
                warn(&mut response, &ignored);
                Ok(response)
            }
            _ => Err(Refusal::plain(404, "this model cannot be asked that")),
        }
    }

    /// The room of an answer that may be long. Who finds it among the extensions of a response keeps it until the client has
    /// taken all of that.
    pub(crate) fn room_of_answer(&self, bytes: usize, origin: &str) -> Result<Arc<Part>, Refusal> {
        let most = self.intake.bodies.of_one();
        if bytes > most {
            // To come again would not help.
            let reason =
                format!("the answer takes {bytes} bytes, and {most} are held here: ask for fewer vectors at once");
            return Err(Refusal::plain(413, reason));
        }
        let mut room = self.intake.bodies.part(origin);
        room.take(bytes)?;
        Ok(Arc::new(room))
    }

    /// JSON that may be long.
    fn long_reply(&self, answer: String, origin: &str) -> Result<Response<Body>, Refusal> {
        let room = self.room_of_answer(answer.len(), origin)?;
        let mut response = reply(200, "application/json", answer);
        response.extensions_mut().insert(room);
        Ok(response)
    }

    /// Text, whole or in pieces.
    async fn complete(&self, talk: &Arc<Talk>, ask: Ask, until: Until) -> Result<Response<Body>, Refusal> {
        let mut running = talk.begin(ask, &self.intake, &self.metrics).await?;
        let ignored = std::mem::take(&mut running.ignored);
        let mut response = if running.streams() {
            events(running.pieces(until, self.options.write_timeout))
        } else {
            json_reply(&running.whole().await?)
        };
        warn(&mut response, &ignored);
        Ok(response)
    }

    /// Whether somebody computes, or will; refused when nobody does any more.
    pub(crate) fn lives(&self) -> Result<bool, Refusal> {
        let ended = || Refusal::plain(503, "the inference thread has ended");
        self.engine.get().is_none_or(Engine::is_served).then_some(true).ok_or_else(ended)
    }

    /// Refused when no requests are taken in.
    pub(crate) fn takes_in(&self) -> Result<(), Refusal> {
        self.lives()?;
        self.engine()?;
        if self.life.phase() > Phase::Serving { Err(Refusal::plain(503, "the server is ending")) } else { Ok(()) }
    }

    pub(crate) fn task(&self) -> Result<v2::Task, Refusal> {
        Ok(self.engine()?.task())
    }

    /// The whole body, within its bounds, and the room that it takes as it comes: who says to send much and does not has
    /// none.
    pub(crate) async fn body(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
        origin: &str,
    ) -> Result<(Bytes, Part), Refusal> {
        let max = self.options.body_bytes_max;
        let long = || Refusal::plain(413, format!("the body is longer than {max} bytes"));
        // Whoever asks before it sends is told so now; others would lose the answer to what they still send.
        if headers.contains_key(header::EXPECT) && body.size_hint().lower() > max as u64 {
            return Err(long());
        }
        let (mut bytes, mut room) = (Vec::new(), self.intake.bodies.part(origin));
        let read = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Refusal::plain(400, format!("reading the body: {error}")))?;
                // Trailers ask for nothing.
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > max {
                    return Err(long());
                }
                room.take(data.len())?;
                bytes.extend_from_slice(&data);
            }
            Ok(())
        };
        let read = tokio::time::timeout(self.options.read_timeout, read).await;
        read.unwrap_or_else(|_| Err(Refusal::plain(408, "the body did not arrive in time")))?;
        Ok((bytes.into(), room))
    }
}

/// Gives memory back to the system once a request that took much of it is done: the library that lends it out would keep
/// it, for each thread that ever read one.
struct GivesBack;

impl GivesBack {
    fn of(weight: usize) -> Option<Self> {
        (weight >= MUCH_BYTES).then_some(Self)
    }
}

impl Drop for GivesBack {
    fn drop(&mut self) {
        // It looks through all that is lent out, which others on this thread would wait for. A server that ends needs none.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(kedge_engine::trim));
        }
    }
}

/// Refuses a body that has to be unpacked before it can be read.
fn as_it_is(headers: &HeaderMap) -> Result<(), Refusal> {
    let packed = |value: &&HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if let Some(value) = headers.get_all(header::TRANSFER_ENCODING).iter().find(packed) {
        let refusal = Refusal::field("Transfer-Encoding", format!("{value:?} is not supported; chunked is"));
        return Err(Refusal { status: 501, ..refusal });
    }
    let packed = |value: &&HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    let Some(value) = headers.get_all(header::CONTENT_ENCODING).iter().find(packed) else { return Ok(()) };
    let refusal = Refusal::field("Content-Encoding", format!("{value:?} is not supported; send the body as it is"));
    Err(Refusal { status: 415, ..refusal })
}

/// What is answered to HEAD: over HTTP/2 nobody else leaves the body out.
fn without_body(response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Full::default().map_err(|never| match never {}).boxed_unsync());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
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
    let mut response = Response::new(StreamBody::new(futures::stream::poll_fn(next)).boxed_unsync());
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

/// A body, and the request that is over with it: on its connection, and in the server.
struct Counted {
    body: Body,
    flight: Flight,
    _of_server: Flight,
    /// What it takes, where it is long.
    _room: Option<Arc<Part>>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(context);
        // Whoever asks for more has room for it; then it is the peer's turn until it is asked again.
        self.flight.offers(matches!(poll, Poll::Ready(Some(_))));
        poll
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
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).expect("the codes above are valid");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
