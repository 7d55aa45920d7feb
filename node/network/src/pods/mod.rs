//! One pod's network, from lease to address and back: [`PodNetworks`].
//!
//! Each pod has a namespace pinned to `<run-dir>/netns/<uid>`, a link pair of its own, one address with a prefix of 32
//! bits, and a default route to the node. The node routes to each pod by its link; the gateway's address sits on a
//! bridge without ports. The links are no ports of that bridge on purpose: everything between pods is routed, so the
//! answers to a translated connection pass the translation again, whether or not br_netfilter is loaded (with it, a
//! pod that reaches itself through a Service on a shared bridge gets no answer).
//!
//! Setting up and tearing down may be repeated at any time and end in the same state. A restart adopts what is there
//! ([`PodNetworks::adopted`]); links and namespaces without a lease are swept.

pub mod rules;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kedge_world::{Disk, DiskError};
use parking_lot::Mutex;

use crate::addresses::AddressPlan;
use crate::leases::{Lease, Leases};
use crate::links::{End, Netlink, VethPlan, hardware_of};
use crate::namespace::{is_pinned, pin, pinned_names, set_sysctl, unpin};
use crate::node::loopback_up;
use crate::services::TableFacts;
use crate::services::conntrack::{self, Doomed};
use crate::{HostPort, Ipv4Cidr, Namespace, NetworkError, NodeKey, PodRef, Protocol, nft};
use rules::{TablePlan, conflict};

/// The link inside a pod.
const POD_LINK: &str = "eth0";
/// Where nothing says otherwise.
const MTU: u32 = 1500;

/// What a node's pod network is made from.
#[derive(Clone, Debug)]
pub struct PodSettings {
    /// Leases are kept here; names are keyed to it.
    pub data_dir: PathBuf,
    /// Namespaces are pinned here.
    pub run_dir: PathBuf,
    /// Where the node's network is.
    pub namespace: Namespace,
    /// This node's pods.
    pub pod_cidr: Ipv4Cidr,
    /// All nodes' pods.
    pub cluster_cidr: Ipv4Cidr,
    /// Services: routed to the bridge, so that they can be reached without a default route.
    pub service_cidr: Ipv4Cidr,
    /// The largest packet; none takes it from the link that the default route leaves by.
    pub mtu: Option<u32>,
}

/// A pod's network, ready to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The file that pins its namespace.
    pub namespace: PathBuf,
    /// Its addresses, the first one first.
    pub ips: Vec<Ipv4Addr>,
}

/// A lease that a restart found.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// Whose.
    pub pod: PodRef,
    /// The network it has, or would have.
    pub network: PodNetwork,
    /// Whether namespace, link and address are all still there. If not, the pod's processes are gone with them.
    pub intact: bool,
}

/// The networks of one node's pods.
pub struct PodNetworks {
    settings: PodSettings,
    key: NodeKey,
    table: TablePlan,
    links: Netlink,
    bridge: u32,
    mtu: u32,
    leases: Leases,
    state: Mutex<State>,
    /// Held while leases change, which waits for the disk; `state` is never held that long.
    changing: tokio::sync::Mutex<()>,
}

struct State {
    addresses: AddressPlan,
    by_pod: BTreeMap<String, Lease>,
}

impl PodNetworks {
    /// Makes what all pods share (bridge, rules), reads the leases and sweeps what belongs to none of them.
    pub async fn open(settings: PodSettings, disk: Arc<dyn Disk>) -> Result<Self, NetworkError> {
        let key = NodeKey::of(&settings.data_dir);
        let leases = Leases::open(&settings.data_dir, disk)?;
        let state = read(&leases, AddressPlan::new(settings.pod_cidr)?)?;
        let gateway = state.addresses.gateway();
        let links = Netlink::open(&settings.namespace)?;
        let mtu = match settings.mtu {
            Some(mtu) => mtu,
            None => links.uplink_mtu().await?.unwrap_or(MTU),
        };
        let name = key.bridge();
        let bridge = links.bridge(&name, hardware_of(gateway, End::Node), mtu).await?;
        links.address(bridge, gateway, settings.pod_cidr.prefix()).await?;
        links.route(settings.service_cidr, bridge, None, Some(gateway)).await?;
        settings.namespace.run(|| set_sysctl("ipv4/ip_forward", "1"))??;
        let (pod_cidr, cluster_cidr) = (settings.pod_cidr, settings.cluster_cidr);
        let table =
            TablePlan { table: key.pods_table(), pod_links: key.veth_prefix(), gateway, pod_cidr, cluster_cidr };
        let networks = Self {
            settings,
            key,
            table,
            links,
            bridge,
            mtu,
            leases,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::default(),
        };
        let ports = networks.all_ports();
        nft::apply(&networks.settings.namespace, networks.table.whole(&ports)).await?;
        networks.sweep().await?;
        Ok(networks)
    }

