//! Endpoints, ingresses and network policies (`pkg/apis/{core,discovery,networking}/validation`).

use std::collections::BTreeSet;

use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::Column;
use super::check::{self, Errors};
use super::fill::{count, len, selector_text, text};
use super::plain::{PLAIN, Plain, first_few, name_with_default};
use super::service::valid::special_address;
use crate::object;

const SHOWN_MAX: usize = 3;

pub(super) static ENDPOINTS: Plain = Plain {
    deprecated: Some("deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    creates_on_update: true,
    columns: &[Column::text("Endpoints")],
    row: |endpoints, _| vec![endpoints_text(endpoints)],
    default: |endpoints| {
        for port in object::items_mut(endpoints, "subsets").flat_map(|subset| object::items_mut(subset, "ports")) {
            super::fill::fill(port, "protocol", "TCP");
        }
    },
    validate: endpoints,
    ..PLAIN
};

pub(super) static SLICE: Plain = Plain {
    generation: true,
    columns: &[Column::text("AddressType"), Column::text("Ports"), Column::text("Endpoints")],
    row: |slice, _| {
        let port = |port: &Value| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None => port["name"].as_str().unwrap_or("*").to_owned(),
        };
        let ports: Vec<String> = object::items(slice, "ports").map(port).collect();
        let addresses = object::items(slice, "endpoints").flat_map(|endpoint| object::items(endpoint, "addresses"));
        let addresses: Vec<String> = addresses.map(|address| text(address).to_owned()).collect();
        let few = |items: &[String]| first_few(items, SHOWN_MAX, "<unset>");
        vec![text(&slice["addressType"]).into(), few(&ports), few(&addresses)]
    },
    validate: slice,
    validate_update: |errors, new, old| {
        check::immutable(errors, &Path::new("addressType"), &new["addressType"], &old["addressType"]);
    },
    ..PLAIN
};

pub(super) static INGRESS: Plain = Plain {
    status: true,
    generation: true,
    columns: &[Column::text("Class"), Column::text("Hosts"), Column::text("Address"), Column::text("Ports")],
    row: |ingress, _| {
        let spec = &ingress["spec"];
        let balanced = object::items(&ingress["status"]["loadBalancer"], "ingress");
        let address = |entry: &Value| {
            [&entry["ip"], &entry["hostname"]].map(text).into_iter().find(|t| !t.is_empty()).map(str::to_owned)
        };
        let addresses: BTreeSet<String> = balanced.filter_map(address).collect();
        vec![
            spec["ingressClassName"].as_str().unwrap_or("<none>").into(),
            hosts(spec),
            addresses.into_iter().collect::<Vec<_>>().join(",").into(),
            if len(&spec["tls"]) > 0 { "80, 443".into() } else { "80".into() },
        ]
    },
    validate: ingress,
    ..PLAIN
};

