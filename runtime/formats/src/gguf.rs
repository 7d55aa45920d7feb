//! A GGUF file, mapped: metadata and tensors.
//!
//! The format (ggml `docs/gguf.md`): magic, version, two counts, metadata as key, type and value, a table of tensors,
//! then the data, aligned. Numbers are little-endian; a tensor's dimensions are innermost first and are turned round
//! here. What must hold: counts and lengths are believed only as far as the file has bytes for them; arrays stay in the
//! file and are read when asked for; keys and tensors have each name once; tensors lie one after the other in the order of
//! the table, each from the next aligned byte (as `ggml/src/gguf.cpp` wants it), so that none is in another.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::tensor::{Mapped, Tensor, Tensors};
use crate::{Dtype, FormatError};

/// Dimensions that a tensor may have.
const DIMENSIONS_MAX: u32 = 4;
/// The longest key or tensor name; ggml allows 65,535 and 64.
const NAME_BYTES_MAX: usize = 65_535;

/// A mapped GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// Its tensors.
    pub tensors: Tensors,
    file: Arc<Mapped>,
    metadata: BTreeMap<String, Value>,
}

/// A value of the metadata. Texts and arrays are where the file has them.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { kind: u32, count: usize, bytes: Range<usize> },
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Gguf {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let file = Mapped::open(path)?;
        let Parsed { metadata, tensors } = parse(&file.bytes, path)?;
        let tensors = tensors.into_iter();
        let named = tensors.map(|(name, t)| (name, Tensor::mapped(t.dtype, t.shape, &file, t.range))).collect();
        Ok(Self { tensors: Tensors { path: path.to_owned(), named }, file, metadata })
    }

    fn wrong(&self, key: &str, reason: impl Into<String>) -> FormatError {
        FormatError::Key { path: self.tensors.path.clone(), key: key.to_owned(), reason: reason.into() }
    }

    /// Whether the metadata has a key.
    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    fn value(&self, key: &str) -> Result<&Value, FormatError> {
        self.metadata.get(key).ok_or_else(|| self.wrong(key, "is not in the metadata"))
    }

    /// A whole number, not negative.
    pub fn number(&self, key: &str) -> Result<u64, FormatError> {
        match self.value(key)? {
            Value::Unsigned(value) => Ok(*value),
            Value::Signed(value) if *value >= 0 => Ok(value.unsigned_abs()),
            _ => Err(self.wrong(key, "is no whole number")),
        }
    }

    /// A number.
    pub fn float(&self, key: &str) -> Result<f64, FormatError> {
        match self.value(key)? {
            Value::Float(value) => Ok(*value),
            Value::Unsigned(value) => Ok(*value as f64),
            Value::Signed(value) => Ok(*value as f64),
            _ => Err(self.wrong(key, "is no number")),
        }
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<bool, FormatError> {
        match self.value(key)? {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&str, FormatError> {
        match self.value(key)? {
            Value::Text(range) => self.utf8(key, range.clone()),
            _ => Err(self.wrong(key, "is no text")),
        }
    }

    fn utf8(&self, key: &str, range: Range<usize>) -> Result<&str, FormatError> {
        std::str::from_utf8(&self.file.bytes[range]).map_err(|_| self.wrong(key, "has a text that is not UTF-8"))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, FormatError> {
        let Value::Array { kind: TEXT, count, bytes } = self.value(key)? else {
            return Err(self.wrong(key, "is no list of texts"));
        };
        let mut reader = Reader { bytes: &self.file.bytes[..bytes.end], at: bytes.start };
        (0..*count)
            .map(|_| self.utf8(key, reader.text().expect("the list was walked through when it was opened")))
            .collect()
    }

    /// A list of numbers.
    pub fn floats(&self, key: &str) -> Result<Vec<f64>, FormatError> {
        let no_list = || self.wrong(key, "is no list of numbers");
        let Value::Array { kind, count, bytes } = self.value(key)? else { return Err(no_list()) };
        let mut reader = Reader { bytes: &self.file.bytes[..bytes.end], at: bytes.start };
        let number = |value| match value {
            Ok(Value::Unsigned(value)) => Ok(value as f64),
            Ok(Value::Signed(value)) => Ok(value as f64),
            Ok(Value::Float(value)) => Ok(value),
            Ok(Value::Bool(value)) => Ok(f64::from(u8::from(value))),
            _ => Err(no_list()),
        };
        (0..*count).map(|_| number(reader.value(*kind))).collect()
    }
}

struct Parsed {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Placed>,
}

struct Placed {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Header and tables, with every claim checked against the length of the file.
fn parse(bytes: &[u8], path: &Path) -> Result<Parsed, FormatError> {
    let broken = |reason: String| FormatError::File { path: path.to_owned(), reason };
    let mut reader = Reader { bytes, at: 0 };
    if bytes.get(..4) != Some(b"GGUF") {
        return Err(broken("does not begin with GGUF".into()));
    }
    reader.at = 4;
    let version = reader.u32().map_err(&broken)?;
    if version != 2 && version != 3 {
        return Err(broken(format!("is of version {version}; 2 and 3 are supported (or its numbers are big-endian)")));
    }
    let (tensor_count, key_count) = (reader.u64().map_err(&broken)?, reader.u64().map_err(&broken)?);
    let mut metadata = BTreeMap::new();
    for index in 0..key_count {
        let key = reader.name().map_err(|reason| broken(format!("key {index} of {key_count}: {reason}")))?;
        let wrong = |reason: String| FormatError::Key { path: path.to_owned(), key: key.clone(), reason };
        let kind = reader.u32().map_err(wrong)?;
        let value = reader.value(kind).map_err(wrong)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(wrong("is there twice".into()));
        }
    }
    let alignment = alignment(&metadata).map_err(|reason| FormatError::Key {
        path: path.to_owned(),
        key: ALIGNMENT_KEY.to_owned(),
        reason,
    })?;
    let mut table = Vec::new();
    for index in 0..tensor_count {
        let name = reader.name().map_err(|reason| broken(format!("tensor {index} of {tensor_count}: {reason}")))?;
        let wrong = |reason: String| wrong_tensor(path, &name, reason);
        let placed = reader.tensor().map_err(wrong)?;
        table.push((name, placed));
    }
    let data_start = reader.at.next_multiple_of(alignment);
    let (mut tensors, mut next) = (BTreeMap::new(), 0);
    for (name, mut placed) in table {
        let wrong = |reason: String| wrong_tensor(path, &name, reason);
        let (start, end) = (placed.range.start, placed.range.end);
        if start != next {
            return Err(wrong(format!(
                "begins at byte {start}; {next} is where the one before it ends, in steps of {alignment}"
            )));
        }
        let moved = |at: usize| at.checked_add(data_start).filter(|at| *at <= bytes.len());
        let (Some(from), Some(to)) = (moved(start), moved(end)) else {
            let has = bytes.len().saturating_sub(data_start);
            let reason = format!("tensor {name}: claims bytes {start}..{end} of {has}; the file may be cut short");
            return Err(FormatError::File { path: path.to_owned(), reason });
        };
        placed.range = from..to;
        next = end.next_multiple_of(alignment);
        if tensors.insert(name.clone(), placed).is_some() {
            return Err(wrong("is there twice".into()));
        }
    }
    Ok(Parsed { metadata, tensors })
}

/// Where tensors may begin.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Far above the pages of any machine.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// Tensors begin at multiples of so many bytes.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(32),
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= ALIGNMENT_MAX => Ok(*value as usize),
        Some(Value::Unsigned(value)) => Err(format!("is {value}, and no power of two up to {ALIGNMENT_MAX}")),
        Some(_) => Err("is no whole number".into()),
    }
}

fn wrong_tensor(path: &Path, name: &str, reason: String) -> FormatError {
    FormatError::Tensor { path: PathBuf::from(path), tensor: name.to_owned(), reason }
}

/// Reads on from a place in the file; never past its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Result<Range<usize>, String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("needs {length} bytes from byte {}, where the file ends", self.at))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.take(N)?;
        Ok(self.bytes[range].try_into().expect("as many were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<Range<usize>, String> {
        let length = self.u64()?;
        self.take(usize::try_from(length).map_err(|_| format!("has a text of {length} bytes"))?)
    }

    fn name(&mut self) -> Result<String, String> {
        let range = self.text()?;
        if range.len() > NAME_BYTES_MAX {
            return Err(format!("has a name of {} bytes", range.len()));
        }
        std::str::from_utf8(&self.bytes[range]).map(str::to_owned).map_err(|_| "has a name that is not UTF-8".into())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(self.array::<1>()?[0] as i8)),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("is {other}, and not true or false")),
            },
            TEXT => Value::Text(self.text()?),
            ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let start = self.at;
                let width = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    10..=12 => 8,
                    TEXT => 0,
                    other => return Err(format!("is a list of type {other}, which is not supported")),
                };
                let count = usize::try_from(count).map_err(|_| format!("has {count} elements"))?;
                if kind == TEXT {
                    for _ in 0..count {
                        self.text()?;
                    }
                } else {
                    self.take(count.checked_mul(width).ok_or_else(|| format!("has {count} elements"))?)?;
                }
                Value::Array { kind, count, bytes: start..self.at }
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has the unknown type {other}")),
        })
    }

    /// A tensor's row of the table; its range is still counted from where the data begin.
    fn tensor(&mut self) -> Result<Placed, String> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(format!("has {dimensions} dimensions; {DIMENSIONS_MAX} at most"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| format!("has a dimension of {size}"))?);
        }
        shape.reverse();
        let (kind, offset) = (self.u32()?, self.u64()?);
        let dtype = dtype(kind).ok_or_else(|| format!("has the unknown type {kind}"))?;
        let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let too_large = || format!("shape {shape:?} is larger than memory can be");
        let count = count.ok_or_else(too_large)?;
        let length = dtype.bytes_of(count).ok_or_else(|| {
            format!("shape {shape:?} is no whole number of blocks of {} ({})", dtype.block().0, dtype.name())
        })?;
        let start = usize::try_from(offset).map_err(|_| format!("begins at byte {offset}"))?;
        let end = start.checked_add(length).ok_or_else(too_large)?;
        Ok(Placed { dtype, shape, range: start..end })
    }
}

