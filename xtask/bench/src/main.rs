//! Kedge's figures beside its peers': the same machine, the same run, the same client.
//!
//! `cargo xtask bench cluster [--upstream DIR]`, where DIR holds upstream's programs in `bin/`: each cluster runs alone,
//! in a network namespace and in folders that go away with it; needs root. `cargo xtask bench inference`: engines asked in
//! turn. Both print tables and write their part of `docs/benchmarks.md`. A peer that is not there reads "not measured".

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time on real files")]

mod client;
mod cluster;
mod inference;
mod kedge;
mod machine;
mod measure;
mod report;
mod upstream;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

/// What to measure.
#[derive(Parser)]
enum Bench {
    /// A cluster beside upstream's
    Cluster(Options),
    /// The inference engine beside others
    Inference(inference::Options),
    /// Our side of that, as a process of its own
    #[command(hide = true)]
    Contender(inference::contender::Options),
}

/// What to measure, and beside what.
#[derive(clap::Args)]
struct Options {
    /// The folder with upstream's programs in bin/ (etcd, kube-apiserver, kubelet, containerd, …)
    #[arg(long, value_name = "DIR")]
    upstream: Option<PathBuf>,
    /// The program to measure
    #[arg(long, value_name = "FILE", default_value = "target/release/kedge")]
    kedge: PathBuf,
    /// Seconds to watch each idle cluster
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    idle: u64,
    /// Pods to start one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pods: usize,
    /// Pods to store before they are listed
    #[arg(long, value_name = "COUNT", default_value_t = 8500)]
    objects: usize,
    /// Where to write the report
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    report: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    match Bench::parse() {
        Bench::Cluster(options) => cluster(&options).await,
        Bench::Inference(options) => inference::run(&options).await,
        Bench::Contender(options) => tokio::task::block_in_place(|| inference::contender::run(&options)),
    }
}

async fn cluster(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark starts nodes, which needs root");
    }
    let machine = machine::Machine::look()?;
    let plan = measure::Plan { idle_seconds: options.idle, pods: options.pods, objects: options.objects };
    let ours = measure::all(&plan, &kedge::Maker { program: std::path::absolute(&options.kedge)? }).await?;
    let theirs = match &options.upstream {
        Some(folder) => Some(measure::all(&plan, &upstream::Maker { bin: folder.join("bin") }).await?),
        None => None,
    };
    let text = report::text(&machine, &plan, &ours, theirs.as_ref());
    println!("{text}");
    report::replace(&options.report, "cluster", &text)
}
