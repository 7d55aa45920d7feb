//! Pods reach each other, the node and themselves; a restart adopts them; nothing is left behind.

use kedge_network::{HostPort, NetworkError, Protocol};

use crate::lab::{Lab, ask, cannot_run, ip, pod, remove_all, run, serve, text};

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
