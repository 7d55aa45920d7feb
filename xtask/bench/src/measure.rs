//! The measurements, the same for everybody.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::Client;
use crate::cluster::{Cluster, IMAGE, Maker, NODE, Parts};
use crate::machine::{Usage, median, usage};

/// Starts from nothing, of which the median counts.
const STARTS: usize = 5;
/// Connections that a load comes over.
const CONNECTIONS: usize = 8;
/// How long objects are read.
const GET_TIME: Duration = Duration::from_secs(8);
/// How often all pods are listed.
const LISTS: usize = 5;
/// Before an idle cluster is watched: what starting left to do gets done.
const SETTLE: Duration = Duration::from_secs(15);
/// Bytes of a pod's annotations, which make it as large as pods in use are.
const PADDING: usize = 7500;

/// How much is measured.
pub(crate) struct Plan {
    pub(crate) idle_seconds: u64,
    pub(crate) pods: usize,
    pub(crate) objects: usize,
}

/// What was found.
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    /// Start of the first process to the API's readiness, over empty folders.
    pub(crate) api_ready: Duration,
    /// Start of the first process to the first pod running, importing its image included.
    pub(crate) first_pod: Duration,
    /// Pss of all processes of an idle node, in bytes; the rest of the struct is over the seconds watched.
    pub(crate) idle: Usage,
    /// Creation of a pod to its status saying Running.
    pub(crate) pod_start: Duration,
    /// Of ten pods, nine are as fast.
    pub(crate) pod_start_p90: Duration,
    /// Reads of one object a second, and a second of processor of API and store.
    pub(crate) gets: f64,
    pub(crate) gets_per_core: f64,
    /// Creations of pods a second while the objects for the lists were made, and per second of processor.
    pub(crate) creates: f64,
    pub(crate) creates_per_core: f64,
    /// One list of all of them.
    pub(crate) list: Duration,
    pub(crate) list_bytes: u64,
    /// Pss of API and store after the lists, in bytes.
    pub(crate) memory_after_lists: u64,
}

/// Measures everything, on clusters that are made one after the other.
pub(crate) async fn all(plan: &Plan, maker: &impl Maker) -> Result<Figures> {
    let name = maker.name();
    eprintln!("{name}: starts");
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let cluster = maker.start(Parts::Api).await?;
        starts.push(cluster.api_ready - cluster.begun);
    }
    eprintln!("{name}: API under load");
    let cluster = maker.start(Parts::Api).await?;
    let (gets, gets_per_core) = read_one(&cluster).await.context("reading one object")?;
    let (creates, creates_per_core) = create_many(&cluster, plan.objects).await.context("creating pods")?;
    let (list, list_bytes) = list_all(&cluster).await.context("listing pods")?;
    let memory_after_lists = usage(&cluster.api).memory;
    drop(cluster);
    eprintln!("{name}: a node");
    let cluster = maker.start(Parts::Node).await?;
    let first_pod = {
        start_pod(&cluster.client, "first").await.context("the first pod")?;
        cluster.begun.elapsed()
    };
    delete_pod(&cluster.client, "first").await?;
    tokio::time::sleep(SETTLE).await;
    eprintln!("{name}: idle for {} s", plan.idle_seconds);
    let before = usage(&cluster.all);
    tokio::time::sleep(Duration::from_secs(plan.idle_seconds)).await;
    let after = usage(&cluster.all);
    let idle = Usage {
        memory: after.memory,
        processor: after.processor - before.processor,
        written: after.written - before.written,
        switches: after.switches - before.switches,
    };
    eprintln!("{name}: {} pods, one after the other", plan.pods);
    let mut times = Vec::new();
    for index in 0..plan.pods {
        let pod = format!("pod-{index}");
        times.push(start_pod(&cluster.client, &pod).await.with_context(|| pod.clone())?);
        delete_pod(&cluster.client, &pod).await?;
    }
    Ok(Figures {
        name,
        api_ready: median(&mut starts),
        first_pod,
        idle,
        pod_start: median(&mut times),
        pod_start_p90: times[times.len() * 9 / 10],
        gets,
        gets_per_core,
        creates,
        creates_per_core,
        list,
        list_bytes,
        memory_after_lists,
    })
}

/// Whether a node says that it is ready.
pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

