//! Requests and limits.

use kedge_schema::field::{ErrorKind, FieldError, Path};
use kedge_schema::names;
use kedge_schema::quantity::Quantity;
use serde_json::Value;

use super::Context;
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{len, text};
use crate::kinds::pod::resources::{amounts, is_pod_level, of_containers};
use crate::object;

/// Names without a slash that mean something (`standardResources`).
pub(in crate::kinds) const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether the name belongs to Kubernetes itself.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether more may be promised than there is.
fn is_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge(name)
}

/// Whether the name is that of a device or the like, counted in whole numbers.
pub(in crate::kinds) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::label_key(&format!("requests.{name}")).is_empty()
}

/// A name of a resource anywhere (`validateResourceName`).
pub(in crate::kinds) fn resource_name(name: &str) -> Vec<String> {
    let found = names::label_key(name);
    let huge = is_huge(name) || name.starts_with("requests.hugepages-");
    if found.is_empty() && !name.contains('/') && !STANDARD.contains(&name) && !huge {
        return vec!["must be a standard resource type or fully qualified".to_owned()];
    }
    found
}

fn container_name(name: &str) -> Vec<String> {
    let mut found = resource_name(name);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_huge(name) {
            found.push("must be a standard resource for containers".to_owned());
        }
    } else if !is_native(name) && !is_extended(name) {
        found.push("doesn't follow extended resource name standard".to_owned());
    }
    found
}

/// An amount of a resource (`ValidateResourceQuantityValue`).
pub(in crate::kinds) fn amount(errors: &mut Errors, name: &str, value: &Value, path: &Path) {
    let Ok(quantity) = Quantity::parse(text(value)) else { return };
    if quantity.sign() < 0 {
        errors.push(FieldError::invalid(path, text(value), "must be greater than or equal to 0"));
    }
    const WHOLE: &[&str] = &[
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    if (WHOLE.contains(&name) || is_extended(name)) && !quantity.is_integer() {
        errors.push(FieldError::invalid(path, text(value), "must be an integer"));
    }
}

pub(super) fn of_container(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    let resources = &container["resources"];
    requirements(errors, resources, path, |errors, name, path| {
        check::problems(errors, path, name, container_name(name))
    });
    claim_names(errors, context.spec, resources, &path.child("claims"));
}

fn requirements(errors: &mut Errors, resources: &Value, path: &Path, name_rule: impl Fn(&mut Errors, &str, &Path)) {
    let (mut computes, mut huge) = (false, false);
    for list in ["limits", "requests"] {
        let at = path.child(list);
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let path = at.key(name);
            name_rule(errors, name, &path);
            amount(errors, name, value, &path);
            computes |= matches!(&**name, "cpu" | "memory");
            if is_huge(name) {
                huge = true;
                whole_pages(errors, name, value, &path);
            }
        }
    }
    let (limits, at) = (amounts(&resources["limits"]), path.child("requests"));
    for (name, request) in amounts(&resources["requests"]) {
        match limits.get(&name) {
            Some(limit) if *limit != request && !is_overcommitted(&name) => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&at, request.to_string(), why));
            }
            Some(limit) if request > *limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&at, request.to_string(), why));
            }
            None if !is_overcommitted(&name) => {
                let why = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&path.child("limits"), why));
            }
            _ => {}
        }
    }
    if huge && !computes {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn whole_pages(errors: &mut Errors, name: &str, value: &Value, path: &Path) {
    let size =
        name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok()).map_or(0, |size| size.value());
    let bytes = Quantity::parse(text(value)).map_or(0, |quantity| quantity.value());
    if size <= 0 || bytes % size != 0 {
        let why = format!("{} is not positive integer multiple of {name}", text(value));
        errors.push(FieldError::invalid(path, text(value), why));
    }
}