/// ggml's number of a type (`ggml.h`, `ggml_type`).
fn dtype(kind: u32) -> Option<Dtype> {
    let other = |values, bytes| Some(Dtype::Other { values, bytes });
    match kind {
        0 => Some(Dtype::F32),
        1 => Some(Dtype::F16),
        2 => Some(Dtype::Q4_0),
        3 => other(32, 20),
        6 => other(32, 22),
        7 => other(32, 24),
        8 => Some(Dtype::Q8_0),
        10 => other(256, 84),
        11 => other(256, 110),
        12 => Some(Dtype::Q4K),
        13 => Some(Dtype::Q5K),
        14 => Some(Dtype::Q6K),
        24 => other(1, 1),
        25 => other(1, 2),
        26 => other(1, 4),
        27 | 28 => other(1, 8),
        30 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Writes a GGUF file: for tests, benchmarks and conversions.
pub mod write {
    use crate::Tensor;

    /// A value of the metadata.
    #[derive(Clone, Debug)]
    pub enum Value {
        /// A whole number of 32 bits.
        Unsigned(u32),
        /// A 32-bit float.
        Float(f32),
        /// True or false.
        Bool(bool),
        /// A text.
        Text(String),
        /// A list of texts.
        Texts(Vec<String>),
        /// A list of whole numbers.
        Signed(Vec<i32>),
        /// A list of floats.
        Floats(Vec<f32>),
    }

    const ALIGNMENT: usize = 32;

    /// The bytes of a file with this metadata and these tensors, in this order.
    pub fn to_bytes(metadata: &[(String, Value)], tensors: &[(String, Tensor)]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut out, key);
            self::value(&mut out, value);
        }
        let mut at = 0usize;
        for (name, tensor) in tensors {
            text(&mut out, name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
            out.extend(kind(tensor).to_le_bytes());
            out.extend((at as u64).to_le_bytes());
            at = (at + tensor.bytes().len()).next_multiple_of(ALIGNMENT);
        }
        for (_, tensor) in tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(tensor.bytes());
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }

    fn kind(tensor: &Tensor) -> u32 {
        let known = (0..31).find(|kind| super::dtype(*kind) == Some(tensor.dtype));
        known.expect("tensors that were read have a number")
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
        out.extend(super::ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| each(out, item));
    }

    fn value(out: &mut Vec<u8>, value: &Value) {
        match value {
            Value::Unsigned(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::Float(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::Bool(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Value::Text(value) => {
                out.extend(super::TEXT.to_le_bytes());
                text(out, value);
            }
            Value::Texts(items) => list(out, super::TEXT, items, |out, item| text(out, item)),
            Value::Signed(items) => list(out, 5, items, |out, item| out.extend(item.to_le_bytes())),
            Value::Floats(items) => list(out, 6, items, |out, item| out.extend(item.to_le_bytes())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests write files")]
mod tests {
    use proptest::prelude::*;

    use super::write::Value as Write;
    use super::*;

    fn sample() -> Vec<u8> {
        let metadata = [
            ("general.architecture".to_owned(), Write::Text("llama".into())),
            ("n".to_owned(), Write::Unsigned(7)),
            ("f".to_owned(), Write::Float(0.5)),
            ("b".to_owned(), Write::Bool(true)),
            ("words".to_owned(), Write::Texts(vec!["a".into(), "ä".into()])),
            ("kinds".to_owned(), Write::Signed(vec![1, -3])),
            ("scores".to_owned(), Write::Floats(vec![1.5])),
        ];
        let tensors = [
            ("m".to_owned(), Tensor::of_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            ("q".to_owned(), Tensor::of_bytes(Dtype::Q8_0, &[2, 32], vec![1; 68]).unwrap()),
        ];
        write::to_bytes(&metadata, &tensors)
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.gguf");
        std::fs::write(&path, sample()).unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.text("general.architecture").unwrap(), "llama");
        assert_eq!((file.number("n").unwrap(), file.float("f").unwrap(), file.flag("b").unwrap()), (7, 0.5, true));
        assert_eq!(file.texts("words").unwrap(), ["a", "ä"]);
        assert_eq!(file.floats("kinds").unwrap(), [1.0, -3.0]);
        assert_eq!(file.floats("scores").unwrap(), [1.5]);
        assert!(file.number("words").unwrap_err().to_string().ends_with("words: is no whole number"));
        assert!(file.text("none").unwrap_err().to_string().ends_with("none: is not in the metadata"));
        assert_eq!(file.tensors.values("m", &[2, 3]).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(file.tensors.get("q", &[2, 32]).unwrap().row(1), [1; 34]);
        assert!(file.tensors.get("q", &[32, 2]).is_err());
    }

    fn said(bytes: &[u8]) -> String {
        match parse(bytes, Path::new("m.gguf")) {
            Ok(parsed) => format!("{} keys, {} tensors", parsed.metadata.len(), parsed.tensors.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = sample();
        assert_eq!(said(&whole), "7 keys, 2 tensors");
        // The last bytes only fill up to the alignment.
        for length in 0..whole.len() - 28 {
            assert!(said(&whole[..length]).starts_with("m.gguf: "), "{length}: {}", said(&whole[..length]));
        }
    }

    #[test]
    fn lies_are_named() {
        let mut many = sample();
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(said(&many).contains("tensor 2 of 18446744073709551615"), "{}", said(&many));
        let mut big_endian = sample();
        big_endian[4..8].reverse();
        assert!(said(&big_endian).contains("version 50331648"));
        assert!(said(b"GGML....").contains("does not begin with GGUF"));
    }

    /// The sample with another place for its second tensor, and an alignment.
    fn placed(offset: u64, alignment: u32) -> Vec<u8> {
        let one = Tensor::of_f32(&[2], &[1.0, 2.0]);
        let key = [(ALIGNMENT_KEY.to_owned(), Write::Unsigned(alignment))];
        let mut bytes = write::to_bytes(&key, &[("a".to_owned(), one.clone()), ("b".to_owned(), one)]);
        let at = bytes.windows(9).position(|window| window == b"\x01\0\0\0\0\0\0\0b").unwrap() + 9 + 4 + 8 + 4;
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        bytes.resize(bytes.len() + 64, 0);
        bytes
    }

    #[test]
    fn tensors_lie_where_llama_cpp_wants_them() {
        for (offset, alignment, expected) in [
            (32, 32, "1 keys, 2 tensors"),
            (8, 8, "1 keys, 2 tensors"),
            (64, 64, "1 keys, 2 tensors"),
            (0, 32, "m.gguf: tensor b: begins at byte 0; 32 is where the one before it ends, in steps of 32"),
            (8, 32, "m.gguf: tensor b: begins at byte 8; 32 is"),
            (64, 32, "m.gguf: tensor b: begins at byte 64; 32 is"),
            (u64::MAX, 32, "m.gguf: tensor b: shape [2] is larger than memory can be"),
            (32, 0, "m.gguf: general.alignment: is 0, and no power of two up to 1048576"),
            (32, 48, "m.gguf: general.alignment: is 48, and no"),
            (32, 1 << 31, "m.gguf: general.alignment: is 2147483648, and no"),
        ] {
            let said = said(&placed(offset, alignment));
            assert!(said.contains(expected), "{offset} {alignment}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6)) {
            let mut bytes = sample();
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Ok(parsed) = parse(&bytes, Path::new("x")) {
                prop_assert!(parsed.tensors.values().all(|placed| placed.range.end <= bytes.len()));
            }
        }
    }
}
