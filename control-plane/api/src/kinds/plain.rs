//! Kinds of which little is special: a few answers each, in one struct, so that a family of them fits one file.
//!
//! A kind that needs more than these answers implements [`Rules`] itself.

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::facts;
use kedge_schema::field::FieldError;
use serde_json::Value;

use super::check::Errors;
use super::fill::keep_spec;
use super::{Column, Names, Rules};
use crate::object;
use crate::validation;

type Selectable = [(Cow<'static, str>, &'static str)];

/// The answers of a kind; [`PLAIN`] has the usual ones.
pub(super) struct Plain {
    pub(super) status: bool,
    pub(super) generation: bool,
    pub(super) creates_on_update: bool,
    pub(super) unconditional: bool,
    pub(super) names: Names,
    pub(super) deprecated: Option<&'static str>,
    /// The columns are the whole table.
    pub(super) whole_table: bool,
    pub(super) columns: &'static [Column],
    pub(super) row: fn(&Value, Timestamp) -> Vec<Value>,
    pub(super) selectable: &'static Selectable,
    pub(super) default: fn(&mut Value),
    /// What is wrong beyond fields that are missing.
    pub(super) validate: fn(&mut Errors, &Value),
    pub(super) validate_update: fn(&mut Errors, &Value, &Value),
}

pub(super) const PLAIN: Plain = Plain {
    status: false,
    generation: false,
    creates_on_update: false,
    unconditional: true,
    names: Names::Subdomain,
    deprecated: None,
    whole_table: false,
    columns: &[],
    row: |_, _| Vec::new(),
    selectable: &[],
    default: |_| {},
    validate: |_, _| {},
    validate_update: |_, _, _| {},
};

impl Rules for Plain {
    fn deprecated(&self) -> Option<&'static str> {
        self.deprecated
    }

    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (group, version) = match object["apiVersion"].as_str().unwrap_or_default() {
            "" | "v1" => ("", "v1"),
            version => version.split_once('/').unwrap_or(("", version)),
        };
        let facts = facts::builtin();
        let id = facts.kind(group, version, object["kind"].as_str().unwrap_or_default());
        let mut errors = id.map(|id| validation::required(&facts.schema, id, object)).unwrap_or_default();
        (self.validate)(&mut errors, object);
        errors.dedup();
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        (self.validate_update)(&mut errors, new, old);
        errors
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(self.selectable)
    }

    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn creates_on_update(&self) -> bool {
        self.creates_on_update
    }

    fn updates_unconditionally(&self) -> bool {
        self.unconditional
    }

    fn names(&self) -> Names {
        self.names
    }

    fn whole_table(&self) -> bool {
        self.whole_table
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        Cow::Borrowed(self.columns)
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.row)(object, now)
    }
}

/// The first few of a list and how many more there are.
pub(super) fn first_few(items: &[String], shown_max: usize, none: &str) -> Value {
    match items.len() {
        0 => none.into(),
        count if count > shown_max => {
            format!("{} + {} more...", items[..shown_max].join(","), count - shown_max).into()
        }
        _ => items.join(",").into(),
    }
}

/// The name, marked when an annotation makes it the default.
pub(super) fn name_with_default(object: &Value, annotations: &[&str]) -> Value {
    let is_default = annotations.iter().any(|key| object["metadata"]["annotations"][*key] == "true");
    format!("{}{}", object::name(object), if is_default { " (default)" } else { "" }).into()
}
