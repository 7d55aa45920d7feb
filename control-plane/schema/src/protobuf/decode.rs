//! From messages to JSON values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map as Object, Number, Value};

use crate::facts::{AtNumber, Facts, FieldFacts, Path, Presence, Untyped, extend};
use crate::protobuf::wire::{Fields, Wire};
use crate::protobuf::{DEPTH_MAX, Envelope, Fault, Located, MAGIC, ProtobufError, kind_of};
use crate::shape::{Shape, TypeId};

/// Go's zero time, which its JSON writes as `null`.
const ZERO_TIME_SECONDS: i64 = -62_135_596_800;
/// The type behind the three `JSONSchemaPropsOr…` values.
pub(super) const JSON_SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Decodes one body.
pub(super) struct Decoder<'f> {
    facts: &'f Facts,
    /// How many values that were not sent may still be filled in, so that a small body stays small.
    fill_left: usize,
}

impl<'f> Decoder<'f> {
    /// A decoder for a body of this length.
    pub(super) fn new(facts: &'f Facts, length: usize) -> Decoder<'f> {
        // Upstream's encoders send every field that is filled in here, so only strangers' bodies need any. A list
        // item of theirs with its name is some 20 bytes and lacks a handful of fields.
        Decoder { facts, fill_left: 4096 + length / 4 }
    }

    /// An object with its envelope.
    pub(super) fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let envelope = Envelope::read(body)?;
        let id = kind_of(self.facts, envelope.api_version, envelope.kind)?;
        let mut object = Object::new();
        self.object(id, envelope.message, depth + 1, &mut object).map_err(Located::into_error)?;
        object.insert("apiVersion".to_owned(), envelope.api_version.into());
        object.insert("kind".to_owned(), envelope.kind.into());
        Ok(Value::Object(object))
    }

    /// A message of a type.
    pub(super) fn message(&mut self, id: TypeId, message: &[u8]) -> Result<Value, Located> {
        let mut object = Object::new();
        self.object(id, message, 1, &mut object)?;
        Ok(Value::Object(object))
    }

