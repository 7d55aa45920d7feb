//! Text to tokens and back.
//!
//! A tokenizer comes from `tokenizer.json`, or from the metadata of a GGUF file. What must hold: the pieces of a
//! [`TextStream`] put together are the text of all tokens, and no piece ends within a character.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use kedge_formats::{Gguf, file};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::EngineError;
use crate::guarded::guarded;

/// The tokenizer of a decoder.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// The token that begins every text, where the model wants one and `inner` does not put it there.
    bos: Option<u32>,
}

impl TextTokenizer {
    /// From a `tokenizer.json`.
    pub fn of_file(path: &Path) -> Result<Self, EngineError> {
        Self::checked(tokenizer_of(path)?, None)
    }

    /// The same, of a model of so many tokens.
    pub(super) fn of_model(path: &Path, vocabulary: usize) -> Result<Self, EngineError> {
        let made = Self::of_file(path)?;
        fits(&made.inner, vocabulary, path)?;
        Ok(made)
    }

    fn checked(mut inner: Tokenizer, bos: Option<u32>) -> Result<Self, EngineError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| EngineError::Tokenize { index: 0, reason: error.to_string() })?;
        Ok(Self { inner, bos })
    }

    /// From the metadata of a GGUF file: byte-level BPE (`gpt2` in its words) or SentencePiece's BPE (`llama`).
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let path = file.tensors.path();
        let words = Words::of(file)?;
        let made = match file.text("tokenizer.ggml.model")? {
            "gpt2" => byte_level(file, &words)?,
            "llama" => sentence_piece(file, &words)?,
            other => {
                let reason =
                    format!("{other:?} is not supported; gpt2, llama and a tokenizer.json beside the file are");
                return Err(wrong(path, "tokenizer.ggml.model", reason));
            }
        };
        Self::checked(tokenizer_from(&made, path)?, bos_of(file)?)
    }

    /// Number of tokens it knows.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token by its id, marks and all.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens of a text; with `begin` also the one that begins it, unless it stands there. Words for tokens, such as
    /// `<|end|>`, become those.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<u32>, EngineError> {
        let encoding = guarded(|| self.inner.encode(text, begin));
        let encoding = encoding.and_then(|encoding| encoding.map_err(|error| error.to_string()));
        let encoding = encoding.map_err(|reason| EngineError::Tokenize { index: 0, reason })?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|bos| begin && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of tokens, without the special ones.
    pub fn decode(&self, ids: &[u32]) -> Result<String, EngineError> {
        let text = guarded(|| self.inner.decode(ids, true)).and_then(|text| text.map_err(|error| error.to_string()));
        text.map_err(|reason| EngineError::Tokenize { index: 0, reason })
    }
}

/// Kinds of tokens (llama.h, `llama_token_type`).
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const ADDED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// The tokens of a GGUF file.
struct Words<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<f64>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Words<'a> {
    fn of(file: &'a Gguf) -> Result<Self, EngineError> {
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let told = file.has("tokenizer.ggml.token_type");
        let kinds = if told { file.floats("tokenizer.ggml.token_type")? } else { vec![1.0; tokens.len()] };
        if kinds.len() != tokens.len() {
            let reason = format!("has {} kinds for {} tokens", kinds.len(), tokens.len());
            return Err(wrong(file.tensors.path(), "tokenizer.ggml.token_type", reason));
        }
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let scores = "tokenizer.ggml.scores";
        if file.has(scores) && file.floats(scores)?.len() != tokens.len() {
            let reason = format!("has {} scores for {} tokens", file.floats(scores)?.len(), tokens.len());
            return Err(wrong(file.tensors.path(), scores, reason));
        }
        if ids.len() != tokens.len() {
            return Err(wrong(file.tensors.path(), "tokenizer.ggml.tokens", "has a token twice".into()));
        }
        Ok(Self { tokens, kinds, ids })
    }

    /// Those that are found as they are written, before anything is cut.
    fn added(&self) -> Vec<Value> {
        let added = self.tokens.iter().enumerate().filter(|(id, _)| matches!(self.kinds[*id], CONTROL | ADDED));
        let added = added.map(|(id, content)| {
            let special = self.kinds[id] == CONTROL;
            json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        });
        added.collect()
    }
}

