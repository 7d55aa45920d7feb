//! The Open Inference Protocol, without I/O: what a model takes and gives, and requests as REST and gRPC have them.
//!
//! A model that makes vectors takes `text` and gives `embedding`; one that makes text takes `text_input` and gives
//! `text_output`, as Triton's `generate` extension calls them. What must hold: both ways in are held to the same rules,
//! and a refusal names the field. (KServe's `open_inference_rest.yaml`; Triton's `extension_generate.md`.)

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::{INPUTS_MAX, Refusal, as_json, object};
use crate::completions::ANSWERS_MAX;

/// The one version of a model.
pub(crate) const VERSION: &str = "1";

/// What a model does, as the protocol sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Texts to vectors of so many numbers.
    Vectors(usize),
    /// Texts to more text.
    Text,
}

/// What is told about a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorMetadata {
    pub(crate) name: &'static str,
    pub(crate) datatype: &'static str,
    pub(crate) shape: Vec<i64>,
}

impl Task {
    pub(crate) fn platform(self) -> &'static str {
        if self == Self::Text { "kedge_decoder" } else { "kedge_encoder" }
    }

    pub(crate) fn input(self) -> TensorMetadata {
        let name = if self == Self::Text { "text_input" } else { "text" };
        TensorMetadata { name, datatype: "BYTES", shape: vec![-1] }
    }

    pub(crate) fn output(self) -> TensorMetadata {
        match self {
            Self::Vectors(width) => {
                TensorMetadata { name: "embedding", datatype: "FP32", shape: vec![-1, width as i64] }
            }
            Self::Text => TensorMetadata { name: "text_output", datatype: "BYTES", shape: vec![-1] },
        }
    }

    /// What else than the protocol itself is spoken.
    pub(crate) fn extensions(self) -> &'static [&'static str] {
        if self == Self::Text { &["generate"] } else { &[] }
    }

    /// Most texts in one request.
    fn texts_max(self) -> usize {
        if self == Self::Text { ANSWERS_MAX as usize } else { INPUTS_MAX }
    }
}

/// `GET /v2`.
pub(crate) fn server(task: Task) -> Value {
    json!({"name": "kedge", "version": env!("CARGO_PKG_VERSION"), "extensions": task.extensions()})
}

/// `GET /v2/models/NAME`.
pub(crate) fn model(name: &str, task: Task) -> Value {
    let tensor =
        |TensorMetadata { name, datatype, shape }| json!([{"name": name, "datatype": datatype, "shape": shape}]);
    json!({
        "name": name, "versions": [VERSION], "platform": task.platform(),
        "inputs": tensor(task.input()), "outputs": tensor(task.output()),
    })
}

/// A request to infer, understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Infer {
    /// Comes back with the answer.
    pub(crate) id: Option<String>,
    pub(crate) texts: Vec<String>,
    /// How text is made; the fields of OpenAI's completions.
    pub(crate) parameters: Map<String, Value>,
    /// Parameters that were left out of account.
    pub(crate) ignored: Vec<String>,
}

/// A tensor of a request, as it came.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: &'a str,
    pub(crate) shape: Vec<i64>,
    pub(crate) texts: Result<Vec<String>, Refusal>,
}

/// The texts of a request, whose tensors must be those that the model takes and gives.
pub(crate) fn texts(task: Task, mut inputs: Vec<Input<'_>>, outputs: &[&str]) -> Result<Vec<String>, Refusal> {
    let (wanted, given) = (task.input(), task.output());
    if let Some(index) = outputs.iter().position(|output| *output != given.name) {
        let reason = format!("must be {:?}, is {:?}", given.name, outputs[index]);
        return Err(Refusal::field(format!("outputs[{index}].name"), reason));
    }
    let Some(input) = inputs.pop().filter(|_| inputs.is_empty()) else {
        return Err(Refusal::field("inputs", format!("must be one tensor, {}", wanted.name)));
    };
    for (field, expected, is) in [("name", wanted.name, input.name), ("datatype", wanted.datatype, input.datatype)] {
        if is != expected {
            return Err(Refusal::field(format!("inputs[0].{field}"), format!("must be {expected:?}, is {is:?}")));
        }
    }
    let texts = input.texts?;
    let (count, most) = (texts.len(), task.texts_max());
    if count == 0 || count > most {
        return Err(Refusal::field("inputs[0].data", format!("has {count} elements; 1 to {most} are taken")));
    }
    let length = count as i64;
    if input.shape != [length] && input.shape != [length, 1] {
        let reason = format!("must be [{count}] or [{count}, 1] for {count} elements, is {:?}", input.shape);
        return Err(Refusal::field("inputs[0].shape", reason));
    }
    Ok(texts)
}

