//! A BERT in Hugging Face's form as a GGUF file: the one that `minilm_llama_cpp.py` makes with other people's code, byte for
//! byte.

use std::collections::BTreeMap;
use std::path::Path;

use kedge_formats::gguf::write::{self, Value as Meta};
use kedge_formats::{Dtype, Tensor, Tensors, quant};
use serde_json::Value;

/// What the file says of the model, as llama.cpp's converter writes it.
pub fn metadata(folder: &Path) -> Vec<(String, Meta)> {
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
    let number = |field: &str| Meta::Unsigned(config[field].as_u64().unwrap() as u32);
    let pooling = read("1_Pooling/config.json");
    let pooling = if pooling["pooling_mode_cls_token"] == true { 2 } else { 1 };
    let mut words: Vec<String> = vec![String::new(); config["vocab_size"].as_u64().unwrap() as usize];
    for (word, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        words[id.as_u64().unwrap() as usize] = word.clone();
    }
    let id = |word: &str| Meta::Unsigned(words.iter().position(|other| other == word).unwrap() as u32);
    let is_special = |word: &str| ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].contains(&word);
    let marked = |word: &String| match word.strip_prefix("##") {
        _ if is_special(word) => word.clone(),
        Some(rest) => rest.to_owned(),
        None => format!("▁{word}"),
    };
    let told = [
        ("bert.block_count", number("num_hidden_layers")),
        ("bert.context_length", number("max_position_embeddings")),
        ("bert.embedding_length", number("hidden_size")),
        ("bert.feed_forward_length", number("intermediate_size")),
        ("bert.attention.head_count", number("num_attention_heads")),
        ("bert.attention.layer_norm_epsilon", Meta::Float(config["layer_norm_eps"].as_f64().unwrap() as f32)),
        ("bert.attention.causal", Meta::Bool(false)),
        ("bert.pooling_type", Meta::Unsigned(pooling)),
        ("tokenizer.ggml.token_type_count", number("type_vocab_size")),
        ("tokenizer.ggml.model", Meta::Text("bert".into())),
        ("tokenizer.ggml.pre", Meta::Text("default".into())),
        ("tokenizer.ggml.tokens", Meta::Texts(words.iter().map(marked).collect())),
        (
            "tokenizer.ggml.token_type",
            Meta::Signed(words.iter().map(|word| if is_special(word) { 3 } else { 1 }).collect()),
        ),
        ("tokenizer.ggml.unknown_token_id", id("[UNK]")),
        ("tokenizer.ggml.bos_token_id", id("[CLS]")),
        ("tokenizer.ggml.seperator_token_id", id("[SEP]")),
        ("tokenizer.ggml.padding_token_id", id("[PAD]")),
    ];
    let mut told: Vec<_> = told.map(|(key, value)| (key.to_owned(), value)).into();
    told.sort_by(|(a, _), (b, _)| a.cmp(b));
    told.insert(0, ("general.architecture".into(), Meta::Text("bert".into())));
    told
}

fn renamed(name: &str) -> Option<String> {
    let (place, kind) = name.rsplit_once('.')?;
    let (before, part) = match place.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (format!("blk.{layer}."), part),
        None => (String::new(), place),
    };
    let part = match part {
        "embeddings.word_embeddings" => "token_embd",
        "embeddings.position_embeddings" => "position_embd",
        "embeddings.token_type_embeddings" => "token_types",
        "embeddings.LayerNorm" => "token_embd_norm",
        "attention.self.query" => "attn_q",
        "attention.self.key" => "attn_k",
        "attention.self.value" => "attn_v",
        "attention.output.dense" => "attn_output",
        "attention.output.LayerNorm" => "attn_output_norm",
        "intermediate.dense" => "ffn_up",
        "output.dense" => "ffn_down",
        "output.LayerNorm" => "layer_output_norm",
        // The pooler, and a list of positions.
        _ => return None,
    };
    Some(format!("{before}{part}.{kind}"))
}

/// The tensors, matrices in that type; positions and types stay in 32 bits.
pub fn tensors(folder: &Path, dtype: Dtype) -> Vec<(String, Tensor)> {
    let all = Tensors::open_safetensors(&folder.join("model.safetensors")).unwrap();
    let mut found = BTreeMap::new();
    for name in all.names() {
        let Some(new) = renamed(name) else { continue };
        let tensor = all.any(name).unwrap();
        let keeps = tensor.shape.len() == 1 || new.starts_with("position_embd") || new.starts_with("token_types");
        let dtype = if keeps { Dtype::F32 } else { dtype };
        let bytes = quant::quantize(dtype, &tensor.to_f32());
        found.insert(new, Tensor::of_bytes(dtype, &tensor.shape, bytes).unwrap());
    }
    found.into_iter().collect()
}

/// The file.
pub fn bytes(folder: &Path, dtype: Dtype) -> Vec<u8> {
    write::to_bytes(&metadata(folder), &tensors(folder, dtype))
}
