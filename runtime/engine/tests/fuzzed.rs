//! What the fuzz targets found (`runtime/fuzz/found/TARGET/`), once more; and the seeds they begin with, made of the tiny
//! models.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

#[allow(unreachable_pub, reason = "it is part of a library, too")]
#[path = "../../fuzz/src/targets.rs"]
mod targets;
mod tiny_bert;
mod tiny_decoders;

use std::path::{Path, PathBuf};

use kedge_formats::Dtype;
use serde_json::{Value, json};

#[test]
fn what_was_found_ends_in_a_model_or_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/found");
    let mut ran = 0;
    for (name, target) in targets::TARGETS {
        let Ok(files) = std::fs::read_dir(folder.join(name)) else { continue };
        for path in files.map(|file| file.unwrap().path()) {
            println!("{}", path.display());
            target(&std::fs::read(path).unwrap());
            ran += 1;
        }
    }
    assert!(ran > 0, "nothing is in {}", folder.display());
}

/// Templates as models have them, shortened.
const TEMPLATES: [&str; 3] = [
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'x' %}{{ raise_exception('no x') }}{% endif %}<|{{ m.role }}|>\n{{ m['content'].strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- set ns = namespace(first=true) -%}{%- for m in messages | selectattr('role', 'equalto', 'user') -%}{%- if ns.first -%}{%- set ns.first = false -%}{{ m.content | trim | tojson }}{%- endif -%}{{ loop.index0 % 2 }}{%- endfor -%}",
    "{%- macro say(m) %}{{ '<' ~ m.role | upper ~ '>' + m.content.split('>')[-1] }}{% endmacro %}{% for m in messages[1:] %}{{ say(m) }}{{ m.content[::-1].replace('a', 'b', 1) | indent(2) }}{% endfor %}{{ strftime_now('%Y') if strftime_now is defined }}",
];

/// A tokenizer of GGUF as the target reads it.
fn lines(model: &str, pre: &str, tokens: &[(u8, &str)], merges: &[&str]) -> String {
    let tokens = tokens
        .iter()
        .enumerate()
        .map(|(id, (kind, token))| format!("{}{}{token}", char::from(b'0' + kind), char::from(b'~' - id as u8 % 60)));
    [
        vec![model.into(), pre.into()],
        tokens.collect(),
        vec![String::new()],
        merges.iter().map(|m| (*m).into()).collect(),
    ]
    .concat()
    .join("\n")
}

