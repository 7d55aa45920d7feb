//! Custom resources: their own schema with what every object has added, as upstream publishes it
//! (apiextensions-apiserver, pkg/controller/openapi/builder). OpenAPI v2 cannot say everything and kubectl trips
//! over some of what it can, so there the schema is thinned (pkg/controller/openapi/v2/conversion.go).

use serde_json::{Map as Object, Value, json};

use crate::openapi::Form;
use crate::openapi::definitions::{Definitions, KINDS, META, kind_value};
use crate::shape::Subresource;

/// A served version of a custom resource.
#[derive(Clone, Debug)]
pub struct CrdDocument {
    /// The group of the definition.
    pub group: String,
    /// One of its versions.
    pub version: String,
    /// The kind of its objects.
    pub kind: String,
    /// The kind of a list of them.
    pub list_kind: String,
    /// The plural in URLs.
    pub plural: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether the version has a `status` subresource.
    pub status: bool,
    /// Whether the version has a `scale` subresource.
    pub scale: bool,
    /// The JSON paths by which lists may be selected.
    pub selectable_fields: Vec<String>,
    /// The version's `openAPIV3Schema`; `null` where there is none.
    pub schema: Value,
}

impl CrdDocument {
    /// The definition's name: the group backwards, the version, the kind.
    pub(super) fn definition_name(&self) -> String {
        self.named(&self.kind)
    }

    pub(super) fn list_definition_name(&self) -> String {
        self.named(&self.list_kind)
    }

    fn named(&self, kind: &str) -> String {
        let group: Vec<&str> = self.group.rsplit('.').collect();
        format!("{}.{}.{kind}", group.join("."), self.version)
    }

    pub(super) fn subresources(&self) -> Vec<Subresource> {
        let verbs = || ["get", "patch", "update"].map(Into::into).to_vec();
        let mut found = Vec::new();
        if self.status {
            found.push(Subresource {
                name: "status".into(),
                group: (*self.group).into(),
                version: (*self.version).into(),
                kind: (*self.kind).into(),
                verbs: verbs(),
            });
        }
        if self.scale {
            found.push(Subresource {
                name: "scale".into(),
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                verbs: verbs(),
            });
        }
        found
    }

    /// `x-kubernetes-selectable-fields`, on the object's and the list's definition.
    fn selectable(&self) -> Option<Value> {
        let paths = self.selectable_fields.iter().map(|path| json!({"fieldPath": path.trim_start_matches('.')}));
        (!self.selectable_fields.is_empty()).then(|| paths.collect())
    }
}

/// Adds the definitions of the object and of its list.
pub(super) fn define(crd: &CrdDocument, definitions: &mut Definitions<'_>) {
    let mut object = object(crd, definitions);
    let mut list = list(crd, definitions);
    for (definition, kind) in [(&mut object, &crd.kind), (&mut list, &crd.list_kind)] {
        definition[KINDS] = json!([kind_value(&crd.group, &crd.version, kind)]);
        if let Some(selectable) = crd.selectable() {
            definition["x-kubernetes-selectable-fields"] = selectable;
        }
    }
    definitions.add(crd.definition_name(), object);
    definitions.add(crd.list_definition_name(), list);
}

fn object(crd: &CrdDocument, definitions: &mut Definitions<'_>) -> Value {
    let Value::Object(schema) = &crd.schema else { return json!({"type": "object"}) };
    if definitions.form() == Form::V2 && preserves(schema) {
        // With any property named, kubectl refuses all others.
        return json!({"type": "object"});
    }
    let mut object = clean(schema, definitions);
    add_metadata(&mut object, definitions);
    Value::Object(object)
}

fn list(crd: &CrdDocument, definitions: &mut Definitions<'_>) -> Value {
    let item = definitions.reference(&crd.definition_name());
    let metadata = reference(definitions, &format!("{META}.ListMeta"), "Metadata of the list");
    json!({
        "type": "object",
        "description": format!("{} is a list of {}", crd.list_kind, crd.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the list's schema"},
            "kind": {"type": "string", "description": "Kind of the list"},
            "metadata": metadata,
            "items": {"type": "array", "items": {"$ref": item}, "description": format!("The {} of this page", crd.plural)},
        },
    })
}

