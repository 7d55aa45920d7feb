//! What is wrong with a service (`validateService` of `pkg/apis/core/validation/validation.go`).

use std::net::IpAddr;

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::{Value, json};

use super::change::{has_health_port, is_external, kind};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::object;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
/// A day (`MaxClientIPServiceAffinitySeconds`).
const AFFINITY_SECONDS_MAX: i64 = 86_400;

pub(super) fn validate(service: &Value) -> Errors {
    let spec = &service["spec"];
    let path = Path::new("spec");
    let mut errors = Errors::new();
    let headless = is_headless(spec);
    if len(&spec["ports"]) == 0 && !headless && kind(service) != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    match kind(service) {
        kind @ ("LoadBalancer" | "NodePort") if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", why));
        }
        "ExternalName" => external_name(&mut errors, spec, &path),
        _ => {}
    }
    ports(&mut errors, service, &path.child("ports"));
    check::labels(&mut errors, &path.child("selector"), &spec["selector"]);
    affinity(&mut errors, spec, &path);
    if kind(service) != "ExternalName" {
        addresses(&mut errors, spec, &path);
    }
    for (index, ip) in object::items(spec, "externalIPs").enumerate() {
        external_ip(&mut errors, ip, &path.child("externalIPs").index(index));
    }
    check::one_of(&mut errors, &path.child("type"), &spec["type"], TYPES);
    balancer(&mut errors, service, &path);
    traffic(&mut errors, service, &path);
    errors
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Errors {
    let path = Path::new("spec");
    let (is, was) = (&new["spec"], &old["spec"]);
    let mut errors = Errors::new();
    if kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer" && is["loadBalancerClass"] != was["loadBalancerClass"]
    {
        let value = is["loadBalancerClass"].clone();
        errors.push(FieldError::invalid(&path.child("loadBalancerClass"), value, "may not change once set"));
    }
    if has_health_port(new) && has_health_port(old) && is["healthCheckNodePort"] != was["healthCheckNodePort"] {
        errors.push(FieldError::forbidden(&path.child("healthCheckNodePort"), "field is immutable"));
    }
    if [kind(new), kind(old)].contains(&"ExternalName") {
        return errors;
    }
    let (headless, was_headless) = (is_headless(is), is_headless(was));
    if !(headless && was_headless) {
        may_not_change(&mut errors, &path, is, was, "clusterIPs", "primary clusterIP can not be unset");
    }
    if !headless && !was_headless {
        may_not_change(&mut errors, &path, is, was, "ipFamilies", "primary ipFamily can not be unset");
    }
    errors
}

/// The first address and family stay; a second one may come and go.
fn may_not_change(errors: &mut Errors, path: &Path, is: &Value, was: &Value, key: &str, unset: &str) {
    let at = path.child(key).index(0);
    match (len(&is[key]), len(&was[key])) {
        (0, 1..) => errors.push(FieldError::invalid(&at, is.get(key).cloned().unwrap_or_default(), unset)),
        (1.., 1..) if is[key][0] != was[key][0] => {
            errors.push(FieldError::invalid(&at, is[key].clone(), "may not change once set"));
        }
        _ => {}
    }
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIPs"] == json!(["None"])
}

fn external_name(errors: &mut Errors, spec: &Value, path: &Path) {
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let present = if key == "ipFamilyPolicy" { !spec[key].is_null() } else { len(&spec[key]) > 0 };
        if present {
            errors.push(FieldError::forbidden(&path.child(key), "may not be set for ExternalName services"));
        }
    }
    let name = text(&spec["externalName"]);
    let name = name.strip_suffix('.').unwrap_or(name);
    check::name(errors, &path.child("externalName"), &name.into(), check::dns_subdomain);
}

