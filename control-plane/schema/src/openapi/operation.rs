//! Operations in the words of both forms of OpenAPI: parameters, bodies, answers.

use serde_json::{Map as Object, Value, json};

use crate::openapi::Form;
use crate::openapi::definitions::{Definitions, KINDS, META, kind_value};

/// A path and its operations.
pub(super) struct PathItem {
    pub(super) path: String,
    pub(super) operations: Vec<Operation>,
}

/// A method on a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// `x-kubernetes-action` and the kind; none for discovery.
    pub(super) action: Option<(&'static str, [String; 3])>,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Body,
    pub(super) consumes: Vec<&'static str>,
    pub(super) produces: Vec<&'static str>,
    pub(super) statuses: &'static [(&'static str, &'static str)],
    /// The definition that answers; none for plain text.
    pub(super) answer: Option<String>,
}

pub(super) enum Body {
    None,
    /// An object of this definition; whether it must be there.
    Object(String, bool),
    Patch,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) place: &'static str,
    pub(super) kind: &'static str,
    pub(super) description: String,
}

pub(super) const OK: &[(&str, &str)] = &[("200", "OK")];
pub(super) const OK_CREATED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created")];
pub(super) const OK_ACCEPTED: &[(&str, &str)] = &[("200", "OK"), ("202", "Accepted")];
pub(super) const OK_CREATED_ACCEPTED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];

/// The query parameters that many operations share.
const QUERY: &[(&str, &str, &str)] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch may also send BOOKMARK events"),
    ("continue", "string", "Where the last page of a list ended, as that page's metadata told"),
    ("dryRun", "string", "All: go through every stage but persist nothing"),
    ("fieldManager", "string", "Who makes the change, for the ownership of fields"),
    ("fieldSelector", "string", "Only objects whose fields match"),
    ("fieldValidation", "string", "What becomes of unknown and duplicate fields: Ignore, Warn or Strict"),
    ("force", "boolean", "Whether apply takes over fields that others own"),
    ("gracePeriodSeconds", "integer", "How long the object may take to go; 0 for at once"),
    ("labelSelector", "string", "Only objects whose labels match"),
    ("limit", "integer", "How many objects a page may hold"),
    ("orphanDependents", "boolean", "Deprecated, see propagationPolicy: whether dependents stay"),
    ("pretty", "string", "Whether the answer is indented"),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground"),
    ("resourceVersion", "string", "The version that the answer builds on"),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: NotOlderThan or Exact"),
    ("sendInitialEvents", "boolean", "Whether a watch begins with the objects that are there"),
    ("timeoutSeconds", "integer", "When a list or watch ends by itself"),
    ("watch", "boolean", "Whether changes are streamed instead of a list"),
];

pub(super) fn query(name: &str) -> Parameter {
    let (name, kind, description) =
        QUERY.iter().find(|(known, _, _)| *known == name).expect("every shared parameter is in the list");
    Parameter { name: (*name).to_owned(), place: "query", kind, description: (*description).to_owned() }
}

/// Brings the operations of one path together, each with the parameters in its path.
pub(super) fn gather(operations: Vec<(String, Operation)>) -> Vec<PathItem> {
    let mut items: Vec<PathItem> = Vec::new();
    for (path, mut operation) in operations {
        for (name, description) in
            [("name", "Name of the object"), ("namespace", "Its namespace"), ("path", "Path to be passed on")]
        {
            if path.contains(&format!("{{{name}}}")) {
                operation.parameters.push(Parameter {
                    name: name.to_owned(),
                    place: "path",
                    kind: "string",
                    description: description.to_owned(),
                });
            }
        }
        operation.parameters.sort();
        match items.iter_mut().find(|item| item.path == path) {
            Some(item) => item.operations.push(operation),
            None => items.push(PathItem { path, operations: vec![operation] }),
        }
    }
    items
}

impl PathItem {
    /// The path item in the document's form. What all operations share stands once.
    pub(super) fn render(&self, definitions: &mut Definitions<'_>) -> Value {
        let shared: Vec<&Parameter> = self.operations[0]
            .parameters
            .iter()
            .filter(|parameter| self.operations.iter().all(|operation| operation.parameters.contains(parameter)))
            .collect();
        let mut out = Object::new();
        for operation in &self.operations {
            let own: Vec<&Parameter> =
                operation.parameters.iter().filter(|parameter| !shared.contains(parameter)).collect();
            out.insert(operation.method.to_owned(), operation.render(&own, definitions));
        }
        if !shared.is_empty() {
            let shared: Vec<Value> = shared.into_iter().map(|parameter| parameter.render(definitions.form())).collect();
            out.insert("parameters".to_owned(), shared.into());
        }
        Value::Object(out)
    }
}

impl Parameter {
    fn render(&self, form: Form) -> Value {
        let mut out = match form {
            Form::V2 => json!({"type": self.kind, "uniqueItems": true}),
            Form::V3 => json!({"schema": {"type": self.kind, "uniqueItems": true}}),
        };
        out["name"] = (*self.name).into();
        out["in"] = self.place.into();
        out["description"] = (*self.description).into();
        if self.place == "path" {
            out["required"] = true.into();
        }
        out
    }
}

impl Operation {
    fn render(&self, own: &[&Parameter], definitions: &mut Definitions<'_>) -> Value {
        let form = definitions.form();
        let mut parameters: Vec<Value> = own.iter().map(|parameter| parameter.render(form)).collect();
        let mut out = json!({"description": self.description, "operationId": self.id, "tags": [self.tag]});
        if let Some((action, [group, version, kind])) = &self.action {
            out["x-kubernetes-action"] = (*action).into();
            out[KINDS] = kind_value(group, version, kind);
        }
        let answer = match &self.answer {
            Some(name) => json!({"$ref": definitions.reference(name)}),
            None => json!({"type": "string"}),
        };
        let mut responses = Object::new();
        for (status, description) in self.statuses {
            let response = match form {
                Form::V2 => json!({"description": description, "schema": answer}),
                Form::V3 => {
                    let content: Object<String, Value> =
                        self.produces.iter().map(|name| ((*name).to_owned(), json!({"schema": answer}))).collect();
                    json!({"description": description, "content": content})
                }
            };
            responses.insert((*status).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        out["responses"] = responses.into();
        let (schema, required) = match &self.body {
            Body::None => (None, false),
            Body::Object(name, required) => (Some(definitions.reference(name)), *required),
            Body::Patch => (Some(definitions.reference(&format!("{META}.Patch"))), true),
        };
        match (form, schema) {
            (Form::V2, schema) => {
                if let Some(schema) = schema {
                    let mut body = json!({"name": "body", "in": "body", "schema": {"$ref": schema}});
                    if required {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                if !self.consumes.is_empty() {
                    out["consumes"] = self.consumes.clone().into();
                }
                out["produces"] = self.produces.clone().into();
                out["schemes"] = json!(["https"]);
            }
            (Form::V3, Some(schema)) => {
                let content: Object<String, Value> = self
                    .consumes
                    .iter()
                    .map(|name| ((*name).to_owned(), json!({"schema": {"$ref": schema}})))
                    .collect();
                out["requestBody"] = json!({"content": content});
                if required {
                    out["requestBody"]["required"] = true.into();
                }
            }
            (Form::V3, None) => {}
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out
    }
}
