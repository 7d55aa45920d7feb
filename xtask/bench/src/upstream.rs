//! Upstream's own processes, one node, in a network namespace of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kedge_network::{Namespace, NamespaceNet};
use serde_json::json;

use crate::client::Client;
use crate::cluster::{Cluster, NODE, Parts, run, spawn, write_image};

/// The node's address, which exists in the namespace alone.
const ADDRESS: &str = "192.168.78.1";
const TOKEN: &str = "bench";

/// Makes clusters of the programs in `bin`.
pub(crate) struct Maker {
    pub(crate) bin: PathBuf,
}

/// The processes of one cluster.
struct Processes {
    bin: PathBuf,
    folder: tempfile::TempDir,
    namespace: String,
    children: Vec<Child>,
}

impl Processes {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A program of upstream's inside the namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace)).arg(self.bin.join(program));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.bin.display())).current_dir(self.folder.path());
        command
    }

    fn start(&mut self, program: &str, arguments: &[&str]) -> Result<u32> {
        let log = self.folder.path().join(format!("{program}.log"));
        let child = spawn(self.inside(program).args(arguments), &log)?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        if let Some(folder) = Path::new(&path).parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)?;
        Ok(path)
    }

    /// etcd and the API server; their processes, and when the first of them was started.
    fn start_api(&mut self) -> Result<(Vec<u32>, Instant)> {
        let pair = rcgen::KeyPair::generate()?;
        let (key, public) =
            (self.write("sa.key", &pair.serialize_pem())?, self.write("sa.pub", &pair.public_key_pem())?);
        let tokens = self.write("tokens.csv", &format!("{TOKEN},bench,bench,system:masters\n"))?;
        let (etcd, certificates) = (self.path("etcd"), self.path("certs"));
        let begun = Instant::now();
        let url = "http://127.0.0.1:2379";
        let store = self.start(
            "etcd",
            &[
                "--data-dir",
                &etcd,
                "--listen-client-urls",
                url,
                "--advertise-client-urls",
                url,
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
            ],
        )?;
        let api = self.start(
            "kube-apiserver",
            &[
                "--etcd-servers",
                url,
                "--cert-dir",
                &certificates,
                "--bind-address",
                "0.0.0.0",
                "--advertise-address",
                ADDRESS,
                "--service-account-key-file",
                &public,
                "--service-account-signing-key-file",
                &key,
                "--service-account-issuer",
                "https://kubernetes.default.svc",
                "--service-cluster-ip-range",
                "10.43.0.0/16",
                "--authorization-mode",
                "Node,RBAC",
                "--token-auth-file",
                &tokens,
                "--allow-privileged",
                "--kubelet-preferred-address-types",
                "InternalIP",
            ],
        )?;
        Ok((vec![store, api], begun))
    }

    /// Controllers, scheduler, containerd, kubelet and kube-proxy.
    fn start_node(&mut self) -> Result<Vec<u32>> {
        let kubeconfig = self.write("kubeconfig", &json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": { "server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "bench", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        }).to_string())?;
        let socket = self.path("containerd.sock");
        let containerd = self.write(
            "containerd.toml",
            &format!(
                "version = 3\nroot = {root:?}\nstate = {state:?}\n[grpc]\n  address = {socket:?}\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = {image:?}\n\
             [plugins.'io.containerd.cri.v1.runtime']\n  disable_apparmor = true\n  restrict_oom_score_adj = true\n  \
             netns_mounts_under_state_dir = true\n  [plugins.'io.containerd.cri.v1.runtime'.cni]\n    \
             bin_dirs = ['/usr/lib/cni']\n    conf_dir = {cni:?}\n",
                root = self.path("containerd"),
                state = self.path("containerd-state"),
                cni = self.path("cni"),
                image = "registry.k8s.io/pause:3.10.2",
            ),
        )?;
        self.write("cni/10-bridge.conflist", &json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
                "type": "host-local", "ranges": [[{ "subnet": "10.42.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ]}).to_string())?;
        let kubelet = self.write(
            "kubelet.yaml",
            &json!({
                "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
                "failCgroupV1": false, "failSwapOn": false, "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": [],
                "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
                "authorization": { "mode": "AlwaysAllow" }, "clusterDNS": [ADDRESS], "clusterDomain": "cluster.local",
                "containerRuntimeEndpoint": format!("unix://{socket}"), "resolvConf": "/dev/null",
                // A disk that is rather full is no reason to measure nothing.
                "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi" },
            })
            .to_string(),
        )?;
        let (key, ca, root) = (self.path("sa.key"), self.path("certs/apiserver.crt"), self.path("kubelet"));
        let mut pids = vec![
            self.start(
                "kube-controller-manager",
                &[
                    "--kubeconfig",
                    &kubeconfig,
                    "--service-account-private-key-file",
                    &key,
                    "--root-ca-file",
                    &ca,
                    "--cluster-cidr",
                    "10.42.0.0/16",
                    "--allocate-node-cidrs",
                    "--leader-elect=false",
                    "--authentication-skip-lookup",
                ],
            )?,
            self.start(
                "kube-scheduler",
                &[
                    "--kubeconfig",
                    &kubeconfig,
                    "--leader-elect=false",
                    "--authentication-skip-lookup",
                    "--kube-api-qps",
                    "10000",
                    "--kube-api-burst",
                    "10000",
                ],
            )?,
            self.start("containerd", &["-c", &containerd])?,
        ];
        let begin = Instant::now();
        let ctr = |arguments: &[&str]| run(self.inside("ctr").args(["-a", &socket, "-n", "k8s.io"]).args(arguments));
        while let Err(error) = ctr(&["version"]) {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(30), "containerd does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let image = self.path("image.tar");
        write_image(Path::new(&image))?;
        ctr(&["images", "import", &image])?;
        let pause = self.bin.parent().context("bin is in a folder")?.join("img/pause.tar");
        ctr(&["images", "import", &pause.display().to_string()])?;
        pids.push(self.start(
            "kubelet",
            &[
                "--config",
                &kubelet,
                "--kubeconfig",
                &kubeconfig,
                "--hostname-override",
                NODE,
                "--root-dir",
                &root,
                "--node-ip",
                ADDRESS,
            ],
        )?);
        pids.push(self.start(
            "kube-proxy",
            &[
                "--kubeconfig",
                &kubeconfig,
                "--proxy-mode",
                "nftables",
                "--hostname-override",
                NODE,
                "--cluster-cidr",
                "10.42.0.0/16",
                "--conntrack-max-per-core",
                "0",
                "--conntrack-tcp-timeout-established",
                "0",
                "--conntrack-tcp-timeout-close-wait",
                "0",
            ],
        )?);
        Ok(pids)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Pods' processes and shims are known by the folder that they were started for.
        let ours = self.folder.path().display().to_string();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let shim = String::from_utf8_lossy(&line).contains(&ours);
            if shim {
                for child in children_of(pid).into_iter().chain([pid]) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::SIGKILL);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&ours));
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        if let Err(error) = kedge_network::node::delete(&self.namespace) {
            eprintln!("{error}");
        }
    }
}

