//! A value against a built-in type: types checked, unknown fields told and dropped, the rest as Go would write it.
//!
//! [`conform`] does what decoding into a Go struct does: the first value of a wrong type is an error in the words of
//! `sigs.k8s.io/json`; keys are matched by case; `null` means absence; times, quantities and bytes come out in
//! canonical form. [`settle`] then does what writing the struct does: zero values appear or vanish as the
//! field's [`Presence`] has it. What is not here: required fields and limits, which upstream checks later.
//! Known differences: error paths lack the names of embedded Go structs, and named string types are `string`, as the
//! schema knows neither; of several errors the first by field name is told; a quantity given as a number with an
//! exponent loses that spelling.

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use crate::decode::{DecodeError, FieldProblem, note};
use crate::facts::{Facts, Presence};
use crate::field::Path;
use crate::go_text::json_kind;
use crate::quantity::Quantity;
use crate::shape::{ObjectType, Schema, Shape, TypeId};

/// Makes `value` a well-formed object of the type, or says what cannot be decoded. Tells the fields it dropped.
pub fn conform(schema: &Schema, id: TypeId, value: &mut Value) -> Result<Vec<FieldProblem>, DecodeError> {
    let shape = Shape::Object(id);
    let mut walker = Walker { schema, path: Path::root(), fields: Vec::new(), problems: Vec::new() };
    walker.shape(&shape, value)?;
    Ok(walker.problems)
}

/// The unknown fields of `value`, which stays as it is.
pub fn check_fields(schema: &Schema, id: TypeId, value: &Value) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    unknown(schema, &Shape::Object(id), value, &mut Path::root(), &mut problems);
    problems
}

fn unknown(schema: &Schema, shape: &Shape, value: &Value, path: &mut Path, problems: &mut Vec<FieldProblem>) {
    let mark = path.mark();
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            let object = schema.object(*id);
            for (key, value) in map {
                path.push_child(key);
                match object.field(key) {
                    Some(field) => unknown(schema, &field.shape, value, path, problems),
                    None if object.preserve_unknown => {}
                    None => note(problems, FieldProblem::Unknown(path.as_str().to_owned())),
                }
                path.reset(mark);
            }
        }
        (Shape::Map(map), Value::Object(values)) => {
            for (key, value) in values {
                path.push_child(key);
                unknown(schema, &map.value, value, path, problems);
                path.reset(mark);
            }
        }
        (Shape::List(list), Value::Array(items)) => {
            for (index, value) in items.iter().enumerate() {
                path.push_index(index);
                unknown(schema, &list.item, value, path, problems);
                path.reset(mark);
            }
        }
        _ => {}
    }
}

struct Walker<'a> {
    schema: &'a Schema,
    path: Path,
    /// The struct of each field on the way, and the field's name.
    fields: Vec<(&'a ObjectType, &'a str)>,
    problems: Vec<FieldProblem>,
}

