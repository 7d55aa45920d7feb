//! A decoder, loaded, with a thread of its own that computes for everybody who asks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kedge_formats::{Gguf, Tensors};
use serde_json::Value;

use super::chat::ChatTemplate;
use super::defaults::{self, Defaults};
use super::gguf_tokenizer::token_of;
use super::sample::Draw;
use super::schedule::{Batch, End, Event, Limits, Request, RequestId, Schedule, Totals};
use super::text::TextTokenizer;
use crate::EngineError;
use crate::backend::spare::{FAILURES_MAX, Placed, Ran};
use crate::backend::{Backend, Capabilities, Work};
use crate::graph::{Graph, PAGE_TOKENS, Pages};
use crate::model::DecoderConfig;
use crate::model::Location;
use crate::model::decoder_graph::graph;
use crate::model::settings::{self, Fields, if_there};
use crate::model::source::Source;
use crate::plan::{Plan, Shape};

/// Bytes of a number in a page of keys and values.
const PAGE_NUMBER_BYTES: u64 = 2;
/// Of the memory that weights leave free, a page store takes at most one part of so many, unless told otherwise.
const PAGE_SHARE: u64 = 4;
/// The most and the fewest pages that there may be.
const PAGES_MAX: u64 = 1 << 20;
const PAGES_MIN: u64 = 2;

/// How a decoder is run.
#[derive(Clone, Copy, Debug)]
pub struct DecoderOptions {
    /// Tokens for which keys and values are kept, of all requests together; none for what running ones may need, as far as
    /// memory allows.
    pub tokens_kept: Option<usize>,
    /// The same in bytes, which counts where it is there.
    pub kept_bytes: Option<u64>,
    /// Tokens that prompt and answer may have together, where that is less than the model can.
    pub context_max: Option<usize>,
    /// Tokens of one step.
    pub rows_max: usize,
    /// Requests that run at once.
    pub running_max: usize,
    /// Whether the model's own files say what a request gets that does not say.
    pub heeds_defaults: bool,
}

impl Default for DecoderOptions {
    fn default() -> Self {
        Self {
            tokens_kept: None,
            kept_bytes: None,
            context_max: None,
            rows_max: 256,
            running_max: 64,
            heeds_defaults: true,
        }
    }
}

/// Counts that change while a decoder works.
#[derive(Debug, Default)]
pub struct Figures {
    /// Requests that were taken and have not ended.
    pub open: AtomicU64,
    /// Requests that wait.
    pub waiting: AtomicU64,
    /// Requests that run.
    pub running: AtomicU64,
    /// Tokens of prompts that were admitted.
    pub prompt_tokens: AtomicU64,
    /// Those of them that were known from earlier requests.
    pub cached_tokens: AtomicU64,
    /// How often a request gave its pages up to another.
    pub preemptions: AtomicU64,
    /// Tokens that were made.
    pub made_tokens: AtomicU64,
    /// Steps.
    pub steps: AtomicU64,
    /// Tokens for which there are pages nobody uses now.
    pub tokens_free: AtomicU64,
    /// Tokens for which there are pages.
    pub tokens_kept: AtomicU64,
}

/// Whoever is told of events; false when nobody listens any more.
pub type Listener = Box<dyn FnMut(Event) -> bool + Send>;

enum Command {
    Push(RequestId, Box<Request>, Listener),
    Cancel(RequestId),
}

/// The way to a decoder's thread, and what is called when it ends, whatever ended it.
struct Line {
    commands: Sender<Command>,
    when_ended: Vec<Call>,
}

type Call = Box<dyn FnOnce() + Send>;

impl Line {
    fn send(&self, command: Command) {
        let sent = self.commands.send(command);
        assert!(sent.is_ok(), "the thread takes its line away before its inbox goes");
    }
}

/// None once the thread has ended: nothing is sent then, and whoever asks for the end is told at once. Held for a moment.
type Open = Arc<Mutex<Option<Line>>>;

fn lock(open: &Open) -> MutexGuard<'_, Option<Line>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Worker {
    fn drop(&mut self) {
        let line = lock(&self.open).take();
        // Nobody asks from here on, and who did is told by its listener's end.
        for count in [&self.figures.open, &self.figures.waiting, &self.figures.running] {
            count.store(0, Ordering::Relaxed);
        }
        line.into_iter().flat_map(|line| line.when_ended).for_each(|call| call());
    }
}