fn preserves(schema: &Object<String, Value>) -> bool {
    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
}

/// What structural schemas may say and documents repeat.
const KEYWORDS: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "default",
    "nullable",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "enum",
    "maxProperties",
    "minProperties",
    "required",
];
const JUNCTORS: &[&str] = &["allOf", "anyOf", "oneOf", "not"];

/// A schema of a custom resource in the document's form.
fn clean(schema: &Object<String, Value>, definitions: &mut Definitions<'_>) -> Object<String, Value> {
    let thin = definitions.form() == Form::V2;
    let mut out = Object::new();
    for (name, value) in schema {
        let cleaned = match (&**name, value) {
            ("properties", Value::Object(properties)) => {
                let each = properties.iter().map(|(name, value)| (name.clone(), clean_value(value, definitions)));
                Value::Object(each.collect())
            }
            ("items" | "additionalProperties", value) => clean_value(value, definitions),
            (name, value) if JUNCTORS.contains(&name) && !thin => value.clone(),
            (name, value) if KEYWORDS.contains(&name) || name.starts_with("x-kubernetes-") => value.clone(),
            _ => continue,
        };
        out.insert(name.clone(), cleaned);
    }
    if !thin && schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        out.entry("anyOf").or_insert_with(|| json!([{"type": "integer"}, {"type": "string"}]));
    }
    if thin {
        thin_out(schema, &mut out);
    }
    if schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) && !(thin && preserves(schema)) {
        add_metadata(&mut out, definitions);
        let required = out.entry("required").or_insert_with(|| json!([]));
        if let Value::Array(names) = required {
            for name in ["apiVersion", "kind"] {
                if !names.iter().any(|known| known == name) {
                    names.push(name.into());
                }
            }
        }
    }
    out
}

fn clean_value(value: &Value, definitions: &mut Definitions<'_>) -> Value {
    match value {
        Value::Object(schema) => Value::Object(clean(schema, definitions)),
        other => other.clone(),
    }
}

/// Takes away what kubectl cannot cope with in OpenAPI v2.
fn thin_out(schema: &Object<String, Value>, out: &mut Object<String, Value>) {
    let nullable = |value: &Value| value["nullable"] == true;
    if out.remove("nullable") == Some(Value::Bool(true)) {
        for name in ["type", "items", "properties"] {
            out.remove(name);
        }
    }
    if preserves(schema) {
        out.remove("items");
        out.remove("properties");
        if out.get("type").is_some_and(|kind| kind == "object") {
            out.remove("type");
        }
    }
    if out.get("type").is_some_and(|kind| kind == "array") && !out.contains_key("items") {
        out.remove("type");
    }
    if schema.get("additionalProperties").is_some_and(nullable) {
        out.remove("required");
    }
    if let (Some(Value::Object(properties)), Some(Value::Array(required))) =
        (schema.get("properties"), out.get_mut("required"))
    {
        required.retain(|name| !name.as_str().and_then(|name| properties.get(name)).is_some_and(nullable));
    }
}

/// What every object has, whatever its schema says about it.
fn add_metadata(out: &mut Object<String, Value>, definitions: &mut Definitions<'_>) {
    let metadata = reference(definitions, &format!("{META}.ObjectMeta"), "Metadata of the object");
    if let Value::Object(properties) = out.entry("properties").or_insert_with(|| json!({})) {
        properties.insert(
            "apiVersion".to_owned(),
            json!({"type": "string", "description": "Version of the object's schema"}),
        );
        properties.insert("kind".to_owned(), json!({"type": "string", "description": "Kind of the object"}));
        properties.insert("metadata".to_owned(), metadata);
    }
}

fn reference(definitions: &mut Definitions<'_>, name: &str, description: &str) -> Value {
    let reference = json!({"$ref": definitions.reference(name)});
    definitions.with(reference, Object::from_iter([("description".to_owned(), description.into())]))
}
