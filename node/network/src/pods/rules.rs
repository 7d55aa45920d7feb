//! The table of pods as text for `nft`: masquerading, hairpins and host ports.
//!
//! A pod that reaches itself through a Service or a host port would see its own address as the sender and drop the
//! answer; such packets get the gateway's address instead. The pairs are listed for the whole pod CIDR at the start,
//! so a pod without host ports costs no change of rules.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::{HostPort, Ipv4Cidr};

/// What the rules are made from.
#[derive(Clone, Debug)]
pub struct TablePlan {
    /// The table.
    pub table: String,
    /// What the node's ends of pods' links begin with.
    pub pod_links: String,
    /// What a pod sees of the node.
    pub gateway: Ipv4Addr,
    /// The node's pods.
    pub pod_cidr: Ipv4Cidr,
    /// All nodes' pods: what goes there keeps its sender.
    pub cluster_cidr: Ipv4Cidr,
}

impl TablePlan {
    /// The whole table in place of whatever is there, in one transaction.
    pub fn whole(&self, host_ports: &[(Ipv4Addr, HostPort)]) -> String {
        let Self { table, pod_links, gateway, pod_cidr, cluster_cidr } = self;
        let mut text = format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\n");
        let mut line = |rest: &str| writeln!(text, "add {rest}").expect("a string takes all");
        line(&format!("set ip {table} hairpins {{ type ipv4_addr . ipv4_addr; }}"));
        line(&format!("map ip {table} host-ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}"));
        line(&format!(
            "map ip {table} host-ip-ports {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}"
        ));
        line(&format!("chain ip {table} host-ports"));
        line(&format!("rule ip {table} host-ports dnat ip to ip daddr . meta l4proto . th dport map @host-ip-ports"));
        line(&format!(
            "rule ip {table} host-ports ip daddr != 127.0.0.0/8 dnat ip to meta l4proto . th dport map @host-ports"
        ));
        for (chain, hook) in [("prerouting", "prerouting priority -90"), ("output", "output priority -90")] {
            line(&format!("chain ip {table} {chain} {{ type nat hook {hook}; policy accept; }}"));
            line(&format!("rule ip {table} {chain} fib daddr type local jump host-ports"));
        }
        line(&format!("chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}"));
        line(&format!("rule ip {table} postrouting ip saddr . ip daddr @hairpins snat to {gateway}"));
        line(&format!(
            "rule ip {table} postrouting oifname != \"{pod_links}*\" ip saddr {pod_cidr} ip daddr != {cluster_cidr} masquerade"
        ));
        let pairs = (2..pod_cidr.size() - 1).filter_map(|offset| pod_cidr.nth(offset));
        let pairs: Vec<_> = pairs.map(|address| format!("{address} . {address}")).collect();
        line(&format!("element ip {table} hairpins {{ {} }}", pairs.join(", ")));
        text.extend(host_ports.iter().map(|(address, port)| self.element("add", *address, port)));
        text
    }

    /// Opens a pod's host ports.
    pub fn open_ports(&self, address: Ipv4Addr, ports: &[HostPort]) -> String {
        ports.iter().map(|port| self.element("add", address, port)).collect()
    }

    /// Closes a pod's host ports, open or not: an element is added first, for removing one that is absent would fail.
    pub fn close_ports(&self, address: Ipv4Addr, ports: &[HostPort]) -> String {
        let both = |port| self.element("add", address, port) + &self.element("delete", address, port);
        ports.iter().map(both).collect()
    }

    fn element(&self, verb: &str, address: Ipv4Addr, port: &HostPort) -> String {
        let HostPort { host_ip, protocol, host_port, container_port } = port;
        let (map, key) = match host_ip {
            None => ("host-ports", format!("{protocol} . {host_port}")),
            Some(ip) => ("host-ip-ports", format!("{ip} . {protocol} . {host_port}")),
        };
        format!("{verb} element ip {} {map} {{ {key} : {address} . {container_port} }}\n", self.table)
    }
}

/// The first of `wanted` that a port in `taken` shuts out, as its place in `taken`: same protocol and number, and
/// addresses that overlap.
pub fn conflict<'a>(wanted: &'a [HostPort], taken: &[(String, HostPort)]) -> Option<(&'a HostPort, usize)> {
    let overlap = |a: Option<Ipv4Addr>, b: Option<Ipv4Addr>| a.is_none() || b.is_none() || a == b;
    wanted.iter().find_map(|port| {
        let clash = |other: &HostPort| {
            (port.protocol, port.host_port) == (other.protocol, other.host_port) && overlap(port.host_ip, other.host_ip)
        };
        taken.iter().position(|(_, other)| clash(other)).map(|place| (port, place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn port(host_ip: Option<[u8; 4]>, protocol: Protocol, host_port: u16) -> HostPort {
        HostPort { host_ip: host_ip.map(Ipv4Addr::from), protocol, host_port, container_port: 80 }
    }

    #[test]
    fn elements_name_the_port_by_what_is_asked() {
        let plan = TablePlan {
            table: "t".into(),
            pod_links: "k".into(),
            gateway: Ipv4Addr::new(10, 42, 0, 1),
            pod_cidr: "10.42.0.0/29".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        };
        let address = Ipv4Addr::new(10, 42, 0, 2);
        let ports = [port(None, Protocol::Tcp, 8080), port(Some([192, 0, 2, 1]), Protocol::Udp, 53)];
        assert_eq!(
            plan.open_ports(address, &ports),
            "add element ip t host-ports { tcp . 8080 : 10.42.0.2 . 80 }\n\
             add element ip t host-ip-ports { 192.0.2.1 . udp . 53 : 10.42.0.2 . 80 }\n"
        );
        let closed = plan.close_ports(address, &ports[..1]);
        assert!(closed.ends_with("delete element ip t host-ports { tcp . 8080 : 10.42.0.2 . 80 }\n"), "{closed}");
        let whole = plan.whole(&[]);
        assert!(whole.contains("{ 10.42.0.2 . 10.42.0.2, 10.42.0.3 . 10.42.0.3, 10.42.0.4"), "{whole}");
        assert!(!whole.contains("10.42.0.7 ."), "the last address is nobody's");
    }

    #[test]
    fn ports_clash_when_protocol_number_and_addresses_do() {
        let any = port(None, Protocol::Tcp, 80);
        let (one, two) = (port(Some([192, 0, 2, 1]), Protocol::Tcp, 80), port(Some([192, 0, 2, 2]), Protocol::Tcp, 80));
        let clash =
            |a: &HostPort, b: &HostPort| conflict(std::slice::from_ref(a), &[("x".to_owned(), b.clone())]).is_some();
        assert!(clash(&any, &one) && clash(&one, &any) && clash(&one, &one));
        assert!(!clash(&one, &two));
        assert!(!clash(&any, &port(None, Protocol::Udp, 80)));
        assert!(!clash(&any, &port(None, Protocol::Tcp, 81)));
    }
}
