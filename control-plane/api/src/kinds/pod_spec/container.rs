//! Containers of all three kinds.

use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::{Context, env, mounts, probe, resources, security};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::kinds::pod::resources::is_sidecar;
use crate::object;

const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

pub(super) fn containers(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    let spec = context.spec;
    let mut known: Vec<&str> = Vec::new();
    let at = path.child("containers");
    if len(&spec["containers"]) == 0 {
        errors.push(FieldError::required(&at, ""));
    }
    for (index, container) in object::items(spec, "containers").enumerate() {
        let path = at.index(index);
        common(errors, context, container, &path);
        unique(errors, &mut known, container, &path);
        probe::all(errors, context, container, &path);
        restart_policy(errors, container, &path);
    }
    host_ports(errors, object::items(spec, "containers"), &at);
    init_containers(errors, context, &mut known, &path.child("initContainers"));
    ephemeral_containers(errors, context, known, &path.child("ephemeralContainers"));
}

fn init_containers<'a>(errors: &mut Errors, context: &Context<'a>, known: &mut Vec<&'a str>, at: &Path) {
    for (index, container) in object::items(context.spec, "initContainers").enumerate() {
        let path = at.index(index);
        common(errors, context, container, &path);
        restart_policy(errors, container, &path);
        unique(errors, known, container, &path);
        host_ports(errors, std::iter::once(container), at);
        if is_sidecar(container) {
            probe::all(errors, context, container, &path);
            continue;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if !container[key].is_null() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(&path.child(key), why));
            }
        }
        for (at, policy) in object::items(container, "resizePolicy").enumerate() {
            if policy["restartPolicy"] == "RestartContainer" {
                let path = path.child("resizePolicy").index(at).child("restartPolicy");
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.push(FieldError::invalid(&path, "RestartContainer", why));
            }
        }
    }
}

fn ephemeral_containers<'a>(errors: &mut Errors, context: &Context<'a>, mut known: Vec<&'a str>, at: &Path) {
    let others = known.clone();
    for (index, container) in object::items(context.spec, "ephemeralContainers").enumerate() {
        let path = at.index(index);
        common(errors, context, container, &path);
        unique(errors, &mut known, container, &path);
        let target = text(&container["targetContainerName"]);
        if !target.is_empty() && !others.contains(&target) {
            errors.push(FieldError::not_found(&path.child("targetContainerName"), target));
        }
        let why = "cannot be set for an Ephemeral Container";
        const FORBIDDEN: &[&str] = &[
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ];
        for key in FORBIDDEN.iter().filter(|key| is_set(&container[**key])) {
            errors.push(FieldError::forbidden(&path.child(key), why));
        }
        for (at, mount) in object::items(container, "volumeMounts").enumerate() {
            for key in ["subPath", "subPathExpr"].into_iter().filter(|key| !text(&mount[*key]).is_empty()) {
                errors.push(FieldError::forbidden(&path.child("volumeMounts").index(at).child(key), why));
            }
        }
        image_is_trimmed(errors, container, &path);
    }
}

/// Whether there is anything in it.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => len(value) > 0,
        _ => true,
    }
}

/// Images of pods, unlike those of templates, are taken as they are written.
pub(in crate::kinds) fn image_is_trimmed(errors: &mut Errors, container: &Value, path: &Path) {
    let image = text(&container["image"]);
    if image.trim().len() != image.len() {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, why));
    }
}

fn unique<'a>(errors: &mut Errors, known: &mut Vec<&'a str>, container: &'a Value, path: &Path) {
    let name = text(&container["name"]);
    if known.contains(&name) {
        errors.push(FieldError::duplicate(&path.child("name"), name));
    } else {
        known.push(name);
    }
}

