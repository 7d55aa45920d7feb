//! The agent on a real containerd: one pod with an init container, a volume, a probe, hooks, a user and a message.
//!
//! Needs what `kedge-runtimes`' own test needs, and is skipped without it in the same way.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test of real files and processes")]

mod api;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::ApiDouble;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kedge_node::agent::{Agent, Parts, Settings};
use kedge_node::network::{Network, NetworkError, PodNetwork};
use kedge_runtimes::containerd::{Containerd, Settings as ContainerdSettings};
use kedge_runtimes::private::{Paths, PrivateContainerd, killall::killall};
use kedge_runtimes::suite::{IMAGE, busybox_archive};
use kedge_runtimes::{PodId, Runtime};
use kedge_world::World;
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|verb| verb == kedge_runtimes::logger::LOGGER_VERB) {
        kedge_runtimes::logger_main(&arguments[1..]).unwrap();
        return;
    }
    let installed = ["/usr/bin/containerd", "/bin/busybox"].iter().all(|path| std::path::Path::new(path).exists());
    if !nix::unistd::Uid::effective().is_root() || !installed {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "root, containerd and busybox-static");
        println!("skipped: this test needs root, containerd, runc and busybox-static");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::Builder::new().prefix("kedge-ag").tempdir().unwrap();
        let paths = Paths::below(&folder.path().join("data"), &folder.path().join("run")).unwrap();
        let case = std::panic::AssertUnwindSafe(Box::pin(a_pod_lives(&paths)));
        let done = futures::FutureExt::catch_unwind(case).await;
        killall(&paths).await.unwrap();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        println!("a_pod_lives ok");
    });
}

/// The pod shares the test's network.
struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn setup(&self, _: &PodId, _: &Pod) -> Result<PodNetwork, NetworkError> {
        Ok(PodNetwork { namespace: None, ips: vec!["127.0.0.1".into()] })
    }
    async fn teardown(&self, _: &PodId) -> Result<(), NetworkError> {
        Ok(())
    }
}

async fn until(api: &ApiDouble, what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "never: {what}\n{}", api.dump());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_pod_lives(paths: &Paths) {
    let _daemon = PrivateContainerd::ensure(paths.clone()).await.unwrap();
    let settings = ContainerdSettings {
        socket: paths.socket.clone(),
        namespace: paths.namespace(),
        data_dir: paths.data_dir.clone(),
        run_dir: paths.run_dir.clone(),
        logger: std::env::current_exe().unwrap(),
    };
    let runtime = Arc::new(Containerd::connect(settings, World::real()).await.unwrap());
    let archive = paths.run_dir.join("busybox.tar");
    std::fs::write(&archive, busybox_archive(&std::fs::read("/bin/busybox").unwrap())).unwrap();
    runtime.import_archive(&archive).await.unwrap();
    let api = ApiDouble::default();
    let log_dir = paths.run_dir.join("log");
    let parts = Parts {
        client: api.client(),
        runtime: runtime.clone(),
        network: Arc::new(NoNetwork),
        puller: None,
        world: World::real(),
    };
    let settings = Settings {
        node_name: "n1".into(),
        node_ip: tokio::sync::watch::channel("127.0.0.1".parse().unwrap()).1,
        labels: BTreeMap::new(),
        data_dir: paths.data_dir.clone(),
        run_dir: paths.run_dir.clone(),
        log_dir: log_dir.clone(),
        network_namespace: None,
        dns: kedge_node::etc::Dns::default(),
        cpus: 2,
        memory_bytes: 8 << 30,
        pods_max: 110,
        pod_pids_limit: Some(100),
        gpu: tokio::sync::watch::channel(None).1,
    };
    let agent = Agent::new(parts, settings).unwrap();
    let running = tokio::spawn(async move { Box::pin(agent.run()).await.unwrap() });

    api.put("configmaps", json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "from the map\n"}}));
    let mounts = json!([
        {"name": "c", "mountPath": "/c"},
        {"name": "e", "mountPath": "/e"},
        {"name": "e", "mountPath": "/sub", "subPath": "deep/er"},
    ]);
    let script = "cat /c/k /e/init; id -u; id -G; touch /c/x 2>/dev/null || echo read-only; echo $WHO; touch /sub/f; \
                  trap 'echo bye > /dev/termination-log; exit 0' TERM; while true; do sleep 0.1; done";
    api.put("pods", json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-web"},
        "spec": {
            "nodeName": "n1",
            "restartPolicy": "OnFailure",
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "c", "configMap": {"name": "cm", "defaultMode": 0o440}}, {"name": "e", "emptyDir": {}}],
            "initContainers": [{"name": "init", "image": IMAGE, "command": ["sh", "-c", "echo from init > /e/init"], "volumeMounts": mounts}],
            "containers": [{
                "name": "web", "image": IMAGE, "command": ["sh", "-c", script], "volumeMounts": mounts,
                "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"exec": {"command": ["cat", "/e/init"]}, "periodSeconds": 1},
                "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo started > /e/hook"]}}},
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
            }],
        },
    }));
    let started = Instant::now();
    let status = || api.get("pods", "default/web").map(|pod| pod["status"].clone()).unwrap_or_default();
    until(&api, "ready", || {
        let status = status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
    .await;
    println!("ready after {} ms, with an init container and a probe", started.elapsed().as_millis());
    let log = || std::fs::read_to_string(log_dir.join("default_web_uid-web/web/0.log")).unwrap_or_default();
    until(&api, "the log", || log().contains("web\n")).await;
    let texts: Vec<String> =
        log().lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()).collect();
    assert_eq!(texts, ["from the map", "from init", "1000", "1000 2000", "read-only", "web"]);
    let volume = paths.data_dir.join("volumes/uid-web/e");
    assert_eq!(std::fs::read_to_string(volume.join("hook")).unwrap(), "started\n");
    assert!(volume.join("deep/er/f").exists(), "the subPath is inside the volume");
    let group = kedge_runtimes::cgroup::Cgroups::of(&paths.data_dir);
    let limit = format!("/sys/fs/cgroup/memory{}/poduid-web/memory.limit_in_bytes", group.parent());
    if let Ok(limit) = std::fs::read_to_string(&limit) {
        assert_eq!(limit.trim(), "9223372036854771712", "the init container has no limit, so the pod has none");
    }
    // What a container says at its end is told before the pod is gone.
    let id = runtime.observe().await.unwrap().containers.into_iter().find(|c| c.name == "web").unwrap().id;
    runtime.kill_container(&id, 15).await.unwrap();
    until(&api, "its end", || status()["phase"] == "Succeeded").await;
    let end: Value = status()["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((end["reason"].as_str(), end["message"].as_str()), (Some("Completed"), Some("bye\n")));
    api.delete_gracefully("default/web", 1);
    until(&api, "gone", || api.get("pods", "default/web").is_none()).await;
    assert!(!volume.exists() && runtime.observe().await.unwrap().sandboxes.is_empty());
    running.abort();
}
