//! Stored blocks against two other programs that read and write them: gguf's numpy code and ggml (`blocks.py`).

#![allow(clippy::unwrap_used, reason = "tests")]

use kedge_formats::Dtype;
use kedge_formats::quant::{dequantize, quantize};
use serde_json::Value;

/// Ours may lose as much as ggml's writer, times this: its search is simpler.
const LOSS: f64 = 1.08;

fn told() -> Value {
    serde_json::from_str(include_str!("blocks.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn floats(hex: &Value) -> Vec<f32> {
    bytes(hex).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn read(dtype: Dtype, blocks: &[u8]) -> Vec<f32> {
    let (values, length) = dtype.block();
    let mut found = vec![f32::NAN; blocks.len() / length * values];
    dequantize(dtype, blocks, &mut found);
    found
}

#[test]
fn every_type_is_read_bit_for_bit_as_others_read_it() {
    let told = &told()["read"];
    // Floats of 32 bits are what they are.
    let types: Vec<Dtype> = Dtype::READABLE.into_iter().filter(|dtype| *dtype != Dtype::F32).collect();
    assert_eq!(told.as_object().unwrap().len(), types.len());
    for dtype in types {
        let case = &told[dtype.name()];
        let (found, expected) = (read(dtype, &bytes(&case["blocks"])), floats(&case["values"]));
        assert_eq!(found.len(), expected.len(), "{}", dtype.name());
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{}, {index}: {found} and {expected}", dtype.name());
        }
    }
}

/// Reading is the same, so what is lost was lost in writing.
#[test]
fn writing_loses_hardly_more_than_others_lose() {
    let told = &told()["write"];
    let values = floats(&told["values"]);
    for (name, case) in told.as_object().unwrap().iter().filter(|(name, _)| *name != "values") {
        let dtype = Dtype::of_name(name).unwrap();
        let written = quantize(dtype, &values);
        if let Some(expected) = case.get("blocks") {
            assert!(written == bytes(expected), "{name}: other bytes than gguf writes");
        }
        let pairs = read(dtype, &written).into_iter().zip(&values);
        let off: f64 = pairs.map(|(found, value)| f64::from(found - value).powi(2)).sum();
        let error = (off / values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()).sqrt();
        let expected = case["error"].as_f64().unwrap();
        println!("{name}: {error:.6}, ggml: {expected:.6}");
        assert!(error <= expected * LOSS, "{name}: {error}, where ggml loses {expected}");
    }
}