    fn object(
        &mut self,
        id: TypeId,
        message: &[u8],
        depth: usize,
        out: &mut Object<String, Value>,
    ) -> Result<(), Located> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep.into());
        }
        self.fields(id, Path::default(), message, depth, out)?;
        self.fill(id, depth, out)
    }

    /// The fields of one message; those of an inlined message land in the same object.
    fn fields(
        &mut self,
        id: TypeId,
        prefix: Path,
        message: &[u8],
        depth: usize,
        out: &mut Object<String, Value>,
    ) -> Result<(), Located> {
        let facts = self.facts;
        let (object, details) = facts.described(id);
        let mut fields = Fields::new(message);
        while let Some((number, wire)) = fields.next()? {
            match details.at(prefix, number) {
                // As upstream: what a newer writer added is passed over.
                None => {}
                Some(AtNumber::Inlined) => {
                    let prefix = extend(prefix, number).ok_or(Fault::Malformed)?;
                    self.fields(id, prefix, wire.bytes()?, depth, out)?;
                }
                Some(AtNumber::Field(at)) => {
                    let (field, more) = (&object.fields[at], &details.fields[at]);
                    self.field(&field.shape, more, wire, depth, &field.name, out)
                        .map_err(|located| located.under(&field.name))?;
                }
            }
        }
        Ok(())
    }

    /// One occurrence of a field: it adds to a list, map or message that is there, and replaces anything else.
    fn field(
        &mut self,
        shape: &Shape,
        facts: &FieldFacts,
        wire: Wire<'_>,
        depth: usize,
        name: &str,
        out: &mut Object<String, Value>,
    ) -> Result<(), Located> {
        match shape {
            Shape::List(list) if !facts.wrapped => {
                let entry = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(items) = entry else { return Err(Fault::Malformed.into()) };
                let at = items.len();
                self.item(&list.item, facts, wire, depth + 1, items).map_err(|located| located.item(at))
            }
            Shape::Map(map) => {
                let (key, value) = self.entry(&map.value, facts, wire.bytes()?, depth + 1)?;
                let entry = out.entry(name).or_insert_with(|| Value::Object(Object::new()));
                let Value::Object(members) = entry else { return Err(Fault::Malformed.into()) };
                members.insert(key, value);
                Ok(())
            }
            Shape::Object(id) => {
                let entry = out.entry(name).or_insert_with(|| Value::Object(Object::new()));
                let Value::Object(members) = entry else { return Err(Fault::Malformed.into()) };
                self.object(*id, wire.bytes()?, depth + 1, members)
            }
            _ => {
                let value = self.value(shape, facts, wire, depth)?;
                match facts.presence {
                    _ if value.is_null() => out.remove(name),
                    Presence::OmitZero if is_zero(&value) && !always_written(shape) => out.remove(name),
                    _ => out.insert(name.to_owned(), value),
                };
                Ok(())
            }
        }
    }

    /// One item of a list, or several where numbers come packed.
    fn item(
        &mut self,
        shape: &Shape,
        facts: &FieldFacts,
        wire: Wire<'_>,
        depth: usize,
        items: &mut Vec<Value>,
    ) -> Result<(), Located> {
        if let (Shape::Int32 | Shape::Int64 | Shape::Bool, Wire::Bytes(packed)) = (shape, wire) {
            let mut packed = Fields::new(packed);
            while let Some(number) = packed.packed()? {
                items.push(self.value(shape, facts, Wire::Varint(number), depth)?);
            }
            return Ok(());
        }
        items.push(self.value(shape, facts, wire, depth)?);
        Ok(())
    }

    /// One entry of a map: a message with the key at 1 and the value at 2.
    fn entry(
        &mut self,
        shape: &Shape,
        facts: &FieldFacts,
        message: &[u8],
        depth: usize,
    ) -> Result<(String, Value), Located> {
        let (mut key, mut value) = (String::new(), None);
        let mut fields = Fields::new(message);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => key = wire.text()?.to_owned(),
                2 => value = Some(self.value(shape, facts, wire, depth).map_err(|located| located.under(&key))?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            // Protobuf may leave out a value that is zero.
            None => match shape {
                Shape::Object(id) => self.message(*id, &[])?,
                Shape::List(_) => Value::Array(Vec::new()),
                Shape::Bytes => Value::String(String::new()),
                other => plain_zero(other),
            },
        };
        Ok((key, value))
    }

    /// A single value; `null` for what upstream's JSON writes as `null`.
    fn value(&mut self, shape: &Shape, facts: &FieldFacts, wire: Wire<'_>, depth: usize) -> Result<Value, Located> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep.into());
        }
        Ok(match shape {
            Shape::Bool => Value::Bool(wire.varint()? != 0),
            // Upstream keeps the low 32 bits; negative numbers come in ten bytes.
            Shape::Int32 => Value::from(wire.varint()? as i32),
            Shape::Int64 => Value::from(wire.varint()? as i64),
            Shape::Double => double(wire.double()?)?,
            Shape::String => Value::from(wire.text()?),
            Shape::Bytes => Value::from(STANDARD.encode(wire.bytes()?)),
            Shape::Time => time(wire.bytes()?, false)?,
            Shape::MicroTime => time(wire.bytes()?, true)?,
            Shape::Duration => duration(wire.bytes()?)?,
            Shape::Quantity => quantity(wire.bytes()?)?,
            Shape::IntOrString => int_or_string(wire.bytes()?)?,
            Shape::Any => self.untyped(facts.any, wire.bytes()?, depth)?,
            Shape::Object(id) => {
                let mut object = Object::new();
                self.object(*id, wire.bytes()?, depth + 1, &mut object)?;
                Value::Object(object)
            }
            Shape::List(list) => {
                let mut items = Vec::new();
                let mut fields = Fields::new(wire.bytes()?);
                while let Some((number, wire)) = fields.next()? {
                    if number == 1 {
                        items.push(self.value(&list.item, facts, wire, depth + 1)?);
                    }
                }
                Value::Array(items)
            }
            Shape::Map(_) => return Err(Fault::NoNumber.into()),
        })
    }

    fn untyped(&mut self, kind: Untyped, message: &[u8], depth: usize) -> Result<Value, Located> {
        match kind {
            Untyped::Raw | Untyped::FieldsV1 | Untyped::Json => self.raw(last_bytes(message, 1)?, depth),
            Untyped::SchemaOrBool | Untyped::SchemaOrArray | Untyped::SchemaOrStrings => {
                self.schema_or(kind, message, depth)
            }
            Untyped::Interface | Untyped::None => Err(Fault::NoNumber.into()),
        }
    }

    /// JSON, or an object with an envelope of its own as in `v1.List` and `WatchEvent`.
    fn raw(&mut self, raw: &[u8], depth: usize) -> Result<Value, Located> {
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(&MAGIC) {
            return self.envelope(raw, depth).map_err(|error| match error {
                ProtobufError::Field { path, fault } => Located { fault, steps: vec![format!(".{path}")] },
                other => Fault::NotJson(other.to_string()).into(),
            });
        }
        let value: Value = serde_json::from_slice(raw).map_err(|error| Fault::NotJson(error.to_string()))?;
        if depth + nesting(&value) > DEPTH_MAX { Err(Fault::TooDeep.into()) } else { Ok(value) }
    }

    /// A schema, or what else may stand in its place (apiextensions, v1/marshal.go).
    fn schema_or(&mut self, kind: Untyped, message: &[u8], depth: usize) -> Result<Value, Located> {
        let id = self.facts.type_named(JSON_SCHEMA).ok_or(Fault::NoNumber)?;
        let schema_number = if kind == Untyped::SchemaOrBool { 2 } else { 1 };
        let (mut schema, mut allows, mut items) = (None, false, Vec::new());
        let mut fields = Fields::new(message);
        while let Some((number, wire)) = fields.next()? {
            match (number, kind) {
                (number, _) if number == schema_number => {
                    let object = schema.get_or_insert_with(Object::new);
                    self.object(id, wire.bytes()?, depth + 1, object)?;
                }
                (1, Untyped::SchemaOrBool) => allows = wire.varint()? != 0,
                (2, Untyped::SchemaOrArray) => {
                    items.push(self.value(&Shape::Object(id), &FieldFacts::default(), wire, depth + 1)?);
                }
                (2, Untyped::SchemaOrStrings) => items.push(Value::from(wire.text()?)),
                _ => {}
            }
        }
        Ok(match (schema, kind) {
            (Some(schema), Untyped::SchemaOrBool) => Value::Object(schema),
            (None, Untyped::SchemaOrBool) => Value::Bool(allows),
            (_, _) if !items.is_empty() => Value::Array(items),
            (Some(schema), _) => Value::Object(schema),
            (None, _) => Value::Null,
        })
    }

    /// Writes the zero values that upstream's JSON writes and that were not sent.
    fn fill(&mut self, id: TypeId, depth: usize, out: &mut Object<String, Value>) -> Result<(), Located> {
        let facts = self.facts;
        let (object, details) = facts.described(id);
        for (field, more) in object.fields.iter().zip(&details.fields) {
            if more.presence != Presence::Always || more.path == Path::default() || out.contains_key(&*field.name) {
                continue;
            }
            let zero = match &field.shape {
                Shape::Object(id) => {
                    let mut object = Object::new();
                    if depth >= DEPTH_MAX {
                        return Err(Fault::TooDeep.into());
                    }
                    self.fill(*id, depth + 1, &mut object)?;
                    Value::Object(object)
                }
                other => plain_zero(other),
            };
            if !zero.is_null() {
                self.fill_left = self.fill_left.checked_sub(1).ok_or(Fault::TooSparse)?;
                out.insert(field.name.to_string(), zero);
            }
        }
        Ok(())
    }
}

