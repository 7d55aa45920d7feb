//! `kedge-bench inference`: our engine beside llama.cpp, mistral.rs and ONNX Runtime, on the same files with as many
//! threads, all loaded at once and asked in turn. Medians of the rounds count, since a machine's speed drifts; how fast it
//! reads memory and what else runs on it is looked at between them.

mod bandwidth;
mod conditions;
pub(crate) mod contender;
mod models;
mod report;
mod serving;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use kedge_formats::Dtype;

use crate::machine::median_of;
use conditions::{Conditions, Watch};
use contender::Contender;
use models::{MIDDLE, SMALL, Shape};

/// Tokens of a prompt and of an answer.
const PROMPT: usize = 512;
const ANSWER: usize = 64;

/// What to measure, and beside what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program to measure
    #[arg(long, value_name = "FILE", default_value = "target/release/kedge")]
    kedge: PathBuf,
    /// Where models of random weights and packed files are kept
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    folder: PathBuf,
    /// all-MiniLM-L6-v2
    #[arg(long, value_name = "DIR", default_value = "target/models/minilm")]
    minilm: PathBuf,
    /// llama.cpp built for this machine, behind peers/native.cpp
    #[arg(long, value_name = "FILE")]
    native: Option<PathBuf>,
    /// A Python that has the peers' packages
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Threads of each
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
    /// Times that each is asked each question
    #[arg(long, value_name = "COUNT", default_value_t = 7)]
    rounds: usize,
    /// The report whose part on inference is written anew
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    report: PathBuf,
}

/// Medians of one contender on one model.
#[derive(Debug)]
struct Column {
    name: String,
    /// Seconds for each question.
    seconds: Vec<f64>,
}

/// One model, and all that was asked.
#[derive(Debug)]
struct Comparison {
    model: String,
    /// What was asked, and how many things each makes.
    questions: Vec<(&'static str, usize)>,
    /// Ours first.
    columns: Vec<Column>,
    /// Bytes of weights that a token of an answer needs.
    bytes_read: u64,
}

/// All that was found.
#[derive(Debug)]
struct Found {
    threads: usize,
    rounds: usize,
    conditions: Conditions,
    decoders: Vec<Comparison>,
    encoder: Comparison,
    serving: serving::Figures,
}

/// Measures everything and writes the report.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let threads = match options.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let mut watch = Watch::start(threads)?;
    let mut decoders = Vec::new();
    for (shape, dtype) in
        [SMALL, MIDDLE].into_iter().flat_map(|s| [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K].map(|d| (s, d)))
    {
        decoders.push(decoder(options, &mut watch, threads, shape, dtype)?);
        eprintln!("{}", report::line(decoders.last().expect("it was just put there")));
    }
    let encoder = encoder(options, &mut watch, threads)?;
    eprintln!("{}", report::line(&encoder));
    let small = models::file(&options.folder, SMALL, Dtype::Q8_0)?;
    let kedge = std::path::absolute(&options.kedge)?;
    let serving = serving::measure(&kedge, &small, threads, &options.folder.join("served")).await?;
    let found = Found { threads, rounds: options.rounds, conditions: watch.end()?, decoders, encoder, serving };
    let text = report::text(&crate::machine::Machine::look()?, &found);
    println!("{text}");
    crate::report::replace(&options.report, "inference", &text)
}

/// Our side as a command.
fn ours(options: &Options, threads: usize, model: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["contender"]).arg(model).arg(threads.to_string()).arg(options.folder.join("packed"));
    Ok(command)
}

/// A peer from Python, as a command.
fn from_python(python: &Path, kind: &str, model: &Path, threads: usize) -> Command {
    let mut command = Command::new(python);
    command.arg("xtask/bench/peers/peers.py").arg(kind).arg(model).arg(threads.to_string());
    command
}

fn decoder(options: &Options, watch: &mut Watch, threads: usize, shape: Shape, dtype: Dtype) -> Result<Comparison> {
    let model = std::path::absolute(models::file(&options.folder, shape, dtype)?)?;
    let mut all = vec![Contender::start("Kedge", ours(options, threads, &model)?)?];
    if let Some(native) = &options.native {
        let mut command = Command::new(native);
        command.arg(&model).arg(threads.to_string());
        all.push(Contender::start("llama.cpp, native", command)?);
    }
    if let Some(python) = &options.python {
        all.push(Contender::start("llama.cpp, wheel", from_python(python, "xllamacpp", &model, threads))?);
        all.push(Contender::start("mistral.rs", from_python(python, "mistralrs", &model, threads))?);
    }
    let name = format!("{} {}", shape.name, dtype.name());
    let questions = vec![("prompt", PROMPT), ("answer", ANSWER)];
    compare(name, all, questions, shape.bytes_read(dtype), options.rounds, watch)
}

fn encoder(options: &Options, watch: &mut Watch, threads: usize) -> Result<Comparison> {
    let mut all = vec![Contender::start("Kedge", ours(options, threads, &options.minilm)?)?];
    if let Some(python) = &options.python {
        all.push(Contender::start("ONNX Runtime", from_python(python, "onnxruntime", &options.minilm, threads))?);
    }
    compare("all-MiniLM-L6-v2, f32".into(), all, vec![("embed", 1), ("embed", 32)], 0, options.rounds, watch)
}

/// How long nobody computes before a question is asked.
const SETTLE: Duration = Duration::from_millis(50);
/// How often texts are asked to become vectors in one turn: it takes milliseconds.
const EMBEDS: usize = 10;

/// Asks all contenders each question, in turn, round after round; the first round warms up.
fn compare(
    model: String,
    mut all: Vec<Contender>,
    questions: Vec<(&'static str, usize)>,
    bytes_read: u64,
    rounds: usize,
    watch: &mut Watch,
) -> Result<Comparison> {
    let mut times = vec![vec![Vec::new(); questions.len()]; all.len()];
    for round in 0..=rounds {
        std::thread::sleep(SETTLE);
        watch.look()?;
        for (question, (what, count)) in questions.iter().enumerate() {
            // Nobody is always first.
            for turn in 0..all.len() {
                let index = (turn + round) % all.len();
                // Threads of whoever was asked before may look for more work for a while.
                std::thread::sleep(SETTLE);
                for _ in 0..if *what == "embed" { EMBEDS } else { 1 } {
                    let seconds = all[index].ask(what, *count).with_context(|| format!("{model}: {what} {count}"))?;
                    if round > 0 {
                        times[index][question].push(seconds);
                    }
                }
            }
        }
    }
    std::thread::sleep(SETTLE);
    watch.look()?;
    let column = |(contender, times): (&Contender, Vec<Vec<f64>>)| Column {
        name: contender.name.clone(),
        seconds: times.into_iter().map(median_of).collect(),
    };
    let columns = all.iter().zip(times).map(column).collect();
    Ok(Comparison { model, questions, columns, bytes_read })
}
