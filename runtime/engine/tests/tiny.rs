//! The whole way from files to vectors on a tiny BERT with random weights, made here from a seed: the CPU backend
//! against the plain one, and batches against single texts. Needs no download.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes a model directory")]

use std::collections::HashMap;
use std::path::Path;

use kedge_engine::{Backend, Cpu, Embedding, Encoder, Reference};

/// Cosine distance allowed between 32-bit and 64-bit arithmetic.
const COSINE_MIN: f64 = 0.999_999;

const HIDDEN: usize = 24;
const WIDE: usize = 40;
const WORDS: [&str; 12] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "edge", "box", "a", "##s", "model", "runs", ".", "!"];

fn tiny(directory: &Path, pooling: &str) {
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

fn write_weights(path: &Path) {
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

fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["", "edge", "A model runs.", "boxs!", "日本語 😀", " \n\t", "a . a ! a"].map(String::from).to_vec();
    texts.push("edge box ".repeat(50));
    texts.extend((0..40).map(|count| "model ".repeat(count % 17)));
    texts
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn encode(directory: &Path, backend: &dyn Backend) -> Vec<Embedding> {
    Encoder::open(directory, backend).unwrap().encode(&texts()).unwrap()
}

#[test]
fn cpu_agrees_with_the_plain_backend() {
    for pooling in ["mean_tokens", "cls_token", "max_tokens"] {
        let directory = tempfile::tempdir().unwrap();
        tiny(directory.path(), pooling);
        let expected = encode(directory.path(), &Reference);
        assert!(
            cosine(&expected[1].vector, &expected[2].vector) < 0.9999,
            "different texts must have different vectors"
        );
        for threads in [1, 3] {
            for backend in Cpu::levels(Some(threads)).unwrap() {
                for (index, (actual, expected)) in encode(directory.path(), &backend).iter().zip(&expected).enumerate()
                {
                    let close = cosine(&actual.vector, &expected.vector);
                    assert!(close >= COSINE_MIN, "{pooling}, text {index}, {:?}: {close}", backend.capabilities());
                    assert_eq!(actual.tokens, expected.tokens);
                }
            }
        }
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
    let directory = tempfile::tempdir().unwrap();
    tiny(directory.path(), "mean_tokens");
    let encoder = Encoder::open(&directory.path().join("model.safetensors"), &Cpu::new(Some(2)).unwrap()).unwrap();
    let together = encoder.encode(&texts()).unwrap();
    for (text, together) in texts().iter().zip(&together) {
        let alone = encoder.encode(&[text]).unwrap().remove(0);
        let furthest = alone.vector.iter().zip(&together.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest <= 1e-6, "{text:?}: {furthest}");
    }
    assert_eq!(
        (together[0].tokens, together[7].tokens),
        (2, 18),
        "an empty text is two special tokens; a long one is cut at 18"
    );
}

#[test]
fn what_the_model_cannot_take_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    tiny(directory.path(), "mean_tokens");
    let encoder = Encoder::open(directory.path(), &Reference).unwrap();
    for (ids, expected) in [
        (vec![], "tokens of input 4: there are none"),
        (vec![2, 12, 3], "id 12 is not below"),
        (vec![4; 19], "there are 19, and the model takes 18"),
    ] {
        let said = encoder.tokens(4, &ids).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    let weights = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    let said = Encoder::open(directory.path(), &Reference).err().unwrap().to_string();
    assert!(said.contains("model.safetensors: tensor ") && said.contains("claims bytes"), "{said}");
}