    /// Gives a pod its network; one it has already is left as it is.
    pub async fn setup(&self, pod: &PodRef, host_ports: &[HostPort]) -> Result<PodNetwork, NetworkError> {
        let address = self.lease(pod, host_ports).await?;
        let network = self.network(&pod.uid, address);
        if !self.intact(&network, address).await? {
            self.clear(&network.namespace, address).await?;
            self.connect(&network.namespace, address).await?;
        }
        if !host_ports.is_empty() {
            nft::apply(&self.settings.namespace, self.table.open_ports(address, host_ports)).await?;
            let ports = udp(host_ports).map(|port| port.host_port).collect();
            conntrack::forget(&self.settings.namespace, Doomed { ports, ..Doomed::default() }).await?;
        }
        Ok(network)
    }

    /// Takes a pod's network away and frees its address. A pod without one is success.
    pub async fn teardown(&self, uid: &str) -> Result<(), NetworkError> {
        let held = {
            let state = self.state.lock();
            state.addresses.get(uid).map(|address| (address, state.by_pod.get(uid).cloned()))
        };
        let Some((address, lease)) = held else { return Ok(()) };
        let ports = lease.map(|lease| lease.host_ports).unwrap_or_default();
        if !ports.is_empty() {
            nft::apply(&self.settings.namespace, self.table.close_ports(address, &ports)).await?;
            let backends = udp(&ports).map(|port| (address, port.container_port)).collect();
            conntrack::forget(&self.settings.namespace, Doomed { backends, ..Doomed::default() }).await?;
        }
        self.clear(&self.network(uid, address).namespace, address).await?;
        let _changing = self.changing.lock().await;
        self.on_disk(move |leases| leases.remove(address)).await?;
        let mut state = self.state.lock();
        state.addresses.release(uid);
        state.by_pod.remove(uid);
        Ok(())
    }

    /// The network of a pod that has a lease.
    pub fn get(&self, uid: &str) -> Option<PodNetwork> {
        let address = self.state.lock().addresses.get(uid)?;
        Some(self.network(uid, address))
    }

    /// Every lease, and whether what it stands for is still there.
    pub async fn adopted(&self) -> Result<Vec<Adopted>, NetworkError> {
        let leases: Vec<_> = {
            let state = self.state.lock();
            let with_address = |(uid, lease): (&String, &Lease)| Some((state.addresses.get(uid)?, lease.pod.clone()));
            state.by_pod.iter().filter_map(with_address).collect()
        };
        let mut adopted = Vec::new();
        for (address, pod) in leases {
            let network = self.network(&pod.uid, address);
            let intact = self.intact(&network, address).await?;
            adopted.push(Adopted { pod, network, intact });
        }
        Ok(adopted)
    }

    /// Where the node's own network is; a pod in the host's network joins it.
    pub fn node_namespace(&self) -> &Namespace {
        &self.settings.namespace
    }

    /// What the table of Services has in common with the pods' network.
    pub fn service_table(&self) -> TableFacts {
        TableFacts {
            table: self.key.services_table(),
            cluster_cidr: self.settings.cluster_cidr,
            service_cidr: self.settings.service_cidr,
            pod_links: self.key.veth_prefix(),
            gateway: self.gateway(),
        }
    }

    /// The bridge's address: what a pod sees of the node.
    pub fn gateway(&self) -> Ipv4Addr {
        self.state.lock().addresses.gateway()
    }

    /// Gives the bridge one more address with a prefix of 32 bits, as the DNS server's.
    pub async fn add_address(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.links.address(self.bridge, address, 32).await
    }