fn common(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    check::name(errors, &path.child("name"), &container["name"], check::dns_label);
    check::required(errors, &path.child("image"), &container["image"]);
    let at = path.child("terminationMessagePolicy");
    check::one_of(errors, &at, &container["terminationMessagePolicy"], &["File", "FallbackToLogsOnError"]);
    ports(errors, container, &path.child("ports"));
    env::validate(errors, context, container, path);
    mounts::validate(errors, context, container, path);
    let policies = &["Always", "IfNotPresent", "Never"];
    check::one_of(errors, &path.child("imagePullPolicy"), &container["imagePullPolicy"], policies);
    resources::of_container(errors, context, container, &path.child("resources"));
    resize_policy(errors, context, container, &path.child("resizePolicy"));
    security::of_container(errors, context, &container["securityContext"], &path.child("securityContext"));
}

fn ports(errors: &mut Errors, container: &Value, path: &Path) {
    let mut known = Vec::new();
    for (index, port) in object::items(container, "ports").enumerate() {
        let path = path.index(index);
        let name = text(&port["name"]);
        if !name.is_empty() {
            let found = check::port_name(name);
            if found.is_empty() && known.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            check::problems(errors, &path.child("name"), name, found);
            known.push(name);
        }
        match count(&port["containerPort"]) {
            0 => errors.push(FieldError::required(&path.child("containerPort"), "")),
            _ => check::port_number(errors, &path.child("containerPort"), &port["containerPort"]),
        }
        if count(&port["hostPort"]) != 0 {
            check::port_number(errors, &path.child("hostPort"), &port["hostPort"]);
        }
        check::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers that run at the same time share a port of the host.
fn host_ports<'a>(errors: &mut Errors, containers: impl Iterator<Item = &'a Value>, path: &Path) {
    let mut taken: Vec<String> = Vec::new();
    for (at, container) in containers.enumerate() {
        for (index, port) in object::items(container, "ports").enumerate() {
            let number = count(&port["hostPort"]);
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
            if taken.contains(&key) {
                let path = path.index(at).child("ports").index(index).child("hostPort");
                errors.push(FieldError::duplicate(&path, key.clone()));
            }
            taken.push(key);
        }
    }
}

/// A container's own restart policy and rules (KEP-5307).
fn restart_policy(errors: &mut Errors, container: &Value, path: &Path) {
    let rules = len(&container["restartPolicyRules"]);
    let at = path.child("restartPolicy");
    if container["restartPolicy"].is_null() {
        if rules > 0 {
            errors.push(FieldError::required(&at, "must specify restartPolicy when restart rules are used"));
        }
    } else {
        check::among(errors, &at, &container["restartPolicy"], RESTART_POLICIES);
    }
    let at = path.child("restartPolicyRules");
    if rules > RULES_MAX {
        errors.push(FieldError::too_many(&at, rules, RULES_MAX));
    }
    for (index, rule) in object::items(container, "restartPolicyRules").enumerate() {
        let path = at.index(index);
        check::among_any(errors, &path.child("action"), &rule["action"], &["Restart", "RestartAllContainers"]);
        let codes = &rule["exitCodes"];
        let path = path.child("exitCodes");
        if !codes.is_object() {
            errors.push(FieldError::required(&path, "must be specified"));
            continue;
        }
        check::among_any(errors, &path.child("operator"), &codes["operator"], &["In", "NotIn"]);
        if len(&codes["values"]) > EXIT_CODES_MAX {
            errors.push(FieldError::too_many(&path.child("values"), len(&codes["values"]), EXIT_CODES_MAX));
        }
    }
}

fn resize_policy(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    let mut known = Vec::new();
    for (index, policy) in object::items(container, "resizePolicy").enumerate() {
        let name = text(&policy["resourceName"]);
        if known.contains(&name) {
            errors.push(FieldError::duplicate(&path.index(index), name));
        }
        known.push(name);
        check::one_of(errors, path, &policy["resourceName"], &["cpu", "memory"]);
        check::one_of(errors, path, &policy["restartPolicy"], &["NotRequired", "RestartContainer"]);
        if context.spec["restartPolicy"] == "Never" && policy["restartPolicy"] != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, text(&policy["restartPolicy"]), why));
        }
    }
}
