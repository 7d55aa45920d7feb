//! Where volumes appear in a container, and what paths may look like.

use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::Context;
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::text;
use crate::object;

pub(super) fn validate(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    mounts(errors, context, container, &path.child("volumeMounts"));
    devices(errors, context, container, &path.child("volumeDevices"));
}

fn mounts(errors: &mut Errors, context: &Context<'_>, container: &Value, at: &Path) {
    let mut points = Vec::new();
    for (index, mount) in object::items(container, "volumeMounts").enumerate() {
        let path = at.index(index);
        let (name, point) = (text(&mount["name"]), text(&mount["mountPath"]));
        check::required(errors, &path.child("name"), &mount["name"]);
        if context.volume(name).is_none() {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        check::required(errors, &path.child("mountPath"), &mount["mountPath"]);
        if points.contains(&point) {
            errors.push(FieldError::invalid(&path.child("mountPath"), point, "must be unique"));
        }
        points.push(point);
        let devices = || object::items(container, "volumeDevices");
        if devices().any(|device| device["name"] == name) {
            let why = "must not already exist in volumeDevices";
            errors.push(FieldError::invalid(&path.child("name"), name, why));
        }
        if devices().any(|device| device["devicePath"] == point) {
            let why = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&path.child("mountPath"), point, why));
        }
        for key in ["subPath", "subPathExpr"].into_iter().filter(|key| !text(&mount[*key]).is_empty()) {
            relative(errors, text(&mount[key]), &at.child(key));
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&path.child("subPathExpr"), text(&mount["subPathExpr"]), why));
        }
        propagation(errors, container, mount, at);
    }
}

fn propagation(errors: &mut Errors, container: &Value, mount: &Value, at: &Path) {
    let mode = &mount["mountPropagation"];
    let path = at.child("mountPropagation");
    check::among(errors, &path, mode, &["Bidirectional", "HostToContainer", "None"]);
    if mode == "Bidirectional" && container["securityContext"]["privileged"] != true {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&path, why));
    }
    let path = at.child("recursiveReadOnly");
    let recursive = &mount["recursiveReadOnly"];
    check::among(errors, &path, recursive, &["Disabled", "Enabled", "IfPossible"]);
    if recursive == "Enabled" || recursive == "IfPossible" {
        if mount["readOnly"] != true {
            errors.push(FieldError::forbidden(&path, "may only be specified when readOnly is true"));
        }
        if !mode.is_null() && mode != "None" {
            let why = "may only be specified when mountPropagation is None or not specified";
            errors.push(FieldError::forbidden(&path, why));
        }
    }
}

fn devices(errors: &mut Errors, context: &Context<'_>, container: &Value, at: &Path) {
    let (mut names, mut paths) = (Vec::new(), Vec::new());
    for (index, device) in object::items(container, "volumeDevices").enumerate() {
        let path = at.index(index);
        let (name, place) = (text(&device["name"]), text(&device["devicePath"]));
        check::required(errors, &path.child("name"), &device["name"]);
        if names.contains(&name) {
            errors.push(FieldError::invalid(&path.child("name"), name, "must be unique"));
        }
        match context.volume(name) {
            None => errors.push(FieldError::not_found(&path.child("name"), name)),
            Some(volume) if !volume["persistentVolumeClaim"].is_object() && !volume["ephemeral"].is_object() => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&path.child("name"), name, why));
            }
            Some(_) => {}
        }
        check::required(errors, &path.child("devicePath"), &device["devicePath"]);
        if paths.contains(&place) {
            errors.push(FieldError::invalid(&path.child("devicePath"), place, "must be unique"));
        }
        if place.split('/').any(|part| part == "..") {
            let why = "can not contain backsteps ('..')";
            errors.push(FieldError::invalid(&path.child("devicePath"), place, why));
        }
        let mounts = || object::items(container, "volumeMounts");
        if mounts().any(|mount| mount["name"] == name) {
            errors.push(FieldError::invalid(&path.child("name"), name, "must not already exist in volumeMounts"));
        }
        if mounts().any(|mount| mount["mountPath"] == place) {
            let why = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(&path.child("devicePath"), place, why));
        }
        names.push(name);
        paths.push(place);
    }
}

/// A path that stays below where it starts.
pub(super) fn relative(errors: &mut Errors, value: &str, path: &Path) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(errors, value, path);
}

/// A path that never goes up.
pub(super) fn no_backsteps(errors: &mut Errors, value: &str, path: &Path) {
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// The path of a file in a volume that the node writes; it keeps names with two dots for itself.
pub(super) fn file_path(errors: &mut Errors, value: &str, path: &Path) {
    relative(errors, value, path);
    if value.starts_with("..") && value != ".." && !value.starts_with("../") {
        errors.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}
