//! Addresses and node ports of services: taken from the cluster's ranges when a service is written.
//! (`pkg/registry/core/service/storage/alloc.go`, KEP-1880, KEP-3070.)
//!
//! What is taken is what the stored services have; there is no second list that could disagree with it. A service
//! on its way to the store holds its numbers as reservations: they are made under one lock together with the look
//! at the store, and end when the service is stored, and so seen there, or given up. So no two services get the
//! same number, and none is lost with a failed write.
//!
//! Clients may choose from the whole range; the server itself chooses from its upper part first, so that the
//! first addresses stay free for those who choose by hand.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use kedge_schema::field::{FieldError, Path};
use kedge_store::ResourceId;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::kinds::service::change::{has_health_port, node_ports};
use crate::object;
use crate::rest::save::Part;

pub(super) struct ServiceAddresses;

impl Plugin for ServiceAddresses {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.is("", "Service") || attempt.part != Part::Main || !attempt.new["spec"].is_object() {
            return Ok(());
        }
        let settings = attempt.call.api.settings();
        let range = Range::parse(&settings.service_cidr)
            .ok_or_else(|| ApiError::internal(format!("service CIDR {:?} is no CIDR", settings.service_cidr)))?;
        families(attempt.new, attempt.old, &range).map_err(|errors| invalid(attempt, &errors))?;
        let reservations = attempt.call.api.reservations().clone();
        let mut taken = reservations.0.lock();
        let mut pool = Pool { attempt, taken: &mut taken, all: &reservations, stored_ports: None };
        pool.address(&range)?;
        pool.ports()
    }
}

fn invalid(attempt: &Attempt<'_, '_>, errors: &[FieldError]) -> ApiError {
    ApiError::invalid("", "Service", object::name(attempt.new), errors)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Numbers held by services on their way to the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reservations(Arc<Mutex<HashSet<String>>>);

/// One number held until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    what: String,
    all: Reservations,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.what);
    }
}

/// The families a service is of, as far as a cluster with one range allows (`initIPFamilyFields`).
fn families(service: &mut Value, old: Option<&Value>, range: &Range) -> Result<(), Vec<FieldError>> {
    let spec = &mut service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(());
    }
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    let bare = spec["clusterIP"] == "None" && spec["selector"].as_object().is_none_or(|map| map.is_empty());
    if spec["ipFamilyPolicy"].is_null() {
        let before = old.map(|old| &old["spec"]["ipFamilyPolicy"]).filter(|policy| !policy.is_null());
        let policy = if bare { "RequireDualStack" } else { "SingleStack" };
        spec["ipFamilyPolicy"] = before.cloned().unwrap_or_else(|| policy.into());
    }
    if count(&spec["ipFamilies"]) == 0 {
        spec["ipFamilies"] = json!([range.family()]);
    }
    let path = Path::new("spec");
    let policy = spec["ipFamilyPolicy"].clone();
    if policy == "SingleStack" && count(&spec["ipFamilies"]) == 2 {
        let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
        return Err(vec![FieldError::invalid(&path.child("ipFamilyPolicy"), policy, why)]);
    }
    if bare {
        if policy != "SingleStack" && count(&spec["ipFamilies"]) < 2 {
            let other = if spec["ipFamilies"][0] == "IPv4" { "IPv6" } else { "IPv4" };
            spec["ipFamilies"].as_array_mut().expect("filled in above").push(other.into());
        }
        return Ok(());
    }
    let mut errors = Vec::new();
    if policy == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(&path.child("ipFamilyPolicy"), policy, why));
    }
    for (index, family) in object::items(spec, "ipFamilies").enumerate().filter(|(_, f)| **f != range.family()) {
        let path = path.child("ipFamilies").index(index);
        errors.push(FieldError::invalid(&path, family.clone(), "not configured on this cluster"));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What one service may take, with the lock held.
struct Pool<'p, 'a, 'c> {
    attempt: &'p mut Attempt<'a, 'c>,
    taken: &'p mut HashSet<String>,
    all: &'p Reservations,
    /// Node ports of all other services; read when first needed.
    stored_ports: Option<HashSet<i64>>,
}