/// The zero value in upstream's JSON; `null` where that is `null`.
fn plain_zero(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => Value::from(0),
        Shape::String => Value::from(""),
        Shape::Quantity => Value::from("0"),
        Shape::Duration => Value::from("0s"),
        _ => Value::Null,
    }
}

/// Structs to Go, whose zero value `omitempty` does not touch.
fn always_written(shape: &Shape) -> bool {
    matches!(shape, Shape::Quantity | Shape::IntOrString | Shape::Duration)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// How deep the containers of a value nest.
fn nesting(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nesting).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(nesting).max().unwrap_or(0),
        _ => 0,
    }
}

fn last_bytes(message: &[u8], wanted: u32) -> Result<&[u8], Fault> {
    let mut found: &[u8] = &[];
    let mut fields = Fields::new(message);
    while let Some((number, wire)) = fields.next()? {
        if number == wanted {
            found = wire.bytes()?;
        }
    }
    Ok(found)
}

/// Whole numbers are written without a fraction, as Go does.
fn double(value: f64) -> Result<Value, Fault> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Ok(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number).ok_or(Fault::NotFinite)
}

fn time(message: &[u8], micro: bool) -> Result<Value, Fault> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut fields = Fields::new(message);
    while let Some((number, wire)) = fields.next()? {
        match number {
            1 => seconds = wire.varint()? as i64,
            2 => nanos = wire.varint()? as i32,
            _ => {}
        }
    }
    // `metav1.Time` drops what is below a second, `MicroTime` what is below a microsecond.
    let nanos = if micro { nanos / 1000 * 1000 } else { 0 };
    if seconds == ZERO_TIME_SECONDS && nanos == 0 {
        return Ok(Value::Null);
    }
    let stamp = jiff::Timestamp::new(seconds, nanos).map_err(|_| Fault::TimeRange)?;
    let stamp = stamp.to_zoned(jiff::tz::TimeZone::UTC);
    if stamp.year() < 0 {
        return Err(Fault::TimeRange);
    }
    let form = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Value::from(stamp.strftime(form).to_string()))
}