fn byte_level(file: &Gguf, words: &Words) -> Result<Value, EngineError> {
    let (path, key) = (file.tensors.path(), "tokenizer.ggml.pre");
    let word = text_if_there(file, key)?.unwrap_or_else(|| {
        let file = path.display();
        tracing::warn!(%file, "{key} is not there: texts are cut as llama.cpp does then, and answers may be worse");
        "default"
    });
    let Some(cut) = Cut::of(word) else {
        return Err(wrong(path, key, format!("{word:?} is not supported; a tokenizer.json beside the file is")));
    };
    let mut cuts = Vec::new();
    for expression in cut.expressions {
        let pattern = json!({ "Regex": expression });
        cuts.push(json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false }));
    }
    cuts.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
    let merges = file.texts("tokenizer.ggml.merges")?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": cuts },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "vocab": words.ids, "merges": merges, "ignore_merges": cut.whole, "fuse_unk": false,
            "byte_fallback": false,
        },
    }))
}

/// SentencePiece joins the two neighbours whose whole has the best score. So every way to cut a piece into two pieces is a
/// merge, in the order of the pieces' scores; what no piece stands for becomes bytes. (`llm_tokenizer_spm` of llama.cpp,
/// `generate_merges` of transformers' `convert_slow_tokenizer.py`.)
fn sentence_piece(file: &Gguf, words: &Words) -> Result<Value, EngineError> {
    let scores = file.floats("tokenizer.ggml.scores")?;
    let is_piece = |id: usize| !matches!(words.kinds[id], UNKNOWN | CONTROL | BYTE);
    let piece = |text: &str| words.ids.get(text).copied().filter(|id| is_piece(*id));
    let mut merges = Vec::new();
    for (whole, token) in
        words.tokens.iter().enumerate().filter(|(id, token)| is_piece(*id) && token.len() <= PIECE_MAX)
    {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(first), Some(second)) = (piece(left), piece(right)) {
                merges.push((whole, first, second, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then((a.0, a.1, a.2).cmp(&(b.0, b.1, b.2))));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., parts)| parts).collect();
    let unknown = (0..words.tokens.len()).find(|id| words.kinds[*id] == UNKNOWN).map(|id| words.tokens[id]);
    let key = "tokenizer.ggml.add_space_prefix";
    let prefix = if file.has(key) { file.flag(key)? } else { true };
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizers = if prefix { vec![json!({ "type": "Prepend", "prepend": "▁" }), space] } else { vec![space] };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "vocab": words.ids, "merges": merges, "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
        },
    }))
}

