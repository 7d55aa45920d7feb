//! `cargo xtask bench`: builds the program as it is released, and hands over to the crate that measures.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};

/// What the measuring program is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Its options, such as --upstream DIR
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds and measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    for package in ["kedge", "kedge-bench"] {
        let status = Command::new("cargo").args(["build", "--release", "--package", package]).status()?;
        if !status.success() {
            bail!("the build of {package} failed");
        }
    }
    let status = Command::new("target/release/kedge-bench").args(&options.arguments).status()?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
