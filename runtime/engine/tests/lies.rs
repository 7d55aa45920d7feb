//! Models whose files say what is not so: each is refused by file and field before anything is computed with it, and what
//! real files do that nothing depends on is taken.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

mod tiny_bert;
mod tiny_decoders;

use std::os::unix::fs::symlink;
use std::path::Path;

use kedge_engine::generate::{End, Request};
use kedge_engine::{Cpu, Decoder, DecoderOptions, Encoder};
use kedge_formats::Dtype;
use kedge_formats::gguf::write::{Value as Meta, to_bytes};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use tiny_decoders::{WORDS, as_gguf, write_model};

/// What a decoder answers to a text, or why it does not.
fn decoder(path: &Path, text: &str) -> String {
    let backend = Cpu::new(Some(1)).unwrap();
    let options = DecoderOptions { tokens_kept: Some(64), ..DecoderOptions::default() };
    let answer = Decoder::open(path, &backend, options).and_then(|decoder| {
        let prompt = decoder.tokenizer().encode(text, true)?;
        let (tokens, end) = decoder.complete(Request { prompt, tokens_max: 4, ..Request::default() })?;
        assert!(matches!(end, End::Length | End::Stop) && tokens.len() <= 4, "{end:?}");
        Ok("answers".to_owned())
    });
    answer.unwrap_or_else(|error| error.to_string())
}

/// What an encoder makes of a text, or why it does not.
fn encoder(path: &Path, text: &str) -> String {
    let backend = Cpu::new(Some(1)).unwrap();
    let vectors = Encoder::open(path, &backend).and_then(|encoder| encoder.encode(&[text]));
    vectors.map_or_else(|error| error.to_string(), |_| "answers".into())
}

