//! Completions: from a request over the decoder to an answer, whole or in pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kedge_engine::Decoder;
use kedge_engine::generate::{Choice, End, Event, Message, TextStream};
use kedge_world::World;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::api::{Refusal, object};
use crate::completions::{self, Completion, Frame, Kind, Stops, Usage, logprobs, reason};
use crate::metrics::{Labels, Metrics};

/// Most requests that the decoder has at once, waiting or running.
const OPEN_MAX: u64 = 256;

/// What answers completions.
pub(crate) struct Talk {
    pub(crate) decoder: Arc<Decoder>,
    name: String,
    world: World,
    count: AtomicU64,
}

/// An answer.
pub(crate) enum Answer {
    Whole(Value),
    /// Server-sent events, each as its bytes.
    Pieces(mpsc::UnboundedReceiver<Bytes>),
}

/// One of the answers of a request, while it comes.
struct Part {
    id: u64,
    stream: TextStream,
    stops: Stops,
    text: String,
    choices: Vec<Choice>,
    /// How many of the choices have been told.
    told: usize,
    tokens: usize,
    finish: Option<&'static str>,
}

impl Talk {
    pub(crate) fn new(decoder: Arc<Decoder>, name: String, world: World) -> Self {
        Self { decoder, name, world, count: AtomicU64::new(0) }
    }

    /// Resolves when nobody computes any more.
    pub(crate) async fn ended(&self) {
        let (sender, ended) = oneshot::channel::<()>();
        self.decoder.when_ended(move || drop(sender));
        // An error is the sender's end, which is what is waited for.
        let _ = ended.await;
    }

    /// Answers a request; the fields that were left out of account come with it.
    pub(crate) async fn complete(
        self: &Arc<Self>,
        kind: Kind,
        body: Bytes,
        metrics: &Metrics,
    ) -> Result<(Answer, Vec<String>), Refusal> {
        let begin = Instant::now();
        let this = self.clone();
        let seed = self.world.random.number();
        // Templates and tokenizers take their time.
        let parsed =
            tokio::task::spawn_blocking(move || completions::parse(kind, &body, &this.name, &this.decoder, seed));
        let mut completion =
            parsed.await.map_err(|error| Refusal::plain(500, format!("reading the request: {error}")))??;
        if self.decoder.figures().open.load(Ordering::Relaxed) >= OPEN_MAX {
            return Err(Refusal::plain(429, "as many requests wait as may; try again"));
        }
        let ignored = std::mem::take(&mut completion.ignored);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let frame = Frame {
            kind,
            id: format!("{prefix}-{:016x}{number:04x}", self.world.random.number()),
            created: self.world.clock.wall().as_second(),
            model: self.name.clone(),
        };
        let (sender, mut events) = mpsc::unbounded_channel::<(usize, Event)>();
        let mut ids = Vec::new();
        for (index, request) in std::mem::take(&mut completion.requests).into_iter().enumerate() {
            let sender = sender.clone();
            let listener = Box::new(move |event| sender.send((index, event)).is_ok());
            ids.push(self.decoder.submit(request, listener).map_err(|error| Refusal::plain(400, error.to_string()))?);
        }
        drop(sender);
        let mut maker = Maker::new(self.clone(), completion, frame, ids);
        let labels = Labels { model_name: self.name.clone() };
        // The first event tells whether there will be an answer at all: until then a failure has a status of its own.
        let first = events.recv().await.ok_or_else(|| Refusal::plain(500, "the decoder's thread has ended"))?;
        metrics.first_token.get_or_create(&labels).observe(begin.elapsed().as_secs_f64());
        if let (_, Event::End { end: End::Failed(why), .. }) = &first {
            return Err(Refusal::plain(500, why.clone()));
        }
        if !maker.completion.stream {
            maker.take(first)?;
            while !maker.is_whole() {
                let event = events.recv().await.ok_or_else(|| Refusal::plain(500, "the decoder's thread has ended"))?;
                maker.take(event)?;
            }
            return Ok((Answer::Whole(maker.whole()), ignored));
        }
        let (pieces, answer) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let send = |value: Value| pieces.send(Bytes::from(format!("data: {value}\n\n"))).is_ok();
            let mut next = Some(first);
            let mut listens = maker.roles().into_iter().all(send);
            while let Some(event) = next.filter(|_| listens && !maker.is_whole()) {
                match maker.take(event) {
                    Ok(more) => listens = more.into_iter().all(send),
                    Err(refusal) => {
                        // The status is gone; the error comes as an event, as vLLM does.
                        send(refusal.openai());
                        return;
                    }
                }
                next = if maker.is_whole() { None } else { events.recv().await };
            }
            if listens && maker.is_whole() {
                maker.usage().into_iter().all(send);
                // Whoever left has no use for it.
                let _ = pieces.send(Bytes::from_static(b"data: [DONE]\n\n"));
            }
        });
        Ok((Answer::Pieces(answer), ignored))
    }

    /// `POST /tokenize`, as vLLM has it.
    pub(crate) fn tokenize(&self, body: &[u8]) -> Result<Value, Refusal> {
        let body = object(body)?;
        let wrong = |error: kedge_engine::EngineError| Refusal::field("prompt", error.to_string());
        let tokens = match (&body.get("prompt"), &body.get("messages")) {
            (Some(Value::String(text)), None) => {
                let begin = body.get("add_special_tokens").and_then(Value::as_bool).unwrap_or(true);
                self.decoder.tokenizer().encode(text, begin).map_err(wrong)?
            }
            (None, Some(Value::Array(list))) => {
                let messages =
                    list.iter().enumerate().map(|(index, message)| completions::read_message(index, message));
                let messages: Vec<Message> = messages.collect::<Result<_, _>>()?;
                let template = self.decoder.template();
                let template = template.ok_or_else(|| Refusal::field("messages", "this model has no chat template"))?;
                completions::tokens_of_talk(template, self.decoder.tokenizer(), &messages)?
            }
            _ => return Err(Refusal::field("prompt", "must be a text, or messages a list of messages")),
        };
        Ok(json!({"count": tokens.len(), "max_model_len": self.decoder.config().context, "tokens": tokens}))
    }

    /// `POST /detokenize`, as vLLM has it.
    pub(crate) fn detokenize(&self, body: &[u8]) -> Result<Value, Refusal> {
        let body = object(body)?;
        let ids = body
            .get("tokens")
            .and_then(Value::as_array)
            .ok_or_else(|| Refusal::field("tokens", "must be a list of token ids"))?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
        let ids = ids.ok_or_else(|| Refusal::field("tokens", "must be a list of token ids"))?;
        let text =
            self.decoder.tokenizer().decode(&ids).map_err(|error| Refusal::field("tokens", error.to_string()))?;
        Ok(json!({"prompt": text}))
    }
}

