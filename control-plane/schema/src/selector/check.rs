//! All that is wrong with labels and with a label selector in object form.
//!
//! [`LabelSelector::from_object`](super::LabelSelector::from_object) stops at the first fault; validation of an
//! object tells all of them, in the words of `apimachinery/pkg/apis/meta/v1/validation`. Values of wrong JSON types were
//! refused when the object was decoded and count as empty here.

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::names;

/// All that is wrong with a labels map.
pub fn validate_labels(labels: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_key(key).into_iter().map(|reason| FieldError::invalid(path, key.as_str(), reason)));
        errors.extend(names::label_value(value).into_iter().map(|reason| FieldError::invalid(path, value, reason)));
    }
    errors
}

/// All that is wrong with a `{matchLabels, matchExpressions}`.
pub fn validate_label_selector(selector: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let Some(selector) = selector.filter(|selector| !selector.is_null()) else { return Vec::new() };
    let mut errors = validate_labels(selector.get("matchLabels"), &path.child("matchLabels"));
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    for (index, expression) in expressions.enumerate() {
        validate_expression(expression, &path.child("matchExpressions").index(index), &mut errors);
    }
    errors
}

fn validate_expression(expression: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
    let values: Vec<&str> =
        expression.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let at = path.child("values");
    match text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&at, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => {
            errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator"));
        }
    }
    let key = text("key");
    let reasons = names::label_key(key).into_iter();
    errors.extend(reasons.map(|reason| FieldError::invalid(&path.child("key"), key, reason)));
    for (index, value) in values.iter().enumerate() {
        let reasons = names::label_value(value).into_iter();
        errors.extend(reasons.map(|reason| FieldError::invalid(&at.index(index), *value, reason)));
    }
}
