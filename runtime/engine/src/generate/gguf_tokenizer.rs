//! Tokenizers out of the metadata of a GGUF file.
//!
//! The library that cuts texts reads `tokenizer.json`; so what GGUF says is written down in that form, and read as one. What
//! must hold: a text has the tokens that llama.cpp gives it, or those of the model's own tokenizer where that is said below.

use std::collections::HashMap;
use std::path::Path;

use kedge_formats::Gguf;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::text::wrong;
use crate::EngineError;
use crate::guarded::guarded;

/// The tokenizer of a decoder, and the token that begins every text.
pub(super) fn of_decoder(file: &Gguf) -> Result<(Tokenizer, Option<u32>), EngineError> {
    let path = file.tensors.path();
    let words = Words::of(file)?;
    let made = match file.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level(file, &words)?,
        "llama" => sentence_piece(file, &words)?,
        other => {
            let reason = format!("{other:?} is not supported; gpt2, llama and a tokenizer.json beside the file are");
            return Err(wrong(path, "tokenizer.ggml.model", reason));
        }
    };
    Ok((tokenizer_from(&made, path)?, bos_of(file)?))
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
