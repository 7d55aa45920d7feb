//! How much of a workload may be missing or too much while it changes: numbers and percentages.
//! (`ValidatePositiveIntOrPercent`, `IsNotMoreThan100Percent` of `pkg/apis/apps/validation`.)

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::check::Errors;

/// The number, or the number of percent.
pub(super) fn amount(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse().ok()
        }
        value => value.as_i64(),
    }
}

/// A number that is not negative, or a percentage of at most a hundred.
pub(super) fn share(errors: &mut Errors, path: &Path, value: &Value) {
    positive(errors, path, value);
    if value.is_string() && amount(value).is_some_and(|percent| percent > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// A number that is not negative, or a percentage.
pub(super) fn positive(errors: &mut Errors, path: &Path, value: &Value) {
    match value {
        Value::String(_) if amount(value).is_none() => {
            let rule = "a valid percent string must be a numeric string followed by an ending '%'";
            let why = names::pattern_words(rule, "[0-9]+%", &["1%", "93%"]);
            errors.push(FieldError::invalid(path, value.clone(), why));
        }
        Value::Number(_) if amount(value).is_some_and(|number| number < 0) => {
            errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares() {
        let check = |value: Value, expected: usize| {
            let mut errors = Errors::new();
            share(&mut errors, &Path::new("x"), &value);
            assert_eq!(errors.len(), expected, "{value}: {errors:?}");
        };
        for (value, expected) in [
            (json!(0), 0),
            (json!(7), 0),
            (json!(-1), 1),
            (json!("25%"), 0),
            (json!("101%"), 1),
            (json!("x%"), 1),
            (json!("5"), 1),
            (json!("%"), 1),
        ] {
            check(value, expected);
        }
    }
}
