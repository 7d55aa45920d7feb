//! Volumes and where they come from.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::quantity::Quantity;
use serde_json::Value;

use super::{Context, env, mounts, resources};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::object;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Fields of the pod that a file may show beyond those of a variable.
const FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
pub(in crate::kinds) const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn volumes(errors: &mut Errors, context: &Context<'_>, at: &Path) {
    let mut known = Vec::new();
    for (index, volume) in object::items(context.spec, "volumes").enumerate() {
        let path = at.index(index);
        source(errors, volume, &path);
        check::name(errors, &path.child("name"), &volume["name"], check::dns_label);
        let name = text(&volume["name"]);
        if known.contains(&name) && !name.is_empty() {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        known.push(name);
    }
}

fn source(errors: &mut Errors, volume: &Value, path: &Path) {
    let mut given =
        volume.as_object().into_iter().flatten().filter(|(key, source)| *key != "name" && source.is_object());
    let Some((kind, source)) = given.next() else {
        return errors.push(FieldError::required(path, "must specify a volume type"));
    };
    one_source(errors, kind, source, &path.child(kind));
    for (kind, _) in given {
        errors.push(FieldError::forbidden(&path.child(kind), "may not specify more than 1 volume type"));
    }
}

/// Fields without which a source of this kind says nothing.
fn needed(kind: &str) -> &'static [&'static str] {
    match kind {
        "gitRepo" => &["repository"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "cinder" => &["volumeID"],
        "nfs" => &["server", "path"],
        "iscsi" => &["targetPortal", "iqn"],
        "glusterfs" => &["endpoints", "path"],
        "persistentVolumeClaim" => &["claimName"],
        "rbd" => &["image"],
        "cephfs" => &[],
        "quobyte" => &["registry", "volume"],
        "azureFile" => &["secretName", "shareName"],
        "azureDisk" => &["diskName", "diskURI"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "portworxVolume" => &["volumeID"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        "storageos" => &["volumeName"],
        "flexVolume" | "csi" => &["driver"],
        "image" => &["reference"],
        _ => &[],
    }
}

fn one_source(errors: &mut Errors, kind: &str, source: &Value, path: &Path) {
    for key in needed(kind) {
        check::required(errors, &path.child(key), &source[*key]);
    }
    match kind {
        "emptyDir" if Quantity::parse(text(&source["sizeLimit"])).is_ok_and(|limit| limit.sign() < 0) => {
            let why = "SizeLimit field must be a valid resource quantity";
            errors.push(FieldError::forbidden(&path.child("sizeLimit"), why));
        }
        "hostPath" => {
            check::required(errors, &path.child("path"), &source["path"]);
            mounts::no_backsteps(errors, text(&source["path"]), &path.child("path"));
            if !text(&source["path"]).is_empty() {
                check::among(errors, &path.child("type"), &source["type"], HOST_PATH_TYPES);
            }
        }
        "nfs" if !text(&source["path"]).is_empty() && !text(&source["path"]).starts_with('/') => {
            errors.push(FieldError::invalid(&path.child("path"), text(&source["path"]), "must be an absolute path"));
        }
        "secret" | "configMap" => {
            let key = if kind == "secret" { "secretName" } else { "name" };
            check::required(errors, &path.child(key), &source[key]);
            mode(errors, &source["defaultMode"], &path.child("defaultMode"));
            items(errors, source, &path.child("items"));
        }
        "downwardAPI" => {
            mode(errors, &source["defaultMode"], &path.child("defaultMode"));
            object::items(source, "items").for_each(|file| downward_file(errors, file, path));
        }
        "projected" => projected(errors, source, path),
        "ephemeral" => {
            let template = &source["volumeClaimTemplate"];
            let path = path.child("volumeClaimTemplate");
            match template.is_object() {
                true => claim_spec(errors, &template["spec"], &path.child("spec")),
                false => errors.push(FieldError::required(&path, "")),
            }
        }
        "image" => {
            let policies = &["Always", "IfNotPresent", "Never"];
            check::one_of(errors, &path.child("pullPolicy"), &source["pullPolicy"], policies);
        }
        _ => {}
    }
}

fn mode(errors: &mut Errors, value: &Value, path: &Path) {
    if !value.is_null() && !(0..=0o777).contains(&count(value)) {
        errors.push(FieldError::invalid(path, value.clone(), MODE));
    }
}

/// Which keys become which files; gives the paths of the files.
fn items<'a>(errors: &mut Errors, source: &'a Value, at: &Path) -> Vec<&'a str> {
    for (index, item) in object::items(source, "items").enumerate() {
        let path = at.index(index);
        check::required(errors, &path.child("key"), &item["key"]);
        check::required(errors, &path.child("path"), &item["path"]);
        mounts::file_path(errors, text(&item["path"]), &path.child("path"));
        mode(errors, &item["mode"], &path.child("mode"));
    }
    object::items(source, "items").map(|item| text(&item["path"])).collect()
}

fn downward_file(errors: &mut Errors, file: &Value, path: &Path) {
    check::required(errors, &path.child("path"), &file["path"]);
    mounts::file_path(errors, text(&file["path"]), &path.child("path"));
    match (file["fieldRef"].is_object(), file["resourceFieldRef"].is_object()) {
        (true, both) => {
            env::field_of_pod(errors, &file["fieldRef"], FIELDS, &path.child("fieldRef"));
            if both {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", why));
            }
        }
        (false, true) => {
            env::resource_of_container(errors, &file["resourceFieldRef"], true, &path.child("resourceFieldRef"));
        }
        (false, false) => errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required")),
    }
    mode(errors, &file["mode"], &path.child("mode"));
}

fn projected(errors: &mut Errors, volume: &Value, path: &Path) {
    mode(errors, &volume["defaultMode"], &path.child("defaultMode"));
    let mut taken: Vec<&str> = Vec::new();
    for (index, source) in object::items(volume, "sources").enumerate() {
        let at = path.child("sources").index(index);
        let given: Vec<&str> =
            source.as_object().into_iter().flatten().filter(|(_, s)| s.is_object()).map(|(k, _)| &**k).collect();
        for kind in &given {
            projection(errors, kind, &source[*kind], &at.child(kind), path, &mut taken);
        }
        if given.len() > 1 {
            errors.push(FieldError::forbidden(&at, "may not specify more than 1 volume type per source"));
        }
    }
}

fn projection<'a>(
    errors: &mut Errors,
    kind: &str,
    source: &'a Value,
    at: &Path,
    volume: &Path,
    taken: &mut Vec<&'a str>,
) {
    let mut take = |errors: &mut Errors, file: &'a str, shown: &str| {
        if !file.is_empty() && taken.contains(&file) {
            errors.push(FieldError::invalid(volume, shown, "conflicting duplicate paths"));
        }
        taken.push(file);
    };
    match kind {
        "secret" | "configMap" => {
            check::required(errors, &at.child("name"), &source["name"]);
            for file in items(errors, source, &at.child("items")) {
                take(errors, file, text(&source["name"]));
            }
        }
        "downwardAPI" => {
            for file in object::items(source, "items") {
                downward_file(errors, file, at);
                take(errors, text(&file["path"]), text(&file["path"]));
            }
        }
        "serviceAccountToken" => token(errors, source, at, volume),
        "clusterTrustBundle" => {
            let (by_name, by_signer) = (!source["name"].is_null(), !source["signerName"].is_null());
            match (by_name, by_signer) {
                (true, true) => {
                    let why = "only one of name and signerName may be used";
                    errors.push(FieldError::invalid(at, source.clone(), why));
                }
                (false, false) => errors.push(FieldError::required(at, "either name or signerName must be specified")),
                _ => {}
            }
            check::required(errors, &at.child("path"), &source["path"]);
            mounts::file_path(errors, text(&source["path"]), &at.child("path"));
            take(errors, text(&source["path"]), text(&source["path"]));
        }
        _ => {}
    }
}

