//! The one door for developers: `cargo xtask VERB`. A verb is one file and one line in [`Verb`].

mod facts;
mod openapi;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Door {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the facts table of Kubernetes' types and resources from the published sources
    Facts(facts::Options),
    /// Hold our OpenAPI documents against the published ones
    Openapi(openapi::Options),
}

fn main() -> Result<()> {
    match Door::parse().verb {
        Verb::Facts(options) => facts::run(&options),
        Verb::Openapi(options) => openapi::run(&options),
    }
}
