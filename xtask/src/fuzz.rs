//! `cargo xtask fuzz`: files of models, guided by coverage (libFuzzer).
//!
//! What cargo-fuzz does with a nightly compiler, without the sanitizers that only that has: the code is instrumented by the
//! flags of the stable one. A limit of memory by the size of the input is in `runtime/fuzz/src/bounded.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

macro_rules! targets {
    ($($name:ident: $bytes_max:expr,)*) => {
        /// The targets: their names, and bytes of their longest inputs.
        const TARGETS: &[(&str, u32)] = &[$((stringify!($name), $bytes_max)),*];
    };
}

include!("../../runtime/fuzz/src/table.rs");

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// More than any target needs that is sound.
const MEMORY_MB_MAX: u32 = 1024;
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;

/// What is fuzzed, and for how long.
#[derive(clap::Args)]
#[command(after_help = "\
Seeds are made of the tiny models of the engine's tests; what inputs reach is kept in target/fuzz/corpus and gone on from. \
An input that panics, takes too long or too much memory ends the run and is written to runtime/fuzz/found/TARGET: make it \
small (--shrink), mend what it shows, and commit it; `cargo test -p kedge-engine --test fuzzed` runs it from then on. Needs \
a C++ compiler.

Examples:
  cargo xtask fuzz gguf --seconds 600
  cargo xtask fuzz all
  cargo xtask fuzz template --shrink runtime/fuzz/found/template/crash-…")]
pub(crate) struct Options {
    /// One of the targets; or all, one after the other
    #[arg(value_parser = PossibleValuesParser::new(TARGETS.iter().map(|(name, _)| *name).chain(["all"])))]
    target: String,
    /// How long, for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Make this input smaller instead, as long as it fails
    #[arg(long, value_name = "FILE")]
    shrink: Option<PathBuf>,
}

/// Compiles them, without libFuzzer, so that what the engine changes is not found out when somebody fuzzes.
pub(crate) fn check() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "check",
        "--quiet",
        "--locked",
        "--manifest-path",
        "runtime/fuzz/Cargo.toml",
        "--target-dir",
        "target",
    ]);
    step(cargo.env("CUSTOM_LIBFUZZER_PATH", "runtime/fuzz/Cargo.toml"))
}

/// Builds the targets and runs those that are asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let out = root.join("target/fuzz");
    build(root, &out)?;
    let memory = PathBuf::from(format!("/dev/shm/kedge-fuzz-{}", std::process::id()));
    let ran = fuzz(options, root, &out, &memory);
    let _ = std::fs::remove_dir_all(&memory);
    ran
}

fn fuzz(options: &Options, root: &Path, out: &Path, memory: &Path) -> Result<()> {
    let seeds = out.join("seeds");
    let mut test = Command::new("cargo");
    test.current_dir(root).env("KEDGE_SEEDS", &seeds);
    step(test.args(["test", "--quiet", "-p", "kedge-engine", "--test", "fuzzed", "--", "--ignored", "write_seeds"]))?;
    for (target, bytes_max) in TARGETS.iter().filter(|(name, _)| ["all", name].contains(&&*options.target)) {
        let (corpus, found) = (out.join("corpus").join(target), root.join("runtime/fuzz/found").join(target));
        for folder in [&corpus, &found] {
            std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let mut fuzz = Command::new(out.join(TRIPLE).join("release/kedge-fuzz"));
        fuzz.env("RUST_BACKTRACE", "1").env("KEDGE_FUZZ_TARGET", target).env("KEDGE_FUZZ_FOLDER", memory);
        fuzz.args([format!("-timeout={INPUT_SECONDS_MAX}"), format!("-rss_limit_mb={MEMORY_MB_MAX}")]);
        fuzz.arg(format!("-max_len={bytes_max}"));
        if let Some(input) = &options.shrink {
            fuzz.args(["-minimize_crash=1", "-runs=100000"]).arg(format!("-max_total_time={}", options.seconds));
            step(fuzz.arg(format!("-exact_artifact_path={}.small", input.display())).arg(input))?;
            continue;
        }
        let words = seeds.join(format!("{target}.dict"));
        if words.is_file() {
            fuzz.arg(format!("-dict={}", words.display()));
        }
        fuzz.arg(format!("-artifact_prefix={}/", found.display())).arg(format!("-max_total_time={}", options.seconds));
        step(fuzz.arg("-print_final_stats=1").arg(&corpus).arg(&found).arg(seeds.join(target)))?;
    }
    Ok(())
}

fn build(root: &Path, out: &Path) -> Result<()> {
    let coverage = ["level=4", "inline-8bit-counters", "pc-table", "trace-compares"];
    let coverage = coverage.map(|what| format!("-C llvm-args=-sanitizer-coverage-{what}")).join(" ");
    let mut cargo = Command::new("cargo");
    // With a target named, the flags are not those of build scripts.
    cargo.current_dir(root.join("runtime/fuzz")).args(["build", "--release", "--locked", "--target", TRIPLE]);
    cargo.env("RUSTFLAGS", format!("-C passes=sancov-module {coverage} --cfg fuzzing")).env("CARGO_TARGET_DIR", out);
    step(&mut cargo)
}

fn step(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}
