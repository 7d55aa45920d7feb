//! What differs between two values of a type, as sets of field paths.
//!
//! Follows `structured-merge-diff/typed/compare.go`: atomic values differ as a whole, items are matched by key, an item
//! that stands twice on either side is compared as a whole.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{FieldSet, Step};
use super::typed::{Atom, TypedError, alike, atom, item_step, member};
use crate::shape::{ListKind, Schema, Shape};

/// What one value has and another has not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// Only in the old value.
    pub(super) removed: FieldSet,
    /// In both, and different.
    pub(super) modified: FieldSet,
    /// Only in the new value.
    pub(super) added: FieldSet,
}

impl Comparison {
    /// The comparison without fields of others.
    pub(super) fn without(self, excluded: &FieldSet) -> Self {
        if excluded.is_empty() {
            return self;
        }
        Self {
            removed: self.removed.recursive_difference(excluded),
            modified: self.modified.recursive_difference(excluded),
            added: self.added.recursive_difference(excluded),
        }
    }
}

/// Compares two values of a type.
pub(super) fn compare(schema: &Schema, shape: &Shape, old: &Value, new: &Value) -> Result<Comparison, TypedError> {
    let mut walker = Walker { schema, path: Vec::new(), found: Comparison::default() };
    walker.value(shape, Some(old), Some(new))?;
    Ok(walker.found)
}

struct Walker<'a> {
    schema: &'a Schema,
    path: Vec<Step>,
    found: Comparison,
}

/// Equal as values: a number may be written as integer or float.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

impl Walker<'_> {
    fn value(&mut self, shape: &Shape, old: Option<&Value>, new: Option<&Value>) -> Result<(), TypedError> {
        let old_atom = atom(self.schema, shape, old);
        let new_atom = atom(self.schema, shape, new);
        let leaf = if new.is_none() {
            self.by_atom(old_atom, old, new)?
        } else if old.is_none() || alike(&old_atom, &new_atom) {
            self.by_atom(new_atom, old, new)?
        } else {
            self.by_atom(old_atom, old, new)?;
            self.by_atom(new_atom, old, new)?
        };
        if !leaf {
            match (old, new) {
                (None, _) => self.found.added.insert(&self.path),
                (_, None) => self.found.removed.insert(&self.path),
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells whether the value was compared as a whole.
    fn by_atom(&mut self, atom: Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> Result<bool, TypedError> {
        match atom {
            Atom::Scalar => self.whole(old, new),
            Atom::Map { shape, atomic } => {
                let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
                if atomic || a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                    return self.whole(old, new);
                }
                let keys = a.into_iter().flat_map(Map::keys);
                let new_keys = b.into_iter().flat_map(Map::keys).filter(|key| a.is_none_or(|a| !a.contains_key(*key)));
                for key in keys.chain(new_keys) {
                    let (sub, _) = member(self.schema, shape, key);
                    self.path.push(Step::Field(key.as_str().into()));
                    self.value(sub, a.and_then(|a| a.get(key)), b.and_then(|b| b.get(key)))?;
                    self.path.pop();
                }
                Ok(false)
            }
            Atom::List { item, kind } => {
                let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
                if *kind == ListKind::Atomic || a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                    return self.whole(old, new);
                }
                self.items(item, kind, a.map_or(&[][..], Vec::as_slice), b.map_or(&[][..], Vec::as_slice))?;
                Ok(false)
            }
        }
    }

    fn whole(&mut self, old: Option<&Value>, new: Option<&Value>) -> Result<bool, TypedError> {
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            (Some(old), Some(new)) if !equal(old, new) => self.found.modified.insert(&self.path),
            _ => {}
        }
        Ok(true)
    }

    fn items(&mut self, shape: &Shape, kind: &ListKind, old: &[Value], new: &[Value]) -> Result<(), TypedError> {
        let mut sides: BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for (index, item) in old.iter().enumerate() {
            sides.entry(self.step(shape, kind, index, item)?).or_default().0.push(item);
        }
        for (index, item) in new.iter().enumerate() {
            sides.entry(self.step(shape, kind, index, item)?).or_default().1.push(item);
        }
        for (step, (old, new)) in sides {
            self.path.push(step);
            match (&old[..], &new[..]) {
                ([] | [_], [] | [_]) => self.value(shape, old.first().copied(), new.first().copied())?,
                ([_, _, ..], [_, _, ..]) => {
                    if old.len() != new.len() || !old.iter().zip(&new).all(|(old, new)| equal(old, new)) {
                        self.found.modified.insert(&self.path);
                    }
                }
                ([_, _, ..], _) => {
                    if let Some(new) = new.first() {
                        self.value(shape, None, Some(new))?;
                    }
                    self.found.removed.insert(&self.path);
                }
                _ => {
                    if let Some(old) = old.first() {
                        self.value(shape, Some(old), None)?;
                    }
                    self.found.added.insert(&self.path);
                }
            }
            self.path.pop();
        }
        Ok(())
    }

    fn step(&self, shape: &Shape, kind: &ListKind, index: usize, item: &Value) -> Result<Step, TypedError> {
        item_step(self.schema, shape, kind, item)
            .map_err(|error| TypedError(format!("{}: element {index}: {error}", super::set::path_text(&self.path))))
    }
}
