//! Whole tiny models on the PTX that ships, interpreted: against the plain backend, and the same bits in whole and in
//! pieces, alone and in company.

#![allow(clippy::unwrap_used, reason = "a test")]

mod devices;
#[path = "../../engine/tests/tiny_bert/mod.rs"]
mod tiny_bert;
#[path = "../../engine/tests/tiny_decoders/mod.rs"]
mod tiny_decoders;

use std::path::Path;

use devices::{Tested, Window, each};
use kedge_engine::generate::{End, Request, Sampling};
use kedge_engine::{Decoder, DecoderOptions, Encoder, Reference};
use kedge_formats::Dtype;
use tiny_bert::cosine;
use tiny_decoders::{distance, families, graph_of, logits_of, write_gguf, write_model};

/// Keys, values and the vectors of products are kept in 16 bits, which random weights pass on from layer to layer.
const FLOAT_TOLERANCE: f64 = 5e-3;
/// Vectors are rounded to bytes for each product with quantised weights, as on the CPU.
const QUANT_TOLERANCE: f64 = 3e-2;
/// Cosine distance allowed between 32-bit and 64-bit arithmetic.
const COSINE_MIN: f64 = 0.999_999;

fn check(name: &str, path: &Path, tolerance: f64, lengths: [usize; 2], pieces: &[usize]) {
    let graph = graph_of(path);
    let expected = logits_of(&graph, &Reference, 128, lengths);
    for Tested { name: on, backend, window } in each() {
        let whole = logits_of(&graph, &*backend, 128, lengths);
        let off = distance(&whole, &expected);
        assert!(off <= tolerance, "{name} on {on}: {off}");
        for piece in pieces {
            let found = logits_of(&graph, &*backend, *piece, lengths);
            assert_eq!(found, whole, "{name} on {on}: the same bits in pieces of {piece}");
            assert!(window.as_ref().is_none_or(|window| window.replays() > 0), "steps of one shape are recorded");
        }
    }
}

#[test]
fn every_family_agrees_with_the_plain_backend() {
    for (index, (family, more)) in families().into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), family, &more, if index % 2 == 0 { Dtype::Bf16 } else { Dtype::F32 });
        check(family, folder.path(), FLOAT_TOLERANCE, [40, 34], &[7]);
    }
}

#[test]
fn every_quantisation_agrees_with_the_plain_backend() {
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K, Dtype::F16] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        write_gguf(&path, dtype);
        check(dtype.name(), &path, QUANT_TOLERANCE, [34, 5], &[17]);
    }
}

#[test]
fn a_decoder_says_the_same_alone_and_in_company_and_chooses_on_the_device() {
    let (family, more) = families().remove(0);
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), family, &more, Dtype::F32);
    let sampling = |seed| Sampling {
        top_p: 0.9,
        top_k: 20,
        repetition_penalty: 1.1,
        logprobs: Some(2),
        seed,
        ..Sampling::default()
    };
    let request = |seed| Request {
        prompt: vec![1, 2, 3 + seed as u32],
        tokens_max: 12,
        sampling: if seed == 0 { Sampling::greedy() } else { sampling(seed) },
        ..Request::default()
    };
    for Tested { name: on, backend, window } in each() {
        let options = DecoderOptions { tokens_kept: Some(256), ..DecoderOptions::default() };
        let decoder = Decoder::open(folder.path(), &*backend, options).unwrap();
        let alone: Vec<_> = (0..3).map(|seed| decoder.complete(request(seed)).unwrap()).collect();
        let downloaded = window.as_ref().map(Window::downloaded);
        let together: Vec<_> = std::thread::scope(|scope| {
            let ask = |seed| {
                scope.spawn({
                    let decoder = &decoder;
                    move || decoder.complete(request(seed)).unwrap()
                })
            };
            let asked: Vec<_> = (0..3).map(ask).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        assert_eq!(alone, together, "{on}");
        assert!(alone.iter().all(|(tokens, end)| tokens.len() == 12 && *end == End::Length), "{on}: {alone:?}");
        if let (Some(window), Some(before)) = (window, downloaded) {
            assert!(window.replays() > 0, "steps of one shape are recorded");
            // For each a token, a total and two of the likeliest at most.
            let came = window.downloaded() - before;
            assert!(came <= 3 * 12 * 40, "{on}: only what was chosen comes back, not {came} bytes");
        }
    }
}

#[test]
fn an_encoder_agrees_with_the_plain_backend() {
    for pooling in ["mean_tokens", "cls_token", "max_tokens"] {
        let folder = tempfile::tempdir().unwrap();
        tiny_bert::tiny(folder.path(), pooling);
        let texts = &tiny_bert::texts()[..10];
        let expected = Encoder::open(folder.path(), &Reference).unwrap().encode(texts).unwrap();
        for Tested { name: on, backend, .. } in each() {
            let encoder = Encoder::open(folder.path(), &*backend).unwrap();
            let together = encoder.encode(texts).unwrap();
            for (index, (found, expected)) in together.iter().zip(&expected).enumerate() {
                let close = cosine(&found.vector, &expected.vector);
                assert!(close >= COSINE_MIN, "{pooling}, text {index}, {on}: {close}");
            }
            let alone = encoder.encode(&texts[2..3]).unwrap();
            assert_eq!(alone[0].vector, together[2].vector, "the same bits alone and in company");
        }
    }
}
