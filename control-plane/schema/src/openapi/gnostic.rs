//! The OpenAPI v2 document as protobuf, in the layout of gnostic's openapiv2/OpenAPIv2.proto. Clients of that form
//! (kubectl before 1.27, client-go's discovery) get the same document as JSON readers.
//!
//! Each message is a table of keyword, number and kind; a keyword that no table knows and that is no extension is
//! an error, never dropped.

use serde_json::Value;

use crate::protobuf::wire::{write_bytes as bytes, write_double, write_number};

/// Why a document has no protobuf form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GnosticError {
    /// The layout has no place for the keyword.
    #[error("keyword {keyword:?} of a {message} has no place in the protobuf form")]
    Unknown {
        /// Such as `Schema`.
        message: &'static str,
        /// The keyword.
        keyword: String,
    },
    /// The value does not fit the keyword.
    #[error("keyword {keyword:?} of a {message} has a value of the wrong type")]
    Type {
        /// Such as `Schema`.
        message: &'static str,
        /// The keyword.
        keyword: String,
    },
}

/// Encodes a v2 document.
pub fn gnostic_v2(document: &Value) -> Result<Vec<u8>, GnosticError> {
    message(&DOCUMENT, document)
}

/// A message: its keywords with their numbers, and the number of its extensions.
struct Layout {
    name: &'static str,
    fields: &'static [(&'static str, u32, Kind)],
    extensions: u32,
}

