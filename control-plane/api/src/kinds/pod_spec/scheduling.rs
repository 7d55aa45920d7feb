//! Tolerations, gates and the spread over topologies.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use crate::kinds::check::{self, Errors};
use crate::kinds::fill::text;
use crate::object;

/// `ValidateTolerations`.
pub(in crate::kinds) fn tolerations(errors: &mut Errors, list: &Value, at: &Path) {
    for (index, toleration) in list.as_array().into_iter().flatten().enumerate() {
        let path = at.index(index);
        let (key, operator, value) =
            (text(&toleration["key"]), text(&toleration["operator"]), text(&toleration["value"]));
        if !key.is_empty() {
            check::problems(errors, &path.child("key"), key, names::label_key(key));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&path.child("operator"), operator, why));
        }
        let effect = text(&toleration["effect"]);
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&path.child("effect"), effect, why));
        }
        match operator {
            "Equal" | "" => {
                let found = names::label_value(value);
                if !found.is_empty() {
                    errors.push(FieldError::invalid(&path.child("operator"), value, found.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&path.child("operator"), value, why));
            }
            "Exists" => {}
            operator => {
                errors.push(FieldError::not_supported(&path.child("operator"), operator, operators(operator)));
            }
        }
        if !effect.is_empty() {
            taint_effect(errors, effect, &path.child("effect"));
        }
    }
}

/// Comparing tolerations (KEP-5471) are behind a gate that is off; upstream then names them nevertheless.
fn operators(asked: &str) -> &'static [&'static str] {
    const ALL: &[&str] = &["Equal", "Exists", "Lt", "Gt"];
    if matches!(asked, "Lt" | "Gt") { ALL } else { &ALL[..2] }
}

/// What a taint does.
pub(in crate::kinds) fn taint_effect(errors: &mut Errors, effect: &str, path: &Path) {
    const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(path, effect, EFFECTS));
    }
}

/// Gates before scheduling (KEP-3521) and conditions that count for readiness.
pub(super) fn gates(errors: &mut Errors, spec: &Value, path: &Path) {
    for (index, gate) in object::items(spec, "readinessGates").enumerate() {
        let path = path.child("readinessGates").index(index).child("conditionType");
        let kind = text(&gate["conditionType"]);
        check::problems(errors, &path, kind, names::label_key(kind));
    }
    let mut known = Vec::new();
    for (index, gate) in object::items(spec, "schedulingGates").enumerate() {
        let path = path.child("schedulingGates").index(index);
        let name = text(&gate["name"]);
        check::problems(errors, &path, name, names::label_key(name));
        if known.contains(&name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        known.push(name);
    }
}

/// `validateTopologySpreadConstraints`.
pub(super) fn spread(errors: &mut Errors, spec: &Value, at: &Path) {
    let kind = |constraint: &Value| {
        (text(&constraint["topologyKey"]).to_owned(), text(&constraint["whenUnsatisfiable"]).to_owned())
    };
    let kinds: Vec<_> = object::items(spec, "topologySpreadConstraints").map(kind).collect();
    for (index, constraint) in object::items(spec, "topologySpreadConstraints").enumerate() {
        let path = at.index(index);
        check::positive(errors, &path.child("maxSkew"), &constraint["maxSkew"]);
        if kinds[index].0.is_empty() {
            errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
        }
        let action = &constraint["whenUnsatisfiable"];
        check::among_any(errors, &path.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        if kinds[index + 1..].contains(&kinds[index]) {
            let shown = format!("{{{}, {}}}", kinds[index].0, kinds[index].1);
            errors.push(FieldError::duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), shown));
        }
        let domains = &constraint["minDomains"];
        if !domains.is_null() {
            check::positive(errors, &path.child("minDomains"), domains);
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", text(action));
                errors.push(FieldError::invalid(&path.child("minDomains"), domains.clone(), why));
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            check::among(errors, &path.child(key), &constraint[key], &["Honor", "Ignore"]);
        }
        label_keys(errors, constraint, &path);
        check::selector(errors, &path.child("labelSelector"), &constraint["labelSelector"]);
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` beside a label selector (`ValidateMatchLabelKeysAndMismatchLabelKeys`).
pub(super) fn label_keys(errors: &mut Errors, term: &Value, path: &Path) {
    let selector = &term["labelSelector"];
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = path.child(list);
        if selector.is_null() && object::items(term, list).next().is_some() {
            errors.push(FieldError::forbidden(&path, "must not be specified when labelSelector is not set"));
            continue;
        }
        for (index, key) in object::items(term, list).enumerate() {
            check::problems(errors, &path.index(index), text(key), names::label_key(text(key)));
        }
    }
    let matching: Vec<&str> = object::items(term, "matchLabelKeys").map(text).collect();
    // The key that the server itself put there from `matchLabelKeys` is the first of its name.
    let mut selected: Vec<&str> =
        selector["matchLabels"].as_object().into_iter().flatten().map(|(key, _)| &**key).collect();
    for expression in object::items(selector, "matchExpressions") {
        let key = text(&expression["key"]);
        if let Some(index) = matching.iter().rposition(|known| *known == key).filter(|_| selected.contains(&key)) {
            let why = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(&path.index(index), key, why));
        }
        selected.push(key);
    }
    for (index, key) in matching.iter().enumerate() {
        if object::items(term, "mismatchLabelKeys").any(|other| other == key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(FieldError::invalid(&path.child("matchLabelKeys").index(index), *key, why));
        }
    }
}
