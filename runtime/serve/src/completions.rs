//! Wire types of OpenAI's chat and text completions, without I/O: requests in, answers and their pieces out.
//!
//! What must hold: a refusal names the field; a field that would change the answer and is not supported is refused;
//! others that are not known are left out with a warning that names them, since clients of many servers send them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use kedge_engine::Decoder;
use kedge_engine::generate::{ChatTemplate, Choice, Client, End, Message, Request, Sampling, TextTokenizer};
use serde_json::{Map, Value, json};

use crate::api::{Body, Refusal, ids};
use crate::intake::{OPEN_MAX, origin_max};
use crate::talk::Talk;
use crate::templates::TemplateError;
use crate::v2::VERSION;

/// Most answers to one request.
pub(crate) const ANSWERS_MAX: u64 = 16;
/// Most answers to all prompts of a request: one origin must get that many places.
const ANSWERS_ALL_MAX: usize = 128;
const _: () = assert!(ANSWERS_ALL_MAX <= origin_max(OPEN_MAX));
/// Most texts that end an answer, as at OpenAI.
const STOPS_MAX: usize = 16;
/// Bytes of each: all of them are looked for in what was written last, token by token.
const STOP_BYTES_MAX: usize = 1024;
/// Bytes of a text that are tokenized before it is known whether all of it may fit: while it is looked at, each takes some
/// hundred bytes of memory.
const PIECE_BYTES: usize = 64 << 10;
/// Tokens that a piece may have beyond those of the whole, since it begins and ends anywhere.
const PIECE_TOKENS_MORE: usize = 16;
/// What presence and frequency may cost.
const PENALTY: RangeInclusive<f64> = -2.0..=2.0;
/// Tokens of an answer to a prompt without `max_tokens`, as at OpenAI.
const TOKENS_DEFAULT: usize = 16;

/// In whose shape an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Text,
    /// Triton's `generate`; what is asked is understood as for completions.
    Generate,
}

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Completion {
    /// One for each answer, with the number of its prompt; as many to each.
    pub(crate) requests: Vec<(usize, Request)>,
    /// Tokens of each prompt.
    pub(crate) prompts: Vec<usize>,
    /// Texts that end an answer.
    pub(crate) stops: Vec<String>,
    /// Tokens of an answer whose text is not looked through for them.
    pub(crate) tokens_min: usize,
    pub(crate) stream: bool,
    /// Whether a stream ends with the counts of tokens.
    pub(crate) include_usage: bool,
    /// Whether probabilities are told.
    pub(crate) logprobs: bool,
    /// Fields that were left out of account.
    pub(crate) ignored: Vec<String>,
}

/// `POST /v1/chat/completions` and `POST /v1/completions`. `seed` is where draws begin when the request does not say.
pub(crate) fn parse(kind: Kind, body: Map<String, Value>, to: &Talk, seed: u64) -> Result<Completion, Refusal> {
    let (mut body, decoder) = (Body::new(body), &*to.decoder);
    body.names_model(&to.name)?;
    let prompts = match kind {
        Kind::Chat => vec![talk(&mut body, to)?],
        Kind::Text | Kind::Generate => texts(&mut body, decoder)?,
    };
    let tokens_max = length(&mut body, kind, &prompts, decoder)?;
    let tokens_min = body.count("min_tokens", 0, u64::from(u32::MAX))?.unwrap_or(0) as usize;
    if tokens_min > tokens_max {
        let reason = format!("is {tokens_min}, and the answer has {tokens_max} tokens at most");
        return Err(Refusal::field("min_tokens", reason));
    }
    let stream = body.flag("stream")?;
    let include_usage = include_usage(&mut body, stream)?;
    let (stops, stop) = ends(&mut body, decoder)?;
    let sampling = sampling(&mut body, kind, decoder, seed)?;
    let answers = body.count("n", 1, ANSWERS_MAX)?.unwrap_or(1);
    let all = prompts.len() * answers as usize;
    if all > ANSWERS_ALL_MAX {
        let reason = format!("makes {all} answers of all prompts; {ANSWERS_ALL_MAX} are made at most");
        return Err(Refusal::field("n", reason));
    }
    let priority = priority(&mut body)?;
    // Whom the server knows it to be is not said in the body.
    let client = Client { origin: String::new(), name: body.text("user")?.unwrap_or_default() };
    unsupported(&mut body)?;
    let logprobs = sampling.logprobs.is_some();
    let request = |prompt: &Vec<u32>, answer: u64| Request {
        prompt: prompt.clone(),
        tokens_max,
        tokens_min,
        stop: stop.clone(),
        sampling: Sampling { seed: sampling.seed.wrapping_add(answer), ..sampling.clone() },
        client: client.clone(),
        priority,
    };
    let numbers = (0..prompts.len()).flat_map(|number| (0..answers).map(move |answer| (number, answer)));
    Ok(Completion {
        requests: numbers.map(|(number, answer)| (number, request(&prompts[number], answer))).collect(),
        prompts: prompts.iter().map(Vec::len).collect(),
        stops,
        tokens_min,
        stream,
        include_usage,
        logprobs,
        ignored: body.rest(),
    })
}

