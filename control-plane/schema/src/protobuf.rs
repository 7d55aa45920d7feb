//! Kubernetes' protobuf form of built-in objects, from and to JSON values, by the facts table alone.
//!
//! A body is four bytes of magic and a `runtime.Unknown`, which names the kind and holds the object's message
//! (apimachinery, pkg/runtime/serializer/protobuf). It must always hold: what decodes here gives the JSON that
//! upstream's structs would give for the same bytes, save that empty lists, which Go writes as `null` where
//! `omitempty` is missing, are left out; no input makes it panic, nest deeper than [`DEPTH_MAX`], or build much
//! more than it was given. As upstream does, numbers that the table does not know are skipped; a known one with
//! the wrong wire type, an unknown kind, or text that is not UTF-8 is refused. Quantities pass as they are
//! written: checking and canonical form are the decoder's business, as for JSON bodies.

mod decode;
mod encode;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use serde_json::Value;

use crate::facts::Facts;
use crate::shape::TypeId;
use wire::Fields;

/// What every body begins with.
pub const MAGIC: [u8; 4] = *b"k8s\0";
/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// How deep objects, lists and maps may lie in each other. What is decoded can still be read back as JSON, whose
/// reader stops at 128.
pub const DEPTH_MAX: usize = 120;

/// Why a body or an object cannot be turned into the other form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtobufError {
    /// The body is something else.
    #[error("the body does not begin with the four bytes of a Kubernetes protobuf message")]
    NoMagic,
    /// The envelope holds something that is not read here.
    #[error("a {what} of {value:?} is not supported")]
    Envelope {
        /// `contentType` or `contentEncoding`.
        what: &'static str,
        /// What it said.
        value: String,
    },
    /// An object to encode does not say what it is.
    #[error("the object has no text in {field:?}")]
    NoKind {
        /// `apiVersion` or `kind`.
        field: &'static str,
    },
    /// No such kind is built in.
    #[error("no kind {kind:?} in version {api_version:?}")]
    UnknownKind {
        /// What the message said.
        api_version: String,
        /// What the message said.
        kind: String,
    },
    /// Upstream gives the kind no message.
    #[error("{kind} of {api_version} has no protobuf form, only JSON")]
    JsonOnly {
        /// Of the object.
        api_version: String,
        /// Of the object.
        kind: String,
    },
    /// A part of the object is wrong.
    #[error("{path}: {fault}")]
    Field {
        /// The JSON path, such as `spec.containers[0].name`.
        path: String,
        /// What is wrong there.
        fault: Fault,
    },
}

/// What can be wrong with one part of an object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// The bytes end early.
    #[error("the message ends within a field")]
    Truncated,
    /// No valid number or tag.
    #[error("a malformed varint or field tag")]
    Malformed,
    /// A known field came in another form.
    #[error("the wire type is {found}, expected {expected}")]
    WireType {
        /// As the table says.
        expected: &'static str,
        /// As it came.
        found: &'static str,
    },
    /// Text that is none.
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// Deeper than [`DEPTH_MAX`].
    #[error("nested too deeply")]
    TooDeep,
    /// Far more fields would be filled in than were sent.
    #[error("too many empty messages")]
    TooSparse,
    /// A year before 0 or after 9999.
    #[error("the time is out of range")]
    TimeRange,
    /// JSON cannot say it.
    #[error("not a finite number")]
    NotFinite,
    /// Raw bytes that must be JSON.
    #[error("the raw value is not JSON: {0}")]
    NotJson(String),
    /// A value that the field cannot hold.
    #[error("expected {expected}")]
    Shape {
        /// What the field holds.
        expected: &'static str,
    },
    /// A field that the type does not have.
    #[error("unknown field")]
    UnknownField,
    /// A field that exists in JSON only.
    #[error("has no protobuf form")]
    NoNumber,
}

/// Reads a body: magic, envelope, object.
pub fn decode(facts: &Facts, body: &[u8]) -> Result<Value, ProtobufError> {
    decode::Decoder::new(facts, body.len()).envelope(body, 0)
}

/// Reads a bare message of a type, without envelope.
pub fn decode_message(facts: &Facts, id: TypeId, message: &[u8]) -> Result<Value, ProtobufError> {
    decode::Decoder::new(facts, message.len()).message(id, message).map_err(Located::into_error)
}

/// Writes an object with its envelope, by its `apiVersion` and `kind`.
pub fn encode(facts: &Facts, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let text = |field| object.get(field).and_then(Value::as_str).ok_or(ProtobufError::NoKind { field });
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let id = kind_of(facts, api_version, kind)?;
    let message = encode_message(facts, id, object)?;
    Ok(envelope(api_version, kind, &message))
}

/// Writes a bare message of a type, without envelope.
pub fn encode_message(facts: &Facts, id: TypeId, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    encode::Encoder::new(facts).message(id, object).map_err(Located::into_error)
}

