//! Reaching the hub: its address, and one connection.

use kedge_wire::{Connector, HubRoots, site_config};
use kedge_world::Net;
use tonic::transport::Channel;

use crate::identity::SiteIdentity;

/// Where a hub listens unless it is told otherwise.
const PORT: u16 = 6445;

/// A hub's address: `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

/// A text that is no address of a hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a hub (--hub); it looks like https://HOST:{PORT}")]
pub struct AddressError(String);

impl Address {
    /// Reads an address.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(url.to_owned());
        let rest = url.strip_prefix("https://").ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // An IPv6 address has colons of its own, and stands in brackets.
        let after_host = rest.rsplit_once(']').map_or(rest, |(_, after)| after);
        let with_port = if after_host.contains(':') { rest.to_owned() } else { format!("{rest}:{PORT}") };
        let (host, port) = with_port.rsplit_once(':').ok_or_else(wrong)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-[]:".contains(c);
        if host.is_empty() || !host.chars().all(plain) || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self(with_port))
    }

    /// `host:port`.
    pub fn host_port(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

/// Connects as the site that `identity` says.
pub(crate) async fn connect(net: &dyn Net, identity: &SiteIdentity) -> Result<Channel, String> {
    let pair = (identity.keys.certificate().clone(), identity.keys.private_key());
    let roots = HubRoots::Authority(identity.authority.clone());
    let config = site_config(roots, Some(pair)).map_err(|error| error.to_string())?;
    dial(net, &identity.hub, config).await
}

pub(crate) async fn dial(
    net: &dyn Net,
    address: &Address,
    config: std::sync::Arc<rustls::ClientConfig>,
) -> Result<Channel, String> {
    let connector = Connector::dial(net, address.host_port(), config).await.map_err(|error| error.to_string())?;
    connector.channel().await.map_err(|error| whole(&error))
}

/// An error with everything that caused it, in one line.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_everything_else_is_refused() {
        let cases = [
            ("https://hub.example", "hub.example:6445"),
            ("https://hub.example/", "hub.example:6445"),
            ("https://10.1.2.3:443", "10.1.2.3:443"),
            ("https://[fd00::1]", "[fd00::1]:6445"),
            ("https://[fd00::1]:99", "[fd00::1]:99"),
        ];
        for (url, expected) in cases {
            assert_eq!(Address::parse(url).unwrap().host_port(), expected, "{url}");
        }
        for bad in ["", "hub", "http://hub", "https://", "https://hub:no", "https://a/b", "https://a b"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
