//! Encoders of each shape against transformers: BERT (as MiniLM, BGE and E5) with each pooling, and XLM-RoBERTa (as the
//! multilingual E5 and BGE-M3) with its positions and a vocabulary in the way of SentencePiece.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model directories")]

mod tiny_bert;

use std::path::{Path, PathBuf};

use kedge_engine::{Cpu, Encoder, Reference};
use serde::Deserialize;
use serde_json::json;
use tiny_bert::{WORDS, put_off, rewrite, tiny};

/// Largest distance between two numbers of a vector of length one, in 64-bit arithmetic and in 32-bit.
const EXACT: f64 = 1e-6;
const CLOSE: f64 = 1e-5;

/// Writes a model into a folder.
type Write = fn(&Path);

const MODELS: [(&str, Write); 5] = [
    ("bert mean", |folder| tiny(folder, "mean_tokens")),
    ("bert cls", |folder| tiny(folder, "cls_token")),
    ("bert max", |folder| tiny(folder, "max_tokens")),
    ("bert last", |folder| {
        tiny(folder, "mean_tokens");
        std::fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode_lasttoken":true}"#).unwrap();
    }),
    ("xlm-roberta mean", xlm_roberta),
];

fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["", "edge", "A model runs.", "boxs!", "a . a ! a", "éa  box"].map(String::from).to_vec();
    texts.push("edge box ".repeat(50));
    texts
}

/// The tiny BERT's weights, with two more positions, which belong to padding, and one kind of token; words are pieces.
fn xlm_roberta(folder: &Path) {
    tiny(folder, "mean_tokens");
    rewrite(folder, |name, shape, data| {
        put_off(name, shape, data);
        if name.contains("token_type") {
            shape[0] = 1;
            data.truncate(shape[1] * 4);
        }
    });
    let settings = json!({
        "model_type": "xlm-roberta", "hidden_act": "gelu", "hidden_size": tiny_bert::HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": tiny_bert::WIDE, "vocab_size": WORDS.len(), "layer_norm_eps": 1e-5,
        "max_position_embeddings": 22, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), settings.to_string()).unwrap();
    let pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁edge", "▁box", "▁", "s", "▁model", "▁run", ".", "a"];
    let vocabulary: Vec<_> = pieces.iter().enumerate().map(|(id, piece)| json!([piece, -(id as f64)])).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": pieces[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let ends = |id: usize| json!({ "id": pieces[id], "ids": [id], "tokens": [pieces[id]] });
    let part = |id: usize| json!({ "SpecialToken": { "id": pieces[id], "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFKC" }, { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " },
        ] },
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "post_processor": {
            "type": "TemplateProcessing", "single": [part(0), text, part(2)], "pair": [part(0), text, part(2)],
            "special_tokens": { "<s>": ends(0), "</s>": ends(2) },
        },
        "decoder": null, "model": { "type": "Unigram", "unk_id": 3, "vocab": vocabulary },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// See `tiny_bert/reference.py`.
#[test]
#[ignore = "writes the models that transformers is asked"]
fn write_what_transformers_is_asked() {
    let folder = PathBuf::from(std::env::var_os("KEDGE_TINY_FOLDER").expect("where to write them"));
    for (name, write) in MODELS {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write(&folder);
        std::fs::write(folder.join("texts.json"), json!(texts()).to_string()).unwrap();
    }
}

#[derive(Deserialize)]
struct Told {
    ids: Vec<u32>,
    vector: Vec<f64>,
}

#[test]
fn encoders_have_the_vectors_that_transformers_has() {
    let mut told: std::collections::HashMap<String, Vec<Told>> =
        serde_json::from_str(include_str!("tiny_bert/reference.json")).unwrap();
    for (name, write) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let told = told.remove(name).unwrap();
        let exact = Encoder::open(folder.path(), &Reference).unwrap();
        let mut encoders = vec![(exact, EXACT)];
        for level in Cpu::levels(Some(2)).unwrap() {
            encoders.push((Encoder::open(folder.path(), &level).unwrap(), CLOSE));
        }
        for (encoder, bound) in &encoders {
            for (index, (text, told)) in texts().iter().zip(&told).enumerate() {
                assert_eq!(encoder.tokenize(index, text).unwrap().ids, told.ids, "{name}: {text:?}");
                let found = encoder.encode(&[text]).unwrap().remove(0).vector;
                assert_eq!(found.len(), told.vector.len());
                let off = found.iter().zip(&told.vector).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(off < *bound, "{name}, {text:?} on {:?}: {off}", encoder.on().0);
            }
        }
    }
    assert!(told.is_empty(), "transformers was asked about more");
}
