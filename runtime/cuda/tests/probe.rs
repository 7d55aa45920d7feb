//! What the backend says of drivers and devices that do not do what is asked: a `libcuda.so.1` made here plays them.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test builds a library and runs itself")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kedge_cuda::Cuda;
use kedge_engine::Backend;
use kedge_engine::backend::{Sequence, Step, Work};
use kedge_engine::generate::sample::Draw;
use kedge_engine::graph::{Builder, Graph, Heads, Op, Pages, Part};
use kedge_engine::plan::{Plan, Shape};
use kedge_formats::Tensor;

/// Set for the process that looks for a device; the library plays what it says.
const PART: &str = "KEDGE_FAKE_CUDA";

/// A model with pages, whose weights are larger than a MiB.
fn graph() -> Graph {
    let mut g = Builder::default();
    let heads = Heads { query: 1, key: 1, width: 16 };
    let words = g.weight(Tensor::of_f32(&[8000, 48], &vec![0.5; 8000 * 48]));
    let (x, q, out) = (g.per_row(48), g.per_row(16), g.per_row(16));
    g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
    g.push(Op::Place { qkv: x, heads, norms: None, epsilon: 1e-5, rope: None, layer: 0, out: q });
    g.push(Op::Paged { q, heads, scale: 1.0, window: None, softcap: None, layer: 0, out });
    let weight = g.weight(Tensor::of_f32(&[4, 16], &[0.5; 64]));
    let answers = g.linear(out, vec![Part { weight, bias: None }], None);
    let result = g.take(answers);
    g.finish(result, Some(Pages { layers: 1, heads: 1, width: 16 }))
}

/// Looks for a device, runs three steps on it and chooses a token; what is said at the end.
fn attempt() -> String {
    let cuda = match Cuda::probe() {
        Ok(cuda) => cuda,
        Err(reason) => return format!("no device: {reason}"),
    };
    let graph = Arc::new(graph());
    let prepared = match cuda.prepare(graph.clone(), 4) {
        Ok(prepared) => prepared,
        Err(error) => return format!("no room: {error}"),
    };
    let plan = Plan::new(&graph, Shape { rows: 2, outputs: 1 });
    let step = Step {
        ids: vec![3, 5],
        types: Vec::new(),
        sequences: vec![Sequence { rows: 2, past: 0, pages: vec![1] }],
        outputs: vec![1],
    };
    for attempt in 1..=3 {
        if let Err(error) = prepared.run(&plan, &step, &mut Vec::new()) {
            return format!("step {attempt}: {error}");
        }
    }
    let (draws, mut choices) = ([Draw::default()], Vec::new());
    match prepared.choose(Work { plan: &plan, step: &step, draws: &draws }, &mut Vec::new(), &mut choices) {
        // The library's answers are all zeros.
        Ok(()) => assert!(matches!(&choices[..], [Ok(choice)] if choice.token == 0)),
        Err(error) => return format!("choosing: {error}"),
    }
    format!("{} ran on {:?}", cuda.capabilities().features, cuda.facts())
}

/// Not a test by itself: what the others run in a process of its own.
#[test]
fn in_a_process_of_its_own() {
    if std::env::var_os(PART).is_some() {
        println!("\nsaid: {}", attempt());
    }
}

fn said(libraries: &Path, part: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env(PART, part)
        .env("LD_LIBRARY_PATH", libraries)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("said: "));
    line.unwrap_or_else(|| panic!("{part}: {output:?}")).to_owned()
}

fn library(folder: &Path, more: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/libcuda.c");
    let output = folder.join("libcuda.so.1");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1"]).args(more).arg("-o").arg(output).arg(source);
    assert!(command.status().unwrap().success());
}

#[test]
fn every_way_to_fail_is_named() {
    let folder = tempfile::tempdir().unwrap();
    library(folder.path(), &[]);
    for (part, expected) in [
        ("fine", r#"compute_80 ran on Facts { name: "Fake", capability: (8, 7), driver: (12, 2) }"#),
        ("reads-host-memory", r#"compute_80 ran on Facts { name: "Fake", capability: (8, 7), driver: (12, 2) }"#),
        ("no-pinned-memory", r#"compute_80 ran on Facts { name: "Fake", capability: (8, 7), driver: (12, 2) }"#),
        ("old", "no device: the NVIDIA driver speaks CUDA 11.3, and the kernels need 11.4 (Linux driver 470 or newer)"),
        ("no-device", "no device: the NVIDIA driver sees no device"),
        ("empty", "no device: the NVIDIA driver sees no device: it counts none"),
        ("old-device", "no device: Fake has compute capability 6.1, and the kernels need 7.5 or newer"),
        ("broken", "no device: the NVIDIA driver: starting the driver failed: error 12345"),
        (
            "unsupported",
            "no device: Fake: the driver refused the kernels (CUDA_ERROR_UNSUPPORTED_PTX_VERSION): ptxas application ptx input, line 9; fatal   : Unsupported .version 7.4",
        ),
        (
            "invalid",
            "no device: Fake: the driver refused the kernels (CUDA_ERROR_INVALID_PTX): ptxas application ptx input, line 77; error   : Unknown symbol",
        ),
        (
            "no-compiler",
            "no device: Fake: the driver refused the kernels (CUDA_ERROR_JIT_COMPILER_NOT_FOUND): its compiler, libnvidia-ptxjitcompiler.so.1, must be beside libcuda.so.1",
        ),
        ("memory", "no room: Fake: weights: out of memory: 1536000 bytes were asked for, 1048576 are free"),
        ("lost", "step 2: Fake: running 2 rows: launching kedge_embed failed: CUDA_ERROR_LAUNCH_FAILED"),
        ("lost-replay", "step 2: Fake: running 2 rows: launching a recording failed: CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        assert_eq!(said(folder.path(), part), expected, "{part}");
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_refused_by_the_function() {
    let folder = tempfile::tempdir().unwrap();
    library(folder.path(), &["-DWITHOUT_GRAPHS"]);
    assert_eq!(
        said(folder.path(), "fine"),
        "no device: the NVIDIA driver: finding cuStreamBeginCapture_v2 in libcuda.so.1 failed: it is not there"
    );
}

#[test]
fn without_a_driver_that_is_said() {
    // A machine with a driver of its own finds that one.
    let folder = tempfile::tempdir().unwrap();
    let said = said(folder.path(), "fine");
    assert!(said == "no device: no NVIDIA driver: libcuda.so.1 was not found" || said.contains("ran on"), "{said}");
}
