//! Values seen through their types: what is one value to apply, what is many, and what tells items apart.
//!
//! An [`Atom`] is how apply treats a value: by members, by items, or as a whole. Where the type does not say
//! ([`Shape::Any`]), the value does: objects by members, lists as a whole. Follows `structured-merge-diff/typed`.

use serde_json::Value;

use super::set::{FieldSet, Scalar, Step, path_text};
use crate::go_text;
use crate::shape::{Field, ListKind, Schema, Shape};

/// How apply treats a value.
#[derive(Clone, Copy)]
pub(super) enum Atom<'a> {
    /// By members, or as a whole when atomic.
    Map {
        /// What the members look like.
        shape: &'a Shape,
        /// One value.
        atomic: bool,
    },
    /// By items, or as a whole when atomic.
    List {
        /// What the items look like.
        item: &'a Shape,
        /// How items are told apart.
        kind: &'a ListKind,
    },
    /// As a whole.
    Scalar,
}

/// Members and items of values whose type does not say what they are.
static ANY: Shape = Shape::Any;
static ATOMIC: ListKind = ListKind::Atomic;

/// How a value of the shape is treated.
pub(super) fn atom<'a>(schema: &Schema, shape: &'a Shape, value: Option<&Value>) -> Atom<'a> {
    match shape {
        Shape::Object(id) => Atom::Map { shape, atomic: schema.object(*id).atomic },
        Shape::Map(map) => Atom::Map { shape, atomic: map.atomic },
        Shape::List(list) => Atom::List { item: &list.item, kind: &list.kind },
        Shape::Any => match value {
            Some(Value::Array(_)) => Atom::List { item: &ANY, kind: &ATOMIC },
            None | Some(Value::Object(_) | Value::Null) => Atom::Map { shape, atomic: false },
            Some(_) => Atom::Scalar,
        },
        _ => Atom::Scalar,
    }
}

/// Whether both are treated alike; only values without a type can differ.
pub(super) fn alike(a: &Atom<'_>, b: &Atom<'_>) -> bool {
    matches!(
        (a, b),
        (Atom::Map { .. }, Atom::Map { .. }) | (Atom::List { .. }, Atom::List { .. }) | (Atom::Scalar, Atom::Scalar)
    )
}

/// What a member of an object looks like, and whether the type names it.
pub(super) fn member<'a>(schema: &'a Schema, shape: &'a Shape, key: &str) -> (&'a Shape, bool) {
    match shape {
        Shape::Object(id) => schema.object(*id).field(key).map_or((&ANY, false), |field| (&field.shape, true)),
        Shape::Map(map) => (&map.value, false),
        _ => (&ANY, false),
    }
}

/// Something in a value that does not fit its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypedError(pub(super) String);

/// What tells an item of a set or keyed list from others.
pub(super) fn item_step(
    schema: &Schema,
    item_shape: &Shape,
    kind: &ListKind,
    item: &Value,
) -> Result<Step, TypedError> {
    let wrong = |text: &str| Err(TypedError(text.to_owned()));
    let ListKind::Map(keys) = kind else {
        return match item {
            Value::Object(_) => wrong("associative list without keys has an element that's a map type"),
            Value::Array(_) => wrong("not supported: associative list with lists as elements"),
            Value::Null => wrong("associative list without keys has an element that's an explicit null"),
            scalar => Ok(Step::Value(Scalar(scalar.clone()))),
        };
    };
    let map = match item {
        Value::Object(map) => map,
        Value::Null => return wrong("associative list with keys may not have a null element"),
        _ => return wrong("associative list with keys may not have non-map elements"),
    };
    let default = |key: &str| match item_shape {
        Shape::Object(id) => schema.object(*id).field(key).and_then(key_default),
        _ => None,
    };
    let mut fields: Vec<(Box<str>, Scalar)> = Vec::with_capacity(keys.len());
    for key in keys {
        if let Some(value) = map.get(&**key).cloned().or_else(|| default(key)) {
            fields.push((key.clone(), Scalar(value)));
        }
    }
    if fields.is_empty() && !keys.is_empty() {
        let keys: Vec<String> = keys.iter().map(|key| go_text::quote(key)).collect();
        return Err(TypedError(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            keys.join(" ")
        )));
    }
    fields.sort();
    Ok(Step::Key(fields))
}

/// What stands for an absent key. Required fields of built-in types, which have protobuf numbers, have their zero
/// value as default in upstream's published schema.
fn key_default(field: &Field) -> Option<Value> {
    let zero = || match field.shape {
        Shape::String => Some(Value::from("")),
        Shape::Int32 | Shape::Int64 => Some(Value::from(0)),
        _ => None,
    };
    field.default.clone().or_else(|| (field.required && field.number != 0).then(zero).flatten())
}

