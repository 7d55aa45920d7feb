//! Services in the kernel: what a packet meets, from pods, from the node, from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::Change;
use kedge_network::{NodeFacts, ServiceProxy};
use serde_json::{Value, json};

use crate::lab::{Lab, ask, ask_from, cannot_run, ip, pod, serve, text};

struct Cluster {
    proxy: ServiceProxy,
    slices: BTreeMap<String, Arc<EndpointSlice>>,
}

impl Cluster {
    async fn service(&mut self, name: &str, spec: Value) {
        let value = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        let service: Service = serde_json::from_value(value).unwrap();
        let mut touched = BTreeSet::new();
        self.proxy.note_service(&Change { old: None, new: Some(Arc::new(service)) }, &mut touched);
        self.proxy.apply(&touched).await.unwrap();
    }

    /// Endpoints of a Service: addresses with their port; all on this node.
    async fn endpoints(&mut self, name: &str, protocol: &str, port: u16, addresses: &[String]) {
        let list: Vec<_> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "nodeName": "me", "conditions": {"ready": true}}))
            .collect();
        let value = json!({"addressType": "IPv4", "endpoints": list,
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "", "protocol": protocol, "port": port}]});
        let new: Arc<EndpointSlice> = Arc::new(serde_json::from_value(value).unwrap());
        let old = self.slices.insert(name.to_owned(), new.clone());
        let mut touched = BTreeSet::new();
        self.proxy.note_slice(&Change { old, new: Some(new) }, &mut touched);
        self.proxy.apply(&touched).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_lead_to_pods() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    let a = networks.setup(&pod("a"), &[]).await.unwrap();
    let b = networks.setup(&pod("b"), &[]).await.unwrap();
    let client = networks.setup(&pod("client"), &[]).await.unwrap();
    let _servers = [("a", &a), ("b", &b)]
        .map(|(name, at)| [serve(&at.namespace, name, "tcp", 8080), serve(&at.namespace, name, "udp", 5353)]);
    let node = NodeFacts { name: "me".into(), zone: None };
    let proxy = ServiceProxy::new(lab.namespace.clone(), node, networks.service_table());
    let mut cluster = Cluster { proxy, slices: BTreeMap::new() };
    let both = [ip(&a), ip(&b)];
    let me = ip(&client);

    // Nothing behind it yet: refused at once, not a timeout; an address nobody has: the same.
    let web =
        json!({"clusterIP": "10.43.0.80", "externalIPs": ["198.51.100.9"], "ports": [{"port": 80, "nodePort": 30080}]});
    cluster.service("web", web).await;
    for (host, port) in [("10.43.0.80", 80), ("10.43.0.99", 80), ("192.0.2.10", 30080), ("198.51.100.9", 80)] {
        assert_eq!(ask(&client.namespace, "tcp", host, port), "ConnectionRefusedError", "{host}");
    }
    assert_eq!(ask(&lab.node(), "tcp", "10.43.0.80", 80), "ConnectionRefusedError");

    cluster.endpoints("web", "TCP", 8080, &both).await;
    let answers: BTreeSet<_> = (0..40).map(|_| ask(&client.namespace, "tcp", "10.43.0.80", 80)).collect();
    assert_eq!(answers, BTreeSet::from([format!("a {me}"), format!("b {me}")]), "both, and they see the pod");
    assert_eq!(&ask(&lab.node(), "tcp", "10.43.0.80", 80)[1..], " 10.42.0.1", "from the node");
    for (host, port) in [("192.0.2.10", 30080), ("198.51.100.9", 80)] {
        assert_eq!(&ask(&client.namespace, "tcp", host, port)[1..], " 10.42.0.1", "{host}: masqueraded");
        assert_eq!(&ask(&lab.node(), "tcp", host, port)[1..], " 10.42.0.1", "{host}");
    }
    // To itself: the sender must be another, or the answer would never leave the pod.
    cluster.endpoints("web", "TCP", 8080, &both[..1]).await;
    assert_eq!(ask(&a.namespace, "tcp", "10.43.0.80", 80), "a 10.42.0.1");
    assert_eq!(ask(&client.namespace, "tcp", "10.43.0.80", 80), format!("a {me}"), "the change is in force");

    // Affinity: one backend for one client, also after the other backends change.
    let sticky = json!({"clusterIP": "10.43.0.81", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1000}}});
    cluster.service("sticky", sticky).await;
    cluster.endpoints("sticky", "TCP", 8080, &both).await;
    let first = ask(&client.namespace, "tcp", "10.43.0.81", 80);
    assert!((0..20).all(|_| ask(&client.namespace, "tcp", "10.43.0.81", 80) == first));
    let kept = if first.starts_with('a') { &both[..1] } else { &both[1..] };
    cluster.endpoints("sticky", "TCP", 8080, kept).await;
    cluster.endpoints("sticky", "TCP", 8080, &both).await;
    assert!((0..20).all(|_| ask(&client.namespace, "tcp", "10.43.0.81", 80) == first));

    // UDP: the same connection moves when its backend goes.
    cluster.service("dns", json!({"clusterIP": "10.43.0.53", "ports": [{"port": 53, "protocol": "UDP"}]})).await;
    cluster.endpoints("dns", "UDP", 5353, &both[..1]).await;
    assert_eq!(ask_from(&client.namespace, "10.43.0.53", 53, 4053), format!("a {me}"));
    cluster.endpoints("dns", "UDP", 5353, &both[1..]).await;
    assert_eq!(ask_from(&client.namespace, "10.43.0.53", 53, 4053), format!("b {me}"));

    // Source kept with the local policy.
    let local = json!({"clusterIP": "10.43.0.82", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30082}]});
    cluster.service("local", local).await;
    cluster.endpoints("local", "TCP", 8080, &both[..1]).await;
    assert_eq!(ask(&client.namespace, "tcp", "192.0.2.10", 30082), format!("a {me}"));

    // Somebody flushes the table: the next change writes it anew.
    let table = networks.service_table().table;
    text(&lab.node(), &["nft", "delete", "table", "ip", &table]);
    cluster.endpoints("web", "TCP", 8080, &both[1..]).await;
    assert_eq!(ask(&client.namespace, "tcp", "10.43.0.80", 80), format!("b {me}"));
    assert_eq!(ask(&client.namespace, "tcp", "10.43.0.81", 80).split(' ').next_back(), Some(me.as_str()));

    // Gone: refused again.
    let mut touched = BTreeSet::new();
    let gone: Service = serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "web"}})).unwrap();
    cluster.proxy.note_service(&Change { old: Some(Arc::new(gone)), new: None }, &mut touched);
    cluster.proxy.apply(&touched).await.unwrap();
    assert_eq!(ask(&client.namespace, "tcp", "10.43.0.80", 80), "ConnectionRefusedError");
    assert!(!text(&lab.node(), &["nft", "list", "table", "ip", &table]).contains("default/web/"), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_outside_the_cluster_reach_node_ports() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let outside = Lab::new().await;
    // A wire between the node and a machine that is no part of it.
    let wire = ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &outside.name];
    text(&lab.node(), &wire);
    for (at, address) in [(lab.node(), "203.0.113.1/24"), (outside.node(), "203.0.113.2/24")] {
        text(&at, &["ip", "link", "set", "wire", "up"]);
        text(&at, &["ip", "addr", "add", address, "dev", "wire"]);
    }
    let networks = lab.networks().await;
    let a = networks.setup(&pod("a"), &[]).await.unwrap();
    let _server = serve(&a.namespace, "a", "tcp", 8080);
    let node = NodeFacts { name: "me".into(), zone: None };
    let proxy = ServiceProxy::new(lab.namespace.clone(), node, networks.service_table());
    let mut cluster = Cluster { proxy, slices: BTreeMap::new() };
    for (name, last, policy) in [("cluster", 1, "Cluster"), ("local", 2, "Local")] {
        let port = json!([{"port": 80, "nodePort": 30000 + last}]);
        let spec = json!({"clusterIP": format!("10.43.0.{last}"), "externalTrafficPolicy": policy, "ports": port});
        cluster.service(name, spec).await;
        cluster.endpoints(name, "TCP", 8080, &[ip(&a)]).await;
    }
    assert_eq!(ask(&outside.node(), "tcp", "203.0.113.1", 30001), "a 10.42.0.1");
    assert_eq!(ask(&outside.node(), "tcp", "203.0.113.1", 30002), "a 203.0.113.2", "the sender is kept");
    cluster.endpoints("local", "TCP", 8080, &[]).await;
    assert_eq!(ask(&outside.node(), "tcp", "203.0.113.1", 30002), "ConnectionRefusedError");
    // The pod's own packets leave under the node's address.
    let _listener = serve(&outside.node(), "world", "tcp", 9000);
    assert_eq!(ask(&a.namespace, "tcp", "203.0.113.2", 9000), "world 203.0.113.1");
}
