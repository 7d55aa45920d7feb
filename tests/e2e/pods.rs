//! Real pods: real containers, in a network namespace that the test makes and removes.
//!
//! Needs root, containerd, runc, nft and a static busybox.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::harness::{Server, assert_has, eventually, exists};
use crate::needs::{Need, lacks};

pub(crate) const IMAGE: &str = "example.test/busybox:1";

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
    pub(crate) fn run(&self, name: &str, script: &str) {
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

    /// Creates a pod whose container echoes the lines that clients write to it, and waits until it runs.
    fn run_reader(&self, name: &str) {
        let script = "while read line; do echo got $line; done";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [
                { "name": "main", "image": IMAGE, "stdin": true, "command": ["/bin/busybox", "sh", "-c", script] },
            ]},
        });
        let (ok, text) = self.server.try_kubectl("create -f -", &pod.to_string());
        assert!(ok, "{text}");
        self.until_phase(name, "Running");
    }

    /// kubectl forwards a free port to `port` of a pod; the process and that port.
    fn forward(&self, pod: &str, port: u16) -> (Child, u16) {
        let mut kubectl = self.server.start_kubectl(&format!("port-forward pod/{pod} :{port}"));
        let line = line_with(&mut BufReader::new(kubectl.stdout.as_mut().unwrap()), "Forwarding from 127.0.0.1:");
        let local = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        (kubectl, local.parse().unwrap())
    }

    /// A line written to an attached container, and its answer.
    fn say(&self, pod: &str, word: &str) {
        let mut kubectl = self.server.start_kubectl(&format!("attach -i {pod}"));
        let mut stdin = kubectl.stdin.take().unwrap();
        stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
        line_with(&mut BufReader::new(kubectl.stdout.as_mut().unwrap()), &format!("got {word}"));
        drop(stdin);
        end(kubectl);
    }

    pub(crate) fn until_phase(&self, name: &str, phase: &str) {
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
        if !exists(&self.server.folder.path().join("data")) {
            return; // A test has removed it all.
        }
        self.server.kedge(&["killall"]);
        let removed = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
        assert!(removed.is_ok_and(|status| status.success()), "the namespace {} stays", self.namespace);
    }
}

/// Ends a kubectl; what it still said.
fn end(mut kubectl: Child) -> String {
    // `timeout` passes it on.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(kubectl.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut text = String::new();
    kubectl.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    kubectl.wait().unwrap();
    text
}

/// The first line that contains `wanted`.
fn line_with(output: &mut impl BufRead, wanted: &str) -> String {
    let mut before = String::new();
    loop {
        let start = before.len();
        let count = output.read_line(&mut before).unwrap();
        assert!(count > 0, "no line with {wanted:?} in:\n{before}");
        if before[start..].contains(wanted) {
            return before[start..].to_owned();
        }
    }
}

/// What is answered on a local port to a plain HTTP request; empty when the connection ends without an answer.
fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // A connection that is broken off is as empty as one that ends.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A docker archive with busybox alone.
pub(crate) fn write_image(path: &PathBuf) {
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

/// A logger that is killed: the container never hears of it, and its log goes on.
#[test]
fn a_killed_logger_is_replaced() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let cluster = Cluster::start("logger");
    cluster.run("talker", "n=0; while true; do n=$((n+1)); echo line $n; sleep 0.2; done");
    let attach = cluster.server.folder.path().join("run/attach");
    let marks = || {
        let folders = std::fs::read_dir(&attach).into_iter().flatten().flatten();
        folders.filter_map(|folder| std::fs::read_to_string(folder.path().join("logger")).ok()).collect::<Vec<_>>()
    };
    let pid = |mark: &str| mark.split(' ').next().unwrap().parse().unwrap();
    let mark = marks().pop().expect("one container, one logger");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid(&mark)), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("another logger goes on", || {
        let log = cluster.server.kubectl("logs talker");
        let after = log.split("was killed").nth(1).is_some_and(|rest| rest.matches("line ").count() > 5);
        if after && marks() != [mark.clone()] { Ok(()) } else { Err(log) }
    });
    assert_eq!(cluster.server.kubectl("get pod talker -o jsonpath={.status.containerStatuses[0].restartCount}"), "0");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stuck"}, "spec": {"containers": [
        {"name": "main", "image": IMAGE, "envFrom": [{"configMapRef": {"name": "missing"}}]},
    ]}});
    assert!(cluster.server.try_kubectl("create -f -", &pod.to_string()).0);
    eventually("a container that waits says why it has no log", || {
        let (ok, text) = cluster.server.try_kubectl("logs stuck", "");
        let expected = "container \"main\" in pod \"stuck\" is waiting to start: CreateContainerConfigError";
        if !ok && text.contains(expected) && text.contains("BadRequest") { Ok(()) } else { Err(text) }
    });
}

#[test]
fn pods_run_serve_each_other_and_outlive_the_server() {
    if lacks(&[Need::Pods]) {
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
    if lacks(&[Need::Pods]) {
        return;
    }
    let cluster = Cluster::start("ends");
    let pod = |name: &str, script: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [
                { "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script],
                  "ports": [{ "containerPort": 80, "hostPort": 8089 }] },
            ]},
        })
        .to_string()
    };
    // Each has the port of the host that the one before, which is still there, gave back when it ended.
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