async fn read_one(cluster: &Cluster) -> Result<(f64, f64)> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" }, "data": { "text": "x".repeat(2048) },
    });
    cluster.client.call(Method::POST, "/api/v1/namespaces/default/configmaps", &object).await?;
    let before = usage(&cluster.api);
    let begin = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = cluster.client.connect().await?;
        workers.push(tokio::spawn(async move {
            let mut count = 0_u64;
            while begin.elapsed() < GET_TIME {
                connection.read("/api/v1/namespaces/default/configmaps/one").await?;
                count += 1;
            }
            anyhow::Ok(count)
        }));
    }
    let mut count = 0;
    for worker in workers {
        count += worker.await??;
    }
    Ok(rates(cluster, count, begin, before))
}

async fn create_many(cluster: &Cluster, objects: usize) -> Result<(f64, f64)> {
    let before = usage(&cluster.api);
    let begin = Instant::now();
    let mut workers = Vec::new();
    for worker in 0..CONNECTIONS {
        let mut connection = cluster.client.connect().await?;
        workers.push(tokio::spawn(async move {
            for index in (worker..objects).step_by(CONNECTIONS) {
                let mut pod = pod(&format!("stored-{index}"));
                // Nobody is to run it: it is stored, and that is all.
                pod["spec"]["schedulerName"] = json!("nobody");
                pod["spec"]["serviceAccountName"] = json!("default");
                pod["spec"]["automountServiceAccountToken"] = json!(false);
                pod["metadata"]["annotations"] = json!({ "padding": "x".repeat(PADDING) });
                let body = Bytes::from(pod.to_string());
                let sent = connection.send(Method::POST, "/api/v1/namespaces/default/pods", body).await?;
                anyhow::ensure!(sent.0 == StatusCode::CREATED, "{}", String::from_utf8_lossy(&sent.1));
            }
            anyhow::Ok(())
        }));
    }
    ensure_account(&cluster.client).await?;
    for worker in workers {
        worker.await??;
    }
    Ok(rates(cluster, objects as u64, begin, before))
}

/// An API server alone has nobody who makes the account that admission asks for.
async fn ensure_account(client: &Client) -> Result<()> {
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let sent = client.connect().await?.send(Method::POST, path, Bytes::from(account.to_string())).await?;
    anyhow::ensure!(matches!(sent.0, StatusCode::CREATED | StatusCode::CONFLICT), "{}", sent.0);
    Ok(())
}

async fn list_all(cluster: &Cluster) -> Result<(Duration, u64)> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..LISTS {
        let mut connection = cluster.client.connect().await?;
        let begin = Instant::now();
        bytes = connection.read("/api/v1/pods").await?;
        times.push(begin.elapsed());
    }
    Ok((median(&mut times), bytes))
}

/// How often a second, and a second of the API's and the store's processor, something was done.
fn rates(cluster: &Cluster, count: u64, begin: Instant, before: Usage) -> (f64, f64) {
    let seconds = begin.elapsed().as_secs_f64();
    let processor = usage(&cluster.api).processor - before.processor;
    (count as f64 / seconds, count as f64 / processor.max(0.01))
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0, "nodeSelector": { "kubernetes.io/hostname": NODE },
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["/bin/busybox", "sleep", "3600"],
            }],
        },
    })
}

/// Creates a pod and waits until it runs; how long that took.
async fn start_pod(client: &Client, name: &str) -> Result<Duration> {
    let mut connection = client.connect().await?;
    let path =
        format!("/api/v1/namespaces/default/pods?watch=1&fieldSelector=metadata.name%3D{name}&timeoutSeconds=60");
    let begin = Instant::now();
    client.call(Method::POST, "/api/v1/namespaces/default/pods", &pod(name)).await?;
    let running = connection.watch(&path, |event| event["object"]["status"]["phase"] == "Running").await;
    let took = begin.elapsed();
    if let Err(error) = running {
        let found = client.call(Method::GET, &format!("/api/v1/namespaces/default/pods/{name}"), &Value::Null).await?;
        return Err(error.context(found["status"].to_string()));
    }
    Ok(took)
}

async fn delete_pod(client: &Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    client.call(Method::DELETE, &path, &Value::Null).await?;
    let begin = Instant::now();
    while client.call(Method::GET, &path, &Value::Null).await.is_ok() {
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "{name} does not go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
