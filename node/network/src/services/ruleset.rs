//! All Services' rules, and the batch that leads from one state to the next.
//!
//! Two Services may claim one address and port (external addresses are not checked by the API): the first in order
//! of names has it, and the other gets it when the first lets go. The kernel would refuse the whole batch otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use kedge_client::Key;

use super::fragment::{Element, Fragment, Map};
use crate::Ipv4Cidr;

/// The bit that says: masquerade this connection. Upstream uses the same.
pub(super) const MASQUERADE_MARK: &str = "0x4000";

/// What the table is made from, beside Services.
#[derive(Clone, Debug)]
pub struct TableFacts {
    /// The table.
    pub table: String,
    /// All pods.
    pub cluster_cidr: Ipv4Cidr,
    /// All cluster addresses of Services.
    pub service_cidr: Ipv4Cidr,
    /// What the node's ends of pods' links begin with.
    pub pod_links: String,
    /// What a pod sees of the node.
    pub gateway: Ipv4Addr,
}

/// The rules of all Services.
#[derive(Clone, Debug)]
pub struct Ruleset {
    facts: TableFacts,
    fragments: BTreeMap<Key, Fragment>,
    claims: BTreeMap<Element, BTreeMap<Key, String>>,
}

impl Ruleset {
    /// No Services.
    pub fn new(facts: TableFacts) -> Self {
        Self { facts, fragments: BTreeMap::new(), claims: BTreeMap::new() }
    }

    /// What the table is made from.
    pub fn facts(&self) -> &TableFacts {
        &self.facts
    }

    /// The rules of one Service.
    pub fn get(&self, key: &Key) -> Option<&Fragment> {
        self.fragments.get(key)
    }

    /// Puts a Service's rules in place of its old ones (an empty fragment removes it); the batch that does it.
    pub fn put(&mut self, key: &Key, new: Fragment) -> String {
        let old = self.fragments.remove(key).unwrap_or_default();
        if old == new {
            if new != Fragment::default() {
                self.fragments.insert(key.clone(), new);
            }
            return String::new();
        }
        let mut batch = Batch { table: &self.facts.table, text: String::new() };
        for (set, seconds) in new.sets.iter().filter(|(set, _)| !old.sets.contains_key(*set)) {
            batch.set(set, *seconds);
        }
        for chain in new.chains.keys().filter(|chain| !old.chains.contains_key(*chain)) {
            batch.line("add chain", chain);
        }
        for (chain, rules) in new.chains.iter().filter(|(chain, rules)| old.chains.get(*chain) != Some(rules)) {
            if old.chains.contains_key(chain) {
                batch.line("flush chain", chain);
            }
            batch.rules(chain, rules);
        }
        let touched: BTreeSet<_> = old.elements.keys().chain(new.elements.keys()).cloned().collect();
        for element in touched {
            let before = owner(&self.claims, &element).cloned();
            let claims = self.claims.entry(element.clone()).or_default();
            match new.elements.get(&element) {
                Some(verdict) => claims.insert(key.clone(), verdict.clone()),
                None => claims.remove(key),
            };
            if claims.is_empty() {
                self.claims.remove(&element);
            }
            let after = owner(&self.claims, &element);
            if before.as_ref() != after {
                batch.element("delete", &element, before.as_ref());
                batch.element("add", &element, after);
            }
        }
        let gone: Vec<_> = old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)).collect();
        // All of them first: they may lead to each other.
        gone.iter().for_each(|chain| batch.line("flush chain", chain));
        gone.iter().for_each(|chain| batch.line("delete chain", chain));
        old.sets.keys().filter(|set| !new.sets.contains_key(*set)).for_each(|set| batch.line("delete set", set));
        let text = batch.text;
        if new != Fragment::default() {
            self.fragments.insert(key.clone(), new);
        }
        text
    }

    /// The whole table in place of whatever is there, in one transaction.
    pub fn whole(&self) -> String {
        let table = &self.facts.table;
        let mut batch = Batch { table, text: format!("add table ip {table}\ndelete table ip {table}\n") };
        batch.frame(&self.facts);
        for fragment in self.fragments.values() {
            fragment.sets.iter().for_each(|(set, seconds)| batch.set(set, *seconds));
            fragment.chains.keys().for_each(|chain| batch.line("add chain", chain));
            fragment.chains.iter().for_each(|(chain, rules)| batch.rules(chain, rules));
        }
        for map in Map::ALL {
            let of_map = self.claims.keys().filter(|(of, _)| *of == map);
            let pairs = of_map.filter_map(|e| Some(format!("{} : {}", e.1, owner(&self.claims, e)?)));
            let pairs: Vec<_> = pairs.collect();
            if !pairs.is_empty() {
                writeln!(batch.text, "add element ip {table} {} {{ {} }}", map.name(), pairs.join(", ")).expect("fits");
            }
        }
        batch.text
    }
}

