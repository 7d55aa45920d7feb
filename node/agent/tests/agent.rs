//! The agent with the fake runtime and an API in memory: a node's life without root, network or containers.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code")]

mod api;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::ApiDouble;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kedge_node::agent::{Agent, Gpu, Parts, Settings};
use kedge_node::network::{Network, NetworkError, PodNetwork};
use kedge_runtimes::fake::{Behaviour, Fake};
use kedge_runtimes::{ImageConfig, PodId, Runtime};
use kedge_world::World;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Gives every pod an address, and remembers who has one. Panics once over the pods named in the second part.
#[derive(Default)]
struct Wires(Mutex<BTreeMap<String, PodId>>, Mutex<BTreeMap<String, ()>>);

#[async_trait]
impl Network for Wires {
    async fn setup(&self, id: &PodId, _: &Pod) -> Result<PodNetwork, NetworkError> {
        assert!(self.1.lock().remove(&id.name) != Some(()), "nobody thought of {}", id.name);
        let mut wires = self.0.lock();
        let known = wires.iter().find(|(_, other)| *other == id).map(|(ip, _)| ip.clone());
        let ip = known.unwrap_or_else(|| format!("10.42.0.{}", wires.len() + 2));
        wires.insert(ip.clone(), id.clone());
        Ok(PodNetwork { namespace: None, ips: vec![ip] })
    }
    async fn teardown(&self, id: &PodId) -> Result<(), NetworkError> {
        self.0.lock().retain(|_, other| other != id);
        Ok(())
    }
}

struct Box_ {
    folder: tempfile::TempDir,
    api: ApiDouble,
    fake: Fake,
    wires: Arc<Wires>,
    node_ip: watch::Sender<IpAddr>,
    gpu: watch::Sender<Option<Gpu>>,
    network_namespace: Option<std::path::PathBuf>,
    agent: Option<tokio::task::JoinHandle<()>>,
}

impl Box_ {
    fn new() -> Self {
        let fake = Fake::new(World::real());
        fake.add_image("busybox", ImageConfig { cmd: vec!["true".into()], ..ImageConfig::default() });
        let folder = tempfile::tempdir().unwrap();
        let node_ip = watch::Sender::new("192.0.2.1".parse().unwrap());
        let (api, wires, network_namespace) = (ApiDouble::default(), Arc::default(), None);
        let gpu = watch::Sender::new(None);
        let mut this = Self { folder, api, fake, wires, node_ip, gpu, network_namespace, agent: None };
        this.start();
        this
    }

    fn settings(&self) -> Settings {
        let folder = self.folder.path();
        Settings {
            node_name: "n1".into(),
            node_ip: self.node_ip.subscribe(),
            labels: BTreeMap::new(),
            data_dir: folder.join("data"),
            run_dir: folder.join("run"),
            log_dir: folder.join("log"),
            network_namespace: self.network_namespace.clone(),
            dns: kedge_node::etc::Dns {
                server: Some("10.43.0.10".into()),
                domain: "cluster.local".into(),
                host_file: None,
            },
            cpus: 2,
            memory_bytes: 8 << 30,
            pods_max: 110,
            pod_pids_limit: None,
            gpu: self.gpu.subscribe(),
        }
    }

    fn start(&mut self) {
        let parts = Parts {
            client: self.api.client(),
            runtime: Arc::new(self.fake.clone()),
            network: self.wires.clone(),
            puller: None,
            world: World::real(),
        };
        let agent = Agent::new(parts, self.settings()).unwrap();
        self.agent = Some(tokio::spawn(async move { Box::pin(agent.run()).await.unwrap() }));
    }

