//! Links, addresses and routes over netlink, each request naming its step when it fails.
//!
//! A [`Netlink`] is one socket; it belongs to the namespace that it was opened in, whoever uses it later.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{RouteAttribute, RouteScope};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{
    AddressGetRequest, Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use rtnetlink::{MulticastGroup, new_connection, new_multicast_connection};

use crate::{Ipv4Cidr, Namespace, NetworkError};

/// A netlink socket inside one namespace. The socket closes with the last clone.
#[derive(Clone)]
pub struct Netlink(Handle);

/// What a pod's link is made of.
pub struct VethPlan<'a> {
    /// The node's end.
    pub node_end: &'a str,
    /// The hardware address of the node's end.
    pub node_hardware: [u8; 6],
    /// The pod's end, named `eth0` there.
    pub pod_end: &'a str,
    /// The namespace that the pod's end is made in.
    pub pod_namespace: BorrowedFd<'a>,
    /// The hardware address of the pod's end.
    pub pod_hardware: [u8; 6],
    /// The largest packet.
    pub mtu: u32,
}

/// What the kernel tells on its own.
pub type News = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// An IPv4 address and the link that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The link, by index.
    pub link: u32,
}

impl Netlink {
    /// Opens a socket inside `namespace`. Needs the runtime.
    pub fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        Ok(Self::open_by(namespace, new_connection)?.0)
    }

    /// The same, and news of every change of IPv4 addresses and routes there.
    pub fn open_for_addresses(namespace: &Namespace) -> Result<(Self, News), NetworkError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        Self::open_by(namespace, || new_multicast_connection(&groups))
    }

    fn open_by<C>(
        namespace: &Namespace,
        open: impl FnOnce() -> io::Result<(C, Handle, News)> + Send,
    ) -> Result<(Self, News), NetworkError>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Handle::current();
        let opened = namespace.run(|| {
            let _entered = runtime.enter();
            open()
        })?;
        let (connection, handle, news) = opened.map_err(|source| NetworkError::Link {
            action: "open netlink in",
            subject: namespace.path().map_or("the own network namespace".to_owned(), |path| path.display().to_string()),
            source,
        })?;
        tokio::spawn(connection);
        Ok((Self(handle), news))
    }

    /// The index of a link; none when there is none of that name.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut found = self.0.link().get().match_name(name).execute().boxed();
        match found.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(fail("look up link", name, &error)),
        }
    }

    /// All links, by name and largest packet.
    pub async fn list(&self) -> Result<Vec<(String, u32, u32)>, NetworkError> {
        let mut links = self.0.link().get().execute().boxed();
        let mut found = Vec::new();
        while let Some(link) = links.try_next().await.map_err(|e| fail("list", "links", &e))? {
            let (mut name, mut mtu) = (String::new(), 0);
            for attribute in &link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name.clone_from(text),
                    LinkAttribute::Mtu(number) => mtu = *number,
                    _ => {}
                }
            }
            found.push((name, link.header.index, mtu));
        }
        Ok(found)
    }

    /// The largest packet of the link that the default route leaves by; none without such a route.
    pub async fn uplink_mtu(&self) -> Result<Option<u32>, NetworkError> {
        let Some(out) = self.ways_out().await?.first().copied() else { return Ok(None) };
        Ok(self.list().await?.into_iter().find(|(_, index, _)| *index == out).map(|(_, _, mtu)| mtu))
    }

    /// The links of the default routes, the best route first.
    pub async fn ways_out(&self) -> Result<Vec<u32>, NetworkError> {
        let mut routes = self.0.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute().boxed();
        let mut ways = Vec::new();
        while let Some(route) = routes.try_next().await.map_err(|e| fail("list", "routes", &e))? {
            if route.header.destination_prefix_length > 0 {
                continue;
            }
            let (mut metric, mut out) = (0, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Priority(number) => metric = *number,
                    RouteAttribute::Oif(index) => out = Some(*index),
                    _ => {}
                }
            }
            ways.extend(out.map(|out| (metric, out)));
        }
        ways.sort_by_key(|(metric, _)| *metric);
        Ok(ways.into_iter().map(|(_, out)| out).collect())
    }

    /// Makes a bridge, or takes the one that is there, and sets it up; its index.
    pub async fn bridge(&self, name: &str, hardware: [u8; 6], mtu: u32) -> Result<u32, NetworkError> {
        if self.index(name).await?.is_none() {
            let message = LinkBridge::new(name).address(hardware.to_vec()).mtu(mtu).build();
            self.0.link().add(message).execute().await.map_err(|e| fail("create bridge", name, &e))?;
        }
        let index = self.index(name).await?.ok_or_else(|| gone("create bridge", name))?;
        self.up(index, name).await?;
        Ok(index)
    }

    /// Makes a pair of links, one end in the pod's namespace, the other up; the node's end, by index.
    pub async fn veth(&self, plan: &VethPlan<'_>) -> Result<u32, NetworkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(plan.pod_end)
            .address(plan.pod_hardware.to_vec())
            .mtu(plan.mtu)
            .setns_by_fd(plan.pod_namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(plan.node_end)
            .mtu(plan.mtu)
            .address(plan.node_hardware.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .up()
            .build();
        self.0.link().add(message).execute().await.map_err(|e| fail("create link pair", plan.node_end, &e))?;
        self.index(plan.node_end).await?.ok_or_else(|| gone("create link pair", plan.node_end))
    }

    /// Tells for good which hardware address a neighbour has, so that nobody needs to ask.
    pub async fn neighbour(&self, link: u32, address: Ipv4Addr, hardware: [u8; 6]) -> Result<(), NetworkError> {
        let request = self.0.neighbours().add(link, IpAddr::V4(address)).link_layer_address(&hardware).replace();
        request.execute().await.map_err(|e| fail("add neighbour", &address.to_string(), &e))
    }

    /// Removes a link. None of that name is success.
    pub async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        match self.0.link().del(index).execute().await {
            Err(error) if errno(&error) != Some(nix::libc::ENODEV) => Err(fail("remove link", name, &error)),
            _ => Ok(()),
        }
    }

    /// Sets a link up.
    pub async fn up(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.0.link().set(message).execute().await.map_err(|e| fail("set up link", name, &e))
    }

    /// Gives a link an address; one that it has is success.
    pub async fn address(&self, link: u32, address: Ipv4Addr, prefix: u8) -> Result<(), NetworkError> {
        let request = self.0.address().add(link, IpAddr::V4(address), prefix).replace();
        request.execute().await.map_err(|e| fail("add address", &address.to_string(), &e))
    }

    /// The IPv4 addresses of a link.
    pub async fn addresses(&self, link: u32) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let found = self.addresses_by(self.0.address().get().set_link_index_filter(link)).await?;
        Ok(found.into_iter().map(|found| found.address).collect())
    }

    /// The IPv4 addresses of all links.
    pub async fn all_addresses(&self) -> Result<Vec<LinkAddress>, NetworkError> {
        self.addresses_by(self.0.address().get()).await
    }

    async fn addresses_by(&self, request: AddressGetRequest) -> Result<Vec<LinkAddress>, NetworkError> {
        let mut addresses = request.execute().boxed();
        let mut found = Vec::new();
        while let Some(message) = addresses.try_next().await.map_err(|e| fail("list", "addresses", &e))? {
            let link = message.header.index;
            found.extend(message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(LinkAddress { address: *address, link }),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Sends `range` out by `link`: straight onto it, or by way of `gateway`. `source` is what the node's own packets
    /// that way call themselves.
    pub async fn route(
        &self,
        range: Ipv4Cidr,
        link: u32,
        gateway: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let first = range.nth(0).expect("a range has a first address");
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link);
        if range.prefix() > 0 {
            route = route.destination_prefix(first, range.prefix());
        }
        route = match gateway {
            Some(gateway) => route.gateway(gateway),
            None => route.scope(RouteScope::Link),
        };
        if let Some(source) = source {
            route = route.pref_source(source);
        }
        let request = self.0.route().add(route.build()).replace();
        request.execute().await.map_err(|e| fail("add route to", &range.to_string(), &e))
    }
}

/// An end of a pod's link.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The pod's.
    Pod,
    /// The node's.
    Node,
}

/// A hardware address that follows from an IPv4 address (the second bit of the first byte says: local), so a
/// neighbour's memory of an address stays right when the address gets a new owner.
pub fn hardware_of(address: Ipv4Addr, end: End) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    let first = match end {
        End::Pod => 0x0a,
        End::Node => 0x0e,
    };
    [first, 0x58, a, b, c, d]
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn fail(action: &'static str, subject: &str, error: &Error) -> NetworkError {
    let source = errno(error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    NetworkError::Link { action, subject: subject.to_owned(), source }
}

fn gone(action: &'static str, subject: &str) -> NetworkError {
    let source = io::Error::new(io::ErrorKind::NotFound, "it is not there afterwards");
    NetworkError::Link { action, subject: subject.to_owned(), source }
}
