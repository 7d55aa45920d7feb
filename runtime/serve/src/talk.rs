//! Completions: from a request over the decoder to an answer, whole or in pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kedge_engine::generate::{Choice, End, Event, TextStream};
use kedge_engine::{Decoder, EngineError};
use kedge_world::World;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::api::{Body, Refusal, object};
use crate::completions::{self, Completion, Frame, Kind, Stops, Usage, Whole, logprobs, reason};
use crate::intake::{Intake, Part as Place};
use crate::life::Until;
use crate::metrics::{Answered, Ended, Metrics, Times};
use crate::server::ServeOptions;
use crate::telemetry::Watch;
use crate::templates::Templates;

/// Pieces of an answer that wait for a client to take them.
const PIECES_MAX: usize = 64;

/// What answers completions.
pub(crate) struct Talk {
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) name: String,
    /// None where the model has no template.
    pub(crate) templates: Option<Templates>,
    world: World,
    count: AtomicU64,
}

/// A request for text.
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) body: Asked,
    /// What the client calls it.
    pub(crate) asked_as: Option<String>,
    /// Among the open ones, for one answer.
    pub(crate) place: Place,
    pub(crate) watch: Arc<Watch>,
}

/// What is asked, in the fields of OpenAI's completions.
#[derive(Debug)]
pub(crate) enum Asked {
    Json(Bytes),
    Fields(Map<String, Value>),
}

/// Of an answer that comes in pieces.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A server-sent event.
    Event(Bytes),
    /// Nothing comes after this. Where it is missing, the answer is not whole.
    End,
}

/// What happened to one of the answers of a request, and when.
struct News {
    index: usize,
    at: Instant,
    event: Event,
}

/// An answer that has begun.
pub(crate) struct Running {
    maker: Maker,
    events: mpsc::UnboundedReceiver<News>,
    first: Option<News>,
    /// Fields of the request that were left out of account.
    pub(crate) ignored: Vec<String>,
}

/// One of the answers of a request, while it comes.
struct Part {
    id: u64,
    /// The number of its prompt.
    prompt: usize,
    stream: TextStream,
    stops: Stops,
    text: String,
    choices: Vec<Choice>,
    /// How many of the choices have been told.
    told: usize,
    tokens: usize,
    times: Times,
    finish: Option<&'static str>,
}

impl Talk {
    pub(crate) fn new(decoder: Arc<Decoder>, options: &ServeOptions, world: World) -> Self {
        let templates = decoder.template().map(|one| Templates::new(one, options.template_program.clone()));
        Self { decoder, name: options.name.clone(), templates, world, count: AtomicU64::new(0) }
    }

    /// Resolves when nobody computes any more.
    pub(crate) async fn ended(&self) {
        let (sender, ended) = oneshot::channel::<()>();
        self.decoder.when_ended(move || drop(sender));
        // An error is the sender's end, which is what is waited for.
        let _ = ended.await;
    }

