//! One Service as chains, sets and map elements: a pure function.
//!
//! Names carry a hash of Service, port and protocol, so they are unique, and the readable name behind it for whoever
//! lists the table. Text of the API's enters names only, with every letter that `nft` could read otherwise replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sha2::{Digest as _, Sha256};

use super::endpoints::{Backend, Choice, NodeFacts, choose};
use super::ruleset::{MASQUERADE_MARK, TableFacts};
use crate::{Ipv4Cidr, Protocol};

/// Upstream's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: i32 = 10800;
/// Another proxy takes care of Services with this label.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    /// Address, protocol, port: where a new connection goes.
    ServiceIps,
    /// Protocol and port, on any address of the node.
    NodePorts,
    /// Address, protocol, port: what becomes of a connection that has nowhere to go.
    NoEndpoints,
    /// The same by protocol and port on any address of the node.
    NoEndpointNodePorts,
    /// Address, protocol, port: who may come in.
    Firewall,
}

impl Map {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ServiceIps, Self::NodePorts, Self::NoEndpoints, Self::NoEndpointNodePorts, Self::Firewall];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::NodePorts => "node-ports",
            Self::NoEndpoints => "no-endpoints",
            Self::NoEndpointNodePorts => "no-endpoint-node-ports",
            Self::Firewall => "firewall-ips",
        }
    }

    /// Whether its keys begin with an address.
    pub fn by_address(self) -> bool {
        !matches!(self, Self::NodePorts | Self::NoEndpointNodePorts)
    }
}

/// A key in a map, as `nft` writes it.
pub type Element = (Map, String);

/// What one Service adds to the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Sets that remember clients: name and seconds.
    pub sets: BTreeMap<String, u32>,
    /// Chains and their rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Map elements and their verdicts.
    pub elements: BTreeMap<Element, String>,
    /// Where its UDP ports lead: connections to one that is gone must be forgotten.
    pub udp_backends: BTreeSet<Backend>,
}

/// The rules of `service`. One that is not ours to serve (headless, external name, another proxy's) has none.
pub fn fragment<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeFacts,
    table: &TableFacts,
) -> Fragment {
    let mut fragment = Fragment::default();
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME));
    let Some(spec) = service.spec.as_ref().filter(|spec| !elsewhere && spec.type_.as_deref() != Some("ExternalName"))
    else {
        return fragment;
    };
    // No address here also for a headless Service, whose address reads "None".
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
        return fragment;
    };
    for port in spec.ports.iter().flatten() {
        let (Ok(number), Ok(protocol)) = (u16::try_from(port.port), Protocol::parse(port.protocol.as_deref())) else {
            continue;
        };
        let choice = choose(port, slices.clone(), node);
        PortRules { service, spec, port, number, protocol, cluster_ip, table, id: id(service, port, protocol) }
            .write(&choice, &mut fragment);
    }
    fragment
}

struct PortRules<'a> {
    service: &'a Service,
    spec: &'a ServiceSpec,
    port: &'a ServicePort,
    number: u16,
    protocol: Protocol,
    cluster_ip: Ipv4Addr,
    table: &'a TableFacts,
    id: String,
}