/// What a keyword's value is.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Integer,
    Double,
    /// A list of texts.
    Texts,
    /// Any JSON value.
    Any,
    Anys,
    Message(&'static Layout),
    /// A list of messages.
    Messages(&'static Layout),
    /// An object with free keys as a message of `NamedX` entries at this number.
    Named(u32, &'static Layout),
    /// A parameter, the same in a path item and in an operation.
    Parameters,
    Responses,
    /// `{"Name": [..]}`, one requirement each.
    Security,
    SecurityDefinitions,
    /// A text or list of texts in a message of its own.
    Types,
    /// One schema or several.
    Items,
    SchemaOrFlag,
    /// A schema in a message of its own.
    SchemaItem,
}

static DOCUMENT: Layout = Layout {
    name: "Document",
    fields: &[
        ("swagger", 1, Kind::Text),
        ("info", 2, Kind::Message(&INFO)),
        ("paths", 8, Kind::Named(2, &PATH_ITEM)),
        ("definitions", 9, Kind::Named(1, &SCHEMA)),
        ("security", 12, Kind::Security),
        ("securityDefinitions", 13, Kind::SecurityDefinitions),
    ],
    extensions: 16,
};
static INFO: Layout =
    Layout { name: "Info", fields: &[("title", 1, Kind::Text), ("version", 2, Kind::Text)], extensions: 7 };
static PATH_ITEM: Layout = Layout {
    name: "PathItem",
    fields: &[
        ("get", 2, Kind::Message(&OPERATION)),
        ("put", 3, Kind::Message(&OPERATION)),
        ("post", 4, Kind::Message(&OPERATION)),
        ("delete", 5, Kind::Message(&OPERATION)),
        ("options", 6, Kind::Message(&OPERATION)),
        ("head", 7, Kind::Message(&OPERATION)),
        ("patch", 8, Kind::Message(&OPERATION)),
        ("parameters", 9, Kind::Parameters),
    ],
    extensions: 10,
};
static OPERATION: Layout = Layout {
    name: "Operation",
    fields: &[
        ("tags", 1, Kind::Texts),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("produces", 6, Kind::Texts),
        ("consumes", 7, Kind::Texts),
        ("parameters", 8, Kind::Parameters),
        ("responses", 9, Kind::Responses),
        ("schemes", 10, Kind::Texts),
    ],
    extensions: 13,
};
static RESPONSE: Layout = Layout {
    name: "Response",
    fields: &[("description", 1, Kind::Text), ("schema", 2, Kind::SchemaItem)],
    extensions: 5,
};
static BODY: Layout = Layout {
    name: "BodyParameter",
    fields: &[
        ("description", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("required", 4, Kind::Flag),
        ("schema", 5, Kind::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY: Layout = Layout {
    name: "QueryParameterSubSchema",
    fields: &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 6, Kind::Text),
        ("uniqueItems", 20, Kind::Flag),
    ],
    extensions: 23,
};
static PATH: Layout = Layout {
    name: "PathParameterSubSchema",
    fields: &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 5, Kind::Text),
        ("uniqueItems", 19, Kind::Flag),
    ],
    extensions: 22,
};
static API_KEY: Layout = Layout {
    name: "ApiKeySecurity",
    fields: &[("type", 1, Kind::Text), ("name", 2, Kind::Text), ("in", 3, Kind::Text), ("description", 4, Kind::Text)],
    extensions: 5,
};
static SCHEMA: Layout = Layout {
    name: "Schema",
    fields: &[
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("default", 5, Kind::Any),
        ("multipleOf", 6, Kind::Double),
        ("maximum", 7, Kind::Double),
        ("exclusiveMaximum", 8, Kind::Flag),
        ("minimum", 9, Kind::Double),
        ("exclusiveMinimum", 10, Kind::Flag),
        ("maxLength", 11, Kind::Integer),
        ("minLength", 12, Kind::Integer),
        ("pattern", 13, Kind::Text),
        ("maxItems", 14, Kind::Integer),
        ("minItems", 15, Kind::Integer),
        ("uniqueItems", 16, Kind::Flag),
        ("maxProperties", 17, Kind::Integer),
        ("minProperties", 18, Kind::Integer),
        ("required", 19, Kind::Texts),
        ("enum", 20, Kind::Anys),
        ("additionalProperties", 21, Kind::SchemaOrFlag),
        ("type", 22, Kind::Types),
        ("items", 23, Kind::Items),
        ("allOf", 24, Kind::Messages(&SCHEMA)),
        ("properties", 25, Kind::Named(1, &SCHEMA)),
    ],
    extensions: 31,
};

fn message(layout: &'static Layout, value: &Value) -> Result<Vec<u8>, GnosticError> {
    let mut out = Vec::new();
    let wrong = |keyword: &str| GnosticError::Type { message: layout.name, keyword: keyword.to_owned() };
    let members = value.as_object().ok_or_else(|| wrong(""))?;
    for (keyword, value) in members {
        if keyword.starts_with("x-") {
            bytes(&mut out, layout.extensions, &named(keyword, &any(value)));
            continue;
        }
        match layout.fields.iter().find(|(known, _, _)| known == keyword) {
            Some((_, number, kind)) => match field(&mut out, *number, *kind, value)? {
                true => {}
                false => return Err(wrong(keyword)),
            },
            None => return Err(GnosticError::Unknown { message: layout.name, keyword: keyword.clone() }),
        }
    }
    Ok(out)
}

/// Writes one keyword; false where the value is of another type.
fn field(out: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) -> Result<bool, GnosticError> {
    match (kind, value) {
        (Kind::Text, Value::String(text)) => bytes(out, number, text.as_bytes()),
        (Kind::Flag, Value::Bool(flag)) => write_number(out, number, u64::from(*flag)),
        (Kind::Integer, Value::Number(value)) => match value.as_i64() {
            Some(integer) => write_number(out, number, integer as u64),
            None => return Ok(false),
        },
        (Kind::Double, Value::Number(value)) => match value.as_f64() {
            Some(value) => write_double(out, number, value),
            None => return Ok(false),
        },
        (Kind::Texts, Value::Array(items)) => return Ok(texts(out, number, items)),
        (Kind::Any, value) => bytes(out, number, &any(value)),
        (Kind::Anys, Value::Array(items)) => items.iter().for_each(|item| bytes(out, number, &any(item))),
        (Kind::Message(layout), value) => bytes(out, number, &message(layout, value)?),
        (Kind::Messages(layout), Value::Array(items)) => {
            for item in items {
                bytes(out, number, &message(layout, item)?);
            }
        }
        (Kind::Named(inner, layout), Value::Object(members)) => {
            let mut all = Vec::new();
            for (name, value) in members {
                bytes(&mut all, inner, &named(name, &message(layout, value)?));
            }
            bytes(out, number, &all);
        }
        (Kind::Parameters, Value::Array(items)) => {
            for item in items {
                bytes(out, number, &parameter(item)?);
            }
        }
        (Kind::Responses, Value::Object(members)) => {
            let mut all = Vec::new();
            for (status, value) in members {
                bytes(&mut all, 1, &named(status, &wrapped(1, &message(&RESPONSE, value)?)));
            }
            bytes(out, number, &all);
        }
        (Kind::Security, Value::Array(items)) => {
            for item in items {
                let mut requirement = Vec::new();
                for (name, scopes) in item.as_object().into_iter().flatten() {
                    let mut names = Vec::new();
                    if !scopes.as_array().is_some_and(|scopes| texts(&mut names, 1, scopes)) {
                        return Ok(false);
                    }
                    bytes(&mut requirement, 1, &named(name, &names));
                }
                bytes(out, number, &requirement);
            }
        }
        (Kind::SecurityDefinitions, Value::Object(members)) => {
            let mut all = Vec::new();
            for (name, value) in members {
                bytes(&mut all, 1, &named(name, &wrapped(2, &message(&API_KEY, value)?)));
            }
            bytes(out, number, &all);
        }
        (Kind::Types, Value::String(text)) => bytes(out, number, &wrapped(1, text.as_bytes())),
        (Kind::Items, Value::Object(_)) => bytes(out, number, &wrapped(1, &message(&SCHEMA, value)?)),
        (Kind::SchemaOrFlag, Value::Bool(flag)) => {
            let mut inner = Vec::new();
            write_number(&mut inner, 2, u64::from(*flag));
            bytes(out, number, &inner);
        }
        (Kind::SchemaOrFlag | Kind::SchemaItem, Value::Object(_)) => {
            bytes(out, number, &wrapped(1, &message(&SCHEMA, value)?));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `ParametersItem { Parameter { body | non-body { query | path } } }`.
fn parameter(value: &Value) -> Result<Vec<u8>, GnosticError> {
    let inner = match value["in"].as_str() {
        Some("body") => wrapped(1, &message(&BODY, value)?),
        Some("path") => wrapped(2, &wrapped(4, &message(&PATH, value)?)),
        _ => wrapped(2, &wrapped(3, &message(&QUERY, value)?)),
    };
    Ok(wrapped(1, &inner))
}

/// `Any`, of which clients read the YAML text; JSON is YAML.
fn any(value: &Value) -> Vec<u8> {
    wrapped(2, value.to_string().as_bytes())
}

fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 12);
    bytes(&mut out, 1, name.as_bytes());
    bytes(&mut out, 2, value);
    out
}

fn wrapped(number: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 8);
    bytes(&mut out, number, value);
    out
}

fn texts(out: &mut Vec<u8>, number: u32, items: &[Value]) -> bool {
    items.iter().all(|item| item.as_str().map(|text| bytes(out, number, text.as_bytes())).is_some())
}
