//! The node's own address: chosen among those of its links, and followed as they come and go.
//!
//! A machine may start with its cable out, or before anybody gave it an address, and get another one at any time. Until
//! there is one, the address is the pods' gateway: it is on the bridge, pods reach it, and nothing outside is needed.
//! What tells of changes is the kernel (rtnetlink's multicast groups); nothing is looked at in between.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use crate::links::{LinkAddress, Netlink};
use crate::{Ipv4Cidr, Namespace, NetworkError};

/// After netlink failed.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// How the node's address is chosen.
#[derive(Clone, Debug)]
pub struct OwnAddress {
    /// The one to take as soon as a link has it; none takes the machine's first.
    pub given: Option<Ipv4Addr>,
    /// Addresses of pods and Services, which are never the node's own.
    pub cluster: Vec<Ipv4Cidr>,
    /// The address while there is no other.
    pub fallback: Ipv4Addr,
}

impl OwnAddress {
    /// The address, among those of the links; `ways_out` are the links of default routes, the best first. As the
    /// kubelet has it, the link of the best default route comes first (`k8s.io/apimachinery/pkg/util/net/interface.go`).
    fn choose(&self, found: &[LinkAddress], ways_out: &[u32]) -> Ipv4Addr {
        let fits = |address: Ipv4Addr| match self.given {
            Some(given) => address == given,
            None => {
                let own = self.cluster.iter().any(|range| range.contains(address));
                !own && !address.is_loopback() && !address.is_link_local() && !address.is_unspecified()
            }
        };
        let place = |link: u32| ways_out.iter().position(|way| *way == link).unwrap_or(ways_out.len());
        let fitting = found.iter().filter(|found| fits(found.address));
        fitting.min_by_key(|found| (place(found.link), found.link)).map_or(self.fallback, |found| found.address)
    }

    /// The address now and from now on, in `namespace`; following ends with the last receiver.
    pub async fn follow(self, namespace: Namespace) -> watch::Receiver<IpAddr> {
        let first = self.look(&namespace).await;
        let address = first.as_ref().copied().unwrap_or(self.fallback);
        if let Err(error) = first {
            tracing::warn!(%error, %address, "the machine's addresses cannot be seen; going on with the cluster's own");
        }
        let (sender, receiver) = watch::channel(IpAddr::V4(address));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    followed = self.follow_once(&namespace, &sender) => match followed {
                        Ok(()) => tracing::debug!("the kernel dropped news of addresses; looking again"),
                        Err(error) => tracing::warn!(%error, "the machine's addresses cannot be followed"),
                    }
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        });
        receiver
    }

    async fn look(&self, namespace: &Namespace) -> Result<Ipv4Addr, NetworkError> {
        self.look_by(&Netlink::open(namespace)?).await
    }

    async fn look_by(&self, links: &Netlink) -> Result<Ipv4Addr, NetworkError> {
        Ok(self.choose(&links.all_addresses().await?, &links.ways_out().await?))
    }

    /// Returns when the kernel tells nothing more through this socket.
    async fn follow_once(&self, namespace: &Namespace, told: &watch::Sender<IpAddr>) -> Result<(), NetworkError> {
        let (links, mut changes) = Netlink::open_for_addresses(namespace)?;
        loop {
            let address = IpAddr::V4(self.look_by(&links).await?);
            let changed = told.send_if_modified(|told| std::mem::replace(told, address) != address);
            if changed {
                tracing::info!(%address, "the node has another address");
            }
            if changes.next().await.is_none() {
                return Ok(());
            }
            // One look takes in all that was told so far.
            while let Ok(_told) = changes.try_recv() {}
        }
    }
}

/// An address that never changes, as in a namespace of the node's own.
pub fn fixed(address: Ipv4Addr) -> watch::Receiver<IpAddr> {
    watch::channel(IpAddr::V4(address)).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_that_of_the_way_out_and_never_one_of_the_clusters() {
        let choose = |given: Option<&str>, found: &str, ways_out: &[u32]| {
            let own = OwnAddress {
                given: given.map(|text| text.parse().unwrap()),
                cluster: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
                fallback: "10.42.0.1".parse().unwrap(),
            };
            let found: Vec<LinkAddress> = found
                .split_whitespace()
                .map(|text| text.split_once('@').unwrap())
                .map(|(address, link)| LinkAddress { address: address.parse().unwrap(), link: link.parse().unwrap() })
                .collect();
            own.choose(&found, ways_out).to_string()
        };
        let lan = "127.0.0.1@1 10.42.0.1@5 10.43.0.10@5 192.0.2.7@3 198.51.100.2@2 192.0.2.8@3";
        for (given, found, ways_out, expected) in [
            (None, "127.0.0.1@1", &[][..], "10.42.0.1"),
            (None, "127.0.0.1@1 10.42.0.1@5 10.43.0.10@5 169.254.3.4@2", &[], "10.42.0.1"),
            (None, lan, &[], "198.51.100.2"),
            (None, lan, &[3], "192.0.2.7"),
            (None, lan, &[9, 3, 2], "192.0.2.7"),
            (Some("192.0.2.8"), lan, &[2], "192.0.2.8"),
            (Some("192.0.2.9"), lan, &[2], "10.42.0.1"),
        ] {
            assert_eq!(choose(given, found, ways_out), expected, "{given:?} {found} {ways_out:?}");
        }
    }
}