    /// Takes or makes a lease, and puts it on disk before anything uses it.
    async fn lease(&self, pod: &PodRef, host_ports: &[HostPort]) -> Result<Ipv4Addr, NetworkError> {
        check_uid(&pod.uid)?;
        let _changing = self.changing.lock().await;
        let lease = Lease { pod: pod.clone(), host_ports: host_ports.to_vec() };
        let (address, had) = match self.reserve(&lease)? {
            (address, _, true) => return Ok(address),
            (address, had, false) => (address, had),
        };
        let written = lease.clone();
        if let Err(error) = self.on_disk(move |leases| leases.put(address, &written)).await {
            if !had {
                self.state.lock().addresses.release(&pod.uid);
            }
            return Err(error);
        }
        self.state.lock().by_pod.insert(pod.uid.clone(), lease);
        Ok(address)
    }

    /// The address for a lease; whether the pod had it already, and whether the lease is on disk as it is.
    fn reserve(&self, lease: &Lease) -> Result<(Ipv4Addr, bool, bool), NetworkError> {
        let Lease { pod, host_ports } = lease;
        let mut state = self.state.lock();
        let others = state.by_pod.values().filter(|lease| lease.pod.uid != pod.uid);
        let taken: Vec<_> = others
            .flat_map(|lease| lease.host_ports.iter().map(|port| (lease.pod.to_string(), port.clone())))
            .collect();
        if let Some((port, place)) = conflict(host_ports, &taken) {
            let (port, protocol, pod) = (port.host_port, port.protocol, taken[place].0.clone());
            return Err(NetworkError::HostPortTaken { port, protocol, pod });
        }
        let had = state.addresses.get(&pod.uid).is_some();
        let address = state.addresses.allocate(&pod.uid)?;
        Ok((address, had, state.by_pod.get(&pod.uid) == Some(lease)))
    }

    /// Changes leases on a thread that may wait for the disk.
    async fn on_disk(
        &self,
        change: impl FnOnce(&Leases) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<(), NetworkError> {
        let leases = self.leases.clone();
        let changed = tokio::task::spawn_blocking(move || change(&leases)).await;
        Ok(changed.map_err(|error| NetworkError::Invalid(format!("changing a lease: {error}")))??)
    }

    fn network(&self, uid: &str, address: Ipv4Addr) -> PodNetwork {
        PodNetwork { namespace: self.folder().join(uid), ips: vec![address] }
    }

    fn folder(&self) -> PathBuf {
        self.settings.run_dir.join("netns")
    }

    fn veth_name(&self, address: Ipv4Addr) -> String {
        // A lease of an older pod CIDR lies outside; its link is gone or swept, so any name that is free will do.
        let offset = self.settings.pod_cidr.offset(address).unwrap_or(u32::from(address) & 0xf_ffff);
        self.key.veth(offset)
    }

    async fn intact(&self, network: &PodNetwork, address: Ipv4Addr) -> Result<bool, NetworkError> {
        if !is_pinned(&network.namespace)? || self.links.index(&self.veth_name(address)).await?.is_none() {
            return Ok(false);
        }
        let inside = Netlink::open(&Namespace::at(&network.namespace))?;
        let Some(link) = inside.index(POD_LINK).await? else { return Ok(false) };
        Ok(inside.addresses(link).await?.contains(&address))
    }

    async fn clear(&self, namespace: &Path, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.links.remove(&self.veth_name(address)).await?;
        unpin(namespace)
    }

    async fn connect(&self, namespace: &Path, address: Ipv4Addr) -> Result<(), NetworkError> {
        pin(namespace)?;
        let file = open_namespace(namespace)?;
        let node_end = self.veth_name(address);
        let plan = VethPlan {
            node_end: &node_end,
            node_hardware: hardware_of(address, End::Node),
            pod_end: POD_LINK,
            pod_namespace: file.as_fd(),
            pod_hardware: hardware_of(address, End::Pod),
            mtu: self.mtu,
        };
        let gateway = self.gateway();
        let outside = self.links.veth(&plan).await?;
        self.links.neighbour(outside, address, plan.pod_hardware).await?;
        self.links.route(Ipv4Cidr::new(address, 32)?, outside, None, Some(gateway)).await?;
        let inside = Namespace::at(namespace);
        let links = Netlink::open(&inside)?;
        loopback_up(&links).await?;
        let missing = || NetworkError::Invalid(format!("{}: no {POD_LINK} after making it", namespace.display()));
        let link = links.index(POD_LINK).await?.ok_or_else(missing)?;
        links.up(link, POD_LINK).await?;
        links.address(link, address, 32).await?;
        links.neighbour(link, gateway, plan.node_hardware).await?;
        links.route(Ipv4Cidr::new(gateway, 32)?, link, None, None).await?;
        links.route(Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0)?, link, Some(gateway), None).await
    }

