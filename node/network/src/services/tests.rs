//! Services as rules: what single Services become, and that any order of changes ends where the whole table does.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::Key;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn facts() -> TableFacts {
    TableFacts {
        table: "t".into(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        pod_links: "k".into(),
        gateway: "10.42.0.1".parse().unwrap(),
    }
}

fn rules(spec: Value, endpoints: &[(u8, &str)]) -> Fragment {
    let mut service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec});
    if spec["type"] == "LoadBalancer" {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}});
    }
    let service: Service = serde_json::from_value(service).unwrap();
    let list: Vec<_> = endpoints
        .iter()
        .map(|(last, node)| json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node, "conditions": {}}))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4",
        "endpoints": list, "ports": [{"name": "", "protocol": "TCP", "port": 8080}]}))
    .unwrap();
    let node = NodeFacts { name: "me".into(), zone: None };
    fragment(&service, [&slice], &node, &facts())
}

fn elements(fragment: &Fragment) -> Vec<String> {
    let one = |((map, key), verdict): (&Element, &String)| {
        let kind = verdict.split(['-', ' ']).take(if verdict.starts_with("goto") { 2 } else { 1 });
        format!("{} {key} {}", map.name(), kind.collect::<Vec<_>>().join(" "))
    };
    fragment.elements.iter().map(one).collect()
}

#[test]
fn a_cluster_address_leads_to_its_backends() {
    let got = rules(json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}), &[(2, "me"), (3, "you")]);
    assert_eq!(elements(&got), ["service-ips 10.43.0.9 . tcp . 80 goto svc"]);
    let (name, chain) = got.chains.first_key_value().unwrap();
    assert!(name.starts_with("svc-") && name.ends_with("-default/web/tcp/"), "{name}");
    let expected =
        ["numgen random mod 2 0 meta l4proto tcp dnat to 10.42.0.2:8080", "meta l4proto tcp dnat to 10.42.0.3:8080"];
    assert_eq!(chain, &expected);
}

#[test]
fn verdicts_follow_policies_and_endpoints() {
    let check = |name: &str, spec: Value, endpoints: &[(u8, &str)], expected: &[&str]| {
        let mut spec = spec;
        spec["clusterIP"] = json!("10.43.0.9");
        assert_eq!(elements(&rules(spec, endpoints)), expected, "{name}");
    };
    let port = json!([{"port": 80}]);
    let node_port = json!([{"port": 80, "nodePort": 30080}]);
    let (inside, outside) = ("service-ips 10.43.0.9 . tcp . 80 goto svc", "node-ports tcp . 30080 goto ext");
    check("nothing behind it", json!({"ports": port}), &[], &["no-endpoints 10.43.0.9 . tcp . 80 goto reject"]);
    let internal = json!({"ports": port, "internalTrafficPolicy": "Local"});
    check("local, and here", internal.clone(), &[(2, "me")], &["service-ips 10.43.0.9 . tcp . 80 goto svl"]);
    check("local, elsewhere", internal.clone(), &[(2, "you")], &["no-endpoints 10.43.0.9 . tcp . 80 drop"]);
    check("local, nowhere", internal, &[], &["no-endpoints 10.43.0.9 . tcp . 80 goto reject"]);
    let all = json!({"type": "LoadBalancer", "ports": node_port, "externalIPs": ["192.0.2.5"]});
    let external = "service-ips 192.0.2.5 . tcp . 80 goto ext";
    let balancer = "service-ips 198.51.100.7 . tcp . 80 goto ext";
    check("node port", json!({"ports": node_port}), &[(2, "you")], &[inside, outside]);
    check("external", all.clone(), &[(2, "me")], &[inside, external, balancer, outside]);
    let mut local = all;
    local["externalTrafficPolicy"] = json!("Local");
    check(
        "external local, elsewhere",
        local.clone(),
        &[(2, "you")],
        &[
            inside,
            external,
            balancer,
            outside,
            "no-endpoints 192.0.2.5 . tcp . 80 drop",
            "no-endpoints 198.51.100.7 . tcp . 80 drop",
            "no-endpoint-node-ports tcp . 30080 drop",
        ],
    );
    local["loadBalancerSourceRanges"] = json!(["203.0.113.0/24"]);
    local["clusterIP"] = json!("10.43.0.9");
    let got = rules(local, &[(2, "me")]);
    let firewall = got.chains.iter().find(|(name, _)| name.starts_with("fw-")).unwrap().1;
    assert_eq!(firewall, &["ip saddr 203.0.113.0/24 return", "drop"]);
    assert!(elements(&got).contains(&"firewall-ips 198.51.100.7 . tcp . 80 goto fw".to_owned()));
}

#[test]
fn services_that_are_not_ours_have_no_rules() {
    let none = Fragment::default();
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.org"}),
        json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
    ] {
        assert_eq!(rules(spec.clone(), &[(2, "me")]), none, "{spec}");
    }
}

#[test]
fn affinity_remembers_clients_for_the_time_asked() {
    let spec = |seconds: i32| {
        json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
    };
    let got = rules(spec(60), &[(2, "me"), (3, "me")]);
    assert_eq!(got.sets.values().copied().collect::<Vec<_>>(), [60, 60]);
    let chain = got.chains.iter().find(|(name, _)| name.starts_with("svc-")).unwrap().1;
    assert_eq!(chain.len(), 4);
    assert!(chain[0].starts_with("ip saddr @aff-") && chain[0].contains(" goto ep-"), "{chain:?}");
    assert!(got.sets.keys().all(|set| !rules(spec(61), &[(2, "me")]).sets.contains_key(set)));
}