fn ports(errors: &mut Errors, service: &Value, path: &Path) {
    let spec = &service["spec"];
    let many = len(&spec["ports"]) > 1;
    let (mut known, mut numbers, mut on_nodes) = (Vec::new(), Vec::new(), Vec::new());
    for (index, port) in object::items(spec, "ports").enumerate() {
        let path = path.index(index);
        let name = text(&port["name"]);
        if many || !name.is_empty() {
            check::name(errors, &path.child("name"), &port["name"], check::dns_label);
        }
        if !name.is_empty() && known.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        known.push(name);
        check::port_number(errors, &path.child("port"), &port["port"]);
        check::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        check::port(errors, &path.child("targetPort"), &port["targetPort"]);
        if !port["appProtocol"].is_null() {
            let protocol = text(&port["appProtocol"]);
            check::problems(errors, &path.child("appProtocol"), protocol, names::label_key(protocol));
        }
        let node_port = count(&port["nodePort"]);
        if node_port != 0 && kind(service) == "ClusterIP" {
            errors.push(FieldError::forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
        let (on_node, number) = ((&port["protocol"], node_port), (&port["protocol"], count(&port["port"])));
        if node_port != 0 && on_nodes.contains(&on_node) {
            errors.push(FieldError::duplicate(&path.child("nodePort"), node_port));
        }
        on_nodes.push(on_node);
        if numbers.contains(&number) {
            let shown = json!({"protocol": number.0, "port": number.1, "targetPort": 0});
            errors.push(FieldError::duplicate(&path, shown));
        }
        numbers.push(number);
    }
}

fn affinity(errors: &mut Errors, spec: &Value, path: &Path) {
    check::one_of(errors, &path.child("sessionAffinity"), &spec["sessionAffinity"], &["ClientIP", "None"]);
    if spec["sessionAffinity"] == "ClientIP" {
        let timeout = count(&spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]);
        if !(1..=AFFINITY_SECONDS_MAX).contains(&timeout) {
            let path = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
            let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
            errors.push(FieldError::invalid(&path, timeout, why));
        }
    }
}

/// `clusterIP`, `clusterIPs` and the families (`ValidateServiceClusterIPsRelatedFields`).
fn addresses(errors: &mut Errors, spec: &Value, path: &Path) {
    let at = path.child("clusterIPs");
    let (one, all) = (text(&spec["clusterIP"]), &spec["clusterIPs"]);
    match (one, len(all)) {
        ("", 0) => {}
        ("", _) => {
            errors.push(FieldError::invalid(&at, all.clone(), "must be empty when `clusterIP` is not specified"))
        }
        (_, 0) => errors.push(FieldError::required(&at, "")),
        _ if all[0] != one => errors.push(FieldError::invalid(&at, all.clone(), "first value must match `clusterIP`")),
        _ => {}
    }
    let mut seen = Vec::new();
    for (index, family) in object::items(spec, "ipFamilies").enumerate() {
        let path = path.child("ipFamilies").index(index);
        check::among(errors, &path, family, FAMILIES);
        if seen.contains(&family) {
            errors.push(FieldError::duplicate(&path, family.clone()));
        }
        seen.push(family);
    }
    check::among(errors, &path.child("ipFamilyPolicy"), &spec["ipFamilyPolicy"], FAMILY_POLICIES);
    let mut ips: Vec<IpAddr> = Vec::new();
    for (index, ip) in object::items(spec, "clusterIPs").enumerate() {
        if index == 0 && ip == "None" {
            if len(all) > 1 {
                return errors.push(FieldError::invalid(&at, all.clone(), "'None' must be the first and only value"));
            }
            continue;
        }
        let Some(parsed) = check::ip(errors, &at.index(index), ip) else { return };
        let family = text(&spec["ipFamilies"][index]);
        if !family.is_empty() && (family == "IPv4") != parsed.is_ipv4() {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(&at.index(index), ip.clone(), why));
        }
        ips.push(parsed);
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(&at, all.clone(), "may only hold up to 2 values"));
    }
    if ips.len() > 1 && ips.iter().all(|ip| ip.is_ipv4() == ips[0].is_ipv4()) {
        errors.push(FieldError::invalid(&at, all.clone(), "may specify no more than one IP for each IP family"));
    }
}

/// Addresses from elsewhere may not be the machine's own (`ValidateEndpointIP`).
fn external_ip(errors: &mut Errors, value: &Value, path: &Path) {
    if let Some(ip) = check::ip(errors, path, value) {
        check::problems(errors, path, value.clone(), special_address(ip));
    }
}

/// Why an address cannot be that of an endpoint.
pub(in crate::kinds) fn special_address(ip: IpAddr) -> Vec<String> {
    let link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let found: [(bool, &str); 4] = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local(&ip), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    found.into_iter().filter(|(is, _)| *is).map(|(_, why)| why.to_owned()).collect()
}

fn balancer(errors: &mut Errors, service: &Value, path: &Path) {
    let spec = &service["spec"];
    let only = "may only be used when `type` is 'LoadBalancer'";
    let balanced = kind(service) == "LoadBalancer";
    if len(&spec["loadBalancerSourceRanges"]) > 0 {
        let path = path.child("LoadBalancerSourceRanges");
        if !balanced {
            errors.push(FieldError::forbidden(&path, only));
        }
        for (index, range) in object::items(spec, "loadBalancerSourceRanges").enumerate() {
            if check::cidr(text(range).trim()).is_none() {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(&path.index(index), text(range).trim(), why));
            }
        }
    }
    if !balanced && !spec["allocateLoadBalancerNodePorts"].is_null() {
        errors.push(FieldError::forbidden(&path.child("allocateLoadBalancerNodePorts"), only));
    }
    let class = &spec["loadBalancerClass"];
    match (balanced, class.as_str()) {
        (_, None) => {}
        (true, Some(class)) => {
            check::problems(errors, &path.child("loadBalancerClass"), class, names::label_key(class));
        }
        (false, Some(_)) => errors.push(FieldError::forbidden(&path.child("loadBalancerClass"), only)),
    }
}

fn traffic(errors: &mut Errors, service: &Value, path: &Path) {
    let spec = &service["spec"];
    let at = path.child("externalTrafficPolicy");
    match (is_external(service), text(&spec["externalTrafficPolicy"])) {
        (false, "") => {}
        (false, policy) => {
            errors.push(FieldError::invalid(&at, policy, "may only be set for externally-accessible services"));
        }
        (true, _) => check::one_of(errors, &at, &spec["externalTrafficPolicy"], &["Cluster", "Local"]),
    }
    let at = path.child("healthCheckNodePort");
    match (has_health_port(service), count(&spec["healthCheckNodePort"])) {
        (false, 0) => {}
        (false, port) => {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(&at, port, why));
        }
        (true, 0) => errors.push(FieldError::required(&at, "")),
        (true, _) => check::port_number(errors, &at, &spec["healthCheckNodePort"]),
    }
    let at = path.child("internalTrafficPolicy");
    check::among(errors, &at, &spec["internalTrafficPolicy"], &["Cluster", "Local"]);
    check::among(errors, &path.child("trafficDistribution"), &spec["trafficDistribution"], DISTRIBUTIONS);
}
