//! The whole way from files to vectors on a tiny BERT with random weights, made here from a seed: the CPU backend
//! against the plain one, and batches against single texts. Needs no download.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes a model directory")]

mod tiny_bert;

use std::path::Path;

use kedge_engine::{Backend, Cpu, Embedding, Encoder, Reference};
use kedge_formats::gguf::write::{Value as Meta, to_bytes};
use kedge_formats::{Dtype, Tensor};
use serde_json::json;
use tiny_bert::{as_gguf, cosine, put_off, rewrite, texts, tiny};

/// Cosine distance allowed between 32-bit and 64-bit arithmetic.
const COSINE_MIN: f64 = 0.999_999;

fn encode(directory: &Path, backend: &dyn Backend) -> Vec<Embedding> {
    Encoder::open(directory, backend).unwrap().encode(&texts()).unwrap()
}

#[test]
fn cpu_agrees_with_the_plain_backend() {
    for pooling in ["mean_tokens", "cls_token", "max_tokens"] {
        let directory = tempfile::tempdir().unwrap();
        tiny(directory.path(), pooling);
        let expected = encode(directory.path(), &Reference);
        assert!(
            cosine(&expected[1].vector, &expected[2].vector) < 0.9999,
            "different texts must have different vectors"
        );
        for threads in [1, 3] {
            for backend in Cpu::levels(Some(threads)).unwrap() {
                for (index, (actual, expected)) in encode(directory.path(), &backend).iter().zip(&expected).enumerate()
                {
                    let close = cosine(&actual.vector, &expected.vector);
                    assert!(close >= COSINE_MIN, "{pooling}, text {index}, {:?}: {close}", backend.capabilities());
                    assert_eq!(actual.tokens, expected.tokens);
                }
            }
        }
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_a_batch() {
    let directory = tempfile::tempdir().unwrap();
    tiny(directory.path(), "mean_tokens");
    let encoder = Encoder::open(&directory.path().join("model.safetensors"), &Cpu::new(Some(2)).unwrap()).unwrap();
    let together = encoder.encode(&texts()).unwrap();
    for (text, together) in texts().iter().zip(&together) {
        let alone = encoder.encode(&[text]).unwrap().remove(0);
        let furthest = alone.vector.iter().zip(&together.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest <= 1e-6, "{text:?}: {furthest}");
    }
    assert_eq!(
        (together[0].tokens, together[7].tokens),
        (2, 18),
        "an empty text is two special tokens; a long one is cut at 18"
    );
}

#[test]
fn of_a_long_text_what_counts_is_what_counts_in_a_shorter_one() {
    let directory = tempfile::tempdir().unwrap();
    tiny(directory.path(), "mean_tokens");
    let encoder = Encoder::open(directory.path(), &Reference).unwrap();
    let ids = |text: &str| encoder.tokenize(0, text).unwrap().ids;
    let words = texts()[7].clone();
    // More than is looked at first: of words, of nothing before them, and of one word without an end.
    assert_eq!(ids(&format!("{words} ").repeat(20_000)), ids(&words));
    assert_eq!(ids(&format!("{}{words}", " ".repeat(200_000))), ids(&words));
    assert_eq!(ids(&"é".repeat(200_000)), ids(&"é".repeat(2_000)));
}

#[test]
fn weights_are_those_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path(), "mean_tokens");
    let at = |name: &str| folder.path().join(name);
    let whole = encode(folder.path(), &Reference);
    // As a shard, and nothing called `model.safetensors`.
    std::fs::rename(at("model.safetensors"), at("tuned.safetensors")).unwrap();
    let weights = std::fs::read(at("tuned.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let map: serde_json::Map<_, _> =
        tensors.names().iter().map(|n| ((*n).into(), "tuned.safetensors".into())).collect();
    std::fs::write(at("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    assert_eq!(encode(folder.path(), &Reference), whole);
    std::fs::write(at("model.safetensors.index.json"), "{").unwrap();
    assert_eq!(encode(&at("tuned.safetensors"), &Reference), whole);
}

#[test]
fn what_the_model_cannot_take_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    tiny(directory.path(), "mean_tokens");
    let encoder = Encoder::open(directory.path(), &Reference).unwrap();
    for (ids, expected) in [
        (vec![], "tokens of input 4: there are none"),
        (vec![2, 12, 3], "id 12 is not below"),
        (vec![4; 19], "there are 19, and the model takes 18"),
    ] {
        let said = encoder.tokens(4, &ids).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    let weights = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    let said = Encoder::open(directory.path(), &Reference).err().unwrap().to_string();
    assert!(said.contains("model.safetensors: tensor ") && said.contains("claims bytes"), "{said}");
}

/// The weights of the tiny BERT under other names, with a table of positions that begins with two that are never met.
#[test]
fn a_roberta_is_a_bert_whose_positions_begin_later() {
    let [bert, roberta] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [&bert, &roberta] {
        tiny(folder.path(), "mean_tokens");
    }
    rewrite(roberta.path(), |name, shape, data| {
        put_off(name, shape, data);
        name.insert_str(0, "roberta.");
    });
    let path = roberta.path().join("config.json");
    let settings = std::fs::read_to_string(&path).unwrap();
    let settings = settings
        .replace("\"bert\"", "\"xlm-roberta\",\"pad_token_id\":1")
        .replace("embeddings\":20", "embeddings\":22");
    std::fs::write(&path, settings).unwrap();
    assert_eq!(kedge_engine::inspect(roberta.path()).unwrap(), "xlm-roberta");
    assert_eq!(encode(roberta.path(), &Reference), encode(bert.path(), &Reference));
}

/// The tiny BERT as GGUF, with keys changed or gone, and tensors added.
fn gguf(folder: &Path, file: &Path, keys: &[(&str, Option<Meta>)], tensors: &[&str]) {
    let mut metadata = as_gguf::metadata(folder);
    metadata.retain(|(key, _)| keys.iter().all(|(other, _)| key != other));
    metadata.extend(keys.iter().filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?))));
    let mut all = as_gguf::tensors(folder, Dtype::F32);
    all.extend(tensors.iter().map(|name| ((*name).to_owned(), Tensor::of_f32(&[2], &[1.0; 2]))));
    std::fs::write(file, to_bytes(&metadata, &all)).unwrap();
}

#[test]
fn a_gguf_file_has_the_vectors_of_the_folder_it_was_made_of() {
    for pooling in ["mean_tokens", "cls_token"] {
        let [folder, apart] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        tiny(folder.path(), pooling);
        let file = apart.path().join("m.gguf");
        gguf(folder.path(), &file, &[], &[]);
        // The longest sequence is nowhere in GGUF.
        std::fs::copy(folder.path().join("sentence_bert_config.json"), apart.path().join("sentence_bert_config.json"))
            .unwrap();
        for path in [&file, apart.path()] {
            assert!(kedge_engine::is_encoder(path));
            assert_eq!(kedge_engine::inspect(path).unwrap(), "bert");
            assert_eq!(encode(path, &Reference), encode(folder.path(), &Reference));
        }
        std::fs::remove_file(apart.path().join("sentence_bert_config.json")).unwrap();
        assert_eq!(encode(&file, &Reference)[7].tokens, 20, "a long text is cut at the last position");
        // As newer or other files are: no types of tokens, and a tokenizer beside it.
        gguf(folder.path(), &file, &[("tokenizer.ggml.model", Some(Meta::Text("t5".into())))], &[]);
        std::fs::copy(folder.path().join("tokenizer.json"), apart.path().join("tokenizer.json")).unwrap();
        assert_eq!(encode(&file, &Reference)[..7], encode(folder.path(), &Reference)[..7]);
    }
}

#[test]
fn what_a_gguf_file_says_is_meant_or_refused_by_name() {
    let [folder, apart] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    tiny(folder.path(), "mean_tokens");
    let file = apart.path().join("m.gguf");
    let texts = |words: &[&str]| Some(Meta::Texts(words.iter().map(|word| (*word).to_owned()).collect()));
    let twelve = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁edge", "▁box", "▁a", "▁a", "▁model", "▁runs", "▁.", "▁!"];
    for (key, value, expected) in [
        ("bert.pooling_type", Some(Meta::Unsigned(4)), "4 is not supported; 1 (mean)"),
        ("bert.attention.causal", Some(Meta::Bool(true)), "true is not supported"),
        ("bert.attention.layer_norm_epsilon", Some(Meta::Float(0.0)), "0 is not between 0 and 1"),
        ("bert.block_count", Some(Meta::Unsigned(0)), "0 is not between 1"),
        ("bert.context_length", None, "is not in the metadata"),
        ("bert.attention.head_count", Some(Meta::Unsigned(7)), "7 does not divide bert.embedding_length"),
        ("tokenizer.ggml.model", Some(Meta::Text("t5".into())), "\"t5\" is not supported; bert and a tokenizer.json"),
        ("tokenizer.ggml.tokens", texts(&twelve), "has a token twice"),
        ("tokenizer.ggml.bos_token_id", Some(Meta::Unsigned(12)), "is 12, and there are 12 tokens"),
        ("tokenizer.ggml.add_bos_token", Some(Meta::Bool(false)), "false is not supported"),
    ] {
        gguf(folder.path(), &file, &[(key, value)], &[]);
        for said in [kedge_engine::inspect(&file).unwrap_err(), Encoder::open(&file, &Reference).err().unwrap()] {
            assert!(said.to_string().contains(&format!("{key}: {expected}")), "{said}");
        }
    }
    gguf(folder.path(), &file, &[], &["cls.weight"]);
    let said = kedge_engine::inspect(&file).unwrap_err().to_string();
    assert!(said.contains("tensor cls.weight: is in the file, and an encoder that makes vectors has none"), "{said}");
    // Texts keep their large letters where a file says so, or where its words have some.
    let ids = |keys: &[(&str, Option<Meta>)]| {
        gguf(folder.path(), &file, keys, &[]);
        Encoder::open(&file, &Reference).unwrap().tokenize(0, "a Edge").unwrap().ids
    };
    let lowercase = |on| [("tokenizer.ggml.normalizer.lowercase", Some(Meta::Bool(on)))];
    let cased = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁edge", "▁Edge", "▁a", "s", "▁model", "▁runs", "▁.", "▁!"];
    assert_eq!(ids(&[]), [2, 6, 4, 3]);
    assert_eq!(ids(&lowercase(false)), [2, 6, 1, 3]);
    assert_eq!(ids(&[("tokenizer.ggml.tokens", texts(&cased))]), [2, 6, 5, 3]);
    // Kinds need not be told; then what is in brackets, or what the file says is special, is no end of a word.
    let none = ("tokenizer.ggml.token_type", None);
    let ids_of = |words: &[&str]| ids(&[none.clone(), ("tokenizer.ggml.tokens", texts(words))]);
    assert_eq!(ids(std::slice::from_ref(&none)), [2, 6, 4, 3]);
    assert_eq!(ids(&[none.clone(), lowercase(false)[0].clone()]), [2, 6, 1, 3], "an unknown word");
    let odd = ["<pad>", "<unk>", "<s>", "</s>", "▁edges", "▁!", "▁a", "s", "▁model", "▁runs", "▁.", "[MASK]"];
    assert_eq!(ids_of(&odd), [2, 6, 1, 3], "an unknown word");
    let told = ("tokenizer.ggml.unknown_token_id", None);
    let many: Vec<String> = (0..103).map(|word| format!("▁{word}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (words, expected) in [(&odd[..], "is 100, and there are 12 tokens"), (&many, "usual one, 100, is \"▁100\"")] {
        let keys = [none.clone(), told.clone(), ("tokenizer.ggml.tokens", texts(words))];
        gguf(folder.path(), &file, &keys, &[]);
        let said = Encoder::open(&file, &Reference).err().unwrap().to_string();
        assert!(said.contains("tokenizer.ggml.unknown_token_id: ") && said.contains(expected), "{said}");
    }
    // What older files call the first token, and what is taken where none is told.
    assert_eq!(
        ids(&[("tokenizer.ggml.bos_token_id", None), ("tokenizer.ggml.cls_token_id", Some(Meta::Unsigned(0)))]),
        [0, 6, 4, 3]
    );
}
