//! Errors about fields: where, what kind, the value at fault, and why.
//!
//! All validation speaks through [`FieldError`]; the words are those of upstream's
//! `apimachinery/pkg/util/validation/field`, because clients and tests read them. [`Path`] says where.
//! What is not here: any rule about what is valid, and the HTTP shape of the answer.

use std::fmt;

use serde_json::{Value, json};

use crate::go_text;

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What sort of wrong.
    pub kind: ErrorKind,
    /// Where, such as `spec.containers[0].name`.
    pub field: String,
    /// The value at fault; none where it is not to be shown.
    pub value: Option<Value>,
    /// Why.
    pub detail: String,
}

/// What sort of wrong a field is; the names are those of `Status` causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The value refers to something that does not exist.
    NotFound,
    /// The value must be there.
    Required,
    /// The value must be unique and is not.
    Duplicate,
    /// The value is malformed.
    Invalid,
    /// The value is none of the allowed ones.
    NotSupported,
    /// The value may not be there, or may not change.
    Forbidden,
    /// The text is too long.
    TooLong,
    /// The text is too short.
    TooShort,
    /// The list is too long.
    TooMany,
    /// The list is too short.
    TooFew,
    /// The value is of the wrong JSON type.
    TypeInvalid,
    /// The server failed while checking.
    Internal,
}

impl ErrorKind {
    /// The `reason` of a `Status` cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooShort => "FieldValueTooShort",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooShort => "Too short",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::TooShort | Self::Internal)
    }
}

impl FieldError {
    /// `Required value`, and why.
    pub fn required(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Required, field: field.to_string(), value: None, detail: detail.into() }
    }

    /// `Invalid value: VALUE: why`.
    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::with_value(ErrorKind::Invalid, field, value, detail)
    }

    /// As [`FieldError::invalid`], for a value of the wrong JSON type.
    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::with_value(ErrorKind::TypeInvalid, field, value, detail)
    }

    /// `Forbidden: why`.
    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Forbidden, field: field.to_string(), value: None, detail: detail.into() }
    }

    /// `Duplicate value: VALUE`.
    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::with_value(ErrorKind::Duplicate, field, value, "")
    }

    /// `Not found: VALUE`.
    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self::with_value(ErrorKind::NotFound, field, value, "")
    }

    /// `Unsupported value: VALUE: supported values: "a", "b"`.
    pub fn not_supported<T: AsRef<str>>(field: &Path, value: impl Into<Value>, supported: &[T]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|item| go_text::quote(item.as_ref())).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::with_value(ErrorKind::NotSupported, field, value, detail)
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: &Path, bytes_max: usize) -> Self {
        let unit = if bytes_max == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {bytes_max} {unit}");
        Self { kind: ErrorKind::TooLong, field: field.to_string(), value: None, detail }
    }

    /// `Too many: COUNT: must have at most N items`.
    pub fn too_many(field: &Path, count: usize, count_max: usize) -> Self {
        let unit = if count_max == 1 { "item" } else { "items" };
        Self::with_value(ErrorKind::TooMany, field, count as u64, format!("must have at most {count_max} {unit}"))
    }

    /// `Internal error: why`.
    pub fn internal(field: &Path, detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Internal, field: field.to_string(), value: None, detail: detail.into() }
    }

    /// Any kind that shows its value.
    pub fn with_value(kind: ErrorKind, field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind, field: field.to_string(), value: Some(value.into()), detail: detail.into() }
    }

    /// Everything but the field: the `message` of a `Status` cause.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(value) = self.value.as_ref().filter(|_| self.kind.shows_value()) {
            text.push_str(": ");
            text.push_str(&match value {
                Value::String(value) => go_text::quote(value),
                Value::Number(value) => go_text::number(value),
                value => go_text::json(value),
            });
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    /// The cause as it stands in `Status.details.causes`.
    pub fn to_cause(&self) -> Value {
        json!({"reason": self.kind.reason(), "message": self.body(), "field": self.field})
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Several errors as one text: one alone as it is, more in brackets, each text once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for text in errors.iter().map(FieldError::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

/// The `message` of an `Invalid` status: `Pod "web" is invalid: …`. The kind carries its group (`Deployment.apps`).
pub fn invalid_message(qualified_kind: &str, name: &str, errors: &[FieldError]) -> String {
    let head = format!("{qualified_kind} {} is invalid", go_text::quote(name));
    if errors.is_empty() { head } else { format!("{head}: {}", aggregate(errors)) }
}

/// Where a field is: `Path::new("spec").child("containers").index(0).child("name")`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path {
    text: String,
}

impl Path {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A top-level field.
    pub fn new(name: &str) -> Self {
        Self { text: name.to_owned() }
    }

    /// A member of this field.
    pub fn child(&self, name: &str) -> Self {
        let mut path = self.clone();
        path.push_child(name);
        path
    }

    /// An item of this list.
    pub fn index(&self, index: usize) -> Self {
        Self { text: format!("{}[{index}]", self.text) }
    }

    /// A key of this map.
    pub fn key(&self, key: &str) -> Self {
        Self { text: format!("{}[{key}]", self.text) }
    }

    /// The path as text, without a copy.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Walkers that go up and down keep one path: where to come back to.
    pub(crate) fn mark(&self) -> usize {
        self.text.len()
    }

    /// Goes back up to a mark.
    pub(crate) fn reset(&mut self, mark: usize) {
        self.text.truncate(mark);
    }

    pub(crate) fn push_child(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push('.');
        }
        self.text.push_str(name);
    }

    pub(crate) fn push_index(&mut self, index: usize) {
        self.push_key(&index.to_string());
    }

    pub(crate) fn push_key(&mut self, key: &str) {
        self.text.push('[');
        self.text.push_str(key);
        self.text.push(']');
    }
}