/// A model that makes text.
pub struct Decoder {
    config: DecoderConfig,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    defaults: Defaults,
    stop: Vec<u32>,
    limits: Limits,
    kept_bytes: u64,
    placed: Arc<Placed>,
    figures: Arc<Figures>,
    next_id: AtomicU64,
    open: Open,
    worker: Option<JoinHandle<()>>,
}

/// What a model's files say beside its weights.
struct Files {
    source: Source,
    config: DecoderConfig,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    defaults: Defaults,
    stop: Vec<u32>,
}

impl Decoder {
    /// Opens the model at `path`, which [`Location`] says what it means.
    pub fn open(path: &Path, backend: &dyn Backend, options: DecoderOptions) -> Result<Self, EngineError> {
        let Files { source, config, tokenizer, template, defaults, stop } = Files::open(path)?;
        let graph = Arc::new(graph(&source, &config)?);
        let defaults = if options.heeds_defaults { defaults } else { Defaults::default() };
        if let Some(wanted) = options.context_max.filter(|wanted| *wanted > config.context) {
            tracing::warn!(wanted, context = config.context, "the model takes fewer tokens than it is allowed to");
        }
        let context = config.context.min(options.context_max.unwrap_or(usize::MAX));
        let page_bytes = page_bytes(&graph);
        let pages = pages_kept(page_bytes, context, memory_left(&graph, backend), &options)?;
        let (kept, kept_bytes) = (pages * PAGE_TOKENS, pages as u64 * page_bytes);
        let context = context.min(kept);
        let limits = Limits { rows_max: options.rows_max.max(1), running_max: options.running_max.max(1), context };
        let placed = Arc::new(Placed::new(backend, graph.clone(), pages)?);
        let figures = Arc::new(Figures::default());
        figures.tokens_kept.store(kept as u64, Ordering::Relaxed);
        figures.tokens_free.store(kept as u64, Ordering::Relaxed);
        let (commands, inbox) = channel();
        let schedule = Schedule::new(limits, pages as u32);
        let plans = HashMap::new();
        let open = Arc::new(Mutex::new(Some(Line { commands, when_ended: Vec::new() })));
        let mut worker = Worker {
            graph,
            placed: placed.clone(),
            schedule,
            limits,
            plans,
            listeners: HashMap::new(),
            figures: figures.clone(),
            open: open.clone(),
            inbox,
            ended: 0,
            failures: 0,
        };
        let thread = std::thread::Builder::new().name("kedge-decoder".into());
        let worker = thread.spawn(move || worker.work());
        let worker = worker.map_err(|source| EngineError::Threads { index: 0, source })?;
        let config = DecoderConfig { context, ..config };
        Ok(Self {
            config,
            tokenizer,
            template,
            defaults,
            stop,
            limits,
            kept_bytes,
            placed,
            figures,
            next_id: AtomicU64::new(0),
            open,
            worker: Some(worker),
        })
    }

    /// What the files at `path` are, without loading weights: whether this engine could run them, and why not.
    pub fn inspect(path: &Path) -> Result<String, EngineError> {
        let files = Files::open(path)?;
        graph(&files.source, &files.config)?;
        Ok(files.config.family.gguf.to_owned())
    }

    /// The settings and the graph of the model at `path`, for whoever runs steps by themselves.
    pub fn read(path: &Path) -> Result<(DecoderConfig, Graph), EngineError> {
        let files = Files::open(path)?;
        let graph = graph(&files.source, &files.config)?;
        Ok((files.config, graph))
    }

    /// The settings the model came with; the context is what fits in memory.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Bounds of what is done at once.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes of all pages of keys and values, used or not.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// How it writes talks down, if it says so.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// How it would have tokens chosen where a request does not say.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The tokens by which it ends an answer.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// What it runs on now, and why that is not the device that was wanted, if it is not.
    pub fn on(&self) -> (Capabilities, Option<String>) {
        self.placed.on()
    }

    /// Counts.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Whether its thread still computes.
    pub fn is_served(&self) -> bool {
        lock(&self.open).is_some()
    }

    /// Has something called when its thread ends: when the decoder is dropped, and before that when the engine panicked or
    /// its device was lost without a spare. At once where it has ended.
    pub fn when_ended(&self, call: impl FnOnce() + Send + 'static) {
        if let Some(line) = &mut *lock(&self.open) {
            return line.when_ended.push(Box::new(call));
        }
        call();
    }