    /// Takes a request in and waits for the first of its answer: until then a failure has a status of its own.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        ask: Ask,
        intake: &Intake,
        metrics: &Arc<Metrics>,
    ) -> Result<Running, Refusal> {
        let Ask { kind, body, asked_as, mut place, watch } = ask;
        let this = self.clone();
        let seed = self.world.random.number();
        // Templates and tokenizers take their time.
        let parsed = intake.read(watch.origin(), move || {
            let body = match body {
                Asked::Json(bytes) => object(&bytes)?,
                Asked::Fields(fields) => fields,
            };
            completions::parse(kind, body, &this, seed)
        });
        let mut completion = parsed.await?;
        place.take(completion.requests.len() - 1)?;
        let place = Arc::new(place);
        let tokens_max = completion.requests.first().map(|(_, request)| request.tokens_max);
        watch.note(|notes| {
            notes.input_tokens = Some(completion.prompts.iter().sum());
            notes.tokens_max = tokens_max;
        });
        let ignored = std::mem::take(&mut completion.ignored);
        let requests = std::mem::take(&mut completion.requests);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let frame = Frame {
            kind,
            id: format!("{prefix}-{:016x}{number:04x}", self.world.random.number()),
            created: self.world.clock.wall().as_second(),
            model: self.name.clone(),
            asked_as,
        };
        let cached = vec![None; completion.prompts.len()];
        let mut maker =
            Maker { talk: self.clone(), completion, frame, parts: Vec::new(), cached, metrics: metrics.clone(), watch };
        // The decoder's thread must not wait for a client. As many events come as the answers may have tokens.
        let (sender, events) = mpsc::unbounded_channel::<News>();
        for (index, (prompt, mut request)) in requests.into_iter().enumerate() {
            maker.watch.origin().clone_into(&mut request.client.origin);
            let (sender, place) = (sender.clone(), place.clone());
            // The decoder lets go of the place, and that is when it has forgotten the last of the request.
            let (between, mut last) = (metrics.between_tokens.clone(), None);
            let listener = Box::new(move |event| {
                let (_place, at) = (&place, Instant::now());
                if matches!(event, Event::Token(_)) {
                    let before: Option<Instant> = last.replace(at);
                    before.into_iter().for_each(|before| between.observe((at - before).as_secs_f64()));
                }
                sender.send(News { index, at, event }).is_ok()
            });
            let asked = Instant::now();
            let id = self.decoder.submit(request, listener);
            let refused = |error: EngineError| {
                let status = if matches!(error, EngineError::Ended) { 503 } else { 400 };
                Refusal::plain(status, error.to_string())
            };
            maker.parts.push(Part::new(id.map_err(refused)?, prompt, asked));
        }
        drop(sender);
        let mut running = Running { maker, events, first: None, ignored };
        let first = loop {
            match running.next().await? {
                News { index, at, event: Event::Begin { cached_tokens } } => {
                    running.maker.begins(index, at, cached_tokens);
                }
                failed @ News { event: Event::End(End::Failed(_)), .. } => drop(running.maker.take(failed)?),
                first => break first,
            }
        };
        let waited = running.maker.watch.begin().elapsed();
        metrics.first_token.observe(waited.as_secs_f64());
        running.maker.watch.note(|notes| notes.first_token = Some(waited));
        running.first = Some(first);
        Ok(running)
    }

    /// `POST /tokenize`, as vLLM has it: the answer, and the fields that were left out of account.
    pub(crate) fn tokenize(&self, body: &[u8]) -> Result<(Value, Vec<String>), Refusal> {
        let mut body = Body::read(body)?;
        body.model(&self.name)?;
        let special = body.whether("add_special_tokens")?;
        let tokens = match body.text("prompt")? {
            Some(text) => completions::encode(&self.decoder, "prompt", &text, special.unwrap_or(true))?,
            None if special == Some(true) => {
                let reason = "must not be true beside messages: the template writes those tokens";
                return Err(Refusal::field("add_special_tokens", reason));
            }
            None => completions::talk(&mut body, self)?,
        };
        body.refuse("messages", |_| false)?;
        body.refuse("return_token_strs", |value| *value == false)?;
        completions::unsupported(&mut body)?;
        let answer = json!({"count": tokens.len(), "max_model_len": self.decoder.config().context, "tokens": tokens});
        Ok((answer, body.rest()))
    }

    /// `POST /detokenize`, as vLLM has it, likewise.
    pub(crate) fn detokenize(&self, body: &[u8]) -> Result<(Value, Vec<String>), Refusal> {
        let mut body = Body::read(body)?;
        body.model(&self.name)?;
        let ids = body.ids("tokens", self.decoder.config().vocabulary)?;
        let ids = ids.ok_or_else(|| Refusal::field("tokens", "is missing"))?;
        let text = self.decoder.tokenizer().decode(&ids);
        let text = text.map_err(|error| Refusal::field("tokens", error.to_string()))?;
        Ok((json!({"prompt": text}), body.rest()))
    }
}

impl Part {
    fn new(id: u64, prompt: usize, asked: Instant) -> Self {
        Self {
            id,
            prompt,
            stream: TextStream::default(),
            stops: Stops::default(),
            text: String::new(),
            choices: Vec::new(),
            told: 0,
            tokens: 0,
            times: Times::new(asked),
            finish: None,
        }
    }
}

impl Running {
    /// Whether the client wants pieces.
    pub(crate) fn streams(&self) -> bool {
        self.maker.completion.stream
    }

