//! Tiny decoders of every family with random weights, made from a seed, and what is asked of them.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests write model files")]

pub mod as_gguf;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kedge_engine::backend::{Sequence, Step};
use kedge_engine::graph::Graph;
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Decoder};
use kedge_formats::{Dtype, Tensor, gguf, quant};
use serde_json::{Value, json};

pub const HIDDEN: usize = 64;
pub const WIDE: usize = 96;
pub const WORDS: usize = 80;
pub const LAYERS: usize = 2;

/// Each family with what its settings say beyond the usual.
pub fn families() -> Vec<(&'static str, Value)> {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    vec![
        ("LlamaForCausalLM", json!({"rope_scaling": llama3})),
        ("MistralForCausalLM", json!({"sliding_window": 40, "head_dim": 24})),
        ("MixtralForCausalLM", json!({"num_local_experts": 4, "num_experts_per_tok": 2})),
        ("Qwen2ForCausalLM", json!({"tie_word_embeddings": true})),
        ("Qwen3ForCausalLM", json!({"head_dim": 32})),
        (
            "Qwen3MoeForCausalLM",
            json!({"num_experts": 4, "num_experts_per_tok": 3, "norm_topk_prob": false, "moe_intermediate_size": 32}),
        ),
        ("Phi3ForCausalLM", json!({"sliding_window": 33, "partial_rotary_factor": 0.5})),
        (
            "Gemma2ForCausalLM",
            json!({"head_dim": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 10, "sliding_window": 35, "hidden_activation": "gelu_pytorch_tanh"}),
        ),
        (
            "Gemma3ForCausalLM",
            json!({"head_dim": 16, "rope_local_base_freq": 500.0, "query_pre_attn_scalar": 16, "sliding_window": 20, "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 6}),
        ),
    ]
}

pub struct Random(pub u32);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, count: usize, scale: f32, shift: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale + shift).collect()
    }
}

/// The tensors that a family has, by their names in Hugging Face's files.
pub fn tensors(family: &str, config: &Value) -> Vec<(String, Vec<usize>)> {
    let number = |field: &str| config[field].as_u64().unwrap() as usize;
    let (heads, key) = (number("num_attention_heads"), number("num_key_value_heads"));
    let width = config["head_dim"].as_u64().map_or(HIDDEN / heads, |width| width as usize);
    let mut all =
        vec![("model.embed_tokens.weight".to_owned(), vec![WORDS, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
    if config["tie_word_embeddings"] != true {
        all.push(("lm_head.weight".into(), vec![WORDS, HIDDEN]));
    }
    let gemma = family.starts_with("Gemma");
    for layer in 0..number("num_hidden_layers") {
        let mut add = |part: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
        if gemma {
            add("pre_feedforward_layernorm.weight", &[HIDDEN]);
            add("post_feedforward_layernorm.weight", &[HIDDEN]);
        }
        if family.starts_with("Phi") {
            add("self_attn.qkv_proj.weight", &[(heads + 2 * key) * width, HIDDEN]);
            add("mlp.gate_up_proj.weight", &[2 * WIDE, HIDDEN]);
        } else {
            for (part, count) in [("q", heads), ("k", key), ("v", key)] {
                add(&format!("self_attn.{part}_proj.weight"), &[count * width, HIDDEN]);
                if family.starts_with("Qwen2") {
                    add(&format!("self_attn.{part}_proj.bias"), &[count * width]);
                }
            }
        }
        if family.starts_with("Qwen3") || family.starts_with("Gemma3") {
            add("self_attn.q_norm.weight", &[width]);
            add("self_attn.k_norm.weight", &[width]);
        }
        add("self_attn.o_proj.weight", &[HIDDEN, heads * width]);
        let (block, names, inner) = match family {
            "MixtralForCausalLM" => ("block_sparse_moe", ["w1", "w3", "w2"], WIDE),
            "Qwen3MoeForCausalLM" => ("mlp", ["gate_proj", "up_proj", "down_proj"], 32),
            _ => ("", ["gate_proj", "up_proj", "down_proj"], WIDE),
        };
        if block.is_empty() {
            if !family.starts_with("Phi") {
                add("mlp.gate_proj.weight", &[WIDE, HIDDEN]);
                add("mlp.up_proj.weight", &[WIDE, HIDDEN]);
            }
            add("mlp.down_proj.weight", &[HIDDEN, WIDE]);
        } else {
            add(&format!("{block}.gate.weight"), &[4, HIDDEN]);
            for (expert, (index, name)) in
                (0..4).flat_map(|expert| names.iter().enumerate().map(move |name| (expert, name)))
            {
                let shape = if index == 2 { [HIDDEN, inner] } else { [inner, HIDDEN] };
                add(&format!("{block}.experts.{expert}.{name}.weight"), &shape);
            }
        }
    }
    all
}

pub fn config(family: &str, more: &Value) -> Value {
    let mut config = json!({
        "architectures": [family], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": WIDE, "vocab_size": WORDS, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "hidden_act": "silu", "tie_word_embeddings": false, "eos_token_id": 1,
    });
    more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    config
}

pub fn tokenizer() -> String {
    let vocabulary: serde_json::Map<String, Value> = (0..WORDS).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    })
    .to_string()
}

/// The tensors of a family with their numbers.
pub fn values(family: &str, config: &Value) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut random = Random(7);
    tensors(family, config)
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let values =
                if name.contains("norm") { random.values(count, 0.3, 1.0) } else { random.values(count, 0.25, 0.0) };
            (name, shape, values)
        })
        .collect()
}

