//! What measuring needs of a cluster, whoever made it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::client::Client;

/// The image of the pods that are started.
pub(crate) const IMAGE: &str = "example.test/bench:1";
/// The node's name.
pub(crate) const NODE: &str = "bench";

/// Which parts a cluster has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// The API server and its store; for Kedge also the controllers and the scheduler, which are in the same process.
    Api,
    /// Everything, with one node.
    Node,
}

/// Makes clusters over empty folders.
pub(crate) trait Maker {
    /// For the report.
    fn name(&self) -> &'static str;
    /// A cluster whose API answers, and whose node, if it has one, is Ready and has [`IMAGE`].
    async fn start(&self, parts: Parts) -> Result<Cluster>;
}

/// A running cluster; ends with the value.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// When the first process was started.
    pub(crate) begun: Instant,
    /// When the API was ready.
    pub(crate) api_ready: Instant,
    /// API server and store.
    pub(crate) api: Vec<u32>,
    /// Everything that runs without pods.
    pub(crate) all: Vec<u32>,
    /// What ends everything when it is dropped.
    pub(crate) _processes: Box<dyn Send>,
}

/// Starts a program whose output goes to a file.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file = std::fs::File::options().create(true).append(true).open(log)?;
    let other = file.try_clone()?;
    let started = command.stdin(Stdio::null()).stdout(file).stderr(other).spawn();
    started.with_context(|| format!("cannot start {command:?}"))
}

/// Runs a program to its end, which must be a success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = || String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{command:?}: {}", text());
    Ok(())
}

/// Writes the archive of [`IMAGE`].
pub(crate) fn write_image(path: &Path) -> Result<()> {
    let busybox = std::fs::read("/bin/busybox").context("/bin/busybox (Debian: busybox-static)")?;
    Ok(kedge_images::write_archive(std::fs::File::create(path)?, IMAGE, &[("bin/busybox", &busybox)])?)
}