fn token(errors: &mut Errors, source: &Value, at: &Path, volume: &Path) {
    let seconds = count(&source["expirationSeconds"]);
    let why = match seconds {
        ..600 => Some("may not specify a duration less than 10 minutes"),
        4_294_967_297.. => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(&at.child("expirationSeconds"), seconds, why));
    }
    check::required(errors, &volume.child("path"), &source["path"]);
    mounts::file_path(errors, text(&source["path"]), &volume.child("path"));
}

/// What a claim asks for (`ValidatePersistentVolumeClaimSpec`).
pub(in crate::kinds) fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path) {
    let at = path.child("accessModes");
    if len(&spec["accessModes"]) == 0 {
        errors.push(FieldError::required(&at, "at least 1 access mode is required"));
    }
    check::selector(errors, &path.child("selector"), &spec["selector"]);
    access_modes(errors, spec, &at);
    let at = path.child("resources").child("requests").key("storage");
    match spec["resources"]["requests"].get("storage") {
        None => errors.push(FieldError::required(&path.child("resources").key("storage"), "")),
        Some(storage) => {
            resources::amount(errors, "storage", storage, &at);
            if Quantity::parse(text(storage)).is_ok_and(|storage| storage.is_zero()) {
                let at = path.child("resources").key("storage");
                errors.push(FieldError::invalid(&at, text(storage), "must be greater than zero"));
            }
        }
    }
    for key in ["storageClassName", "volumeAttributesClassName"] {
        check::optional(errors, &path.child(key), &spec[key], check::dns_subdomain);
    }
    check::among(errors, &path.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    for key in ["dataSource", "dataSourceRef"].into_iter().filter(|key| spec[*key].is_object()) {
        let (source, path) = (&spec[key], path.child(key));
        for part in ["name", "kind"] {
            check::required(errors, &path.child(part), &source[part]);
        }
        if text(&source["apiGroup"]).is_empty() && source["kind"] != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(&path, text(&source["kind"]), why));
        }
    }
}

/// How a volume may be mounted.
pub(in crate::kinds) fn access_modes(errors: &mut Errors, spec: &Value, at: &Path) {
    for mode in object::items(spec, "accessModes") {
        check::among(errors, at, mode, ACCESS_MODES);
    }
    if object::items(spec, "accessModes").any(|mode| mode == "ReadWriteOncePod") && len(&spec["accessModes"]) > 1 {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(at, why));
    }
}
