//! Real pods: real containers, in a network namespace that the test makes and removes.
//!
//! Needs root, containerd, runc, nft and a static busybox; without one of them it says so and passes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::harness::{Server, assert_has, eventually, exists};

const IMAGE: &str = "example.test/busybox:1";

/// What is missing to run real pods here.
pub(crate) fn missing() -> Option<&'static str> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let there = |names: &[&str]| names.iter().any(|name| exists(Path::new(name)));
    let checks = [
        (root, "root"),
        (there(&["/usr/bin/containerd"]), "containerd (Debian: containerd)"),
        (there(&["/usr/sbin/runc", "/usr/bin/runc"]), "runc (Debian: runc)"),
        (there(&["/usr/sbin/nft"]), "nft (Debian: nftables)"),
        (there(&["/bin/busybox"]), "busybox (Debian: busybox-static)"),
        (kubectl_minor() >= 31, "kubectl 1.31 or later, which executes over WebSocket"),
    ];
    checks.into_iter().find(|(ok, _)| !ok).map(|(_, what)| what)
}

/// The minor version of the kubectl on the PATH; 0 when there is none.
fn kubectl_minor() -> u32 {
    let Ok(output) = Command::new("kubectl").args(["version", "--client", "-o", "json"]).output() else { return 0 };
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default();
    minor.trim_end_matches('+').parse().unwrap_or(0)
}

/// A cluster whose pods live in a namespace of their own; everything it started ends with the value.
pub(crate) struct Cluster {
    pub(crate) server: Server,
    namespace: String,
}

impl Cluster {
    pub(crate) fn start(name: &str) -> Self {
        let namespace = format!("kedge-e2e-{name}-{}", std::process::id());
        let server = Server::start(&["--network-namespace", &namespace, "--node-name", "n1"]);
        let archive = server.folder.path().join("busybox.tar");
        write_image(&archive);
        server.kedge(&["image", "import", archive.to_str().unwrap()]);
        let cluster = Self { server, namespace };
        eventually("the node is ready", || {
            let (ok, text) = cluster.server.try_kubectl("get node n1 --no-headers", "");
            if ok && text.contains(" Ready ") { Ok(()) } else { Err(text + &cluster.server.log()) }
        });
        cluster
    }

    /// Creates a pod that runs a shell script, and waits until it is ready.
    fn run(&self, name: &str, script: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [
                { "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script] },
            ]},
        });
        let (ok, text) = self.server.try_kubectl("create -f -", &pod.to_string());
        assert!(ok, "{text}");
        self.until_phase(name, "Running");
    }

    fn until_phase(&self, name: &str, phase: &str) {
        eventually(&format!("{name} is {phase}"), || {
            let found = self.server.kubectl(&format!("get pod {name} -o jsonpath={{.status.phase}}"));
            if found == phase {
                Ok(())
            } else {
                Err(self.server.kubectl(&format!("get pod {name} -o yaml")) + &self.server.log())
            }
        });
    }

    fn pids(&self) -> String {
        self.server.kubectl("exec keeper -- /bin/busybox cat /proc/1/stat")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.kill();
        self.server.kedge(&["killall"]);
        let removed = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
        assert!(removed.is_ok_and(|status| status.success()), "the namespace {} stays", self.namespace);
    }
}

/// A docker archive with busybox alone.
fn write_image(path: &PathBuf) {
    let mut layer = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").unwrap();
    append(&mut layer, "bin/busybox", &busybox, 0o755);
    let layer = layer.into_inner().unwrap();
    let digest = hex::encode(Sha256::digest(&layer));
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    append(&mut archive, "config.json", config.to_string().as_bytes(), 0o644);
    append(&mut archive, "layer.tar", &layer, 0o644);
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644);
    archive.finish().unwrap();
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, content).unwrap();
}

#[test]
fn pods_run_serve_each_other_and_outlive_the_server() {
    if let Some(missing) = missing() {
        println!("skipped: {missing} is missing");
        return;
    }
    let mut cluster = Cluster::start("pods");
    let serve =
        "echo started; mkdir -p /www; echo served by $HOSTNAME > /www/index.html; busybox httpd -f -p 8080 -h /www";
    cluster.run("web", &serve.replace("mkdir", "busybox mkdir"));
    cluster.run("keeper", "trap exit TERM; echo ready; while :; do busybox sleep 1; done");
    assert_has(&cluster.server.kubectl("logs web"), "started");
    cluster.server.kubectl("expose pod web --port 80 --target-port 8080");

    // By name: DNS, the Service's address, and the way to the pod and back.
    let ask = "exec keeper -- /bin/busybox wget -q -O - http://web.default.svc.cluster.local/";
    eventually("the Service answers", || {
        let (ok, text) = cluster.server.try_kubectl(ask, "");
        if ok && text.contains("served by web") { Ok(()) } else { Err(text + &cluster.server.log()) }
    });
    let (ok, text) = cluster.server.try_kubectl("exec -i keeper -- /bin/busybox cat", "through and back");
    assert!(ok, "{text}");
    assert_has(&text, "through and back");
    let (ok, _) = cluster.server.try_kubectl("exec keeper -- /bin/busybox sh -c false", "");
    assert!(!ok, "an exit code other than 0 is a failure");

    // kill -9 of the server: the same processes go on, and the next server finds them.
    let before = cluster.pids();
    cluster.server.kill();
    cluster.server.restart();
    eventually("the node answers again", || {
        let (ok, text) = cluster.server.try_kubectl("exec keeper -- /bin/busybox true", "");
        if ok { Ok(()) } else { Err(text) }
    });
    let started = |stat: &str| stat.split(' ').nth(21).map(str::to_owned);
    assert_eq!(started(&before), started(&cluster.pids()), "pid 1 of the pod is another process");
    assert_has(&cluster.server.kubectl("get pod keeper --no-headers"), "Running");

    cluster.server.kubectl("delete pod web keeper --timeout=30s");
    let (_, left) = cluster.server.try_kubectl("get pods -o name", "");
    assert!(!left.contains("pod/"), "{left}");
}

#[test]
fn a_pod_that_ends_says_how() {
    if let Some(missing) = missing() {
        println!("skipped: {missing} is missing");
        return;
    }
    let cluster = Cluster::start("ends");
    let pod = |name: &str, script: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "restartPolicy": "Never", "containers": [
                { "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script] },
            ]},
        })
        .to_string()
    };
    for (name, script, phase, reason) in
        [("well", "exit 0", "Succeeded", "Completed"), ("ill", "exit 7", "Failed", "Error")]
    {
        let (ok, text) = cluster.server.try_kubectl("create -f -", &pod(name, script));
        assert!(ok, "{text}");
        cluster.until_phase(name, phase);
        let path = "{.status.containerStatuses[0].state.terminated.reason}";
        assert_eq!(cluster.server.kubectl(&format!("get pod {name} -o jsonpath={path}")), reason);
    }
}
