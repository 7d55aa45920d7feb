//! Templates of pods, in everything that makes pods.
//! (`ValidatePodTemplateSpec` and its siblings of `pkg/apis/{core,apps}/validation/validation.go`.)

use kedge_schema::field::{FieldError, Path};
use kedge_schema::selector::LabelSelector;
use serde_json::Value;

use super::check::{self, Errors};
use super::fill::{len, text};
use super::pod_spec;

/// What is wrong with a template.
pub(super) fn validate(errors: &mut Errors, template: &Value, path: &Path) {
    let metadata = &template["metadata"];
    check::labels(errors, &path.child("labels"), &metadata["labels"]);
    for (key, _) in metadata["annotations"].as_object().into_iter().flatten() {
        let found = kedge_schema::names::label_key(&key.to_lowercase());
        check::problems(errors, &path.child("annotations"), key.as_str(), found);
    }
    pod_spec::annotations(errors, &metadata["annotations"], &template["spec"], &path.child("annotations"));
    pod_spec::validate(errors, &template["spec"], false, &path.child("spec"));
    if len(&template["spec"]["ephemeralContainers"]) > 0 {
        let path = path.child("spec").child("ephemeralContainers");
        errors.push(FieldError::forbidden(&path, "ephemeral containers not allowed in pod template"));
    }
}

/// What is wrong with the template of something that keeps its pods running for ever.
pub(super) fn validate_running(errors: &mut Errors, template: &Value, what: &str, path: &Path) {
    validate(errors, template, path);
    let spec = path.child("spec");
    if template["spec"]["restartPolicy"] != "Always" {
        let policy = text(&template["spec"]["restartPolicy"]);
        errors.push(FieldError::not_supported(&spec.child("restartPolicy"), policy, &["Always"]));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let why = format!("activeDeadlineSeconds in {what} is not Supported");
        errors.push(FieldError::forbidden(&spec.child("activeDeadlineSeconds"), why));
    }
}

/// A selector must be there, select something, and what the template makes. `what` is the kind, for the words.
pub(super) fn selector(errors: &mut Errors, spec: &Value, what: &str, path: &Path) {
    let at = path.child("selector");
    let selector = &spec["selector"];
    if selector.is_null() {
        // Upstream leaves it at the labels that then match nothing.
        if what != "daemonset" {
            errors.push(FieldError::required(&at, ""));
        }
    } else {
        check::selector(errors, &at, selector);
        if len(&selector["matchLabels"]) + len(&selector["matchExpressions"]) == 0 {
            let why = format!("empty selector is invalid for {what}");
            errors.push(FieldError::invalid(&at, selector.clone(), why));
        }
    }
    match LabelSelector::from_object(Some(selector)) {
        Err(_) if what == "daemonset" => {}
        Err(_) => {
            let why = if what == "statefulset" { "" } else { "invalid label selector" };
            errors.push(FieldError::invalid(&at, selector.clone(), why));
        }
        Ok(parsed) if !parsed.is_everything() => matches(errors, &parsed, spec, path),
        Ok(_) => {}
    }
}

/// The template's labels are what the selector selects.
pub(super) fn matches(errors: &mut Errors, selector: &LabelSelector, spec: &Value, path: &Path) {
    let labels = &spec["template"]["metadata"]["labels"];
    if !selector.matches_labels(Some(labels)) {
        let path = path.child("template").child("metadata").child("labels");
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(&path, labels.clone(), why));
    }
}