    /// As kill -9 does: nothing is said to anybody.
    async fn kill_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        let _ = agent.await;
    }

    fn apply(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        self.api.put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1}, "spec": spec}));
    }

    fn running(&self, name: &str, args: Value) {
        self.fake.behave(name, Behaviour::Run { ignores_term: false });
        self.apply(name, json!({"containers": [{"name": name, "image": "busybox", "args": args}]}));
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
            panic!("never: {what}\n{}\n{:?}", self.api.dump(), self.fake.calls());
        }
    }

    fn status(&self, name: &str) -> Value {
        self.api.get("pods", &format!("default/{name}")).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    fn condition(&self, kind: &str) -> String {
        let node = self.api.get("nodes", "n1").unwrap_or_default();
        let found = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned();
        found.map(|found| found["status"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    }

    async fn until_phase(&self, name: &str, phase: &str) {
        self.until(&format!("{name} is {phase}"), |this| this.status(name)["phase"] == phase).await;
    }
}

#[tokio::test]
async fn the_node_registers_and_heartbeats() {
    let this = Box_::new();
    this.until("the node is ready", |this| {
        this.condition("Ready") == "True" && this.condition("DiskPressure") == "False"
    })
    .await;
    let node = this.api.get("nodes", "n1").unwrap();
    assert_eq!(node["status"]["capacity"]["cpu"], "2");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    this.until("the lease is there", |this| this.api.get("leases", "kube-node-lease/n1").is_some()).await;
    let lease = this.api.get("leases", "kube-node-lease/n1").unwrap();
    assert_eq!(
        (lease["spec"]["holderIdentity"].as_str(), lease["spec"]["leaseDurationSeconds"].as_i64()),
        (Some("n1"), Some(40))
    );
}

/// A disk that is full needs a file system of its own.
#[tokio::test]
async fn a_node_whose_disk_is_nearly_full_says_so_and_takes_critical_pods_alone() {
    if !nix::unistd::Uid::effective().is_root() {
        return println!("skipped: this test needs root");
    }
    let this = Box_::new();
    let logs = this.settings().log_dir;
    std::fs::create_dir_all(&logs).unwrap();
    nix::mount::mount(Some("tmpfs"), &logs, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=1m")).unwrap();
    std::fs::write(logs.join("much"), vec![0; 960 << 10]).unwrap();
    this.until("the node says that it has no room", |this| this.condition("DiskPressure") == "True").await;
    this.apply("late", json!({"containers": [{"name": "late", "image": "busybox"}]}));
    this.until_phase("late", "Failed").await;
    let status = this.status("late");
    assert_eq!(
        (status["reason"].as_str(), status["message"].as_str()),
        (Some("Evicted"), Some("Pod was rejected: The node had condition: [DiskPressure]. "))
    );
    this.fake.behave("critical", Behaviour::Run { ignores_term: false });
    let containers = json!([{"name": "critical", "image": "busybox"}]);
    this.apply("critical", json!({"priority": 2_000_001_000, "containers": containers}));
    this.until_phase("critical", "Running").await;
    let told = this.api.dump().contains("NodeHasDiskPressure");
    nix::mount::umount2(&logs, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(told);
}

#[tokio::test]
async fn a_node_whose_network_was_removed_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = folder.path().join("netns");
    std::fs::write(&namespace, "").unwrap();
    let mut this = Box_::new();
    this.kill_agent().await;
    this.network_namespace = Some(namespace.clone());
    this.start();
    this.until("the node is ready", |this| this.condition("Ready") == "True").await;
    assert_eq!(this.condition("NetworkUnavailable"), "", "nothing is claimed that was never wrong");
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::fs::remove_file(&namespace).unwrap();
    this.until("the node says that it is cut off", |this| this.condition("NetworkUnavailable") == "True").await;
    this.until("it is told", |this| this.api.dump().contains("was removed while the node ran")).await;
    assert_eq!(this.condition("Ready"), "True");
}

#[tokio::test]
async fn a_node_tells_of_its_gpu_once_it_is_known() {
    let this = Box_::new();
    this.until("the node is ready", |this| this.condition("Ready") == "True").await;
    assert_eq!(this.condition("GPUUsable"), "");
    this.gpu.send_replace(Some(Gpu { usable: false, words: "no driver".into() }));
    this.until("it says that there is none", |this| this.condition("GPUUsable") == "False").await;
    assert_eq!(this.condition("Ready"), "True");
}

#[tokio::test]
async fn a_node_that_others_gave_up_says_at_once_that_it_is_there() {
    let this = Box_::new();
    let ready = |this: &Box_| {
        let node = this.api.get("nodes", "n1").unwrap_or_default();
        node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready").cloned()
    };
    this.until("the node is ready", |this| ready(this).is_some_and(|ready| ready["status"] == "True")).await;
    // As the node lifecycle controller does with a node whose Lease was not renewed for 40 s.
    let mut node = this.api.get("nodes", "n1").unwrap();
    let unknown = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"});
    node["status"]["conditions"] = json!([unknown]);
    this.api.put("nodes", node);
    this.until("the node is ready again", |this| ready(this).is_some_and(|ready| ready["reason"] == "KubeletReady"))
        .await;
    // What others say of other things is theirs, and no reason to say anything.
    let mut node = this.api.get("nodes", "n1").unwrap();
    node["metadata"]["labels"]["own"] = json!("label");
    this.api.put("nodes", node);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let revision = this.api.get("nodes", "n1").unwrap()["metadata"]["resourceVersion"].clone();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(this.api.get("nodes", "n1").unwrap()["metadata"]["resourceVersion"], revision);
}

#[tokio::test]
async fn a_node_with_another_address_says_so_for_itself_and_its_pods() {
    let this = Box_::new();
    this.running("web", json!(["x"]));
    this.apply("host", json!({"hostNetwork": true, "containers": [{"name": "host", "image": "busybox"}]}));
    this.fake.behave("host", Behaviour::Run { ignores_term: false });
    let shown = |this: &Box_| {
        let node = this.api.get("nodes", "n1").unwrap_or_default();
        let (web, host) = (this.status("web"), this.status("host"));
        [&node["status"]["addresses"][0]["address"], &web["hostIP"], &web["podIP"], &host["hostIP"], &host["podIP"]]
            .map(|value| value.as_str().unwrap_or_default().to_owned())
    };
    let expected = |ip: &str| [ip, ip, "10.42.0.2", ip, ip].map(str::to_owned);
    for ip in ["192.0.2.1", "10.42.0.1", "198.51.100.9"] {
        this.node_ip.send_replace(ip.parse().unwrap());
        this.until(ip, |this| shown(this) == expected(ip)).await;
    }
}

#[tokio::test]
async fn a_pod_that_ended_gives_its_network_back_and_keeps_the_rest() {
    let this = Box_::new();
    for (name, policy) in [("well", "Never"), ("ill", "Never")] {
        let code = if name == "well" { 0 } else { 1 };
        this.fake.behave(name, Behaviour::ExitAfter { time: Duration::ZERO, code, oom: false });
        this.apply(name, json!({"restartPolicy": policy, "containers": [{"name": name, "image": "busybox"}]}));
    }
    this.until_phase("well", "Succeeded").await;
    this.until_phase("ill", "Failed").await;
    this.until("their networks are given back", |this| this.wires.0.lock().is_empty()).await;
    let left = this.fake.observe().await.unwrap();
    assert_eq!((left.sandboxes.len(), left.containers.len()), (2, 2), "their records and logs can still be read");
    assert!(this.status("well")["podIP"].is_string(), "its address is still told");
    this.api.delete_gracefully("default/well", 0);
    this.until("the pod is gone", |this| this.api.get("pods", "default/well").is_none()).await;
}

#[tokio::test]
async fn a_step_that_panics_is_a_failed_step() {
    let this = Box_::new();
    this.wires.1.lock().insert("odd".to_owned(), ());
    this.running("odd", json!(["x"]));
    this.until_phase("odd", "Running").await;
    assert!(this.wires.1.lock().is_empty());
    let told = this.api.all("events");
    let text = "internal error: nobody thought of odd";
    assert!(told.iter().any(|event| event["message"].as_str().unwrap_or_default().contains(text)), "{told:?}");
}

#[tokio::test]
async fn durations_that_no_clock_has_are_taken_as_for_ever() {
    let this = Box_::new();
    this.fake.behave("long", Behaviour::Run { ignores_term: false });
    this.apply(
        "long",
        json!({
            "terminationGracePeriodSeconds": 9_000_000_000_000_000_000_i64,
            "activeDeadlineSeconds": 9_000_000_000_000_000_000_i64,
            "containers": [{"name": "long", "image": "busybox"}],
        }),
    );
    this.until_phase("long", "Running").await;
    this.api.delete_gracefully("default/long", 9_000_000_000_000_000_000);
    this.until("the pod is gone", |this| this.api.get("pods", "default/long").is_none()).await;
}

#[tokio::test]
async fn a_pod_runs_is_told_about_and_goes() {
    let this = Box_::new();
    this.api.put("configmaps", json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "v1"}}));
    this.fake.behave("web", Behaviour::Run { ignores_term: false });
    this.apply(
        "web",
        json!({
            "containers": [{"name": "web", "image": "busybox", "volumeMounts": [{"name": "c", "mountPath": "/c"}]}],
            "volumes": [{"name": "c", "configMap": {"name": "cm"}}],
        }),
    );
    this.until_phase("web", "Running").await;
    let status = this.status("web");
    assert_eq!((status["podIP"].as_str(), status["hostIP"].as_str()), (Some("10.42.0.2"), Some("192.0.2.1")));
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("fake://"));
    let file = this.folder.path().join("data/volumes/uid-web/c/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "v1");
    assert!(
        std::fs::read_to_string(this.folder.path().join("data/pod-files/uid-web/etc/hosts"))
            .unwrap()
            .contains("10.42.0.2\tweb")
    );
    // News of the pod bring its volumes up to date.
    this.api.put("configmaps", json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "v2"}}));
    let mut pod = this.api.get("pods", "default/web").unwrap();
    pod["metadata"]["annotations"] = json!({"touched": "yes"});
    this.api.put("pods", pod);
    this.until("the volume follows", |_| std::fs::read_to_string(&file).unwrap_or_default() == "v2").await;
    this.api.delete_gracefully("default/web", 30);
    this.until("the pod is gone", |this| this.api.get("pods", "default/web").is_none()).await;
    assert_eq!(this.fake.calls(), ["sandbox web", "create web", "start web", "term web", "remove-sandbox web"]);
    assert!(this.wires.0.lock().is_empty() && !file.exists());
    this.until("the cache forgets it", |this| {
        std::fs::read_dir(this.folder.path().join("data/pods")).unwrap().count() == 0
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_ends_is_told_with_its_code() {
    let this = Box_::new();
    this.apply("job", json!({"restartPolicy": "Never", "containers": [{"name": "job", "image": "busybox", "command": ["sh", "-c", "exit 3"]}]}));
    this.until_phase("job", "Failed").await;
    let end = this.status("job")["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((end["exitCode"].as_i64(), end["reason"].as_str()), (Some(3), Some("Error")));
    this.apply("good", json!({"restartPolicy": "Never", "containers": [{"name": "good", "image": "busybox"}]}));
    this.until_phase("good", "Succeeded").await;
}

#[tokio::test]
async fn what_is_missing_is_said_and_waited_for() {
    let this = Box_::new();
    this.apply("lost", json!({"containers": [{"name": "lost", "image": "nowhere:1", "imagePullPolicy": "Never"}]}));
    this.until("the image is missed", |this| {
        this.status("lost")["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    })
    .await;
    let env = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]);
    this.fake.behave("conf", Behaviour::Run { ignores_term: false });
    this.apply("conf", json!({"containers": [{"name": "conf", "image": "busybox", "env": env}]}));
    this.until("the config map is missed", |this| {
        let waiting = this.status("conf")["containerStatuses"][0]["state"]["waiting"].clone();
        waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == "configmap \"late\" not found"
    })
    .await;
    this.api.put("configmaps", json!({"metadata": {"name": "late", "namespace": "default"}, "data": {"k": "v"}}));
    this.until_phase("conf", "Running").await;
}

#[tokio::test]
async fn a_pod_that_does_not_fit_is_refused_for_good_and_one_that_ran_stays() {
    let mut this = Box_::new();
    let taking = |this: &Box_, name: &str, host_port: i32, cpu: &str| {
        this.fake.behave(name, Behaviour::Run { ignores_term: false });
        let resources = json!({"requests": {"cpu": cpu}});
        let ports = json!([{"containerPort": 80, "hostPort": host_port}]);
        this.apply(
            name,
            json!({"containers": [{"name": name, "image": "busybox", "ports": ports, "resources": resources}]}),
        );
    };
    taking(&this, "first", 80, "1500m");
    this.until_phase("first", "Running").await;
    taking(&this, "clash", 80, "0");
    this.until_phase("clash", "Failed").await;
    let status = this.status("clash");
    assert_eq!(status["reason"], "NodePorts");
    let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(status["message"], format!("Pod was rejected: {message}"));
    assert!(status["containerStatuses"].is_null(), "{status}");
    taking(&this, "large", 81, "1");
    this.until_phase("large", "Failed").await;
    assert_eq!(this.status("large")["reason"], "OutOfcpu");
    this.until("it is told", |this| {
        this.api.all("events").iter().any(|event| event["reason"] == "NodePorts" && event["message"] == message)
    })
    .await;
    // After a restart everybody stays as he was, whatever is listed first.
    this.kill_agent().await;
    this.api.put("nodes", {
        let mut node = this.api.get("nodes", "n1").unwrap();
        node["status"]["allocatable"]["cpu"] = json!("1");
        node
    });
    this.start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let phases = ["first", "clash", "large"].map(|name| this.status(name)["phase"].clone());
    assert_eq!(phases, [json!("Running"), json!("Failed"), json!("Failed")]);
    assert_eq!(this.fake.calls(), ["sandbox first", "create first", "start first"]);
    // What goes makes room, and what was refused can be deleted.
    for name in ["first", "clash"] {
        this.api.delete_gracefully(&format!("default/{name}"), 1);
        this.until("it is gone", |this| this.api.get("pods", &format!("default/{name}")).is_none()).await;
    }
    taking(&this, "next", 80, "2");
    this.until_phase("next", "Running").await;
}

#[tokio::test]
async fn what_happens_is_told_in_events() {
    let this = Box_::new();
    this.running("web", json!([]));
    this.until_phase("web", "Running").await;
    this.apply("lost", json!({"containers": [{"name": "lost", "image": "nowhere:1", "imagePullPolicy": "Never"}]}));
    this.apply(
        "bad",
        json!({"restartPolicy": "Never", "containers": [{"name": "bad", "image": "busybox", "command": ["nothing"]}]}),
    );
    let told = |this: &Box_, object: &str| -> Vec<String> {
        let mut events = this.api.all("events");
        events.retain(|event| event["involvedObject"]["name"] == object);
        events.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let words = |event: &Value| ["type", "reason", "message"].map(|field| text(event, field)).join(" ");
        events.iter().map(words).collect()
    };
    let there = "Container image \"busybox\" already present on machine and can be accessed by the pod";
    let begun =
        [&format!("Normal Pulled {there}"), "Normal Created Container created", "Normal Started Container started"];
    this.until("the beginning is told", |this| told(this, "web") == begun).await;
    let event = this.api.all("events").into_iter().find(|event| event["reason"] == "Started").unwrap();
    assert_eq!((&event["source"]["component"], &event["source"]["host"]), (&json!("kubelet"), &json!("n1")));
    assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{web}");
    assert_eq!((&event["metadata"]["namespace"], &event["count"]), (&json!("default"), &json!(1)));
    this.until("a missing image is told", |this| {
        let message = "Container image \"nowhere:1\" is not present with pull policy of Never";
        told(this, "lost").starts_with(&[
            format!("Warning ErrImageNeverPull {message}"),
            "Warning Failed Error: ErrImageNeverPull".to_owned(),
        ])
    })
    .await;
    this.until("a failed start is told", |this| {
        told(this, "bad").last().is_some_and(|last| last.starts_with("Warning Failed Error: "))
    })
    .await;
    this.until("the node is told of", |this| {
        let of_node = told(this, "n1");
        of_node.contains(&"Normal Starting Starting kubelet.".to_owned())
            && of_node.contains(&"Normal NodeReady Node n1 status is now: NodeReady".to_owned())
    })
    .await;
    // The same again is the same event, which counts.
    this.fake.end(
        &this.fake.observe().await.unwrap().containers.into_iter().find(|run| run.name == "web").unwrap().id,
        1,
        false,
    );
    this.until("the restart is counted", |this| {
        this.api.all("events").iter().any(|event| event["reason"] == "Started" && event["count"] == 2)
    })
    .await;
    assert_eq!(told(&this, "web"), begun);
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs() {
    let mut this = Box_::new();
    this.running("web", json!([]));
    this.until_phase("web", "Running").await;
    let before = this.fake.observe().await.unwrap().containers.remove(0);
    this.kill_agent().await;
    this.start();
    this.until("the pod is ready again", |this| this.status("web")["containerStatuses"][0]["ready"] == true).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(this.fake.observe().await.unwrap().containers, [before], "the same run");
    // What ends while no agent is there is found by the next.
    this.kill_agent().await;
    this.fake.end(&this.fake.observe().await.unwrap().containers[0].id, 7, false);
    this.start();
    this.until("it ran again", |this| this.status("web")["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(this.status("web")["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 7);
}

#[tokio::test]
async fn cut_off_the_pods_go_on_and_start_again() {
    let mut this = Box_::new();
    this.running("web", json!([]));
    this.until_phase("web", "Running").await;
    this.api.cut(true);
    // A crash while cut off: the container is started again.
    this.fake.end(&this.fake.observe().await.unwrap().containers[0].id, 1, false);
    this.until("it runs again", |this| this.fake.calls().iter().filter(|call| *call == "start web").count() == 2).await;
    // A power cut while cut off: agent, sandbox and container are gone, and come back from the node's own state.
    this.kill_agent().await;
    this.fake.lose_everything_running();
    this.start();
    this.until("it runs once more", |this| this.fake.calls().iter().filter(|call| *call == "start web").count() == 3)
        .await;
    this.api.cut(false);
    this.until("the API hears of it", |this| this.status("web")["containerStatuses"][0]["restartCount"] == 2).await;
}

#[tokio::test]
async fn what_the_api_forgot_while_cut_off_is_ended() {
    let mut this = Box_::new();
    this.running("web", json!([]));
    this.running("other", json!([]));
    this.until_phase("web", "Running").await;
    this.until_phase("other", "Running").await;
    this.kill_agent().await;
    this.api.remove("pods", "default/web");
    // And one that not even the cache knows.
    std::fs::remove_file(this.folder.path().join("data/pods/uid-other.json")).unwrap();
    this.api.remove("pods", "default/other");
    this.start();
    this.until("both are ended", |this| {
        this.fake.calls().iter().filter(|call| call.starts_with("remove-sandbox")).count() == 2
    })
    .await;
    assert!(this.fake.observe().await.unwrap().containers.is_empty());
}