fn duration(message: &[u8]) -> Result<Value, Fault> {
    let mut nanos = 0_i64;
    let mut fields = Fields::new(message);
    while let Some((number, wire)) = fields.next()? {
        if number == 1 {
            nanos = wire.varint()? as i64;
        }
    }
    Ok(Value::from(go_duration(nanos)))
}

/// Go's `time.Duration.String`: the largest unit first, no unit that is zero before the first, fractions of seconds.
fn go_duration(nanos: i64) -> String {
    let (sign, rest) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = |whole: u64, part: u64, digits: usize, unit: &str| {
        let text = format!("{whole}.{part:0digits$}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    let text = match rest {
        0 => "0s".to_owned(),
        1..1_000 => format!("{rest}ns"),
        1_000..1_000_000 => fraction(rest / 1_000, rest % 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => fraction(rest / 1_000_000, rest % 1_000_000, 6, "ms"),
        _ => {
            let (seconds, part) = (rest / 1_000_000_000, rest % 1_000_000_000);
            let last = fraction(seconds % 60, part, 9, "s");
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => last,
                (0, minutes) => format!("{minutes}m{last}"),
                (hours, minutes) => format!("{hours}h{minutes}m{last}"),
            }
        }
    };
    format!("{sign}{text}")
}

fn quantity(message: &[u8]) -> Result<Value, Fault> {
    let text = std::str::from_utf8(last_bytes(message, 1)?).map_err(|_| Fault::NotUtf8)?;
    Ok(Value::from(if text.is_empty() { "0" } else { text }))
}

fn int_or_string(message: &[u8]) -> Result<Value, Fault> {
    let (mut kind, mut number_value, mut text) = (0, 0_i32, "");
    let mut fields = Fields::new(message);
    while let Some((number, wire)) = fields.next()? {
        match number {
            1 => kind = wire.varint()?,
            2 => number_value = wire.varint()? as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    match kind {
        0 => Ok(Value::from(number_value)),
        1 => Ok(Value::from(text)),
        _ => Err(Fault::Shape { expected: "type 0 or 1 of an IntOrString" }),
    }
}

#[cfg(test)]
mod cases {
    use super::go_duration;

    #[test]
    fn durations_read_as_in_go() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (-90_500_000_000, "-1m30.5s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(go_duration(nanos), expected);
        }
    }
}
