//! `kedge infer bench`: how fast a model makes text here, without HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kedge_engine::Decoder;
use kedge_engine::generate::{End, Event, Request, Sampling};
use kedge_world::World;
use serde::Serialize;

use super::Output;
use crate::output::{self, say};

/// Settings of `kedge infer bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchFlags {
    /// The model: a folder, its .safetensors file with the other files beside it, or a .gguf file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// Tokens of each prompt; no two prompts begin alike
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    answer_tokens: usize,
    /// Requests at once
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    streams: usize,
    /// Requests in all
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    requests: u64,
    /// Longest time; what has not ended by then is cut and does not count
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    #[command(flatten)]
    placement: super::PlacementFlags,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(crate) const EXAMPLES: &str = "\
One request alone comes first: it gives the figure for reading prompts. Then as many requests at once as --streams says, \
until --requests have ended or --seconds are over.

Examples:
  kedge infer bench --model images/demo-decoder/model
  kedge infer bench --model ./model.gguf --streams 8 \\
    --prompt-tokens 512 --answer-tokens 128
  kedge infer bench --model ./model.gguf --streams 1 --requests 4 -o json";

/// One request, as it came.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    first: Duration,
    whole: Duration,
    made: usize,
}

/// On what.
#[derive(Debug, PartialEq, Serialize)]
struct On {
    backend: String,
    threads: usize,
    /// Why on no GPU, where one was wanted or would have been taken.
    no_gpu: Option<String>,
}

/// What was found.
#[derive(Debug, PartialEq, Serialize)]
struct Found {
    model: String,
    #[serde(flatten)]
    on: On,
    prompt_tokens: usize,
    answer_tokens: usize,
    streams: usize,
    requests: usize,
    requests_cut: u64,
    seconds: f64,
    time_to_first_token_p50_seconds: f64,
    time_to_first_token_p99_seconds: f64,
    stream_tokens_per_second_p50: f64,
    tokens_per_second: f64,
    prefill_tokens_per_second: f64,
    memory_peak_bytes: u64,
}

/// Measures a model.
pub(crate) async fn run(flags: BenchFlags) -> Result<()> {
    for (name, value) in [
        ("--prompt-tokens", flags.prompt_tokens as u64),
        ("--answer-tokens", flags.answer_tokens as u64),
        ("--streams", flags.streams as u64),
        ("--requests", flags.requests),
        ("--seconds", flags.seconds),
    ] {
        if value == 0 {
            bail!("{name}: must be at least 1");
        }
    }
    if flags.streams > 256 {
        bail!("--streams: must be at most 256, is {}", flags.streams);
    }
    let (decoder, no_gpu) = super::open(&flags.model, &flags.placement).await?;
    let context = decoder.config().context;
    if flags.prompt_tokens.saturating_add(flags.answer_tokens) > context {
        bail!("--prompt-tokens and --answer-tokens: prompt and answer may have {context} tokens together");
    }
    let output = flags.output;
    let measured = tokio::task::spawn_blocking(move || measure(&flags, &decoder, no_gpu)).await;
    let found = measured.context("measuring")??;
    match output {
        Output::Table => output::write(format_args!("{}", table(&found)))?,
        Output::Json => say!("{}", serde_json::to_string_pretty(&found).context("writing what was found")?)?,
    }
    Ok(())
}

fn measure(flags: &BenchFlags, decoder: &Arc<Decoder>, no_gpu: Option<String>) -> Result<Found> {
    let clock = World::real().clock;
    let deadline = clock.monotonic().saturating_add(Duration::from_secs(flags.seconds));
    let bench = Bench { flags, decoder, world: World::real(), deadline };
    // The first makes plans and touches weights; the second is what counts.
    let alone = bench.request(0, flags.prompt_tokens, 1)?.and(bench.request(1, flags.prompt_tokens, 1)?);
    let Some(alone) = alone else { bail!("no prompt was read within {} s (--seconds)", flags.seconds) };
    let (next, cut) = (AtomicU64::new(0), AtomicU64::new(0));
    let begin = clock.monotonic();
    let stream = || -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= flags.requests || clock.monotonic() >= deadline {
                return Ok(runs);
            }
            match bench.request(2 + number, flags.prompt_tokens, flags.answer_tokens)? {
                Some(run) => runs.push(run),
                None => drop(cut.fetch_add(1, Ordering::Relaxed)),
            }
        }
    };
    let runs = std::thread::scope(|scope| {
        let streams: Vec<_> = (0..flags.streams).map(|_| scope.spawn(stream)).collect();
        let ended = streams.into_iter().map(|stream| stream.join().expect("a stream does not panic"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    let (runs, took) = (runs.concat(), clock.monotonic() - begin);
    if runs.is_empty() {
        bail!("no request ended within {} s (--seconds)", flags.seconds);
    }
    #[allow(clippy::disallowed_methods, reason = "what the kernel says of this process is no file of anybody's")]
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = memory_peak(&status);
    // A device may have been lost meanwhile.
    let (on, moved) = decoder.on();
    let on = On { backend: format!("{} ({})", on.name, on.features), threads: on.threads, no_gpu: moved.or(no_gpu) };
    Ok(found(flags, on, &runs, cut.into_inner(), took, alone, memory))
}

struct Bench<'a> {
    flags: &'a BenchFlags,
    decoder: &'a Decoder,
    world: World,
    deadline: Duration,
}

impl Bench<'_> {
    /// One request to its end; none when the time was over before.
    fn request(&self, number: u64, prompt_tokens: usize, answer_tokens: usize) -> Result<Option<Run>> {
        let vocabulary = self.decoder.config().vocabulary;
        let request = Request {
            prompt: prompt(number, prompt_tokens, vocabulary),
            tokens_max: answer_tokens,
            sampling: Sampling { seed: number, ..Sampling::default() },
            ..Request::default()
        };
        let (sender, events) = std::sync::mpsc::channel();
        let begin = self.world.clock.monotonic();
        let id = self.decoder.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
        let (mut first, mut made) = (None, 0);
        loop {
            let now = self.world.clock.monotonic();
            match events.recv_timeout(self.deadline.saturating_sub(now)) {
                Ok(Event::Begin { .. }) => {}
                Ok(Event::Token(_)) => {
                    first = first.or(Some(self.world.clock.monotonic() - begin));
                    made += 1;
                }
                Ok(Event::End(End::Failed(why))) => bail!("a request failed: {why}"),
                Ok(Event::End(_)) => {
                    let whole = self.world.clock.monotonic() - begin;
                    return Ok(first.map(|first| Run { first, whole, made }));
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    self.decoder.cancel(id);
                    return Ok(None);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("the decoder's thread has ended while a model was measured ({})", self.flags.model.display())
                }
            }
        }
    }
}

/// Tokens that no other number's prompt begins with.
fn prompt(number: u64, length: usize, vocabulary: usize) -> Vec<u32> {
    // SplitMix64: these need to differ, and the same number to give the same.
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..length).map(|_| (next() % vocabulary as u64) as u32).collect()
}