impl<'a> Walker<'a> {
    fn shape(&mut self, shape: &'a Shape, value: &mut Value) -> Result<(), DecodeError> {
        match shape {
            Shape::Object(id) => self.object(self.schema.object(*id), shape, value),
            Shape::List(list) => {
                let Value::Array(items) = value else { return Err(self.mismatch(shape, value)) };
                let mark = self.path.mark();
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push_index(index);
                    self.item(&list.item, item)?;
                    self.path.reset(mark);
                }
                Ok(())
            }
            Shape::Map(map) => {
                let Value::Object(values) = value else { return Err(self.mismatch(shape, value)) };
                let mark = self.path.mark();
                for (key, value) in values.iter_mut() {
                    self.path.push_child(key);
                    self.item(&map.value, value)?;
                    self.path.reset(mark);
                }
                Ok(())
            }
            _ => self.scalar(shape, value),
        }
    }

    /// `null` in a list or map is the zero value of the item.
    fn item(&mut self, shape: &'a Shape, value: &mut Value) -> Result<(), DecodeError> {
        if value.is_null() {
            *value = zero(shape);
            return Ok(());
        }
        self.shape(shape, value)
    }

    fn object(&mut self, object: &'a ObjectType, shape: &Shape, value: &mut Value) -> Result<(), DecodeError> {
        let Value::Object(map) = value else { return Err(self.mismatch(shape, value)) };
        let mark = self.path.mark();
        let mut dropped = Vec::new();
        for (key, value) in map.iter_mut() {
            let Some(field) = object.field(key) else {
                if !object.preserve_unknown {
                    dropped.push(key.clone());
                }
                continue;
            };
            if value.is_null() && !field.nullable {
                dropped.push(key.clone());
                continue;
            }
            self.path.push_child(key);
            self.fields.push((object, &field.name));
            self.shape(&field.shape, value)?;
            self.fields.pop();
            self.path.reset(mark);
        }
        for key in dropped {
            if object.field(&key).is_none() {
                self.path.push_child(&key);
                note(&mut self.problems, FieldProblem::Unknown(self.path.as_str().to_owned()));
                self.path.reset(mark);
            }
            map.remove(&key);
        }
        Ok(())
    }

    fn scalar(&mut self, shape: &Shape, value: &mut Value) -> Result<(), DecodeError> {
        match (shape, &*value) {
            (Shape::Any, _) | (Shape::Bool, Value::Bool(_)) | (Shape::String, Value::String(_)) => Ok(()),
            (Shape::Double, Value::Number(_)) => Ok(()),
            (Shape::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (Shape::Int32, Value::Number(number)) if fits_i32(number) => Ok(()),
            (Shape::Bytes, Value::String(text)) => {
                *value = canonical_bytes(text)?.into();
                Ok(())
            }
            (Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::IntOrString, Value::Number(number)) if fits_i32(number) => Ok(()),
            (Shape::IntOrString, _) => Err(self.mismatch_of("int32", value)),
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                *value = canonical_time(text, *shape == Shape::MicroTime)?.into();
                Ok(())
            }
            (Shape::Duration, Value::String(_)) => Ok(()),
            (Shape::Bytes, Value::Array(items))
                if items.iter().all(|item| item.as_u64().is_some_and(|byte| byte < 256)) =>
            {
                // Go reads bytes from a list of numbers too.
                let bytes: Vec<u8> = items.iter().filter_map(Value::as_u64).map(|byte| byte as u8).collect();
                *value = STANDARD.encode(bytes).into();
                Ok(())
            }
            (Shape::Quantity, Value::String(text)) => self.quantity(&text.clone(), value),
            (Shape::Quantity, Value::Number(number)) => self.quantity(&number.to_string(), value),
            (Shape::Quantity, _) => self.quantity(&value.to_string(), value),
            _ => Err(self.mismatch(shape, value)),
        }
    }

    fn quantity(&self, text: &str, value: &mut Value) -> Result<(), DecodeError> {
        let quantity = Quantity::parse(text).map_err(|error| DecodeError(error.to_string()))?;
        *value = quantity.to_string().into();
        Ok(())
    }

    fn mismatch(&self, shape: &Shape, value: &Value) -> DecodeError {
        self.mismatch_of(&go_type(self.schema, shape), value)
    }

    /// `json: cannot unmarshal string into Go struct field PodSpec.spec.x of type int32`
    fn mismatch_of(&self, go_type: &str, value: &Value) -> DecodeError {
        let found = found(value, go_type.starts_with("int"));
        let Some((object, _)) = self.fields.last() else {
            return DecodeError(format!("json: cannot unmarshal {found} into Go value of type {go_type}"));
        };
        let path: Vec<&str> = self.fields.iter().map(|(_, name)| *name).collect();
        let owner = short_name(&object.name);
        let path = path.join(".");
        DecodeError(format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go_type}"))
    }
}

/// A number that does not fit a number is shown, any other value only by its kind.
fn found(value: &Value, wants_integer: bool) -> String {
    match value {
        Value::Number(number) if wants_integer => format!("number {number}"),
        value => json_kind(value).to_owned(),
    }
}

