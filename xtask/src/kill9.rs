//! `cargo xtask kill9`: the crash test, more often than every change can afford.

use std::process::Command;

use anyhow::{Result, bail};

/// How often.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many times to kill the server
    #[arg(long, default_value_t = 200)]
    kills: u64,
    /// The seed that says when; printed, so that a failure can be replayed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the end-to-end crash test.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut test = Command::new("cargo");
    test.args(["test", "--test", "e2e", "--", "crash", "--nocapture"]);
    test.env("KEDGE_KILLS", options.kills.to_string()).env("KEDGE_SEED", options.seed.to_string());
    let status = test.status()?;
    if !status.success() {
        bail!("the crash test failed with seed {}", options.seed);
    }
    Ok(())
}