/// The tokenizer of an encoder from the metadata of a GGUF file: WordPiece, whose tokens GGUF marks the other way round: what
/// begins a word has `▁` before it, and what goes on has lost its `##` (llama.cpp's `conversion/bert.py`).
pub(crate) fn word_piece(file: &Gguf) -> Result<Tokenizer, EngineError> {
    let path = file.tensors.path();
    let words = Words::of(file)?;
    let model = file.text("tokenizer.ggml.model")?;
    if model != "bert" {
        let reason = format!("{model:?} is not supported; bert and a tokenizer.json beside the file are");
        return Err(wrong(path, "tokenizer.ggml.model", reason));
    }
    // Files need not say kinds. Those before them had what is in brackets as it is written.
    let in_brackets = |id: usize| words.tokens[id].starts_with('[') && words.tokens[id].ends_with(']');
    let is_control = |id: usize| words.kinds[id] == CONTROL || in_brackets(id);
    // What llama.cpp takes where a file does not say it.
    let special = |keys: [&str; 2], usual: usize| -> Result<usize, EngineError> {
        let told = keys.into_iter().map(|key| format!("tokenizer.ggml.{key}_token_id")).find(|key| file.has(key));
        let count = words.tokens.len();
        if let Some(key) = told
            && let Some(id) = token_of(file, &key, count)?
        {
            return Ok(id as usize);
        }
        let wrong = |reason| wrong(path, &format!("tokenizer.ggml.{}_token_id", keys[0]), reason);
        match words.tokens.get(usual) {
            Some(_) if is_control(usual) => Ok(usual),
            Some(token) => Err(wrong(format!("is not there, and the usual one, {usual}, is {token:?}"))),
            None => Err(wrong(format!("is {usual}, and there are {count} tokens"))),
        }
    };
    let (first, last) = (special(["cls", "bos"], 101)?, special(["seperator", "eos"], 102)?);
    let unknown = special(["unknown", "unknown"], 100)?;
    let piece = |id: usize| match words.tokens[id].strip_prefix('▁') {
        _ if words.kinds[id] == CONTROL => words.tokens[id].to_owned(),
        Some(word) => word.to_owned(),
        None if in_brackets(id) || [first, last, unknown].contains(&id) => words.tokens[id].to_owned(),
        None => format!("##{}", words.tokens[id]),
    };
    let mut pieces = HashMap::with_capacity(words.tokens.len());
    for (id, token) in words.tokens.iter().enumerate() {
        if pieces.insert(piece(id), id).is_some() {
            return Err(wrong(path, "tokenizer.ggml.tokens", format!("has {token:?} twice")));
        }
    }
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_sep_token"] {
        if file.has(key) && !file.flag(key)? {
            return Err(wrong(path, key, "false is not supported; texts stand between two special tokens".into()));
        }
    }
    let flag = |key: &str| if file.has(key) { file.flag(key).map(Some) } else { Ok(None) };
    // Older files do not say whether letters become small; a vocabulary that has large ones knows them.
    let large = words.tokens.iter().enumerate();
    let large = large.filter(|(id, token)| !is_control(*id) && token.chars().any(char::is_uppercase)).count();
    let lowercase = flag("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(large * CASED_SHARE < words.tokens.len());
    let made = json!({
        "version": "1.0",
        "added_tokens": words.added(),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "lowercase": lowercase,
            "strip_accents": flag("tokenizer.ggml.normalizer.strip_accents")?,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": (piece(last), last), "cls": (piece(first), first) },
        "model": {
            "type": "WordPiece", "vocab": pieces, "unk_token": piece(unknown), "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    });
    tokenizer_from(&made, path)
}

/// The tokenizer of a `tokenizer.json`.
pub(crate) fn tokenizer_of(path: &Path) -> Result<Tokenizer, EngineError> {
    let bytes = file::read(path, BYTES_MAX).map_err(|source| EngineError::Read { path: path.to_owned(), source })?;
    let unread = |error: serde_json::Error| EngineError::File { path: path.to_owned(), reason: error.to_string() };
    let Described { model } = serde_json::from_slice(&bytes).map_err(unread)?;
    for (field, told) in [
        ("max_input_chars_per_word", model.max_input_chars_per_word.unwrap_or(0)),
        ("vocab", model.vocab.unwrap_or_default().0 as u64),
    ] {
        if told > PIECE_LETTERS_MAX {
            let reason = format!("has {told} as its longest; at most {PIECE_LETTERS_MAX} is supported");
            return Err(wrong(path, &format!("model.{field}"), reason));
        }
    }
    let read = guarded(|| Tokenizer::from_bytes(bytes)).and_then(|read| read.map_err(|error| error.to_string()));
    read.map_err(|reason| EngineError::File { path: path.to_owned(), reason })
}

/// The longest `tokenizer.json`; the longest there is has a sixth of it.
const BYTES_MAX: u64 = 256 << 20;

/// What the library that reads a `tokenizer.json` has no bound for: WordPiece tries every part of a word, and Unigram keeps a
/// piece as letters in one another, which end the process when they are dropped if they are as many as its stack is deep.
#[derive(Deserialize)]
struct Described {
    model: DescribedModel,
}

#[derive(Deserialize)]
struct DescribedModel {
    max_input_chars_per_word: Option<u64>,
    vocab: Option<LongestPiece>,
}

/// WordPiece has 100 letters, and Unigram pieces of 16.
const PIECE_LETTERS_MAX: u64 = 256;

/// Bytes of the longest piece of a list, which is what Unigram has; an object's do no harm.
#[derive(Default)]
struct LongestPiece(usize);

impl<'de> Deserialize<'de> for LongestPiece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pieces;
        impl<'de> Visitor<'de> for Pieces {
            type Value = LongestPiece;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("tokens and their ids, or pieces and their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LongestPiece, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(LongestPiece(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LongestPiece, A::Error> {
                let mut longest = 0;
                while let Some((piece, _)) = list.next_element::<(String, IgnoredAny)>()? {
                    longest = longest.max(piece.len());
                }
                Ok(LongestPiece(longest))
            }
        }
        deserializer.deserialize_any(Pieces)
    }
}

/// Refuses a tokenizer of another model: whose own tokens have ids that a model of so many has not, or which puts such ones
/// around every text. Tokens that were added may lie beyond (Gemma 3's smallest has one for images, which it never saw): a
/// text that has one is refused.
pub(crate) fn fits(tokenizer: &Tokenizer, vocabulary: usize, path: &Path) -> Result<(), EngineError> {
    let added = tokenizer.get_added_tokens_decoder();
    let own = tokenizer.get_vocab(false).into_iter().filter(|(_, id)| !added.contains_key(id));
    if let Some((token, id)) = own.max_by_key(|(_, id)| *id).filter(|(_, id)| *id as usize >= vocabulary) {
        let reason = format!("{token:?} has the id {id}; those of the model are below {vocabulary}");
        return Err(wrong(path, "model.vocab", reason));
    }
    let around = guarded(|| tokenizer.encode("", true)).and_then(|text| text.map_err(|error| error.to_string()));
    let around = around.map_err(|reason| wrong(path, "post_processor", reason))?;
    match around.get_ids().iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => {
            let reason = format!("puts the id {id} into texts; those of the model are below {vocabulary}");
            Err(wrong(path, "post_processor", reason))
        }
        None => Ok(()),
    }
}

