//! Text to tokens and back.
//!
//! A tokenizer comes from `tokenizer.json`, or from the metadata of a GGUF file. What must hold: the pieces of a
//! [`TextStream`] put together are the text of all tokens, and no piece ends within a character.

use std::path::Path;

use kedge_formats::Gguf;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::EngineError;

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
        let inner = Tokenizer::from_file(path).map_err(|error| wrong(path, "(file)", error.to_string()))?;
        Self::checked(inner, None)
    }

    fn checked(mut inner: Tokenizer, bos: Option<u32>) -> Result<Self, EngineError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| EngineError::Tokenize { index: 0, reason: error.to_string() })?;
        Ok(Self { inner, bos })
    }

    /// From the metadata of a GGUF file: byte-level BPE, `gpt2` in its words.
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let path = file.tensors.path();
        let model = file.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            let reason = format!("{model:?} is not supported; gpt2 is, and a tokenizer.json beside the file");
            return Err(wrong(path, "tokenizer.ggml.model", reason));
        }
        let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
        let split = split_of(pre).ok_or_else(|| {
            wrong(path, "tokenizer.ggml.pre", format!("{pre:?} is not supported; a tokenizer.json beside the file is"))
        })?;
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let merges = file.texts("tokenizer.ggml.merges")?;
        let kinds =
            if file.has("tokenizer.ggml.token_type") { file.floats("tokenizer.ggml.token_type")? } else { vec![] };
        // 3 is a control token, 4 one that a user added (llama.h, llama_token_type).
        let added = tokens.iter().enumerate().filter(|(id, _)| matches!(kinds.get(*id), Some(3.0 | 4.0)));
        let added = added.map(|(id, content)| {
            let special = kinds[id] == 3.0;
            json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        });
        let vocabulary: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
        if vocabulary.len() != tokens.len() {
            return Err(wrong(path, "tokenizer.ggml.tokens", "has a token twice".into()));
        }
        let bos = bos_of(file)?;
        let file = json!({
            "version": "1.0",
            "added_tokens": added.collect::<Vec<_>>(),
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            ] },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": pre == "llama-bpe", "fuse_unk": false, "byte_fallback": false },
        });
        let inner = Tokenizer::from_bytes(file.to_string())
            .map_err(|error| wrong(path, "tokenizer.ggml", error.to_string()))?;
        Self::checked(inner, bos)
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
        let encoding = self.inner.encode(text, begin);
        let encoding = encoding.map_err(|error| EngineError::Tokenize { index: 0, reason: error.to_string() })?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos.filter(|bos| begin && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of tokens, without the special ones.
    pub fn decode(&self, ids: &[u32]) -> Result<String, EngineError> {
        self.inner.decode(ids, true).map_err(|error| EngineError::Tokenize { index: 0, reason: error.to_string() })
    }
}

/// The token that begins every text, where the file says that there is one.
fn bos_of(file: &Gguf) -> Result<Option<u32>, EngineError> {
    let wanted = match file.has("tokenizer.ggml.add_bos_token") {
        true => file.flag("tokenizer.ggml.add_bos_token")?,
        false => file.text("tokenizer.ggml.pre").is_ok_and(|pre| pre == "llama-bpe"),
    };
    if !wanted || !file.has("tokenizer.ggml.bos_token_id") {
        return Ok(None);
    }
    Ok(u32::try_from(file.number("tokenizer.ggml.bos_token_id")?).ok())
}

fn wrong(path: &Path, field: &str, reason: String) -> EngineError {
    EngineError::Field { path: path.to_owned(), field: field.to_owned(), reason }
}

/// How text is cut before pairs are merged, by the names that GGUF has for it (llama.cpp `llama-vocab.cpp`).
fn split_of(pre: &str) -> Option<&'static str> {
    match pre {
        "default" | "gpt-2" | "gpt2" => {
            Some(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        }
        "llama-bpe" | "llama3" => Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "qwen2" => Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        _ => None,
    }
}

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
}
