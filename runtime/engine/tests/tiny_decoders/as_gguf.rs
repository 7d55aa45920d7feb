//! The tiny decoders as GGUF files: those that `llama_cpp.py` makes with other people's code, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use kedge_formats::gguf::write::{self, Value as Meta};
use kedge_formats::{Dtype, Tensor, quant};
use serde_json::{Value, json};

use super::{WORDS, config, values};

/// A name for each model, its family, and what its settings say beyond the usual.
pub fn cases() -> Vec<(&'static str, &'static str, Value)> {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let long = json!({"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.5, 2.0, 2.5, 3.0]});
    let gemma = json!({"head_dim": 16, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true});
    let and = |one: &Value, other: Value| {
        let mut both = one.clone();
        other.as_object().unwrap().iter().for_each(|(key, value)| both[key] = value.clone());
        both
    };
    vec![
        ("Llama", "LlamaForCausalLM", json!({})),
        ("Llama 3", "LlamaForCausalLM", json!({"rope_scaling": llama3, "tie_word_embeddings": true})),
        ("Llama stretched", "LlamaForCausalLM", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})),
        ("Mistral", "MistralForCausalLM", json!({"head_dim": 24})),
        ("Mixtral", "MixtralForCausalLM", json!({"num_local_experts": 4, "num_experts_per_tok": 2})),
        ("Qwen2", "Qwen2ForCausalLM", json!({"tie_word_embeddings": true})),
        ("Qwen2 with YaRN", "Qwen2ForCausalLM", json!({"rope_scaling": yarn})),
        ("Qwen3", "Qwen3ForCausalLM", json!({"head_dim": 32})),
        (
            "Qwen3Moe",
            "Qwen3MoeForCausalLM",
            json!({"num_experts": 4, "num_experts_per_tok": 3, "norm_topk_prob": true, "moe_intermediate_size": 32}),
        ),
        ("Phi3", "Phi3ForCausalLM", json!({"partial_rotary_factor": 0.5})),
        (
            "Phi3 with LongRoPE",
            "Phi3ForCausalLM",
            json!({"rope_scaling": long, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5}),
        ),
        (
            "Gemma2",
            "Gemma2ForCausalLM",
            and(
                &gemma,
                json!({"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "sliding_window": 35, "rope_theta": 10000.0}),
            ),
        ),
        ("Gemma3", "Gemma3ForCausalLM", and(&gemma, json!({"sliding_window": 20, "num_hidden_layers": 6}))),
        (
            "Gemma3 stretched",
            "Gemma3ForCausalLM",
            and(
                &gemma,
                json!({
                    "sliding_window": 20, "num_hidden_layers": 6, "rope_local_base_freq": 500.0,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                }),
            ),
        ),
    ]
}

fn architecture(family: &str) -> &'static str {
    match family {
        "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" => "llama",
        "Qwen2ForCausalLM" => "qwen2",
        "Qwen3ForCausalLM" => "qwen3",
        "Qwen3MoeForCausalLM" => "qwen3moe",
        "Phi3ForCausalLM" => "phi3",
        "Gemma2ForCausalLM" => "gemma2",
        "Gemma3ForCausalLM" => "gemma3",
        other => panic!("{other} is no family"),
    }
}

/// What the file says of the model, as llama.cpp's converter writes it.
pub fn metadata(family: &str, config: &Value) -> Vec<(String, Meta)> {
    let name = architecture(family);
    let mut told = BTreeMap::new();
    let mut tell = |key: &str, value: Meta| drop(told.insert(key.replace('*', name), value));
    let number = |field: &str| config[field].as_u64().unwrap() as u32;
    let float = |value: &Value| Meta::Float(value.as_f64().unwrap() as f32);
    tell("*.context_length", Meta::Unsigned(number("max_position_embeddings")));
    tell("*.embedding_length", Meta::Unsigned(number("hidden_size")));
    tell("*.block_count", Meta::Unsigned(number("num_hidden_layers")));
    tell("*.feed_forward_length", Meta::Unsigned(number("intermediate_size")));
    tell("*.attention.head_count", Meta::Unsigned(number("num_attention_heads")));
    tell("*.attention.head_count_kv", Meta::Unsigned(number("num_key_value_heads")));
    tell("*.attention.layer_norm_rms_epsilon", float(&config["rms_norm_eps"]));
    let mut width = number("hidden_size") / number("num_attention_heads");
    if !config["head_dim"].is_null() {
        width = number("head_dim");
        tell("*.attention.key_length", Meta::Unsigned(width));
        tell("*.attention.value_length", Meta::Unsigned(width));
    }
    if name != "gemma2" {
        tell("*.rope.freq_base", float(&config["rope_theta"]));
    }
    if name == "llama" {
        tell("*.vocab_size", Meta::Unsigned(number("vocab_size")));
        tell("*.rope.dimension_count", Meta::Unsigned(width));
    }
    for (field, key) in [
        ("num_local_experts", "*.expert_count"),
        ("num_experts", "*.expert_count"),
        ("num_experts_per_tok", "*.expert_used_count"),
        ("moe_intermediate_size", "*.expert_feed_forward_length"),
    ] {
        if !config[field].is_null() {
            tell(key, Meta::Unsigned(number(field)));
        }
    }
    let scaling = &config["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or_default();
    if matches!(kind, "linear" | "yarn") {
        tell("*.rope.scaling.type", Meta::Text(kind.into()));
        tell("*.rope.scaling.factor", float(&scaling["factor"]));
    }
    if kind == "yarn" {
        let original = scaling["original_max_position_embeddings"].as_u64().unwrap() as u32;
        tell("*.rope.scaling.original_context_length", Meta::Unsigned(original));
    }
    if name == "phi3" {
        let share = config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        let turned = (share * f64::from(number("hidden_size"))) as u32 / number("num_attention_heads");
        tell("*.rope.dimension_count", Meta::Unsigned(turned));
        let context = number("max_position_embeddings");
        let original = config["original_max_position_embeddings"].as_u64().map_or(context, |tokens| tokens as u32);
        tell("*.rope.scaling.original_context_length", Meta::Unsigned(original));
        tell("*.attention.sliding_window", Meta::Unsigned(config["sliding_window"].as_u64().unwrap_or(0) as u32));
        if kind == "longrope" {
            let (longer, original) = (f64::from(context) / f64::from(original), f64::from(original));
            let factor = if longer > 1.0 { (1.0 + longer.ln() / original.ln()).sqrt() } else { 1.0 };
            tell("*.rope.scaling.attn_factor", Meta::Float(factor as f32));
        }
    }
    if name.starts_with("gemma") {
        tell("*.attention.sliding_window", Meta::Unsigned(number("sliding_window")));
        for (field, key) in [
            ("attn_logit_softcapping", "*.attn_logit_softcapping"),
            ("final_logit_softcapping", "*.final_logit_softcapping"),
            ("rope_local_base_freq", "*.rope.freq_base_swa"),
        ] {
            if !config[field].is_null() {
                tell(key, float(&config[field]));
            }
        }
    }
    let mut words: Vec<String> = (b'!'..b'!' + WORDS as u8 - 1).map(|byte| char::from(byte).to_string()).collect();
    words.push("AB".into());
    tell("tokenizer.ggml.model", Meta::Text("gpt2".into()));
    tell("tokenizer.ggml.pre", Meta::Text("default".into()));
    tell("tokenizer.ggml.tokens", Meta::Texts(words));
    tell("tokenizer.ggml.merges", Meta::Texts(vec!["A B".into()]));
    tell("tokenizer.ggml.token_type", Meta::Signed(vec![1; WORDS]));
    tell("tokenizer.ggml.eos_token_id", Meta::Unsigned(1));
    [("general.architecture".to_owned(), Meta::Text(name.into()))].into_iter().chain(told).collect()
}

/// A tensor's name in GGUF; experts have theirs in common.
fn renamed(name: &str) -> String {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => panic!("{other} has no name"),
        }
        .into();
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let (part, kind) = part.rsplit_once('.').unwrap();
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        expert => match expert.rsplit_once('.').unwrap().1 {
            "gate_proj" | "w1" => "ffn_gate_exps",
            "up_proj" | "w3" => "ffn_up_exps",
            "down_proj" | "w2" => "ffn_down_exps",
            other => panic!("{other} has no name"),
        },
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// Of each head the first and second half's numbers in turn.
fn permuted(shape: &[usize], values: &[f32], heads: usize) -> Vec<f32> {
    let (rows, columns) = (shape[0], shape[1]);
    let half = rows / heads / 2;
    let row = |row: usize| &values[row * columns..][..columns];
    let order = (0..heads)
        .flat_map(|head| (0..half).flat_map(move |pair| [0, 1].map(|which| head * 2 * half + which * half + pair)));
    order.flat_map(row).copied().collect()
}

/// The tensors of the model as GGUF has them, matrices in that type.
pub fn tensors(family: &str, config: &Value, dtype: Dtype) -> Vec<(String, Tensor)> {
    let (heads, keys) =
        (config["num_attention_heads"].as_u64().unwrap(), config["num_key_value_heads"].as_u64().unwrap());
    let (neighbours, gemma) = (architecture(family) == "llama", family.starts_with("Gemma"));
    let mut found: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, shape, mut values) in values(family, config) {
        if neighbours && name.ends_with("q_proj.weight") {
            values = permuted(&shape, &values, heads as usize);
        }
        if neighbours && name.ends_with("k_proj.weight") {
            values = permuted(&shape, &values, keys as usize);
        }
        if gemma && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let mut new = renamed(&name);
        if gemma {
            new = new.replace(
                ".ffn_norm.",
                if name.contains("post_attention") { ".post_attention_norm." } else { ".ffn_norm." },
            );
        }
        if name.contains(".experts.") {
            let (whole, all) = found.entry(new).or_insert_with(|| ([&[0], &shape[..]].concat(), Vec::new()));
            whole[0] += 1;
            all.extend(values);
        } else {
            found.insert(new, (shape, values));
        }
    }
    let scaling = &config["rope_scaling"];
    let number = |field: &str| scaling[field].as_f64().unwrap();
    match scaling["rope_type"].as_str().or(scaling["type"].as_str()) {
        Some("llama3") => {
            let theta = config["rope_theta"].as_f64().unwrap();
            let width = config["head_dim"].as_u64().unwrap_or(config["hidden_size"].as_u64().unwrap() / heads) as f64;
            let factors = (0..width as usize).step_by(2).map(|pair| {
                let turns = number("original_max_position_embeddings") * theta.powf(-(pair as f64) / width)
                    / std::f64::consts::TAU;
                let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 / ((1.0 - smooth) / number("factor") + smooth)) as f32
            });
            let factors: Vec<f32> = factors.collect();
            found.insert("rope_freqs.weight".into(), (vec![factors.len()], factors));
        }
        Some("longrope") => {
            for which in ["long", "short"] {
                let factors: Vec<f32> = serde_json::from_value(scaling[format!("{which}_factor")].clone()).unwrap();
                found.insert(format!("rope_factors_{which}.weight"), (vec![factors.len()], factors));
            }
        }
        _ => {}
    }
    let stored = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
        let dtype = if shape.len() == 1 { Dtype::F32 } else { dtype };
        let tensor = Tensor::of_bytes(dtype, &shape, quant::quantize(dtype, &values)).unwrap();
        (name, tensor)
    };
    found.into_iter().map(stored).collect()
}

/// Writes the file.
pub fn write(path: &Path, family: &str, more: &Value) {
    let config = config(family, more);
    let bytes = write::to_bytes(&metadata(family, &config), &tensors(family, &config, Dtype::F32));
    std::fs::write(path, bytes).unwrap();
}
