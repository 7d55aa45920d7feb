//! From JSON values to messages.
//!
//! Fields are written in the order of their numbers. `null` and absent are the same; zero values are written where
//! JSON has them, so a pointer's zero survives.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::facts::{Facts, FieldFacts, Path, Untyped};
use crate::protobuf::decode::JSON_SCHEMA;
use crate::protobuf::wire::{write_bytes, write_double, write_number};
use crate::protobuf::{DEPTH_MAX, Fault, Located};
use crate::shape::{Shape, TypeId};

/// Encodes one object.
pub(super) struct Encoder<'f> {
    facts: &'f Facts,
}

impl<'f> Encoder<'f> {
    pub(super) fn new(facts: &'f Facts) -> Encoder<'f> {
        Encoder { facts }
    }

    /// The message of an object.
    pub(super) fn message(&self, id: TypeId, object: &Value) -> Result<Vec<u8>, Located> {
        self.object(id, object, 1)
    }

    fn object(&self, id: TypeId, value: &Value, depth: usize) -> Result<Vec<u8>, Located> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep.into());
        }
        let members = match value {
            Value::Object(members) => members,
            // Go reads `null` into a struct as its zero value.
            Value::Null => return Ok(Vec::new()),
            _ => return Err(Fault::Shape { expected: "an object" }.into()),
        };
        let (object, details) = self.facts.described(id);
        if let Some(unknown) = members.keys().find(|name| object.field(name).is_none()) {
            return Err(Located::from(Fault::UnknownField).under(unknown));
        }
        let mut open = Open::default();
        for (path, at) in details.by_path() {
            let field = &object.fields[at];
            let Some(value) = members.get(&*field.name).filter(|value| !value.is_null()) else { continue };
            let (out, number) = open.at(path);
            self.field(out, number, &field.shape, &details.fields[at], value, depth)
                .map_err(|located| located.under(&field.name))?;
        }
        Ok(open.finish())
    }

    fn field(
        &self,
        out: &mut Vec<u8>,
        number: u32,
        shape: &Shape,
        facts: &FieldFacts,
        value: &Value,
        depth: usize,
    ) -> Result<(), Located> {
        match (shape, value) {
            (Shape::List(list), Value::Array(items)) if !facts.wrapped => {
                for (at, item) in items.iter().enumerate() {
                    self.value(out, number, &list.item, facts, item, depth + 1).map_err(|located| located.item(at))?;
                }
                Ok(())
            }
            (Shape::Map(map), Value::Object(members)) => {
                for (key, value) in members {
                    let mut entry = Vec::new();
                    write_bytes(&mut entry, 1, key.as_bytes());
                    if !value.is_null() {
                        self.value(&mut entry, 2, &map.value, facts, value, depth + 1)
                            .map_err(|located| located.under(key))?;
                    }
                    write_bytes(out, number, &entry);
                }
                Ok(())
            }
            (Shape::Map(_), _) => Err(Fault::Shape { expected: "an object" }.into()),
            _ => self.value(out, number, shape, facts, value, depth),
        }
    }

    fn value(
        &self,
        out: &mut Vec<u8>,
        number: u32,
        shape: &Shape,
        facts: &FieldFacts,
        value: &Value,
        depth: usize,
    ) -> Result<(), Located> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep.into());
        }
        let message = match shape {
            Shape::Bool => {
                let flag = value.as_bool().ok_or(Fault::Shape { expected: "true or false" })?;
                write_number(out, number, u64::from(flag));
                return Ok(());
            }
            Shape::Int32 | Shape::Int64 => {
                let integer = integer(value, matches!(shape, Shape::Int32))?;
                write_number(out, number, integer as u64);
                return Ok(());
            }
            Shape::Double => {
                write_double(out, number, value.as_f64().ok_or(Fault::Shape { expected: "a number" })?);
                return Ok(());
            }
            Shape::String => text(value)?.as_bytes().to_vec(),
            Shape::Bytes => bytes(text(value)?)?,
            Shape::Time | Shape::MicroTime => time(text(value)?, matches!(shape, Shape::MicroTime))?,
            Shape::Duration => duration(text(value)?)?,
            Shape::Quantity => quantity(value)?,
            Shape::IntOrString => int_or_string(value)?,
            Shape::Any => self.untyped(facts.any, value, depth)?,
            Shape::Object(id) => self.object(*id, value, depth + 1)?,
            Shape::List(list) => {
                let items = value.as_array().ok_or(Fault::Shape { expected: "a list" })?;
                if !facts.wrapped {
                    return Err(Fault::NoNumber.into());
                }
                let mut message = Vec::new();
                for (at, item) in items.iter().enumerate() {
                    self.value(&mut message, 1, &list.item, facts, item, depth + 1)
                        .map_err(|located| located.item(at))?;
                }
                message
            }
            Shape::Map(_) => return Err(Fault::NoNumber.into()),
        };
        write_bytes(out, number, &message);
        Ok(())
    }

    fn untyped(&self, kind: Untyped, value: &Value, depth: usize) -> Result<Vec<u8>, Located> {
        let schema = |value| {
            let id = self.facts.type_named(JSON_SCHEMA).ok_or(Fault::NoNumber)?;
            self.object(id, value, depth + 1)
        };
        let mut message = Vec::new();
        match (kind, value) {
            (Untyped::None | Untyped::Interface, _) => return Err(Fault::NoNumber.into()),
            (Untyped::Raw | Untyped::FieldsV1 | Untyped::Json, _) => {
                write_bytes(&mut message, 1, value.to_string().as_bytes());
            }
            (Untyped::SchemaOrBool, Value::Bool(allows)) => write_number(&mut message, 1, u64::from(*allows)),
            (Untyped::SchemaOrBool, Value::Object(_)) => {
                write_number(&mut message, 1, 1);
                write_bytes(&mut message, 2, &schema(value)?);
            }
            (Untyped::SchemaOrArray | Untyped::SchemaOrStrings, Value::Object(_)) => {
                write_bytes(&mut message, 1, &schema(value)?);
            }
            (Untyped::SchemaOrArray, Value::Array(items)) => {
                for (at, item) in items.iter().enumerate() {
                    write_bytes(&mut message, 2, &schema(item).map_err(|located| located.item(at))?);
                }
            }
            (Untyped::SchemaOrStrings, Value::Array(items)) => {
                for item in items {
                    write_bytes(&mut message, 2, text(item)?.as_bytes());
                }
            }
            (Untyped::SchemaOrBool, _) => return Err(Fault::Shape { expected: "an object, true or false" }.into()),
            (Untyped::SchemaOrArray, _) => return Err(Fault::Shape { expected: "an object or a list" }.into()),
            (Untyped::SchemaOrStrings, _) => return Err(Fault::Shape { expected: "an object or names" }.into()),
        }
        Ok(message)
    }
}