/// The value below which that share of them lies.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The most memory this process had, from the text of `/proc/self/status`.
fn memory_peak(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

#[allow(clippy::too_many_arguments, reason = "one place puts all of it together")]
fn found(
    flags: &BenchFlags,
    on: On,
    runs: &[Run],
    requests_cut: u64,
    took: Duration,
    alone: Run,
    memory_peak_bytes: u64,
) -> Found {
    let mut firsts: Vec<f64> = runs.iter().map(|run| run.first.as_secs_f64()).collect();
    let speed = |run: &Run| (run.made.max(1) - 1) as f64 / (run.whole - run.first).as_secs_f64().max(1e-9);
    let mut speeds: Vec<f64> = runs.iter().map(speed).collect();
    let made: usize = runs.iter().map(|run| run.made).sum();
    Found {
        model: flags.model.display().to_string(),
        on,
        prompt_tokens: flags.prompt_tokens,
        answer_tokens: flags.answer_tokens,
        streams: flags.streams,
        requests: runs.len(),
        requests_cut,
        seconds: took.as_secs_f64(),
        time_to_first_token_p50_seconds: percentile(&mut firsts, 0.5),
        time_to_first_token_p99_seconds: percentile(&mut firsts, 0.99),
        stream_tokens_per_second_p50: percentile(&mut speeds, 0.5),
        tokens_per_second: made as f64 / took.as_secs_f64().max(1e-9),
        prefill_tokens_per_second: flags.prompt_tokens as f64 / alone.first.as_secs_f64().max(1e-9),
        memory_peak_bytes,
    }
}

fn table(found: &Found) -> String {
    let Found { requests, requests_cut, streams, prompt_tokens, answer_tokens, seconds, .. } = found;
    let cut = if *requests_cut > 0 { format!(", {requests_cut} cut at the end") } else { String::new() };
    let On { backend, threads, no_gpu } = &found.on;
    let no_gpu = no_gpu.as_ref().map_or_else(String::new, |why| format!("; no GPU: {why}"));
    let rows = [
        ("MODEL", found.model.clone()),
        ("BACKEND", format!("{backend}, {threads} threads{no_gpu}")),
        ("REQUESTS", format!("{requests} in {seconds:.1} s, {streams} at once{cut}")),
        ("TOKENS", format!("{prompt_tokens} of a prompt, {answer_tokens} of an answer")),
        ("FIRST TOKEN P50", format!("{:.3} s", found.time_to_first_token_p50_seconds)),
        ("FIRST TOKEN P99", format!("{:.3} s", found.time_to_first_token_p99_seconds)),
        ("A STREAM P50", format!("{:.1} tokens/s", found.stream_tokens_per_second_p50)),
        ("ALL STREAMS", format!("{:.1} tokens/s", found.tokens_per_second)),
        ("PROMPT, ALONE", format!("{:.1} tokens/s", found.prefill_tokens_per_second)),
        ("MEMORY, PEAK", format!("{} MiB", found.memory_peak_bytes >> 20)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<17}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_there() {
        for (values, share, expected) in [
            (&[3.0, 1.0, 2.0][..], 0.5, 2.0),
            (&[1.0], 0.99, 1.0),
            (&[1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
            (&[1.0, 2.0, 3.0, 4.0], 0.99, 4.0),
            (&[], 0.5, 0.0),
        ] {
            assert_eq!(percentile(&mut values.to_vec(), share), expected, "{values:?} {share}");
        }
    }

    #[test]
    fn prompts_differ_from_their_first_tokens_on_and_come_again_the_same() {
        let (one, two) = (prompt(0, 8, 5000), prompt(1, 8, 5000));
        assert!(one[0] != two[0] && one == prompt(0, 8, 5000) && one.iter().all(|id| *id < 5000), "{one:?} {two:?}");
    }

    #[test]
    fn the_peak_is_read_from_the_status_of_the_process() {
        assert_eq!(memory_peak("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n"), 2 << 20);
        assert_eq!(memory_peak(""), 0);
    }
}
