//! Environment variables and what they refer to.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use kedge_schema::quantity::Quantity;
use serde_json::Value;

use super::{Context, mounts};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::text;
use crate::object;

/// Fields of the pod that a variable may take its value from.
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of the pod that have a name at all (`ConvertDownwardAPIFieldLabel`).
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

pub(super) fn validate(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    for (index, variable) in object::items(container, "env").enumerate() {
        let path = path.child("env").index(index);
        check::name(errors, &path.child("name"), &variable["name"], variable_name);
        if variable["valueFrom"].is_object() {
            value_from(errors, context, variable, &path.child("valueFrom"));
        }
    }
    let at = path.child("envFrom");
    for (index, from) in object::items(container, "envFrom").enumerate() {
        let path = at.index(index);
        check::optional(errors, &path.child("prefix"), &from["prefix"], variable_name);
        let sources = ["configMapRef", "secretRef"].into_iter().filter(|key| from[*key].is_object());
        let sources: Vec<&str> = sources.collect();
        for source in &sources {
            check::name(errors, &path.child(source).child("name"), &from[*source]["name"], |name| {
                // A prefix of a name would do as well: upstream checks it as one that may end in a dash.
                check::dns_subdomain(name.trim_end_matches('-'))
            });
        }
        match sources.len() {
            0 => errors.push(FieldError::invalid(&at, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(FieldError::invalid(&at, "", "may not have more than one field specified at a time")),
        }
    }
}

/// Any printable ASCII but `=` (KEP-4369).
fn variable_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

fn value_from(errors: &mut Errors, context: &Context<'_>, variable: &Value, path: &Path) {
    let from = &variable["valueFrom"];
    if from["fieldRef"].is_object() {
        field_of_pod(errors, &from["fieldRef"], FIELDS, &path.child("fieldRef"));
    }
    if from["resourceFieldRef"].is_object() {
        resource_of_container(errors, &from["resourceFieldRef"], false, &path.child("resourceFieldRef"));
    }
    for key in ["configMapKeyRef", "secretKeyRef"].into_iter().filter(|key| from[*key].is_object()) {
        let path = path.child(key);
        check::problems(
            errors,
            &path.child("name"),
            text(&from[key]["name"]),
            check::dns_subdomain(text(&from[key]["name"])),
        );
        check::name(errors, &path.child("key"), &from[key]["key"], check::data_key);
    }
    if from["fileKeyRef"].is_object() {
        key_of_file(errors, context, &from["fileKeyRef"], &path.child("fileKeyRef"));
    }
    let why = match SOURCES.into_iter().filter(|source| from[*source].is_object()).count() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !text(&variable["value"]).is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", why));
}

/// A field of the pod, for a variable or a file (`validateObjectFieldSelector`).
pub(super) fn field_of_pod(errors: &mut Errors, field: &Value, allowed: &[&str], path: &Path) {
    let (version, name) = (text(&field["apiVersion"]), text(&field["fieldPath"]));
    let at = path.child("fieldPath");
    if version.is_empty() {
        return errors.push(FieldError::required(&path.child("apiVersion"), ""));
    }
    if name.is_empty() {
        return errors.push(FieldError::required(&at, ""));
    }
    let subscript = name.strip_suffix("']").and_then(|name| name.split_once("['"));
    let unknown = match subscript {
        _ if version != "v1" => Some(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations" | "metadata.labels", _)) => None,
        Some(_) => Some(format!("field label does not support subscript: {name}")),
        None if KNOWN_FIELDS.contains(&name) || name == "spec.host" => None,
        None => Some(format!("field label not supported: {name}")),
    };
    if let Some(why) = unknown {
        return errors.push(FieldError::invalid(&at, name, format!("error converting fieldPath: {why}")));
    }
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            check::problems(errors, path, key.as_str(), names::label_key(&key));
        }
        Some((_, key)) => check::problems(errors, path, key, names::label_key(key)),
        None => {
            let name = if name == "spec.host" { "spec.nodeName" } else { name };
            if !allowed.contains(&name) {
                errors.push(FieldError::not_supported(&at, name, allowed));
            }
        }
    }
}

/// A container's limit or request, for a variable or a file (`validateContainerResourceFieldSelector`).
pub(super) fn resource_of_container(errors: &mut Errors, field: &Value, in_volume: bool, path: &Path) {
    let resource = text(&field["resource"]);
    let is_huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && text(&field["containerName"]).is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) && !is_huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, RESOURCES));
    }
    let Ok(divisor) = Quantity::parse(text(&field["divisor"])) else { return };
    if divisor.is_zero() {
        return;
    }
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, shown, what) = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => (&["1m", "1"][..], "1m and 1".to_owned(), "cpu"),
        "memory" => (SIZES, SIZES.join(", "), "memory"),
        "ephemeral-storage" => (SIZES, SIZES.join(", "), "local ephemeral storage"),
        _ if is_huge => (SIZES, SIZES.join(", "), "hugepages"),
        _ => return,
    };
    if !allowed.contains(&&*divisor.to_string()) {
        let why = format!("only divisor's values {shown} are supported with the {what} resource");
        errors.push(FieldError::invalid(&path.child("divisor"), resource, why));
    }
}

/// A key of a file that an init container wrote (KEP-5030).
fn key_of_file(errors: &mut Errors, context: &Context<'_>, file: &Value, path: &Path) {
    check::name(errors, &path.child("key"), &file["key"], variable_name);
    let at = path.child("volumeName");
    let name = text(&file["volumeName"]);
    check::name(errors, &at, &file["volumeName"], check::dns_label);
    check::required(errors, &path.child("path"), &file["path"]);
    mounts::no_backsteps(errors, text(&file["path"]), &path.child("path"));
    match context.volume(name) {
        None => errors.push(FieldError::not_found(&at, name)),
        Some(volume) if !volume["emptyDir"].is_object() => {
            errors.push(FieldError::invalid(&at, name, "referenced volume must be of type emptyDir"));
        }
        Some(_) => {}
    }
}
