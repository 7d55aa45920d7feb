//! What `kedge server` was told, looked at before anything is made: settings that cannot work are refused by name.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use kedge_network::{Ipv4Cidr, Namespace};
use kedge_schema::names::dns_subdomain;

use crate::settings::ServerFlags;

/// The longest prefix of a range of addresses: fewer than sixteen are used up by the cluster itself.
const PREFIX_MAX: u8 = 28;

/// Refuses the first setting that cannot work; `node_name` is the name that the node will have.
pub(crate) fn check(flags: &ServerFlags, node_name: &str) -> Result<()> {
    if let Some(why) = dns_subdomain(node_name).first() {
        bail!("the node's name {node_name:?} cannot be used: {why}; give another with --node-name");
    }
    if let Some(name) = &flags.network_namespace {
        Namespace::of_name(name).context("--network-namespace")?;
    }
    let pods = range("--cluster-cidr", &flags.cluster_cidr)?;
    let services = range("--service-cidr", &flags.service_cidr)?;
    let first = |range: Ipv4Cidr| range.nth(0).expect("a range has a first address");
    if pods.contains(first(services)) || services.contains(first(pods)) {
        bail!(
            "--cluster-cidr {pods} and --service-cidr {services} overlap; pods and Services need addresses of their own"
        );
    }
    match flags.cluster_dns {
        Some(dns) if services.offset(dns).is_none_or(|offset| offset < 2) => bail!(
            "--cluster-dns {dns} must lie in --service-cidr {services}, behind its first two addresses: the second is the API's"
        ),
        _ => Ok(()),
    }
}

fn range(flag: &'static str, text: &str) -> Result<Ipv4Cidr> {
    let range: Ipv4Cidr = text.parse().context(flag)?;
    let usable = |address: Ipv4Addr| {
        !(address.is_loopback()
            || address.is_multicast()
            || address.is_link_local()
            || matches!(address.octets()[0], 0 | 240..))
    };
    if range.prefix() > PREFIX_MAX {
        bail!("{flag} {range} is too small; a cluster needs at least a /{PREFIX_MAX}");
    }
    if range.prefix() < 8 || !range.nth(0).is_some_and(usable) {
        bail!("{flag} {range} holds addresses that machines may not have; choose a private range such as 10.42.0.0/16");
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: ServerFlags,
    }

    fn refusal(arguments: &[&str]) -> Option<String> {
        let line = Line::parse_from(["kedge"].iter().chain(arguments));
        check(&line.flags, line.flags.node_name.as_deref().unwrap_or("box")).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert_eq!(refusal(&[]), None);
        assert_eq!(
            refusal(&["--cluster-cidr", "10.1.0.0/24", "--service-cidr", "10.1.1.0/28", "--cluster-dns", "10.1.1.2"]),
            None
        );
        for (arguments, named) in [
            (&["--node-name", "A_B"][..], "A_B"),
            (&["--network-namespace", "../x"], "--network-namespace"),
            (&["--cluster-cidr", "10.42.0.0/33"], "--cluster-cidr"),
            (&["--cluster-cidr", "10.42.0.0/30"], "--cluster-cidr"),
            (&["--cluster-cidr", "127.0.0.0/8"], "--cluster-cidr"),
            (&["--service-cidr", "0.0.0.0/0"], "--service-cidr"),
            (&["--service-cidr", "10.42.0.0/16"], "overlap"),
            (&["--service-cidr", "10.42.128.0/20"], "overlap"),
            (&["--cluster-dns", "10.43.0.1"], "--cluster-dns"),
            (&["--cluster-dns", "10.44.0.10"], "--cluster-dns"),
        ] {
            let refused = refusal(arguments).unwrap_or_else(|| panic!("{arguments:?} was taken"));
            assert!(refused.contains(named), "{arguments:?}: {refused}");
        }
    }
}
