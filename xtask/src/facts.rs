//! `cargo xtask facts`: one compact text table of what Kubernetes' published sources say about its types.
//!
//! Three sources agree or the run fails: the OpenAPI v3 documents (fields, list types, merge keys, defaults), the
//! Go types (which fields are pointers, which are left out when empty, which structs are inlined) and the
//! generated.proto files (field numbers, wrapper messages). The discovery documents add the resources. The same
//! sources always give the same bytes; nothing of their texts is kept, only names, numbers and types.

#![allow(clippy::disallowed_methods, reason = "a developer's chore that reads sources and writes one file")]

mod go;
mod openapi;
mod proto;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const RELEASE: &str = "1.36.3";
const TABLE: &str = "control-plane/schema/src/facts/v1_36.txt";

/// What `cargo xtask facts` may be asked.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail if the committed table differs from what the sources give
    #[arg(long)]
    check: bool,
}

/// Writes the table, or with `--check` compares it with the committed one.
pub(crate) fn run(options: &Options) -> Result<()> {
    let made = make()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(TABLE);
    if options.check {
        let committed = std::fs::read_to_string(&path).with_context(|| format!("read {TABLE}"))?;
        if committed != made {
            let line = committed.lines().zip(made.lines()).take_while(|(old, new)| old == new).count() + 1;
            bail!("{TABLE} differs from the sources of {RELEASE} at line {line}; run `cargo xtask facts`");
        }
        println!("{TABLE} is what the sources of {RELEASE} say ({} bytes)", made.len());
        return Ok(());
    }
    std::fs::write(&path, &made).with_context(|| format!("write {TABLE}"))?;
    println!("{TABLE}: {} bytes, {} lines", made.len(), made.lines().count());
    Ok(())
}

fn make() -> Result<String> {
    let staging = format!("v0.{}", RELEASE.strip_prefix("1.").expect("a 1.x release"));
    let published = published()?;
    let mut roots = Vec::new();
    for name in ["api", "apimachinery", "apiextensions-apiserver", "kube-aggregator"] {
        roots.push((name, module(&format!("k8s.io/{name}"), &staging)?));
    }
    let documents = openapi::Documents::read(&published)?;
    let mut go = go::Packages::new(roots.clone());
    let mut protos = proto::Packages::new(roots);
    table::render(RELEASE, &documents, &mut go, &mut protos)
}

/// The directory of the published OpenAPI and discovery documents.
pub(crate) fn published() -> Result<PathBuf> {
    Ok(module("k8s.io/kubernetes", &format!("v{RELEASE}"))?.join("api"))
}

/// Where Go's module cache has `name` at `version`, fetched through the ordinary client if need be.
fn module(name: &str, version: &str) -> Result<PathBuf> {
    let answer = Command::new("go")
        .args(["mod", "download", "-json", &format!("{name}@{version}")])
        .output()
        .context("run `go mod download`; Go is needed to make the table, not to build or test")?;
    let told: serde_json::Value = serde_json::from_slice(&answer.stdout)
        .with_context(|| format!("read go's answer: {}", String::from_utf8_lossy(&answer.stderr)))?;
    match (told["Dir"].as_str(), told["Error"].as_str()) {
        (Some(dir), None) => Ok(PathBuf::from(dir)),
        (_, error) => bail!("download {name}@{version}: {}", error.unwrap_or("go named no directory")),
    }
}
