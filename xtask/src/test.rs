//! `cargo xtask test`: installs what the tests need and runs them all. CI calls the same command.

#![allow(clippy::disallowed_methods, reason = "a chore tells how long its steps really took")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::licences;

/// Debian packages, each with a file that shows it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("protobuf-compiler", "/usr/bin/protoc"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("busybox-static", "/usr/bin/busybox"),
];

/// Which steps to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the installation of packages
    #[arg(long)]
    no_install: bool,
}

/// Runs every step in order and tells how long each took.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.no_install {
        step("packages", install)?;
    }
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("licences", licences::check)?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))?;
    // One run builds the binary and every test: unit tests, simulations from printed seeds, and the end-to-end tests.
    step("tests", || cargo(&["test", "--workspace", "--no-fail-fast"]))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("=== {name}");
    let begin = Instant::now();
    work().with_context(|| format!("the step {name:?} failed"))?;
    println!("=== {name}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    command(Command::new("cargo").args(arguments))
}

fn command(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Installs what is missing, by package name.
fn install() -> Result<()> {
    let mut missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if !on_path("kubectl") {
        missing.push("kubernetes-client");
    }
    if missing.is_empty() {
        println!("everything is there");
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    let apt = |arguments: &[&str]| {
        let mut apt = if is_root() { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root() {
            apt.arg("apt-get");
        }
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q").args(arguments);
        command(&mut apt)
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"][..], &missing].concat())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
