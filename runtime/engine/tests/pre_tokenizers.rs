//! How texts are cut under each word that `tokenizer.ggml.pre` may be, against llama.cpp and others (`pre_tokenizers.py`).

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

use std::collections::BTreeSet;
use std::path::Path;

use kedge_engine::EngineError;
use kedge_engine::generate::TextTokenizer;
use kedge_formats::Gguf;
use kedge_formats::gguf::write::{Value as Meta, to_bytes};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Tokens, merges, and how many tokens at the beginning are marks.
struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<String>,
    marks: usize,
}

fn told() -> Value {
    serde_json::from_str(include_str!("pre_tokenizers.json")).unwrap()
}

fn texts(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap()
}

/// The letter that stands for each byte (GPT-2's).
fn letters() -> Vec<char> {
    let is_shown = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..);
    let mut hidden = '\u{100}'..;
    (0..=255u8).map(|byte| if is_shown(byte) { byte.into() } else { hidden.next().unwrap() }).collect()
}

/// Every part of every text as a token, and every way to cut one in two as a merge, so that a piece becomes one token. One
/// text is a token that no merge makes.
fn every_part(told: &Value) -> Vocabulary {
    let letters = letters();
    let spelt = |text: &str| text.bytes().map(|byte| letters[usize::from(byte)]).collect::<String>();
    let (texts, unmerged) = (texts(&told["texts"]), told["unmerged"].as_str().unwrap());
    let mut tokens: Vec<String> = ["<begin>".to_owned(), spelt(unmerged)].into();
    tokens.extend(letters.iter().map(char::to_string));
    let mut known: BTreeSet<String> = tokens.iter().cloned().collect();
    let (mut merges, mut merged) = (Vec::new(), BTreeSet::new());
    let mut join = |left: &[String], right: &[String]| {
        let (left, right) = (left.concat(), right.concat());
        let (whole, merge) = (format!("{left}{right}"), format!("{left} {right}"));
        if known.insert(whole.clone()) {
            tokens.push(whole);
        }
        if merged.insert(merge.clone()) {
            merges.push(merge);
        }
    };
    // Characters of several bytes come first.
    for character in texts.concat().chars() {
        let bytes: Vec<String> = spelt(&character.to_string()).chars().map(String::from).collect();
        (1..bytes.len()).for_each(|end| join(&bytes[..end], &bytes[end..=end]));
    }
    for text in texts.iter().filter(|text| !text.contains(unmerged)) {
        let characters: Vec<String> = text.chars().map(|character| spelt(&character.to_string())).collect();
        for start in 0..characters.len() {
            for end in start + 2..=characters.len() {
                (start + 1..end).for_each(|cut| join(&characters[start..cut], &characters[cut..end]));
            }
        }
    }
    Vocabulary { tokens, merges, marks: 1 }
}

/// The demo decoder's, which must be the one that llama.cpp was given.
fn demo(told: &Value) -> Vocabulary {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/demo-decoder/model/tokenizer.json");
    let bytes = std::fs::read(path).unwrap();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told["demo"], digest, "the demo's tokenizer is another; pre_tokenizers.py makes the expectations anew");
    let file: Value = serde_json::from_slice(&bytes).unwrap();
    let mut tokens: Vec<(u64, String)> = Vec::new();
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens.push((id.as_u64().unwrap(), token.clone()));
    }
    tokens.sort();
    Vocabulary {
        tokens: tokens.into_iter().map(|(_, token)| token).collect(),
        merges: file["model"]["merges"].as_array().unwrap().iter().map(|merge| texts(merge).join(" ")).collect(),
        marks: file["added_tokens"].as_array().unwrap().len(),
    }
}

