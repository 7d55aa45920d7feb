//! The whole way from files to vectors on a tiny BERT with random weights, made here from a seed: the CPU backend
//! against the plain one, and batches against single texts. Needs no download.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes a model directory")]

mod tiny_bert;

use std::path::Path;

use kedge_engine::{Backend, Cpu, Embedding, Encoder, Reference};
use tiny_bert::{cosine, texts, tiny};

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
    let weights = std::fs::read(bert.path().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let renamed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if name.contains("position_embeddings") {
                data = [vec![0x40; 2 * shape[1] * 4], data].concat();
                shape[0] += 2;
            }
            (format!("roberta.{name}"), shape, data)
        })
        .collect();
    let views = renamed.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    let path = roberta.path().join("model.safetensors");
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    let path = roberta.path().join("config.json");
    let settings = std::fs::read_to_string(&path).unwrap();
    let settings = settings
        .replace("\"bert\"", "\"xlm-roberta\",\"pad_token_id\":1")
        .replace("embeddings\":20", "embeddings\":22");
    std::fs::write(&path, settings).unwrap();
    assert_eq!(kedge_engine::inspect(roberta.path()).unwrap(), "xlm-roberta");
    assert_eq!(encode(roberta.path(), &Reference), encode(bert.path(), &Reference));
}
