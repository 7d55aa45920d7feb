//! Definitions of types, from the facts table.

use std::collections::BTreeSet;

use serde_json::{Map as Object, Value, json};

use crate::facts::{Facts, FieldFacts, Untyped};
use crate::openapi::{Describe, Form};
use crate::shape::{Field, ListKind, Shape, TypeId};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";
pub(super) const KINDS: &str = "x-kubernetes-group-version-kind";

/// The definitions of one document, gathered while its paths refer to them.
pub(super) struct Definitions<'a> {
    facts: &'a Facts,
    form: Form,
    /// The group versions of the document.
    versions: &'a [(&'a str, &'a str)],
    describe: &'a Describe<'a>,
    done: Object<String, Value>,
    wanted: BTreeSet<String>,
}

impl<'a> Definitions<'a> {
    pub(super) fn new(
        facts: &'a Facts,
        form: Form,
        versions: &'a [(&'a str, &'a str)],
        describe: &'a Describe<'a>,
    ) -> Definitions<'a> {
        Definitions { facts, form, versions, describe, done: Object::new(), wanted: BTreeSet::new() }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// A reference to a definition, which the document will then have.
    pub(super) fn reference(&mut self, name: &str) -> String {
        if !self.done.contains_key(name) {
            self.wanted.insert(name.to_owned());
        }
        match self.form {
            Form::V2 => format!("#/definitions/{name}"),
            Form::V3 => format!("#/components/schemas/{name}"),
        }
    }

    /// Adds a definition that is not in the table.
    pub(super) fn add(&mut self, name: String, definition: Value) {
        self.wanted.remove(&name);
        self.done.insert(name, definition);
    }

    /// Renders what is referred to, and what that refers to.
    pub(super) fn finish(mut self) -> Value {
        while let Some(name) = self.wanted.pop_first() {
            let definition = match self.facts.type_named(&name) {
                Some(id) => self.object(id),
                None => self.plain(&name),
            };
            self.done.insert(name, definition);
        }
        Value::Object(self.done)
    }

    fn object(&mut self, id: TypeId) -> Value {
        let (object, details) = self.facts.described(id);
        let mut out = Object::new();
        out.insert("type".to_owned(), "object".into());
        if let Some(text) = (self.describe)(&object.name, "") {
            out.insert("description".to_owned(), text.into());
        }
        if !object.fields.is_empty() {
            let fields = object.fields.iter().zip(&details.fields);
            let properties: Object<String, Value> = fields
                .map(|(field, facts)| (field.name.to_string(), self.property(&object.name, field, facts)))
                .collect();
            out.insert("properties".to_owned(), Value::Object(properties));
        }
        let required: Vec<&str> =
            object.fields.iter().filter(|field| field.required).map(|field| &*field.name).collect();
        if !required.is_empty() {
            out.insert("required".to_owned(), required.into());
        }
        if object.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if let Some(unions) = &details.unions {
            let unions = serde_json::from_str(unions).expect("the table holds unions as JSON");
            out.insert("x-kubernetes-unions".to_owned(), unions);
        }
        let mut kinds: Vec<Value> =
            details.kinds.iter().map(|kind| kind_value(&kind.group, &kind.version, &kind.kind)).collect();
        if let Some(kind) = &details.every {
            let core = ("", "v1");
            let others = self.versions.iter().filter(|version| **version != core);
            kinds.extend([core].iter().chain(others).map(|(group, version)| kind_value(group, version, kind)));
        }
        if !kinds.is_empty() {
            out.insert(KINDS.to_owned(), kinds.into());
        }
        Value::Object(out)
    }

    fn property(&mut self, of: &str, field: &Field, facts: &FieldFacts) -> Value {
        let mut more = Object::new();
        if let Some(text) = (self.describe)(of, &field.name) {
            more.insert("description".to_owned(), text.into());
        }
        if self.form == Form::V3 {
            if let Some(default) = &field.default {
                more.insert("default".to_owned(), default.clone());
            } else if facts.zero_default {
                more.insert("default".to_owned(), zero(&field.shape).unwrap_or_else(|| json!({})));
            }
        }
        extensions(field, facts, &mut more);
        let value = self.shape(&field.shape, facts);
        self.with(value, more)
    }

    /// Puts keywords beside a schema. OpenAPI v3 allows nothing beside a reference, so there it is wrapped.
    pub(super) fn with(&self, value: Value, more: Object<String, Value>) -> Value {
        let Value::Object(mut members) = value else { return value };
        if self.form == Form::V3 && !more.is_empty() && members.contains_key("$ref") {
            members = Object::from_iter([("allOf".to_owned(), json!([members]))]);
        }
        members.extend(more);
        Value::Object(members)
    }

