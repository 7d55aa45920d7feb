//! Kedge's figures beside upstream's: the same machine, the same run, the same client.
//!
//! `cargo xtask bench [--upstream DIR]`, where DIR holds upstream's programs in `bin/`. Prints a table and writes
//! `docs/benchmarks.md`. Without DIR the peer's column reads "not measured". Needs root. Each cluster runs alone, in a
//! network namespace and in folders that go away with it.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time on real files")]

mod client;
mod cluster;
mod kedge;
mod machine;
mod measure;
mod report;
mod upstream;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

/// What to measure, and beside what.
#[derive(Parser)]
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
    let options = Options::parse();
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
    if let Some(folder) = options.report.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.report, text)?;
    Ok(())
}