impl PortRules<'_> {
    fn write(&self, choice: &Choice, out: &mut Fragment) {
        let internal_local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let external_local = self.spec.external_traffic_policy.as_deref() == Some("Local");
        if self.protocol == Protocol::Udp {
            out.udp_backends.extend(choice.cluster.iter().chain(&choice.local));
        }
        let cluster = self.backend_chain("svc", &choice.cluster, out);
        let local = if internal_local || external_local { self.backend_chain("svl", &choice.local, out) } else { None };
        let nowhere = if choice.cluster.is_empty() { "goto reject-it" } else { "drop" };

        let inside = if internal_local { &local } else { &cluster };
        let key = self.key(self.cluster_ip);
        match inside {
            Some(chain) => out.elements.insert((Map::ServiceIps, key), format!("goto {chain}")),
            None => out.elements.insert((Map::NoEndpoints, key), nowhere.to_owned()),
        };

        let outside: Vec<_> = self.external_addresses().into_iter().map(|address| self.key(address)).collect();
        let node_port = self.port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        if outside.is_empty() && node_port.is_none() {
            return;
        }
        let entry = cluster
            .map(|cluster| self.entry_chain(&cluster, external_local.then_some(local).flatten(), external_local, out));
        let stuck = entry.is_none() || (external_local && choice.local.is_empty());
        let node_port = node_port.map(|port| format!("{} . {port}", self.protocol));
        for (keys, goes, stays) in [
            (outside, Map::ServiceIps, Map::NoEndpoints),
            (node_port.into_iter().collect(), Map::NodePorts, Map::NoEndpointNodePorts),
        ] {
            for key in keys {
                if let Some(entry) = &entry {
                    out.elements.insert((goes, key.clone()), format!("goto {entry}"));
                }
                if stuck {
                    out.elements.insert((stays, key), nowhere.to_owned());
                }
            }
        }
        self.firewall(out);
    }

    /// The chain that sends a new connection to one of `backends`, each as likely; none without any.
    fn backend_chain(&self, kind: &str, backends: &BTreeSet<Backend>, out: &mut Fragment) -> Option<String> {
        if backends.is_empty() {
            return None;
        }
        let name = format!("{kind}-{}", self.id);
        let rules = match self.affinity() {
            None => self.pick(backends),
            Some(seconds) => self.remembered(backends, seconds, out),
        };
        out.chains.insert(name.clone(), rules);
        Some(name)
    }

    fn pick(&self, backends: &BTreeSet<Backend>) -> Vec<String> {
        let send = |(address, port): &Backend| format!("meta l4proto {} dnat to {address}:{port}", self.protocol);
        evenly(backends.iter().map(send).collect())
    }

    /// With affinity each backend has a chain and remembers its clients in a set.
    fn remembered(&self, backends: &BTreeSet<Backend>, seconds: u32, out: &mut Fragment) -> Vec<String> {
        let short = &self.id[..8];
        let (mut rules, mut all) = (Vec::new(), Vec::new());
        for (address, port) in backends {
            // A set's time cannot be changed, so it is part of the name.
            let (set, chain) =
                (format!("aff-{short}-{address}/{port}-{seconds}"), format!("ep-{short}-{address}/{port}"));
            rules.push(format!("ip saddr @{set} goto {chain}"));
            all.push(format!("goto {chain}"));
            let send = format!("meta l4proto {} dnat to {address}:{port}", self.protocol);
            out.chains.insert(chain, vec![format!("update @{set} {{ ip saddr }}"), send]);
            out.sets.insert(set, seconds);
        }
        rules.extend(evenly(all));
        rules
    }

    /// The chain of connections that come from outside the cluster.
    fn entry_chain(&self, cluster: &str, local: Option<String>, stay: bool, out: &mut Fragment) -> String {
        let name = format!("ext-{}", self.id);
        let mark = format!("meta mark set meta mark | {MASQUERADE_MARK}");
        let rules = if stay {
            // Pods and the node itself are inside: they are not held to this node's endpoints.
            let mut rules = vec![
                format!("ip saddr {} goto {cluster}", self.table.cluster_cidr),
                format!("fib saddr type local {mark} goto {cluster}"),
            ];
            rules.extend(local.map(|local| format!("goto {local}")));
            rules
        } else {
            vec![mark, format!("goto {cluster}")]
        };
        out.chains.insert(name.clone(), rules);
        name
    }

    /// Source ranges hold for addresses of load balancers only.
    fn firewall(&self, out: &mut Fragment) {
        let text = self.spec.load_balancer_source_ranges.iter().flatten();
        let ranges: Vec<_> = text.filter_map(|range| range.trim().parse::<Ipv4Cidr>().ok()).collect();
        let given = self.spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
        let balancers = self.load_balancer_addresses();
        if !given || balancers.is_empty() {
            return;
        }
        let name = format!("fw-{}", self.id);
        let mut rules: Vec<_> = ranges.iter().map(|range| format!("ip saddr {range} return")).collect();
        rules.push("drop".to_owned());
        out.chains.insert(name.clone(), rules);
        for address in balancers {
            out.elements.insert((Map::Firewall, self.key(address)), format!("goto {name}"));
        }
    }

    fn external_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let external = self.spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok());
        let all: BTreeSet<_> = external.chain(self.load_balancer_addresses()).collect();
        all.into_iter().filter(|address| *address != self.cluster_ip).collect()
    }

    fn load_balancer_addresses(&self) -> Vec<Ipv4Addr> {
        let status = self.service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
        // Mode "Proxy" says that the balancer wants to see the traffic itself.
        let ours = ingress.filter(|point| point.ip_mode.as_deref() != Some("Proxy"));
        ours.filter_map(|point| point.ip.as_deref()?.parse().ok()).collect()
    }

    fn affinity(&self) -> Option<u32> {
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
        u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
    }

    fn key(&self, address: Ipv4Addr) -> String {
        format!("{address} . {} . {}", self.protocol, self.number)
    }
}

/// Rules of which one takes effect, each as likely: the first with a chance of one in all, the next with one in the
/// rest. A map in the rule would be one look-up instead, but the kernel names such maps by trying one number after
/// the other, and ten thousand of them cost it most of a minute.
fn evenly(statements: Vec<String>) -> Vec<String> {
    let count = statements.len();
    let chance = |place: usize| match count - place {
        1 => String::new(),
        rest => format!("numgen random mod {rest} 0 "),
    };
    statements.into_iter().enumerate().map(|(place, statement)| chance(place) + &statement).collect()
}

fn id(service: &Service, port: &ServicePort, protocol: Protocol) -> String {
    let meta = &service.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let name = format!("{}/{}/{protocol}/{}", text(&meta.namespace), text(&meta.name), text(&port.name));
    let hash = hex::encode(Sha256::digest(name.as_bytes()));
    let plain = |c: char| if c.is_ascii_alphanumeric() || "/-.".contains(c) { c } else { '_' };
    format!("{}-{}", &hash[..8], name.chars().map(plain).take(190).collect::<String>())
}