/// The token whose id that key of a GGUF file is, where the file has it; `count` are there.
pub(super) fn token_of(file: &Gguf, key: &str, count: usize) -> Result<Option<u32>, EngineError> {
    if !file.has(key) {
        return Ok(None);
    }
    let id = file.number(key)?;
    match u32::try_from(id).ok().filter(|id| (*id as usize) < count) {
        Some(id) => Ok(Some(id)),
        None => Err(wrong(file.tensors.path(), key, format!("is {id}, and there are {count} tokens"))),
    }
}

/// The tokenizer that is described so, as found in a GGUF file.
fn tokenizer_from(made: &Value, path: &Path) -> Result<Tokenizer, EngineError> {
    let made = guarded(|| Tokenizer::from_bytes(made.to_string()));
    let made = made.and_then(|made| made.map_err(|error| error.to_string()));
    made.map_err(|reason| wrong(path, "tokenizer.ggml", reason))
}

/// Of so many tokens one has a large letter where large letters matter; of BERT's cased vocabularies it is every third.
const CASED_SHARE: usize = 20;

/// Longest piece that is cut in two, in bytes: a hostile file's pieces are long.
const PIECE_MAX: usize = 512;

/// The token that begins every text, where the file says that there is one.
fn bos_of(file: &Gguf) -> Result<Option<u32>, EngineError> {
    let wanted = match file.has("tokenizer.ggml.add_bos_token") {
        true => file.flag("tokenizer.ggml.add_bos_token")?,
        false => {
            let cut = text_if_there(file, "tokenizer.ggml.pre")?.and_then(Cut::of);
            text_if_there(file, "tokenizer.ggml.model")? == Some("llama") || cut.is_some_and(|cut| cut.begins)
        }
    };
    let bos = token_of(file, "tokenizer.ggml.bos_token_id", file.texts("tokenizer.ggml.tokens")?.len())?;
    Ok(bos.filter(|_| wanted))
}