    fn shape(&mut self, shape: &Shape, facts: &FieldFacts) -> Value {
        match shape {
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::String => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::List(list) => {
                let item = self.item(&list.item, facts);
                json!({"type": "array", "items": item})
            }
            Shape::Map(map) => {
                let value = self.item(&map.value, facts);
                json!({"type": "object", "additionalProperties": value})
            }
            Shape::Object(id) => {
                let name = self.facts.schema.object(*id).name.clone();
                json!({"$ref": self.reference(&name)})
            }
            other => match plain_name(other, facts.any) {
                Some(name) => json!({"$ref": self.reference(&name)}),
                None => json!({}),
            },
        }
    }

    fn item(&mut self, shape: &Shape, facts: &FieldFacts) -> Value {
        let value = self.shape(shape, facts);
        let default = zero(shape).filter(|_| self.form == Form::V3);
        self.with(value, default.map(|zero| ("default".to_owned(), zero)).into_iter().collect())
    }

    /// The definition of a type that JSON writes as something other than an object with fields.
    fn plain(&self, name: &str) -> Value {
        let mut out = match (name.rsplit('.').next().unwrap_or(name), self.form) {
            ("Quantity", Form::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            ("IntOrString", Form::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            ("IntOrString", Form::V2) => json!({"type": "string", "format": "int-or-string"}),
            ("Quantity" | "Duration", _) => json!({"type": "string"}),
            ("Time" | "MicroTime", _) => json!({"type": "string", "format": "date-time"}),
            ("RawExtension" | "FieldsV1" | "Patch", _) => json!({"type": "object"}),
            _ => json!({}),
        };
        if let Some(text) = (self.describe)(name, "") {
            out["description"] = text.into();
        }
        out
    }
}

/// A group, version and kind as the extension writes them.
pub(super) fn kind_value(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn plain_name(shape: &Shape, any: Untyped) -> Option<String> {
    Some(match (shape, any) {
        (Shape::Time, _) => format!("{META}.Time"),
        (Shape::MicroTime, _) => format!("{META}.MicroTime"),
        (Shape::Duration, _) => format!("{META}.Duration"),
        (Shape::Quantity, _) => "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
        (Shape::IntOrString, _) => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
        (_, Untyped::Raw) => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
        (_, Untyped::FieldsV1) => format!("{META}.FieldsV1"),
        (_, Untyped::Json) => format!("{EXTENSIONS}.JSON"),
        (_, Untyped::SchemaOrBool) => format!("{EXTENSIONS}.JSONSchemaPropsOrBool"),
        (_, Untyped::SchemaOrArray) => format!("{EXTENSIONS}.JSONSchemaPropsOrArray"),
        (_, Untyped::SchemaOrStrings) => format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"),
        (_, Untyped::None | Untyped::Interface) => return None,
    })
}

/// The zero value that upstream documents for items of lists and maps of this shape.
fn zero(shape: &Shape) -> Option<Value> {
    match shape {
        Shape::Bool => Some(false.into()),
        Shape::Int32 | Shape::Int64 | Shape::Double => Some(0.into()),
        Shape::String => Some("".into()),
        Shape::Object(_) => Some(json!({})),
        _ => None,
    }
}

fn extensions(field: &Field, facts: &FieldFacts, out: &mut Object<String, Value>) {
    let mut add = |name: &str, value: Value| {
        out.insert(format!("x-kubernetes-{name}"), value);
    };
    if facts.list_type_stated {
        let kind = match &field.shape {
            Shape::List(list) => &list.kind,
            _ => &ListKind::Atomic,
        };
        match kind {
            ListKind::Atomic => add("list-type", "atomic".into()),
            ListKind::Set => add("list-type", "set".into()),
            ListKind::Map(keys) => {
                add("list-type", "map".into());
                add("list-map-keys", keys.iter().map(|key| &**key).collect::<Vec<_>>().into());
            }
        }
    }
    if let Some(atomic) = facts.map_type {
        add("map-type", if atomic { "atomic" } else { "granular" }.into());
    }
    let mut strategies = Vec::new();
    for (name, set) in
        [("merge", field.patch.merge), ("retainKeys", field.patch.retain_keys), ("replace", facts.replace_stated)]
    {
        strategies.extend(set.then_some(name));
    }
    if !strategies.is_empty() {
        add("patch-strategy", strategies.join(",").into());
    }
    if let Some(key) = &field.patch.merge_key {
        add("patch-merge-key", (**key).into());
    }
}
