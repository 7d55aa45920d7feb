//! `cargo xtask kernels`: makes PTX from the CUDA kernels of `runtime/cuda`, and the ledger of what they use.
//!
//! The compiler is the NVRTC of a pinned Python wheel, so that everybody gets the same bytes; the assembler of another
//! one says for each architecture what registers and memory a kernel takes. Neither is needed to build the program.

#![allow(clippy::disallowed_methods, reason = "a chore reads and writes the repository's files")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

#[path = "../../runtime/cuda/src/constants.rs"]
#[allow(dead_code, reason = "here they are a list")]
mod constants;

/// The wheels, and where they are kept between runs.
const WHEELS: [&str; 2] = ["nvidia-cuda-nvrtc-cu12==12.4.127", "nvidia-cuda-nvcc==13.0.88"];
const WHEELS_FOLDER: &str = "target/python-cuda";
const NVRTC: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
const PTXAS: &str = "nvidia/cu13/bin/ptxas";

/// Sources, and where what is made of them goes.
const SOURCES: &str = "runtime/cuda/kernels";
const HEADER: &str = "common.cuh";
const NAMES: [&str; 5] = ["rows", "linear", "attention", "experts", "sample"];
const MADE: &str = "runtime/cuda/ptx";
const LEDGER: &str = "runtime/cuda/ptx/ledger.tsv";

/// Each set of kernels with the architectures that run it.
const SETS: [(&str, &[u32]); 2] = [
    ("75", &[75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]),
    ("80", &[80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]),
];

/// NVRTC writes the newest version of the language that it knows; the kernels need no more than this one, which drivers
/// have taken since CUDA 11.4. That it suffices is for the assembler to say.
const VERSION: (&str, &str) = ("\n.version 8.4\n", "\n.version 7.4\n");

/// How often a source is compiled to see what it makes most often, and to see whether it makes what is committed.
const OFTEN: usize = 5;
const ATTEMPTS_MAX: usize = 20;

/// Whether to write.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only compare with what is committed
    #[arg(long)]
    pub(crate) check: bool,
}

/// Fetches the wheels if need be, and makes or compares everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    fetch()?;
    let mut ledger = String::from("set\tarchitecture\tkernel\tregisters\tshared\tspill stores\tspill loads\n");
    for (set, architectures) in SETS {
        for name in NAMES {
            let path = Path::new(MADE).join(set).join(name).with_extension("ptx");
            let ptx = if options.check { compile_until(set, name, &path)? } else { compile_often(set, name)? };
            settle(options, &path, &ptx)?;
            // What was just made is assembled, also when it is not what is committed.
            let made = scratch()?.join(format!("{set}-{name}.ptx"));
            std::fs::write(&made, &ptx).context("cannot write the PTX to assemble")?;
            for architecture in architectures {
                for line in assemble(&made, *architecture)? {
                    writeln!(ledger, "{set}\t{architecture}\t{line}")?;
                }
            }
        }
    }
    settle(options, Path::new(LEDGER), &ledger)
}

/// Whether the wheels are there.
pub(crate) fn is_fetched() -> bool {
    Path::new(WHEELS_FOLDER).join(NVRTC).exists() && Path::new(WHEELS_FOLDER).join(PTXAS).exists()
}

/// Fetches the wheels, once.
pub(crate) fn fetch() -> Result<()> {
    if is_fetched() {
        return Ok(());
    }
    let scratch = "target/python-cuda.new";
    let _ = std::fs::remove_dir_all(scratch);
    let _ = std::fs::remove_dir_all(WHEELS_FOLDER);
    let pip = ["install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps"];
    let status = Command::new("pip3").args(pip).args(["--target", scratch]).args(WHEELS).status();
    if !status.context("cannot run pip3")?.success() {
        bail!("pip3 could not install {}", WHEELS.join(" and "));
    }
    make_executable(&Path::new(scratch).join(PTXAS))?;
    std::fs::rename(scratch, WHEELS_FOLDER).context("cannot keep NVIDIA's compiler")
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", file.display()))
}

fn scratch() -> Result<PathBuf> {
    let folder = PathBuf::from("target/kernels");
    std::fs::create_dir_all(&folder).context("cannot make target/kernels")?;
    Ok(folder)
}

/// The PTX of a source that is made most often. NVRTC orders a few equal things by where they happen to lie in memory:
/// seldom, it writes the same kernel in two ways.
fn compile_often(set: &str, name: &str) -> Result<String> {
    let mut made: Vec<(String, usize)> = Vec::new();
    for _ in 0..OFTEN {
        let ptx = compile(set, name)?;
        match made.iter_mut().find(|(known, _)| *known == ptx) {
            Some((_, times)) => *times += 1,
            None => made.push((ptx, 1)),
        }
    }
    let most = made.into_iter().max_by_key(|(_, times)| *times);
    Ok(most.context("the source is compiled at least once")?.0)
}

