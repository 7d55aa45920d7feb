//! `--network-namespace NAME`: a network for the node apart from the machine's.
//!
//! The namespace is made if missing and left in place: pods outlive the server. Inside, the node's address sits on a
//! bridge without ports (some kernels lack the dummy link type) that is also the way of the default route, so that
//! every address has a route and Services can catch it; nothing leaves the namespace.

use std::net::Ipv4Addr;

use crate::links::{End, Netlink, hardware_of};
use crate::namespace::set_sysctl;
use crate::{Ipv4Cidr, Namespace, NetworkError};

/// The link that carries the node's address.
pub const NODE_LINK: &str = "kedge-node";

/// The namespace `name` with loopback up and the node's address in place. Calling it again changes nothing.
pub async fn open(name: &str, node_ip: Ipv4Addr) -> Result<Namespace, NetworkError> {
    let (namespace, made) = Namespace::named(name)?;
    let links = Netlink::open(&namespace)?;
    loopback_up(&links).await?;
    let link = links.bridge(NODE_LINK, hardware_of(node_ip, End::Node), 1500).await?;
    links.address(link, node_ip, 32).await?;
    let everywhere = Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0)?;
    links.route(everywhere, link, None, Some(node_ip)).await?;
    namespace.run(|| set_sysctl("ipv4/ip_forward", "1"))??;
    tracing::info!(namespace = name, %node_ip, made, "the node has a network of its own");
    Ok(namespace)
}

/// Lets go of the namespace `name`; it ends with the last process in it. That there is none is success. With the last of
/// all the folder goes, too.
pub fn delete(name: &str) -> Result<(), NetworkError> {
    crate::namespace::unpin(&Namespace::path_of(name)?)?;
    crate::namespace::remove_folder();
    Ok(())
}

pub(crate) async fn loopback_up(links: &Netlink) -> Result<(), NetworkError> {
    let loopback = links.index("lo").await?.ok_or_else(|| NetworkError::Invalid("no loopback link".to_owned()))?;
    links.up(loopback, "lo").await
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for bad in ["", "..", "a/b", ".x", "a b", "a\0b"] {
            assert!(crate::Namespace::named(bad).is_err(), "{bad:?}");
        }
    }
}
