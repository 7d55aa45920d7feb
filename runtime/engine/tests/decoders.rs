//! Tiny decoders of every family with random weights, made here from a seed: each level of the CPU backend against the
//! plain one, whole prompts against pieces, and requests alone against requests in company.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

mod tiny_decoders;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use kedge_engine::backend::{Prepared, Step};
use kedge_engine::generate::{End, Request, Sampling};
use kedge_engine::graph::{Graph, PAGE_TOKENS};
use kedge_engine::plan::Plan;
use kedge_engine::{Backend, Capabilities, Cpu, Decoder, DecoderOptions, EngineError, Reference, WithSpare};
use kedge_formats::Dtype;
use serde_json::{Value, json};
use tiny_decoders::{WORDS, config, distance, families, graph_of, logits, logits_of, prompt, write_gguf, write_model};

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

/// The families, and the ways of turning beyond those that they have: a name, its family, and its settings.
fn named() -> Vec<(String, &'static str, Value)> {
    let usual = families().into_iter().map(|(family, more)| (family.to_owned(), family, more));
    let scaled = |name: &str, family, more| (name.to_owned(), family, more);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let factors = |first: f64| (0..4).map(|pair| first + 0.5 * f64::from(pair)).collect::<Vec<_>>();
    let long = json!({"type": "longrope", "short_factor": factors(1.0), "long_factor": factors(1.5)});
    usual
        .chain([
            scaled("Qwen2 with YaRN", "Qwen2ForCausalLM", json!({"rope_scaling": yarn})),
            scaled(
                "Llama stretched",
                "LlamaForCausalLM",
                json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            ),
            scaled(
                "Llama by rope_parameters",
                "LlamaForCausalLM",
                json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}),
            ),
            scaled(
                "Phi3 with LongRoPE",
                "Phi3ForCausalLM",
                json!({
                    "rope_scaling": long, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5,
                    "sliding_window": null,
                }),
            ),
            scaled(
                "Gemma3 by rope_parameters",
                "Gemma3ForCausalLM",
                json!({
                    "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20, "hidden_activation": "gelu_pytorch_tanh",
                    "num_hidden_layers": 6, "rope_theta": null,
                    "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                    },
                }),
            ),
        ])
        .collect()
}

/// Lengths of the prompts that transformers was asked: one beyond every window, one that is short.
const ASKED: [usize; 2] = [90, 12];

/// See `tiny_decoders/reference.py`.
#[test]
#[ignore = "writes the models that transformers is asked"]
fn write_what_transformers_is_asked() {
    let folder = PathBuf::from(std::env::var_os("KEDGE_TINY_FOLDER").expect("where to write them"));
    for (name, family, more) in named() {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_model(&folder, family, &more, Dtype::F32);
        let prompts = [prompt(ASKED[0], 3), prompt(ASKED[1], 4)];
        std::fs::write(folder.join("prompts.json"), json!(prompts).to_string()).unwrap();
    }
}

#[test]
fn every_family_has_the_logits_that_transformers_has() {
    let told: Value = serde_json::from_str(include_str!("tiny_decoders/reference.json")).unwrap();
    for (name, family, more) in named() {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), family, &more, Dtype::F32);
        assert_eq!(Decoder::read(folder.path()).unwrap().0.family.hugging_face, family);
        let found = logits_of(&graph_of(folder.path()), &Reference, 128, ASKED);
        // The last of three answers for each prompt.
        let last = |prompt: usize| &found[(prompt * 3 + 2) * WORDS..][..WORDS];
        // Short texts of LongRoPE are turned as long ones (as in vLLM), so that a text may grow; transformers turns them
        // by what they were before.
        let asked = if name.contains("LongRoPE") { 1 } else { 2 };
        for prompt in 0..asked {
            let expected: Vec<f32> = serde_json::from_value(told[&name][prompt].clone()).unwrap();
            let off = distance(last(prompt), &expected);
            assert!(off < 1e-5, "{name}, prompt {prompt}: {off}");
        }
    }
}

#[test]
fn weights_are_those_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
    let (usual, tuned) = (folder.path().join("model.safetensors"), folder.path().join("tuned.safetensors"));
    std::fs::rename(&usual, &tuned).unwrap();
    let named = graph_of(&tuned);
    std::fs::write(&usual, "of another model").unwrap();
    assert_eq!(graph_of(&tuned).weights[0].bytes(), named.weights[0].bytes());
}

#[test]
fn weights_in_shards_are_those_of_one_file() {
    let [whole, shards] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [&whole, &shards] {
        write_model(folder.path(), "Qwen2ForCausalLM", &json!({}), Dtype::F32);
    }
    let single = shards.path().join("model.safetensors");
    let bytes = std::fs::read(&single).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    let mut parts = [Vec::new(), Vec::new()];
    for (index, (name, view)) in tensors.iter().enumerate() {
        map.insert(name.to_owned(), format!("model-{}-of-2.safetensors", index % 2 + 1).into());
        parts[index % 2].push((name.to_owned(), view));
    }
    for (index, part) in parts.into_iter().enumerate() {
        let path = shards.path().join(format!("model-{}-of-2.safetensors", index + 1));
        std::fs::write(path, safetensors::serialize(part, None).unwrap()).unwrap();
    }
    std::fs::remove_file(&single).unwrap();
    std::fs::write(shards.path().join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string())
        .unwrap();
    let of = |folder: &Path| graph_of(folder).weights.iter().map(|weight| weight.bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(of(shards.path()), of(whole.path()));
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
    let options =
        DecoderOptions { tokens_kept: Some(tokens_kept), rows_max: 24, running_max: 8, ..DecoderOptions::default() };
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

/// A processor that is lost after so many steps.
struct Frail {
    cpu: Cpu,
    steps: Arc<AtomicUsize>,
}

struct FrailSteps {
    inner: Box<dyn Prepared>,
    steps: Arc<AtomicUsize>,
}

impl Backend for Frail {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "frail", ..self.cpu.capabilities() }
    }

    fn memory_bytes_free(&self) -> u64 {
        self.cpu.memory_bytes_free()
    }

    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
        Ok(Box::new(FrailSteps { inner: self.cpu.prepare(graph, pages)?, steps: self.steps.clone() }))
    }
}