/// All that does not fit the type; items may stand twice only where `duplicates` says so.
pub(super) fn validate(schema: &Schema, shape: &Shape, value: &Value, duplicates: bool) -> Result<(), TypedError> {
    let mut walker = Validator { schema, duplicates, path: Vec::new(), errors: Vec::new() };
    walker.value(shape, value);
    match walker.errors.len() {
        0 => Ok(()),
        1 => Err(TypedError(walker.errors.remove(0))),
        _ => Err(TypedError(format!("errors:\n  {}", walker.errors.join("\n  ")))),
    }
}

struct Validator<'a> {
    schema: &'a Schema,
    duplicates: bool,
    path: Vec<Step>,
    errors: Vec<String>,
}

impl Validator<'_> {
    fn wrong(&mut self, text: &str) {
        let path = path_text(&self.path);
        self.errors.push(if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") });
    }

    fn value(&mut self, shape: &Shape, value: &Value) {
        if value.is_null() {
            return;
        }
        match atom(self.schema, shape, Some(value)) {
            Atom::Map { shape, .. } => {
                let Value::Object(map) = value else {
                    return self.wrong(&format!("expected map, got &{{{}}}", go_text::plain(value)));
                };
                for (key, value) in map {
                    self.path.push(Step::Field(key.as_str().into()));
                    let declared = match shape {
                        Shape::Object(id) => {
                            let object = self.schema.object(*id);
                            object.preserve_unknown || object.field(key).is_some()
                        }
                        _ => true,
                    };
                    if declared {
                        self.value(member(self.schema, shape, key).0, value);
                    } else {
                        self.wrong("field not declared in schema");
                    }
                    self.path.pop();
                }
            }
            Atom::List { item, kind } => self.list(item, kind, value),
            Atom::Scalar => {
                let shown = go_text::plain(value);
                self.wrong(&match shape {
                    Shape::Bool if !value.is_boolean() => format!("expected boolean, got &{{{shown}}}"),
                    Shape::Int32 | Shape::Int64 | Shape::Double if !value.is_number() => {
                        format!("expected numeric (int or float), got {}", go_text::type_name(value))
                    }
                    Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration
                        if !value.is_string() =>
                    {
                        format!("expected string, got &value.valueUnstructured{{Value:{shown}}}")
                    }
                    Shape::Quantity | Shape::IntOrString if value.is_object() || value.is_array() => {
                        format!("expected any scalar, got &{{{shown}}}")
                    }
                    _ => return,
                });
            }
        }
    }

    fn list(&mut self, item_shape: &Shape, kind: &ListKind, value: &Value) {
        let Value::Array(items) = value else {
            return self.wrong(&format!("expected list, got &{{{}}}", go_text::plain(value)));
        };
        let mut seen = std::collections::BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let step = match kind {
                ListKind::Atomic => Step::Index(index as i64),
                _ => match item_step(self.schema, item_shape, kind, item) {
                    Ok(step) => step,
                    Err(error) => return self.wrong(&format!("element {index}: {error}")),
                },
            };
            if *kind != ListKind::Atomic && !seen.insert(step.clone()) && !self.duplicates {
                self.wrong(&format!("duplicate entries for key {step}"));
            }
            self.path.push(step);
            self.value(item_shape, item);
            self.path.pop();
        }
    }
}

/// The paths of all that a value says.
pub(super) fn field_set(schema: &Schema, shape: &Shape, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(schema, shape, value, &mut Vec::new(), &mut set);
    set
}

fn collect(schema: &Schema, shape: &Shape, value: &Value, path: &mut Vec<Step>, set: &mut FieldSet) {
    match atom(schema, shape, Some(value)) {
        Atom::Scalar | Atom::Map { atomic: true, .. } | Atom::List { kind: ListKind::Atomic, .. } => set.insert(path),
        Atom::Map { shape, .. } => {
            for (key, value) in value.as_object().into_iter().flatten() {
                let (sub, declared) = member(schema, shape, key);
                path.push(Step::Field(key.as_str().into()));
                collect(schema, sub, value, path, set);
                let bare = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
                if bare || !declared {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Atom::List { item, kind } => {
            let items: Vec<(Step, &Value)> = value
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|value| Some((item_step(schema, item, kind, value).ok()?, value)))
                .collect();
            for (step, value) in &items {
                let once = items.iter().filter(|(other, _)| other == step).count() == 1;
                path.push(step.clone());
                if once {
                    collect(schema, item, value, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// The set with every declared field on the way to a member as a member of its own.
pub(super) fn with_named_parents(schema: &Schema, shape: &Shape, set: &FieldSet) -> FieldSet {
    let mut full = FieldSet::default();
    for (step, node) in set.nodes() {
        let (below, named) = match (step, shape) {
            (Step::Field(name), Shape::Object(_) | Shape::Map(_) | Shape::Any) => member(schema, shape, name),
            (_, Shape::List(list)) => (&list.item, false),
            _ => (&ANY, false),
        };
        let mut node = node.clone();
        node.member |= named && !node.children.is_empty();
        node.children = with_named_parents(schema, below, &node.children);
        full.put(step.clone(), node);
    }
    full
}