/// `POST /v2/models/NAME/infer`.
pub(crate) fn infer(task: Task, body: &[u8]) -> Result<Infer, Refusal> {
    let mut body = object(body)?;
    let id = id(&mut body)?;
    let parameters = parameters(&mut body)?;
    let list = |body: &Map<String, Value>, field: &str| match body.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(other) => Err(Refusal::field(field, format!("must be a list of tensors, is {other}"))),
    };
    let (inputs, outputs) = (list(&body, "inputs")?, list(&body, "outputs")?);
    let known = |field: &&String| ["inputs", "outputs"].contains(&field.as_str());
    let mut ignored: Vec<String> = body.keys().filter(|field| !known(field)).cloned().collect();
    for fields in inputs.iter().filter_map(Value::as_object) {
        let known = |field: &&String| ["name", "datatype", "shape", "data", "parameters"].contains(&field.as_str());
        ignored.extend(fields.keys().filter(|field| !known(field)).map(|field| format!("inputs.{field}")));
    }
    for (index, output) in outputs.iter().enumerate() {
        // An output is given as it is: it may be asked for by name, and as JSON, which Triton's client always says.
        let plain = output.as_object().is_some_and(|fields| {
            let as_json = |value: &Value| *value == json!({}) || *value == json!({"binary_data": false});
            fields.iter().all(|(field, value)| match field.as_str() {
                "name" => value.is_string(),
                "parameters" => as_json(value),
                _ => false,
            })
        });
        if !plain || !output["name"].is_string() {
            let reason = format!("must have a name and no more, is {output}");
            return Err(Refusal::field(format!("outputs[{index}]"), reason));
        }
    }
    let inputs = inputs.iter().enumerate().map(|(index, input)| {
        let at = |field: &str| format!("inputs[{index}].{field}");
        let text = |field: &'static str| {
            let text = input.get(field).and_then(Value::as_str);
            text.ok_or_else(|| Refusal::field(at(field), "must be a string"))
        };
        if input.get("parameters").is_some_and(|parameters| !parameters.is_null() && *parameters != json!({})) {
            return Err(Refusal::field(at("parameters"), "is not supported"));
        }
        let shape = input.get("shape").and_then(Value::as_array);
        let shape = shape.and_then(|shape| shape.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>());
        Ok(Input {
            name: text("name")?,
            datatype: text("datatype")?,
            shape: shape.ok_or_else(|| Refusal::field(at("shape"), "must be a list of whole numbers"))?,
            texts: data(index, input.get("data")),
        })
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let outputs: Vec<&str> = outputs.iter().filter_map(|output| output["name"].as_str()).collect();
    Infer { id, texts: texts(task, inputs, &outputs)?, parameters, ignored }.checked(task)
}

fn data(input: usize, data: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let at = format!("inputs[{input}].data");
    let list = data.and_then(Value::as_array).ok_or_else(|| Refusal::field(&at, "must be an array of strings"))?;
    // A tensor of two dimensions may be written as a list of lists (KServe's "flattened or not").
    let text = |(index, value): (usize, &Value)| {
        let one = value.as_array().filter(|list| list.len() == 1).map_or(value, |list| &list[0]);
        let text = one.as_str().map(str::to_owned);
        text.ok_or_else(|| Refusal::field(format!("{at}[{index}]"), "must be a string"))
    };
    list.iter().enumerate().map(text).collect()
}

fn id(body: &mut Map<String, Value>) -> Result<Option<String>, Refusal> {
    match body.remove("id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok(Some(id)),
        Some(other) => Err(Refusal::field("id", format!("must be a string, is {other}"))),
    }
}

fn parameters(body: &mut Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    match body.remove("parameters") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(parameters)) => Ok(parameters),
        Some(other) => Err(Refusal::field("parameters", format!("must be an object, is {other}"))),
    }
}

