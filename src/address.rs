//! The address of this machine's node, which may come, change and go while the server runs: a box starts with its cable
//! out, or before anybody gave it an address. What was made with an address follows it from here: the API's second
//! listener, and where the cluster says that the API is.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kedge_access::{Authority, Names};
use kedge_api::{Api, advertise, serve};
use kedge_network::{Ipv4Cidr, Namespace, OwnAddress, own_address};
use kedge_world::Net;
use tokio::sync::watch;

use crate::settings::ServerFlags;

/// The node's address in a network namespace of its own, where nothing else has one.
const OWN_NAMESPACE_IP: Ipv4Addr = Ipv4Addr::new(10, 41, 0, 1);
/// The part of the pods' range that one node takes (`--node-cidr-mask-size`); this node has the first.
const NODE_CIDR_BITS: u8 = 24;
/// After a listener could not be opened.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The pods' range of this node.
pub(crate) fn pod_cidr(flags: &ServerFlags) -> Result<Ipv4Cidr> {
    let first = cluster_cidr(flags)?.nth(0).context("--cluster-cidr is empty")?;
    Ipv4Cidr::new(first, NODE_CIDR_BITS).context("--cluster-cidr")
}

/// All nodes' pods.
pub(crate) fn cluster_cidr(flags: &ServerFlags) -> Result<Ipv4Cidr> {
    flags.cluster_cidr.parse().context("--cluster-cidr")
}

/// The node's address from now on.
pub(crate) async fn follow(flags: &ServerFlags) -> Result<watch::Receiver<IpAddr>> {
    if flags.network_namespace.is_some() {
        return Ok(own_address::fixed(flags.node_ip.unwrap_or(OWN_NAMESPACE_IP)));
    }
    let own = OwnAddress {
        given: flags.node_ip,
        cluster: vec![cluster_cidr(flags)?, flags.service_cidr.parse().context("--service-cidr")?],
        fallback: pod_cidr(flags)?.nth(1).context("--cluster-cidr has no room for a gateway")?,
    };
    Ok(own.follow(Namespace::own()).await)
}

/// The names of the API server inside the cluster, which never change.
pub(crate) fn api_names(flags: &ServerFlags) -> Result<Vec<String>> {
    let services: Ipv4Cidr = flags.service_cidr.parse().context("--service-cidr")?;
    let service = services.nth(1).context("--service-cidr has no room for a Service")?;
    Ok(vec![service.to_string(), format!("kubernetes.default.svc.{}", flags.cluster_domain)])
}

/// Keeps the node's address among the names of the API server's certificate.
pub(crate) async fn certify(authority: Arc<Authority>, mut address: watch::Receiver<IpAddr>) {
    loop {
        let now = address.borrow_and_update().to_string();
        authority.also_serve_as(Names(vec![now]));
        if address.changed().await.is_err() {
            return;
        }
    }
}

/// Serves the API at the node's address, where pods reach it, and tells the cluster so; never returns.
pub(crate) async fn serve_where_the_node_is(
    api: Api,
    tls: Arc<rustls::ServerConfig>,
    net: Arc<dyn Net>,
    mut address: watch::Receiver<IpAddr>,
    port: u16,
) {
    loop {
        let ip = *address.borrow_and_update();
        let opened = async {
            let listener = net.listen(&std::net::SocketAddr::new(ip, port).to_string()).await?;
            advertise(&api, ip, port).await?;
            anyhow::Ok(listener)
        };
        let serving = async {
            match opened.await {
                Ok(listener) => serve(api.clone(), listener, tls.clone(), std::future::pending()).await,
                Err(error) => {
                    tracing::warn!("the API is not served at {ip}: {error:#}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            Ok(()) = address.changed() => {}
        }
    }
}
