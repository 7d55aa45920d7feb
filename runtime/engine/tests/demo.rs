//! The decoder that we trained (`images/demo-decoder`): logits and greedy answers against `reference.json`, which
//! `eval.py` wrote in 64-bit floats from the same weights, and what each quantisation costs in perplexity.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test reads files")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kedge_engine::backend::{Prepared, Sequence, Step};
use kedge_engine::generate::{ChatTemplate, End, Message, Request, Sampling, TextTokenizer};
use kedge_engine::graph::{Graph, PAGE_TOKENS};
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, Decoder, DecoderOptions};
use kedge_formats::{Dtype, Tensor, quant};
use serde_json::Value;

/// Furthest that a logit may be from the exact one; the rounding of keys and values to 16 bits is most of it.
const LOGIT_TOLERANCE: f64 = 0.02;
/// Tokens of the held-out texts that perplexity is measured on here; `eval.py` takes all of them.
const TOKENS: usize = 12_000;
const CONTEXT: usize = 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/demo-decoder")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The logits after every token of a text.
fn logits(graph: &Graph, prepared: &dyn Prepared, ids: &[u32]) -> Vec<f32> {
    let plan = Plan::new(graph, Shape { rows: ids.len(), outputs: ids.len() });
    let pages = (0..ids.len().div_ceil(PAGE_TOKENS) as u32).collect();
    let sequences = vec![Sequence { rows: ids.len(), past: 0, pages }];
    let outputs = (0..ids.len() as u32).collect();
    let mut answers = Vec::new();
    prepared.run(&plan, &Step { ids: ids.to_vec(), types: vec![], sequences, outputs }, &mut answers).unwrap();
    answers
}

#[test]
fn logits_are_those_of_the_reference() {
    let graph = Arc::new(Decoder::read(&folder().join("model")).unwrap().1);
    let reference = json(&folder().join("reference.json"));
    for backend in Cpu::levels(Some(2)).unwrap() {
        let prepared = backend.prepare(graph.clone(), CONTEXT / PAGE_TOKENS).unwrap();
        let mut compared = 0;
        for text in reference["texts"].as_array().unwrap() {
            let ours = logits(&graph, &*prepared, &ids(&text["ids"]));
            for row in text["logits"].as_array().unwrap() {
                let at = row["position"].as_u64().unwrap() as usize * graph.result_width();
                for pair in row["top"].as_array().unwrap() {
                    let (id, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
                    let found = f64::from(ours[at + id]);
                    let features = backend.capabilities().features;
                    assert!(
                        (found - expected).abs() <= LOGIT_TOLERANCE,
                        "{features}, {}: {found} {expected}",
                        text["text"]
                    );
                    compared += 1;
                }
            }
        }
        assert!(compared >= 50, "{compared}");
    }
}

fn open(path: &str) -> Decoder {
    let options = DecoderOptions { tokens_kept: Some(4096), ..DecoderOptions::default() };
    Decoder::open(&folder().join("model").join(path), &Cpu::new(Some(2)).unwrap(), options).unwrap()
}

/// The file that is shipped, too: its numbers are quantised, and its answers are the same.
#[test]
fn greedy_answers_are_those_of_the_reference() {
    let reference = json(&folder().join("reference.json"));
    for file in ["", "demo-decoder-Q8_0.gguf"] {
        let decoder = open(file);
        for chat in reference["chats"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
            let template: &ChatTemplate = decoder.template().unwrap();
            let text = template.render(&messages).unwrap();
            assert_eq!(text, chat["prompt"].as_str().unwrap());
            let prompt = decoder.tokenizer().encode(&text, false).unwrap();
            assert_eq!(prompt, ids(&chat["ids"]));
            let expected = ids(&chat["greedy_ids"]);
            let (stop, sampling) = (decoder.stop().to_vec(), Sampling::greedy());
            let request = Request { prompt, tokens_max: 40, stop, sampling, ..Request::default() };
            let (spoken, end) = match expected.split_last() {
                Some((last, before)) if decoder.stop().contains(last) => (before, End::Stop),
                _ => (&expected[..], End::Length),
            };
            let (tokens, found) = decoder.complete(request).unwrap();
            assert_eq!(decoder.tokenizer().decode(&tokens).unwrap(), chat["greedy_text"].as_str().unwrap(), "{file}");
            assert_eq!((&tokens[..], found), (spoken, end), "{file}: {text}");
        }
    }
}

#[test]
fn the_gguf_file_says_what_the_folder_says() {
    let (ours, gguf) = (open(""), open("demo-decoder-Q8_0.gguf"));
    for text in ["On Monday the driver brought 12 boxes of milk.", "It's  5:30 –  ünïcode, 日本 😀\n\nnext"] {
        assert_eq!(
            ours.tokenizer().encode(text, true).unwrap(),
            gguf.tokenizer().encode(text, true).unwrap(),
            "{text}"
        );
        let back = gguf.tokenizer().decode(&gguf.tokenizer().encode(text, false).unwrap()).unwrap();
        assert_eq!(back, text);
    }
    let talk = [Message { role: "user".into(), content: "What is a pod?".into() }];
    let render = |decoder: &Decoder| decoder.template().unwrap().render(&talk).unwrap();
    assert_eq!(render(&ours), render(&gguf));
    assert_eq!(ours.stop(), gguf.stop());
}

/// Perplexity on the first held-out texts, each by itself.
fn perplexity(graph: &Arc<Graph>, texts: &[Vec<u32>]) -> f64 {
    let prepared = Cpu::new(None).unwrap().prepare(graph.clone(), CONTEXT / PAGE_TOKENS).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for ids in texts {
        let width = graph.result_width();
        for (row, next) in logits(graph, &*prepared, ids).chunks_exact(width).zip(&ids[1..]) {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|logit| f64::from(logit - top).exp()).sum();
            sum += total.ln() - f64::from(row[*next as usize] - top);
            count += 1;
        }
    }
    (sum / f64::from(count)).exp()
}