/// How urgent a request is: in vLLM the lower is first, in the engine the higher.
fn priority(body: &mut Body) -> Result<i32, Refusal> {
    Ok(body.whole("priority", &(-1e6..=1e6))?.map_or(0, |priority| -priority as i32))
}

fn too_long(field: &str, has: &str, context: usize) -> Refusal {
    let reason = format!("{has}, and prompt and answer may have {context} together");
    Refusal { code: Some("context_length_exceeded"), ..Refusal::field(field, reason) }
}

/// The tokens of a text; one that is far too long is refused before all of it was looked at.
pub(crate) fn encode(decoder: &Decoder, field: &str, text: &str, begin: bool) -> Result<Vec<u32>, Refusal> {
    let (tokenizer, context) = (decoder.tokenizer(), decoder.config().context);
    let encode =
        |text: &str, begin| tokenizer.encode(text, begin).map_err(|error| Refusal::field(field, error.to_string()));
    let (mut rest, mut tokens) = (text, 0);
    while rest.len() > PIECE_BYTES {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        tokens += encode(piece, false)?.len().saturating_sub(PIECE_TOKENS_MORE);
        if tokens > context {
            return Err(too_long(field, &format!("has more than {tokens} tokens"), context));
        }
        rest = after;
    }
    encode(text, begin)
}

/// Most tokens of an answer.
fn length(body: &mut Body, kind: Kind, prompts: &[Vec<u32>], decoder: &Decoder) -> Result<usize, Refusal> {
    let context = decoder.config().context;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or_default();
    let prompt_field = if kind == Kind::Chat { "messages" } else { "prompt" };
    if longest >= context {
        return Err(too_long(prompt_field, &format!("has {longest} tokens"), context));
    }
    let room = context - longest;
    let most = body.count("max_completion_tokens", 1, u64::from(u32::MAX))?;
    let most = most.or(body.count("max_tokens", 1, u64::from(u32::MAX))?).map(|most| most as usize);
    let most = most.or(decoder.defaults().tokens_max);
    Ok(most.unwrap_or(if kind == Kind::Chat { room } else { TOKENS_DEFAULT }).min(room))
}

/// The texts and the tokens that end an answer.
fn ends(body: &mut Body, decoder: &Decoder) -> Result<(Vec<String>, Vec<u32>), Refusal> {
    let stops = stops(body)?;
    let mut stop = decoder.stop().to_vec();
    if body.flag("ignore_eos")? {
        stop.clear();
    }
    stop.extend(body.ids("stop_token_ids", decoder.config().vocabulary)?.unwrap_or_default());
    Ok((stops, stop))
}