    async fn next(&mut self) -> Result<News, Refusal> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => self.events.recv().await.ok_or_else(|| Refusal::plain(500, "the decoder's thread has ended")),
        }
    }

    /// The whole answer.
    pub(crate) async fn whole(mut self) -> Result<Value, Refusal> {
        let choices = self.choices().await?;
        Ok(self.maker.frame.whole(choices, self.maker.counts()))
    }

    /// The texts of the whole answer.
    pub(crate) async fn texts(mut self) -> Result<Vec<String>, Refusal> {
        Ok(self.choices().await?.into_iter().map(|(text, ..)| text).collect())
    }

    async fn choices(&mut self) -> Result<Vec<Whole>, Refusal> {
        while !self.maker.is_whole() {
            let event = self.next().await?;
            self.maker.take(event)?;
        }
        Ok(self.maker.choices())
    }

    /// The answer in pieces, as they come. A client that takes none for as long as `patience` is given up.
    pub(crate) fn pieces(mut self, mut until: Until, patience: Duration) -> mpsc::Receiver<Piece> {
        let (pieces, taken) = mpsc::channel(PIECES_MAX);
        tokio::spawn(async move {
            // An error says that nobody takes them; there is nobody to tell.
            let _ = self.tell(&Teller { pieces, patience }, &mut until).await;
        });
        taken
    }

    async fn tell(&mut self, teller: &Teller, until: &mut Until) -> Result<(), Gone> {
        for role in self.maker.roles() {
            teller.say(&role).await?;
        }
        while !self.maker.is_whole() {
            let event = tokio::select! {
                event = until.bound(self.next()) => event,
                () = teller.pieces.closed() => return Err(Gone),
            };
            match event.and_then(|event| self.maker.take(event)) {
                Ok(Some(piece)) => teller.say(&piece).await?,
                Ok(None) => {}
                Err(refusal) => {
                    self.maker.watch.note(|notes| notes.failed = Some(refusal.to_string()));
                    // The status is gone; the error comes as an event, as vLLM does.
                    teller.say(&self.maker.frame.error(&refusal)).await?;
                    return teller.send(Piece::End).await;
                }
            }
        }
        if let Some(usage) = self.maker.usage() {
            teller.say(&usage).await?;
        }
        if let Some(done) = self.maker.frame.done() {
            teller.send(Piece::Event(Bytes::from_static(done))).await?;
        }
        teller.send(Piece::End).await
    }
}

/// Nobody takes the pieces any more.
struct Gone;

/// Where pieces go.
struct Teller {
    pieces: mpsc::Sender<Piece>,
    patience: Duration,
}

impl Teller {
    async fn say(&self, value: &Value) -> Result<(), Gone> {
        self.send(Piece::Event(Bytes::from(format!("data: {value}\n\n")))).await
    }

    async fn send(&self, piece: Piece) -> Result<(), Gone> {
        match tokio::time::timeout(self.patience, self.pieces.send(piece)).await {
            Ok(sent) => sent.map_err(|_| Gone),
            Err(_) => Err(Gone),
        }
    }
}

/// Puts an answer together from events. Whatever it waits for is let go of with it.
struct Maker {
    talk: Arc<Talk>,
    completion: Completion,
    frame: Frame,
    parts: Vec<Part>,
    /// Of each prompt, how many tokens were known to whichever of its answers was admitted first.
    cached: Vec<Option<usize>>,
    metrics: Arc<Metrics>,
    watch: Arc<Watch>,
}

impl Maker {
    fn is_whole(&self) -> bool {
        self.parts.iter().all(|part| part.finish.is_some())
    }

    /// An answer was admitted.
    fn begins(&mut self, index: usize, at: Instant, cached_tokens: usize) {
        self.parts[index].times.admitted = Some(at);
        let prompt = self.parts[index].prompt;
        if self.cached[prompt].is_none() {
            self.cached[prompt] = Some(cached_tokens);
            self.metrics.prompt_tokens.inc_by(self.completion.prompts[prompt] as u64);
        }
    }

