//! The one door for developers: `cargo xtask VERB`. A verb is one file and one line in [`Verb`].

mod bench;
mod facts;
mod fuzz;
mod kernels;
mod kill9;
mod licences;
mod openapi;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository", arg_required_else_help = true)]
struct Door {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the tests need and run them all; CI calls this
    Test(test::Options),
    /// Check that every dependency's licence suits Apache-2.0
    Licences,
    /// Kill the server many times while it is written to; nothing acknowledged may be lost
    Kill9(kill9::Options),
    /// Measure Kedge beside upstream's processes and write docs/benchmarks.md (--help for what it needs)
    #[command(disable_help_flag = true)]
    Bench(bench::Options),
    /// Make the facts table of Kubernetes' types and resources from the published sources
    Facts(facts::Options),
    /// Fuzz what reads files of models, guided by coverage (needs a C++ compiler)
    Fuzz(fuzz::Options),
    /// Hold our OpenAPI documents against the published ones
    Openapi(openapi::Options),
    /// Make PTX from the CUDA kernels, and the ledger of what they use (needs Python wheels, no device)
    Kernels(kernels::Options),
}

fn main() -> Result<()> {
    match Door::parse().verb {
        Verb::Test(options) => test::run(&options),
        Verb::Licences => licences::check(),
        Verb::Kill9(options) => kill9::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Facts(options) => facts::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Openapi(options) => openapi::run(&options),
        Verb::Kernels(options) => kernels::run(&options),
    }
}
