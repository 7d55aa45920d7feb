//! What is wrong with a pod's specification, in a pod as in a template.
//! (`ValidatePodSpec` and what it calls, of `pkg/apis/core/validation/validation.go`.)
//!
//! One file per part; this one joins them and looks at the fields of the specification itself.
//! Not here: what only a pod itself is checked for, and what an update may change (`pod`).

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::check::{self, Errors};
use super::fill::{len, text};
use crate::object;

mod affinity;
mod container;
mod env;
mod mounts;
mod probe;
mod resources;
mod scheduling;
mod security;
mod volume;

pub(super) use affinity::node_selector;
pub(super) use container::image_is_trimmed;
pub(super) use resources::{STANDARD, amount, resource_name};
pub(super) use scheduling::taint_effect;
pub(super) use volume::{access_modes, claim_spec};

/// What the parts need to know of the whole.
pub(super) struct Context<'a> {
    pub(super) spec: &'a Value,
    /// The whole object is a pod, not a template.
    pub(super) is_pod: bool,
}

impl<'a> Context<'a> {
    /// The volume called `name`.
    fn volume(&self, name: &str) -> Option<&'a Value> {
        object::items(self.spec, "volumes").find(|volume| volume["name"] == name)
    }

    /// Whether the pod's users are those of the node.
    fn host_users(&self) -> bool {
        self.spec["hostUsers"] != false
    }

    /// Every container of every list, with its path.
    pub(super) fn containers(&self, path: &Path) -> Vec<(&'a Value, Path)> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        let of = |list: &'static str| {
            let path = path.child(list);
            object::items(self.spec, list).enumerate().map(move |(index, c)| (c, path.index(index)))
        };
        lists.into_iter().flat_map(of).collect()
    }
}

/// What annotations of a pod or a template say about it (`ValidatePodSpecificAnnotations`).
pub(super) fn annotations(errors: &mut Errors, annotations: &Value, spec: &Value, path: &Path) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if !annotations[MIRROR].is_null() && text(&spec["nodeName"]).is_empty() {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(&path.key(MIRROR), text(&annotations[MIRROR]), why));
    }
    if let Some(cost) = annotations[DELETION_COST].as_str()
        && (cost.parse::<i32>().is_err() || cost.starts_with('+') || cost.len() > 1 && cost.starts_with('0'))
    {
        errors.push(FieldError::invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
}

/// Everything wrong with a pod's specification.
pub(super) fn validate(errors: &mut Errors, spec: &Value, is_pod: bool, path: &Path) {
    let context = Context { spec, is_pod };
    volume::volumes(errors, &context, &path.child("volumes"));
    resources::claims(errors, spec, &path.child("resourceClaims"));
    container::containers(errors, &context, path);
    resources::of_pod(errors, spec, path);
    host_network(errors, &context, &path.child("containers"));
    check::one_of(errors, &path.child("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    const DNS: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    check::one_of(errors, &path.child("dnsPolicy"), &spec["dnsPolicy"], DNS);
    check::labels(errors, &path.child("nodeSelector"), &spec["nodeSelector"]);
    security::of_pod(errors, &context, path);
    affinity::validate(errors, &spec["affinity"], &path.child("affinity"));
    dns(errors, spec, &path.child("dnsConfig"));
    scheduling::gates(errors, spec, path);
    scheduling::spread(errors, spec, &path.child("topologySpreadConstraints"));
    scheduling::tolerations(errors, &spec["tolerations"], &path.child("tolerations"));
    names_of(errors, spec, path);
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(&path.child("activeDeadlineSeconds"), seconds, why));
    }
    host_aliases(errors, spec, &path.child("hostAliases"));
    if !spec["preemptionPolicy"].is_null() {
        let policies = &["PreemptLowerPriority", "Never"];
        check::one_of(errors, &path.child("preemptionPolicy"), &spec["preemptionPolicy"], policies);
    }
    resources::overhead(errors, spec, &path.child("overhead"));
    operating_system(errors, &context, path);
}

fn names_of(errors: &mut Errors, spec: &Value, path: &Path) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        check::optional(errors, &path.child(key), &spec[key], check::dns_subdomain);
    }
    for key in ["hostname", "subdomain"] {
        check::optional(errors, &path.child(key), &spec[key], check::dns_label);
    }
    let Some(name) = spec["hostnameOverride"].as_str() else { return };
    let path = path.child("hostnameOverride");
    for (key, why) in [("setHostnameAsFQDN", "setHostnameAsFQDN"), ("hostNetwork", "hostNetwork")] {
        if spec[key] == true {
            errors.push(FieldError::forbidden(&path, format!("may not be specified when {why} is true")));
        }
    }
    if name.len() > 64 {
        errors.push(FieldError::too_long(&path, 64));
    }
    check::problems(errors, &path, name, check::dns_subdomain(name));
}