/// Puts an answer together from events.
struct Maker {
    talk: Arc<Talk>,
    completion: Completion,
    frame: Frame,
    parts: Vec<Part>,
    cached: usize,
}

impl Maker {
    fn new(talk: Arc<Talk>, completion: Completion, frame: Frame, ids: Vec<u64>) -> Self {
        let part = |id: u64| Part {
            id,
            stream: TextStream::default(),
            stops: Stops::default(),
            text: String::new(),
            choices: Vec::new(),
            told: 0,
            tokens: 0,
            finish: None,
        };
        Self { talk, completion, frame, parts: ids.into_iter().map(part).collect(), cached: 0 }
    }

    fn is_whole(&self) -> bool {
        self.parts.iter().all(|part| part.finish.is_some())
    }

    /// One event: what a stream is told of it.
    fn take(&mut self, (index, event): (usize, Event)) -> Result<Option<Value>, Refusal> {
        let tokenizer = self.talk.decoder.tokenizer();
        let failed = |error: kedge_engine::EngineError| Refusal::plain(500, error.to_string());
        let part = &mut self.parts[index];
        if part.finish.is_some() {
            return Ok(None);
        }
        let text = match event {
            Event::Token(choice) => {
                part.tokens += 1;
                let text = part.stream.push(tokenizer, choice.token).map_err(failed)?;
                part.choices.push(choice);
                let (text, ended) = part.stops.push(&self.completion.stops, &text);
                if ended {
                    part.finish = Some("stop");
                    self.talk.decoder.cancel(part.id);
                }
                text
            }
            Event::End { end: End::Failed(why), .. } => return Err(Refusal::plain(500, why)),
            Event::End { end, cached_tokens } => {
                self.cached += cached_tokens;
                let rest = part.stream.finish(tokenizer).map_err(failed)?;
                let (mut text, ended) = part.stops.push(&self.completion.stops, &rest);
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
        let told = logprobs(self.frame.kind, tokenizer, &part.choices[part.told..]);
        part.told = part.choices.len();
        Ok(Some(self.frame.piece(index, &text, told, part.finish)))
    }

    fn roles(&self) -> Vec<Value> {
        (0..self.parts.len()).filter_map(|index| self.frame.role(index)).collect()
    }

    fn counts(&self) -> Usage {
        let answer = self.parts.iter().map(|part| part.tokens).sum();
        Usage { prompt: self.completion.prompt_tokens, cached: self.cached, answer }
    }

    fn usage(&self) -> Option<Value> {
        self.completion.include_usage.then(|| self.frame.usage(self.counts()))
    }

    fn whole(&mut self) -> Value {
        let usage = self.counts();
        let (kind, tokenizer) = (self.frame.kind, self.talk.decoder.tokenizer());
        let wanted = self.completion.logprobs;
        let choice = |part: Part| {
            let told = if wanted { logprobs(kind, tokenizer, &part.choices) } else { Value::Null };
            (part.text, told, part.finish.unwrap_or("stop"))
        };
        let choices = std::mem::take(&mut self.parts).into_iter().map(choice).collect();
        self.frame.whole(choices, usage)
    }
}