/// The graph with every matrix stored in another format.
fn stored_as(graph: &Graph, dtype: Dtype) -> Arc<Graph> {
    let weights = graph.weights.iter().map(|weight| {
        if weight.shape.len() < 2 {
            return weight.clone();
        }
        Tensor::of_bytes(dtype, &weight.shape, quant::quantize(dtype, &weight.to_f32())).unwrap()
    });
    let (ops, values) = (graph.ops.clone(), graph.values.clone());
    Arc::new(Graph { ops, values, weights: weights.collect(), result: graph.result, pages: graph.pages })
}

#[test]
fn quantisation_costs_little_perplexity() {
    let (_, graph) = Decoder::read(&folder().join("model")).unwrap();
    let tokenizer = TextTokenizer::of_file(&folder().join("model/tokenizer.json")).unwrap();
    let held_out = std::fs::read_to_string(folder().join("corpus/held-out.txt")).unwrap();
    let (mut texts, mut count) = (Vec::new(), 0);
    // Prose alone: talks are written by the chat template.
    for text in held_out.split("=====\n").filter(|text| !text.starts_with("User: ") && !text.starts_with("System: ")) {
        let mut ids = tokenizer.encode("<|bos|>", false).unwrap();
        ids.extend(tokenizer.encode(text.trim_end(), false).unwrap());
        ids.truncate(CONTEXT);
        count += ids.len();
        texts.push(ids);
        if count >= TOKENS {
            break;
        }
    }
    let exact = perplexity(&stored_as(&graph, Dtype::F32), &texts);
    assert!(exact > 1.2 && exact < 20.0, "{exact}");
    println!("f32 {exact:.4}");
    for (dtype, most) in [
        (Dtype::F16, 1.001),
        (Dtype::Bf16, 1.005),
        (Dtype::Q8_0, 1.01),
        (Dtype::Q6K, 1.02),
        (Dtype::Q5K, 1.04),
        (Dtype::Q4K, 1.10),
        (Dtype::Q4_0, 1.20),
    ] {
        let found = perplexity(&stored_as(&graph, dtype), &texts);
        println!("{} {found:.4}, {:.4} times", dtype.name(), found / exact);
        assert!(found <= exact * most && found >= exact * 0.98, "{}: {found} beside {exact}", dtype.name());
    }
}
