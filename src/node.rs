//! The node of this machine: network, private containerd and agent, put together beside the control plane.
//!
//! Nothing here stands on the way to a ready API: the node comes up on its own, tries again what failed, and pods that
//! ran before the server started go on running meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kedge_api::Api;
use kedge_client::Informers;
use kedge_network::{DnsPlan, NamespaceNet, NetworkSettings, NodeFacts, NodeNetwork, Resolvers};
use kedge_network::{Ipv4Cidr, Namespace, PodNetworks, PodRef, PodSettings, host_ports_of};
use kedge_node::agent::{Agent, Parts, Puller, RegistryLogin, Settings};
use kedge_node::etc::Dns;
use kedge_node::network::{Network, NetworkError, PodNetwork};
use kedge_node::streams::Streams;
use kedge_runtimes::containerd::{self, Containerd};
use kedge_runtimes::private::{Paths, PrivateContainerd};
use kedge_runtimes::{Image, Layout, PodId, Runtime};
use kedge_world::World;
use tokio::sync::watch;

use crate::settings::ServerFlags;
use crate::{address, gpu};

/// Upstream's `maxPods`.
const PODS_MAX: u32 = 110;
/// The machine's own resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Between attempts to bring the node up.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What the node needs of the server.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) api: Api,
    pub(crate) client: kube::Client,
    /// The client of what makes Services work, which may read no more than that.
    pub(crate) proxy_client: kube::Client,
    pub(crate) world: World,
    /// TLS of the API's second listener, which pods reach.
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) name: String,
    pub(crate) folders: Arc<Layout>,
    pub(crate) flags: ServerFlags,
    /// The node's address.
    pub(crate) ip: watch::Receiver<IpAddr>,
    /// Where the container runtime is put once it answers.
    pub(crate) runtime: RuntimeSlot,
}

/// The node's container runtime, once there is one, for others of this process.
#[derive(Clone, Default)]
pub(crate) struct RuntimeSlot(Arc<watch::Sender<Option<Arc<dyn Runtime>>>>);

impl RuntimeSlot {
    /// The runtime, if the node is up within that time.
    pub(crate) async fn within(&self, patience: Duration) -> Option<Arc<dyn Runtime>> {
        let mut news = self.0.subscribe();
        let there = tokio::time::timeout(patience, news.wait_for(Option::is_some)).await;
        there.ok()?.ok()?.clone()
    }
}

/// The name of this machine's node.
pub(crate) fn name(flags: &ServerFlags) -> Result<String> {
    if let Some(name) = &flags.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host name; give one with --node-name")?;
    let name = name.into_string().ok().context("the host name is not UTF-8; give one with --node-name")?;
    Ok(name.to_lowercase())
}