/// The PTX of a source: what is committed, if the source ever makes that.
fn compile_until(set: &str, name: &str, path: &Path) -> Result<String> {
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let first = compile(set, name)?;
    if first == committed {
        return Ok(first);
    }
    for _ in 1..ATTEMPTS_MAX {
        if compile(set, name)? == committed {
            return Ok(committed);
        }
    }
    Ok(first)
}

/// The PTX of a source, as it is made this time.
fn compile(set: &str, name: &str) -> Result<String> {
    let wheels = std::path::absolute(WHEELS_FOLDER).context("cannot tell where the wheels are")?;
    let library = wheels.join(NVRTC);
    let (source, output) = (Path::new(SOURCES).join(name).with_extension("cu"), scratch()?.join("made.ptx"));
    let mut command = Command::new("python3");
    command.arg("xtask/src/kernels/nvrtc.py").arg(&library).arg(format!("compute_{set}")).arg(&source);
    command.arg(Path::new(SOURCES).join(HEADER)).arg(&output);
    command.args(constants::ALL.iter().map(|(name, value)| format!("{name}={value}")));
    // NVRTC finds its other half by itself only there.
    command.env("LD_LIBRARY_PATH", library.parent().unwrap_or(&wheels));
    if !command.status().context("cannot run python3")?.success() {
        bail!("{} does not compile for compute_{set}", source.display());
    }
    let ptx = std::fs::read_to_string(&output).context("NVRTC wrote nothing")?;
    if ptx.matches(VERSION.0).count() != 1 {
        bail!("{} has not one{}in it", output.display(), VERSION.0.replace('\n', " "));
    }
    Ok(ptx.replace(VERSION.0, VERSION.1))
}

/// What each kernel of a file takes on an architecture: name, registers, shared memory, spills.
fn assemble(ptx: &Path, architecture: u32) -> Result<Vec<String>> {
    let output = Command::new(Path::new(WHEELS_FOLDER).join(PTXAS))
        .args(["-v", &format!("-arch=sm_{architecture}"), "-o", "/dev/null"])
        .arg(ptx)
        .output()
        .context("cannot run ptxas")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} does not assemble for sm_{architecture}:\n{said}", ptx.display());
    }
    let kernels = kernels(&said);
    if kernels.is_empty() {
        bail!("ptxas did not say what the kernels of {} take:\n{said}", ptx.display());
    }
    Ok(kernels)
}

/// Reads what `ptxas -v` says.
fn kernels(said: &str) -> Vec<String> {
    // The number before a word, as in "12 bytes spill stores".
    let before = |line: &str, word: &str| {
        let number = line.split(word).next().filter(|_| line.contains(word)).unwrap_or_default();
        number.split_whitespace().next_back().unwrap_or("0").trim_start_matches(',').to_owned()
    };
    let (mut all, mut name, mut spills) = (Vec::new(), String::new(), [String::new(), String::new()]);
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            name = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("bytes spill stores") {
            spills = [before(line, " bytes spill stores"), before(line, " bytes spill loads")];
        } else if line.contains("Used ") && !name.is_empty() {
            let shared = before(line, " bytes smem");
            all.push(
                [&name, &before(line, " registers"), &shared, &spills[0], &spills[1]].map(String::as_str).join("\t"),
            );
            name.clear();
        }
    }
    all.sort();
    all
}

/// Writes a file, or compares it.
fn settle(options: &Options, path: &Path, made: &str) -> Result<()> {
    if !options.check {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        return std::fs::write(path, made).with_context(|| format!("cannot write {}", path.display()));
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    match difference(&committed, made) {
        None => Ok(()),
        Some(difference) => bail!(
            "{} is not what its source makes; run `cargo xtask kernels` and commit the result.\n{difference}",
            path.display()
        ),
    }
}

/// The first lines that differ.
fn difference(committed: &str, made: &str) -> Option<String> {
    if committed == made {
        return None;
    }
    let (mut old, mut new, mut line) = (committed.split('\n'), made.split('\n'), 0);
    loop {
        line += 1;
        let (old, new) = (old.next(), new.next());
        if old != new {
            let show = |text: Option<&str>| text.map_or("(the end)".to_owned(), |text| format!("{text:?}"));
            return Some(format!("line {line}: committed {}, made {}", show(old), show(new)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ptxas_says_is_read() {
        let said = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kedge_b' for 'sm_90'
ptxas info    : Function properties for kedge_b
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 64 bytes smem, 380 bytes cmem[0]
ptxas info    : Compile time = 4.1 ms
ptxas info    : Compiling entry function 'kedge_a' for 'sm_90'
ptxas info    : Function properties for kedge_a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers";
        assert_eq!(kernels(said), ["kedge_a\t8\t0\t0\t0", "kedge_b\t26\t64\t12\t16"]);
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        let said = |committed, made| difference(committed, made).unwrap();
        assert_eq!(said("a\nb\nc", "a\nd\nc"), r#"line 2: committed "b", made "d""#);
        assert_eq!(said("a", "a\nb"), r#"line 2: committed (the end), made "b""#);
    }
}