fn children_of(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

impl crate::cluster::Maker for Maker {
    fn name(&self) -> &'static str {
        "Kubernetes"
    }

    async fn start(&self, parts: Parts) -> Result<Cluster> {
        let namespace = format!("upstream-bench-{}", std::process::id());
        let opened = kedge_network::node::open(&namespace, ADDRESS.parse()?).await?;
        let folder = tempfile::tempdir()?;
        let mut processes = Processes { bin: std::path::absolute(&self.bin)?, folder, namespace, children: Vec::new() };
        let net = Arc::new(NamespaceNet::new(Namespace::at(opened.path().context("a named namespace has a path")?)));
        let client = Client::of_token(net, 6443, TOKEN)?;
        let (api, begun) = processes.start_api()?;
        client.until("/readyz", Duration::from_secs(90), |_| true).await?;
        let api_ready = Instant::now();
        let mut all = api.clone();
        if parts == Parts::Node {
            all.extend(processes.start_node()?);
            let path = format!("/api/v1/nodes/{NODE}");
            client.until(&path, Duration::from_secs(90), crate::measure::is_ready).await?;
            let account = "/api/v1/namespaces/default/serviceaccounts/default";
            client.until(account, Duration::from_secs(60), |_| true).await?;
        }
        Ok(Cluster { client, begun, api_ready, api, all, _processes: Box::new(processes) })
    }
}
