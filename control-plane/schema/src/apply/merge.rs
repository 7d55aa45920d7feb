//! Laying one value over another, and taking fields out of a value.
//!
//! Follows `structured-merge-diff/typed/{merge,remove}.go`. Merging keeps the live order of items and weaves in the
//! applied ones in theirs. A container that loses its last field becomes `null`; decoding drops it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{FieldSet, Step};
use super::typed::{Atom, TypedError, alike, atom, item_step, member};
use crate::shape::{ListKind, Schema, Shape};

/// `applied` laid over `live`.
pub(super) fn merge(schema: &Schema, shape: &Shape, live: &Value, applied: &Value) -> Result<Value, TypedError> {
    Ok(merged(schema, shape, Some(live), Some(applied))?.unwrap_or(Value::Null))
}

fn merged(
    schema: &Schema,
    shape: &Shape,
    live: Option<&Value>,
    applied: Option<&Value>,
) -> Result<Option<Value>, TypedError> {
    let live_atom = atom(schema, shape, live);
    let applied_atom = atom(schema, shape, applied);
    let chosen = match (live, applied) {
        (Some(_), None) => live_atom,
        (Some(_), Some(_)) if !alike(&live_atom, &applied_atom) => applied_atom,
        _ => applied_atom,
    };
    let whole = || applied.or(live).cloned();
    match chosen {
        Atom::Scalar => Ok(whole()),
        Atom::Map { shape, atomic } => {
            let (a, b) = (live.and_then(Value::as_object), applied.and_then(Value::as_object));
            if atomic || a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return Ok(whole());
            }
            let mut out = Map::new();
            let keys = a.into_iter().flat_map(Map::keys);
            let new_keys = b.into_iter().flat_map(Map::keys).filter(|key| a.is_none_or(|a| !a.contains_key(*key)));
            for key in keys.chain(new_keys) {
                let (sub, _) = member(schema, shape, key);
                let value = merged(schema, sub, a.and_then(|a| a.get(key)), b.and_then(|b| b.get(key)))?;
                out.extend(value.map(|value| (key.clone(), value)));
            }
            Ok((!out.is_empty()).then_some(Value::Object(out)))
        }
        Atom::List { item, kind } => {
            let (a, b) = (live.and_then(Value::as_array), applied.and_then(Value::as_array));
            if *kind == ListKind::Atomic || a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                return Ok(whole());
            }
            let a = Items::of(schema, item, kind, a.map_or(&[][..], Vec::as_slice), true)?;
            let b = Items::of(schema, item, kind, b.map_or(&[][..], Vec::as_slice), false)?;
            let out = weave(schema, item, &a, &b)?;
            Ok((!out.is_empty()).then_some(Value::Array(out)))
        }
    }
}

/// The items of a list and what tells them apart.
struct Items<'a> {
    steps: Vec<Step>,
    values: &'a [Value],
    by_step: BTreeMap<Step, &'a Value>,
}

impl<'a> Items<'a> {
    /// An item that stands twice in the live list counts as `null`.
    fn of(
        schema: &Schema,
        shape: &Shape,
        kind: &ListKind,
        values: &'a [Value],
        duplicates: bool,
    ) -> Result<Self, TypedError> {
        let mut items = Self { steps: Vec::with_capacity(values.len()), values, by_step: BTreeMap::new() };
        for (index, value) in values.iter().enumerate() {
            let step = item_step(schema, shape, kind, value)
                .map_err(|error| TypedError(format!("element {index}: {error}")))?;
            if items.by_step.contains_key(&step) {
                if !duplicates {
                    return Err(TypedError(format!("duplicate entries for key {step}")));
                }
                items.by_step.insert(step.clone(), &Value::Null);
            } else {
                items.by_step.insert(step.clone(), value);
            }
            items.steps.push(step);
        }
        Ok(items)
    }
}

/// Both lists in one order: shared items as applied, live-only items where they stood between them.
fn weave(schema: &Schema, shape: &Shape, live: &Items<'_>, applied: &Items<'_>) -> Result<Vec<Value>, TypedError> {
    let mut out = Vec::new();
    let mut shared = applied.steps.iter().filter(|step| live.by_step.contains_key(step));
    let mut next_shared = shared.next();
    let mut done: BTreeSet<&Step> = BTreeSet::new();
    let (mut l, mut r) = (0, 0);
    while l < live.steps.len() || r < applied.steps.len() {
        if let (Some(own), Some(other)) = (live.steps.get(l), applied.steps.get(r)) {
            if own == other {
                done.insert(own);
                let value = merged(schema, shape, live.by_step.get(own).copied(), applied.by_step.get(own).copied())?;
                out.extend(value);
                l += 1;
                r += 1;
                next_shared = shared.next();
                continue;
            }
            if applied.by_step.contains_key(own) && next_shared.is_some_and(|next| next != own) {
                l += 1;
                continue;
            }
        }
        if let Some(own) = live.steps.get(l) {
            if !applied.by_step.contains_key(own) {
                out.extend(merged(schema, shape, Some(&live.values[l]), None)?);
                l += 1;
                continue;
            }
            if done.contains(own) {
                l += 1;
            }
        }
        if let Some(other) = applied.steps.get(r) {
            done.insert(other);
            let value = merged(schema, shape, live.by_step.get(other).copied(), applied.by_step.get(other).copied())?;
            out.extend(value);
            r += 1;
            if next_shared == Some(other) {
                next_shared = shared.next();
            }
        }
    }
    Ok(out)
}

/// The value without the fields of the set.
pub(super) fn remove(schema: &Schema, shape: &Shape, value: &Value, set: &FieldSet) -> Value {
    match atom(schema, shape, Some(value)) {
        Atom::Scalar => value.clone(),
        Atom::Map { atomic: true, .. } | Atom::List { kind: ListKind::Atomic, .. } => Value::Null,
        Atom::Map { shape, .. } => {
            let mut out = Map::new();
            for (key, value) in value.as_object().into_iter().flatten() {
                match set.at(&Step::Field(key.as_str().into())) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        let (sub, _) = member(schema, shape, key);
                        out.insert(key.clone(), remove(schema, sub, value, &node.children));
                    }
                    None => {
                        out.insert(key.clone(), value.clone());
                    }
                }
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        Atom::List { item, kind } => {
            let mut out = Vec::new();
            for value in value.as_array().into_iter().flatten() {
                let step = item_step(schema, item, kind, value).ok();
                match step.and_then(|step| set.at(&step)) {
                    Some(node) if node.member => {}
                    Some(node) => out.push(remove(schema, item, value, &node.children)),
                    None => out.push(value.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
    }
}
