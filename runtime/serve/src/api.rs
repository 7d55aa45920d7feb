//! Wire types to engine inputs and back, without I/O: OpenAI embeddings; and refusals.
//!
//! What must hold: a refusal names the field; a field that would change the answer and is not supported is refused.

use std::ops::RangeInclusive;

use base64::Engine;
use kedge_engine::{Embedding, Encoder, Tokens};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Most texts in one request, as at OpenAI.
pub(crate) const INPUTS_MAX: usize = 2048;

/// Longest name of a field, and longest reason, that a refusal tells, in bytes: over gRPC both stand in a header, and one
/// beyond what a peer takes ends the connection and everybody's requests on it.
const SHOWN_MAX: usize = 600;

/// Longest value that is told back whole, in bytes.
const VALUE_MAX: usize = 100;

/// A text as it is shown: of a long one its beginning and its end, since what was asked stands in the midst of it.
fn shown(text: String) -> String {
    cut(text, SHOWN_MAX)
}

fn cut(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let (head, tail) = (most * 2 / 3, text.len() - most / 3);
    format!("{} ... {}", &text[..text.floor_char_boundary(head)], &text[text.ceil_char_boundary(tail)..])
}

/// Why a request is refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) field: Option<String>,
    pub(crate) reason: String,
    /// OpenAI's word for it, where it has one.
    pub(crate) code: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { status: 400, field: Some(shown(field.into())), reason: shown(reason.into()), code: None }
    }

    pub(crate) fn plain(status: u16, reason: impl Into<String>) -> Self {
        Self { status, field: None, reason: shown(reason.into()), code: None }
    }

    /// In OpenAI's error shape.
    pub(crate) fn openai(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        let code = self.code.or((self.status == 401).then_some("invalid_api_key"));
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.field, "code": code}})
    }

    /// In the Open Inference Protocol's error shape.
    pub(crate) fn v2(&self) -> Value {
        json!({"error": self.to_string()})
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// One input of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Text(String),
    Ids(Vec<u32>),
}

/// A request for vectors, understood.
#[derive(Debug, PartialEq)]
pub(crate) struct EmbeddingsRequest {
    pub(crate) items: Vec<Item>,
    pub(crate) base64: bool,
    /// Fields that were left out of account.
    pub(crate) ignored: Vec<String>,
}

pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::plain(400, format!("the body is not a JSON object: {error}")))
}

/// Fields of one request, taken one after the other; what is left at the end was not known.
#[derive(Debug)]
pub(crate) struct Body(Map<String, Value>);

impl Body {
    pub(crate) fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        object(bytes).map(Self)
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    pub(crate) fn number(&mut self, field: &str, range: &RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = value.as_f64().filter(|number| range.contains(number));
        let wrong = || {
            let reason = format!("must be a number from {} to {}, is {value}", range.start(), range.end());
            Refusal::field(field, reason)
        };
        number.map(Some).ok_or_else(wrong)
    }

    pub(crate) fn count(&mut self, field: &str, least: u64, most: u64) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let count = value.as_u64().filter(|count| (least..=most).contains(count));
        count
            .map(Some)
            .ok_or_else(|| Refusal::field(field, format!("must be a whole number from {least} to {most}, is {value}")))
    }

    /// A number without a fraction.
    pub(crate) fn whole(&mut self, field: &str, range: &RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let number = self.number(field, range)?;
        match number.filter(|number| number.fract() != 0.0) {
            Some(number) => Err(Refusal::field(field, format!("must be a whole number, is {number}"))),
            None => Ok(number),
        }
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<bool, Refusal> {
        Ok(self.whether(field)?.unwrap_or(false))
    }

    /// True, false, or not said.
    pub(crate) fn whether(&mut self, field: &str) -> Result<Option<bool>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(Refusal::field(field, format!("must be true or false, is {other}"))),
        }
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Refusal::field(field, format!("must be a string, is {other}"))),
        }
    }

    /// Token ids below `vocabulary`.
    pub(crate) fn ids(&mut self, field: &str, vocabulary: usize) -> Result<Option<Vec<u32>>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => ids(field, &list, vocabulary).map(Some),
            Some(other) => Err(Refusal::field(field, format!("must be a list of token ids, is {other}"))),
        }
    }

    /// Takes the name of the model that is asked, which must be the one that is served; whether there is a name.
    pub(crate) fn model(&mut self, served: &str) -> Result<bool, Refusal> {
        match self.text("model")? {
            Some(name) if name != served => Err(unknown_model(&name, served)),
            name => Ok(name.is_some()),
        }
    }

    /// The same where there must be a name.
    pub(crate) fn names_model(&mut self, served: &str) -> Result<(), Refusal> {
        let missing = || Refusal::field("model", format!("is missing; the model that is served here is {served:?}"));
        if self.model(served)? { Ok(()) } else { Err(missing()) }
    }

    /// Leaves a field out of account.
    pub(crate) fn ignore(&mut self, field: String) {
        self.0.insert(field, Value::Bool(true));
    }

    /// What was not taken: fields that are left out of account.
    pub(crate) fn rest(self) -> Vec<String> {
        self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(field, _)| field).collect()
    }

    /// Refuses a field that would change the answer, unless it says what happens anyway.
    pub(crate) fn refuse(&mut self, field: &str, harmless: impl Fn(&Value) -> bool) -> Result<(), Refusal> {
        match self.take(field) {
            Some(value) if !harmless(&value) => {
                Err(Refusal::field(field, format!("{} is not supported", cut(value.to_string(), VALUE_MAX))))
            }
            _ => Ok(()),
        }
    }
}

