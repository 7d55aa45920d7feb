//! Volumes, claims and classes of storage (`pkg/apis/core/validation`, `pkg/apis/storage/{v1,validation}`).

use kedge_schema::field::{FieldError, Path};
use kedge_schema::quantity::Quantity;
use serde_json::{Value, json};

use super::check::{self, Errors};
use super::fill::{fill, len, or_none, text};
use super::plain::{PLAIN, Plain, name_with_default};
use super::{Column, pod_spec};
use crate::object;

const DEFAULT_CLASS: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) static VOLUME: Plain = Plain {
    status: true,
    columns: &[
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        Column::wide("VolumeMode"),
    ],
    row: |volume, _| {
        let (spec, status) = (&volume["spec"], &volume["status"]);
        let claim = &spec["claimRef"];
        let claim = if claim.is_object() {
            format!("{}/{}", text(&claim["namespace"]), text(&claim["name"]))
        } else {
            String::new()
        };
        vec![
            spec["capacity"]["storage"].as_str().unwrap_or("0").into(),
            access_modes(&spec["accessModes"]),
            text(&spec["persistentVolumeReclaimPolicy"]).into(),
            phase(volume),
            claim.into(),
            text(&spec["storageClassName"]).into(),
            unset(&spec["volumeAttributesClassName"]),
            text(&status["reason"]).into(),
            unset(&spec["volumeMode"]),
        ]
    },
    default: |volume| {
        object::child(volume, "status");
        fill(&mut volume["status"], "phase", "Pending");
        if let Some(spec) = volume.get_mut("spec") {
            fill(spec, "persistentVolumeReclaimPolicy", "Retain");
            object::default(spec, "volumeMode", "Filesystem");
        }
    },
    validate: volume,
    validate_update: |errors, new, old| {
        let source = |volume: &Value| {
            let keep = |(key, source): (&String, &Value)| {
                (source.is_object() && !NO_SOURCE.contains(&&**key)).then(|| json!({key: source}))
            };
            volume["spec"].as_object().into_iter().flatten().filter_map(keep).collect::<Vec<_>>()
        };
        if source(new) != source(old) {
            let path = Path::new("spec").child("persistentvolumesource");
            errors.push(FieldError::forbidden(&path, "spec.persistentvolumesource is immutable after creation"));
        }
        let path = Path::new("spec").child("volumeMode");
        check::immutable(errors, &path, &new["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
    },
    ..PLAIN
};

pub(super) static CLAIM: Plain = Plain {
    status: true,
    columns: &[
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::wide("VolumeMode"),
    ],
    row: |claim, _| {
        let (spec, status) = (&claim["spec"], &claim["status"]);
        let bound = !text(&spec["volumeName"]).is_empty();
        let when_bound = |value: Value| if bound { value } else { "".into() };
        vec![
            phase(claim),
            text(&spec["volumeName"]).into(),
            when_bound(status["capacity"]["storage"].as_str().unwrap_or("0").into()),
            when_bound(access_modes(&status["accessModes"])),
            text(&spec["storageClassName"]).into(),
            unset(&spec["volumeAttributesClassName"]),
            unset(&spec["volumeMode"]),
        ]
    },
    default: |claim| {
        object::child(claim, "status");
        fill(&mut claim["status"], "phase", "Pending");
    },
    validate: |errors, claim| pod_spec::claim_spec(errors, &claim["spec"], &Path::new("spec")),
    validate_update: claim_update,
    ..PLAIN
};

pub(super) static CLASS: Plain = Plain {
    whole_table: true,
    columns: &[
        Column::text("Name"),
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column::text("AllowVolumeExpansion"),
        Column::text("Age"),
    ],
    row: |class, now| {
        vec![
            name_with_default(class, DEFAULT_CLASS),
            text(&class["provisioner"]).into(),
            class["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
            class["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
            (class["allowVolumeExpansion"] == true).into(),
            super::fill::object_age(class, now),
        ]
    },
    default: |class| {
        object::default(class, "reclaimPolicy", "Delete");
        object::default(class, "volumeBindingMode", "Immediate");
    },
    validate: |errors, class| {
        check::among(errors, &Path::new("reclaimPolicy"), &class["reclaimPolicy"], &["Delete", "Retain"]);
        let modes = &["Immediate", "WaitForFirstConsumer"];
        check::among(errors, &Path::new("volumeBindingMode"), &class["volumeBindingMode"], modes);
    },
    validate_update: |errors, new, old| {
        for key in ["provisioner", "reclaimPolicy", "volumeBindingMode"] {
            check::immutable(errors, &Path::new(key), &new[key], &old[key]);
        }
        if new["parameters"] != old["parameters"] {
            errors.push(FieldError::forbidden(&Path::new("parameters"), "updates to parameters are forbidden."));
        }
    },
    ..PLAIN
};

pub(super) static CSI_NODE: Plain = Plain {
    unconditional: false,
    columns: &[Column::count("Drivers")],
    row: |node, _| vec![len(&node["spec"]["drivers"]).into()],
    ..PLAIN
};

pub(super) static ATTACHMENT: Plain = Plain {
    status: true,
    unconditional: false,
    columns: &[Column::text("Attacher"), Column::text("PV"), Column::text("Node"), Column::flag("Attached")],
    row: |attachment, _| {
        let spec = &attachment["spec"];
        vec![
            text(&spec["attacher"]).into(),
            text(&spec["source"]["persistentVolumeName"]).into(),
            text(&spec["nodeName"]).into(),
            (attachment["status"]["attached"] == true).into(),
        ]
    },
    ..PLAIN
};

pub(super) static DRIVER: Plain = Plain {
    unconditional: false,
    columns: &[
        Column::flag("AttachRequired"),
        Column::flag("PodInfoOnMount"),
        Column::flag("StorageCapacity"),
        Column::text("TokenRequests"),
        Column::flag("RequiresRepublish"),
        Column::text("Modes"),
    ],
    row: |driver, _| {
        let spec = &driver["spec"];
        let join = |list: &str, key: Option<&str>| {
            let one = |item: &Value| text(key.map_or(item, |key| &item[key])).to_owned();
            object::items(spec, list).map(one).collect::<Vec<_>>().join(",")
        };
        let tokens = if spec["tokenRequests"].is_null() {
            "<unset>".into()
        } else {
            join("tokenRequests", Some("audience")).into()
        };
        vec![
            (spec["attachRequired"] != false).into(),
            (spec["podInfoOnMount"] == true).into(),
            (spec["storageCapacity"] == true).into(),
            tokens,
            (spec["requiresRepublish"] == true).into(),
            or_none(&join("volumeLifecycleModes", None)),
        ]
    },
    default: |driver| {
        let Some(spec) = driver.get_mut("spec") else { return };
        for (key, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            object::default(spec, key, value);
        }
        object::default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if len(&spec["volumeLifecycleModes"]) == 0 {
            object::as_map(spec).insert("volumeLifecycleModes".into(), json!(["Persistent"]));
        }
    },
    ..PLAIN
};

/// Members of a volume's specification that are objects and no source.
const NO_SOURCE: &[&str] = &["capacity", "claimRef", "nodeAffinity"];

fn phase(object: &Value) -> Value {
    if object::is_deleting(object) { "Terminating".into() } else { text(&object["status"]["phase"]).into() }
}

fn unset(value: &Value) -> Value {
    value.as_str().unwrap_or("<unset>").into()
}

/// The short forms, each once, in a fixed order (`GetAccessModesAsString`).
fn access_modes(modes: &Value) -> Value {
    let has = |mode: &str| modes.as_array().is_some_and(|modes| modes.iter().any(|m| m == mode));
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    known.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",").into()
}

fn volume(errors: &mut Errors, volume: &Value) {
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    let at = path.child("accessModes");
    if len(&spec["accessModes"]) == 0 {
        errors.push(FieldError::required(&at, ""));
    }
    pod_spec::access_modes(errors, spec, &at);
    let at = path.child("capacity");
    if len(&spec["capacity"]) == 0 {
        errors.push(FieldError::required(&at, ""));
    }
    if spec["capacity"]["storage"].is_null() || len(&spec["capacity"]) > 1 {
        let capacity = if spec["capacity"].is_object() { spec["capacity"].clone() } else { json!({}) };
        errors.push(FieldError::not_supported(&at, capacity, &["storage"]));
    }
    let policies = &["Delete", "Recycle", "Retain"];
    let at = path.child("persistentVolumeReclaimPolicy");
    check::among(errors, &at, &spec["persistentVolumeReclaimPolicy"], policies);
    check::among(errors, &path.child("volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    check::optional(errors, &path.child("storageClassName"), &spec["storageClassName"], check::dns_subdomain);
    let is_source = |(key, value): &(&String, &Value)| value.is_object() && !NO_SOURCE.contains(&&***key);
    let sources: Vec<&String> = spec.as_object().into_iter().flatten().filter(is_source).map(|(key, _)| key).collect();
    match &sources[..] {
        [] => errors.push(FieldError::required(&path, "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => {
            for kind in more {
                errors.push(FieldError::forbidden(&path.child(kind), "may not specify more than 1 volume type"));
            }
        }
    }
    let affinity = &spec["nodeAffinity"]["required"];
    if affinity.is_object() {
        pod_spec::node_selector(errors, affinity, &path.child("nodeAffinity").child("required"));
    } else if spec["local"].is_object() {
        let why = "Local volume requires node affinity";
        errors.push(FieldError::required(&path.child("nodeAffinity"), why));
    }
}

/// A claim is what it is; only its size may grow, and its volume be given.
fn claim_update(errors: &mut Errors, new: &Value, old: &Value) {
    let bare = |claim: &Value, also_volume: bool| {
        let mut spec = claim["spec"].clone();
        let map = object::as_map(&mut spec);
        map.remove("volumeAttributesClassName");
        if also_volume {
            map.remove("volumeName");
        }
        if let Some(requests) = spec.get_mut("resources").and_then(|r| r.get_mut("requests")) {
            object::as_map(requests).remove("storage");
        }
        spec
    };
    let unbound = text(&old["spec"]["volumeName"]).is_empty();
    if bare(new, unbound) != bare(old, unbound) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden(&Path::new("spec"), why));
    }
    let size = |claim: &Value| Quantity::parse(text(&claim["spec"]["resources"]["requests"]["storage"])).ok();
    let path = Path::new("spec").child("resources").child("requests").child("storage");
    if size(new) < size(old) {
        errors.push(FieldError::forbidden(&path, "field can not be less than status.capacity"));
    }
    if size(new) != size(old) && old["status"]["phase"] != "Bound" {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden(&Path::new("spec"), why));
    }
}