/// `POST /v2/models/NAME/generate` and `/generate_stream`: one text; parameters stand in an object of theirs or beside it.
pub(crate) fn generate(body: &[u8], streams: bool) -> Result<Infer, Refusal> {
    let mut body = object(body)?;
    let id = id(&mut body)?;
    let mut all = parameters(&mut body)?;
    let text = match body.remove("text_input") {
        Some(Value::String(text)) => text,
        None => return Err(Refusal::field("text_input", "is missing")),
        Some(other) => return Err(Refusal::field("text_input", format!("must be a string, is {other}"))),
    };
    all.extend(body);
    match all.remove("stream") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(asked)) if asked == streams => {}
        Some(other) => {
            let reason =
                format!("must be {streams} here, is {other}; /generate answers whole, /generate_stream in pieces");
            return Err(Refusal::field("parameters.stream", reason));
        }
    }
    let mut asked = Infer { id, texts: vec![text], parameters: all, ignored: Vec::new() }.checked(Task::Text)?;
    asked.parameters.insert("stream".into(), Value::Bool(streams));
    Ok(asked)
}

impl Infer {
    /// Refuses parameters that mean nothing here.
    pub(crate) fn checked(mut self, task: Task) -> Result<Self, Refusal> {
        // A hint of Triton's clients: the answer says how it is written.
        self.ignored.extend(self.parameters.remove("binary_data_output").map(|_| "binary_data_output".to_owned()));
        let refused = |field: &str, reason: &str| Err(Refusal::field(format!("parameters.{field}"), reason));
        if task != Task::Text {
            return match self.parameters.keys().next() {
                Some(field) => refused(field, "is not supported: a model that makes vectors takes none"),
                None => Ok(self),
            };
        }
        for field in ["model", "prompt", "messages", "stream", "stream_options"] {
            if self.parameters.contains_key(field) {
                return refused(field, "is no parameter of this protocol");
            }
        }
        if self.parameters.get("n").is_some_and(|count| *count != 1) {
            return refused("n", "must be 1: each text has one answer");
        }
        // Triton's vLLM backend repeats the prompt unless told not to; here it never is.
        if self.parameters.remove("exclude_input_in_output").is_some_and(|exclude| exclude == false) {
            return refused("exclude_input_in_output", "false is not supported: the prompt is no part of the answer");
        }
        Ok(self)
    }

    /// The same as a request for completions.
    pub(crate) fn completion(&self, model: &str) -> Map<String, Value> {
        let mut body = self.parameters.clone();
        body.insert("model".into(), model.into());
        body.insert("prompt".into(), json!(self.texts));
        body
    }
}

/// What a refusal of that request for completions is about here. `text` is what the text is called.
pub(crate) fn refusal(refusal: Refusal, text: &str) -> Refusal {
    let field = refusal.field.map(|field| match field.strip_prefix("prompt") {
        Some(rest) => format!("{text}{rest}"),
        None => format!("parameters.{field}"),
    });
    Refusal { field, ..refusal }
}

/// The answer of `infer`: one output, its data flattened.
pub(crate) fn answer(model: &str, id: Option<&str>, output: &TensorMetadata, data: &impl Serialize) -> String {
    let TensorMetadata { name, datatype, shape } = output;
    as_json(&Answer {
        model_name: model,
        model_version: VERSION,
        id,
        outputs: [Output { name, datatype, shape, data }],
    })
}

#[derive(Serialize)]
struct Answer<'a, D> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: [Output<'a, D>; 1],
}

#[derive(Serialize)]
struct Output<'a, D> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    data: D,
}

/// The elements of a raw BYTES tensor: each after its length in four bytes, the lowest first.
pub(crate) fn of_raw(mut raw: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        all.push(element);
        raw = rest;
    }
    Some(all)
}

