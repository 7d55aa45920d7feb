//! A tiny BERT with random weights, made from a seed, and texts for it.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests write a model directory")]

pub mod as_gguf;

use std::collections::HashMap;
use std::path::Path;

pub const HIDDEN: usize = 24;
pub const WIDE: usize = 40;
pub const WORDS: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "edge", "box", "a", "##s", "model", "runs", ".", "!"];

pub fn tiny(directory: &Path, pooling: &str) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    write(
        "config.json",
        format!(
            r#"{{"model_type":"bert","hidden_act":"gelu","hidden_size":{HIDDEN},"num_hidden_layers":2,"num_attention_heads":3,"intermediate_size":{WIDE},"vocab_size":{},"max_position_embeddings":20,"type_vocab_size":2,"layer_norm_eps":1e-12}}"#,
            WORDS.len()
        ),
    );
    write("sentence_bert_config.json", r#"{"max_seq_length":18}"#.into());
    let modules = ["Transformer\",\"path\":\"", "Pooling\",\"path\":\"1_Pooling", "Normalize\",\"path\":\"2_Normalize"];
    write(
        "modules.json",
        format!("[{}]", modules.map(|m| format!("{{\"type\":\"sentence_transformers.models.{m}\"}}")).join(",")),
    );
    std::fs::create_dir_all(directory.join("1_Pooling")).unwrap();
    write("1_Pooling/config.json", format!(r#"{{"pooling_mode_{pooling}":true}}"#));
    let vocabulary: Vec<String> = WORDS.iter().enumerate().map(|(id, word)| format!("{word:?}:{id}")).collect();
    write(
        "tokenizer.json",
        format!(
            r###"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}},"pre_tokenizer":{{"type":"BertPreTokenizer"}},"post_processor":{{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}},"decoder":null,"model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{{{}}}}}}}"###,
            vocabulary.join(",")
        ),
    );
    write_weights(&directory.join("model.safetensors"));
}

pub fn write_weights(path: &Path) {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![20, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
    ];
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..2 {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
        for (part, out, inner) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", WIDE, HIDDEN),
            ("output.dense", HIDDEN, WIDE),
        ] {
            shapes.push((at(&format!("{part}.weight")), vec![out, inner]));
            shapes.push((at(&format!("{part}.bias")), vec![out]));
        }
    }
    norms
        .iter()
        .for_each(|norm| shapes.extend(["weight", "bias"].map(|part| (format!("{norm}.{part}"), vec![HIDDEN]))));
    let mut seed = 7u32;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| (0..shape.iter().product::<usize>()).flat_map(|_| random().to_le_bytes()).collect())
        .collect();
    let views: HashMap<_, _> = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes the weights of a folder again, each with its name, shape and bytes changed.
pub fn rewrite(folder: &Path, change: impl Fn(&mut String, &mut Vec<usize>, &mut Vec<u8>)) {
    let path = folder.join("model.safetensors");
    let weights = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let (mut name, mut shape, mut data) = (name.to_owned(), view.shape().to_vec(), view.data().to_vec());
            change(&mut name, &mut shape, &mut data);
            (name, shape, data)
        })
        .collect();
    let views = changed.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Where that is the table of positions, two are put before all others: they belong to padding, and are never met.
pub fn put_off(name: &str, shape: &mut [usize], data: &mut Vec<u8>) {
    if name.contains("position_embeddings") {
        shape[0] += 2;
        data.splice(..0, vec![0x40; 2 * shape[1] * 4]);
    }
}

pub fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["", "edge", "A model runs.", "boxs!", "日本語 😀", " \n\t", "a . a ! a"].map(String::from).to_vec();
    texts.push("edge box ".repeat(50));
    texts.extend((0..40).map(|count| "model ".repeat(count % 17)));
    texts
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