/// How tokens are chosen; `seed` is where draws begin when the request does not say.
fn sampling(body: &mut Body, kind: Kind, decoder: &Decoder, seed: u64) -> Result<Sampling, Refusal> {
    let logprobs = match kind {
        Kind::Chat => {
            let wanted = body.flag("logprobs")?;
            let top = body.count("top_logprobs", 0, 20)?;
            if top.is_some() && !wanted {
                return Err(Refusal::field("top_logprobs", "wants logprobs to be true"));
            }
            wanted.then(|| top.unwrap_or(0) as usize)
        }
        Kind::Text | Kind::Generate => body.count("logprobs", 0, 20)?.map(|top| top as usize),
    };
    let usual = decoder.defaults().sampling();
    let mut number = |field, range, usual| Ok(body.number(field, range)?.map_or(usual, |number| number as f32));
    Ok(Sampling {
        temperature: number("temperature", &Sampling::TEMPERATURE, usual.temperature)?,
        top_p: number("top_p", &Sampling::SHARE, usual.top_p)?,
        min_p: number("min_p", &Sampling::SHARE, usual.min_p)?,
        repetition_penalty: number("repetition_penalty", &Sampling::REPETITION_PENALTY, usual.repetition_penalty)?,
        presence_penalty: number("presence_penalty", &PENALTY, usual.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", &PENALTY, usual.frequency_penalty)?,
        top_k: body.whole("top_k", &Sampling::TOP_K)?.map_or(usual.top_k, |count| count.max(0.0) as usize),
        logit_bias: biases(body, decoder.config().vocabulary)?,
        seed: match body.take("seed") {
            None => seed,
            Some(value) => value
                .as_i64()
                .map(i64::cast_unsigned)
                .or(value.as_u64())
                .ok_or_else(|| Refusal::field("seed", format!("must be a whole number, is {value}")))?,
        },
        logprobs,
    })
}

/// Fields of OpenAI, vLLM and llama.cpp whose promise would be broken; empty, they say what happens anyway. Samplers of
/// llama.cpp that are not here promise nothing, and are left out of account as what is not known.
const UNSUPPORTED: [&str; 22] = [
    "allowed_token_ids",
    "bad_words",
    "chat_template",
    "continue_final_message",
    "documents",
    "echo",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "json_schema",
    "prompt_logprobs",
    "return_token_ids",
    "structured_outputs",
    "suffix",
    "tools",
    "truncate_prompt_tokens",
    "use_beam_search",
    "web_search_options",
];

/// Refuses what would change the answer.
pub(crate) fn unsupported(body: &mut Body) -> Result<(), Refusal> {
    for field in UNSUPPORTED {
        body.refuse(field, |value| {
            [json!(false), json!(0), json!(0.0), json!(""), json!([]), json!({})].contains(value)
        })?;
    }
    body.refuse("best_of", |value| value.as_f64() == Some(1.0))?;
    for field in ["add_generation_prompt", "skip_special_tokens"] {
        body.refuse(field, |value| *value == true)?;
    }
    body.refuse("tool_choice", |value| *value == "none" || *value == "auto")?;
    body.refuse("response_format", |value| value["type"] == "text")
}

/// Whether a stream ends with the counts of tokens.
fn include_usage(body: &mut Body, stream: bool) -> Result<bool, Refusal> {
    let mut options = match body.take("stream_options") {
        None => return Ok(false),
        Some(Value::Object(options)) if stream => Body::new(options),
        Some(Value::Object(_)) => return Err(Refusal::field("stream_options", "wants stream to be true")),
        Some(other) => return Err(Refusal::field("stream_options", format!("must be an object, is {other}"))),
    };
    let within = |refusal: Refusal| Refusal::field("stream_options.include_usage", refusal.reason);
    let include = options.flag("include_usage").map_err(within)?;
    // What else there is is left out of account like any other field that is not known.
    options.rest().into_iter().for_each(|field| body.ignore(format!("stream_options.{field}")));
    Ok(include)
}

/// The tokens of a talk.
pub(crate) fn talk(body: &mut Body, to: &Talk) -> Result<Vec<u32>, Refusal> {
    let list = match body.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(_) => return Err(Refusal::field("messages", "must be an array of at least one message")),
        None => return Err(Refusal::field("messages", "is missing")),
    };
    let (messages, ignored) = read_messages(&list)?;
    // Told like any other field that is not known.
    ignored.into_iter().for_each(|field| body.ignore(field));
    let templates = to.templates.as_ref().ok_or_else(|| {
        Refusal::field("messages", "this model has no chat template; /v1/completions takes a prompt as it is")
    })?;
    let variables = variables(body)?;
    let text = templates.render(&messages, &variables).map_err(|error| match error {
        TemplateError::Template(_) => Refusal::field("messages", error.to_string()),
        TemplateError::Process(_) => Refusal::plain(503, error.to_string()),
    })?;
    // The template writes the token that begins a text, where there is one.
    encode(&to.decoder, "messages", &text, false)
}

