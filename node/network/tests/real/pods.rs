//! Pods reach each other, the node and themselves; a restart adopts them; nothing is left behind.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::future::join_all;
use kedge_network::{HostPort, NamespaceNet, NetworkError, Protocol};
use kedge_world::Net;
use tokio::io::AsyncReadExt;

use crate::lab::{Lab, ask, ask_from, cannot_run, ip, pod, remove_all, run, serve, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_each_other_and_a_restart_adopts_them() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    let port = |host_port| HostPort { host_ip: None, protocol: Protocol::Tcp, host_port, container_port: 80 };
    let web = networks.setup(&pod("web"), &[port(8080)]).await.unwrap();
    let client = networks.setup(&pod("client"), &[]).await.unwrap();
    let server = serve(&web.namespace, "web", "tcp", 80);

    assert_eq!(ask(&client.namespace, "tcp", &ip(&web), 80), format!("web {}", ip(&client)));
    assert_eq!(ask(&lab.node(), "tcp", &ip(&web), 80), "web 10.42.0.1");
    assert_eq!(ask(&web.namespace, "tcp", "127.0.0.1", 80), "web 127.0.0.1", "loopback is up");
    // The host port: from another pod, from the node, and from the pod behind it.
    assert_eq!(ask(&client.namespace, "tcp", "192.0.2.10", 8080), format!("web {}", ip(&client)));
    assert_eq!(ask(&lab.node(), "tcp", "192.0.2.10", 8080), "web 192.0.2.10");
    assert_eq!(ask(&web.namespace, "tcp", "192.0.2.10", 8080), "web 10.42.0.1");
    let taken = networks.setup(&pod("greedy"), &[port(8080)]).await;
    assert!(matches!(&taken, Err(NetworkError::HostPortTaken { pod, .. }) if pod == "default/web"), "{taken:?}");
    assert!(networks.get("uid-greedy").is_none(), "what was refused leaves nothing behind");

    // Asking again changes nothing; neither does a restart.
    assert_eq!(networks.setup(&pod("web"), &[port(8080)]).await.unwrap(), web);
    drop(networks);
    let networks = lab.networks().await;
    let adopted = networks.adopted().await.unwrap();
    assert_eq!(
        adopted.iter().map(|a| (a.pod.name.as_str(), a.intact)).collect::<Vec<_>>(),
        [("client", true), ("web", true)]
    );
    assert_eq!(ask(&client.namespace, "tcp", "192.0.2.10", 8080), format!("web {}", ip(&client)));

    // What a power cut leaves: the lease without the namespace.
    drop(server);
    text(&lab.node(), &["umount", "-l", client.namespace.to_str().unwrap()]);
    let lost = networks.adopted().await.unwrap();
    assert!(lost.iter().any(|a| a.pod.name == "client" && !a.intact), "{lost:?}");
    assert_eq!(networks.setup(&pod("client"), &[]).await.unwrap().ips, client.ips, "it keeps its address");

    networks.teardown("uid-web").await.unwrap();
    networks.teardown("uid-web").await.unwrap();
    assert!(!web.namespace.exists());
    assert_eq!(ask(&client.namespace, "tcp", "192.0.2.10", 8080), "ConnectionRefusedError");
    // A crash between the steps of teardown: the link is there, the lease is not.
    std::fs::remove_file(lab.settings().data_dir.join("node/network/leases").join(ip(&client))).unwrap();
    drop(networks);
    drop(lab.networks().await);
    let links = text(&lab.node(), &["ip", "-o", "link"]);
    assert_eq!(links.matches("@").count(), 0, "{links}");

    remove_all(&lab).await;
    remove_all(&lab).await;
    let links = text(&lab.node(), &["ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 2, "loopback and the node's own: {links}");
    assert_eq!(text(&lab.node(), &["nft", "list", "ruleset"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_open_where_the_pods_are() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    let web = networks.setup(&pod("web"), &[]).await.unwrap();
    let _server = serve(&web.namespace, "web", "tcp", 80);
    let net = NamespaceNet::new(lab.namespace.clone());
    let mut answer = String::new();
    net.connect(&format!("{}:80", ip(&web))).await.unwrap().read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "web 10.42.0.1");
    let refused = net.connect(&format!("{}:81", ip(&web))).await.err().unwrap();
    assert!(
        refused.to_string().contains(":81") && refused.kind() == std::io::ErrorKind::ConnectionRefused,
        "{refused}"
    );
    // A listener on the node's address, as the API has one for pods.
    let listener = net.listen("192.0.2.10:6443").await.unwrap();
    let accepted = tokio::spawn(async move { listener.accept().await.unwrap().1 });
    let said = tokio::task::spawn_blocking(move || ask(&web.namespace, "tcp", "192.0.2.10", 6443));
    assert!(accepted.await.unwrap().starts_with("10.42.0.2:"));
    assert_eq!(said.await.unwrap(), "", "closed without a word");
    assert!(net.listen("203.0.113.1:1").await.is_err(), "not the node's address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_connections_follow_host_ports() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    let client = networks.setup(&pod("client"), &[]).await.unwrap();
    let port = [HostPort { host_ip: None, protocol: Protocol::Udp, host_port: 5300, container_port: 53 }];
    let says = || ask_from(&client.namespace, "192.0.2.10", 5300, 4053);
    // The connection begins before the port is open, and is the same one all along.
    assert_eq!(says(), "ConnectionRefusedError");
    let one = networks.setup(&pod("one"), &port).await.unwrap();
    let server = serve(&one.namespace, "one", "udp", 53);
    assert_eq!(says(), format!("one {}", ip(&client)));
    drop(server);
    networks.teardown("uid-one").await.unwrap();
    let two = networks.setup(&pod("two"), &port).await.unwrap();
    let _server = serve(&two.namespace, "two", "udp", 53);
    assert_eq!(says(), format!("two {}", ip(&client)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_come_and_go_at_once() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let networks = lab.networks().await;
    let names: Vec<_> = (0..40).map(|n| pod(&format!("p{n}"))).collect();
    let start = Instant::now();
    let made = join_all(names.iter().map(|pod| networks.setup(pod, &[]))).await;
    let together = start.elapsed() / 40;
    let addresses: BTreeSet<_> = made.into_iter().map(|network| network.unwrap().ips).collect();
    assert_eq!(addresses.len(), 40);
    assert!(networks.adopted().await.unwrap().iter().all(|adopted| adopted.intact));
    let start = Instant::now();
    networks.setup(&pod("alone"), &[]).await.unwrap();
    let alone = start.elapsed();
    let start = Instant::now();
    for result in join_all(names.iter().map(|pod| networks.teardown(&pod.uid))).await {
        result.unwrap();
    }
    println!("setup alone {alone:?}, each of 40 together {together:?}; teardown each {:?}", start.elapsed() / 40);
    assert_eq!(networks.adopted().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_in_one_namespace_have_different_names() {
    if cannot_run() {
        return;
    }
    let lab = Lab::new().await;
    let one = lab.networks().await;
    let mut settings = lab.settings();
    settings.data_dir = lab.folder.path().join("other");
    settings.run_dir = lab.folder.path().join("other-run");
    settings.pod_cidr = "10.42.1.0/24".parse().unwrap();
    let other = kedge_network::PodNetworks::open(settings, std::sync::Arc::new(kedge_world::RealDisk)).await.unwrap();
    let a = one.setup(&pod("a"), &[]).await.unwrap();
    let b = other.setup(&pod("b"), &[]).await.unwrap();
    let _server = serve(&b.namespace, "b", "tcp", 80);
    assert_eq!(ask(&a.namespace, "tcp", &ip(&b), 80), format!("b {}", ip(&a)));
    other.teardown("uid-b").await.unwrap();
    assert!(run(&a.namespace, &["ip", "link", "show", "eth0"]).status.success());
}
