//! Merging lists: by merge key for objects, by value for scalars, and the order of the result.
//!
//! Items of the patch come in the patch's order, items that only the server has keep theirs, and where both orders
//! speak about a pair the server's decides. Nothing here looks at directives of the object around the list.

use std::mem::discriminant;

use serde_json::Value;

use super::{DIRECTIVE, Meta, Object, StrategicError, merge_map, unknown_directive};
use crate::go_text;
use crate::shape::PatchRule;

/// Both lists as one.
pub(super) fn merge(
    items: Meta<'_>,
    rule: &PatchRule,
    own: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, StrategicError> {
    if own.is_empty() && patch.is_empty() {
        return Ok(own);
    }
    let objects = one_type(&[&own, &patch])?.is_some_and(Value::is_object);
    let merge_key = rule.merge_key.as_deref();
    if !objects {
        let mut merged: Vec<Value> = Vec::with_capacity(own.len() + patch.len());
        for item in own.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return in_order(merged, &patch, &own, merge_key);
    }
    let merge_key = merge_key.ok_or_else(|| StrategicError::NoMergeKeyDeclared(items.name()))?;
    let (own, patch) = obey_directives(own, patch, merge_key)?;
    let merged = merge_objects(items, own.clone(), &patch, merge_key)?;
    in_order(merged, &patch, &own, Some(merge_key))
}

/// Removes `key`'s items that are listed. Nothing happens where the object has no such list.
pub(super) fn delete_scalars(original: &mut Object, key: &str, listed: Value) -> Result<(), StrategicError> {
    if listed.is_null() {
        original.remove(key);
        return Ok(());
    }
    let (Some(Value::Array(items)), Value::Array(listed)) = (original.get_mut(key), &listed) else { return Ok(()) };
    if items.is_empty() && listed.is_empty() {
        return Ok(());
    }
    if one_type(&[items, listed])?.is_some_and(Value::is_object) {
        return Err(StrategicError::DeleteFromPrimitiveList);
    }
    items.retain(|item| !listed.contains(item));
    Ok(())
}

/// `$patch: delete` removes the item with the same key, `$patch: replace` puts the patch's items in place of all.
fn obey_directives(
    mut own: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), StrategicError> {
    let (mut plain, mut replace) = (Vec::new(), false);
    for item in patch {
        let Value::Object(map) = &item else { return Err(not_an_object(&item)) };
        let Some(directive) = map.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = key_of(&item, merge_key)?;
                own.retain(|item| item.get(merge_key) != Some(key));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(StrategicError::MergeInList),
            _ => {
                let mut rest = map.clone();
                rest.remove(DIRECTIVE);
                return Err(unknown_directive(directive, &rest));
            }
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (own, plain) })
}

fn merge_objects(
    items: Meta<'_>,
    mut own: Vec<Value>,
    patch: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, StrategicError> {
    for item in patch {
        let key = key_of(item, merge_key)?;
        let found = own.iter_mut().find(|own| own.get(merge_key) == Some(key));
        match (found, item) {
            (Some(Value::Object(own)), Value::Object(item)) => {
                *own = merge_map(items, std::mem::take(own), item.clone())?;
            }
            (Some(other), _) => return Err(not_an_object(other)),
            (None, _) => own.push(item.clone()),
        }
    }
    Ok(own)
}

/// The items named by `patch_order` in that order, merged with the others in the server's.
pub(super) fn in_order(
    items: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
) -> Result<Vec<Value>, StrategicError> {
    if let Some(merge_key) = merge_key {
        for item in items.iter().chain(patch_order).chain(server_order) {
            key_of(item, merge_key)?;
        }
    }
    let at = |order: &[Value], item: &Value| order.iter().position(|other| same(item, other, merge_key));
    let (mut patched, mut server): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| at(patch_order, item).is_some());
    patched.sort_by_key(|item| at(patch_order, item));
    server.sort_by_key(|item| at(server_order, item).unwrap_or(usize::MAX));
    let mut merged = Vec::with_capacity(patched.len() + server.len());
    let mut server = server.into_iter().peekable();
    for item in patched {
        // An item that only the server has goes first where the server's order says so of both.
        while let Some(other) = server.peek() {
            match (at(server_order, other), at(server_order, &item)) {
                (Some(other), Some(item)) if other < item => merged.extend(server.next()),
                _ => break,
            }
        }
        merged.push(item);
    }
    merged.extend(server);
    Ok(merged)
}

/// The patch's list must follow the order that the patch itself states.
pub(super) fn check_order(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), StrategicError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let deletes = |item: &Value| merge_key.is_some() && item.get(DIRECTIVE).is_some_and(|kind| kind == "delete");
    let mut items = patch.iter().filter(|item| !deletes(item)).peekable();
    let mut rest = order.iter();
    // Upstream passes over other directives only while the stated order lasts; one at the end is refused.
    while let Some(item) = items.peek().copied() {
        let Some(next) = rest.as_slice().first() else {
            let shown = |items: &[Value]| Value::from(items.to_vec()).to_string();
            return Err(StrategicError::Order(shown(patch), shown(order)));
        };
        if item.get(DIRECTIVE).is_some() {
            items.next();
            continue;
        }
        if let Some(merge_key) = merge_key {
            key_of(item, merge_key)?;
            key_of(next, merge_key)?;
        }
        if same(item, next, merge_key) {
            items.next();
        }
        rest.next();
    }
    Ok(())
}

/// One item of the lists, all of which must be of one JSON type and no lists.
pub(super) fn one_type<'a>(lists: &[&'a [Value]]) -> Result<Option<&'a Value>, StrategicError> {
    let mut items = lists.iter().copied().flatten();
    let Some(first) = items.next() else { return Ok(None) };
    if first.is_array() {
        return Err(StrategicError::ListOfLists);
    }
    if items.any(|item| discriminant(item) != discriminant(first)) {
        let shown = lists.iter().map(|items| Value::from(items.to_vec())).collect::<Vec<_>>();
        return Err(StrategicError::MixedItems(Value::from(shown).to_string()));
    }
    Ok(Some(first))
}

fn same(a: &Value, b: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) if a.is_object() => a.get(key) == b.get(key),
        _ => a == b,
    }
}

fn key_of<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value, StrategicError> {
    let map = item.as_object().ok_or_else(|| not_an_object(item))?;
    map.get(merge_key).ok_or_else(|| StrategicError::NoMergeKey(item.to_string(), merge_key.to_owned()))
}

fn not_an_object(value: &Value) -> StrategicError {
    StrategicError::Mismatch("map[string]interface {}", go_text::type_name(value))
}
