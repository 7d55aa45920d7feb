//! Tiny decoders of every family as GGUF files, against llama.cpp.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

mod tiny_decoders;

use std::path::{Path, PathBuf};

use kedge_engine::model::DecoderConfig;
use kedge_engine::{Decoder, Reference};
use kedge_formats::gguf::write::{Value as Meta, to_bytes};
use kedge_formats::{Dtype, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiny_decoders::{WORDS, as_gguf, distance, graph_of, logits_of, prompt, write_model};

/// Lengths of the prompts that llama.cpp was asked: one beyond every window, one that is short.
const ASKED: [usize; 2] = [90, 12];
/// llama.cpp computes with 32-bit floats, and looks GELU up in a table of 16-bit floats (`ggml_table_gelu_f16`).
const TOLERANCE: f64 = 1e-5;
const TOLERANCE_GELU: f64 = 1e-3;

/// See `tiny_decoders/llama_cpp.py`.
#[test]
#[ignore = "writes the models that llama.cpp is asked"]
fn write_what_llama_cpp_is_asked() {
    let folder = PathBuf::from(std::env::var_os("KEDGE_TINY_FOLDER").expect("where to write them"));
    for (name, family, more) in as_gguf::cases() {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_model(&folder, family, &more, Dtype::F32);
        let prompts = [prompt(ASKED[0], 3), prompt(ASKED[1], 4)];
        std::fs::write(folder.join("prompts.json"), json!(prompts).to_string()).unwrap();
    }
}

/// Logits as log probabilities.
fn logprobs(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| (f64::from(logit - largest) - sum.ln()) as f32).collect()
}

#[test]
fn every_family_has_the_log_probabilities_that_llama_cpp_has() {
    let told: Value = serde_json::from_str(include_str!("tiny_decoders/llama_cpp.json")).unwrap();
    let mut wrong = Vec::new();
    for (name, family, more) in as_gguf::cases() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        as_gguf::write(&path, family, &more);
        let digest: String = Sha256::digest(std::fs::read(&path).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(told[name]["sha256"], digest, "{name}: the file is another than llama.cpp was given");
        let found = logits_of(&graph_of(&path), &Reference, 128, ASKED);
        for prompt in 0..ASKED.len() {
            // The last of three answers for each prompt.
            let last = logprobs(&found[(prompt * 3 + 2) * WORDS..][..WORDS]);
            let expected: Vec<f32> = serde_json::from_value(told[name]["logprobs"][prompt].clone()).unwrap();
            let off = distance(&last, &expected);
            let tolerance = if name.starts_with("Gemma") { TOLERANCE_GELU } else { TOLERANCE };
            println!("{name}, prompt {prompt}: {off:.1e}");
            if off > tolerance {
                wrong.push(format!("{name}, prompt {prompt}: {off}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The case of that name, with keys changed or gone, and tensors added.
fn changed(path: &Path, name: &str, keys: &[(&str, Option<Meta>)], tensors: &[&str]) -> Result<DecoderConfig, String> {
    let (_, family, more) = as_gguf::cases().into_iter().find(|(case, ..)| *case == name).unwrap();
    let config = tiny_decoders::config(family, &more);
    let mut metadata = as_gguf::metadata(family, &config);
    metadata.retain(|(key, _)| keys.iter().all(|(other, _)| key != other));
    metadata.extend(keys.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?))));
    let mut all = as_gguf::tensors(family, &config, Dtype::F32);
    all.extend(tensors.iter().map(|name| ((*name).to_owned(), Tensor::of_f32(&[16], &[1.0; 16]))));
    std::fs::write(path, to_bytes(&metadata, &all)).unwrap();
    Decoder::read(path).map(|(config, _)| config).map_err(|error| error.to_string())
}

#[test]
fn what_a_file_says_beyond_the_usual_is_meant_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let window = |name, keys: &[(&str, Option<Meta>)]| changed(&path, name, keys, &[]).map(|config| config.window);
    let number = |value| Some(Meta::Unsigned(value));
    assert_eq!(window("Phi3", &[]), Ok(None), "Phi-4 says zero");
    assert_eq!(window("Phi3", &[("phi3.attention.sliding_window", number(33))]), Ok(Some(33)));
    assert_eq!(window("Llama", &[("llama.attention.sliding_window", number(40))]), Ok(Some(40)));
    assert_eq!(window("Gemma2", &[("gemma2.attention.sliding_window", None)]), Ok(Some(4096)));
    assert_eq!(window("Gemma3", &[("gemma3.attention.sliding_window", None)]), Ok(None));
    let pattern = "gemma3.attention.sliding_window_pattern";
    let list = |last| Some(Meta::Signed(vec![1, 1, 1, 1, 1, last]));
    for (told, fits) in [(number(6), true), (list(0), true), (number(2), false), (list(1), false)] {
        let said = window("Gemma3", &[(pattern, told)]);
        let expected = if fits { Ok(Some(20)) } else { Err(format!("{}: {pattern}: is another", path.display())) };
        assert!(said == expected || !fits && said.as_ref().is_err_and(|text| text.contains(pattern)), "{said:?}");
    }
    let norm = [("llama.expert_weights_norm", Some(Meta::Bool(false)))];
    assert!(!changed(&path, "Mixtral", &norm, &[]).unwrap().experts.unwrap().normalize);
    for (name, key, value, expected) in [
        ("Qwen2", "qwen2.attention.sliding_window", number(9), "9 is not supported; models of this architecture have"),
        ("Llama", "llama.logit_scale", Some(Meta::Float(0.5)), "0.5 is not supported; 1 is"),
        ("Qwen3", "qwen3.attention.causal", Some(Meta::Bool(false)), "0 is not supported; 1 is"),
        ("Mixtral", "llama.expert_gating_func", number(2), "2 is not supported; 1 is"),
        ("Llama", "llama.rope.scaling.type", number(2), "is no text"),
        ("Qwen3", "qwen3.pooling_type", number(3), "3 is that of an encoder"),
        ("Qwen2", "qwen2.attention.head_count_kv", number(3), "3 does not divide the 4 heads"),
        ("Mixtral", "llama.expert_used_count", number(200), "is not between 1 and"),
        ("Llama", "llama.embedding_length", number(1 << 20), "heads of 262144 are wider"),
        ("Llama", "llama.attention.key_length", number(1 << 13), "heads of 8192 are wider"),
        ("Llama", "llama.rope.scaling.yarn_ext_factor", Some(Meta::Float(0.5)), "only 1 is supported"),
    ] {
        let said = changed(&path, name, &[(key, value)], &[]).unwrap_err();
        assert!(said.contains(&format!("{key}: {expected}")), "{said}");
    }
    let said = changed(&path, "Llama", &[], &["blk.1.attn_q_norm.weight"]).unwrap_err();
    assert!(
        said.contains("tensor blk.1.attn_q_norm.weight: is in the file, and models of the architecture llama"),
        "{said}"
    );
}

/// llama.cpp looks all the way back in a `llama`; transformers, which is asked about the same model, does not.
#[test]
fn a_mistral_that_says_its_window_looks_back_no_further() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "MistralForCausalLM", &json!({"head_dim": 24, "sliding_window": 40}), Dtype::F32);
    let path = folder.path().join("m.gguf");
    changed(&path, "Mistral", &[("llama.attention.sliding_window", Some(Meta::Unsigned(40)))], &[]).unwrap();
    let [folder, file] = [folder.path(), &path].map(|path| logits_of(&graph_of(path), &Reference, 128, ASKED));
    let off = distance(&file, &folder);
    assert!(off < 1e-6, "{off}");
}