/// The kernel's rules for batches, as far as ours can break them.
#[derive(Default, PartialEq, Debug)]
struct Kernel {
    chains: BTreeMap<String, Vec<String>>,
    sets: BTreeMap<String, String>,
    elements: BTreeMap<(String, String), String>,
}

impl Kernel {
    fn apply(&mut self, batch: &str) {
        for line in batch.lines() {
            let mut words = line.splitn(6, ' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            let (verb, what, _, _, name, rest) = (word(), word(), word(), word(), word(), word());
            match (verb.as_str(), what.as_str()) {
                ("delete", "table") => *self = Self::default(),
                ("add", "table" | "map") => {}
                ("add", "chain") => assert!(self.chains.insert(name, vec![]).is_none(), "{line}"),
                ("add", "set") => assert!(self.sets.insert(name, rest).is_none(), "{line}"),
                ("add", "rule") => self.chains.get_mut(&name).expect(line).push(rest),
                ("flush", "chain") => self.chains.get_mut(&name).expect(line).clear(),
                ("delete", "chain") => {
                    assert_eq!(self.chains.remove(&name), Some(vec![]), "{line}");
                    assert!(!self.refers(&format!("goto {name}")), "{line}: still in use");
                }
                ("delete", "set") => {
                    self.sets.remove(&name).expect(line);
                    assert!(!self.refers(&format!("@{name}")), "{line}: still in use");
                }
                (verb, "element") => {
                    for pair in rest.trim_start_matches("{ ").trim_end_matches(" }").split(", ") {
                        let (key, verdict) = pair.split_once(" : ").expect(line);
                        let key = (name.clone(), key.to_owned());
                        if verb == "add" {
                            assert_eq!(self.elements.insert(key, verdict.to_owned()), None, "{line}");
                        } else {
                            assert_eq!(self.elements.remove(&key).as_deref(), Some(verdict), "{line}");
                        }
                    }
                }
                _ => panic!("unknown: {line}"),
            }
        }
        let targets = self.chains.values().flatten().chain(self.elements.values());
        for target in targets.flat_map(|rule| rule.split("goto ").skip(1)) {
            let target = target.split([' ', ',']).next().unwrap();
            assert!(self.chains.contains_key(target), "no chain {target}");
        }
    }

    fn refers(&self, to: &str) -> bool {
        let mut all = self.chains.values().flatten().chain(self.elements.values());
        all.any(|rule| {
            rule.split([' ', ','])
                .collect::<Vec<_>>()
                .join(" ")
                .split(to)
                .skip(1)
                .any(|rest| rest.is_empty() || rest.starts_with(' '))
        })
    }
}

fn service_of(name: u8, variant: u8) -> Fragment {
    let mut spec =
        json!({"clusterIP": format!("10.43.0.{name}"), "ports": [{"port": 80, "nodePort": 30000 + u16::from(name)}]});
    // Two Services may want the same external address.
    if variant & 1 != 0 {
        spec["externalIPs"] = json!(["192.0.2.5"]);
    }
    if variant & 2 != 0 {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if variant & 4 != 0 {
        spec["externalTrafficPolicy"] = json!("Local");
    }
    let endpoints: Vec<_> = (0..variant >> 3).map(|n| (n + 2, if n % 2 == 0 { "you" } else { "me" })).collect();
    let mut service: Service =
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": format!("s{name}")}, "spec": spec}))
            .unwrap();
    service.status = None;
    let list: Vec<_> = endpoints
        .iter()
        .map(|(last, node)| json!({"addresses": [format!("10.42.0.{last}")], "nodeName": node, "conditions": {}}))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4",
        "endpoints": list, "ports": [{"name": "", "protocol": "TCP", "port": 8080}]}))
    .unwrap();
    fragment(&service, [&slice], &NodeFacts { name: "me".into(), zone: None }, &facts())
}

proptest! {
    #[test]
    fn any_order_of_changes_ends_where_the_whole_table_does(
        steps in proptest::collection::vec((1u8..5, proptest::option::of(0u8..32)), 0..30)
    ) {
        let mut rules = Ruleset::new(facts());
        let mut kernel = Kernel::default();
        kernel.apply(&rules.whole());
        let mut named = BTreeSet::new();
        for (name, variant) in steps {
            let key = Key::new("default", &format!("s{name}"));
            named.insert(key.clone());
            let new = variant.map(|variant| service_of(name, variant)).unwrap_or_default();
            kernel.apply(&rules.put(&key, new.clone()));
            prop_assert_eq!(rules.put(&key, new), "", "the same again is no change");
            let mut fresh = Kernel::default();
            fresh.apply(&rules.whole());
            prop_assert_eq!(&kernel, &fresh);
        }
        for key in named {
            kernel.apply(&rules.put(&key, Fragment::default()));
        }
        let mut empty = Kernel::default();
        empty.apply(&Ruleset::new(facts()).whole());
        prop_assert_eq!(kernel, empty);
    }
}

#[test]
fn a_change_costs_the_same_however_many_services_there_are() {
    let cost = |services: u8| {
        let mut rules = Ruleset::new(facts());
        for name in 1..=services {
            rules.put(&Key::new("default", &format!("s{name}")), service_of(name, 16));
        }
        rules.put(&Key::new("default", "s1"), service_of(1, 24)).len()
    };
    assert_eq!(cost(2), cost(200));
}