fn tokenizer(word: Option<&str>, vocabulary: &Vocabulary) -> Result<TextTokenizer, EngineError> {
    let kinds = (0..vocabulary.tokens.len()).map(|id| if id < vocabulary.marks { 3 } else { 1 }).collect();
    let mut metadata: Vec<(String, Meta)> = vec![
        ("tokenizer.ggml.model".into(), Meta::Text("gpt2".into())),
        ("tokenizer.ggml.tokens".into(), Meta::Texts(vocabulary.tokens.clone())),
        ("tokenizer.ggml.merges".into(), Meta::Texts(vocabulary.merges.clone())),
        ("tokenizer.ggml.token_type".into(), Meta::Signed(kinds)),
        ("tokenizer.ggml.bos_token_id".into(), Meta::Unsigned(0)),
    ];
    metadata.extend(word.map(|word| ("tokenizer.ggml.pre".into(), Meta::Text(word.into()))));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, to_bytes(&metadata, &[])).unwrap();
    TextTokenizer::of_gguf(&Gguf::open(&path)?)
}

#[test]
fn texts_are_cut_as_each_word_says() {
    let told = told();
    let (texts, vocabulary) = (texts(&told["texts"]), every_part(&told));
    for cut in told["cuts"].as_array().unwrap() {
        let expected: Vec<Vec<String>> = serde_json::from_value(cut["pieces"].clone()).unwrap();
        assert_eq!(expected.len(), texts.len());
        // Words of one kind are one in the code, too; each is made in the next test.
        let word = cut["words"][0].as_str().unwrap();
        let made = tokenizer(Some(word), &vocabulary).unwrap();
        for (text, expected) in texts.iter().zip(expected) {
            let ids = made.encode(text, false).unwrap();
            let found: Vec<String> = ids.iter().map(|id| made.decode(&[*id]).unwrap()).collect();
            assert_eq!(found, expected, "{word}: {text:?}");
        }
    }
}

#[test]
fn texts_become_the_tokens_that_llama_cpp_makes_under_each_word() {
    let told = told();
    let (texts, vocabulary) = (texts(&told["texts"]), demo(&told));
    for cut in told["cuts"].as_array().unwrap() {
        let expected: Vec<Option<Vec<u32>>> = serde_json::from_value(cut["ids"].clone()).unwrap();
        assert_eq!(expected.len(), texts.len());
        let mut words: Vec<Option<&str>> = cut["words"].as_array().unwrap().iter().map(Value::as_str).collect();
        // A file without a word is cut by default, says the script of llama.cpp.
        words.extend(words.contains(&Some("default")).then_some(None));
        for word in words {
            let made = tokenizer(word, &vocabulary).unwrap();
            for (text, expected) in texts.iter().zip(&expected) {
                let found = made.encode(text, false).unwrap();
                assert!(expected.as_ref().is_none_or(|expected| *expected == found), "{word:?}: {text:?}: {found:?}");
                assert_eq!(made.decode(&found).unwrap(), *text, "{word:?}");
            }
            let begins = made.encode("a", true).unwrap()[0] == 0;
            assert_eq!(cut["begins"], begins, "{word:?}");
        }
    }
}

#[test]
fn words_that_are_not_known_are_refused() {
    let vocabulary = demo(&told());
    for (word, reason) in [
        ("falcon", "m.gguf: tokenizer.ggml.pre: \"falcon\" is not supported; a tokenizer.json beside the file is"),
        ("qwen35", "\"qwen35\" is not supported"),
        ("gpt2", "\"gpt2\" is not supported"),
        ("", "\"\" is not supported"),
    ] {
        let said = tokenizer(Some(word), &vocabulary).unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
    }
}

/// llama.cpp's source has vocabularies of models in `models/`, with texts and the ids that transformers has for them.
#[test]
#[ignore = "needs llama.cpp's folder `models` as KEDGE_VOCABULARIES"]
fn vocabularies_of_models_have_the_tokens_that_transformers_has() {
    const BETWEEN: &str = "\n__ggml_vocab_test__\n";
    let folder = std::path::PathBuf::from(std::env::var_os("KEDGE_VOCABULARIES").expect("where they are"));
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let made = TextTokenizer::of_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let [asked, ids] =
            ["inp", "out"].map(|end| std::fs::read_to_string(format!("{}.{end}", path.display())).unwrap());
        let (texts, lines): (Vec<_>, Vec<_>) = (asked.split(BETWEEN).collect(), ids.lines().collect());
        assert!(lines.len() > 40, "{name}");
        for (text, line) in texts.into_iter().zip(lines) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(made.encode(text, false).unwrap(), expected, "{name}: {text:?}");
        }
    }
}