fn text_if_there<'a>(file: &'a Gguf, key: &str) -> Result<Option<&'a str>, EngineError> {
    if file.has(key) { Ok(Some(file.text(key)?)) } else { Ok(None) }
}

fn wrong(path: &Path, field: &str, reason: String) -> EngineError {
    EngineError::Field { path: path.to_owned(), field: field.to_owned(), reason }
}

/// How texts are cut before pairs are merged, by the words that GGUF has for it (`llama-vocab.cpp`). Known are those of
/// families that can be served.
struct Cut {
    /// Each cuts what those before it left.
    expressions: &'static [&'static str],
    /// A piece that is a token is not made of others.
    whole: bool,
    /// Texts begin with the first token where the file does not say.
    begins: bool,
}

impl Cut {
    fn of(word: &str) -> Option<Self> {
        let cut = |expressions| Self { expressions, whole: false, begins: false };
        let llama_3 = |expressions| Self { expressions, whole: true, begins: true };
        let cut = match word {
            // What llama.cpp takes where it knows no better, also where there is no word.
            "default" => cut(&[r"[\p{P}$+<=>\^\~|]+", GPT_2, r"\p{N}+", "[0-9]{3}"]),
            "gpt-2" | "mellum" | "a.x-4.0" | "trillion" => cut(&[GPT_2]),
            "smollm" | "minerva-7b" => cut(&[r"\p{N}", GPT_2]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "midm-2.0" => llama_3(&[LLAMA_3]),
            "dbrx" | "smaug-bpe" => cut(&[LLAMA_3]),
            "qwen2" | "deepseek-r1-qwen" | "megrez" => cut(&[QWEN_2]),
            "tekken" => llama_3(&[TEKKEN]),
            "gpt-4o" => cut(&[GPT_4O]),
            _ => return None,
        };
        Some(cut)
    }
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN_2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The models' own. Of letters beyond `a` to `z` llama.cpp does not tell large from small, nor does it count marks as letters.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// As [`TEKKEN`].
const GPT_4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Tokens of one character: each has a byte of it at least.
const CHARACTER_TOKENS_MAX: usize = 4;
/// Tokens that may wait for one to become a character.
const UNTOLD_MAX: usize = 16;

/// The text of tokens as they come.
#[derive(Debug, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// Tokens before this one are told and only there so that what follows is read as it should.
    from: usize,
    /// Tokens before this one are told.
    told: usize,
}

impl TextStream {
    /// One more token: the text that is certain now.
    pub fn push(&mut self, tokenizer: &TextTokenizer, id: u32) -> Result<String, EngineError> {
        self.ids.push(id);
        self.more(tokenizer, false)
    }

    /// What is left at the end, whole or not.
    pub fn finish(&mut self, tokenizer: &TextTokenizer) -> Result<String, EngineError> {
        self.more(tokenizer, true)
    }

    fn more(&mut self, tokenizer: &TextTokenizer, last: bool) -> Result<String, EngineError> {
        if !last && self.ids.len() - self.told > UNTOLD_MAX {
            return self.older(tokenizer);
        }
        let before = tokenizer.decode(&self.ids[self.from..self.told])?;
        let now = tokenizer.decode(&self.ids[self.from..])?;
        // A character of which bytes are missing is shown as this until they come.
        if !last && now.ends_with('\u{fffd}') || now.len() <= before.len() {
            return Ok(String::new());
        }
        let new = now.get(before.len()..).unwrap_or_default().to_owned();
        (self.from, self.told) = (self.told, self.ids.len());
        Ok(new)
    }