fn fits_i32(number: &Number) -> bool {
    number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// The last part of a definition name: `PodSpec`.
fn short_name(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// What Go calls the type.
fn go_type(schema: &Schema, shape: &Shape) -> String {
    match shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Object(id) => {
            let name = &schema.object(*id).name;
            let parts: Vec<&str> = name.rsplitn(3, '.').collect();
            if parts.len() < 2 { name.to_string() } else { format!("{}.{}", parts[1], parts[0]) }
        }
        Shape::List(list) => format!("[]{}", go_type(schema, &list.item)),
        Shape::Map(map) => format!("map[string]{}", go_type(schema, &map.value)),
        Shape::String
        | Shape::Time
        | Shape::MicroTime
        | Shape::Duration
        | Shape::Quantity
        | Shape::IntOrString
        | Shape::Any => "string".to_owned(),
    }
}

/// Go's zero value as its JSON.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => Value::from(0),
        Shape::String => Value::from(""),
        Shape::Duration => Value::from("0s"),
        Shape::Quantity => Value::from("0"),
        Shape::Object(_) => Value::Object(Map::new()),
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Any | Shape::List(_) | Shape::Map(_) => Value::Null,
    }
}

/// Go reads standard base64 over line ends, and writes it without.
fn canonical_bytes(text: &str) -> Result<String, DecodeError> {
    let plain: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(&plain) {
        Ok(_) => Ok(plain),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(DecodeError(format!("illegal base64 data at input byte {at}")))
        }
        Err(_) => {
            let at = if plain.ends_with('=') { plain.len() } else { plain.len() / 4 * 4 };
            Err(DecodeError(format!("illegal base64 data at input byte {at}")))
        }
    }
}

fn canonical_time(text: &str, micro: bool) -> Result<String, DecodeError> {
    let wanted = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let shaped = text.len() >= 20 && text.as_bytes()[10] == b'T' && (!micro || text.as_bytes()[19] == b'.');
    let time: Option<Timestamp> = shaped.then(|| text.parse().ok()).flatten();
    let time = time.ok_or_else(|| {
        // Go names the first part that it cannot read; we tell two of them apart.
        let (rest, part) = match text.get(19..) {
            Some(rest) if micro && text.parse::<Timestamp>().is_ok() => (rest, ".000000"),
            _ => (text, "2006"),
        };
        let (text, rest) = (crate::go_text::quote(text), crate::go_text::quote(rest));
        DecodeError(format!("parsing time {text} as \"{wanted}\": cannot parse {rest} as \"{part}\""))
    })?;
    let seconds = time.strftime("%Y-%m-%dT%H:%M:%S");
    let micros = time.subsec_nanosecond() / 1000;
    Ok(if micro { format!("{seconds}.{micros:06}Z") } else { format!("{seconds}Z") })
}

/// Writes and drops zero values as Go's encoder does: `status: {}` appears, an empty `labels` vanishes.
pub fn settle(facts: &Facts, id: TypeId, value: &mut Value) {
    settle_shape(facts, &Shape::Object(id), value);
}

fn settle_shape(facts: &Facts, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => settle_object(facts, *id, map),
        (Shape::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|item| settle_shape(facts, &list.item, item));
        }
        (Shape::Map(of), Value::Object(map)) => {
            map.values_mut().for_each(|value| settle_shape(facts, &of.value, value));
        }
        _ => {}
    }
}

fn settle_object(facts: &Facts, id: TypeId, map: &mut Map<String, Value>) {
    let (object, details) = facts.described(id);
    for (field, detail) in object.fields.iter().zip(&details.fields) {
        match (map.get_mut(&*field.name), detail.presence) {
            (Some(value), presence) => {
                settle_shape(facts, &field.shape, value);
                if presence == Presence::OmitZero && is_zero(&field.shape, value) {
                    map.remove(&*field.name);
                }
            }
            (None, Presence::Always) => {
                let mut value = zero(&field.shape);
                settle_shape(facts, &field.shape, &mut value);
                map.insert(field.name.to_string(), value);
            }
            (None, Presence::OmitZero | Presence::Pointer) => {}
        }
    }
}

fn is_zero(shape: &Shape, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && !matches!(shape, Shape::Any),
    }
}