/// See `cargo xtask fuzz`.
#[test]
#[ignore = "writes the seeds that fuzzing begins with"]
fn write_seeds() {
    let out = PathBuf::from(std::env::var_os("KEDGE_SEEDS").expect("where to write them"));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = out.join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let scratch = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
    for (family, more) in tiny_decoders::families() {
        tiny_decoders::write_model(scratch.path(), family, &more, Dtype::Bf16);
        write("config", family, &read("config.json"));
    }
    write("safetensors", "small", &small_safetensors());
    write("tokenizer", "words", &read("tokenizer.json"));
    let rope =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5});
    let more = json!({"rope_parameters": {"full_attention": rope, "sliding_attention": {"rope_type": "default"}}});
    write("config", "rope", tiny_decoders::config("Gemma3ForCausalLM", &more).to_string().as_bytes());
    tiny_bert::tiny(scratch.path(), "mean_tokens");
    write("config", "bert", &read("config.json"));
    write("tokenizer", "bert", &read("tokenizer.json"));
    write("safetensors", "index", br#"{"weight_map":{"a":"model.safetensors","b":"../m"}}"#);
    write("tokenizer", "bpe", bpe().to_string().as_bytes());
    write("tokenizer", "unigram", unigram().to_string().as_bytes());
    // Metadata of every architecture; tensors are far more bytes than they are worth here.
    for (name, family, more) in tiny_decoders::as_gguf::cases() {
        let config = tiny_decoders::config(family, &more);
        let metadata = tiny_decoders::as_gguf::metadata(family, &config);
        let tensors: Vec<_> = tiny_decoders::as_gguf::tensors(family, &config, Dtype::F32)
            .into_iter()
            .filter(|(_, tensor)| tensor.shape.len() == 1)
            .take(3)
            .collect();
        write("gguf", &name.replace(' ', "-"), &kedge_formats::gguf::write::to_bytes(&metadata, &tensors));
    }
    write("gguf", "bert", &tiny_bert::as_gguf::bytes(scratch.path(), Dtype::F32));
    let bert = [(3, "[UNK]"), (3, "[CLS]"), (3, "[SEP]"), (1, "▁a"), (1, "▁box"), (1, "s"), (1, "▁runs"), (1, "▁[")];
    write("gguf_tokenizer", "bert", lines("bert", "default", &bert, &[]).as_bytes());
    let bpe = [(3, "<s>"), (3, "<|end|>"), (4, "w1"), (1, "a"), (1, "Ġ"), (1, "b"), (1, "o"), (1, "Ġb"), (1, "Ġbo")];
    for pre in ["default", "llama-bpe", "qwen2"] {
        write("gguf_tokenizer", pre, lines("gpt2", pre, &bpe, &["Ġ b", "Ġb o"]).as_bytes());
    }
    let pieces =
        [(2, "<unk>"), (3, "<s>"), (3, "</s>"), (6, "<0x20>"), (6, "<0xF0>"), (1, "▁"), (1, "a"), (1, "▁a"), (1, "bo")];
    write("gguf_tokenizer", "sentencepiece", lines("llama", "default", &pieces, &[]).as_bytes());
    let words = |target: &str, words: Vec<String>| {
        let lines: Vec<String> =
            words.iter().map(|word| format!("{word:?}\n")).filter(|line| line.is_ascii()).collect();
        std::fs::write(out.join(format!("{target}.dict")), lines.concat()).unwrap();
    };
    for target in ["config", "tokenizer"] {
        let files =
            std::fs::read_dir(out.join(target)).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        let mut found = std::collections::BTreeSet::new();
        files.for_each(|file| texts_of(&serde_json::from_slice(&file).unwrap(), &mut found));
        words(
            target,
            found.into_iter().filter(|word| !word.starts_with('w')).map(|word| format!("{word:?}")).collect(),
        );
    }
    words("template", JINJA.split(' ').map(str::to_owned).collect());
    for (index, template) in TEMPLATES.iter().enumerate() {
        write("template", &index.to_string(), template.as_bytes());
    }
}

/// Words of templates.
const JINJA: &str = "{% {%- %} -%} {{ }} for in if elif else endif endfor set endset macro endmacro call endcall filter \
    endfilter block endblock include import from extends raw endraw break continue with endwith autoescape namespace( \
    range( dict( loop. loop.index loop.cycle( loop.changed( not and or is recursive messages content role [::-1] [-1] [1:] \
    |abs |batch(2) |bool |capitalize |default |dictsort |escape |first |float |format( |groupby( |indent(9) |int |items \
    |join |last |length |lines |list |lower |map( |max |min |pprint |reject( |rejectattr( |replace( |reverse |round \
    |safe |select( |selectattr( |slice(2) |sort |split |string |sum |title |tojson |trim |unique |upper |urlencode |zip \
    .split( .strip( .lstrip( .replace( .find( .count( .title( .items( .get( .keys( .splitlines( .startswith( .isdigit( \
    // ~ % == != raise_exception( 9223372036854775807 -1";

/// The texts in it, and its names.
fn texts_of(value: &Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        Value::String(text) => drop(found.insert(text.clone())),
        Value::Array(list) => list.iter().for_each(|value| texts_of(value, found)),
        Value::Object(map) => map.iter().for_each(|(name, value)| {
            found.insert(name.clone());
            texts_of(value, found);
        }),
        _ => {}
    }
}

/// A file with a few tensors of every kind.
fn small_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[],"data_offsets":[8,10]},"c":{"dtype":"BF16","shape":[2,1,1],"data_offsets":[10,14]},"d":{"dtype":"U8","shape":[0],"data_offsets":[14,14]}}"#;
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 14]].concat()
}

fn bpe() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 6, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": true, "normalized": false}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"(?i:'s|'ll)|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [6], "tokens": ["<|end|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "o": 2, "Ġ": 3, "Ġb": 4, "Ġbo": 5}, "merges": ["Ġ b", "Ġb o"], "byte_fallback": false},
    })
}

fn unigram() -> Value {
    json!({
        "version": "1.0", "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -2.0], ["a", -3.0], ["▁a", -2.5], ["bo", -4.0]], "byte_fallback": false},
    })
}
