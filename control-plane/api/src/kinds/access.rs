//! Roles, bindings, accounts and certificate requests (`pkg/apis/{rbac,certificates}/validation`).

use std::borrow::Cow;

use jiff::SignedDuration;
use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::check::{self, Errors};
use super::fill::{len, object_age, or_none, text};
use super::plain::{PLAIN, Plain};
use super::{Column, Names};
use crate::{object, table};

const GROUP: &str = "rbac.authorization.k8s.io";
/// Ten minutes, below which a certificate is of no use.
const CERTIFICATE_SECONDS_MIN: i64 = 600;

pub(super) static ACCOUNT: Plain = PLAIN;

pub(super) static ROLE: Plain = Plain {
    creates_on_update: true,
    names: Names::PathSegment,
    whole_table: true,
    columns: &[Column::text("Name"), Column::text("Created At")],
    row: |role, _| vec![object::name(role).into(), role["metadata"]["creationTimestamp"].clone()],
    validate: |errors, role| rules(errors, role, true),
    ..PLAIN
};

pub(super) static CLUSTER_ROLE: Plain = Plain {
    validate: |errors, role| {
        rules(errors, role, false);
        let aggregation = &role["aggregationRule"];
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        if aggregation.is_object() && len(&aggregation["clusterRoleSelectors"]) == 0 {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(FieldError::required(&path, why));
        }
        for (index, selector) in object::items(aggregation, "clusterRoleSelectors").enumerate() {
            check::selector(errors, &path.index(index), selector);
        }
    },
    ..ROLE_BASE
};

const ROLE_BASE: Plain = Plain {
    creates_on_update: true,
    names: Names::PathSegment,
    whole_table: true,
    columns: &[Column::text("Name"), Column::text("Created At")],
    row: |role, _| vec![object::name(role).into(), role["metadata"]["creationTimestamp"].clone()],
    ..PLAIN
};

const BINDING_BASE: Plain = Plain {
    creates_on_update: true,
    names: Names::PathSegment,
    columns: &[Column::text("Role"), Column::wide("Users"), Column::wide("Groups"), Column::wide("ServiceAccounts")],
    row: |binding, _| {
        let of = |kind: &str| {
            let name = |subject: &Value| match kind {
                "ServiceAccount" => format!("{}/{}", text(&subject["namespace"]), text(&subject["name"])),
                _ => text(&subject["name"]).to_owned(),
            };
            let names = object::items(binding, "subjects").filter(|subject| subject["kind"] == kind).map(name);
            Value::from(names.collect::<Vec<_>>().join(", "))
        };
        let role = &binding["roleRef"];
        let role = format!("{}/{}", text(&role["kind"]), text(&role["name"]));
        vec![role.into(), of("User"), of("Group"), of("ServiceAccount")]
    },
    validate_update: |errors, new, old| {
        if new["roleRef"] != old["roleRef"] {
            errors.push(FieldError::invalid(&Path::new("roleRef"), new["roleRef"].clone(), "cannot change roleRef"));
        }
    },
    ..PLAIN
};

pub(super) static BINDING: Plain =
    Plain { validate: |errors, b| binding(errors, b, &["Role", "ClusterRole"]), ..BINDING_BASE };

pub(super) static CLUSTER_BINDING: Plain =
    Plain { validate: |errors, b| binding(errors, b, &["ClusterRole"]), ..BINDING_BASE };

pub(super) static CERTIFICATE: Plain = Plain {
    status: true,
    whole_table: true,
    columns: &[
        Column::text("Name"),
        Column::text("Age"),
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    row: |request, now| {
        let spec = &request["spec"];
        let duration =
            spec["expirationSeconds"].as_i64().map(|seconds| table::human_duration(SignedDuration::from_secs(seconds)));
        vec![
            object::name(request).into(),
            object_age(request, now),
            or_none(text(&spec["signerName"])),
            text(&spec["username"]).into(),
            or_none(&duration.unwrap_or_default()),
            condition(request).into(),
        ]
    },
    selectable: &[(Cow::Borrowed("spec.signerName"), "")],
    validate: |errors, request| {
        let (spec, path) = (&request["spec"], Path::new("spec"));
        check::required(errors, &path.child("signerName"), &spec["signerName"]);
        let seconds = &spec["expirationSeconds"];
        if seconds.as_i64().is_some_and(|seconds| seconds < CERTIFICATE_SECONDS_MIN) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds.clone(), why));
        }
        if len(&spec["usages"]) == 0 {
            errors.push(FieldError::required(&path.child("usages"), "usages are required"));
        }
    },
    validate_update: |errors, new, old| {
        if new["spec"] != old["spec"] {
            errors.push(FieldError::forbidden(&Path::new("spec"), "field is immutable"));
        }
    },
    ..PLAIN
};

fn condition(request: &Value) -> String {
    let has = |kind: &str| object::items(&request["status"], "conditions").any(|c| c["type"] == kind);
    let mut words: Vec<&str> = match (has("Denied"), has("Approved")) {
        (true, _) => vec!["Denied"],
        (false, true) => vec!["Approved"],
        (false, false) => vec!["Pending"],
    };
    if has("Failed") {
        words.push("Failed");
    }
    if !text(&request["status"]["certificate"]).is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

fn rules(errors: &mut Errors, role: &Value, namespaced: bool) {
    for (index, rule) in object::items(role, "rules").enumerate() {
        let path = Path::new("rules").index(index);
        if len(&rule["verbs"]) == 0 {
            errors.push(FieldError::required(&path.child("verbs"), "verbs must contain at least one value"));
        }
        if len(&rule["nonResourceURLs"]) > 0 {
            let at = path.child("nonResourceURLs");
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&at, rule["nonResourceURLs"].clone(), why));
            }
            if len(&rule["apiGroups"]) + len(&rule["resources"]) + len(&rule["resourceNames"]) > 0 {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&at, rule["nonResourceURLs"].clone(), why));
            }
            continue;
        }
        if len(&rule["apiGroups"]) == 0 {
            let why = "resource rules must supply at least one api group";
            errors.push(FieldError::required(&path.child("apiGroups"), why));
        }
        if len(&rule["resources"]) == 0 {
            let why = "resource rules must supply at least one resource";
            errors.push(FieldError::required(&path.child("resources"), why));
        }
    }
}

fn binding(errors: &mut Errors, binding: &Value, roles: &[&str]) {
    let (role, path) = (&binding["roleRef"], Path::new("roleRef"));
    check::among_any(errors, &path.child("apiGroup"), &role["apiGroup"], &[GROUP]);
    check::among_any(errors, &path.child("kind"), &role["kind"], roles);
    for (index, subject) in object::items(binding, "subjects").enumerate() {
        let path = Path::new("subjects").index(index);
        check::required(errors, &path.child("name"), &subject["name"]);
        let group = match text(&subject["kind"]) {
            "ServiceAccount" => {
                check::optional(errors, &path.child("name"), &subject["name"], check::dns_subdomain);
                ""
            }
            "User" | "Group" => GROUP,
            _ => {
                let kinds = &["ServiceAccount", "User", "Group"];
                check::among_any(errors, &path.child("kind"), &subject["kind"], kinds);
                continue;
            }
        };
        check::among_any(errors, &path.child("apiGroup"), &subject["apiGroup"].as_str().unwrap_or("").into(), &[group]);
    }
}