/// A model is asked for that is another one.
pub(crate) fn unknown_model(asked: &str, served: &str) -> Refusal {
    let refusal = Refusal::field("model", format!("{asked:?} is not served here; {served:?} is"));
    Refusal { status: 404, code: Some("model_not_found"), ..refusal }
}

/// An entry of `GET /v1/models`, and the answer of `GET /v1/models/NAME`.
pub(crate) fn openai_model(model: &str, created: u64) -> Value {
    json!({"id": model, "object": "model", "created": created, "owned_by": "kedge"})
}

/// `POST /v1/embeddings`.
pub(crate) fn embeddings(body: &[u8], model: &str, dimensions: usize) -> Result<EmbeddingsRequest, Refusal> {
    let mut body = Body::read(body)?;
    body.names_model(model)?;
    let base64 = match body.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(Refusal::field("encoding_format", format!("{other:?} is not float or base64"))),
    };
    let asked = body.take("dimensions").filter(|asked| *asked != json!(dimensions));
    if let Some(asked) = asked {
        let reason = format!("{asked} is not supported: this model's vectors have {dimensions}");
        return Err(Refusal::field("dimensions", reason));
    }
    // A name for the caller's own bookkeeping; it changes nothing in the answer.
    body.text("user")?;
    let items = inputs(body.take("input").ok_or_else(|| Refusal::field("input", "is missing"))?)?;
    Ok(EmbeddingsRequest { items, base64, ignored: body.rest() })
}

fn inputs(input: Value) -> Result<Vec<Item>, Refusal> {
    let list = match input {
        Value::String(text) => return Ok(vec![Item::Text(text)]),
        Value::Array(list) => list,
        other => return Err(Refusal::field("input", format!("must be a string or an array, is {other}"))),
    };
    if list.is_empty() || list.len() > INPUTS_MAX {
        return Err(Refusal::field("input", format!("has {} elements; 1 to {INPUTS_MAX} are taken", list.len())));
    }
    if list[0].is_number() {
        return Ok(vec![Item::Ids(ids("input", &list, usize::MAX)?)]);
    }
    let item = |(index, value)| match value {
        Value::String(text) => Ok(Item::Text(text)),
        Value::Array(list) => ids(&format!("input[{index}]"), &list, usize::MAX).map(Item::Ids),
        other => Err(Refusal::field(
            format!("input[{index}]"),
            format!("must be a string or an array of token ids, is {other}"),
        )),
    };
    list.into_iter().enumerate().map(item).collect()
}

/// A list of token ids below `vocabulary`.
pub(crate) fn ids(field: &str, list: &[Value], vocabulary: usize) -> Result<Vec<u32>, Refusal> {
    let id = |(index, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let wrong = |reason| Refusal::field(format!("{field}[{index}]"), reason);
        match id {
            None => Err(wrong(format!("must be a token id, is {value}"))),
            Some(id) if id as usize >= vocabulary => {
                Err(wrong(format!("{id} is no token: they are below {vocabulary}")))
            }
            Some(id) => Ok(id),
        }
    };
    list.iter().enumerate().map(id).collect()
}

/// Items to tokens; long texts are cut, lists of ids that do not fit are refused.
pub(crate) fn tokens(encoder: &Encoder, items: &[Item]) -> Result<Vec<Tokens>, Refusal> {
    let token = |(index, item): (usize, &Item)| match item {
        Item::Text(text) => encoder.tokenize(index, text),
        Item::Ids(ids) => encoder.tokens(index, ids),
    };
    items
        .iter()
        .enumerate()
        .map(token)
        .collect::<Result<_, _>>()
        .map_err(|error| Refusal::field("input", error.to_string()))
}