/// On the host's network a container's port is the host's.
fn host_network(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    if context.spec["hostNetwork"] != true {
        return;
    }
    for (at, container) in object::items(context.spec, "containers").enumerate() {
        for (index, port) in object::items(container, "ports").enumerate() {
            let host_port = port["hostPort"].as_i64().unwrap_or(0);
            if (context.is_pod || host_port != 0) && Some(host_port) != port["containerPort"].as_i64() {
                let path = path.index(at).child("ports").index(index).child("hostPort");
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&path, host_port, why));
            }
        }
    }
}

fn dns(errors: &mut Errors, spec: &Value, path: &Path) {
    const SERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    const SEARCH_BYTES_MAX: usize = 2048;
    let config = &spec["dnsConfig"];
    if spec["dnsPolicy"] == "None" && !config.is_object() {
        return errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
    }
    if spec["dnsPolicy"] == "None" && len(&config["nameservers"]) == 0 {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return errors.push(FieldError::required(&path.child("nameservers"), why));
    }
    if len(&config["nameservers"]) > SERVERS_MAX {
        let why = format!("must not have more than {SERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(&path.child("nameservers"), config["nameservers"].clone(), why));
    }
    for (index, server) in object::items(config, "nameservers").enumerate() {
        check::ip(errors, &path.child("nameservers").index(index), server);
    }
    let at = path.child("searches");
    let searches: Vec<&str> = object::items(config, "searches").map(text).collect();
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(FieldError::invalid(&at, config["searches"].clone(), why));
    }
    if searches.join(" ").len() > SEARCH_BYTES_MAX {
        let why =
            format!("must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list");
        errors.push(FieldError::invalid(&at, config["searches"].clone(), why));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        check::problems(errors, &at.index(index), search, search_domain(search));
    }
    for (index, option) in object::items(config, "options").enumerate() {
        if text(&option["name"]).is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
}

/// A domain as resolvers search it: underscores are fine (KEP-4427).
fn search_domain(domain: &str) -> Vec<String> {
    if domain.len() > 253 {
        return vec!["must be no more than 253 characters".to_owned()];
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let good = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (edge(bytes.first()) || part.starts_with('_')) && edge(bytes.last()) && bytes.iter().all(|b| inner(*b))
    };
    if domain.split('.').all(good) {
        return Vec::new();
    }
    let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
                must start and end with an alphanumeric character";
    const FORMAT: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
    vec![names::pattern_words(rule, FORMAT, &["example.com"])]
}

fn host_aliases(errors: &mut Errors, spec: &Value, path: &Path) {
    for (index, alias) in object::items(spec, "hostAliases").enumerate() {
        check::ip(errors, &path.index(index).child("ip"), &alias["ip"]);
        for (at, name) in object::items(alias, "hostnames").enumerate() {
            let path = path.index(index).child("hostnames").index(at);
            check::problems(errors, &path, text(name), check::dns_subdomain(text(name)));
        }
    }
}

/// Pods for Windows are nobody's here; what they may not have is still told, so that the cause is clear.
fn operating_system(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    let os = &context.spec["os"];
    if !os.is_object() {
        return;
    }
    match text(&os["name"]) {
        "" => errors.push(FieldError::required(&path.child("os").child("name"), "")),
        _ => check::among(errors, &path.child("os"), &os["name"], &["linux", "windows"]),
    }
    if os["name"] == "linux" {
        security::no_windows_options(errors, context, path);
    } else if os["name"] == "windows" {
        security::no_linux_options(errors, context, path);
    }
}