    /// One event: what a stream is told of it.
    fn take(&mut self, News { index, at, event }: News) -> Result<Option<Value>, Refusal> {
        let tokenizer = self.talk.decoder.tokenizer();
        let failed = |error: kedge_engine::EngineError| Refusal::plain(500, error.to_string());
        let part = &mut self.parts[index];
        if part.finish.is_some() {
            return Ok(None);
        }
        let within = |tokens: usize| if tokens > self.completion.tokens_min { &self.completion.stops[..] } else { &[] };
        let text = match event {
            Event::Begin { cached_tokens } => {
                self.begins(index, at, cached_tokens);
                return Ok(None);
            }
            Event::Token(choice) => {
                part.tokens += 1;
                part.times.first.get_or_insert(at);
                part.times.last = Some(at);
                let text = part.stream.push(tokenizer, choice.token).map_err(failed)?;
                part.choices.push(choice);
                let (text, ended) = part.stops.push(within(part.tokens), &text);
                if ended {
                    part.finish = Some("stop");
                    self.talk.decoder.cancel(part.id);
                }
                text
            }
            Event::End(End::Failed(why)) => {
                part.finish = Some("error");
                return Err(Refusal::plain(500, why));
            }
            Event::End(end) => {
                let rest = part.stream.finish(tokenizer).map_err(failed)?;
                let (mut text, ended) = part.stops.push(within(part.tokens), &rest);
                if !ended {
                    text += &part.stops.finish();
                }
                part.finish = Some(if ended { "stop" } else { reason(&end) });
                text
            }
        };
        part.text += &text;
        if !self.completion.stream || (text.is_empty() && part.finish.is_none()) {
            return Ok(None);
        }
        let news = Some(&part.choices[part.told..]).filter(|news| self.completion.logprobs && !news.is_empty());
        let told = news.map_or(Value::Null, |news| logprobs(self.frame.kind, tokenizer, news));
        part.told = part.choices.len();
        Ok(Some(self.frame.piece(index, &text, told, part.finish)))
    }

    fn roles(&self) -> Vec<Value> {
        (0..self.parts.len()).filter_map(|index| self.frame.role(index)).collect()
    }

    fn counts(&self) -> Usage {
        let answer = self.parts.iter().map(|part| part.tokens).sum();
        let (prompt, cached) = (self.completion.prompts.iter().sum(), self.cached.iter().flatten().sum());
        Usage { prompt, cached, answer }
    }

    fn usage(&self) -> Option<Value> {
        self.completion.include_usage.then(|| self.frame.usage(self.counts()))
    }

    /// What was made, when all of it is there.
    fn choices(&mut self) -> Vec<Whole> {
        let (kind, tokenizer) = (self.frame.kind, self.talk.decoder.tokenizer());
        let wanted = self.completion.logprobs;
        let choice = |part: &mut Part| {
            let told = if wanted { logprobs(kind, tokenizer, &part.choices) } else { Value::Null };
            (std::mem::take(&mut part.text), told, part.finish.unwrap_or("stop"))
        };
        self.parts.iter_mut().map(choice).collect()
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        for part in &self.parts {
            let finished_reason = part.finish.unwrap_or("abort");
            self.metrics.ended.get_or_create(&Ended { finished_reason }).inc();
        }
        for (prompt, tokens) in self.completion.prompts.iter().enumerate() {
            let of_itself = |part: &Part| matches!(part.finish, Some("stop" | "length"));
            let answered = |part: &Part| Answered { tokens: part.tokens, times: part.times };
            let parts = self.parts.iter().filter(|part| part.prompt == prompt);
            let all = parts.clone().all(of_itself);
            let ended: Vec<_> = parts.filter(|part| of_itself(part)).map(answered).collect();
            self.metrics.answered(*tokens, &ended, all);
        }
        let unfinished = self.parts.iter().filter(|part| part.finish.is_none());
        let unfinished = unfinished.map(|part| self.talk.decoder.cancel(part.id)).count();
        let made = self.counts().answer;
        let finish: Vec<_> = self.parts.iter().filter_map(|part| part.finish).collect();
        self.watch.note(|notes| {
            notes.output_tokens = Some(made);
            notes.finish = finish;
            notes.left = unfinished > 0 && notes.failed.is_none();
        });
    }
}
