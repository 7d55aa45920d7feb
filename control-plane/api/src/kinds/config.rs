//! ConfigMap and Secret: data for pods (`ValidateConfigMap`, `ValidateSecret`, `pkg/registry/core/{configmap,secret}`).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kedge_schema::field::{FieldError, Path};
use serde_json::{Value, json};

use super::Column;
use super::check::{self, Errors};
use super::fill::{fill, len, text};
use super::plain::{PLAIN, Plain};
use crate::object;

/// All values together (`MaxSecretSize`).
const BYTES_MAX: usize = 1 << 20;

pub(super) static CONFIG_MAP: Plain = Plain {
    columns: &[Column::text("Data")],
    row: |map, _| vec![(len(&map["data"]) + len(&map["binaryData"])).into()],
    validate: config_map,
    validate_update: |errors, new, old| stays(errors, new, old, &["data", "binaryData"]),
    ..PLAIN
};

pub(super) static SECRET: Plain = Plain {
    columns: &[Column::text("Type"), Column::text("Data")],
    row: |secret, _| vec![text(&secret["type"]).into(), len(&secret["data"]).into()],
    selectable: &[(Cow::Borrowed("type"), "")],
    default: default_secret,
    validate: secret,
    validate_update: |errors, new, old| {
        check::immutable(errors, &Path::new("type"), &new["type"], &old["type"]);
        stays(errors, new, old, &["data"]);
    },
    ..PLAIN
};

fn default_secret(secret: &mut Value) {
    fill(secret, "type", "Opaque");
    // What is written in plain text is stored like the rest (`Convert_v1_Secret_To_core_Secret`).
    let Some(Value::Object(plain)) = object::as_map(secret).remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = object::as_map(secret).entry("data").or_insert_with(|| json!({}));
    let data = object::as_map(data);
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(text(&value)).into());
    }
}

fn config_map(errors: &mut Errors, map: &Value) {
    let mut bytes = 0;
    for list in ["data", "binaryData"] {
        for (key, value) in map[list].as_object().into_iter().flatten() {
            let path = Path::new(list).key(key);
            check::problems(errors, &path, key.as_str(), check::data_key(key));
            if list == "data" && !map["binaryData"][key].is_null() {
                errors.push(FieldError::invalid(&path, key.as_str(), "duplicate of key present in binaryData"));
            }
            bytes += if list == "data" { text(value).len() } else { decoded(value).len() };
        }
    }
    if bytes > BYTES_MAX {
        errors.push(FieldError::too_long(&Path::root(), BYTES_MAX));
    }
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).unwrap_or_default()
}

/// The keys without which a secret of a type is of no use; of the last group one is enough.
fn secret(errors: &mut Errors, secret: &Value) {
    let (data, path) = (&secret["data"], Path::new("data"));
    let mut bytes = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        check::problems(errors, &path.key(key), key.as_str(), check::data_key(key));
        bytes += decoded(value).len();
    }
    if bytes > BYTES_MAX {
        errors.push(FieldError::too_long(&path, BYTES_MAX));
    }
    let mut need = |key: &str| {
        if data[key].is_null() {
            errors.push(FieldError::required(&path.key(key), ""));
        }
    };
    match text(&secret["type"]) {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            check::required(
                errors,
                &Path::new("metadata").child("annotations").key(ACCOUNT),
                &secret["metadata"]["annotations"][ACCOUNT],
            );
        }
        "kubernetes.io/dockercfg" => json_map(errors, data, ".dockercfg", &path),
        "kubernetes.io/dockerconfigjson" => json_map(errors, data, ".dockerconfigjson", &path),
        "kubernetes.io/basic-auth" if data["username"].is_null() && data["password"].is_null() => {
            ["username", "password"].into_iter().for_each(need);
        }
        "kubernetes.io/ssh-auth" if text(&data["ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required(&path.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(&mut need),
        _ => {}
    }
}

fn json_map(errors: &mut Errors, data: &Value, key: &str, path: &Path) {
    if data[key].is_null() {
        return errors.push(FieldError::required(&path.key(key), ""));
    }
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded(&data[key])) {
        errors.push(FieldError::invalid(&path.key(key), "<secret contents redacted>", error.to_string()));
    }
}

/// What is marked immutable stays as it is, and marked (KEP-1412).
fn stays(errors: &mut Errors, new: &Value, old: &Value, lists: &[&str]) {
    if old["immutable"] != true {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        errors.push(FieldError::forbidden(&Path::new("immutable"), why));
    }
    for list in lists.iter().filter(|list| new[**list] != old[**list]) {
        errors.push(FieldError::forbidden(&Path::new(list), why));
    }
}