/// What the template is told beside the talk.
fn variables(body: &mut Body) -> Result<Map<String, Value>, Refusal> {
    let field = "chat_template_kwargs";
    let all = match body.take(field) {
        None => return Ok(Map::new()),
        Some(Value::Object(all)) => all,
        Some(other) => return Err(Refusal::field(field, format!("must be an object, is {other}"))),
    };
    let is_said = |name: &&str| all.get(*name).is_some_and(|value| *name != "add_generation_prompt" || *value != true);
    match ChatTemplate::OWN.iter().find(|name| is_said(name)) {
        Some(name) => Err(Refusal::field(format!("{field}.{name}"), "is set by the server")),
        None => Ok(all),
    }
}

/// The messages of a talk, and their fields that are left out of account.
fn read_messages(list: &[Value]) -> Result<(Vec<Message>, Vec<String>), Refusal> {
    let messages = list.iter().enumerate().map(|(index, message)| read_message(index, message));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let is_told = |value: &Value| !(value.is_null() || *value == json!([]));
    let mut ignored = BTreeSet::new();
    let mut leave = |within: &str, known: &[&str], value: &Value| {
        let fields = value.as_object().into_iter().flatten();
        let fields = fields.filter(|(field, value)| !known.contains(&field.as_str()) && is_told(value));
        ignored.extend(fields.map(|(field, _)| format!("{within}.{field}")));
    };
    for message in list {
        leave("messages", &["role", "content"], message);
        let parts = message["content"].as_array().into_iter().flatten();
        parts.for_each(|part| leave("messages.content", &["type", "text"], part));
    }
    Ok((messages, ignored.into_iter().collect()))
}

fn read_message(index: usize, message: &Value) -> Result<Message, Refusal> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let role = message["role"].as_str().ok_or_else(|| Refusal::field(at("role"), "must be a string"))?.to_owned();
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let part = |(part_index, part): (usize, &Value)| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                _ => {
                    Err(Refusal::field(at(&format!("content[{part_index}]")), "only parts of type text are supported"))
                }
            };
            parts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.concat()
        }
        other => return Err(Refusal::field(at("content"), format!("must be a string or a list of parts, is {other}"))),
    };
    // What a model asked of tools is a part of the talk, and cannot be told to it.
    for field in ["tool_calls", "function_call"] {
        if message.get(field).is_some_and(|calls| !calls.is_null() && *calls != json!([])) {
            return Err(Refusal::field(at(field), "is not supported"));
        }
    }
    Ok(Message { role, content })
}