    /// Puts a request in line; `listener` is told of every event, on the decoder's thread, and dropped when that ends.
    pub fn submit(&self, request: Request, listener: Listener) -> Result<RequestId, EngineError> {
        let wrong = |reason: String| EngineError::Tokens { index: 0, reason };
        if request.prompt.is_empty() {
            return Err(wrong("there are none".into()));
        }
        if request.prompt.len() >= self.config.context {
            let (length, context) = (request.prompt.len(), self.config.context);
            return Err(wrong(format!("there are {length}, and prompt and answer may have {context} together")));
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= self.config.vocabulary) {
            return Err(wrong(format!("id {id} is not below the vocabulary's {}", self.config.vocabulary)));
        }
        // The thread counts what ends under this lock, too: no request is left open behind its end.
        let open = lock(&self.open);
        let line = open.as_ref().ok_or(EngineError::Ended)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.figures.open.fetch_add(1, Ordering::Relaxed);
        line.send(Command::Push(id, Box::new(request), listener));
        Ok(id)
    }

    /// Lets go of a request.
    pub fn cancel(&self, id: RequestId) {
        lock(&self.open).iter().for_each(|line| line.send(Command::Cancel(id)));
    }

    /// Runs one request to its end: the tokens, and why it ended.
    pub fn complete(&self, request: Request) -> Result<(Vec<u32>, End), EngineError> {
        let (sender, events) = channel();
        self.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
        let mut tokens = Vec::new();
        loop {
            match events.recv() {
                Ok(Event::Begin { .. }) => {}
                Ok(Event::Token(choice)) => tokens.push(choice.token),
                Ok(Event::End(end)) => return Ok((tokens, end)),
                Err(_) => return Err(EngineError::Ended),
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let line = lock(&self.open).take();
        let calls = line.map(|Line { when_ended, .. }| when_ended);
        if let Some(worker) = self.worker.take() {
            // A panic was told by its message; there is nobody to pass it on to.
            let _ = worker.join();
        }
        calls.into_iter().flatten().for_each(|call| call());
    }
}

fn page_bytes(graph: &Graph) -> u64 {
    graph.pages.unwrap_or(Pages { layers: 1, heads: 1, width: 1 }).values() as u64 * PAGE_NUMBER_BYTES
}

/// The memory that weights leave.
fn memory_left(graph: &Graph, backend: &dyn Backend) -> u64 {
    let weights: u64 = graph.weights.iter().map(|tensor| tensor.bytes().len() as u64).sum();
    let left = |backend: &dyn Backend| backend.memory_bytes_free().saturating_sub(weights);
    // A spare has to have room for them, too.
    backend.spare().map_or(u64::MAX, |spare| left(&*spare)).min(left(backend))
}

/// How many pages there are: as asked, or so many that no running request has to make room for another, as far as a share
/// of the memory that is left holds them. On a processor one takes memory when it is first used.
fn pages_kept(page_bytes: u64, context: usize, left: u64, options: &DecoderOptions) -> Result<usize, EngineError> {
    let of_tokens = |tokens: usize| tokens.div_ceil(PAGE_TOKENS) as u64;
    let pages = match (options.kept_bytes, options.tokens_kept) {
        (Some(bytes), _) => {
            let refused = |reason| Err(EngineError::Pages { bytes, reason });
            if bytes < PAGES_MIN * page_bytes {
                return refused(format!("at least {} are needed", PAGES_MIN * page_bytes));
            }
            if bytes > left {
                return refused(format!("{left} are free beside weights"));
            }
            bytes / page_bytes
        }
        (None, Some(tokens)) => of_tokens(tokens),
        (None, None) => (options.running_max as u64 * of_tokens(context)).min(left / PAGE_SHARE / page_bytes),
    };
    Ok(pages.clamp(PAGES_MIN, PAGES_MAX) as usize)
}

impl Files {
    fn open(path: &Path) -> Result<Self, EngineError> {
        let at = Location::of(path)?;
        if at.is_gguf() {
            return Self::of_gguf(&at.weights);
        }
        let folder = &*at.folder;
        let config = DecoderConfig::of_json(&folder.join("config.json"))?;
        let tokenizer = TextTokenizer::of_model(&folder.join("tokenizer.json"), config.vocabulary)?;
        let source = Source::folder(Tensors::open_safetensors(&at.weights)?);
        let optional = |name: &str| Fields::open_if_there(&folder.join(name));
        let settings = optional("tokenizer_config.json")?;
        let text_of = |field: &str| {
            let read = |token: &Value| token.as_str().or(token["content"].as_str()).map(str::to_owned);
            settings.maybe(field, "a text, or an object whose content is one", read)
        };
        let (bos, eos) = (text_of("bos_token")?.unwrap_or_default(), text_of("eos_token")?.unwrap_or_default());
        let mut stop = Vec::new();
        if !eos.is_empty() {
            let id = match tokenizer.id(&eos) {
                Some(id) if (id as usize) < config.vocabulary => Ok(id),
                Some(id) => Err(format!("{eos:?} has the id {id}; those of the model are below {}", config.vocabulary)),
                None => Err(format!("{eos:?} is no token of tokenizer.json")),
            };
            stop.push(id.map_err(|reason| settings.wrong("eos_token", reason))?);
        }
        for file in [optional("config.json")?, optional(defaults::FILE)?] {
            stop.extend(file.tokens("eos_token_id", config.vocabulary)?);
        }
        let template = match template_of(&settings)? {
            None => read_template(folder)?,
            told => told,
        };
        let template = template.map(|text| ChatTemplate::new(&text, &bos, &eos)).transpose()?;
        let defaults = Defaults::of_folder(folder)?;
        Ok(Self { source, config, tokenizer, template, defaults, stop }.in_order())
    }

    fn of_gguf(path: &Path) -> Result<Self, EngineError> {
        let file = Gguf::open(path)?;
        let config = DecoderConfig::of_gguf(&file)?;
        let beside = path.with_file_name("tokenizer.json");
        let tokenizer = match if_there(TextTokenizer::of_model(&beside, config.vocabulary))? {
            None => TextTokenizer::of_gguf(&file)?,
            Some(tokenizer) => tokenizer,
        };
        // llama.cpp takes an id of its own where one of these is not there; an answer would go on past its end with that.
        let id = |key: &str| token_of(&file, key, config.vocabulary);
        let (eos, eot) = (id("tokenizer.ggml.eos_token_id")?, id("tokenizer.ggml.eot_token_id")?);
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let (bos, stop) = (text(id("tokenizer.ggml.bos_token_id")?), eos.into_iter().chain(eot).collect());
        let eos = text(eos);
        let template = if file.has("tokenizer.chat_template") {
            Some(ChatTemplate::new(file.text("tokenizer.chat_template")?, &bos, &eos)?)
        } else {
            None
        };
        let (source, defaults) = (Source::gguf(&file), Defaults::of_gguf(&file)?);
        Ok(Self { source, config, tokenizer, template, defaults, stop }.in_order())
    }

    fn in_order(mut self) -> Self {
        self.stop.sort_unstable();
        self.stop.dedup();
        self
    }
}

/// A template as it stands, or the one called `default` of several.
fn template_of(settings: &Fields) -> Result<Option<String>, EngineError> {
    let named = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
    let read = |told: &Value| match told {
        Value::Array(list) => list.iter().map(named).collect::<Option<Vec<_>>>(),
        one => Some(vec![("default".to_owned(), one.as_str()?.to_owned())]),
    };
    let all = settings.maybe("chat_template", "a text, or a list of objects with name and template", read)?;
    Ok(all.into_iter().flatten().find(|(name, _)| name == "default").map(|(_, template)| template))
}

fn read_template(folder: &Path) -> Result<Option<String>, EngineError> {
    let path = folder.join("chat_template.jinja");
    let text = if_there(settings::read(&path))?.map(String::from_utf8).transpose();
    text.map_err(|error| EngineError::File { path, reason: error.to_string() })
}

/// The thread's own.
struct Worker {
    graph: Arc<Graph>,
    placed: Arc<Placed>,
    schedule: Schedule,
    limits: Limits,
    plans: HashMap<Shape, Plan>,
    listeners: HashMap<RequestId, Listener>,
    figures: Arc<Figures>,
    open: Open,
    inbox: Receiver<Command>,
    /// Requests that ended since they were last counted.
    ended: u64,
    /// Steps that the device failed, one after the other.
    failures: u32,
}

impl Worker {
    fn work(&mut self) {
        let mut room = Vec::new();
        loop {
            // Sleeps while there is nothing to do; else takes what has come and goes on.
            if self.schedule.counts() == (0, 0) {
                match self.inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
            }
            if let Some(batch) = self.schedule.next_batch() {
                for (id, cached_tokens) in &batch.begun {
                    // Whoever does not listen is let go after the step, which has it.
                    self.listeners.get_mut(id).map(|listener| listener(Event::Begin { cached_tokens: *cached_tokens }));
                }
                self.step(&batch, &mut room);
            }
            self.count();
            if self.failures >= FAILURES_MAX {
                tracing::error!("the device is lost; the decoder ends");
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Push(id, request, listener) => {
                self.listeners.insert(id, listener);
                self.schedule.push(id, *request);
            }
            Command::Cancel(id) => {
                self.schedule.cancel(id);
                if let Some(mut listener) = self.listeners.remove(&id) {
                    self.ended += 1;
                    listener(Event::End(End::Cancelled));
                }
            }
        }
    }

    fn step(&mut self, batch: &Batch, room: &mut Vec<f32>) {
        let bucket = |count: usize| count.next_power_of_two();
        let outputs = bucket(batch.step.outputs.len().max(1)).min(bucket(self.limits.running_max));
        let shape = Shape { rows: bucket(batch.step.ids.len()), outputs };
        let plan = self.plans.entry(shape).or_insert_with(|| Plan::new(&self.graph, shape));
        let draw = |id: &RequestId| self.schedule.draw(*id).expect("who is in a step runs");
        let draws: Vec<Draw> = batch.answers.iter().map(draw).collect();
        let mut choices = Vec::new();
        match self.placed.choose(Work { plan, step: &batch.step, draws: &draws }, room, &mut choices) {
            Ok(Ran::Done) => self.failures = 0,
            Ok(Ran::Moved) => return self.schedule.start_over(),
            Err(error) => {
                self.failures += u32::from(matches!(error, EngineError::Device { .. }));
                for id in self.schedule.clear() {
                    self.tell(id, Event::End(End::Failed(error.to_string())));
                }
                return;
            }
        }
        let chosen: Vec<_> = choices.into_iter().map(|choice| choice.map_err(|error| error.to_string())).collect();
        let made = chosen.iter().filter(|choice| choice.is_ok()).count() as u64;
        self.figures.made_tokens.fetch_add(made, Ordering::Relaxed);
        self.figures.steps.fetch_add(1, Ordering::Relaxed);
        for (id, event) in self.schedule.done(batch, chosen) {
            self.tell(id, event);
        }
    }

    /// Tells a listener; one that is gone ends its request.
    fn tell(&mut self, id: RequestId, event: Event) {
        let ended = matches!(event, Event::End(_));
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let listens = listener(event);
        if ended || !listens {
            self.ended += 1;
            self.listeners.remove(&id);
        }
        if !listens && !ended {
            self.schedule.cancel(id);
        }
    }

    fn count(&mut self) {
        let (waiting, running) = self.schedule.counts();
        let Totals { prompt_tokens, cached_tokens, preemptions } = self.schedule.totals();
        let set = |figure: &AtomicU64, value: u64| figure.store(value, Ordering::Relaxed);
        set(&self.figures.prompt_tokens, prompt_tokens);
        set(&self.figures.cached_tokens, cached_tokens);
        set(&self.figures.preemptions, preemptions);
        self.figures.open.fetch_sub(self.ended, Ordering::Relaxed);
        self.ended = 0;
        set(&self.figures.waiting, waiting as u64);
        set(&self.figures.running, running as u64);
        set(&self.figures.tokens_free, self.schedule.tokens_free() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_pages_for_all_who_run_as_far_as_a_share_of_memory_goes() {
        let none = DecoderOptions::default();
        let asked = |bytes: u64| DecoderOptions { kept_bytes: Some(bytes), ..none };
        let tokens = |tokens: usize| DecoderOptions { tokens_kept: Some(tokens), ..none };
        const MIB: u64 = 1 << 20;
        for (context, left, options, pages) in [
            (1024, 24_000 * MIB, none, 64 * 32),
            (1024, 400 * MIB, none, 100),
            (1024, 24_000 * MIB, DecoderOptions { running_max: 2, ..none }, 64),
            (1024, 0, none, 2),
            (1 << 20, u64::MAX, none, 1 << 20),
            (1024, 0, tokens(33), 2),
            (1024, 0, tokens(65), 3),
            (1024, 100 * MIB, asked(100 * MIB), 100),
            (1024, 100 * MIB, asked(4 * MIB - 1), 3),
            (1024, u64::MAX, asked(u64::MAX), 1 << 20),
        ] {
            assert_eq!(pages_kept(MIB, context, left, &options).unwrap(), pages, "{context} {left} {options:?}");
        }
        for (left, bytes, says) in
            [(100 * MIB, 2 * MIB - 1, "at least 2097152 are needed"), (99, 100 * MIB, "99 are free")]
        {
            let refused = pages_kept(MIB, 1024, left, &asked(bytes)).unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
