//! Which endpoints of a Service port get traffic, after `pkg/proxy/topology.go`.
//!
//! Ready ones first; when there are none, those that still serve while they terminate. Traffic that must stay on the
//! node sees the node's only. Hints are followed when every ready endpoint has one and one is meant for this node.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Where a packet is sent in place of a Service's address.
pub type Backend = (Ipv4Addr, u16);

/// What is known of the node that the rules are for.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// The backends of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For traffic that may leave the node.
    pub cluster: BTreeSet<Backend>,
    /// For traffic that must not.
    pub local: BTreeSet<Backend>,
}

/// The backends of `port`, out of the Service's `slices`.
pub fn choose<'a>(port: &ServicePort, slices: impl IntoIterator<Item = &'a EndpointSlice>, node: &NodeFacts) -> Choice {
    let all: Vec<_> = slices.into_iter().flat_map(|slice| candidates(port, slice, node)).collect();
    let pick = |keep: &dyn Fn(&Candidate) -> bool| -> BTreeSet<Backend> {
        all.iter().filter(|c| keep(c)).map(|c| c.backend).collect()
    };
    let or_else = |first: BTreeSet<Backend>, second: &dyn Fn(&Candidate) -> bool| {
        if first.is_empty() { pick(second) } else { first }
    };
    let hinted = hint_filter(&all);
    let cluster = pick(&|c| c.ready && hinted(c));
    let local = pick(&|c| c.ready && c.on_node);
    Choice {
        cluster: or_else(cluster, &|c| c.serving && c.terminating),
        local: or_else(local, &|c| c.on_node && c.serving && c.terminating),
    }
}

struct Candidate {
    backend: Backend,
    ready: bool,
    serving: bool,
    terminating: bool,
    on_node: bool,
    /// Whether a hint for nodes exists, and whether it names this one.
    node_hint: (bool, bool),
    /// The same for zones.
    zone_hint: (bool, bool),
}

fn candidates(port: &ServicePort, slice: &EndpointSlice, node: &NodeFacts) -> Vec<Candidate> {
    let same = |name: &Option<String>| name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let ports = slice.ports.iter().flatten();
    let number = ports
        .filter(|p| same(&p.name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .find_map(|p| u16::try_from(p.port?).ok().filter(|number| *number != 0));
    let Some(number) = number.filter(|_| slice.address_type == "IPv4") else { return Vec::new() };
    let endpoints = slice.endpoints.iter().flatten();
    endpoints
        .filter_map(|endpoint| {
            let address = endpoint.addresses.first()?.parse().ok()?;
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let hints = endpoint.hints.as_ref();
            let nodes = hints.and_then(|h| h.for_nodes.as_ref()).filter(|n| !n.is_empty());
            let zones = hints.and_then(|h| h.for_zones.as_ref()).filter(|z| !z.is_empty());
            let zone = node.zone.as_deref();
            Some(Candidate {
                backend: (address, number),
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
                on_node: endpoint.node_name.as_deref() == Some(&node.name),
                node_hint: (nodes.is_some(), nodes.is_some_and(|all| all.iter().any(|n| n.name == node.name))),
                zone_hint: (zones.is_some(), zones.is_some_and(|all| all.iter().any(|z| Some(&*z.name) == zone))),
            })
        })
        .collect()
}

fn hint_filter(all: &[Candidate]) -> fn(&Candidate) -> bool {
    let followed = |hint: fn(&Candidate) -> (bool, bool)| {
        let ready = || all.iter().filter(|c| c.ready).map(hint);
        ready().all(|(exists, _)| exists) && ready().any(|(_, meant)| meant)
    };
    if followed(|c| c.node_hint) {
        |c| c.node_hint.1
    } else if followed(|c| c.zone_hint) {
        |c| c.zone_hint.1
    } else {
        |_| true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn choice(endpoints: Value) -> (Vec<u8>, Vec<u8>) {
        let slice = serde_json::from_value(json!({
            "addressType": "IPv4", "metadata": {}, "endpoints": endpoints,
            "ports": [{"name": "other", "port": 1}, {"name": "http", "protocol": "TCP", "port": 8080}],
        }));
        let port = ServicePort { name: Some("http".into()), port: 80, ..ServicePort::default() };
        let node = NodeFacts { name: "me".into(), zone: Some("z1".into()) };
        let choice = choose(&port, [&slice.unwrap()], &node);
        assert!(choice.cluster.iter().all(|(_, port)| *port == 8080));
        let last = |set: &BTreeSet<Backend>| set.iter().map(|(address, _)| address.octets()[3]).collect();
        (last(&choice.cluster), last(&choice.local))
    }

    fn at(last: u8, node: &str, conditions: Value) -> Value {
        json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node, "conditions": conditions})
    }

    #[test]
    fn ready_ones_come_before_those_that_terminate() {
        let (ready, not) = (json!({}), json!({"ready": false, "serving": false}));
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let check = |endpoints: Value, cluster: &[u8], local: &[u8]| {
            assert_eq!(choice(endpoints.clone()), (cluster.to_vec(), local.to_vec()), "{endpoints}");
        };
        check(json!([]), &[], &[]);
        check(json!([at(2, "me", not)]), &[], &[]);
        check(json!([at(2, "me", ready.clone()), at(3, "you", ready.clone())]), &[2, 3], &[2]);
        check(json!([at(2, "me", leaving.clone()), at(3, "you", ready)]), &[3], &[2]);
        check(json!([at(2, "me", leaving.clone()), at(3, "you", leaving)]), &[2, 3], &[2]);
        check(json!([at(2, "me", json!({"ready": true, "serving": true, "terminating": false}))]), &[2], &[2]);
        check(json!([{"addresses": ["fd00::1"], "conditions": {}}]), &[], &[]);
    }

    #[test]
    fn hints_count_only_when_all_have_one_and_one_is_ours() {
        let hinted = |last: u8, kind: &str, name: &str| {
            let mut endpoint = at(last, "me", json!({}));
            endpoint["hints"] = json!({kind: [{"name": name}]});
            endpoint
        };
        let zones = json!([hinted(2, "forZones", "z1"), hinted(3, "forZones", "z2")]);
        assert_eq!(choice(zones).0, [2]);
        assert_eq!(choice(json!([hinted(2, "forZones", "z3"), hinted(3, "forZones", "z2")])).0, [2, 3]);
        assert_eq!(choice(json!([hinted(2, "forZones", "z1"), at(3, "me", json!({}))])).0, [2, 3]);
        assert_eq!(choice(json!([hinted(2, "forNodes", "you"), hinted(3, "forNodes", "me")])).0, [3]);
    }
}