impl Pool<'_, '_, '_> {
    fn reserve(&mut self, what: String) {
        self.taken.insert(what.clone());
        self.attempt.held.push(Reservation { what, all: self.all.clone() });
    }

    fn services(&self) -> Vec<Arc<kedge_store::Entry>> {
        let own = object::key(self.attempt.new);
        let store = self.attempt.call.api.store();
        let page = store.list(&ResourceId::new("", "services"), None, None, None, usize::MAX, |e| e.key != own);
        page.expect("the newest revision is never gone").entries
    }

    fn address(&mut self, range: &Range) -> Result<(), ApiError> {
        let spec = &self.attempt.new["spec"];
        let asked = text(&spec["clusterIP"]).to_owned();
        let has = self.attempt.old.map(|old| text(&old["spec"]["clusterIP"]));
        if spec["type"] == "ExternalName" || asked == "None" || has == Some(&asked) && !asked.is_empty() {
            return Ok(());
        }
        let stored = self.services();
        let in_store: HashSet<&str> = stored.iter().filter_map(|entry| entry.facets.field("spec.clusterIP")).collect();
        let key = |ip: &str| format!("address {ip}");
        let free = |ip: &str| !in_store.contains(ip) && !self.taken.contains(&key(ip));
        let chosen = if asked.is_empty() {
            let start = self.attempt.call.api.world().random.number();
            range.choose(start, |ip| free(&ip.to_string())).map(|ip| ip.to_string()).ok_or_else(|| {
                ApiError::internal(format!(
                    "failed to allocate a serviceIP for Service {:?}: range is full",
                    object::name(self.attempt.new)
                ))
            })?
        } else {
            let Ok(ip) = asked.parse::<IpAddr>() else { return Ok(()) }; // Validation tells of it.
            let why = if !range.contains(ip) {
                format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}", range.text)
            } else if !free(&ip.to_string()) {
                "provided IP is already allocated".to_owned()
            } else {
                self.reserve(key(&ip.to_string()));
                return Ok(());
            };
            let path = Path::new("spec").child("clusterIPs");
            let value = self.attempt.new["spec"]["clusterIPs"].clone();
            let error = FieldError::invalid(&path, value, format!("failed to allocate IP {asked}: {why}"));
            return Err(invalid(self.attempt, &[error]));
        };
        self.reserve(key(&chosen));
        self.attempt.new["spec"]["clusterIPs"] = json!([chosen]);
        self.attempt.new["spec"]["clusterIP"] = chosen.into();
        Ok(())
    }

    fn ports(&mut self) -> Result<(), ApiError> {
        let spec = &self.attempt.new["spec"];
        let allocates = match text(&spec["type"]) {
            "NodePort" => true,
            "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        let may_have = matches!(text(&spec["type"]), "NodePort" | "LoadBalancer");
        let before = self.attempt.old.map(node_ports).unwrap_or_default();
        // The same port number under two protocols shares one node port.
        let mut by_port: Vec<(i64, i64)> = Vec::new();
        let ports: Vec<Value> = object::items(spec, "ports").cloned().collect();
        for (index, port) in ports.iter().enumerate().filter(|_| may_have) {
            let (number, asked) = (port["port"].as_i64().unwrap_or(0), port["nodePort"].as_i64().unwrap_or(0));
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            let same = ports.iter().filter(|p| p["port"] == port["port"]).find_map(|p| p["nodePort"].as_i64());
            let known = by_port.iter().find(|(p, _)| *p == number).map(|(_, node)| *node).or(same.filter(|p| *p != 0));
            let chosen = match (asked, known) {
                (0, _) if !allocates => continue,
                (0, Some(known)) => known,
                (0, None) => self.next_port()?,
                (asked, _) => asked,
            };
            if !before.contains(&chosen) && !by_port.iter().any(|(_, node)| *node == chosen) {
                self.take_port(chosen, &path)?;
            }
            by_port.push((number, chosen));
            self.attempt.new["spec"]["ports"][index]["nodePort"] = chosen.into();
        }
        self.health_port()
    }

    fn health_port(&mut self) -> Result<(), ApiError> {
        let has = |service: &Value| service["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0);
        let asked = has(self.attempt.new);
        if !has_health_port(self.attempt.new) || asked != 0 && self.attempt.old.map(has) == Some(asked) {
            return Ok(());
        }
        let port = if asked == 0 { self.next_port()? } else { asked };
        self.take_port(port, &Path::new("spec").child("healthCheckNodePort"))?;
        self.attempt.new["spec"]["healthCheckNodePort"] = port.into();
        Ok(())
    }

    fn is_port_free(&mut self, port: i64) -> bool {
        if self.stored_ports.is_none() {
            let ports = self.services().into_iter().flat_map(|entry| {
                let service = object::decode(&entry.bytes);
                let health = service["spec"]["healthCheckNodePort"].as_i64().filter(|port| *port != 0);
                node_ports(&service).into_iter().chain(health).collect::<Vec<_>>()
            });
            self.stored_ports = Some(ports.collect());
        }
        let stored = self.stored_ports.as_ref().expect("read above");
        !stored.contains(&port) && !self.taken.contains(&format!("port {port}"))
    }

    fn next_port(&mut self) -> Result<i64, ApiError> {
        let (first, last) = self.attempt.call.api.settings().node_ports;
        let (first, size) = (i64::from(first), i64::from(last) - i64::from(first) + 1);
        let start = (self.attempt.call.api.world().random.number() % size.max(1) as u64) as i64;
        let mut ports = (0..size).map(|step| first + (start + step) % size);
        let found = ports.find(|port| self.is_port_free(*port));
        found.ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    }

    fn take_port(&mut self, port: i64, path: &Path) -> Result<(), ApiError> {
        let (first, last) = self.attempt.call.api.settings().node_ports;
        let why = if !(i64::from(first)..=i64::from(last)).contains(&port) {
            format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
        } else if !self.is_port_free(port) {
            "provided port is already allocated".to_owned()
        } else {
            self.reserve(format!("port {port}"));
            return Ok(());
        };
        Err(invalid(self.attempt, &[FieldError::invalid(path, port, why)]))
    }
}

/// The addresses services may have: all of a network but the first, and for IPv4 the last, one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    text: String,
    v4: bool,
    first: u128,
    size: u128,
}