pub(super) static INGRESS_CLASS: Plain = Plain {
    generation: true,
    whole_table: true,
    columns: &[Column::text("Name"), Column::text("Controller"), Column::text("Parameters"), Column::text("Age")],
    row: |class, now| {
        let parameters = &class["spec"]["parameters"];
        let group = parameters["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
        let shown = match parameters.is_object() {
            true => format!("{}{group}/{}", text(&parameters["kind"]), text(&parameters["name"])),
            false => "<none>".to_owned(),
        };
        vec![
            name_with_default(class, &["ingressclass.kubernetes.io/is-default-class"]),
            text(&class["spec"]["controller"]).into(),
            shown.into(),
            super::fill::object_age(class, now),
        ]
    },
    default: |class| {
        if let Some(parameters) = class.get_mut("spec").and_then(|spec| spec.get_mut("parameters")) {
            object::default(parameters, "scope", "Cluster");
        }
    },
    validate_update: |errors, new, old| {
        let path = Path::new("spec").child("controller");
        check::immutable(errors, &path, &new["spec"]["controller"], &old["spec"]["controller"]);
    },
    ..PLAIN
};

pub(super) static POLICY: Plain = Plain {
    generation: true,
    columns: &[Column::text("Pod-Selector")],
    row: |policy, _| vec![selector_text(&policy["spec"]["podSelector"])],
    default: |policy| {
        let Some(spec) = policy.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        if len(&spec["policyTypes"]) == 0 {
            let egress = len(&spec["egress"]) > 0;
            spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
    },
    validate: policy,
    ..PLAIN
};

fn endpoints_text(endpoints: &Value) -> Value {
    let mut all = Vec::new();
    for subset in object::items(endpoints, "subsets") {
        let addresses: Vec<&str> = object::items(subset, "addresses").map(|address| text(&address["ip"])).collect();
        if len(&subset["ports"]) == 0 {
            all.extend(addresses.iter().map(|ip| (*ip).to_owned()));
        }
        for port in object::items(subset, "ports").map(|port| count(&port["port"])) {
            let joined = |ip: &&str| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
            all.extend(addresses.iter().map(joined));
        }
    }
    let none = if len(&endpoints["subsets"]) == 0 { "<none>" } else { "" };
    first_few(&all, SHOWN_MAX, none)
}

fn hosts(spec: &Value) -> Value {
    let rules = len(&spec["rules"]);
    let named: Vec<String> =
        object::items(spec, "rules").map(|rule| text(&rule["host"]).to_owned()).filter(|h| !h.is_empty()).collect();
    match named.len() {
        0 => "*".into(),
        _ if named.len() > SHOWN_MAX || named.len() == SHOWN_MAX && rules > SHOWN_MAX => {
            format!("{} + {} more...", named[..SHOWN_MAX].join(","), rules - SHOWN_MAX).into()
        }
        _ => named.join(",").into(),
    }
}

fn endpoints(errors: &mut Errors, endpoints: &Value) {
    for (index, subset) in object::items(endpoints, "subsets").enumerate() {
        let path = Path::new("subsets").index(index);
        if len(&subset["addresses"]) + len(&subset["notReadyAddresses"]) == 0 {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (at, address) in object::items(subset, list).enumerate() {
                let path = path.child(list).index(at);
                if let Some(ip) = check::ip(errors, &path.child("ip"), &address["ip"]) {
                    check::problems(errors, &path.child("ip"), text(&address["ip"]), special_address(ip));
                }
                check::optional(errors, &path.child("hostname"), &address["hostname"], check::dns_label);
            }
        }
        let many = len(&subset["ports"]) > 1;
        for (at, port) in object::items(subset, "ports").enumerate() {
            let path = path.child("ports").index(at);
            if many || !text(&port["name"]).is_empty() {
                check::name(errors, &path.child("name"), &port["name"], check::dns_label);
            }
            check::port_number(errors, &path.child("port"), &port["port"]);
            check::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        }
    }
}

fn slice(errors: &mut Errors, slice: &Value) {
    const ENDPOINTS_MAX: usize = 1000;
    const PORTS_MAX: usize = 20_000;
    let kinds = &["FQDN", "IPv4", "IPv6"];
    if !text(&slice["addressType"]).is_empty() {
        check::among(errors, &Path::new("addressType"), &slice["addressType"], kinds);
    }
    for (list, most) in [("endpoints", ENDPOINTS_MAX), ("ports", PORTS_MAX)] {
        if len(&slice[list]) > most {
            errors.push(FieldError::too_many(&Path::new(list), len(&slice[list]), most));
        }
    }
    for (index, endpoint) in object::items(slice, "endpoints").enumerate() {
        let path = Path::new("endpoints").index(index);
        if len(&endpoint["addresses"]) == 0 {
            errors.push(FieldError::required(&path.child("addresses"), "must contain at least 1 address"));
        }
        for (at, address) in object::items(endpoint, "addresses").enumerate() {
            let path = path.child("addresses").index(at);
            match text(&slice["addressType"]) {
                kind @ ("IPv4" | "IPv6") => {
                    let Some(ip) = check::ip(errors, &path, address) else { continue };
                    if ip.is_ipv4() != (kind == "IPv4") {
                        let why = format!("must be an {kind} address");
                        errors.push(FieldError::invalid(&path, text(address), why));
                    }
                    check::problems(errors, &path, text(address), special_address(ip));
                }
                "FQDN" => check::problems(errors, &path, text(address), check::dns_subdomain(text(address))),
                _ => {}
            }
        }
        check::optional(errors, &path.child("hostname"), &endpoint["hostname"], check::dns_label);
    }
    let mut known = Vec::new();
    for (index, port) in object::items(slice, "ports").enumerate() {
        let path = Path::new("ports").index(index);
        check::optional(errors, &path.child("name"), &port["name"], check::dns_label);
        let name = text(&port["name"]);
        if known.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        known.push(name);
        check::among(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

fn ingress(errors: &mut Errors, ingress: &Value) {
    let (spec, path) = (&ingress["spec"], Path::new("spec"));
    if len(&spec["rules"]) == 0 && !spec["defaultBackend"].is_object() {
        errors.push(FieldError::invalid(
            &path,
            spec.get("rules").cloned().unwrap_or_default(),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    check::optional(errors, &path.child("ingressClassName"), &spec["ingressClassName"], check::dns_subdomain);
    if spec["defaultBackend"].is_object() {
        backend(errors, &spec["defaultBackend"], &path.child("defaultBackend"));
    }
    for (index, rule) in object::items(spec, "rules").enumerate() {
        let rule_path = path.child("rules").index(index);
        let host = text(&rule["host"]);
        let bare = host.strip_prefix("*.").unwrap_or(host);
        if !host.is_empty() {
            check::problems(errors, &rule_path.child("host"), host, check::dns_subdomain(bare));
        }
        for (at, way) in object::items(&rule["http"], "paths").enumerate() {
            let path = rule_path.child("http").child("paths").index(at);
            let kind = text(&way["pathType"]);
            let kinds = &["Exact", "ImplementationSpecific", "Prefix"];
            if kind.is_empty() {
                errors.push(FieldError::required(&path.child("pathType"), "pathType must be specified"));
            } else {
                check::among(errors, &path.child("pathType"), &way["pathType"], kinds);
            }
            let place = text(&way["path"]);
            if matches!(kind, "Exact" | "Prefix") && !place.starts_with('/')
                || kind == "ImplementationSpecific" && !place.is_empty() && !place.starts_with('/')
            {
                errors.push(FieldError::invalid(&path.child("path"), place, "must be an absolute path"));
            }
            backend(errors, &way["backend"], &path.child("backend"));
        }
    }
}

fn backend(errors: &mut Errors, backend: &Value, path: &Path) {
    match (backend["service"].is_object(), backend["resource"].is_object()) {
        (true, true) => {
            let why = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", why));
        }
        (false, false) => errors.push(FieldError::invalid(path, "", "resource or service backend is required")),
        (true, false) => {
            let (service, holder, path) = (&backend["service"], path, path.child("service"));
            check::name(errors, &path.child("name"), &service["name"], check::dns_label);
            let (name, number) = (text(&service["port"]["name"]), count(&service["port"]["number"]));
            match (name, number) {
                ("", 0) => errors.push(FieldError::required(holder, "port name or number is required")),
                ("", _) => check::port_number(errors, &path.child("port").child("number"), &service["port"]["number"]),
                (_, 0) => check::problems(errors, &path.child("port").child("name"), name, check::port_name(name)),
                _ => errors.push(FieldError::invalid(&path, "", "cannot set both port name & port number")),
            }
        }
        (false, true) => {}
    }
}

fn policy(errors: &mut Errors, policy: &Value) {
    let (spec, path) = (&policy["spec"], Path::new("spec"));
    check::selector(errors, &path.child("podSelector"), &spec["podSelector"]);
    for (index, kind) in object::items(spec, "policyTypes").enumerate() {
        check::among(errors, &path.child("policyTypes").index(index), kind, &["Ingress", "Egress"]);
    }
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in object::items(spec, list).enumerate() {
            let path = path.child(list).index(index);
            for (at, port) in object::items(rule, "ports").enumerate() {
                let path = path.child("ports").index(at);
                check::among(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
                if !port["port"].is_null() {
                    check::port(errors, &path.child("port"), &port["port"]);
                }
            }
            for (at, peer) in object::items(rule, peers).enumerate() {
                network_peer(errors, peer, &path.child(peers).index(at));
            }
        }
    }
}

fn network_peer(errors: &mut Errors, peer: &Value, path: &Path) {
    for key in ["podSelector", "namespaceSelector"] {
        check::selector(errors, &path.child(key), &peer[key]);
    }
    let selects = !peer["podSelector"].is_null() || !peer["namespaceSelector"].is_null();
    match (selects, peer["ipBlock"].is_object()) {
        (false, false) => errors.push(FieldError::required(path, "must specify a peer")),
        (true, true) => errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer")),
        (true, false) => {}
        (false, true) => {
            let (block, path) = (&peer["ipBlock"], path.child("ipBlock"));
            for cidr in std::iter::once(&block["cidr"]).chain(object::items(block, "except")) {
                if check::cidr(text(cidr)).is_none() {
                    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                    errors.push(FieldError::invalid(&path.child("cidr"), text(cidr), why));
                }
            }
        }
    }
}