/// Sets what a path leads to in a JSON file, which need not be there; all of it where the path is empty.
fn set(path: &Path, field: &str, value: Value) {
    let mut json: Value = std::fs::read(path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    *field.split('/').filter(|part| !part.is_empty()).fold(&mut json, |json, part| match part.parse::<usize>() {
        Ok(index) => &mut json[index],
        Err(_) => &mut json[part],
    }) = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// All of them at once, so that one look shows what passes.
fn check(all: Vec<(String, String, &str)>) {
    let wrong: Vec<_> = all.iter().filter(|(_, said, expected)| !said.contains(expected)).collect();
    let wrong: Vec<_> =
        wrong.iter().map(|(what, said, expected)| format!("{what}: {said} (not: {expected})")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_folder_of_a_decoder() {
    let (config, settings) = ("config.json", "tokenizer_config.json");
    let mut all = Vec::new();
    for (file, field, value, expected) in [
        (config, "eos_token_id", json!(79), "answers"),
        (config, "eos_token_id", json!(null), "answers"),
        (config, "eos_token_id", json!(80), "config.json: eos_token_id: 80 is no token; their ids are below 80"),
        (config, "eos_token_id", json!([1, 1u64 << 40]), "config.json: eos_token_id: 1099511627776 is no token"),
        (config, "eos_token_id", json!(-1), "config.json: eos_token_id: -1 is no token"),
        (config, "eos_token_id", json!("w1"), "config.json: eos_token_id: \"w1\" is no token"),
        ("generation_config.json", "eos_token_id", json!([2, 3]), "answers"),
        (
            "generation_config.json",
            "eos_token_id",
            json!([2, 99]),
            "generation_config.json: eos_token_id: 99 is no token",
        ),
        // Nothing depends on it: texts begin as the tokenizer says.
        (config, "bos_token_id", json!(99), "answers"),
        (
            config,
            "vocab_size",
            json!(81),
            "tensor model.embed_tokens.weight: has shape [80, 64], and the configuration",
        ),
        (
            config,
            "vocab_size",
            json!(79),
            "tokenizer.json: model.vocab: \"w79\" has the id 79; those of the model are below 79",
        ),
        (config, "vocab_size", json!(-80), "config.json: vocab_size: must be a whole number, is -80"),
        (config, "hidden_size", json!(0), "config.json: hidden_size: 0 is not between 1 and"),
        (config, "num_hidden_layers", json!(1u64 << 60), "config.json: num_hidden_layers: 1152921504606846976 is not"),
        (
            config,
            "num_hidden_layers",
            json!(1 << 24),
            "config.json: num_hidden_layers: is far above every model there is",
        ),
        (config, "num_attention_heads", json!(0), "config.json: num_attention_heads: 0 is not between"),
        (config, "num_attention_heads", json!(128), "config.json: rope: 0 pairs of a head of 0 cannot be turned"),
        (config, "num_key_value_heads", json!(3), "config.json: num_key_value_heads: 3 does not divide the 4 heads"),
        (config, "head_dim", json!(1 << 20), "config.json: head_dim: heads of 1048576 are wider"),
        (config, "max_position_embeddings", json!(0), "config.json: max_position_embeddings: 0 is not between"),
        (config, "rope_theta", json!(1e308), "config.json: rope_theta: must be a number above zero"),
        (
            config,
            "rope_theta",
            json!(-1),
            "config.json: rope_theta: must be a number above zero (from 1e-30 to 1e30), is -1",
        ),
        (config, "rms_norm_eps", json!(1e308), "config.json: rms_norm_eps: must be a number above zero"),
        (config, "rms_norm_eps", json!(2), "config.json: rms_norm_eps: 2 is not between 0 and 1"),
        (config, "rms_norm_eps", json!("NaN"), "config.json: rms_norm_eps: must be a number above zero"),
        (
            config,
            "rope_scaling",
            json!({"type": "linear", "factor": 1e300}),
            "config.json: rope_scaling.factor: must be",
        ),
        ("tokenizer.json", "model/vocab/w7", json!(80), "tokenizer.json: model.vocab: \"w7\" has the id 80; those"),
        (
            "tokenizer.json",
            "model/vocab/w7",
            json!(u32::MAX),
            "tokenizer.json: model.vocab: \"w7\" has the id 4294967295",
        ),
        ("tokenizer.json", "model/vocab/w7", json!(1u64 << 33), "tokenizer.json: invalid value: integer `8589934592`"),
        // Two of one id, and so a hole.
        ("tokenizer.json", "model/vocab/w7", json!(8), "answers"),
        ("tokenizer_config.json", "eos_token", json!("w3"), "answers"),
        ("tokenizer_config.json", "added_tokens_decoder", json!({"4294967295": {"content": "x"}}), "answers"),
        (
            settings,
            "bos_token",
            json!([1]),
            "tokenizer_config.json: bos_token: must be a text, or an object whose content is one, is [1]",
        ),
        (settings, "bos_token", json!(null), "answers"),
        (settings, "eos_token", json!(7), "tokenizer_config.json: eos_token: must be a text, or an object"),
        (
            settings,
            "eos_token",
            json!({"text": "w3"}),
            "tokenizer_config.json: eos_token: must be a text, or an object",
        ),
        (settings, "eos_token", json!({"content": "w3", "lstrip": false}), "answers"),
        (
            settings,
            "eos_token",
            json!("</s>"),
            "tokenizer_config.json: eos_token: \"</s>\" is no token of tokenizer.json",
        ),
        (settings, "eos_token", json!(null), "answers"),
        (
            settings,
            "chat_template",
            json!(7),
            "tokenizer_config.json: chat_template: must be a text, or a list of objects with name and template, is 7",
        ),
        (
            settings,
            "chat_template",
            json!([{"name": "default"}]),
            "tokenizer_config.json: chat_template: must be a text",
        ),
        (settings, "chat_template", json!({"default": "x"}), "tokenizer_config.json: chat_template: must be a text"),
        (
            settings,
            "chat_template",
            json!([{"name": "default", "template": "{{"}, {"name": "tool_use", "template": "x"}]),
            "chat template cannot be read",
        ),
        (settings, "chat_template", json!([{"name": "tool_use", "template": "{{"}]), "answers"),
        (settings, "chat_template", json!(null), "answers"),
        (config, "architectures", json!("LlamaForCausalLM"), "config.json: architectures: must be a list, is \"Llama"),
        (
            config,
            "tie_word_embeddings",
            json!("false"),
            "config.json: tie_word_embeddings: must be true or false, is \"false\"",
        ),
        (config, "tie_word_embeddings", json!(null), "answers"),
        (config, "hidden_act", json!(7), "config.json: hidden_act: must be a text, is 7"),
        (config, "rope_scaling", json!("linear"), "config.json: rope_scaling: must be an object, is \"linear\""),
        (config, "rope_parameters", json!(7), "config.json: rope_parameters: must be an object, is 7"),
        (
            config,
            "rope_parameters",
            json!({"full_attention": "default"}),
            "config.json: rope_parameters.full_attention: must be an object",
        ),
        (
            config,
            "rope_parameters",
            json!({"rope_type": 7}),
            "config.json: rope_parameters.rope_type: must be a text, is 7",
        ),
        (
            config,
            "rope_scaling",
            json!({"type": "yarn", "factor": 2, "truncate": 0}),
            "config.json: rope_scaling.truncate: must be true or false, is 0",
        ),
        (
            config,
            "rope_scaling",
            json!({
                "type": "longrope", "original_max_position_embeddings": 64,
                "long_factor": [1, 1, 1, 1, 1, 1, 1, 1, "1"],
            }),
            "config.json: rope_scaling.long_factor: must be 8 numbers",
        ),
        ("modules.json", "", json!([{"type": 7}]), "modules.json: [0].type: must be a text, is 7"),
        (settings, "", json!([]), "tokenizer_config.json: invalid type: sequence, expected a map"),
        ("generation_config.json", "", json!([]), "generation_config.json: invalid type: sequence, expected a map"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
        set(&folder.path().join(file), field, value.clone());
        all.push((format!("{file} {field} {value}"), decoder(folder.path(), "w1 w2"), expected));
    }
    check(all);
}

#[test]
fn settings_of_some_families_are_of_their_type() {
    let mut all = Vec::new();
    for (family, field, value, expected) in [
        ("Qwen3MoeForCausalLM", "norm_topk_prob", json!(1), "config.json: norm_topk_prob: must be true or false, is 1"),
        ("Qwen3MoeForCausalLM", "norm_topk_prob", json!(null), "answers"),
        ("Qwen3MoeForCausalLM", "mlp_only_layers", json!(0), "config.json: mlp_only_layers: must be a list, is 0"),
        ("Qwen3MoeForCausalLM", "mlp_only_layers", json!([]), "answers"),
        ("Gemma3ForCausalLM", "layer_types", json!("full_attention"), "config.json: layer_types: must be a list, is"),
        ("Gemma3ForCausalLM", "layer_types", json!([7]), "config.json: layer_types: only full attention in each"),
        ("Gemma3ForCausalLM", "layer_types", json!(null), "answers"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (_, _, more) = as_gguf::cases().into_iter().find(|(_, other, _)| *other == family).unwrap();
        write_model(folder.path(), family, &more, Dtype::F32);
        set(&folder.path().join("config.json"), field, value.clone());
        all.push((format!("{family} {field} {value}"), decoder(folder.path(), "w1 w2"), expected));
    }
    check(all);
}

/// As in Gemma 3's smallest: its tokenizer has one token more than the model has, for the images of its siblings.
#[test]
fn added_tokens_may_lie_beyond_the_vocabulary_where_texts_have_none() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
    let added = json!({"id": 80, "content": "<image>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let file = folder.path().join("tokenizer.json");
    set(&file, "added_tokens", json!([added]));
    assert_eq!(decoder(folder.path(), "w1 w2"), "answers");
    assert_eq!(decoder(folder.path(), "w1 <image>"), "tokens of input 0: id 80 is not below the vocabulary's 80");
    set(&folder.path().join("tokenizer_config.json"), "eos_token", json!("<image>"));
    let said = decoder(folder.path(), "w1 w2");
    assert!(
        said.ends_with("tokenizer_config.json: eos_token: \"<image>\" has the id 80; those of the model are below 80"),
        "{said}"
    );
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let around = json!({"type": "BertProcessing", "cls": ["<image>", 80], "sep": ["w1", 1]});
    set(&file, "post_processor", around);
    let said = decoder(folder.path(), "w1 w2");
    assert!(
        said.contains("tokenizer.json: post_processor: puts the id 80 into texts; those of the model are below 80"),
        "{said}"
    );
}

#[test]
fn files_that_are_none_are_not_waited_for_and_links_are_followed() {
    let mut all = Vec::new();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ] {
        for (what, expected) in
            [("pipe", "it is no regular file"), ("zeros", "it is no regular file"), ("nowhere", "No such file")]
        {
            let folder = tempfile::tempdir().unwrap();
            write_model(folder.path(), "LlamaForCausalLM", &json!({}), Dtype::F32);
            let path = folder.path().join(name);
            let _ = std::fs::remove_file(&path);
            match what {
                "pipe" => nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap(),
                "zeros" => symlink("/dev/zero", &path).unwrap(),
                _ => symlink("nowhere", &path).unwrap(),
            }
            let said = decoder(folder.path(), "w1 w2");
            all.push((format!("{name} {what}"), said.replace(&format!("{name}: "), ""), expected));
        }
    }
    check(all);
    // A cache of Hugging Face's.
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    write_model(&blobs, "LlamaForCausalLM", &json!({}), Dtype::F32);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::rename(blobs.join(name), blobs.join(name.replace('.', "0"))).unwrap();
        symlink(Path::new("../../blobs").join(name.replace('.', "0")), snapshot.join(name)).unwrap();
    }
    assert_eq!(decoder(&snapshot, "w1 w2"), "answers");
}

#[test]
fn a_gguf_file_of_a_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let family = "Gemma2ForCausalLM";
    let (_, _, more) = as_gguf::cases().into_iter().find(|(_, other, _)| *other == family).unwrap();
    let config = tiny_decoders::config(family, &more);
    let tensors = as_gguf::tensors(family, &config, Dtype::F32);
    let id = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    let float = |value: f32| Meta::Float(value);
    let mut all = Vec::new();
    for (key, value, expected) in [
        (id("eos"), Meta::Unsigned(79), "answers"),
        (id("eos"), Meta::Unsigned(80), "m.gguf: tokenizer.ggml.eos_token_id: is 80, and there are 80 tokens"),
        (id("eos"), Meta::Text("1".into()), "m.gguf: tokenizer.ggml.eos_token_id: is no whole number"),
        (id("eot"), Meta::Unsigned(u32::MAX), "m.gguf: tokenizer.ggml.eot_token_id: is 4294967295, and there are 80"),
        (id("bos"), Meta::Unsigned(99), "m.gguf: tokenizer.ggml.bos_token_id: is 99, and there are 80 tokens"),
        // Older converters wrote a padding that the model has not; llama.cpp passes over it, and nothing is filled up here.
        (id("padding"), Meta::Unsigned(u32::MAX), "answers"),
        ("gemma2.vocab_size".into(), Meta::Unsigned(80), "answers"),
        (
            "gemma2.vocab_size".into(),
            Meta::Unsigned(81),
            "m.gguf: gemma2.vocab_size: is 81, and tokenizer.ggml.tokens has 80",
        ),
        ("tokenizer.ggml.tokens".into(), Meta::Texts(vec![]), "m.gguf: tokenizer.ggml.tokens: has 0 tokens; 1 to"),
        (
            "tokenizer.ggml.tokens".into(),
            Meta::Texts(vec!["A".into()]),
            "m.gguf: tokenizer.ggml.token_type: has 80 kinds for 1",
        ),
        ("tokenizer.ggml.pre".into(), Meta::Unsigned(7), "m.gguf: tokenizer.ggml.pre: is no text"),
        (
            "tokenizer.ggml.token_type".into(),
            Meta::Signed(vec![1; 79]),
            "m.gguf: tokenizer.ggml.token_type: has 79 kinds for 80",
        ),
        ("tokenizer.ggml.token_type".into(), Meta::Signed(vec![99; 80]), "answers"),
        (
            "tokenizer.ggml.scores".into(),
            Meta::Floats(vec![0.0; 81]),
            "m.gguf: tokenizer.ggml.scores: has 81 scores for 80",
        ),
        ("tokenizer.ggml.scores".into(), Meta::Floats(vec![f32::NAN; 80]), "answers"),
        ("tokenizer.ggml.merges".into(), Meta::Texts(vec!["A Z9".into()]), "m.gguf: tokenizer.ggml: "),
        ("gemma2.context_length".into(), Meta::Unsigned(0), "m.gguf: gemma2.context_length: 0 is not between 1 and"),
        (
            "gemma2.attention.head_count_kv".into(),
            Meta::Unsigned(3),
            "m.gguf: gemma2.attention.head_count_kv: 3 does not",
        ),
        (
            "gemma2.attention.layer_norm_rms_epsilon".into(),
            float(f32::NAN),
            "layer_norm_rms_epsilon: NaN is not between 0 and 1",
        ),
        (
            "gemma2.attention.layer_norm_rms_epsilon".into(),
            float(-1.0),
            "layer_norm_rms_epsilon: -1 is not between 0 and 1",
        ),
        ("gemma2.attention.layer_norm_rms_epsilon".into(), float(f32::INFINITY), "epsilon: inf is not between 0 and 1"),
        (
            "gemma2.attn_logit_softcapping".into(),
            float(0.0),
            "m.gguf: gemma2.attn_logit_softcapping: must be a number above zero",
        ),
        ("gemma2.final_logit_softcapping".into(), float(f32::NAN), "m.gguf: gemma2.final_logit_softcapping: must be"),
        (
            "gemma2.rope.freq_base".into(),
            float(f32::INFINITY),
            "m.gguf: gemma2.rope.freq_base: must be a number above zero",
        ),
        ("gemma2.rope.scaling.factor".into(), float(f32::INFINITY), "m.gguf: gemma2.rope.scaling.factor: must be"),
        ("gemma2.rope.scaling.original_context_length".into(), Meta::Unsigned(0), "answers"),
    ] {
        let mut metadata = as_gguf::metadata(family, &config);
        metadata.retain(|(other, _)| *other != key);
        let what = format!("{key} {value:?}");
        metadata.push((key, value));
        std::fs::write(&path, to_bytes(&metadata, &tensors)).unwrap();
        all.push((what.chars().take(80).collect(), decoder(&path, "A"), expected));
    }
    check(all);
    assert_eq!(WORDS, 80);
}

#[test]
fn a_folder_of_an_encoder() {
    let config = "config.json";
    let mut all = Vec::new();
    for (file, field, value, expected) in [
        (config, "num_attention_heads", json!(5), "config.json: num_attention_heads: 5 does not divide hidden_size 24"),
        (config, "type_vocab_size", json!(0), "config.json: type_vocab_size: 0 is not between"),
        (config, "type_vocab_size", json!(3), "tensor embeddings.token_type_embeddings.weight: has shape [2, 24], and"),
        (
            config,
            "max_position_embeddings",
            json!(21),
            "tensor embeddings.position_embeddings.weight: has shape [20, 24]",
        ),
        (config, "vocab_size", json!(11), "tensor embeddings.word_embeddings.weight: has shape [12, 24]"),
        (config, "layer_norm_eps", json!(1e300), "config.json: layer_norm_eps: must be a number above zero"),
        // BERT has no use for it.
        (config, "pad_token_id", json!(5), "answers"),
        (
            "sentence_bert_config.json",
            "max_seq_length",
            json!(1u64 << 40),
            "max_seq_length: 1099511627776 is not between",
        ),
        ("sentence_bert_config.json", "max_seq_length", json!(1 << 20), "answers"),
        (
            "1_Pooling/config.json",
            "word_embedding_dimension",
            json!(384),
            "word_embedding_dimension: 384 is not the model's",
        ),
        ("modules.json", "1/path", json!(7), "modules.json: [1].path: must be a text, is 7"),
        ("modules.json", "1/path", json!("../../m"), "modules.json: [1].path: \"../../m\" is no folder of the model"),
        (
            "tokenizer.json",
            "model/vocab/box",
            json!(12),
            "tokenizer.json: model.vocab: \"box\" has the id 12; those of the",
        ),
        (
            "tokenizer.json",
            "post_processor/cls",
            json!(["[CLS]", 99]),
            "tokenizer.json: post_processor: puts the id 99 into",
        ),
        (
            "tokenizer.json",
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 7}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}}),
            "tokens of input 0: type 7 is not below the model's 2",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        tiny_bert::tiny(folder.path(), "mean_tokens");
        set(&folder.path().join(file), field, value.clone());
        all.push((format!("{file} {field} {value}"), encoder(folder.path(), "a box runs"), expected));
    }
    check(all);
}

#[test]
fn a_gguf_file_of_an_encoder() {
    let folder = tempfile::tempdir().unwrap();
    tiny_bert::tiny(folder.path(), "mean_tokens");
    let path = folder.path().join("m/m.gguf");
    std::fs::create_dir(folder.path().join("m")).unwrap();
    let mut all = Vec::new();
    for (key, value, expected) in [
        (
            "tokenizer.ggml.cls_token_id",
            Meta::Unsigned(12),
            "m.gguf: tokenizer.ggml.cls_token_id: is 12, and there are 12",
        ),
        (
            "tokenizer.ggml.bos_token_id",
            Meta::Unsigned(99),
            "m.gguf: tokenizer.ggml.bos_token_id: is 99, and there are 12",
        ),
        ("tokenizer.ggml.token_type_count", Meta::Unsigned(9), "tensor token_types.weight: has shape [2, 24], and"),
        ("bert.context_length", Meta::Unsigned(21), "tensor position_embd.weight: has shape [20, 24], and"),
        ("bert.vocab_size", Meta::Unsigned(13), "m.gguf: bert.vocab_size: is 13, and tokenizer.ggml.tokens has 12"),
        ("bert.attention.head_count", Meta::Unsigned(5), "m.gguf: bert.attention.head_count: 5 does not divide"),
        ("bert.attention.layer_norm_epsilon", Meta::Float(f32::NAN), "layer_norm_epsilon: NaN is not between 0 and 1"),
        ("bert.pooling_type", Meta::Unsigned(9), "m.gguf: bert.pooling_type: 9 is not supported"),
    ] {
        let mut metadata = tiny_bert::as_gguf::metadata(folder.path());
        metadata.retain(|(other, _)| other != key);
        metadata.push((key.to_owned(), value));
        std::fs::write(&path, to_bytes(&metadata, &tiny_bert::as_gguf::tensors(folder.path(), Dtype::F32))).unwrap();
        all.push((key.to_owned(), encoder(&path, "a box runs"), expected));
    }
    check(all);
}