impl Range {
    /// Reads a CIDR.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
        let (v4, width, number): (bool, u32, u128) = match address {
            IpAddr::V4(ip) => (true, 32, u128::from(u32::from(ip))),
            IpAddr::V6(ip) => (false, 128, u128::from(ip)),
        };
        // 2^16 addresses are as many as upstream hands out of a larger IPv6 network at a time; 64 bits are plenty.
        let host_bits = width.checked_sub(bits).filter(|bits| *bits >= 2)?.min(64);
        let base = number >> host_bits << host_bits;
        let usable = (1u128 << host_bits) - if v4 { 2 } else { 1 };
        Some(Self { text: text.to_owned(), v4, first: base + 1, size: usable })
    }

    /// The first address: the API server's own service has it.
    pub(crate) fn first(&self) -> IpAddr {
        self.at(0)
    }

    fn at(&self, index: u128) -> IpAddr {
        let number = self.first + index;
        if self.v4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let number = match ip {
            IpAddr::V4(ip) if self.v4 => u128::from(u32::from(ip)),
            IpAddr::V6(ip) if !self.v4 => u128::from(ip),
            _ => return false,
        };
        (self.first..self.first + self.size).contains(&number)
    }

    fn family(&self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    /// How many addresses at the beginning are left to those who choose by hand (KEP-3070).
    fn reserved(&self) -> u128 {
        (self.size / 16).clamp(16, 256).min(self.size / 2)
    }

    /// A free address: from a random place on in the upper part, then in the lower.
    fn choose(&self, start: u64, free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let reserved = self.reserved();
        let upper = self.size - reserved;
        let start = u128::from(start) % upper;
        let candidates = (0..upper).map(|step| reserved + (start + step) % upper).chain(0..reserved);
        candidates.map(|index| self.at(index)).find(|ip| free(*ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = Range::parse("10.43.0.0/24").unwrap();
        assert_eq!(range.first().to_string(), "10.43.0.1");
        assert!(range.contains("10.43.0.254".parse().unwrap()) && !range.contains("10.43.0.255".parse().unwrap()));
        let mut taken: HashSet<IpAddr> = HashSet::new();
        while let Some(ip) = range.choose(7_777, |ip| !taken.contains(&ip)) {
            let index = taken.len();
            assert!(range.contains(ip) && taken.insert(ip));
            assert_eq!(
                index < 238,
                u32::from_be_bytes(ip.to_string().parse::<Ipv4Addr>().unwrap().octets()) & 255 > 16
            );
        }
        assert_eq!(taken.len(), 254);
        assert_eq!(Range::parse("10.43.0.0/31"), None);
        assert_eq!(Range::parse("fd00::/108").unwrap().first().to_string(), "fd00::1");
    }

    #[test]
    fn families_of_a_single_stack_cluster() {
        let range = Range::parse("10.43.0.0/16").unwrap();
        let check = |spec: Value, expected: Option<(&str, Value)>| {
            let mut service = json!({ "spec": spec });
            match families(&mut service, None, &range) {
                Ok(()) => assert_eq!(
                    (service["spec"]["ipFamilyPolicy"].as_str(), service["spec"]["ipFamilies"].clone()),
                    expected.map(|(policy, families)| (Some(policy), families)).expect("to be refused")
                ),
                Err(errors) => assert!(expected.is_none(), "{errors:?}"),
            }
        };
        check(json!({}), Some(("SingleStack", json!(["IPv4"]))));
        check(json!({"ipFamilyPolicy": "PreferDualStack"}), Some(("PreferDualStack", json!(["IPv4"]))));
        check(json!({"clusterIP": "None"}), Some(("RequireDualStack", json!(["IPv4", "IPv6"]))));
        check(json!({"clusterIP": "None", "selector": {"a": "b"}}), Some(("SingleStack", json!(["IPv4"]))));
        check(json!({"ipFamilyPolicy": "RequireDualStack"}), None);
        check(json!({"ipFamilies": ["IPv6"]}), None);
        check(json!({"ipFamilies": ["IPv4", "IPv6"]}), None);
    }

    #[tokio::test]
    async fn a_client_that_leaves_frees_no_address() {
        let api = crate::testing::open().await;
        let service = |name: String| {
            let spec = json!({ "clusterIP": "10.43.0.77", "ports": [{ "port": 80 }] });
            let body = json!({ "metadata": { "name": name }, "spec": spec }).to_string();
            crate::testing::incoming("a", "POST /api/v1/namespaces/default/services", "application/json", body)
        };
        let leaving: Vec<_> = (0..8).map(|n| api.handle(service(format!("s{n}")))).collect();
        for request in leaving {
            // As far as it goes without waiting, and no further.
            let mut request = Box::pin(request);
            assert!(futures::poll!(&mut request).is_pending());
            tokio::task::yield_now().await;
        }
        let services = ResourceId::new("", "services");
        let stored = || {
            let page = api.store().list(&services, None, None, None, usize::MAX, |_| true).unwrap();
            page.entries.iter().map(|entry| entry.key.name.to_string()).collect::<Vec<_>>()
        };
        while stored().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(crate::testing::answer(&api, service("last".into())).await.0, 422);
        assert_eq!(stored().len(), 1, "{:?}", stored());
        assert!(api.reservations().0.lock().is_empty());
    }
}