/// A list with its envelope, of items whose bare messages are at hand, so that nothing is encoded twice.
/// Every built-in list has its metadata at 1 and its items at 2.
pub fn encode_list<'a>(
    facts: &Facts,
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ProtobufError> {
    kind_of(facts, api_version, kind)?;
    let list_meta = facts
        .type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")
        .expect("the table has the type of every list's metadata");
    let mut message = Vec::new();
    wire::write_bytes(&mut message, 1, &encode_message(facts, list_meta, metadata)?);
    for item in items {
        wire::write_bytes(&mut message, 2, item);
    }
    Ok(envelope(api_version, kind, &message))
}

/// The bare message within a body, as [`encode_list`] takes it.
pub fn message_of(body: &[u8]) -> Result<&[u8], ProtobufError> {
    Envelope::read(body).map(|envelope| envelope.message)
}

/// A frame of a watch: the message of a `WatchEvent` around an object that is already encoded with its envelope.
pub fn watch_event(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    wire::write_bytes(&mut raw, 1, object);
    let mut event = Vec::with_capacity(raw.len() + event_type.len() + 16);
    wire::write_bytes(&mut event, 1, event_type.as_bytes());
    wire::write_bytes(&mut event, 2, &raw);
    event
}

/// Puts a message into the envelope that tells its kind.
fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::new();
    wire::write_bytes(&mut type_meta, 1, api_version.as_bytes());
    wire::write_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut body = Vec::with_capacity(message.len() + type_meta.len() + 24);
    body.extend_from_slice(&MAGIC);
    wire::write_bytes(&mut body, 1, &type_meta);
    wire::write_bytes(&mut body, 2, message);
    // Upstream always writes both, empty: the content is this very media type, not compressed.
    wire::write_bytes(&mut body, 3, &[]);
    wire::write_bytes(&mut body, 4, &[]);
    body
}

/// What an envelope says.
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    message: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(body: &'a [u8]) -> Result<Envelope<'a>, ProtobufError> {
        let body = body.strip_prefix(&MAGIC).ok_or(ProtobufError::NoMagic)?;
        let mut envelope = Envelope { api_version: "", kind: "", message: &[] };
        let (mut encoding, mut content) = ("", "");
        let mut read = || -> Result<(), Fault> {
            let mut fields = Fields::new(body);
            while let Some((number, value)) = fields.next()? {
                match number {
                    1 => {
                        let mut type_meta = Fields::new(value.bytes()?);
                        while let Some((number, value)) = type_meta.next()? {
                            match number {
                                1 => envelope.api_version = value.text()?,
                                2 => envelope.kind = value.text()?,
                                _ => {}
                            }
                        }
                    }
                    2 => envelope.message = value.bytes()?,
                    3 => encoding = value.text()?,
                    4 => content = value.text()?,
                    _ => {}
                }
            }
            Ok(())
        };
        read().map_err(|fault| ProtobufError::Field { path: "envelope".to_owned(), fault })?;
        if !encoding.is_empty() {
            return Err(ProtobufError::Envelope { what: "contentEncoding", value: encoding.to_owned() });
        }
        if !content.is_empty() && content != MEDIA_TYPE {
            return Err(ProtobufError::Envelope { what: "contentType", value: content.to_owned() });
        }
        Ok(envelope)
    }
}

/// The type of a kind that has a protobuf form.
fn kind_of(facts: &Facts, api_version: &str, kind: &str) -> Result<TypeId, ProtobufError> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let named = || (api_version.to_owned(), kind.to_owned());
    let Some(id) = facts.kind(group, version, kind) else {
        let (api_version, kind) = named();
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    if !facts.details(id).has_protobuf() {
        let (api_version, kind) = named();
        return Err(ProtobufError::JsonOnly { api_version, kind });
    }
    Ok(id)
}

/// A fault with the way to it, gathered from the inside out.
#[derive(Debug)]
struct Located {
    fault: Fault,
    /// The innermost step first.
    steps: Vec<String>,
}

impl Located {
    /// Adds the field in which the fault lies.
    fn under(mut self, step: &str) -> Located {
        self.steps.push(format!(".{step}"));
        self
    }

    /// Adds the list item in which the fault lies.
    fn item(mut self, at: usize) -> Located {
        self.steps.push(format!("[{at}]"));
        self
    }

    fn into_error(self) -> ProtobufError {
        let path: String = self.steps.into_iter().rev().collect();
        let path = path.strip_prefix('.').map_or_else(|| "message".to_owned(), str::to_owned);
        ProtobufError::Field { path, fault: self.fault }
    }
}

impl From<Fault> for Located {
    fn from(fault: Fault) -> Located {
        Located { fault, steps: Vec::new() }
    }
}