impl Prepared for FrailSteps {
    fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError> {
        let left = self.steps.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map_err(|_| EngineError::Device { device: "frail".into(), reason: "it fell off the bus".into() })?;
        self.inner.run(plan, step, answers)
    }
}

#[test]
fn answers_go_on_elsewhere_when_a_device_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_gguf(&path, Dtype::Q8_0);
    let alone: Vec<_> = (0..4).map(|seed| decoder(path.clone(), 512).complete(request(seed, 50)).unwrap()).collect();
    for steps in [0, 1, 7, 30] {
        let cpu = || Cpu::new(Some(2)).unwrap();
        let frail = Frail { cpu: cpu(), steps: Arc::new(AtomicUsize::new(steps)) };
        let options =
            DecoderOptions { tokens_kept: Some(512), rows_max: 24, running_max: 8, ..DecoderOptions::default() };
        let moving = Decoder::open(&path, &WithSpare::new(Box::new(frail), Arc::new(cpu())), options).unwrap();
        assert_eq!((moving.on().0.name, moving.on().1), ("frail", None));
        std::thread::scope(|scope| {
            let ask = |seed: usize| {
                let moving = &moving;
                scope.spawn(move || moving.complete(request(seed as u32, 50)).unwrap())
            };
            let threads: Vec<_> = (0..4).map(ask).collect();
            for (thread, alone) in threads.into_iter().zip(&alone) {
                assert_eq!(&thread.join().unwrap(), alone, "after {steps} steps");
            }
        });
        assert_eq!((moving.on().0.name, moving.on().1.as_deref()), ("cpu", Some("frail: it fell off the bus")));
    }
}

#[test]
fn a_decoder_whose_device_is_lost_for_good_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_gguf(&path, Dtype::Q8_0);
    let frail = Frail { cpu: Cpu::new(Some(1)).unwrap(), steps: Arc::new(AtomicUsize::new(2)) };
    let options = DecoderOptions { tokens_kept: Some(512), rows_max: 24, running_max: 8, ..DecoderOptions::default() };
    let alone = Decoder::open(&path, &frail, options).unwrap();
    let (sender, ended) = channel();
    let told = |who: &'static str| {
        let sender = sender.clone();
        move || sender.send(who).unwrap()
    };
    alone.when_ended(told("first"));
    alone.when_ended(told("second"));
    for attempt in 1..=3 {
        let (_, end) = alone.complete(request(1, 30)).unwrap();
        assert_eq!(end, End::Failed("frail: it fell off the bus".into()), "attempt {attempt}");
    }
    assert_eq!([ended.recv(), ended.recv()], [Ok("first"), Ok("second")]);
    assert!(!alone.is_served());
    alone.when_ended(told("late"));
    assert_eq!(ended.try_recv(), Ok("late"));
    let refused = alone.submit(request(1, 30), Box::new(|_| true)).unwrap_err();
    assert!(matches!(refused, EngineError::Ended), "{refused}");
    assert!(matches!(alone.complete(request(1, 30)), Err(EngineError::Ended)));
    assert_eq!(alone.figures().open.load(Ordering::Relaxed), 0, "nothing is left open");
}

#[test]
fn whoever_waits_for_the_end_is_told_when_a_decoder_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write_gguf(&path, Dtype::Q8_0);
    let (sender, ended) = channel();
    let decoder = decoder(path, 64);
    decoder.when_ended(move || sender.send(()).unwrap());
    assert!(decoder.is_served() && ended.try_recv().is_err());
    drop(decoder);
    assert_eq!(ended.try_recv(), Ok(()));
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
        ("rope_scaling", json!({"type": "dynamic"}), "rope_scaling: \"dynamic\" is not supported; default, linear"),
        ("rope_scaling", json!({"type": "yarn"}), "rope_scaling.factor: must be a number above zero"),
        ("rope_parameters", json!({"rope_type": "linear", "factor": -1}), "rope_parameters.factor: must be a number"),
        (
            "rope_scaling",
            json!({"type": "longrope", "original_max_position_embeddings": 64, "long_factor": [1, 2]}),
            "rope_scaling.long_factor: must be 8 numbers above zero, one for each pair",
        ),
        (
            "rope_scaling",
            json!({"type": "longrope", "original_max_position_embeddings": 1, "long_factor": [1, 1, 1, 1, 1, 1, 1, 1]}),
            "rope: what is turned is multiplied by inf",
        ),
        (
            "rope_parameters",
            json!({
                "full_attention": {"rope_type": "default"},
                "sliding_attention": {"rope_type": "default", "partial_rotary_factor": 0.01},
            }),
            "rope: 0 pairs of a head of 16 cannot be turned",
        ),
        ("use_sliding_window", json!(true), "use_sliding_window: true is not supported"),
        ("hidden_act", json!("relu"), "hidden_act: \"relu\" is not supported"),
        ("num_key_value_heads", json!(3), "num_key_value_heads: 3 does not divide the 4 heads"),
        ("vocab_size", json!(90), "tensor model.embed_tokens.weight: has shape [80, 64]"),
        ("vocab_size", json!(1 << 24), "vocab_size: 16777216 tokens are more than 16777215"),
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