/// The tokens of each prompt.
fn texts(body: &mut Body, decoder: &Decoder) -> Result<Vec<Vec<u32>>, Refusal> {
    let vocabulary = decoder.config().vocabulary;
    let prompt = body.take("prompt").ok_or_else(|| Refusal::field("prompt", "is missing"))?;
    let text = |field: &str, text: &str| {
        let tokens = encode(decoder, field, text, true)?;
        if tokens.is_empty() { Err(Refusal::field(field, "is empty")) } else { Ok(tokens) }
    };
    let tokens = |field: &str, list: &[Value]| {
        if list.is_empty() { Err(Refusal::field(field, "is empty")) } else { ids(field, list, vocabulary) }
    };
    match &prompt {
        Value::String(one) => Ok(vec![text("prompt", one)?]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => Ok(vec![tokens("prompt", list)?]),
        Value::Array(list) if !list.is_empty() && list.len() <= ANSWERS_MAX as usize => {
            let each = |(index, value): (usize, &Value)| {
                let field = format!("prompt[{index}]");
                match value {
                    Value::String(one) => text(&field, one),
                    Value::Array(list) => tokens(&field, list),
                    _ => Err(Refusal::field(field, "must be a text or a list of token ids")),
                }
            };
            list.iter().enumerate().map(each).collect()
        }
        _ => Err(Refusal::field(
            "prompt",
            format!("must be a text, a list of token ids, or 1 to {ANSWERS_MAX} of those"),
        )),
    }
}

fn stops(body: &mut Body) -> Result<Vec<String>, Refusal> {
    let list = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let texts: Option<Vec<String>> = list.iter().map(text).collect();
            texts.ok_or_else(|| Refusal::field("stop", "must be a text or a list of texts"))?
        }
        Some(other) => return Err(Refusal::field("stop", format!("must be a text or a list of texts, is {other}"))),
    };
    if list.len() > STOPS_MAX || list.iter().any(|text| text.is_empty() || text.len() > STOP_BYTES_MAX) {
        let reason = format!("takes up to {STOPS_MAX} texts of 1 to {STOP_BYTES_MAX} bytes");
        return Err(Refusal::field("stop", reason));
    }
    Ok(list)
}

fn biases(body: &mut Body, vocabulary: usize) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(value) = body.take("logit_bias") else { return Ok(Vec::new()) };
    let wrong = || Refusal::field("logit_bias", "must map token ids to numbers from -100 to 100");
    let map = value.as_object().ok_or_else(wrong)?;
    let entry = |(id, bias): (&String, &Value)| {
        // One token has one name.
        let token = id.parse::<u32>().ok().filter(|token| token.to_string() == *id);
        let token = token.ok_or_else(|| Refusal::field("logit_bias", format!("{id:?} is no token id")))?;
        let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0).ok_or_else(wrong)?;
        Ok((token, bias as f32))
    };
    let biases = map.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    match biases.iter().find(|(id, _)| *id as usize >= vocabulary) {
        Some((id, _)) => Err(Refusal::field("logit_bias", format!("{id} is no token: they are below {vocabulary}"))),
        None => Ok(biases),
    }
}

/// Looks for texts that end an answer in its text as it comes.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    held: String,
}

impl Stops {
    /// More text: what is certain to be part of the answer, and whether it has ended.
    pub(crate) fn push(&mut self, stops: &[String], text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // What could be the beginning of such a text waits for more.
        let waits = |from: &usize| stops.iter().any(|stop| stop.starts_with(&self.held[*from..]));
        let from = (0..self.held.len()).filter(|at| self.held.is_char_boundary(*at)).find(waits);
        let rest = self.held.split_off(from.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What waited, when no more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// What is the same in all pieces of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: i64,
    pub(crate) model: String,
    /// What the client calls its request, where it has a name for it.
    pub(crate) asked_as: Option<String>,
}

/// One of the answers, whole: its text, probabilities and how it ended.
pub(crate) type Whole = (String, Value, &'static str);

/// Counts of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) answer: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// OpenAI's word for how an answer ended.
pub(crate) fn reason(end: &End) -> &'static str {
    match end {
        End::Length => "length",
        End::Stop | End::Cancelled | End::Failed(_) => "stop",
    }
}

impl Frame {
    fn around(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The first piece of a stream, which says who speaks; only in chats.
    pub(crate) fn role(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]);
        (self.kind == Kind::Chat).then(|| self.around("chat.completion.chunk", choice))
    }

    /// A piece of a stream.
    pub(crate) fn piece(&self, index: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
        match self.kind {
            Kind::Chat => {
                let delta = if finish.is_some() && text.is_empty() { json!({}) } else { json!({"content": text}) };
                let choice = json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
                self.around("chat.completion.chunk", choice)
            }
            Kind::Text => {
                let choice = json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]);
                self.around("text_completion", choice)
            }
            Kind::Generate => self.generated(text, logprobs, finish),
        }
    }

    /// Triton's shape, with KServe's `details` where there are any.
    fn generated(&self, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
        let mut answer = json!({"model_name": self.model, "model_version": VERSION, "text_output": text});
        if let Some(id) = &self.asked_as {
            answer["id"] = json!(id);
        }
        if let Some(finish) = finish {
            answer["details"]["finish_reason"] = json!(finish);
        }
        if !logprobs.is_null() {
            answer["details"]["logprobs"] = logprobs;
        }
        answer
    }

    /// What follows the last piece of a stream.
    pub(crate) fn done(&self) -> Option<&'static [u8]> {
        (self.kind != Kind::Generate).then_some(b"data: [DONE]\n\n")
    }

    /// What a refusal is in a stream that has begun.
    pub(crate) fn error(&self, refusal: &Refusal) -> Value {
        if self.kind == Kind::Generate { refusal.v2() } else { refusal.openai() }
    }

    /// The piece of a stream that has the counts.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut piece = self.around(object, json!([]));
        piece["usage"] = usage.json();
        piece
    }

    /// A whole answer.
    pub(crate) fn whole(&self, choices: Vec<Whole>, usage: Usage) -> Value {
        let choice = |(index, (text, logprobs, finish)): (usize, Whole)| {
            if self.kind == Kind::Chat {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
            } else {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
            Kind::Generate => {
                let (text, logprobs, finish) = choices.into_iter().next().unwrap_or_default();
                return self.generated(&text, logprobs, Some(finish));
            }
        };
        let mut answer = self.around(object, choices.into_iter().enumerate().map(choice).collect());
        answer["usage"] = usage.json();
        answer
    }
}

