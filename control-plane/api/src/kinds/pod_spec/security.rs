//! Security contexts of pods and containers.

use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::{Context, mounts};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{len, text};
use crate::object;

const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const PROFILE_BYTES_MAX: usize = 4095;

pub(super) fn of_pod(errors: &mut Errors, context: &Context<'_>, spec_path: &Path) {
    let (security, path) = (&context.spec["securityContext"], spec_path.child("securityContext"));
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, &security[key], &path.child(key));
    }
    for (index, group) in object::items(security, "supplementalGroups").enumerate() {
        id(errors, group, &path.child("supplementalGroups").index(index));
    }
    if context.spec["hostPID"] == true && context.spec["shareProcessNamespace"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&path.child("shareProcessNamespace"), true, why));
    }
    sysctls(errors, context, &path.child("sysctls"));
    for (key, allowed) in [
        ("fsGroupChangePolicy", &["Always", "OnRootMismatch"][..]),
        ("supplementalGroupsPolicy", &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &["Recursive"]),
    ] {
        check::among(errors, &path.child(key), &security[key], allowed);
    }
    seccomp(errors, &security["seccompProfile"], &path.child("seccompProfile"));
    app_armor(errors, &security["appArmorProfile"], &path.child("appArmorProfile"));
    host_users(errors, context, spec_path);
}

pub(super) fn of_container(errors: &mut Errors, context: &Context<'_>, security: &Value, path: &Path) {
    if !security.is_object() {
        return;
    }
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, &security[key], &path.child(key));
    }
    let mount = &security["procMount"];
    check::among(errors, &path.child("procMount"), mount, &["Default", "Unmasked"]);
    if mount == "Unmasked" && context.host_users() {
        let why = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&path.child("procMount"), "Unmasked", why));
    }
    seccomp(errors, &security["seccompProfile"], &path.child("seccompProfile"));
    if security["allowPrivilegeEscalation"] == false {
        let mut refuse = |why: &str| errors.push(FieldError::invalid(path, security.clone(), why));
        if security["privileged"] == true {
            refuse("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if object::items(&security["capabilities"], "add").any(|capability| capability == "CAP_SYS_ADMIN") {
            refuse("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    app_armor(errors, &security["appArmorProfile"], &path.child("appArmorProfile"));
}

/// A user's or group's number.
fn id(errors: &mut Errors, value: &Value, path: &Path) {
    if !value.is_null() {
        check::within(errors, path, value, 0, i64::from(i32::MAX));
    }
}

fn seccomp(errors: &mut Errors, profile: &Value, path: &Path) {
    if !profile.is_object() {
        return;
    }
    let at = path.child("type");
    match text(&profile["type"]) {
        "" => errors.push(FieldError::required(&at, "type is required when seccompProfile is set")),
        _ => check::among(errors, &at, &profile["type"], PROFILES),
    }
    let at = path.child("localhostProfile");
    match (profile["type"] == "Localhost", profile["localhostProfile"].as_str()) {
        (true, None) => errors.push(FieldError::required(&at, "must be set when seccomp type is Localhost")),
        (true, Some(file)) => mounts::relative(errors, file, &at),
        (false, Some(_)) => {
            errors.push(FieldError::invalid(&at, profile.clone(), "can only be set when seccomp type is Localhost"));
        }
        (false, None) => {}
    }
}

fn app_armor(errors: &mut Errors, profile: &Value, path: &Path) {
    if !profile.is_object() {
        return;
    }
    let (at, file) = (path.child("localhostProfile"), profile["localhostProfile"].as_str());
    match (text(&profile["type"]), file) {
        ("Localhost", Some(file)) if file.trim() != file => {
            errors.push(FieldError::invalid(&at, file, "must not be padded with whitespace"));
        }
        ("Localhost", None | Some("")) => {
            errors.push(FieldError::required(&at, "must be set when AppArmor type is Localhost"));
        }
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            errors.push(FieldError::invalid(&at, file, "can only be set when AppArmor type is Localhost"));
        }
        ("Localhost" | "RuntimeDefault" | "Unconfined", _) => {}
        ("", _) => {
            errors.push(FieldError::required(&path.child("type"), "type is required when appArmorProfile is set"))
        }
        _ => check::among(errors, &path.child("type"), &profile["type"], PROFILES),
    }
    if file.is_some_and(|file| profile["type"] == "Localhost" && file.len() > PROFILE_BYTES_MAX) {
        errors.push(FieldError::too_long(&at, PROFILE_BYTES_MAX));
    }
}

fn sysctls(errors: &mut Errors, context: &Context<'_>, at: &Path) {
    const FORMAT: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    let mut known = Vec::new();
    for (index, sysctl) in object::items(&context.spec["securityContext"], "sysctls").enumerate() {
        let path = at.index(index).child("name");
        let name = text(&sysctl["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl(name) {
            let why = format!("must have at most 253 characters and match regex {FORMAT}");
            errors.push(FieldError::invalid(&path, name, why));
        } else if known.contains(&name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        known.push(name);
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
        for (key, own) in [("hostNetwork", dotted.starts_with("net.")), ("hostIPC", ipc)] {
            if own && context.spec[key] == true {
                let why = format!("may not be specified when '{key}' is true");
                errors.push(FieldError::invalid(&path, name, why));
            }
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good = |part: &str| {
        let bytes = part.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    name.len() <= 253 && name.split(['.', '/']).all(good)
}

/// A user namespace of its own goes with no other namespace of the host (KEP-127).
fn host_users(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    if context.host_users() {
        return;
    }
    let why = "when `hostUsers` is false";
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if context.spec[key] == true {
            errors.push(FieldError::forbidden(&path.child(shown), why));
        }
    }
    for (container, path) in context.containers(path) {
        if len(&container["volumeDevices"]) > 0 {
            errors.push(FieldError::forbidden(&path.child("volumeDevices"), why));
        }
    }
}

pub(super) fn no_windows_options(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    let own = [(context.spec, path.clone())];
    for (holder, path) in own.into_iter().chain(context.containers(path)) {
        if !holder["securityContext"]["windowsOptions"].is_null() {
            let path = path.child("securityContext").child("windowsOptions");
            errors.push(FieldError::forbidden(&path, "windows options cannot be set for a linux pod"));
        }
    }
}

pub(super) fn no_linux_options(errors: &mut Errors, context: &Context<'_>, path: &Path) {
    const POD: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    const CONTAINER: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let why = "cannot be set for a windows pod";
    let spec = context.spec;
    let is_given = |value: &Value| !value.is_null() && *value != false;
    for key in ["hostPID", "hostIPC"].into_iter().filter(|key| is_given(&spec[*key])) {
        errors.push(FieldError::forbidden(&path.child(key), why));
    }
    for key in ["hostUsers", "shareProcessNamespace"].into_iter().filter(|key| !spec[*key].is_null()) {
        errors.push(FieldError::forbidden(&path.child(key), why));
    }
    let own = [(spec, path.clone(), POD)];
    let containers = context.containers(path).into_iter().map(|(container, path)| (container, path, CONTAINER));
    for (holder, path, keys) in own.into_iter().chain(containers) {
        for key in keys.iter().filter(|key| !holder["securityContext"][**key].is_null()) {
            errors.push(FieldError::forbidden(&path.child("securityContext").child(key), why));
        }
    }
}