/// The names by which a container refers to the pod's resource claims.
fn claim_names(errors: &mut Errors, spec: &Value, resources: &Value, at: &Path) {
    let known: Vec<&str> = object::items(spec, "resourceClaims").map(|claim| text(&claim["name"])).collect();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, claim) in object::items(resources, "claims").enumerate() {
        let path = at.index(index);
        let (name, request) = (text(&claim["name"]), text(&claim["request"]));
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else {
            check::optional(errors, &path.child("request"), &claim["request"], check::dns_label);
            if seen.iter().any(|(n, r)| *n == name && (r.is_empty() || request.is_empty() || *r == request)) {
                let whole = seen.contains(&(name, "")) || request.is_empty();
                let shown = if whole { name.to_owned() } else { format!("{name}/{request}") };
                errors.push(FieldError::duplicate(&path, shown));
            }
            seen.push((name, request));
        }
        if !known.contains(&name) {
            let mut sorted = known.clone();
            sorted.sort_unstable();
            let names =
                if known.is_empty() { " which is empty".to_owned() } else { format!(": {}", sorted.join(", ")) };
            let why = format!("must be one of the names in pod.spec.resourceClaims{names}");
            errors.push(FieldError::with_value(ErrorKind::NotFound, &path, name, why));
        }
    }
}

/// The pod's resource claims (KEP-4381).
pub(super) fn claims(errors: &mut Errors, spec: &Value, at: &Path) {
    let mut known = Vec::new();
    for (index, claim) in object::items(spec, "resourceClaims").enumerate() {
        let path = at.index(index);
        let name = text(&claim["name"]);
        if known.contains(&name) && !name.is_empty() {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        } else {
            check::name(errors, &path.child("name"), &claim["name"], check::dns_label);
        }
        known.push(name);
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.into_iter().filter(|source| !claim[*source].is_null()).count() {
            0 => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(FieldError::invalid(&path, claim.clone(), why));
            }
            1 => {}
            _ => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(FieldError::invalid(&path, claim.clone(), why));
            }
        }
        for source in sources.into_iter().filter(|source| !claim[*source].is_null()) {
            let name = text(&claim[source]);
            check::problems(errors, &path.child(source), name, check::dns_subdomain(name));
        }
    }
}

/// What the pod as a whole asks for (KEP-2837).
pub(super) fn of_pod(errors: &mut Errors, spec: &Value, path: &Path) {
    let resources = &spec["resources"];
    if !resources.is_object() {
        return;
    }
    let path = path.child("resources");
    if spec["os"]["name"] == "windows" {
        return errors.push(FieldError::forbidden(&path, "may not be set for a windows pod"));
    }
    if len(&resources["claims"]) > 0 {
        let why = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(&path.child("claims"), why));
    }
    requirements(errors, resources, &path, |errors, name, path| {
        let found = resource_name(name);
        if found.is_empty() && !is_pod_level(name) {
            errors.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
        }
        check::problems(errors, path, name, found);
    });
    let requested = amounts(&resources["requests"]);
    for (name, sum) in of_containers(spec, "requests") {
        if let Some(own) = requested.get(&name).filter(|own| sum > **own) {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(FieldError::invalid(&path.child("requests").key(&name), own.to_string(), why));
        }
    }
    let limited = amounts(&resources["limits"]);
    for (name, sum) in of_containers(spec, "limits").into_iter().filter(|(name, _)| is_huge(name)) {
        if let Some(own) = limited.get(&name).filter(|own| sum > **own) {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.push(FieldError::invalid(&path.child("limits").key(&name), own.to_string(), why));
        }
    }
    for (index, container) in object::items(spec, "containers").enumerate() {
        for (name, limit) in amounts(&container["resources"]["limits"]) {
            if let Some(own) = limited.get(&name).filter(|own| limit > **own) {
                let path = path.child("containers").index(index).key(&name).child("limits");
                let why = format!("must be less than or equal to pod limits of {own}");
                errors.push(FieldError::invalid(&path, limit.to_string(), why));
            }
        }
    }
}

pub(super) fn overhead(errors: &mut Errors, spec: &Value, path: &Path) {
    let list = serde_json::json!({"limits": spec["overhead"]});
    let mut found = Errors::new();
    requirements(&mut found, &list, path, |errors, name, path| {
        check::problems(errors, path, name, container_name(name))
    });
    errors.extend(found);
}
