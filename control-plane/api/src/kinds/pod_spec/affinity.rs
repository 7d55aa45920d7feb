//! What a pod says about the nodes and the pods it wants to be near to.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::scheduling::label_keys;
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::object;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn validate(errors: &mut Errors, affinity: &Value, path: &Path) {
    node_affinity(errors, &affinity["nodeAffinity"], &path.child("nodeAffinity"));
    for side in ["podAffinity", "podAntiAffinity"] {
        let path = path.child(side);
        for (index, term) in object::items(&affinity[side], REQUIRED).enumerate() {
            pod_term(errors, term, &path.child(REQUIRED).index(index));
        }
        for (index, weighted) in object::items(&affinity[side], PREFERRED).enumerate() {
            let path = path.child(PREFERRED).index(index);
            weight(errors, weighted, &path);
            pod_term(errors, &weighted["podAffinityTerm"], &path.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Errors, weighted: &Value, path: &Path) {
    let weight = count(&weighted["weight"]);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn node_affinity(errors: &mut Errors, affinity: &Value, path: &Path) {
    if affinity[REQUIRED].is_object() {
        node_selector(errors, &affinity[REQUIRED], &path.child(REQUIRED));
    }
    for (index, weighted) in object::items(affinity, PREFERRED).enumerate() {
        let path = path.child(PREFERRED).index(index);
        weight(errors, weighted, &path);
        // A preference may name a label that can never be.
        node_term(errors, &weighted["preference"], false, &path.child("preference"));
    }
}

/// Node selector terms, of which one must hold (`ValidateNodeSelector`).
pub(in crate::kinds) fn node_selector(errors: &mut Errors, selector: &Value, path: &Path) {
    let at = path.child("nodeSelectorTerms");
    if len(&selector["nodeSelectorTerms"]) == 0 {
        errors.push(FieldError::required(&at, "must have at least one node selector term"));
    }
    for (index, term) in object::items(selector, "nodeSelectorTerms").enumerate() {
        node_term(errors, term, true, &at.index(index));
    }
}

fn node_term(errors: &mut Errors, term: &Value, values_checked: bool, path: &Path) {
    for (index, expression) in object::items(term, "matchExpressions").enumerate() {
        let path = path.child("matchExpressions").index(index);
        let mut found = Errors::new();
        check::requirement(&mut found, &path, expression, &["Gt", "Lt"]);
        let values = path.child("values");
        let of_value = |error: &FieldError| error.field.starts_with(&format!("{values}["));
        errors.extend(found.into_iter().filter(|error| values_checked || !of_value(error)));
    }
    for (index, field) in object::items(term, "matchFields").enumerate() {
        let path = path.child("matchFields").index(index);
        match text(&field["operator"]) {
            "In" | "NotIn" if len(&field["values"]) != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(&path.child("values"), why));
            }
            "In" | "NotIn" => {}
            operator => {
                errors.push(FieldError::invalid(&path.child("operator"), operator, "not a valid selector operator"));
            }
        }
        if field["key"] != "metadata.name" {
            let why = "not a valid field selector key";
            errors.push(FieldError::invalid(&path.child("key"), text(&field["key"]), why));
            continue;
        }
        for (index, value) in object::items(field, "values").enumerate() {
            let path = path.child("values").index(index);
            check::problems(errors, &path, text(value), check::dns_subdomain(text(value)));
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &Path) {
    for key in ["labelSelector", "namespaceSelector"] {
        check::selector(errors, &path.child(key), &term[key]);
    }
    for name in object::items(term, "namespaces") {
        check::problems(errors, &path.child("namespace"), text(name), check::dns_label(text(name)));
    }
    label_keys(errors, term, path);
    let at = path.child("topologyKey");
    let key = text(&term["topologyKey"]);
    if key.is_empty() {
        errors.push(FieldError::required(&at, "can not be empty"));
    }
    check::problems(errors, &at, key, names::label_key(key));
}
