//! Strategic merge patch: a merge patch that knows the type, so that lists can be merged item by item.
//!
//! The rules are those of `apimachinery/pkg/util/strategicpatch`: `$patch: replace|delete`, `$retainKeys`,
//! `$setElementOrder/LIST`, `$deleteFromPrimitiveList/LIST`, and `null`, which removes. Where upstream walks Go maps in
//! random order we go by name, so a patch that contradicts itself gives one answer. The result is not checked
//! against the type; decode it afterwards. Custom resources have no strategic merge patch: the caller refuses it.

mod lists;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::go_text;
use crate::shape::{PatchRule, Schema, Shape, TypeId};

/// What marks the whole of an object or list.
const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";

/// Why a patch cannot be applied. All of these are the client's mistakes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    /// Patch or object is not an object.
    #[error("invalid JSON document")]
    NotAnObject,
    /// The directive is none of the known ones.
    #[error("unknown patch type: {0} in map: {1}")]
    Directive(String, String),
    /// A list item lacks the field that tells items apart.
    #[error("map: {0} does not contain declared merge key: {1}")]
    NoMergeKey(String, String),
    /// Something is of another JSON type than it must be here.
    #[error("expected a {0}, but received a {1}")]
    Mismatch(&'static str, &'static str),
    /// The type has no such field, and merging needs to know it.
    #[error("unable to find api field in struct {0} for the json field {1}")]
    NoField(String, String),
    /// `$retainKeys` lacks a field that the patch sets.
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    /// `$setElementOrder` is malformed.
    #[error("invalid patch format of setElementOrder list")]
    SetElementOrder,
    /// `$deleteFromPrimitiveList` is malformed.
    #[error("invalid patch format of primitive list")]
    DeleteFromPrimitiveList,
    /// The patch's list is not in the order that the patch itself states.
    #[error("The order in patch list:\n{0}\n doesn't match $setElementOrder list:\n{1}\n")]
    Order(String, String),
    /// Lists of lists cannot be merged.
    #[error("lists of lists are not supported")]
    ListOfLists,
    /// Items of both lists must be of one JSON type.
    #[error("list element types are not identical: {0}")]
    MixedItems(String),
    /// The order is stated of a list that is empty on both sides.
    #[error("no elements in any of the given slices")]
    NoItems,
    /// `$patch: merge` means nothing within a list.
    #[error("merging lists cannot yet be specified in the patch")]
    MergeInList,
    /// The type lacks what merging this list needs.
    #[error("cannot merge lists without merge key for {0}")]
    NoMergeKeyDeclared(String),
}

/// `object` with `patch` applied. Both are objects of the type.
pub fn merge(schema: &Schema, id: TypeId, object: &Value, patch: &Value) -> Result<Value, StrategicError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(StrategicError::NotAnObject);
    };
    let shape = Shape::Object(id);
    merge_map(Meta { schema, shape: Some(&shape) }, object.clone(), patch.clone()).map(Value::Object)
}

/// The type at hand, as far as it is known.
#[derive(Clone, Copy)]
struct Meta<'a> {
    schema: &'a Schema,
    shape: Option<&'a Shape>,
}

impl<'a> Meta<'a> {
    /// The type of a member, and how it is patched.
    fn member(&self, key: &str) -> Result<(Meta<'a>, PatchRule), StrategicError> {
        let found = match self.shape {
            Some(Shape::Object(id)) => {
                self.schema.object(*id).field(key).map(|field| (&field.shape, field.patch.clone()))
            }
            Some(Shape::Map(map)) => Some((&map.value, PatchRule::default())),
            _ => None,
        };
        let (shape, rule) = found.ok_or_else(|| StrategicError::NoField(self.name(), go_text::quote(key)))?;
        Ok((Meta { schema: self.schema, shape: Some(shape) }, rule))
    }

    fn items(&self) -> Meta<'a> {
        let item = match self.shape {
            Some(Shape::List(list)) => Some(&list.item),
            _ => None,
        };
        Meta { schema: self.schema, shape: item }
    }

    fn name(&self) -> String {
        match self.shape {
            Some(Shape::Object(id)) => {
                let name = &self.schema.object(*id).name;
                name.rsplit('.').next().unwrap_or(name).to_owned()
            }
            Some(Shape::Any) => "RawExtension".to_owned(),
            _ => String::new(),
        }
    }
}