/// Probabilities of chosen tokens in the shape of the endpoint.
pub(crate) fn logprobs(kind: Kind, tokenizer: &TextTokenizer, choices: &[Choice]) -> Value {
    let text = |id: u32| tokenizer.decode(&[id]).unwrap_or_default();
    match kind {
        Kind::Chat => {
            let entry = |id: u32, logprob: f32| {
                let token = text(id);
                json!({"bytes": token.as_bytes(), "token": token, "logprob": logprob})
            };
            let content = choices.iter().map(|choice| {
                let mut told = entry(choice.token, choice.logprob.unwrap_or_default());
                told["top_logprobs"] = choice.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
                told
            });
            json!({"content": content.collect::<Vec<_>>()})
        }
        Kind::Text | Kind::Generate => {
            let top = |choice: &Choice| -> Map<String, Value> {
                choice.top.iter().map(|(id, logprob)| (text(*id), json!(logprob))).collect()
            };
            json!({
                "tokens": choices.iter().map(|choice| text(choice.token)).collect::<Vec<_>>(),
                "token_logprobs": choices.iter().map(|choice| choice.logprob).collect::<Vec<_>>(),
                "top_logprobs": choices.iter().map(top).collect::<Vec<_>>(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_priority_is_the_more_urgent() {
        let of = |body: Value| priority(&mut Body::new(body.as_object().unwrap().clone()));
        assert_eq!(
            [json!({}), json!({"priority": -7}), json!({"priority": 7})].map(|body| of(body).unwrap()),
            [0, 7, -7]
        );
        assert!(of(json!({"priority": 1_000_001})).is_err());
    }

    #[test]
    fn texts_that_end_an_answer_are_found_across_pieces() {
        let check = |stops: &[&str], pieces: &[&str], expected: &str, ended: bool| {
            let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
            let (mut scan, mut said) = (Stops::default(), String::new());
            for piece in pieces {
                let (text, end) = scan.push(&stops, piece);
                said += &text;
                if end {
                    assert_eq!((said.as_str(), ended), (expected, true));
                    return;
                }
            }
            said += &scan.finish();
            assert_eq!((said.as_str(), ended), (expected, false));
        };
        check(&["END"], &["a", "bE", "N", "Dc"], "ab", true);
        check(&["END"], &["a", "bE", "Nx", "D"], "abENxD", false);
        check(&["\n\n", "x"], &["ä\n", "\nx"], "ä", true);
        check(&[], &["a", "b"], "ab", false);
        check(&["aab"], &["a", "a", "a", "b"], "a", true);
    }
}