/// The messages being written: the object's own, and those inlined in it, which are closed when the paths move on.
#[derive(Default)]
struct Open {
    outer: Vec<u8>,
    /// The number by which each open inlined message lies in the one before, and its bytes.
    inlined: Vec<(u16, Vec<u8>)>,
}

impl Open {
    /// The message that the field at `path` belongs to, and its number there.
    fn at(&mut self, path: Path) -> (&mut Vec<u8>, u32) {
        let depth = path.iter().take_while(|part| **part != 0).count();
        let (number, parents) = path[..depth].split_last().expect("a path has a part");
        let same = self.inlined.iter().zip(parents).take_while(|((open, _), wanted)| open == *wanted).count();
        while self.inlined.len() > same {
            self.close();
        }
        for parent in &parents[same..] {
            self.inlined.push((*parent, Vec::new()));
        }
        let out = self.inlined.last_mut().map_or(&mut self.outer, |(_, message)| message);
        (out, u32::from(*number))
    }

    fn close(&mut self) {
        if let Some((number, message)) = self.inlined.pop() {
            let into = self.inlined.last_mut().map_or(&mut self.outer, |(_, outer)| outer);
            write_bytes(into, u32::from(number), &message);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while !self.inlined.is_empty() {
            self.close();
        }
        self.outer
    }
}

fn text(value: &Value) -> Result<&str, Fault> {
    value.as_str().ok_or(Fault::Shape { expected: "text" })
}

fn integer(value: &Value, narrow: bool) -> Result<i64, Fault> {
    let whole = value.as_i64().or_else(|| {
        // 1.0 is the integer 1, as upstream's JSON reader takes it.
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9.0e15)?;
        Some(float as i64)
    });
    match whole {
        Some(integer) if !narrow || i32::try_from(integer).is_ok() => Ok(integer),
        _ if narrow => Err(Fault::Shape { expected: "an integer of 32 bits" }),
        _ => Err(Fault::Shape { expected: "an integer of 64 bits" }),
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, Fault> {
    let wrong = Fault::Shape { expected: "base64 text" };
    if text.contains(['\n', '\r']) {
        let whole: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        return STANDARD.decode(whole).map_err(|_| wrong);
    }
    STANDARD.decode(text).map_err(|_| wrong)
}

fn time(text: &str, micro: bool) -> Result<Vec<u8>, Fault> {
    let stamp: jiff::Timestamp = text.parse().map_err(|_| Fault::Shape { expected: "a time of RFC 3339" })?;
    let (mut seconds, mut nanos) = (stamp.as_second(), stamp.subsec_nanosecond());
    // jiff gives both parts one sign; protobuf counts nanoseconds forward.
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    let mut message = Vec::new();
    write_number(&mut message, 1, seconds as u64);
    let nanos = if micro { nanos / 1000 * 1000 } else { 0 };
    write_number(&mut message, 2, nanos as u64);
    Ok(message)
}

/// Go's duration text, such as `1h15m30.5s`.
fn duration(text: &str) -> Result<Vec<u8>, Fault> {
    let wrong = || Fault::Shape { expected: "a duration such as 1h15m30.5s" };
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut nanos = 0_i128;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || whole.len() > 19 || part.contains('.') {
            return Err(wrong());
        }
        nanos += unit * if whole.is_empty() { 0 } else { whole.parse::<i128>().map_err(|_| wrong())? };
        let part = &part[..part.len().min(18)];
        if !part.is_empty() {
            nanos += unit * part.parse::<i128>().map_err(|_| wrong())? / 10_i128.pow(part.len() as u32);
        }
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).map_err(|_| wrong())?;
    let mut message = Vec::new();
    write_number(&mut message, 1, nanos as u64);
    Ok(message)
}

fn quantity(value: &Value) -> Result<Vec<u8>, Fault> {
    let mut message = Vec::new();
    match value {
        Value::String(text) => write_bytes(&mut message, 1, text.as_bytes()),
        Value::Number(number) => write_bytes(&mut message, 1, number.to_string().as_bytes()),
        _ => return Err(Fault::Shape { expected: "a quantity" }),
    }
    Ok(message)
}

fn int_or_string(value: &Value) -> Result<Vec<u8>, Fault> {
    let mut message = Vec::new();
    match value {
        Value::String(text) => {
            write_number(&mut message, 1, 1);
            write_number(&mut message, 2, 0);
            write_bytes(&mut message, 3, text.as_bytes());
        }
        Value::Number(_) => {
            write_number(&mut message, 1, 0);
            write_number(&mut message, 2, integer(value, true)? as u64);
            write_bytes(&mut message, 3, b"");
        }
        _ => return Err(Fault::Shape { expected: "an integer or text" }),
    }
    Ok(message)
}
