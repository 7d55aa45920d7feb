//! Kedge as it is: one process and its containerd, in a network namespace of its own.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kedge_world::RealNet;

use crate::client::Client;
use crate::cluster::{Cluster, NODE, Parts, run, spawn, write_image};

/// Makes clusters of the program `program`.
pub(crate) struct Maker {
    pub(crate) program: PathBuf,
}

impl crate::cluster::Maker for Maker {
    fn name(&self) -> &'static str {
        "Kedge"
    }

    async fn start(&self, parts: Parts) -> Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let place = folder.path().to_owned();
        let path = |name: &str| place.join(name);
        let namespace = format!("kedge-bench-{}", std::process::id());
        let folders = |command: &mut Command| {
            command.arg("--data-dir").arg(path("data")).arg("--run-dir").arg(path("run"));
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(&self.program);
        command.arg("server").args(["--node-name", NODE, "--https-listen-port", &port.to_string()]);
        command.arg("--write-kubeconfig").arg(path("kubeconfig"));
        folders(&mut command);
        match parts {
            Parts::Api => command.arg("--disable-agent"),
            Parts::Node => command.args(["--network-namespace", &namespace]),
        };
        let begun = Instant::now();
        let child = spawn(&mut command, &path("log"))?;
        let server = Server { program: self.program.clone(), child, folder };
        let kubeconfig = loop {
            match std::fs::read_to_string(path("kubeconfig")) {
                Ok(text) if !text.is_empty() => break text,
                _ if begun.elapsed() > Duration::from_secs(60) => {
                    anyhow::bail!("{} wrote no kubeconfig: {}", "kedge", std::fs::read_to_string(path("log"))?)
                }
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let client = Client::of_kubeconfig(Arc::new(RealNet), port, &kubeconfig)?;
        client.until("/readyz", Duration::from_secs(60), |_| true).await?;
        let api_ready = Instant::now();
        let mut all = vec![server.child.id()];
        if parts == Parts::Node {
            client.until(&format!("/api/v1/nodes/{NODE}"), Duration::from_secs(60), crate::measure::is_ready).await?;
            write_image(&path("image.tar"))?;
            let mut import = Command::new(&self.program);
            import.args(["image", "import"]).arg(path("image.tar"));
            folders(&mut import);
            run(&mut import)?;
            let pid = std::fs::read_to_string(path("run/containerd/containerd.pid")).context("containerd's pid")?;
            all.extend(pid.split_ascii_whitespace().next().and_then(|pid| pid.parse::<u32>().ok()));
        }
        Ok(Cluster { client, begun, api_ready, api: vec![all[0]], all, _processes: Box::new(server) })
    }
}

/// The server over its folder; both go with the value.
struct Server {
    program: PathBuf,
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // What fails here leaves folders in the temporary directory, and says so.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
        let path = |name: &str| self.folder.path().join(name);
        let mut uninstall = Command::new(&self.program);
        uninstall.args(["uninstall", "--yes", "--data-dir"]).arg(path("data")).arg("--run-dir").arg(path("run"));
        if let Err(error) = run(&mut uninstall) {
            eprintln!("{error:#}");
        }
    }
}