    /// What is certain of many tokens of which the last may still become a character: all but the last few. So a model that
    /// says nothing but parts of characters does not have all it said read again for each of them.
    fn older(&mut self, tokenizer: &TextTokenizer) -> Result<String, EngineError> {
        let before = tokenizer.decode(&self.ids[self.from..self.told])?;
        let now = tokenizer.decode(&self.ids[self.from..])?;
        let latest = self.ids.len() - CHARACTER_TOKENS_MAX;
        for end in (latest - CHARACTER_TOKENS_MAX + 1..=latest).rev() {
            let certain = tokenizer.decode(&self.ids[self.from..end])?;
            if now.starts_with(&certain) && certain.starts_with(&before) {
                (self.from, self.told) = (self.told, end);
                return Ok(certain[before.len()..].to_owned());
            }
        }
        let new = now.get(before.len()..).unwrap_or_default().to_owned();
        (self.from, self.told) = (self.told, self.ids.len());
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kedge_formats::gguf::write::{self, Value as Meta};

    use super::*;

    /// A GGUF file with the tokenizer that SentencePiece made of our own texts, and what it says of some.
    fn sentence_piece_file(more: Vec<(String, Meta)>) -> (tempfile::TempDir, Value) {
        let told: Value = serde_json::from_str(include_str!("../../tests/sentencepiece.json")).unwrap();
        let numbers = |key: &str| told[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let pieces = told["pieces"].as_array().unwrap().iter().map(|piece| piece.as_str().unwrap().to_owned());
        let mut metadata = vec![
            ("general.architecture".into(), Meta::Text("llama".into())),
            ("tokenizer.ggml.model".into(), Meta::Text("llama".into())),
            ("tokenizer.ggml.tokens".into(), Meta::Texts(pieces.collect())),
            ("tokenizer.ggml.scores".into(), Meta::Floats(numbers("scores").into_iter().map(|x| x as f32).collect())),
            (
                "tokenizer.ggml.token_type".into(),
                Meta::Signed(numbers("kinds").into_iter().map(|x| x as i32).collect()),
            ),
            ("tokenizer.ggml.bos_token_id".into(), Meta::Unsigned(1)),
        ];
        metadata.retain(|(key, _): &(String, Meta)| more.iter().all(|(other, _)| other != key));
        metadata.extend(more);
        let folder = tempfile::tempdir().unwrap();
        #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
        std::fs::write(folder.path().join("m.gguf"), write::to_bytes(&metadata, &[])).unwrap();
        (folder, told)
    }

    fn tokenizer(folder: &tempfile::TempDir) -> TextTokenizer {
        TextTokenizer::of_gguf(&Gguf::open(&folder.path().join("m.gguf")).unwrap()).unwrap()
    }

    #[test]
    fn parts_of_characters_without_end_are_told_in_time_and_as_they_are() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/demo-decoder/model/tokenizer.json");
        let tokenizer = TextTokenizer::of_file(&file).unwrap();
        // The model has no tokens of these characters but their bytes.
        let bytes_of = |text: &str| text.bytes().zip(tokenizer.encode(text, false).unwrap()).collect::<Vec<_>>();
        let known: BTreeMap<u8, u32> = ["€", "😀", "a"].into_iter().flat_map(bytes_of).collect();
        let (euro, face) = ("€".as_bytes(), "😀".as_bytes());
        let all: Vec<u8> = known.keys().copied().collect();
        let random = (1u32..).map(|n| all[(n.wrapping_mul(0x9E37_79B9) >> 16) as usize % all.len()]);
        for bytes in [
            random.take(5_000).collect(),
            euro[..1].repeat(300),
            [&euro[..1].repeat(300)[..], euro, face, b"a", &euro[..1].repeat(40), face].concat(),
            euro[..2].repeat(100),
            [&euro[1..].repeat(51)[..], face].concat(),
            face.repeat(30),
            face[..3].repeat(30),
        ] {
            let ids: Vec<u32> = bytes.iter().map(|byte| known[byte]).collect();
            let (mut stream, mut said) = (TextStream::default(), String::new());
            for id in &ids {
                said += &stream.push(&tokenizer, *id).unwrap();
                assert!(stream.ids.len() - stream.from <= 3 * UNTOLD_MAX, "{bytes:?}");
            }
            said += &stream.finish(&tokenizer).unwrap();
            assert_eq!(said, tokenizer.decode(&ids).unwrap(), "{bytes:?}");
        }
    }

    #[test]
    fn texts_become_the_tokens_that_sentencepiece_makes_and_come_back() {
        let (folder, told) = sentence_piece_file(vec![]);
        let tokenizer = tokenizer(&folder);
        for case in told["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
            assert_eq!(tokenizer.decode(&expected).unwrap(), text);
            let mut stream = TextStream::default();
            let mut pieces: String = expected.iter().map(|id| stream.push(&tokenizer, *id).unwrap()).collect();
            pieces += &stream.finish(&tokenizer).unwrap();
            assert_eq!(pieces, text, "in pieces");
        }
    }

    #[test]
    fn control_tokens_and_the_first_one_are_as_the_file_says() {
        let (folder, _) = sentence_piece_file(vec![]);
        let first = tokenizer(&folder);
        let talk = first.encode("<|user|>a<|end|>", true).unwrap();
        assert_eq!((talk[0], talk[1], *talk.last().unwrap()), (1, 4, 3), "{talk:?}");
        let (folder, _) = sentence_piece_file(vec![
            ("tokenizer.ggml.add_bos_token".into(), Meta::Bool(false)),
            ("tokenizer.ggml.add_space_prefix".into(), Meta::Bool(false)),
        ]);
        let bare = tokenizer(&folder);
        let ids = bare.encode("a pod", true).unwrap();
        assert_eq!(bare.token(ids[0]).unwrap(), "a");
        assert_eq!(bare.decode(&ids).unwrap(), "a pod");
    }

    /// tokenizers 0.23 panics over a decoder that is none.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
    fn a_tokenizer_that_panics_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, r#"{"version":"1.0","decoder":[1e999],"model":{}}"#).unwrap();
        let said = TextTokenizer::of_file(&path).unwrap_err().to_string();
        assert!(said.contains("tokenizer.json: the library that reads it gave up: Helper"), "{said}");
    }

