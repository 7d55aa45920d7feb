//! Text to tokens and back.
//!
//! A tokenizer comes from `tokenizer.json`, or from the metadata of a GGUF file ([`gguf_tokenizer`]). What must hold: the pieces of a
//! [`TextStream`] put together are the text of all tokens, and no piece ends within a character.

use std::fmt;
use std::path::Path;

use kedge_formats::{Gguf, file};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::Tokenizer;

use super::gguf_tokenizer;
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
        let (inner, bos) = gguf_tokenizer::of_decoder(file)?;
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

pub(super) fn wrong(path: &Path, field: &str, reason: String) -> EngineError {
    EngineError::Field { path: path.to_owned(), field: field.to_owned(), reason }
}

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
    use serde_json::{Value, json};

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