impl fmt::Display for Path {
    /// Upstream prints the path of the whole object as `<nil>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "<nil>" } else { &self.text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream() {
        let field = Path::new("spec").child("containers").index(0).child("name");
        for (error, expected) in [
            (FieldError::required(&field, ""), "spec.containers[0].name: Required value"),
            (FieldError::required(&field, "say it"), "spec.containers[0].name: Required value: say it"),
            (FieldError::invalid(&field, "A\"", "bad"), "spec.containers[0].name: Invalid value: \"A\\\"\": bad"),
            (FieldError::invalid(&field, -1, "bad"), "spec.containers[0].name: Invalid value: -1: bad"),
            (
                FieldError::invalid(&field, json!({"a": [1]}), "bad"),
                "spec.containers[0].name: Invalid value: {\"a\":[1]}: bad",
            ),
            (
                FieldError::not_supported(&field, "x", &["a", "b"]),
                "spec.containers[0].name: Unsupported value: \"x\": supported values: \"a\", \"b\"",
            ),
            (FieldError::too_long(&field, 63), "spec.containers[0].name: Too long: may not be more than 63 bytes"),
            (FieldError::too_many(&field, 3, 1), "spec.containers[0].name: Too many: 3: must have at most 1 item"),
            (FieldError::duplicate(&field, "x"), "spec.containers[0].name: Duplicate value: \"x\""),
            (FieldError::forbidden(&Path::new("data").key("a.b"), "no"), "data[a.b]: Forbidden: no"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn causes_and_messages() {
        let error = FieldError::required(&Path::new("metadata").child("name"), "name or generateName is required");
        assert_eq!(
            error.to_cause(),
            json!({
                "reason": "FieldValueRequired",
                "message": "Required value: name or generateName is required",
                "field": "metadata.name",
            })
        );
        let other = FieldError::forbidden(&Path::new("spec"), "no");
        assert_eq!(
            invalid_message("Deployment.apps", "web", &[other.clone(), other.clone()]),
            "Deployment.apps \"web\" is invalid: spec: Forbidden: no"
        );
        assert_eq!(
            invalid_message("Pod", "web", &[other, error]),
            "Pod \"web\" is invalid: [spec: Forbidden: no, metadata.name: Required value: name or generateName is required]"
        );
    }
}