type Object = Map<String, Value>;

fn merge_map(meta: Meta<'_>, mut original: Object, mut patch: Object) -> Result<Object, StrategicError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(meta, &mut original, &mut patch)?;
    // A deletion list goes after the list itself, so that it has the last word.
    let (deletions, members): (Vec<_>, Vec<_>) = patch.into_iter().partition(|(key, _)| key.starts_with(DELETE_FROM));
    for (key, value) in members {
        merge_member(meta, &mut original, key, value)?;
    }
    for (key, value) in deletions {
        let key = directive_target(&key, DELETE_FROM).ok_or(StrategicError::DeleteFromPrimitiveList)?;
        lists::delete_scalars(&mut original, key, value)?;
    }
    Ok(original)
}

fn merge_member(meta: Meta<'_>, original: &mut Object, key: String, value: Value) -> Result<(), StrategicError> {
    if value.is_null() {
        original.remove(&key);
        return Ok(());
    }
    match (original.remove(&key), value) {
        (Some(Value::Object(own)), Value::Object(patch)) => {
            let (member, rule) = meta.member(&key)?;
            let merged = if rule.replace { patch } else { merge_map(member, own, patch)? };
            original.insert(key, Value::Object(merged));
        }
        (Some(Value::Array(own)), Value::Array(patch)) => {
            let (member, rule) = meta.member(&key)?;
            let merged = if rule.merge { lists::merge(member.items(), &rule, own, patch)? } else { patch };
            original.insert(key, Value::Array(merged));
        }
        (own, mut value) => {
            let new = !matches!((&own, &value), (Some(own), value) if is_scalar(own) && is_scalar(value));
            if new {
                discard_nulls(&mut value);
            }
            if let Some(value) = without_directives(value) {
                original.insert(key, value);
            }
        }
    }
    Ok(())
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

/// `$retainKeys` names every member that stays; the patch may set no other.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), StrategicError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or(StrategicError::RetainKeys)?;
    let retained = |key: &str| keys.iter().any(|kept| kept.as_str() == Some(key));
    let directive = |key: &str| key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM);
    if patch.iter().any(|(key, value)| !value.is_null() && !directive(key) && !retained(key)) {
        return Err(StrategicError::RetainKeys);
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Merges each list whose order the patch states, and puts it into that order.
fn set_element_order(meta: Meta<'_>, original: &mut Object, patch: &mut Object) -> Result<(), StrategicError> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive).expect("the key was just listed");
        let order = list_of(order)?;
        let key = directive_target(&directive, SET_ORDER).ok_or(StrategicError::SetElementOrder)?;
        let own = original.get(key).cloned().map(list_of).transpose()?;
        let patched = patch.get(key).cloned().map(list_of).transpose()?;
        let (member, rule) = meta.member(key)?;
        let merge_key = rule.merge_key.as_deref();
        lists::check_order(patched.as_deref().unwrap_or_default(), &order, merge_key)?;
        let server_order = own.clone().unwrap_or_default();
        let merged = match (own, patched.clone()) {
            (None, None) => continue,
            (Some(own), None) => own,
            (None, Some(patch)) => list_of(without_directives(Value::Array(patch)).expect("a list is kept"))?,
            (Some(own), Some(patch)) if rule.merge => lists::merge(member.items(), &rule, own, patch)?,
            (Some(_), Some(patch)) => patch,
        };
        lists::one_type(&[&server_order, patched.as_deref().unwrap_or_default()])?.ok_or(StrategicError::NoItems)?;
        let sorted = lists::in_order(merged, &order, &server_order, merge_key)?;
        original.insert(key.to_owned(), Value::Array(sorted));
        patch.remove(key);
    }
    Ok(())
}

fn directive_target<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.strip_prefix('/')
}

fn list_of(value: Value) -> Result<Vec<Value>, StrategicError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(StrategicError::Mismatch("[]interface {}", go_text::type_name(&other))),
    }
}

fn unknown_directive(directive: &Value, within: &Object) -> StrategicError {
    let shown = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    let mut whole = within.clone();
    whole.insert(DIRECTIVE.to_owned(), directive.clone());
    StrategicError::Directive(shown, Value::Object(whole).to_string())
}

/// What is new in the object keeps no `null` members.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// What is new in the object keeps no part that carries `$patch`.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}