/// The answer of `POST /v1/embeddings`: written as it is, since a value for each number would take many times its room.
pub(crate) fn embeddings_answer(model: &str, vectors: &[Embedding], base64: bool) -> String {
    let tokens = vectors.iter().map(|embedding| embedding.tokens).sum();
    let vectors = vectors.iter().map(|embedding| &embedding.vector[..]);
    let data = vectors.enumerate().map(|(index, vector)| Entry::new(index, vector, base64)).collect();
    as_json(&Answer { object: "list", data, model, usage: Usage { prompt_tokens: tokens, total_tokens: tokens } })
}

/// As text.
pub(crate) fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts are JSON")
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry<'a> {
    object: &'static str,
    index: usize,
    embedding: Numbers<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers<'a> {
    Floats(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl<'a> Entry<'a> {
    fn new(index: usize, vector: &'a [f32], base64: bool) -> Self {
        let embedding = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Numbers::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            Numbers::Floats(vector)
        };
        Self { object: "embedding", index, embedding }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        let said = match embeddings(body.as_bytes(), "m", 4) {
            Ok(request) => format!("{:?} {} {}", request.items, request.base64, request.ignored.join(" ")),
            Err(refusal) => format!("{} {}", refusal.status, refusal.openai()["error"]["message"]),
        };
        assert!(said.contains(expected), "{said} does not say {expected}");
    }

    #[test]
    fn a_refusal_is_short_whatever_was_asked() {
        let long = "ä".repeat(500_000);
        for refusal in
            [unknown_model(&long, "m"), Refusal::field(long.clone(), long.as_str()), Refusal::plain(404, &long)]
        {
            let said = refusal.to_string();
            assert!(said.len() < 2 * SHOWN_MAX + 20 && said.contains(" ... "), "{said}");
        }
        assert!(unknown_model(&long, "m").reason.ends_with("is not served here; \"m\" is"));
        assert_eq!(Refusal::plain(404, "no").reason, "no");
        let mut tools = Body::new(json!({"tools": [long]}).as_object().unwrap().clone());
        let said = tools.refuse("tools", |_| false).unwrap_err().to_string();
        assert!(said.len() < VALUE_MAX + 40 && said.ends_with("\"] is not supported"), "{said}");
    }

    #[test]
    fn an_embeddings_request_is_understood_or_refused_by_field() {
        check(r#"{"model":"m","input":"a"}"#, r#"[Text("a")] false"#);
        check(
            r#"{"model":"m","input":["a",[1,2]],"encoding_format":"base64","dimensions":4,"user":"u"}"#,
            r#"[Text("a"), Ids([1, 2])] true"#,
        );
        check(r#"{"model":"m","input":[1,2]}"#, "[Ids([1, 2])]");
        check(r#"{"model":"x","input":"a"}"#, "404 ");
        check(r#"{"input":"a"}"#, r#"400 "model: is missing; the model that is served here is \"m\""#);
        check(r#"{"model":7,"input":"a"}"#, "400 \"model: must be a string, is 7");
        // OpenAI refuses texts that are empty; sentence-transformers has vectors for them, and so do these models.
        check(r#"{"model":"m","input":""}"#, r#"[Text("")] false"#);
        check(r#"{"model":"m","input":["a",""]}"#, r#"[Text("a"), Text("")] false"#);
        check(r#"{"model":"m"}"#, "input: is missing");
        check(r#"{"model":"m","input":[]}"#, "input: has 0 elements");
        check(r#"{"model":"m","input":["a",7]}"#, "input[1]: must be a string");
        check(r#"{"model":"m","input":[1,-2]}"#, "input[1]: must be a token id, is -2");
        check(r#"{"model":"m","input":"a","dimensions":2}"#, "dimensions: 2 is not supported");
        check(r#"{"model":"m","input":"a","encoding_format":"hex"}"#, "encoding_format: ");
        check(r#"{"model":"m","input":"a","user":7}"#, "user: must be a string");
        check(r#"{"model":"m","input":"a","truncate":1,"null":null}"#, r#"[Text("a")] false truncate"#);
        check("[]", "the body is not a JSON object");
    }

    #[test]
    fn vectors_are_floats_as_short_as_can_be_or_their_bytes_in_base64() {
        for (base64, expected) in [(false, "[1.0,-0.1]"), (true, "\"AACAP83MzL0=\"")] {
            let vectors = [(); 2].map(|()| Embedding { vector: vec![1.0, -0.1], tokens: 3 });
            let answer = embeddings_answer("m", &vectors, base64);
            assert!(answer.contains(&format!("\"index\":1,\"embedding\":{expected}")), "{answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["usage"], json!({"prompt_tokens": 6, "total_tokens": 6}));
        }
    }
}
