//! A whole node's network behind a small API that lists and watches: what changes there is true for packets and names
//! a moment later. The measurement of that moment is ignored by default:
//! `cargo test -p kedge-network --test real -- --ignored --nocapture`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kedge_client::{Informers, Key};
use kedge_network::{DnsPlan, NetworkSettings, NodeFacts, NodeNetwork, Resolvers};
use kedge_world::World;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

use crate::lab::{Lab, ask, cannot_run, ip, pod, serve, text};

/// Lists what it was made with; watches give what is sent later.
#[derive(Clone)]
struct SmallApi {
    lists: Arc<[(&'static str, Value)]>,
    events: broadcast::Sender<(&'static str, Value)>,
}

impl SmallApi {
    fn new(services: Vec<Value>, slices: Vec<Value>) -> Self {
        let list = |kind: &str, version: &str, items: Vec<Value>| json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items});
        let services = ("/api/v1/services", list("ServiceList", "v1", services));
        let path = "/apis/discovery.k8s.io/v1/endpointslices";
        let slices = (path, list("EndpointSliceList", "discovery.k8s.io/v1", slices));
        Self { lists: Arc::new([services, slices]), events: broadcast::Sender::new(64) }
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request.uri())) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, uri: &http::Uri) -> http::Response<UnsyncBoxBody<bytes::Bytes, Infallible>> {
        let (path, list) = self.lists.iter().find(|(path, _)| *path == uri.path()).expect("a path that it serves");
        let wanted: &'static str = path;
        let body = if uri.query().is_some_and(|query| query.contains("watch=true")) {
            let of_path = BroadcastStream::new(self.events.subscribe()).filter_map(move |event| {
                let (at, event) = event.expect("the test reads in time");
                let line = format!("{event}\n").into_bytes();
                (at == wanted).then(|| Ok::<_, Infallible>(Frame::data(bytes::Bytes::from(line))))
            });
            StreamBody::new(of_path).boxed_unsync()
        } else {
            Full::new(bytes::Bytes::from(list.to_string())).boxed_unsync()
        };
        http::Response::new(body)
    }

    fn service(&self, kind: &str, service: Value) {
        self.events.send(("/api/v1/services", json!({"type": kind, "object": service}))).expect("somebody watches");
    }

    fn slice(&self, kind: &str, slice: Value) {
        let event = json!({"type": kind, "object": slice});
        self.events.send(("/apis/discovery.k8s.io/v1/endpointslices", event)).expect("somebody watches");
    }
}

fn service(name: &str, address: &str, revision: u32) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "spec": {"clusterIP": address, "ports": [{"port": 80}]},
        "metadata": {"namespace": "default", "name": name, "resourceVersion": revision.to_string()}})
}

fn slice(name: &str, addresses: &[String], revision: u32) -> Value {
    let labels = json!({"kubernetes.io/service-name": name});
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": name, "labels": labels, "resourceVersion": revision.to_string()},
        "ports": [{"name": "", "port": 8080}], "endpoints": endpoints})
}

async fn node(lab: &Lab) -> NodeNetwork {
    let dns = DnsPlan {
        address: "10.43.0.10".parse().unwrap(),
        domain: "cluster.local".into(),
        resolvers: Resolvers::Fixed(Vec::new()),
        resolvers_namespace: lab.namespace.clone(),
    };
    let node = NodeFacts { name: "me".into(), zone: None };
    let settings = NetworkSettings { pods: lab.settings(), node, dns: Some(dns) };
    NodeNetwork::start(settings, &World::real()).await.unwrap()
}

/// Tries until it holds: the news travels through three tasks and a program.
async fn soon(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_in_the_api_reach_packets_and_names() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let network = node(&lab).await;
    let pods = network.pods().clone();
    let web = pods.setup(&pod("web"), &[]).await.unwrap();
    let _server = serve(&web.namespace, "web", "tcp", 8080);
    let api = SmallApi::new(vec![service("web", "10.43.0.80", 1)], vec![slice("web", &[ip(&web)], 1)]);
    let following = tokio::spawn(network.follow(Informers::new(api.client())));
    let client = pods.setup(&pod("client"), &[]).await.unwrap().namespace;
    let says = |host: &str| ask(&client, "tcp", host, 80);
    soon("the first lists", || says("10.43.0.80").starts_with("web ")).await;
    api.service("ADDED", service("late", "10.43.0.81", 5));
    api.slice("ADDED", slice("late", &[ip(&web)], 6));
    soon("a new Service", || says("10.43.0.81").starts_with("web ")).await;
    api.slice("MODIFIED", slice("late", &[], 7));
    soon("no endpoints", || says("10.43.0.81") == "ConnectionRefusedError").await;
    api.service("DELETED", service("web", "10.43.0.80", 8));
    soon("a Service that is gone", || says("10.43.0.80") == "ConnectionRefusedError").await;
    // The rules outlive the one who wrote them.
    api.slice("MODIFIED", slice("late", &[ip(&web)], 9));
    soon("endpoints again", || says("10.43.0.81").starts_with("web ")).await;
    following.abort();
    assert!(says("10.43.0.81").starts_with("web "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: from a changed EndpointSlice to the rule in the kernel, by the number of Services"]
async fn how_long_a_change_takes() {
    if cannot_run() {
        return;
    }
    for count in [10u32, 1_000, 10_000] {
        let lab = Lab::new().await;
        let networks = lab.networks().await;
        let facts = NodeFacts { name: "me".into(), zone: None };
        let mut proxy = kedge_network::ServiceProxy::new(lab.namespace.clone(), facts, networks.service_table());
        let mut touched = std::collections::BTreeSet::new();
        let added = |value: Value| kedge_client::Change {
            old: None,
            new: Some(Arc::new(serde_json::from_value(value).unwrap())),
        };
        for n in 0..count {
            let name = format!("s{n}");
            proxy.note_service(&added(service(&name, &format!("10.43.{}.{}", 1 + n / 250, n % 250), 1)), &mut touched);
            let change = kedge_client::Change {
                old: None,
                new: Some(Arc::new(
                    serde_json::from_value(slice(&name, &["10.42.0.9".into(), "10.42.0.8".into()], 1)).unwrap(),
                )),
            };
            proxy.note_slice(&change, &mut touched);
        }
        let start = Instant::now();
        proxy.apply(&touched).await.unwrap();
        let whole = start.elapsed();
        let mut times = Vec::new();
        for turn in 0..100u32 {
            let addresses = [format!("10.42.0.{}", 10 + turn)];
            let name = format!("s{}", turn * 7 % count);
            let change = kedge_client::Change {
                old: None,
                new: Some(Arc::new(serde_json::from_value(slice(&name, &addresses, 2)).unwrap())),
            };
            let start = Instant::now();
            let mut touched = std::collections::BTreeSet::new();
            proxy.note_slice(&change, &mut touched);
            assert_eq!(touched.iter().next(), Some(&Key::new("default", &name)));
            proxy.apply(&touched).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("{count} Services: all at once {whole:?}; one change p50 {:?}, p99 {:?}", times[49], times[98]);
        text(&lab.node(), &["nft", "delete", "table", "ip", &networks.service_table().table]);
    }
}