/// A raw BYTES tensor of those elements.
pub(crate) fn to_raw<'a>(elements: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut raw = Vec::new();
    for element in elements {
        raw.extend_from_slice(&u32::try_from(element.len()).unwrap_or(u32::MAX).to_le_bytes());
        raw.extend_from_slice(element);
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: Task = Task::Vectors(384);

    #[test]
    fn infer_may_ask_for_its_one_output() {
        let body = r#"{"id":"7","parameters":{"binary_data_output":true},"outputs":[{"name":"embedding","parameters":{"binary_data":false}}],"inputs":[{"name":"text","datatype":"BYTES","shape":[2,1],"data":[["a"],["b"]]}]}"#;
        let asked = infer(VECTORS, body.as_bytes()).unwrap();
        assert_eq!((asked.id.as_deref(), asked.texts), (Some("7"), vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(asked.ignored, ["binary_data_output"]);
        let more = body.replace("\"id\":\"7\"", "\"more\":1").replace("\"shape\"", "\"more\":1,\"shape\"");
        assert_eq!(infer(VECTORS, more.as_bytes()).unwrap().ignored, ["more", "inputs.more", "binary_data_output"]);
    }

    #[test]
    fn infer_names_the_field_at_fault() {
        let good = r#"{"id":"7","inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["a"]}]}"#;
        let text = good.replace("\"text\"", "\"text_input\"").replace("\"id\":\"7\"", "\"parameters\":{\"top_k\":1}");
        assert!(infer(VECTORS, good.as_bytes()).is_ok() && infer(Task::Text, text.as_bytes()).is_ok());
        for (task, good, from, to, field) in [
            (VECTORS, good, "[1]", "[2]", "inputs[0].shape"),
            (VECTORS, good, "[1]", "[1.5]", "inputs[0].shape"),
            (VECTORS, good, "BYTES", "FP32", "inputs[0].datatype"),
            (VECTORS, good, "\"BYTES\"", "7", "inputs[0].datatype"),
            (VECTORS, good, "\"a\"", "1", "inputs[0].data[0]"),
            (VECTORS, good, "\"a\"", "", "inputs[0].data"),
            (VECTORS, good, "\"text\"", "\"text_input\"", "inputs[0].name"),
            (VECTORS, good, "\"inputs\"", "\"input\"", "inputs"),
            (VECTORS, good, "\"id\":\"7\"", "\"id\":7", "id"),
            (VECTORS, good, "\"id\":\"7\"", "\"outputs\":[{\"name\":\"x\"}]", "outputs[0].name"),
            (
                VECTORS,
                good,
                "\"id\":\"7\"",
                "\"outputs\":[{\"name\":\"embedding\",\"binary_data\":true}]",
                "outputs[0]",
            ),
            (VECTORS, good, "\"id\":\"7\"", "\"parameters\":{\"a\":1}", "parameters.a"),
            (Task::Text, &text, "\"top_k\":1", "\"n\":2", "parameters.n"),
            (Task::Text, &text, "\"top_k\":1", "\"stream\":false", "parameters.stream"),
            (Task::Text, &text, "{\"top_k\":1}", "[]", "parameters"),
        ] {
            let refused = infer(task, good.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some(field), "{to}");
        }
    }

    #[test]
    fn only_what_makes_text_generates() {
        assert_eq!(
            (&server(Task::Text)["extensions"], &server(Task::Vectors(4))["extensions"]),
            (&json!(["generate"]), &json!([]))
        );
    }

    #[test]
    fn generate_takes_parameters_in_their_object_and_beside_it() {
        let asked = generate(br#"{"text_input":"a","max_tokens":3,"parameters":{"top_k":1}}"#, false).unwrap();
        let expected = json!({"max_tokens": 3, "top_k": 1, "stream": false, "model": "m", "prompt": ["a"]});
        assert_eq!(Value::Object(asked.completion("m")), expected);
        for (body, streams, field) in [
            (r#"{"text_input":7}"#, false, "text_input"),
            ("{}", false, "text_input"),
            (r#"{"text_input":"a","stream":true}"#, false, "parameters.stream"),
            (r#"{"text_input":"a","parameters":{"stream":false}}"#, true, "parameters.stream"),
            (r#"{"text_input":"a","prompt":"b"}"#, false, "parameters.prompt"),
            (r#"{"text_input":"a","exclude_input_in_output":false}"#, true, "parameters.exclude_input_in_output"),
        ] {
            assert_eq!(generate(body.as_bytes(), streams).unwrap_err().field.as_deref(), Some(field), "{body}");
        }
        let of = |field: &str| refusal(Refusal::field(field, ""), "text_input").field.unwrap();
        assert_eq!((of("prompt").as_str(), of("top_k").as_str()), ("text_input", "parameters.top_k"));
    }

    #[test]
    fn raw_elements_have_their_length_before_them() {
        let raw = to_raw([&b"ab"[..], b"", b"c"]);
        assert_eq!(raw, b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c");
        assert_eq!(of_raw(&raw).unwrap(), [&b"ab"[..], b"", b"c"]);
        for cut in [1, 5, raw.len() - 1] {
            assert_eq!(of_raw(&raw[..cut]), None, "{cut}");
        }
        assert_eq!(of_raw(b"\xff\xff\xff\xff"), None);
    }
}
