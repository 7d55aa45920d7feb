//! Texts to vectors: tokenizing, batching by length, and running a plan for each batch.
//!
//! Texts are sorted by length and taken 32 at a time, one after the other without padding; plans are made for token
//! counts in steps, so that a few serve every batch. What must hold: the answer is in the order of the texts, and truncation is that
//! of sentence-transformers (the special tokens are kept, the text's end goes).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kedge_formats::Gguf;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use crate::EngineError;
use crate::backend::spare::{Placed, Ran};
use crate::backend::{Backend, Capabilities, Sequence, Step};
use crate::generate::{gguf_tokenizer, text};
use crate::graph::Graph;
use crate::guarded::guarded;
use crate::model::settings::if_there;
use crate::model::{EncoderConfig, Location, bert};
use crate::plan::{Plan, Shape};

/// Most texts in one run of a plan.
pub const BATCH_MAX: usize = 32;
/// Plans are made for multiples of so many tokens.
const ROWS_STEP: usize = 256;
/// Bytes of a text that are tokenized before the rest is looked at: most often all that counts, and while it is looked at,
/// each takes some hundred bytes of memory.
const BEGINNING_BYTES: usize = 64 << 10;
/// Most plans kept; all are dropped when there would be more, which a steady load never reaches.
const PLANS_KEPT_MAX: usize = 1024;

/// An embedding model, loaded.
pub struct Encoder {
    config: EncoderConfig,
    tokenizer: Tokenizer,
    graph: Arc<Graph>,
    placed: Placed,
    /// Plans by shape. Held only to look one up or put one in.
    plans: Mutex<HashMap<Shape, Arc<Plan>>>,
}

/// A text as the model sees it, special tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The token ids.
    pub ids: Vec<u32>,
    /// The segment each belongs to.
    pub types: Vec<u32>,
}

/// What came out for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// As long as [`Encoder::dimensions`].
    pub vector: Vec<f32>,
    /// How many tokens were read, special tokens included.
    pub tokens: usize,
}

/// Whole words from the beginning of a text.
fn beginning(text: &str) -> &str {
    let first = &text[..text.floor_char_boundary(BEGINNING_BYTES)];
    if first.len() == text.len() { text } else { first.rfind(char::is_whitespace).map_or("", |end| &first[..end]) }
}

impl Encoder {
    /// Opens the model at `path`, which [`Location`] says what it means.
    pub fn open(path: &Path, backend: &dyn Backend) -> Result<Self, EngineError> {
        let (config, tokenizer, graph) = read(path, true)?;
        let graph = Arc::new(graph);
        let placed = Placed::new(backend, graph.clone(), 0)?;
        Ok(Self { config, tokenizer, graph, placed, plans: Mutex::default() })
    }

    /// Length of every vector.
    pub fn dimensions(&self) -> usize {
        self.config.hidden
    }

    /// The settings the model came with.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What it runs on now, and why that is not the device that was wanted, if it is not.
    pub fn on(&self) -> (Capabilities, Option<String>) {
        self.placed.on()
    }

