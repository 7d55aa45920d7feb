//! The decoder that we trained (`images/demo-decoder`): logits and greedy answers against `reference.json`, which
//! `eval.py` wrote in 64-bit floats from the same weights; perplexity, exact and quantised, against `perplexity.json`, which
//! the README repeats; and its texts against the script that writes them.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test reads files")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kedge_engine::backend::{Prepared, Sequence, Step};
use kedge_engine::generate::{ChatTemplate, End, Message, Request, Sampling};
use kedge_engine::graph::{Graph, PAGE_TOKENS};
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, Decoder, DecoderOptions};
use kedge_formats::{Dtype, Tensor, quant};
use serde_json::Value;

/// Furthest that a logit may be from the exact one; the rounding of keys and values to 16 bits is most of it.
const LOGIT_TOLERANCE: f64 = 0.02;
/// Furthest that a perplexity may be from the committed one, as a share of it. Processors add in other orders, and what
/// vectors are rounded to beside quantised matrices depends on their instructions: that moves it by less than 0.0002.
const PERPLEXITY_TOLERANCE: f64 = 0.001;
/// The ways to store matrices whose perplexity is committed, the exact one first.
const STORED: [Dtype; 8] =
    [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q6K, Dtype::Q5K, Dtype::Q4K, Dtype::Q4_0];
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

/// The held-out documents as `eval.py` reads them: talks in the model's template, prose between its marks.
fn held_out(decoder: &Decoder) -> Vec<Vec<u32>> {
    let corpus = std::fs::read_to_string(folder().join("corpus/held-out.txt")).unwrap();
    let documents = corpus.strip_suffix('\n').unwrap().split("\n=====\n");
    let text = |document: &str| match talk(document) {
        Some(messages) => {
            let text = decoder.template().unwrap().render(&messages).unwrap();
            // Nobody is to answer it.
            text.strip_suffix("<|assistant|>").unwrap().to_owned()
        }
        None => format!("<|bos|>{document}<|end|>"),
    };
    documents.map(|document| decoder.tokenizer().encode(&text(document), false).unwrap()).collect()
}

/// A document as messages, if it is a talk: a line that names a role begins one, others go on with it.
fn talk(document: &str) -> Option<Vec<Message>> {
    let role = |line: &str| ["User", "Assistant", "System"].into_iter().find(|role| named(line, role).is_some());
    role(document)?;
    let mut messages: Vec<(String, String)> = Vec::new();
    for line in document.split('\n') {
        match (role(line), messages.last_mut()) {
            (Some(role), _) => messages.push((role.to_lowercase(), named(line, role).unwrap().to_owned())),
            (None, Some((_, content))) => content.extend(["\n", line]),
            (None, None) => unreachable!("its first line names a role"),
        }
    }
    Some(messages.into_iter().map(|(role, content)| Message { role, content }).collect())
}

/// What a role says in a line that names it.
fn named<'a>(line: &'a str, role: &str) -> Option<&'a str> {
    line.strip_prefix(role)?.strip_prefix(": ")
}

/// Perplexity over every token but the first of each text, which are read by themselves.
fn perplexity(graph: &Arc<Graph>, texts: &[Vec<u32>]) -> f64 {
    let prepared = Cpu::new(None).unwrap().prepare(graph.clone(), CONTEXT / PAGE_TOKENS).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for ids in texts {
        let width = graph.result_width();
        for (row, next) in logits(graph, &*prepared, &ids[..ids.len() - 1]).chunks_exact(width).zip(&ids[1..]) {
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

/// What is committed of a way to store matrices.
fn committed(perplexities: &Value, dtype: Dtype) -> f64 {
    perplexities["stored as"][dtype.name()].as_f64().unwrap_or_else(|| panic!("{} is not there", dtype.name()))
}

/// On the whole held-out split, for each way to store matrices, and for the quantised file that is shipped.
#[test]
fn perplexity_is_what_is_committed() {
    let perplexities = json(&folder().join("perplexity.json"));
    let texts = held_out(&open(""));
    let tokens: usize = texts.iter().map(|ids| ids.len() - 1).sum();
    assert_eq!(texts.len() as u64, count(&perplexities, "documents"));
    assert_eq!(tokens as u64, count(&perplexities, "tokens"));
    let read = |file: &str| Decoder::read(&folder().join("model").join(file)).unwrap().1;
    let graph = read("");
    let ways = STORED.map(|dtype| (dtype.name(), dtype, stored_as(&graph, dtype)));
    let shipped = ("demo-decoder-Q8_0.gguf", Dtype::Q8_0, Arc::new(read("demo-decoder-Q8_0.gguf")));
    let mut wrong = Vec::new();
    for (name, dtype, graph) in ways.into_iter().chain([shipped]) {
        let (expected, found) = (committed(&perplexities, dtype), perplexity(&graph, &texts));
        println!("{name}: {found:.4}, {expected:.4} is committed");
        let is_near = (found - expected).abs() <= expected * PERPLEXITY_TOLERANCE;
        if !is_near {
            wrong.push(format!("{name}: {found:.4}, not {expected:.4}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

fn count(perplexities: &Value, what: &str) -> u64 {
    perplexities[what].as_u64().unwrap_or_else(|| panic!("{what} is no count"))
}

/// The README says what is committed, and of no other way to store matrices.
#[test]
fn the_readme_says_the_committed_perplexities() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let perplexities = json(&folder().join("perplexity.json"));
    let (documents, tokens) = (count(&perplexities, "documents"), count(&perplexities, "tokens"));
    let exact = committed(&perplexities, STORED[0]);
    let rows = STORED.map(|dtype| {
        let found = committed(&perplexities, dtype);
        format!("| {} | {found:.4} | {:.4} |\n", dtype.name(), found / exact)
    });
    let table = format!("| matrices stored as | perplexity | beside F32's |\n| --- | ---: | ---: |\n{}", rows.concat());
    let tokens = format!("{} {:03} predicted tokens", tokens / 1000, tokens % 1000);
    for said in [
        format!("\n\n{table}\n"),
        format!("| perplexity on the held-out split | {exact:.4} "),
        format!("| held-out split | {documents} documents, 0.54 MB, {tokens} |"),
    ] {
        assert!(readme.contains(&said), "images/demo-decoder/README.md lacks this:\n{said}");
    }
    let formats = perplexities["stored as"].as_object().unwrap();
    assert_eq!(formats.len(), STORED.len(), "perplexity.json tells of ways that are not measured");
}

/// The texts are those that `corpus.py` writes: it needs Python alone.
#[test]
fn the_corpus_is_what_its_script_writes() {
    let mut check = Command::new("python3");
    // No compiled file is left beside the sources.
    check.arg("-B").arg(folder().join("corpus.py")).arg("--check");
    match check.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
            assert!(output.status.success(), "{said}");
            assert_eq!(said, "train.txt: the same\nheld-out.txt: the same\n");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var_os("KEDGE_TEST_REQUIRE_PYTHON").is_none(), "python3: {error}");
            println!("skipped: this machine lacks python3");
        }
        Err(error) => panic!("python3: {error}"),
    }
}
