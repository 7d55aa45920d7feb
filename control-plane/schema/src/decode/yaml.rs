//! The YAML reader: one document to the value that `sigs.k8s.io/yaml` would make of it.
//!
//! Plain scalars mean what they mean to go-yaml 2 (YAML 1.1): `yes`, `no`, `on`, `off`, `y` and `n` are booleans,
//! `0644` is octal, `1_000` a thousand, `0x` and `0b` numbers, and quoted text is text. Keys become text. Merge keys
//! (`<<`) are honoured. Aliases may add at most [`NODES_MAX`] nodes in all, which ends "billion laughs" early.
//! One document only: splitting a stream is the caller's.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::{Map, Number, Value};

use super::{DEPTH_MAX, DecodeError, Decoded, FieldProblem, note};

/// How many nodes aliases may stand for in one document. Enough for any manifest; a value of that size is small.
pub(super) const NODES_MAX: usize = 100_000;

/// Reads one YAML document; nothing at all is `null`.
pub fn yaml(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| DecodeError(format!("yaml: invalid UTF-8 after byte {}", error.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), aliased: 0, problems: Vec::new() };
    let mut value = Value::Null;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::Nothing => {}
            Event::DocumentStart(_) => {
                let (event, line) = reader.next()?;
                value = reader.node(event, line, 0)?.value;
                break;
            }
            _ => return Err(failed(line, "did not find expected <document start>")),
        }
    }
    Ok(Decoded { value, problems: reader.problems })
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    problems: Vec<FieldProblem>,
}

/// A value, what it is as a key, and how many nodes it is made of.
#[derive(Clone)]
struct Node {
    value: Value,
    nodes: usize,
    merge_key: bool,
}

fn failed(line: usize, what: &str) -> DecodeError {
    DecodeError(format!("yaml: line {line}: {what}"))
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), DecodeError> {
        let told = |error: ScanError| failed(error.marker().line(), error.info());
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(told(error)),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, DecodeError> {
        if depth > DEPTH_MAX {
            return Err(failed(line, &format!("exceeded max depth: mappings and sequences may nest {DEPTH_MAX} deep")));
        }
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref(), line)?),
            Event::SequenceStart(anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(id) => return self.alias(id, line),
            _ => return Err(failed(line, "did not find expected node content")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// An anchor is known only once its node is complete, so a node cannot contain itself.
    fn alias(&mut self, id: usize, line: usize) -> Result<Node, DecodeError> {
        let node = self.anchors.get(&id).ok_or_else(|| failed(line, "anchor value contains itself"))?;
        self.aliased += node.nodes;
        if self.aliased > NODES_MAX {
            return Err(DecodeError("yaml: document contains excessive aliasing".to_owned()));
        }
        Ok(node.clone())
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, DecodeError> {
        let (mut items, mut nodes) = (Vec::new(), 1);
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Node { value: Value::Array(items), nodes, merge_key: false });
            }
            let node = self.node(event, line, depth + 1)?;
            nodes += node.nodes;
            items.push(node.value);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Node, DecodeError> {
        let (mut map, mut merged, mut nodes) = (Map::new(), Map::new(), 1);
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, line, depth + 1)?;
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            nodes += key.nodes + value.nodes;
            if key.merge_key {
                merge(&mut merged, value.value, line)?;
                continue;
            }
            let key = key_text(&key.value, line)?;
            if map.insert(key.clone(), value.value).is_some() {
                note(&mut self.problems, FieldProblem::DuplicateInYaml { line, key });
            }
        }
        for (key, value) in merged {
            map.entry(key).or_insert(value);
        }
        Ok(Node { value: Value::Object(map), nodes, merge_key: false })
    }
}

/// `<<`: a mapping, or a sequence of mappings of which earlier ones win.
fn merge(into: &mut Map<String, Value>, value: Value, line: usize) -> Result<(), DecodeError> {
    let wanted = || failed(line, "map merge requires map or sequence of maps as the value");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                into.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(items) => items.into_iter().try_for_each(|item| match item {
            Value::Object(_) => merge(into, item, line),
            _ => Err(wanted()),
        }),
        _ => Err(wanted()),
    }
}

fn key_text(key: &Value, line: usize) -> Result<String, DecodeError> {
    match key {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(key.to_string()),
        other => Err(failed(line, &format!("unsupported map key of type {}", crate::go_text::json_kind(other)))),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Node, DecodeError> {
    let own = |value| Ok(Node { value, nodes: 1, merge_key: false });
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain if text == "<<" => Ok(Node { value: text.into(), nodes: 1, merge_key: true }),
            ScalarStyle::Plain => own(plain(text, line)?),
            _ => own(Value::String(text.to_owned())),
        };
    };
    let meant = if tag.is_yaml_core_schema() || tag.handle == "!!" { tag.suffix.as_str() } else { "" };
    let value = if meant == "str" { text.into() } else { plain(text, line)? };
    let fits = match meant {
        "str" | "binary" | "timestamp" => return own(text.into()),
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        "bool" => value.is_boolean(),
        "null" => value.is_null(),
        _ => return own(text.into()),
    };
    match value.as_f64() {
        Some(float) if fits && meant == "float" => own(Number::from_f64(float).map_or(Value::Null, Value::Number)),
        _ if fits => own(value),
        _ => Err(failed(line, &format!("cannot decode `{text}` as a !!{meant}"))),
    }
}

/// What an unquoted scalar means to go-yaml 2.
fn plain(text: &str, line: usize) -> Result<Value, DecodeError> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Err(failed(line, &format!("JSON has no number `{text}`"))),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => {
            number(text).unwrap_or_else(|| text.into())
        }
        _ => text.into(),
    })
}

fn number(text: &str) -> Option<Value> {
    let float = |text: &str| text.parse().ok().and_then(Number::from_f64).map(Value::Number);
    if text.starts_with('.') {
        return is_float(text).then(|| float(text)).flatten();
    }
    let plain = text.replace('_', "");
    if let Some(integer) = integer(&plain) {
        return Some(integer);
    }
    is_float(&plain).then(|| float(&plain)).flatten()
}

/// `strconv.ParseInt` with base 0: `0x`, `0o`, `0b`, and a leading zero for octal.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some(_) if digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    match (negative, i64::try_from(size)) {
        (false, Ok(number)) => Some(number.into()),
        (false, Err(_)) => Some(size.into()),
        (true, Ok(number)) => Some((-number).into()),
        (true, Err(_)) => (size == 1 << 63).then(|| i64::MIN.into()),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, mut rest) = text.split_at(digits(text));
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        rest = &after[fraction..];
    }
    if whole.is_empty() && fraction == 0 {
        return false;
    }
    match rest.strip_prefix(['e', 'E']) {
        Some(exponent) => {
            let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        None => rest.is_empty(),
    }
}
