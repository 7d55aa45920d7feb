//! `cargo xtask bench`: builds the program as it is released, has the peers there, and hands over to the crate that
//! measures.

#![allow(clippy::disallowed_methods, reason = "a chore writes files of its own")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What the measuring program is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure and its options: cluster --upstream DIR, or inference
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Peers of the engine that come as Python packages, at the versions that are measured.
const WHEELS: &[&str] = &[
    "xllamacpp==2026.10.11549",
    "mistralrs==0.9.5",
    "onnxruntime==1.32.0",
    "onnx==1.23.2",
    "safetensors==0.8.0",
    "sympy==1.14.0",
];
/// Where they are kept.
const PYTHON: &str = "target/peers/python";
/// The package that carries the sources of llama.cpp.
const SOURCES: (&str, &str) = ("llama-cpp-sys-2", "0.1.161");
/// Where it is built.
const NATIVE: &str = "target/peers/llama.cpp";

/// Builds and measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut arguments = options.arguments.clone();
    let helps = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    // What the measuring program says of itself needs no other.
    let packages = if helps { &["kedge-bench"][..] } else { &["kedge", "kedge-bench"] };
    for package in packages {
        command(Command::new("cargo").args(["build", "--release", "--package", package]))?;
    }
    if arguments.first().is_some_and(|what| what == "inference") && !helps {
        for (flag, peer) in [("--python", python()?), ("--native", native()?)] {
            if !arguments.iter().any(|argument| argument == flag) {
                arguments.extend([flag.into(), peer.into_os_string()]);
            }
        }
    }
    command(Command::new("target/release/kedge-bench").args(&arguments))
}

/// A Python with the peers' packages.
fn python() -> Result<PathBuf> {
    let python = std::path::absolute(PYTHON)?.join("bin/python3");
    if !Path::new(PYTHON).join("whole").exists() {
        let _ = std::fs::remove_dir_all(PYTHON);
        command(Command::new("python3").args(["-m", "venv", PYTHON]))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        command(Command::new(&python).args(pip).args(WHEELS))?;
        std::fs::write(Path::new(PYTHON).join("whole"), "")?;
    }
    Ok(python)
}

/// llama.cpp, built for this machine from the sources in a package, behind the benchmark's protocol. Needs cmake, ninja
/// and a C++ compiler: clang (with libomp) if it is there, since what GCC 12 makes of it dies at the first tile of a
/// machine with AMX.
fn native() -> Result<PathBuf> {
    let folder = std::path::absolute(NATIVE)?;
    std::fs::create_dir_all(folder.join("fetch/src"))?;
    let (package, version) = SOURCES;
    let manifest = folder.join("fetch/Cargo.toml");
    let text = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\n[workspace]\n[dependencies]\n{package} = \"={version}\"\n"
    );
    std::fs::write(&manifest, text)?;
    std::fs::write(folder.join("fetch/src/lib.rs"), "")?;
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(&manifest);
    let told = metadata.output().context("cannot run cargo")?;
    let metadata: Value = serde_json::from_slice(&told.stdout).context("cargo metadata tells no packages")?;
    let packages = metadata["packages"].as_array().context("cargo metadata tells no packages")?;
    let found = packages.iter().find(|one| one["name"] == package).and_then(|one| one["manifest_path"].as_str());
    let sources = Path::new(found.with_context(|| format!("{package} was not fetched"))?).with_file_name("llama.cpp");
    let build = folder.join("build");
    let off = ["TESTS", "EXAMPLES", "SERVER", "TOOLS", "COMMON", "APP"].map(|part| format!("-DLLAMA_BUILD_{part}=OFF"));
    let on = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DGGML_CCACHE=OFF"];
    let alone = ["-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"];
    let clang = Command::new("clang++").arg("--version").output().is_ok_and(|said| said.status.success());
    let (c, cpp) = if clang { ("clang", "clang++") } else { ("gcc", "g++") };
    let mut cmake = Command::new("cmake");
    cmake.arg(format!("-DCMAKE_C_COMPILER={c}")).arg(format!("-DCMAKE_CXX_COMPILER={cpp}"));
    cmake.args(["-G", "Ninja", "-S"]).arg(&sources).arg("-B").arg(&build).args(off).args(on).args(alone);
    command(cmake.arg("--log-level=WARNING"))?;
    command(Command::new("ninja").arg("-C").arg(&build).args(["--quiet", "llama"]))?;
    let program = folder.join("native");
    let mut compiler = Command::new(cpp);
    compiler.args(["-O2", "-fopenmp", "xtask/bench/peers/native.cpp", "-o"]).arg(&program);
    compiler.arg("-I").arg(sources.join("include")).arg("-I").arg(sources.join("ggml/include"));
    for library in ["src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a", "ggml/src/libggml-base.a"] {
        compiler.arg(build.join(library));
    }
    command(compiler.args(["-lpthread", "-ldl"]))?;
    Ok(program)
}

fn command(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().to_string_lossy());
    }
    Ok(())
}