fn owner<'a>(claims: &'a BTreeMap<Element, BTreeMap<Key, String>>, element: &Element) -> Option<&'a String> {
    claims.get(element)?.values().next()
}

struct Batch<'a> {
    table: &'a str,
    text: String,
}

impl Batch<'_> {
    fn line(&mut self, verb: &str, rest: &str) {
        writeln!(self.text, "{verb} ip {} {rest}", self.table).expect("a string takes all");
    }

    fn set(&mut self, name: &str, seconds: u32) {
        self.line("add set", &format!("{name} {{ type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; }}"));
    }

    fn rules(&mut self, chain: &str, rules: &[String]) {
        rules.iter().for_each(|rule| self.line("add rule", &format!("{chain} {rule}")));
    }

    fn element(&mut self, verb: &str, (map, key): &Element, verdict: Option<&String>) {
        if let Some(verdict) = verdict {
            self.line(&format!("{verb} element"), &format!("{} {{ {key} : {verdict} }}", map.name()));
        }
    }

    /// What does not depend on any Service.
    fn frame(&mut self, facts: &TableFacts) {
        let TableFacts { cluster_cidr, service_cidr, pod_links, gateway, .. } = facts;
        writeln!(self.text, "add table ip {}", self.table).expect("a string takes all");
        for map in Map::ALL {
            let address = if map.by_address() { "ipv4_addr . " } else { "" };
            self.line("add map", &format!("{} {{ type {address}inet_proto . inet_service : verdict; }}", map.name()));
        }
        self.line("add chain", "reject-it");
        self.rules("reject-it", &["reject".to_owned()]);
        let by_address = "ip daddr . meta l4proto . th dport vmap";
        let by_port = "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap";
        self.line("add chain", "services");
        self.line("add chain", "stuck");
        self.line("add chain", "firewall");
        let from_outside = format!("ip saddr != {cluster_cidr} fib saddr type != local");
        self.rules(
            "services",
            &[
                format!("ip daddr {service_cidr} {from_outside} meta mark set meta mark | {MASQUERADE_MARK}"),
                format!("{by_address} @service-ips"),
                format!("{by_port} @node-ports"),
            ],
        );
        self.rules(
            "stuck",
            &[
                "ct status dnat return".to_owned(),
                format!("{by_address} @no-endpoints"),
                format!("{by_port} @no-endpoint-node-ports"),
                format!("ip daddr {service_cidr} fib daddr type != local reject"),
            ],
        );
        self.rules("firewall", &[format!("{by_address} @firewall-ips")]);
        for (hook, short) in [("prerouting", "pre"), ("output", "out")] {
            for (kind, priority, target) in
                [("filter", "-110", "firewall"), ("nat", "-100", "services"), ("filter", "-80", "stuck")]
            {
                let name = format!("{short}-{target}");
                let base = format!("{name} {{ type {kind} hook {hook} priority {priority}; policy accept; }}");
                self.line("add chain", &base);
                self.rules(&name, &[format!("ct state new jump {target}")]);
            }
        }
        self.line("add chain", "postrouting { type nat hook postrouting priority 100; policy accept; }");
        self.rules(
            "postrouting",
            &[
                format!("meta mark & {MASQUERADE_MARK} == 0 return"),
                format!("meta mark set meta mark & 0xffffbfff oifname \"{pod_links}*\" snat to {gateway}"),
                "masquerade".to_owned(),
            ],
        );
    }
}
