//! Tiny decoders of every family with random weights, made here from a seed: each level of the CPU backend against the
//! plain one, whole prompts against pieces, and requests alone against requests in company.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

mod tiny_decoders;

use std::path::{Path, PathBuf};

use kedge_engine::generate::{Request, Sampling};
use kedge_engine::graph::PAGE_TOKENS;
use kedge_engine::{Backend, Cpu, Decoder, DecoderOptions, Reference};
use kedge_formats::Dtype;
use serde_json::{Value, json};
use tiny_decoders::{config, distance, families, graph_of, logits, prompt, write_gguf, write_model};

/// Keys and values are kept in 16 bits, which random weights pass on from layer to layer.
const FLOAT_TOLERANCE: f64 = 5e-3;
/// Rows are rounded to bytes for each product with quantised weights.
const QUANT_TOLERANCE: f64 = 3e-2;

/// Everything that must hold for one model; `tolerance` is the relative distance between plain and fast.
fn check(name: &str, path: &Path, tolerance: f64) {
    let graph = graph_of(path);
    let expected = logits(&graph, &Reference, 128);
    assert!(expected.iter().all(|logit| logit.is_finite()));
    assert!(distance(&logits(&graph, &Reference, 7), &expected) < 1e-6, "{name}: pieces, plainly");
    for backend in Cpu::levels(Some(2)).unwrap() {
        let features = backend.capabilities().features;
        let whole = logits(&graph, &backend, 128);
        let off = distance(&whole, &expected);
        assert!(off <= tolerance, "{name} on {features}: {off}");
        for piece in [1, 7, 32] {
            assert_eq!(
                logits(&graph, &backend, piece),
                whole,
                "{name} on {features}: the same bits in pieces of {piece}"
            );
        }
    }
}

#[test]
fn every_family_agrees_with_the_plain_backend_in_whole_and_in_pieces() {
    for (family, more) in families() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let folder = tempfile::tempdir().unwrap();
            write_model(folder.path(), family, &more, dtype);
            check(family, folder.path(), FLOAT_TOLERANCE);
        }
    }
}

#[test]
fn every_quantisation_agrees_with_the_plain_backend() {
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K, Dtype::F16] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        write_gguf(&path, dtype);
        check(dtype.name(), &path, QUANT_TOLERANCE);
    }
}

fn request(seed: u32, length: usize) -> Request {
    Request { prompt: prompt(length, seed), tokens_max: 40, sampling: Sampling::greedy(), ..Request::default() }
}

fn decoder(path: PathBuf, tokens_kept: usize) -> Decoder {
    let options = DecoderOptions { tokens_kept: Some(tokens_kept), rows_max: 24, running_max: 8 };
    Decoder::open(&path, &Cpu::new(Some(2)).unwrap(), options).unwrap()
}

#[test]
fn greedy_text_is_the_same_alone_and_in_company() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_gguf(&path, Dtype::Q4K);
    let alone: Vec<_> = (0..12)
        .map(|seed| decoder(path.clone(), 512).complete(request(seed, 20 + 11 * seed as usize)).unwrap())
        .collect();
    // So few pages that requests have to make room for each other.
    let shared = decoder(path, 320);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|seed| {
                let shared = &shared;
                scope.spawn(move || shared.complete(request(seed, 20 + 11 * seed as usize)).unwrap())
            })
            .collect();
        for (seed, (thread, alone)) in threads.into_iter().zip(&alone).enumerate() {
            assert_eq!(&thread.join().unwrap(), alone, "request {seed}");
        }
    });
    let tokens_free = shared.figures().tokens_free.load(std::sync::atomic::Ordering::Relaxed);
    assert!(tokens_free <= 320 && tokens_free > 320 - 8 * PAGE_TOKENS as u64);
}

#[test]
fn what_a_decoder_cannot_take_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
    let said = |change: &dyn Fn(&mut Value)| {
        let mut config = config("LlamaForCausalLM", &json!({}));
        change(&mut config);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Decoder::read(folder.path()).map(drop).unwrap_err().to_string()
    };
    for (field, value, expected) in [
        ("architectures", json!(["FalconForCausalLM"]), "architectures: \"FalconForCausalLM\" is not supported; Llama"),
        ("rope_scaling", json!({"type": "yarn"}), "rope_scaling: \"yarn\" is not supported"),
        ("rope_parameters", json!({"rope_theta": 5e5}), "rope_parameters: {\"rope_theta\":500000.0} is not supported"),
        ("use_sliding_window", json!(true), "use_sliding_window: true is not supported"),
        ("hidden_act", json!("relu"), "hidden_act: \"relu\" is not supported"),
        ("num_key_value_heads", json!(3), "num_key_value_heads: 3 does not divide the 4 heads"),
        ("vocab_size", json!(90), "tensor model.embed_tokens.weight: has shape [80, 64]"),
        ("hidden_size", json!(0), "hidden_size: 0 is not between"),
    ] {
        let text = said(&|config| config[field] = value.clone());
        assert!(text.contains(expected), "{text}");
    }
    write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
    let decoder = decoder(folder.path().to_owned(), 512);
    for (prompt, expected) in
        [(vec![], "there are none"), (vec![80], "id 80 is not below"), (vec![1; 256], "may have 256 together")]
    {
        let refused = decoder.complete(Request { prompt, ..Request::default() }).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
