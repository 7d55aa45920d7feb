//! The cluster's names: Services, their endpoints, pods by address.
//!
//! Names are looked up where they are kept, not in a copy of all records, so a change of one Service costs that
//! Service. Everything is lower case here; the border does the folding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kedge_client::Key;

use super::SPECIFICATION;

/// The most records one answer carries: what fits a message over TCP with room to spare.
const RECORDS_MAX: usize = 1000;

/// What is known below the cluster's domain.
#[derive(Debug)]
pub struct Zone {
    domain: Vec<String>,
    dns_address: Ipv4Addr,
    /// Whether the first lists are complete; before that "no such name" would be a guess.
    pub ready: bool,
    /// Counts changes; the serial number of the zone.
    pub serial: u32,
    services: BTreeMap<Key, Entry>,
    /// By Service, then by slice.
    slices: BTreeMap<Key, BTreeMap<String, Vec<Endpoint>>>,
    /// Which Services an address belongs to.
    reverse: BTreeMap<Ipv4Addr, BTreeSet<Key>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Address(Ipv4Addr, Vec<Port>),
    Headless,
    External(String),
}

#[derive(Clone, Debug, PartialEq)]
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

#[derive(Clone, Debug, PartialEq)]
struct Endpoint {
    address: Ipv4Addr,
    host: String,
    ports: Vec<Port>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There is no such name.
    Missing,
    /// The name exists, with these records (of every type).
    Records(Vec<Data>),
    /// Another name has the records.
    Alias(String),
}

/// One record, without name and time to live.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An address.
    A(Ipv4Addr),
    /// A port, how many share the load, and the full name that has the address (given beside it).
    Srv(u16, u16, String, Ipv4Addr),
    /// A full name.
    Ptr(String),
    /// Text.
    Txt(String),
}

impl Zone {
    /// An empty zone for `domain`, served at `dns_address`.
    pub fn new(domain: &str, dns_address: Ipv4Addr) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        Self {
            domain: domain.split('.').map(str::to_owned).collect(),
            dns_address,
            ready: false,
            serial: 1,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            reverse: BTreeMap::new(),
        }
    }

    /// The domain, without a dot at the end.
    pub fn domain(&self) -> String {
        self.domain.join(".")
    }

    /// The labels before the domain, when `labels` lie in it.
    pub fn inside<'a>(&self, labels: &'a [String]) -> Option<&'a [String]> {
        labels.strip_suffix(self.domain.as_slice())
    }

    /// What a name below the domain stands for, by its labels.
    pub fn lookup(&self, labels: &[String]) -> Lookup {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let exists = || Lookup::Records(Vec::new());
        match *labels.as_slice() {
            [] | ["svc" | "pod" | "dns"] => exists(),
            ["dns-version"] => Lookup::Records(vec![Data::Txt(SPECIFICATION.to_owned())]),
            ["ns", "dns"] => Lookup::Records(vec![Data::A(self.dns_address)]),
            [_, "pod"] => exists(),
            [address, _, "pod"] => match undashed(address) {
                Some(address) => Lookup::Records(vec![Data::A(address)]),
                None => Lookup::Missing,
            },
            [namespace, "svc"] => {
                let first = self.services.range(Key::new(namespace, "")..).next();
                if first.is_some_and(|(key, _)| key.namespace == namespace) { exists() } else { Lookup::Missing }
            }
            [name, namespace, "svc"] => self.service(&Key::new(namespace, name)),
            [part, name, namespace, "svc"] => self.below(part, &Key::new(namespace, name)),
            [port, protocol, name, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => self.ports(port, protocol, &Key::new(namespace, name)),
                _ => Lookup::Missing,
            },
            _ => Lookup::Missing,
        }
    }

    /// The names of an address; none when it is not the cluster's.
    pub fn names_of(&self, address: Ipv4Addr) -> Vec<Data> {
        let mut names = BTreeSet::new();
        for key in self.reverse.get(&address).into_iter().flatten() {
            if matches!(self.services.get(key), Some(Entry::Address(own, _)) if *own == address) {
                names.insert(Data::Ptr(self.full(key, None)));
            }
            if matches!(self.services.get(key), Some(Entry::Headless)) {
                let of_address = self.endpoints(key).filter(|endpoint| endpoint.address == address);
                names.extend(of_address.map(|endpoint| Data::Ptr(self.full(key, Some(&endpoint.host)))));
            }
        }
        names.into_iter().collect()
    }

    /// How many addresses can be asked for their names.
    #[cfg(test)]
    pub(super) fn reverse_len(&self) -> usize {
        self.reverse.len()
    }

    /// Takes in a Service, or that it is gone.
    pub fn set_service(&mut self, key: &Key, service: Option<&Service>) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(Entry::Address(address, _)) = self.services.remove(key) {
            self.unlink(address, key);
        }
        let Some(entry) = service.and_then(entry) else { return };
        if let Entry::Address(address, _) = &entry {
            self.reverse.entry(*address).or_default().insert(key.clone());
        }
        self.services.insert(key.clone(), entry);
    }

    /// Takes in a slice of a Service, or that it is gone.
    pub fn set_slice(&mut self, service: &Key, name: &str, slice: Option<&EndpointSlice>) {
        self.serial = self.serial.wrapping_add(1);
        let of_service = self.slices.entry(service.clone()).or_default();
        let old = of_service.remove(name).unwrap_or_default();
        let new = slice.map(endpoints).unwrap_or_default();
        let added: Vec<_> = new.iter().map(|endpoint| endpoint.address).collect();
        if !new.is_empty() {
            of_service.insert(name.to_owned(), new);
        } else if of_service.is_empty() {
            self.slices.remove(service);
        }
        let kept: BTreeSet<_> = self.endpoints(service).map(|endpoint| endpoint.address).collect();
        let own = |address| matches!(self.services.get(service), Some(Entry::Address(own, _)) if *own == address);
        let gone: Vec<_> = old.iter().map(|endpoint| endpoint.address).collect();
        let gone: Vec<_> = gone.into_iter().filter(|address| !kept.contains(address) && !own(*address)).collect();
        for address in gone {
            self.unlink(address, service);
        }
        for address in added {
            self.reverse.entry(address).or_default().insert(service.clone());
        }
    }

    fn unlink(&mut self, address: Ipv4Addr, key: &Key) {
        if let Some(keys) = self.reverse.get_mut(&address) {
            keys.remove(key);
            if keys.is_empty() {
                self.reverse.remove(&address);
            }
        }
    }

    fn service(&self, key: &Key) -> Lookup {
        match self.services.get(key) {
            None => Lookup::Missing,
            Some(Entry::Address(address, _)) => Lookup::Records(vec![Data::A(*address)]),
            Some(Entry::Headless) => records(self.endpoints(key).map(|endpoint| Data::A(endpoint.address))),
            Some(Entry::External(name)) => Lookup::Alias(name.clone()),
        }
    }

    /// One endpoint by host name, or the empty name between a Service and its ports.
    fn below(&self, part: &str, key: &Key) -> Lookup {
        match self.services.get(key) {
            None | Some(Entry::External(_)) => Lookup::Missing,
            Some(_) if matches!(part, "_tcp" | "_udp" | "_sctp") => Lookup::Records(Vec::new()),
            Some(_) => {
                let found = self.endpoints(key).filter(|endpoint| endpoint.host == part);
                match records(found.map(|endpoint| Data::A(endpoint.address))) {
                    Lookup::Records(none) if none.is_empty() => Lookup::Missing,
                    found => found,
                }
            }
        }
    }

    fn ports(&self, port: &str, protocol: &str, key: &Key) -> Lookup {
        let wanted = |p: &&Port| p.name == port && p.protocol == protocol;
        let found: Vec<_> = match self.services.get(key) {
            Some(Entry::Address(address, ports)) => {
                let all = ports.iter().filter(wanted);
                all.map(|p| (p.number, self.full(key, None), *address)).collect()
            }
            Some(Entry::Headless) => self
                .endpoints(key)
                .flat_map(|endpoint| endpoint.ports.iter().filter(wanted).map(move |p| (p.number, endpoint)))
                .map(|(number, endpoint)| (number, self.full(key, Some(&endpoint.host)), endpoint.address))
                .collect(),
            _ => Vec::new(),
        };
        if found.is_empty() {
            return Lookup::Missing;
        }
        let share = u16::try_from(found.len()).unwrap_or(u16::MAX);
        records(found.into_iter().map(|(number, target, address)| Data::Srv(number, share, target, address)))
    }

    fn endpoints(&self, key: &Key) -> impl Iterator<Item = &Endpoint> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values).flatten()
    }

    fn full(&self, key: &Key, host: Option<&str>) -> String {
        let host = host.map(|host| format!("{host}.")).unwrap_or_default();
        format!("{host}{}.{}.svc.{}", key.name, key.namespace, self.domain.join("."))
    }
}