#[test]
fn what_happens_to_a_pod_is_told_and_one_that_does_not_fit_is_refused() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let cluster = Cluster::start("events");
    let create = |name: &str, spec: serde_json::Value| {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        let (ok, text) = cluster.server.try_kubectl("create -f -", &pod.to_string());
        assert!(ok, "{text}");
    };
    let runs = |more: serde_json::Value| {
        let mut container = json!({ "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sleep", "1000"] });
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "terminationGracePeriodSeconds": 1, "containers": [container] })
    };
    let told = |name: &str, wanted: &[&str]| {
        eventually(&format!("the events of {name}"), || {
            let text = cluster.server.kubectl(&format!("describe pod {name}"));
            let missing = wanted.iter().find(|wanted| !text.contains(**wanted));
            missing.map_or(Ok(()), |missing| Err(format!("no {missing:?} in:\n{text}{}", cluster.server.log())))
        });
    };
    let port = json!({ "ports": [{ "containerPort": 80, "hostPort": 8088 }] });
    create("web", runs(port.clone()));
    let assigned = "Successfully assigned default/web to n1";
    let present = "already present on machine and can be accessed by the pod";
    told(
        "web",
        &["Scheduled", "default-scheduler", assigned, present, "Container created", "Container started", "kubelet"],
    );

    // Bound by hand past the scheduler: refused, never started, and it can be deleted.
    let mut bound = runs(port);
    bound["nodeName"] = json!("n1");
    create("clash", bound);
    cluster.until_phase("clash", "Failed");
    told("clash", &["NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports"]);
    create("huge", runs(json!({ "resources": { "requests": { "cpu": "5000" } } })));
    told("huge", &["FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu."]);

    // Probes over HTTPS, HTTP and gRPC are asked, and told when they fail.
    let serve = ["/bin/busybox", "sh", "-c", "busybox mkdir /www; busybox httpd -f -p 8080 -h /www"];
    let serve =
        serve.map(|word| word.replace("; busybox", "; /bin/busybox").replace("busybox mkdir", "/bin/busybox mkdir"));
    for (name, probe, wanted) in [
        (
            "http",
            json!({ "httpGet": { "port": 8080 } }),
            "Liveness probe failed: HTTP probe failed with statuscode: 404",
        ),
        (
            "https",
            json!({ "httpGet": { "port": 8080, "scheme": "HTTPS" } }),
            "http: server gave HTTP response to HTTPS client",
        ),
        ("grpc", json!({ "grpc": { "port": 8081 } }), "Liveness probe failed: error: failed to connect service"),
    ] {
        let mut probe = probe;
        (probe["periodSeconds"], probe["failureThreshold"]) = (json!(1), json!(2));
        create(name, runs(json!({ "command": serve, "livenessProbe": probe })));
        told(name, &["Unhealthy", wanted, "Killing", "Container main failed liveness probe, will be restarted"]);
    }
    // What keeps failing waits, and the same again is counted.
    told("http", &["Back-off restarting failed container main in pod http_default(", "(x2 over"]);
    cluster.server.kubectl("delete pod --all --timeout=60s");
    told_of_node(&cluster);
}

fn told_of_node(cluster: &Cluster) {
    let text = cluster.server.kubectl("describe node n1");
    assert_has(&text, "Starting kubelet.");
    assert_has(&text, "Node n1 status is now: NodeReady");
}

#[test]
fn clients_forward_ports_and_attach() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let mut cluster = Cluster::start("streams");
    let serve = "busybox mkdir /www; echo inside > /www/index.html; busybox httpd -f -p 127.0.0.1:8080 -h /www";
    cluster.run("web", &serve.replace("busybox ", "/bin/busybox "));

    // The port is open on the pod's own loopback only.
    let (kubectl, port) = cluster.forward("web", 8080);
    eventually("the pod answers", || {
        let answer = get(port);
        if answer.contains("inside") { Ok(()) } else { Err(answer) }
    });
    let parallel: Vec<_> = (0..10).map(|_| std::thread::spawn(move || get(port))).collect();
    for thread in parallel {
        assert_has(&thread.join().unwrap(), "inside");
    }
    end(kubectl);
    let (kubectl, port) = cluster.forward("web", 81);
    assert_eq!(get(port), "", "nobody listens there");
    assert_has(&end(kubectl), "Connection refused");

    // Containers with input: by kubectl run, and by attach before and after a kill -9 of the server.
    let run = format!("run once --image={IMAGE} --restart=Never --rm -i -- /bin/busybox cat");
    let (ok, text) = cluster.server.try_kubectl(&run, "through attach\n");
    assert!(ok, "{text}{}", cluster.server.log());
    assert_has(&text, "through attach");
    cluster.run_reader("reader");
    cluster.say("reader", "one");
    cluster.server.kill();
    cluster.server.restart();
    eventually("the node answers again", || {
        let (ok, text) = cluster.server.try_kubectl("exec reader -- /bin/busybox true", "");
        if ok { Ok(()) } else { Err(text) }
    });
    cluster.say("reader", "two");
    assert_has(&cluster.server.kubectl("logs reader"), "got one\ngot two");

    let (ok, text) = cluster.server.try_kubectl("attach reader -c other", "");
    assert!(!ok && text.contains("other"), "{text}");
    cluster.server.kubectl("delete pod web reader --timeout=30s");
}