    fn all_ports(&self) -> Vec<(Ipv4Addr, HostPort)> {
        let state = self.state.lock();
        let of = |(uid, lease): (&String, &Lease)| {
            let address = state.addresses.get(uid)?;
            Some(lease.host_ports.iter().map(move |port| (address, port.clone())).collect::<Vec<_>>())
        };
        state.by_pod.iter().filter_map(of).flatten().collect()
    }

    /// Removes links and namespaces that no lease stands for.
    async fn sweep(&self) -> Result<(), NetworkError> {
        let (veths, uids): (Vec<_>, Vec<_>) = {
            let state = self.state.lock();
            let uids: Vec<_> = state.by_pod.keys().cloned().collect();
            (uids.iter().filter_map(|uid| state.addresses.get(uid)).map(|a| self.veth_name(a)).collect(), uids)
        };
        let prefix = self.key.veth_prefix();
        for (name, _, _) in self.links.list().await? {
            if name.starts_with(&prefix) && !veths.contains(&name) {
                tracing::info!(link = name, "removing a link without a lease");
                self.links.remove(&name).await?;
            }
        }
        for name in pinned_names(&self.folder())? {
            if !uids.contains(&name) {
                tracing::info!(namespace = name, "removing a pod's namespace without a lease");
                unpin(&self.folder().join(name))?;
            }
        }
        Ok(())
    }
}

/// Removes everything that a node's pod network is made of; processes inside must have ended. For `kedge killall`.
/// Leases go too. What is already gone is success.
pub async fn remove_all(
    data_dir: &Path,
    run_dir: &Path,
    namespace: &Namespace,
    disk: Arc<dyn Disk>,
) -> Result<(), NetworkError> {
    let folder = run_dir.join("netns");
    for name in pinned_names(&folder)? {
        unpin(&folder.join(name))?;
    }
    let leases = Leases::open(data_dir, disk)?;
    for (address, _) in leases.list()? {
        leases.remove(address)?;
    }
    if namespace.path().is_some_and(|path| !is_pinned(path).unwrap_or(false)) {
        return Ok(());
    }
    let key = NodeKey::of(data_dir);
    let links = Netlink::open(namespace)?;
    for (name, _, _) in links.list().await? {
        if name.starts_with(&key.veth_prefix()) || name == key.bridge() {
            links.remove(&name).await?;
        }
    }
    let tables = [key.pods_table(), key.services_table()];
    let batch = tables.map(|table| format!("add table ip {table}\ndelete table ip {table}\n")).concat();
    nft::apply(namespace, batch).await
}

fn read(leases: &Leases, mut addresses: AddressPlan) -> Result<State, NetworkError> {
    let mut by_pod = BTreeMap::new();
    for (address, lease) in leases.list()? {
        match lease {
            Ok(lease) => {
                check_uid(&lease.pod.uid)?;
                addresses.hold(address, &lease.pod.uid)?;
                by_pod.insert(lease.pod.uid.clone(), lease);
            }
            Err(why) => {
                tracing::warn!(%address, why, "a lease cannot be read; its address is held back until the file is removed");
                addresses.hold(address, &format!("unreadable lease {address}"))?;
            }
        }
    }
    Ok(State { addresses, by_pod })
}

/// Connections over UDP have no end of their own, so they are told of ports that open and close.
fn udp(ports: &[HostPort]) -> impl Iterator<Item = &HostPort> {
    ports.iter().filter(|port| port.protocol == Protocol::Udp)
}

/// A uid becomes a file name.
fn check_uid(uid: &str) -> Result<(), NetworkError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if uid.is_empty() || uid.len() > 128 || !uid.chars().all(fits) {
        return Err(NetworkError::Invalid(format!("pod uid {uid:?} is not made of letters, digits, '-' and '_'")));
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "the kernel's handle of a namespace")]
fn open_namespace(path: &Path) -> Result<std::fs::File, NetworkError> {
    std::fs::File::open(path).map_err(|e| NetworkError::kernel("open network namespace", path, e))
}
