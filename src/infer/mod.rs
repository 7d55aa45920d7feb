//! `kedge infer`: models without a cluster. By itself it serves one over HTTP; its verbs talk with one, or measure one,
//! in this process.

mod bench;
mod chat;
mod cut;
mod limits;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum};
use kedge_engine::{Cpu, Decoder, DecoderOptions};
use kedge_serve::{Candidate, Device, InferOptions, Model, Opened, Placement, TelemetryOptions, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};

use crate::logs;
use crate::output::say;
use crate::settings::host_port;

/// `kedge infer`, with a verb or as a server.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXAMPLES)]
pub(crate) struct InferCommand {
    #[command(subcommand)]
    verb: Option<InferVerb>,
    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum InferVerb {
    /// Talk with a model on the terminal
    #[command(after_help = chat::EXAMPLES)]
    Run(chat::RunFlags),
    /// Tell what could compute here, and why it cannot
    #[command(after_help = DEVICES_EXAMPLES)]
    Devices(DevicesFlags),
    /// Measure how fast a model makes text here
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchFlags),
}

/// Settings of `kedge infer devices`.
#[derive(Args, Clone, Debug)]
struct DevicesFlags {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How a verb prints what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line each
    Table,
    /// JSON
    Json,
}

const DEVICES_EXAMPLES: &str = "\
Without --device a model is put on the first that is usable. A GPU needs NVIDIA's driver and nothing else.

Examples:
  kedge infer devices
  kedge infer devices -o json";

/// On what a model computes.
#[derive(Args, Clone, Debug)]
struct PlacementFlags {
    /// What computes: auto is an NVIDIA device that can be used, else the processor
    #[arg(long, value_name = "auto|cpu|cuda", default_value = "auto")]
    device: Device,
    /// Threads that compute, 64 at most (default: one for each core that this process may use)
    #[arg(long, value_name = "COUNT", value_parser = threads())]
    threads: Option<usize>,
    /// Where weights are kept in the order that this processor wants, so that the next start need not sort them
    /// (default: kedge in $XDG_CACHE_HOME, or in ~/.cache); the eight files used last stay, in half of the disk's room, and
    /// weights that would take more by themselves are sorted into memory
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// Where weights are kept in the order that the processor wants, unless somebody says otherwise.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    Some(cache?.join("kedge"))
}

/// How many threads may be asked for.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=Cpu::THREADS_MAX as u64)
}

impl PlacementFlags {
    fn placement(self) -> Placement {
        Placement { device: self.device, threads: self.threads, cache_dir: self.cache_dir.or_else(cache_dir) }
    }
}

/// Settings of `kedge infer` as a server.
#[derive(Args, Debug)]
struct ServeFlags {
    /// The model: a folder, its .safetensors file with the other files beside it, or a .gguf file
    // It and the name are demanded where no verb is given, which their types cannot say.
    #[arg(long, value_name = "DIR|FILE", required = true)]
    model: Option<PathBuf>,
    /// The name under which clients ask for it
    #[arg(long, value_name = "NAME", required = true, value_parser = model_name)]
    name: Option<String>,
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, default_value = "127.0.0.1:8000")]
    listen: String,
    #[command(flatten)]
    placement: PlacementFlags,
    #[command(flatten)]
    limits: limits::LimitFlags,
    /// File with the keys of clients, one a line; whoever shows none of them may not ask
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Serve over TLS with this certificate (PEM, with those of its authorities, if any)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of these authorities (PEM), those that ask for /health and /metrics, too
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Tell a collector of each request: OTLP over HTTP, at URL/v1/traces (default: what OTEL_EXPORTER_OTLP_ENDPOINT says)
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Longest time for an answer; clients may say less (X-Request-Timeout, in seconds) (default: no bound)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    request_timeout: Option<u64>,
    /// Longest time for answers under way to end after SIGTERM; those left are told that the server ends
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    drain_timeout: u64,
}

const EXAMPLES: &str = "\
Without a verb it serves a model over HTTP, on one port: OpenAI's embeddings or completions, and the Open Inference \
Protocol over REST and gRPC.

A model that makes vectors cuts a text that is longer than its max_seq_length, as sentence-transformers does, and `usage` \
counts what was read. A model that makes text refuses a prompt that is longer than its context.

Without --tls-cert it speaks plain HTTP, and without --api-key-file everybody who reaches it may ask: leave it on the \
loopback address then. Keys guard /v1, /v2, /tokenize and /detokenize; /health, /v2/health and /metrics stay open to \
probes, unless --client-ca closes everything to whoever has no certificate. Keys and certificates are read again when \
their files change, and at SIGHUP.

Examples:
  kedge infer --model ./all-MiniLM-L6-v2 --name minilm
  curl -s http://127.0.0.1:8000/v1/embeddings \\
    -d '{\"model\": \"minilm\", \"input\": \"hello\"}'

  kedge infer --model images/demo-decoder/model --name demo
  curl -s http://127.0.0.1:8000/v1/chat/completions -d '{\"model\": \"demo\",
    \"messages\": [{\"role\": \"user\", \"content\": \"What is a pod?\"}]}'
  curl -s http://127.0.0.1:8000/v2/models/demo/generate \\
    -d '{\"text_input\": \"A pod is\", \"max_tokens\": 20}'

  kedge infer --model images/demo-decoder/model --name demo \\
    --listen 0.0.0.0:8443 --api-key-file keys \\
    --tls-cert cert.pem --tls-key key.pem
  curl -s --cacert ca.pem -H \"Authorization: Bearer $KEY\" \\
    https://models.example:8443/v1/models

  kedge infer devices
  kedge infer run images/demo-decoder/model
  kedge infer bench --model images/demo-decoder/model";