    /// tokenizers 0.23 keeps Unigram's pieces as letters in one another and drops them the same way.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
    fn words_and_pieces_without_end_are_refused() {
        let word = |letters: u64| {
            json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": letters, "vocab": {"a": 0}})
        };
        let unigram = |letters: usize| json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b".repeat(letters), -1.0]], "byte_fallback": false});
        for (model, expected) in [
            (word(100), "is read"),
            (word(257), "tokenizer.json: model.max_input_chars_per_word: has 257 as its longest; at most 256 is"),
            (word(u64::MAX), "model.max_input_chars_per_word: has 18446744073709551615 as"),
            (unigram(256), "is read"),
            (unigram(257), "tokenizer.json: model.vocab: has 257 as its longest"),
            (unigram(1 << 20), "tokenizer.json: model.vocab: has 1048576 as its longest"),
            (json!({"type": "WordLevel", "unk_token": "a", "vocab": {"a".repeat(1 << 20): 0, "a": 1}}), "is read"),
            (json!({"type": "Unigram", "vocab": "a"}), "tokenizer.json: invalid type: string"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tokenizer.json");
            std::fs::write(&path, json!({"version": "1.0", "added_tokens": [], "model": model}).to_string()).unwrap();
            let said = TextTokenizer::of_file(&path).map_or_else(|error| error.to_string(), |_| "is read".into());
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn files_whose_lists_do_not_fit_are_refused() {
        for (key, value, reason) in [
            ("tokenizer.ggml.scores", Meta::Floats(vec![0.0; 3]), "has 3 scores for 480 tokens"),
            ("tokenizer.ggml.token_type", Meta::Signed(vec![1; 3]), "has 3 kinds for 480 tokens"),
            ("tokenizer.ggml.tokens", Meta::Texts(vec!["a".into(), "a".into()]), "has 480 kinds for 2 tokens"),
            ("tokenizer.ggml.model", Meta::Text("t5".into()), "\"t5\" is not supported"),
            ("tokenizer.ggml.bos_token_id", Meta::Unsigned(480), "is 480, and there are 480 tokens"),
        ] {
            let (folder, _) = sentence_piece_file(vec![(key.into(), value)]);
            let refused = TextTokenizer::of_gguf(&Gguf::open(&folder.path().join("m.gguf")).unwrap()).unwrap_err();
            assert!(refused.to_string().contains(reason), "{refused}");
        }
    }
}