/// Each record once, in a fixed order.
fn records(all: impl Iterator<Item = Data>) -> Lookup {
    Lookup::Records(all.collect::<BTreeSet<_>>().into_iter().take(RECORDS_MAX).collect())
}

fn entry(service: &Service) -> Option<Entry> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref().filter(|name| !name.is_empty())?;
        return Some(Entry::External(name.trim_end_matches('.').to_ascii_lowercase()));
    }
    match spec.cluster_ip.as_deref() {
        Some("None") => Some(Entry::Headless),
        Some(text) => {
            let port =
                |p: &k8s_openapi::api::core::v1::ServicePort| port(p.name.as_deref(), p.protocol.as_deref(), p.port);
            Some(Entry::Address(text.parse().ok()?, spec.ports.iter().flatten().filter_map(port).collect()))
        }
        None => None,
    }
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    if slice.address_type != "IPv4" {
        return Vec::new();
    }
    let of_slice = slice.ports.iter().flatten();
    let ports: Vec<_> = of_slice.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?)).collect();
    let ready = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    ready
        .flat_map(|endpoint| endpoint.addresses.iter().map(move |address| (endpoint, address)))
        .filter_map(|(endpoint, address)| {
            let address: Ipv4Addr = address.parse().ok()?;
            let dashed = || address.to_string().replace('.', "-");
            let host = endpoint.hostname.clone().filter(|host| !host.is_empty()).unwrap_or_else(dashed);
            Some(Endpoint { address, host: host.to_ascii_lowercase(), ports: ports.clone() })
        })
        .collect()
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number).ok()?,
    })
}

/// `10-42-0-5` as an address.
fn undashed(text: &str) -> Option<Ipv4Addr> {
    if text.contains('.') { None } else { text.replace('-', ".").parse().ok() }
}
