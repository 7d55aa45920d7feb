//! Puts a node's network together: pods at once, Services and names as soon as the API answers.
//!
//! Nothing here waits for the API: pods that were running before a restart keep their network, and the rules of the
//! last run stay in force until the first lists are complete.

use std::net::Ipv4Addr;
use std::sync::Arc;

use kedge_client::Informers;
use kedge_world::World;
use tokio::task::JoinSet;

use crate::dns::{DnsServer, DnsSettings, Resolvers};
use crate::services::{NodeFacts, ServiceProxy};
use crate::{Namespace, NetworkError, PodNetworks, PodSettings};

/// What a node's network is made from.
pub struct NetworkSettings {
    /// Pods.
    pub pods: PodSettings,
    /// The node, as Services see it.
    pub node: NodeFacts,
    /// Cluster DNS; none leaves it to somebody else.
    pub dns: Option<DnsPlan>,
}

/// Cluster DNS, as far as the pods' settings do not say it.
pub struct DnsPlan {
    /// The cluster's DNS address, out of the Service range.
    pub address: Ipv4Addr,
    /// Such as `cluster.local`.
    pub domain: String,
    /// Whom to ask about other names.
    pub resolvers: Resolvers,
    /// Where the resolvers are reached from.
    pub resolvers_namespace: Namespace,
}

/// One node's network, running. Dropping it stops what follows the API; pods keep their network.
pub struct NodeNetwork {
    pods: Arc<PodNetworks>,
    node: NodeFacts,
    dns: Option<DnsServer>,
}

impl NodeNetwork {
    /// Makes what pods need and opens the DNS sockets. Needs root.
    pub async fn start(settings: NetworkSettings, world: &World) -> Result<Self, NetworkError> {
        let (namespace, service_cidr) = (settings.pods.namespace.clone(), settings.pods.service_cidr);
        if let Some(plan) = settings.dns.as_ref().filter(|plan| !service_cidr.contains(plan.address)) {
            let why = format!("the cluster's DNS address {} is not in the Service range {service_cidr}", plan.address);
            return Err(NetworkError::Invalid(why));
        }
        let pods = PodNetworks::open(settings.pods, world.disk.clone()).await?;
        let mut dns = None;
        if let Some(DnsPlan { address, domain, resolvers, resolvers_namespace }) = settings.dns {
            pods.add_address(address).await?;
            let settings = DnsSettings { namespace, address, port: 53, domain, resolvers, resolvers_namespace };
            dns = Some(DnsServer::start(settings, world.random.clone())?);
        }
        Ok(Self { pods: Arc::new(pods), node: settings.node, dns })
    }

    /// The pods' part, for the agent.
    pub fn pods(&self) -> &Arc<PodNetworks> {
        &self.pods
    }

    /// Follows Services and EndpointSlices until dropped.
    pub async fn follow(self, informers: Informers) {
        let proxy = ServiceProxy::new(self.pods.node_namespace().clone(), self.node, self.pods.service_table());
        let mut tasks = JoinSet::new();
        tasks.spawn(proxy.run(informers.clone()));
        if let Some(dns) = self.dns {
            tasks.spawn(async move { dns.feed(informers).await });
        }
        while tasks.join_next().await.is_some() {}
    }
}
