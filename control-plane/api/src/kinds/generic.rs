//! Rules that follow from facts alone: for built-in kinds without a file of their own, and for custom resources.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, Names, Rules};
use crate::jsonpath::Path;
use crate::object;

/// A built-in kind with nothing special: whether it has a status and a generation is all there is to know.
#[derive(Clone, Debug)]
pub(crate) struct Generic {
    /// Has a `/status`.
    pub status: bool,
    /// Has a spec whose changes are counted.
    pub generation: bool,
    /// Which names it allows.
    pub names: Names,
}

impl Rules for Generic {
    fn has_status(&self) -> bool {
        self.status
    }
    fn has_generation(&self) -> bool {
        self.generation
    }
    fn names(&self) -> Names {
        self.names
    }
}

/// A custom resource at one version.
#[derive(Debug)]
pub(crate) struct Custom {
    /// `subresources.status` is there.
    pub status: bool,
    /// `additionalPrinterColumns`, with where their values lie.
    pub columns: Vec<(Column, Path)>,
    /// `selectableFields`.
    pub selectable: Vec<(Cow<'static, str>, &'static str)>,
}

impl Rules for Custom {
    fn has_status(&self) -> bool {
        self.status
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn updates_unconditionally(&self) -> bool {
        false
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&self.selectable)
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        self.columns.iter().map(|(column, _)| column.clone()).collect()
    }

    fn row(&self, custom: &Value, now: Timestamp) -> Vec<Value> {
        self.columns.iter().map(|(column, path)| cell(column, path.find(custom), now)).collect()
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let status = new.get("status").cloned();
        let metadata = new.get("metadata").cloned().unwrap_or_default();
        *new = old.clone();
        let map = object::as_map(new);
        match status {
            Some(status) => map.insert("status".into(), status),
            None => map.remove("status"),
        };
        for key in ["managedFields", "resourceVersion"] {
            if let Some(value) = metadata.get(key) {
                object::metadata_mut(new).insert(key.into(), value.clone());
            }
        }
    }
}

/// A value as its column wants it (`apiextensions-apiserver/pkg/registry/customresource/tableconvertor`).
fn cell(column: &Column, value: Option<&Value>, now: Timestamp) -> Value {
    let Some(value) = value else { return Value::Null };
    match (&*column.kind, value) {
        ("integer", Value::Number(n)) => n.as_i64().or(n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("date", Value::String(text)) => crate::table::age(text, now).into(),
        _ => Value::Null,
    }
}