pub fn write_model(folder: &Path, family: &str, more: &Value, dtype: Dtype) {
    let config = config(family, more);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer()).unwrap();
    let made: Vec<(String, Vec<usize>, Vec<u8>)> = values(family, &config)
        .into_iter()
        .map(|(name, shape, values)| (name, shape, quant::quantize(dtype, &values)))
        .collect();
    let kind = if dtype == Dtype::Bf16 { safetensors::Dtype::BF16 } else { safetensors::Dtype::F32 };
    let views: HashMap<&str, _> = made
        .iter()
        .map(|(name, shape, bytes)| {
            (name.as_str(), safetensors::tensor::TensorView::new(kind, shape.clone(), bytes).unwrap())
        })
        .collect();
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A tiny Llama in GGUF; `widths` are multiples of what a quantised row needs.
pub fn write_gguf(path: &Path, dtype: Dtype) {
    use gguf::write::Value as V;
    let hidden = 256;
    let number = |key: &str, value: u32| (format!("llama.{key}"), V::Unsigned(value));
    let mut metadata = vec![
        ("general.architecture".to_owned(), V::Text("llama".into())),
        number("embedding_length", hidden as u32),
        number("block_count", 2),
        number("attention.head_count", 4),
        number("attention.head_count_kv", 2),
        number("feed_forward_length", 512),
        number("context_length", 256),
        ("llama.attention.layer_norm_rms_epsilon".into(), V::Float(1e-5)),
        ("tokenizer.ggml.model".into(), V::Text("gpt2".into())),
        ("tokenizer.ggml.eos_token_id".into(), V::Unsigned(1)),
    ];
    let letters: Vec<String> = (b'!'..b'!' + WORDS as u8).map(|byte| char::from(byte).to_string()).collect();
    metadata.push(("tokenizer.ggml.tokens".into(), V::Texts(letters)));
    metadata.push(("tokenizer.ggml.merges".into(), V::Texts(vec![])));
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![WORDS, hidden]),
        ("output.weight".into(), vec![WORDS, hidden]),
        ("output_norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..2 {
        let mut add = |part: &str, shape: &[usize]| shapes.push((format!("blk.{layer}.{part}.weight"), shape.to_vec()));
        add("attn_norm", &[hidden]);
        add("ffn_norm", &[hidden]);
        add("attn_q", &[256, hidden]);
        add("attn_k", &[128, hidden]);
        add("attn_v", &[128, hidden]);
        add("attn_output", &[hidden, 256]);
        add("ffn_gate", &[512, hidden]);
        add("ffn_up", &[512, hidden]);
        add("ffn_down", &[hidden, 512]);
    }
    let mut random = Random(9);
    let tensors: Vec<(String, Tensor)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let is_norm = shape.len() == 1;
            let values = random.values(
                shape.iter().product(),
                if is_norm { 0.3 } else { 0.12 },
                if is_norm { 1.0 } else { 0.0 },
            );
            let dtype = if is_norm { Dtype::F32 } else { dtype };
            (name, Tensor::of_bytes(dtype, &shape, quant::quantize(dtype, &values)).unwrap())
        })
        .collect();
    std::fs::write(path, gguf::write::to_bytes(&metadata, &tensors)).unwrap();
}

pub fn prompt(length: usize, seed: u32) -> Vec<u32> {
    let mut random = Random(seed);
    (0..length).map(|_| ((random.next() + 1.0) * 0.5 * WORDS as f32) as u32 % WORDS as u32).collect()
}

/// The logits after each of the last three tokens of two prompts, computed together in pieces of that many tokens.
pub fn logits(graph: &Arc<Graph>, backend: &dyn Backend, piece: usize) -> Vec<f32> {
    logits_of(graph, backend, piece, [75, 41])
}

/// The same for prompts of that many tokens.
pub fn logits_of(graph: &Arc<Graph>, backend: &dyn Backend, piece: usize, lengths: [usize; 2]) -> Vec<f32> {
    let prepared = backend.prepare(graph.clone(), 16).unwrap();
    let prompts = [prompt(lengths[0], 3), prompt(lengths[1], 4)];
    // Pages in no order, as they are after a while.
    let pages = [vec![5, 0, 9], vec![3, 11]];
    let (mut out, mut answers) = (vec![Vec::new(), Vec::new()], Vec::new());
    let mut done = [0, 0];
    while done.iter().zip(&prompts).any(|(done, prompt)| *done < prompt.len()) {
        let mut step = Step::default();
        let mut whose = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let rows = piece.min(prompt.len() - done[index]);
            if rows == 0 {
                continue;
            }
            for at in done[index]..done[index] + rows {
                if at + 3 >= prompt.len() {
                    step.outputs.push((step.ids.len() + at - done[index]) as u32);
                    whose.push(index);
                }
            }
            step.ids.extend(&prompt[done[index]..done[index] + rows]);
            step.sequences.push(Sequence { rows, past: done[index], pages: pages[index].clone() });
            done[index] += rows;
        }
        let plan = Plan::new(graph, Shape { rows: step.ids.len().next_power_of_two(), outputs: 8 });
        prepared.run(&plan, &step, &mut answers).unwrap();
        for (index, answer) in whose.iter().zip(answers.chunks_exact(graph.result_width())) {
            out[*index].extend_from_slice(answer);
        }
    }
    out.concat()
}

pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let off: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

pub fn graph_of(path: &Path) -> Arc<Graph> {
    Arc::new(Decoder::read(path).unwrap().1)
}