    /// A vector for each text.
    pub fn encode<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Embedding>, EngineError> {
        let tokens: Vec<Tokens> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| self.tokenize(index, text.as_ref()))
            .collect::<Result<_, _>>()?;
        self.encode_tokens(&tokens)
    }

    /// Tokens of one text, cut at the model's longest sequence; `index` is for the error.
    pub fn tokenize(&self, index: usize, text: &str) -> Result<Tokens, EngineError> {
        let encode = |text: &str| {
            let encoding = guarded(|| self.tokenizer.encode(text, true));
            let encoding = encoding.and_then(|encoding| encoding.map_err(|error| error.to_string()));
            encoding.map_err(|reason| EngineError::Tokenize { index, reason })
        };
        let mut encoding = encode(beginning(text))?;
        // Where some of its beginning was cut off, the rest would have been, too.
        if beginning(text).len() < text.len() && encoding.get_overflowing().is_empty() {
            encoding = encode(text)?;
        }
        let tokens = Tokens { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() };
        self.check(index, &tokens)?;
        Ok(tokens)
    }

    /// Tokens from ids the caller made; nothing is added and nothing cut off, and ids the model lacks are refused.
    pub fn tokens(&self, index: usize, ids: &[u32]) -> Result<Tokens, EngineError> {
        let tokens = Tokens { ids: ids.to_vec(), types: vec![0; ids.len()] };
        self.check(index, &tokens)?;
        Ok(tokens)
    }

    /// A vector for each list of tokens.
    pub fn encode_tokens(&self, inputs: &[Tokens]) -> Result<Vec<Embedding>, EngineError> {
        inputs.iter().enumerate().try_for_each(|(index, tokens)| self.check(index, tokens))?;
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|index| inputs[*index].ids.len());
        let mut out: Vec<Option<Embedding>> = vec![None; inputs.len()];
        let mut vectors = Vec::new();
        for batch in order.chunks(BATCH_MAX) {
            let step = step_of(batch.iter().map(|index| &inputs[*index]));
            let plan = self.plan(batch.len(), step.ids.len().next_multiple_of(ROWS_STEP));
            while self.placed.run(&plan, &step, &mut vectors)? == Ran::Moved {}
            for (index, vector) in batch.iter().zip(vectors.chunks_exact(self.config.hidden)) {
                out[*index] = Some(Embedding { vector: vector.to_vec(), tokens: inputs[*index].ids.len() });
            }
        }
        Ok(out.into_iter().map(|embedding| embedding.expect("every input is in one batch")).collect())
    }

    fn check(&self, index: usize, tokens: &Tokens) -> Result<(), EngineError> {
        let wrong = |reason| Err(EngineError::Tokens { index, reason });
        if tokens.ids.is_empty() {
            return wrong("there are none".into());
        }
        if tokens.ids.len() > self.config.sequence_max {
            return wrong(format!("there are {}, and the model takes {}", tokens.ids.len(), self.config.sequence_max));
        }
        if tokens.types.len() != tokens.ids.len() {
            return wrong(format!("there are {} ids and {} types", tokens.ids.len(), tokens.types.len()));
        }
        if let Some(id) = tokens.ids.iter().find(|id| **id as usize >= self.config.vocabulary) {
            return wrong(format!("id {id} is not below the vocabulary's {}", self.config.vocabulary));
        }
        // A model without types has its texts' passed over.
        let types = self.config.types;
        match tokens.types.iter().find(|kind| types > 0 && **kind as usize >= types) {
            Some(kind) => wrong(format!("type {kind} is not below the model's {types}")),
            None => Ok(()),
        }
    }

    fn plan(&self, outputs: usize, rows: usize) -> Arc<Plan> {
        let shape = Shape { rows, outputs };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= PLANS_KEPT_MAX {
            plans.clear();
        }
        plans.entry(shape).or_insert_with(|| Arc::new(Plan::new(&self.graph, shape))).clone()
    }
}

/// The settings, the tokenizer and the graph of the model at `path`; whether its numbers are sound is looked at where `reads`
/// says so.
pub(crate) fn read(path: &Path, reads: bool) -> Result<(EncoderConfig, Tokenizer, Graph), EngineError> {
    let at = Location::of(path)?;
    let beside = at.folder.join("tokenizer.json");
    if at.is_gguf() {
        let file = Gguf::open(&at.weights)?;
        let config = EncoderConfig::of_gguf(&file)?;
        let tokenizer = match if_there(read_tokenizer(&beside, &config))? {
            None => fitted(gguf_tokenizer::word_piece(&file)?, &at.weights, &config)?,
            Some(tokenizer) => tokenizer,
        };
        let graph = bert::of_gguf(&file, &config, reads)?;
        return Ok((config, tokenizer, graph));
    }
    let config = EncoderConfig::read(&at.folder)?;
    let graph = bert::read(&at.weights, &config, reads)?;
    let tokenizer = read_tokenizer(&beside, &config)?;
    Ok((config, tokenizer, graph))
}

fn read_tokenizer(path: &Path, config: &EncoderConfig) -> Result<Tokenizer, EngineError> {
    fitted(text::tokenizer_of(path)?, path, config)
}

/// The tokenizer as this engine uses it: it fills nothing up, and cuts where the model's longest sequence ends.
fn fitted(mut tokenizer: Tokenizer, path: &Path, config: &EncoderConfig) -> Result<Tokenizer, EngineError> {
    let wrong = |reason: String| EngineError::File { path: path.to_owned(), reason };
    tokenizer.with_padding(None);
    let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if special >= config.sequence_max {
        let reason =
            format!("{special} special tokens leave no room in texts of at most {} tokens", config.sequence_max);
        return Err(wrong(reason));
    }
    let truncation = TruncationParams { max_length: config.sequence_max, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| wrong(error.to_string()))?;
    text::fits(&tokenizer, config.vocabulary, path)?;
    Ok(tokenizer)
}

fn step_of<'a>(inputs: impl Iterator<Item = &'a Tokens>) -> Step {
    let mut step = Step::default();
    for tokens in inputs {
        step.sequences.push(Sequence { rows: tokens.ids.len(), ..Sequence::default() });
        step.ids.extend(&tokens.ids);
        step.types.extend(&tokens.types);
    }
    step
}