/// Runs the node for ever; whatever ends it is told, and it begins again.
pub(crate) async fn run(node: Node) {
    loop {
        match Box::pin(attempt(&node)).await {
            Ok(()) => tracing::warn!("containerd has ended; starting it again, pods go on"),
            Err(error) => tracing::warn!("the node is not up: {error:#}"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn attempt(node: &Node) -> Result<()> {
    let Layout { data_dir, run_dir } = &*node.folders;
    let namespace = network_namespace(node).await?;
    let paths = Paths::below(data_dir, run_dir)?;
    let containerd_settings = containerd::Settings {
        socket: paths.socket.clone(),
        namespace: paths.namespace(),
        data_dir: data_dir.clone(),
        run_dir: run_dir.clone(),
        logger: std::env::current_exe().context("cannot tell where this program is")?,
    };
    let mut daemon = PrivateContainerd::ensure(paths).await?;
    let runtime: Arc<dyn Runtime> = Arc::new(Containerd::connect(containerd_settings, node.world.clone()).await?);
    node.runtime.0.send_replace(Some(runtime.clone()));
    let pods = PodSettings {
        data_dir: data_dir.clone(),
        run_dir: run_dir.clone(),
        namespace: namespace.clone(),
        pod_cidr: address::pod_cidr(&node.flags)?,
        cluster_cidr: address::cluster_cidr(&node.flags)?,
        service_cidr: node.flags.service_cidr.parse().context("--service-cidr")?,
        mtu: None,
    };
    let network = NodeNetwork::start(network_settings(node, pods)?, &node.world).await?;
    let connected = Arc::new(Connected(network.pods().clone()));
    let following = network.follow(Informers::new(node.proxy_client.clone()));
    // What the agent and the API open must lie where pods are: their probes, and the way to the API.
    let world = World { net: Arc::new(NamespaceNet::new(namespace.clone())), ..node.world.clone() };
    node.api.attach_network(world.net.clone());
    let (api, port) = (node.api.clone(), node.flags.https_listen_port);
    let serving = address::serve_where_the_node_is(api, node.tls.clone(), world.net.clone(), node.ip.clone(), port);
    node.api.attach_node(&node.name, Arc::new(Streams::new(runtime.clone(), node.world.clone())));
    let puller = kedge_images::Puller::new(
        kedge_fetch::Fetcher::new(node.world.net.clone()),
        node.folders.pulls(),
        runtime.clone(),
    );
    puller.clean(node.world.clock.wall())?;
    let puller: Arc<dyn Puller> = Arc::new(Registries(puller));
    let parts = Parts { client: node.client.clone(), runtime, network: connected, puller: Some(puller), world };
    let agent = Agent::new(parts, settings(node, &namespace)?)?;
    let node_ip = *node.ip.borrow();
    tracing::info!(node = node.name, %node_ip, containerd = daemon.pid(), adopted = daemon.was_adopted(), "the node is up");
    tokio::select! {
        ended = agent.run() => ended.context("the agent ended"),
        () = following => Ok(()),
        () = serving => Ok(()),
        ended = daemon.ended() => ended.context("cannot watch containerd"),
    }
}

fn network_settings(node: &Node, pods: PodSettings) -> Result<NetworkSettings> {
    let dns = DnsPlan {
        address: dns_address(node)?,
        domain: node.flags.cluster_domain.clone(),
        resolvers: Resolvers::File(RESOLV_CONF.into()),
        resolvers_namespace: Namespace::own(),
    };
    let facts = NodeFacts { name: node.name.clone(), zone: None };
    Ok(NetworkSettings { pods, node: facts, dns: Some(dns) })
}

/// The tenth address of the Service range, as k3s has it, unless one is given.
fn dns_address(node: &Node) -> Result<Ipv4Addr> {
    if let Some(address) = node.flags.cluster_dns {
        return Ok(address);
    }
    let services: Ipv4Cidr = node.flags.service_cidr.parse().context("--service-cidr")?;
    services.nth(10).context("--service-cidr has no room for the cluster's DNS")
}

async fn network_namespace(node: &Node) -> Result<Namespace> {
    let ip = *node.ip.borrow();
    match (&node.flags.network_namespace, ip) {
        (Some(name), IpAddr::V4(ip)) => Ok(kedge_network::node::open(name, ip).await?),
        (Some(_), IpAddr::V6(_)) => bail!("{ip}: the node's network has IPv4 addresses only"),
        (None, _) => Ok(Namespace::own()),
    }
}

fn settings(node: &Node, namespace: &Namespace) -> Result<Settings> {
    Ok(Settings {
        node_name: node.name.clone(),
        node_ip: node.ip.clone(),
        labels: BTreeMap::new(),
        data_dir: node.folders.node(),
        run_dir: node.folders.run_dir.clone(),
        log_dir: node.folders.logs(),
        network_namespace: namespace.path().map(PathBuf::from),
        dns: Dns {
            server: Some(dns_address(node)?.to_string()),
            domain: node.flags.cluster_domain.clone(),
            host_file: Some(RESOLV_CONF.into()),
        },
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: read_stream("/proc/meminfo")
            .as_deref()
            .and_then(memory_bytes)
            .context("cannot read MemTotal in /proc/meminfo")?,
        pods_max: PODS_MAX,
        pod_pids_limit: None,
        gpu: gpu::look(),
    })
}

/// Files that have no length of their own are read to their end.
#[allow(clippy::disallowed_methods, reason = "kernel files have no length, which the Disk seam needs")]
fn read_stream(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn memory_bytes(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: i64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The registries as the agent knows them. They are reached from the machine's own network.
struct Registries(kedge_images::Puller);

#[async_trait]
impl Puller for Registries {
    async fn pull(&self, reference: &str, logins: &[RegistryLogin]) -> Result<Image, String> {
        self.0.pull(reference, logins).await.map_err(|error| error.to_string())
    }
}

/// The pod networks as the agent knows them.
struct Connected(Arc<PodNetworks>);

#[async_trait]
impl Network for Connected {
    async fn setup(&self, id: &PodId, pod: &Pod) -> Result<PodNetwork, NetworkError> {
        let reference =
            PodRef { uid: id.uid.as_str().to_owned(), namespace: id.namespace.clone(), name: id.name.clone() };
        let ports = host_ports_of(pod).map_err(|e| NetworkError(e.to_string()))?;
        let network = self.0.setup(&reference, &ports).await.map_err(|e| NetworkError(e.to_string()))?;
        Ok(PodNetwork {
            namespace: Some(network.namespace),
            ips: network.ips.iter().map(ToString::to_string).collect(),
        })
    }

    async fn teardown(&self, id: &PodId) -> Result<(), NetworkError> {
        self.0.teardown(id.uid.as_str()).await.map_err(|e| NetworkError(e.to_string()))
    }
}
