//! The protocol by which engines are compared, and our side of it.
//!
//! A contender is a process that is given a model and a number of threads, writes "ready", and answers each line with the
//! seconds it took: `prompt N` (N tokens are read and one is made), `answer N` (a prompt of eight is read and N tokens are
//! made one by one, greedily), `embed N` (N texts of 32 tokens become vectors). The clock runs on each side from when its
//! engine is asked until it has the last token or vector, reading the prompt included: no engine's own account is taken,
//! since they begin and end at different moments. No two prompts begin alike, so that nothing is remembered. No HTTP on
//! any side.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kedge_engine::generate::{Request, Sampling};
use kedge_engine::{Cpu, Decoder, DecoderOptions, Encoder};

/// A contender's process.
pub(crate) struct Contender {
    pub(crate) name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Contender {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(name: &str, mut command: Command) -> Result<Self> {
        let log = std::env::temp_dir().join(format!("kedge-bench-{}.log", name.replace([' ', '.'], "-")));
        command.stderr(std::fs::File::create(&log)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let (input, output) = (child.stdin.take().context("its input")?, child.stdout.take().context("its output")?);
        let mut started = Self { name: name.to_owned(), child, input, output: BufReader::new(output) };
        let line = started.line()?;
        if line != "ready" {
            bail!("{name} is not ready: {line:?}; see {}", log.display());
        }
        Ok(started)
    }

    /// Seconds that it takes.
    pub(crate) fn ask(&mut self, what: &str, count: usize) -> Result<f64> {
        writeln!(self.input, "{what} {count}").with_context(|| format!("asking {}", self.name))?;
        let line = self.line()?;
        line.parse().with_context(|| format!("{} answered {line:?}", self.name))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).with_context(|| format!("reading from {}", self.name))?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What our side is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The model
    model: PathBuf,
    /// Threads that compute
    threads: usize,
    /// Where packed weights are kept
    cache: PathBuf,
}

/// Our side.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cpu = Cpu::new(Some(options.threads))?.keep_packed(Some(options.cache.clone()));
    let mut engine = Engine::open(&options.model, &cpu)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, count) = line.split_once(' ').with_context(|| format!("{line:?} is no question"))?;
        println!("{:.6}", engine.ask(what, count.parse()?)?);
    }
    Ok(())
}

enum Engine {
    Encoder(Box<Encoder>, Ids),
    Decoder(Box<Decoder>, Ids),
}

/// Token ids from a fixed sequence.
struct Ids(u32);

impl Ids {
    fn next(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % below
    }
}

impl Engine {
    fn open(model: &Path, cpu: &Cpu) -> Result<Self> {
        if kedge_engine::is_encoder(model) {
            return Ok(Self::Encoder(Box::new(Encoder::open(model, cpu)?), Ids(7)));
        }
        let options = DecoderOptions { tokens_kept: Some(4096), ..DecoderOptions::default() };
        Ok(Self::Decoder(Box::new(Decoder::open(model, cpu, options)?), Ids(7)))
    }

    fn ask(&mut self, what: &str, count: usize) -> Result<f64> {
        match (self, what) {
            (Self::Decoder(decoder, ids), "prompt" | "answer") => {
                let (length, tokens_max) = if what == "prompt" { (count, 1) } else { (8, count) };
                let prompt = (0..length).map(|_| 300 + ids.next(29_000)).collect();
                let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
                let begin = Instant::now();
                let (made, end) = decoder.complete(Request { prompt, tokens_max, sampling, ..Request::default() })?;
                let took = begin.elapsed().as_secs_f64();
                if made.len() != tokens_max {
                    bail!("{} tokens were made, not {tokens_max}: {end:?}", made.len());
                }
                Ok(took)
            }
            (Self::Encoder(encoder, ids), "embed") => {
                let mut text = |_| {
                    let middle = (0..30).map(|_| 2_000 + ids.next(20_000));
                    let all: Vec<u32> = [101].into_iter().chain(middle).chain([102]).collect();
                    encoder.tokens(0, &all)
                };
                let texts = (0..count).map(&mut text).collect::<Result<Vec<_>, _>>()?;
                let begin = Instant::now();
                let vectors = encoder.encode_tokens(&texts)?;
                let took = begin.elapsed().as_secs_f64();
                if vectors.len() != count {
                    bail!("{} vectors, not {count}", vectors.len());
                }
                Ok(took)
            }
            _ => bail!("{what:?} is not what this model does"),
        }
    }
}
