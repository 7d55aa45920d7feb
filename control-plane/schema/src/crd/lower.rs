//! A structural schema as types: what apply and other walkers of [`Shape`]s need to know.
//!
//! Every object with properties becomes a type named by its place. Where the schema does not say what a value
//! is, it is [`Shape::Any`]. Limits and validation rules are not carried over; validation reads the schema itself.

use std::collections::HashMap;

use serde_json::Value;

use super::{META, is_set, text};
use crate::facts::Facts;
use crate::shape::{Field, List, ListKind, Map, ObjectType, PatchRule, Schema, Shape, TypeId};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The types, the object's own, and that of metadata.
pub(super) fn lower(facts: &Facts, raw: &Value) -> (Schema, TypeId, TypeId) {
    let mut lowering = Lowering { schema: Schema::default() };
    let meta = facts.type_named(OBJECT_META).expect("the facts table has ObjectMeta");
    let metadata = lowering.import(&facts.schema, meta, &mut HashMap::new());
    let root = lowering.object(raw, "", true, metadata);
    (lowering.schema, root, metadata)
}

struct Lowering {
    schema: Schema,
}

impl Lowering {
    /// Copies a built-in type and all it refers to.
    fn import(&mut self, from: &Schema, id: TypeId, done: &mut HashMap<TypeId, TypeId>) -> TypeId {
        if let Some(id) = done.get(&id) {
            return *id;
        }
        let own = self.push(ObjectType::default());
        done.insert(id, own);
        let mut object = from.object(id).clone();
        for field in &mut object.fields {
            self.import_shape(from, &mut field.shape, done);
        }
        self.schema.types[own.0 as usize] = object;
        own
    }

    fn import_shape(&mut self, from: &Schema, shape: &mut Shape, done: &mut HashMap<TypeId, TypeId>) {
        match shape {
            Shape::Object(id) => *id = self.import(from, *id, done),
            Shape::List(list) => self.import_shape(from, &mut list.item, done),
            Shape::Map(map) => self.import_shape(from, &mut map.value, done),
            _ => {}
        }
    }

    fn push(&mut self, object: ObjectType) -> TypeId {
        self.schema.types.push(object);
        TypeId(u32::try_from(self.schema.types.len() - 1).expect("a schema of that size was refused as a body"))
    }

    fn object(&mut self, raw: &Value, name: &str, root: bool, metadata: TypeId) -> TypeId {
        let embedded = is_set(raw, "x-kubernetes-embedded-resource");
        let required: Vec<&str> =
            raw.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let mut fields = Vec::new();
        for (key, sub) in raw.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if (root || embedded) && META.contains(&key.as_str()) {
                continue;
            }
            let within = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            let shape = self.shape(sub, &within, metadata);
            let default = sub.get("default").filter(|default| !default.is_null()).cloned();
            let required = required.contains(&key.as_str());
            fields.push(Field { default, required, nullable: is_set(sub, "nullable"), ..plain(key, shape) });
        }
        if root || embedded {
            fields.push(plain("apiVersion", Shape::String));
            fields.push(plain("kind", Shape::String));
            fields.push(plain("metadata", Shape::Object(metadata)));
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        self.push(ObjectType {
            name: name.into(),
            fields,
            preserve_unknown: is_set(raw, "x-kubernetes-preserve-unknown-fields"),
            atomic: text(raw, "x-kubernetes-map-type") == "atomic",
            embedded_resource: embedded,
        })
    }

    fn shape(&mut self, raw: &Value, name: &str, metadata: TypeId) -> Shape {
        if is_set(raw, "x-kubernetes-int-or-string") {
            return Shape::IntOrString;
        }
        match (text(raw, "type"), text(raw, "format")) {
            ("boolean", _) => Shape::Bool,
            ("integer", "int32") => Shape::Int32,
            ("integer", _) => Shape::Int64,
            ("number", _) => Shape::Double,
            ("string", _) => Shape::String,
            ("array", _) => self.list(raw, name, metadata),
            ("object", _) => match raw.get("additionalProperties") {
                Some(additional) if raw.get("properties").is_none() => {
                    let value = match additional {
                        Value::Object(_) => self.shape(additional, name, metadata),
                        // Members without a schema: pruning empties objects among them.
                        _ => Shape::Any,
                    };
                    let atomic = text(raw, "x-kubernetes-map-type") == "atomic";
                    Shape::Map(Box::new(Map { value, atomic, limits: None }))
                }
                _ => Shape::Object(self.object(raw, name, false, metadata)),
            },
            _ => Shape::Any,
        }
    }

    fn list(&mut self, raw: &Value, name: &str, metadata: TypeId) -> Shape {
        let item = raw.get("items").map_or(Shape::Any, |items| self.shape(items, name, metadata));
        let kind = match text(raw, "x-kubernetes-list-type") {
            "set" => ListKind::Set,
            "map" => {
                let keys = raw.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                ListKind::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect())
            }
            _ => ListKind::Atomic,
        };
        Shape::List(Box::new(List { item, kind, limits: None }))
    }
}

fn plain(name: &str, shape: Shape) -> Field {
    Field {
        name: name.into(),
        shape,
        required: false,
        nullable: false,
        default: None,
        number: 0,
        patch: PatchRule::default(),
        limits: None,
    }
}
