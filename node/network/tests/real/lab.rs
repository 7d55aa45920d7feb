//! A node in a namespace of its own, processes in its pods, and everything removed afterwards.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kedge_network::{Namespace, PodNetwork, PodNetworks, PodRef, PodSettings, namespace, node, pods};
use kedge_world::RealDisk;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) folder: tempfile::TempDir,
}

/// Why a test cannot run here, told once and only tolerated where nobody demands it.
pub(crate) fn cannot_run() -> bool {
    let on_path = |name: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).exists())
    };
    let missing = if !nix::unistd::Uid::effective().is_root() {
        Some("this test needs root".to_owned())
    } else {
        let tools = ["nft", "nsenter", "python3"];
        tools.into_iter().find(|tool| !on_path(tool)).map(|tool| format!("{tool} is not installed"))
    };
    let Some(missing) = missing else { return false };
    assert!(std::env::var_os("KEDGE_TEST_REQUIRE_NETWORK").is_none(), "{missing}");
    println!("skipped: {missing}");
    true
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let name = format!("kdgt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = node::open(&name, "192.0.2.10".parse().unwrap()).await.unwrap();
        Self { name, namespace, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn settings(&self) -> PodSettings {
        PodSettings {
            data_dir: self.folder.path().join("data"),
            run_dir: self.folder.path().join("run"),
            namespace: self.namespace.clone(),
            pod_cidr: "10.42.0.0/24".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            mtu: None,
        }
    }

    pub(crate) async fn networks(&self) -> PodNetworks {
        PodNetworks::open(self.settings(), Arc::new(RealDisk)).await.unwrap()
    }

    /// The file that pins the node's namespace.
    pub(crate) fn node(&self) -> PathBuf {
        self.namespace.path().unwrap().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let folder = self.folder.path().join("run/netns");
        for name in namespace::pinned_names(&folder).unwrap() {
            namespace::unpin(&folder.join(name)).unwrap();
        }
        namespace::unpin(&self.node()).unwrap();
    }
}

pub(crate) async fn remove_all(lab: &Lab) {
    let settings = lab.settings();
    pods::remove_all(&settings.data_dir, &settings.run_dir, &settings.namespace, Arc::new(RealDisk)).await.unwrap();
}

pub(crate) fn pod(name: &str) -> PodRef {
    PodRef { uid: format!("uid-{name}"), namespace: "default".into(), name: name.into() }
}

/// Runs a program to its end inside a namespace.
pub(crate) fn run(namespace: &Path, command: &[&str]) -> Output {
    inside(namespace, command).output().unwrap()
}

/// Standard output of a program that must succeed.
pub(crate) fn text(namespace: &Path, command: &[&str]) -> String {
    let output = run(namespace, command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn inside(namespace: &Path, command: &[&str]) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", namespace.display())).args(command);
    nsenter
}

/// A process that ends with the test.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers every TCP connection, or UDP packet, with its name and who asked: `web 10.42.0.3`.
const SERVER: &str = r#"
import socket, sys
name, kind, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "tcp":
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", port)); s.listen(64); print("ready", flush=True)
    while True:
        c, peer = s.accept(); c.sendall(f"{name} {peer[0]}".encode()); c.close()
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", port)); print("ready", flush=True)
    while True:
        _, peer = s.recvfrom(2000); s.sendto(f"{name} {peer[0]}".encode(), peer)
"#;

/// Asks once: prints the answer, or the name of what went wrong.
const CLIENT: &str = r#"
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
try:
    if kind == "tcp":
        s = socket.create_connection((host, port), 3); print(s.recv(200).decode())
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
        if len(sys.argv) > 4: s.bind(("", int(sys.argv[4])))
        s.connect((host, port)); s.send(b"?"); print(s.recv(200).decode())
except Exception as e:
    print(type(e).__name__)
"#;

/// Starts a server in a pod; returns when it listens.
pub(crate) fn serve(namespace: &Path, name: &str, kind: &str, port: u16) -> Process {
    let mut command = inside(namespace, &["python3", "-c", SERVER, name, kind, &port.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    Process(child)
}

/// Asks `host:port` from inside a namespace.
pub(crate) fn ask(namespace: &Path, kind: &str, host: &str, port: u16) -> String {
    text(namespace, &["python3", "-c", CLIENT, kind, host, &port.to_string()]).trim().to_owned()
}

/// Asks over UDP from one fixed port, so that every packet belongs to one connection.
pub(crate) fn ask_from(namespace: &Path, host: &str, port: u16, from: u16) -> String {
    let (port, from) = (port.to_string(), from.to_string());
    text(namespace, &["python3", "-c", CLIENT, "udp", host, &port, &from]).trim().to_owned()
}

pub(crate) fn ip(network: &PodNetwork) -> String {
    network.ips[0].to_string()
}
