//! Cluster DNS asked from a pod, over UDP and TCP, with a second server in the place of the world's resolvers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use kedge_client::Key;
use kedge_network::{DnsServer, DnsSettings, Namespace, Resolvers, in_namespace};
use kedge_world::SystemRandom;
use serde_json::{Value, json};

use crate::lab::{Lab, cannot_run, pod, run};

const SERVER: &str = "10.43.0.10:53";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Code and answers, over UDP.
fn ask(pod: &Path, name: &str, kind: RecordType) -> String {
    let query = question(name, kind);
    let bytes = in_namespace(pod, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(SERVER).unwrap();
        let mut buffer = [0; 2000];
        // As resolvers do: a packet may be lost, two are not.
        let attempt = || {
            socket.send(&query).unwrap();
            socket.recv(&mut buffer).ok()
        };
        let length = std::iter::repeat_with(attempt).take(2).flatten().next().expect("an answer");
        buffer[..length].to_vec()
    });
    told(&bytes.unwrap())
}

fn ask_over_tcp(pod: &Path, name: &str, kind: RecordType) -> String {
    let query = question(name, kind);
    let bytes = in_namespace(pod, || {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes(), query.as_slice()].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    });
    told(&bytes.unwrap())
}

fn told(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!(message.metadata.id, 9);
    let cut = if message.metadata.truncation { " cut" } else { "" };
    let answers: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    let code = message.metadata.response_code;
    if answers.len() > 3 { format!("{code:?} many{cut}") } else { format!("{code:?} {}{cut}", answers.join(" ")) }
}

fn server(lab: &Lab, address: &str, port: u16, domain: &str, resolvers: Vec<SocketAddr>) -> DnsServer {
    let settings = DnsSettings {
        namespace: lab.namespace.clone(),
        address: address.parse().unwrap(),
        port,
        domain: domain.into(),
        resolvers: Resolvers::Fixed(resolvers),
        resolvers_namespace: lab.namespace.clone(),
    };
    let server = DnsServer::start(settings, Arc::new(SystemRandom::default())).unwrap();
    server.zone().write().ready = true;
    server
}

fn service(server: &DnsServer, name: &str, spec: Value) {
    let service = serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}));
    server.zone().write().set_service(&Key::new("default", name), Some(&service.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_ask_for_names() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    networks.add_address("10.43.0.10".parse().unwrap()).await.unwrap();
    // The world: one name, and one with more addresses than a UDP packet takes.
    let world = server(&lab, "192.0.2.10", 5300, "example.org", Vec::new());
    service(&world, "far", json!({"clusterIP": "203.0.113.7"}));
    service(&world, "wide", json!({"clusterIP": "None"}));
    let wide: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("203.0.113.{n}")], "conditions": {}})).collect();
    let slice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "ports": [], "endpoints": wide}));
    world.zone().write().set_slice(&Key::new("default", "wide"), "1", Some(&slice.unwrap()));
    // A silent resolver first: the second one must be asked.
    let silent = lab.namespace.run(|| UdpSocket::bind("192.0.2.10:5301").unwrap()).unwrap();
    let resolvers = vec![silent.local_addr().unwrap(), "192.0.2.10:5300".parse().unwrap()];
    let cluster = server(&lab, "10.43.0.10", 53, "cluster.local", resolvers);
    service(&cluster, "web", json!({"clusterIP": "10.43.0.80"}));
    service(&cluster, "out", json!({"type": "ExternalName", "externalName": "far.default.svc.example.org"}));
    let client = networks.setup(&pod("client"), &[]).await.unwrap().namespace;

    assert_eq!(ask(&client, "web.default.svc.cluster.local.", RecordType::A), "NoError 10.43.0.80");
    assert_eq!(ask(&client, "web.default.svc.cluster.local.", RecordType::AAAA), "NoError ");
    assert_eq!(ask(&client, "none.default.svc.cluster.local.", RecordType::A), "NXDomain ");
    assert_eq!(ask_over_tcp(&client, "web.default.svc.cluster.local.", RecordType::A), "NoError 10.43.0.80");
    assert_eq!(ask(&client, "far.default.svc.example.org.", RecordType::A), "NoError 203.0.113.7");
    assert_eq!(
        ask(&client, "out.default.svc.cluster.local.", RecordType::A),
        "NoError far.default.svc.example.org. 203.0.113.7"
    );
    assert_eq!(ask(&client, "no.default.svc.example.org.", RecordType::A), "NXDomain ");
    let (wide, over_tcp) = ("wide.default.svc.example.org.", ask_over_tcp);
    assert!(ask(&client, wide, RecordType::A).ends_with("cut"));
    assert_eq!(over_tcp(&client, wide, RecordType::A), "NoError many");

    // Noise changes nothing.
    in_namespace(&client, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..200u8).for_each(|n| {
            socket.send_to(&vec![n; usize::from(n) * 3], SERVER).unwrap();
        });
        let _ = TcpStream::connect(SERVER).unwrap().write_all(&[0xff; 50]);
    })
    .unwrap();
    assert_eq!(ask(&client, "web.default.svc.cluster.local.", RecordType::A), "NoError 10.43.0.80");

    // A port that is taken is named.
    let settings = DnsSettings {
        namespace: lab.namespace.clone(),
        address: "10.43.0.10".parse().unwrap(),
        port: 53,
        domain: "x".into(),
        resolvers: Resolvers::Fixed(Vec::new()),
        resolvers_namespace: Namespace::own(),
    };
    let taken = DnsServer::start(settings, Arc::new(SystemRandom::default())).err().unwrap().to_string();
    assert!(taken.contains("10.43.0.10:53") && taken.contains("in use"), "{taken}");

    // The tool that people use, where there is one.
    if Path::new("/usr/bin/dig").exists() {
        let dig = run(&client, &["dig", "+short", "@10.43.0.10", "web.default.svc.cluster.local"]);
        assert_eq!(String::from_utf8_lossy(&dig.stdout), "10.43.0.80\n");
    } else {
        println!("not asked with dig: it is not installed");
    }
}
