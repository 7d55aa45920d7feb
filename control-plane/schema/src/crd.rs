//! Custom resources: what a definition's `openAPIV3Schema` means for the objects of its kind.
//!
//! [`CustomSchema::new`] takes only structural schemas and says in upstream's words what is wrong with others
//! (`apiextensions-apiserver`, `pkg/apis/apiextensions/validation` and `pkg/apiserver/schema`). Pruning, defaults and
//! validation read the schema as it was written; [`CustomSchema::schema`] is the same as [`Shape`](crate::shape::Shape)s
//! for apply and everything else that walks types, without limits and rules. What is not enforced, CEL rules
//! (`x-kubernetes-validations`) and a few string formats, is listed in [`CustomSchema::unenforced`] for the server to
//! warn about. Not here: names, scope, conversion between versions.

mod formats;
mod lower;
mod prune;
mod structural;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;

use crate::decode::{DecodeError, FieldProblem};
use crate::facts::Facts;
use crate::field::{FieldError, Path};
use crate::shape::{Schema, TypeId};
use crate::strict;

/// The schema of one version of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomSchema {
    raw: Value,
    patterns: Patterns,
    schema: Schema,
    root: TypeId,
    metadata: TypeId,
    unenforced: Vec<Unenforced>,
}

/// Something that the schema asks for and this server does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unenforced {
    /// Where in the schema, such as `spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]`.
    pub path: String,
    /// The rule or the format.
    pub what: String,
}

/// The compiled regular expressions of a schema, by their text.
#[derive(Clone, Debug, Default)]
struct Patterns(HashMap<String, Regex>);

impl CustomSchema {
    /// Takes a structural schema, or says all that is wrong with it; `path` is where it stands in the definition.
    pub fn new(facts: &Facts, raw: Value, path: &Path) -> Result<Self, Vec<FieldError>> {
        let mut patterns = Patterns::default();
        let mut errors = structural::check(&raw, path, &mut patterns);
        if errors.is_empty() {
            errors = structural::check_defaults(&raw, path, &patterns);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let (schema, root, metadata) = lower::lower(facts, &raw);
        let mut unenforced = Vec::new();
        structural::list_unenforced(&raw, path, &mut unenforced);
        Ok(Self { raw, patterns, schema, root, metadata, unenforced })
    }

    /// The types of the resource, `apiVersion`, `kind` and `metadata` among them.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The type of the object.
    pub fn root(&self) -> TypeId {
        self.root
    }

    /// The schema as it was written.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// What the schema asks for and nobody enforces.
    pub fn unenforced(&self) -> &[Unenforced] {
        &self.unenforced
    }

    /// Drops unknown fields and tells them; decodes the metadata as of built-in kinds.
    pub fn conform(&self, object: &mut Value) -> Result<Vec<FieldProblem>, DecodeError> {
        let mut problems = prune::prune(&self.raw, object);
        if let Some(metadata) = object.get_mut("metadata").filter(|metadata| !metadata.is_null()) {
            let within = |problem| match problem {
                FieldProblem::Unknown(path) => FieldProblem::Unknown(format!("metadata.{path}")),
                other => other,
            };
            problems.extend(strict::conform(&self.schema, self.metadata, metadata)?.into_iter().map(within));
        }
        Ok(problems)
    }

    /// Drops `null`s that stand for absence, then fills in defaults.
    pub fn default(&self, object: &mut Value) {
        prune::drop_nulls(&self.raw, object);
        prune::default(&self.raw, object);
    }

    /// All that is wrong with an object.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = validate::validate(&self.raw, object, &Path::root(), &self.patterns);
        errors.extend(validate::list_keys(&self.raw, object));
        errors
    }

    /// All that is wrong with an update. What was wrong before in an unchanged part is let pass, as upstream's
    /// ratcheting has it (KEP-4008): an error counts only where the value at its path changed.
    pub fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        if errors.is_empty() {
            return errors;
        }
        let before = self.validate(old);
        errors.retain(|error| {
            let same = validate::at_path(object, &error.field)
                .is_some_and(|new| validate::at_path(old, &error.field).is_some_and(|old| old == new));
            !(same && before.contains(error))
        });
        errors
    }
}

/// The sub-schema of a member: its property, or what additional properties look like.
fn member<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema
        .get("properties")
        .and_then(|properties| properties.get(key))
        .or_else(|| schema.get("additionalProperties").filter(|additional| additional.is_object()))
}

/// Whether a boolean keyword is set.
fn is_set(schema: &Value, keyword: &str) -> bool {
    schema.get(keyword).and_then(Value::as_bool).unwrap_or(false)
}

fn text<'a>(schema: &'a Value, keyword: &str) -> &'a str {
    schema.get(keyword).and_then(Value::as_str).unwrap_or_default()
}

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];