/// Does what was asked.
pub(crate) async fn run(command: InferCommand) -> Result<()> {
    // Writing beyond a limit on the size of files is an error from here on, and not the end of the process.
    let _ignored = signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?;
    match command.verb {
        Some(InferVerb::Run(flags)) => chat::run(flags).await,
        Some(InferVerb::Bench(flags)) => bench::run(flags).await,
        Some(InferVerb::Devices(flags)) => devices(&flags),
        None => serve(command.serve).await,
    }
}

async fn serve(flags: ServeFlags) -> Result<()> {
    let (Some(model), Some(name)) = (flags.model, flags.name) else { bail!("--model and --name are needed") };
    logs::start();
    cut::tell_of(&model)?;
    // In a pod the cluster says who reaches it.
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if !in_pod && !is_loopback(&flags.listen) && flags.api_key_file.is_none() && flags.client_ca.is_none() {
        tracing::warn!(
            listen = flags.listen,
            "anybody on the network may ask: there is neither --api-key-file nor --client-ca"
        );
    }
    let tls = flags.tls_cert.zip(flags.tls_key);
    let client_ca = flags.client_ca;
    let variable = |name: &str| std::env::var(name).ok();
    let telemetry = TelemetryOptions::new(flags.otlp_endpoint.as_deref(), variable).map_err(Error::msg)?;
    let options = InferOptions {
        model,
        name,
        listen: flags.listen,
        placement: flags.placement.placement(),
        decoder: flags.limits.options(),
        api_key_file: flags.api_key_file,
        tls: tls.map(|(certificate, key)| TlsFiles { certificate, key, client_ca }),
        telemetry,
        request_timeout: flags.request_timeout.map(Duration::from_secs),
        drain_timeout: Duration::from_secs(flags.drain_timeout),
    };
    Ok(kedge_serve::run(options).await?)
}

/// A name that clients can write.
fn model_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("must have characters, and none that controls a terminal".into());
    }
    Ok(text.to_owned())
}

/// Whether only this machine reaches `HOST:PORT`.
fn is_loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn devices(flags: &DevicesFlags) -> Result<()> {
    let all = kedge_serve::candidates()?;
    if flags.output == Output::Json {
        let list: Vec<_> = all.iter().map(Candidate::to_json).collect();
        say!("{}", serde_json::to_string_pretty(&list).context("writing what was found")?)?;
        return Ok(());
    }
    say!("{:<8}{:<8}DESCRIPTION", "DEVICE", "USABLE")?;
    for one in all {
        say!("{:<8}{:<8}{}", one.device, if one.usable { "yes" } else { "no" }, one.description)?;
    }
    Ok(())
}

/// Opens a model that makes text; also why it is not on a GPU, where one was wanted or would have been taken.
async fn open(model: &Path, flags: &PlacementFlags) -> Result<(Arc<Decoder>, Option<String>)> {
    cut::tell_of(model)?;
    let (path, placement) = (model.to_owned(), flags.clone().placement());
    let opened =
        tokio::task::spawn_blocking(move || kedge_serve::open(&path, &placement, DecoderOptions::default())).await;
    match opened.context("opening the model")?? {
        Opened { model: Model::Decoder(decoder), no_gpu, .. } => Ok((decoder, no_gpu)),
        Opened { model: Model::Encoder(_), .. } => {
            bail!("{} makes vectors; this takes a model that makes text", model.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        placement: PlacementFlags,
    }

    #[test]
    fn addresses_that_only_this_machine_reaches() {
        for (listen, expected) in [
            ("127.0.0.1:8000", true),
            ("localhost:8000", true),
            ("[::1]:8000", true),
            ("0.0.0.0:8000", false),
            ("[::]:8000", false),
            ("models.example:8000", false),
        ] {
            assert_eq!(is_loopback(listen), expected, "{listen}");
        }
    }

    #[test]
    fn names_of_models_can_be_shown() {
        for (name, expected) in
            [("demo", true), ("org/m 1 é", true), ("", false), ("a\nb", false), ("\u{1b}[2J", false)]
        {
            assert_eq!(model_name(name).is_ok(), expected, "{name:?}");
        }
    }

    #[test]
    fn more_threads_than_there_can_be_are_refused_by_name() {
        let asked = |count: &str| Flags::try_parse_from(["infer", "--threads", count]);
        for (count, threads) in [("1", 1), ("64", 64)] {
            assert_eq!(asked(count).unwrap().placement.threads, Some(threads));
        }
        for count in ["0", "65", "128"] {
            let error = asked(count).unwrap_err().to_string();
            assert!(error.contains("--threads") && error.contains("1..=64"), "{error}");
        }
    }
}
