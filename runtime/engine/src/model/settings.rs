//! What the files of a model say, field by field: JSON as [`Fields`], the metadata of GGUF as [`Keys`].
//!
//! What must hold: every complaint names the file and the field.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use kedge_formats::{FormatError, Gguf, file};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::EngineError;

/// No settings file is larger than this; a larger one is refused unread.
const SETTINGS_BYTES_MAX: u64 = 64 << 20;
/// Beyond these a number is none, or zero, with the 32 bits that are computed with.
const FLOATS: RangeInclusive<f64> = 1e-30..=1e30;
/// Far above every count of a real model, so that products of two cannot overflow.
const COUNT_MAX: u64 = 1 << 24;

fn counted(value: u64) -> Result<usize, String> {
    if (1..=COUNT_MAX).contains(&value) {
        Ok(value as usize)
    } else {
        Err(format!("{value} is not between 1 and {COUNT_MAX}"))
    }
}

/// The bytes of a settings file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    file::read(path, SETTINGS_BYTES_MAX).map_err(|source| EngineError::Read { path: path.to_owned(), source })
}

/// Reads one settings file; the error says which.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let wrong = |error: serde_json::Error| EngineError::File { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_slice(&read(path)?).map_err(wrong)
}

/// What is read of a file that a model need not have; a link that leads nowhere is a file that cannot be read.
pub(crate) fn if_there<T>(read: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match read {
        Err(EngineError::Read { path, source }) if source.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// A number that is above zero with 32 bits, too, or why it is not.
pub(super) fn positive(value: Option<f64>) -> Result<f64, String> {
    let told = value.map_or_else(String::new, |value| format!(", is {value}"));
    value
        .filter(|value| FLOATS.contains(value))
        .ok_or_else(|| format!("must be a number above zero (from {:e} to {:e}){told}", FLOATS.start(), FLOATS.end()))
}

/// What is added to a variance.
fn epsilon(value: f64) -> Result<f64, String> {
    if value >= *FLOATS.start() && value < 1.0 { Ok(value) } else { Err(format!("{value} is not between 0 and 1")) }
}

/// Letters of a value that a complaint has.
const TOLD_MAX: usize = 80;

/// A JSON object and where it came from, so that every complaint names its file and its place there. A null is as good as
/// nothing; what is there and of another type than it should be is refused.
pub(crate) struct Fields {
    pub(crate) json: Value,
    pub(crate) path: PathBuf,
    /// Where it is in the file; empty for all of it.
    pub(super) place: String,
}

impl Fields {
    /// Those of a file.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let json: Map<String, Value> = read_json(path)?;
        Ok(Self { json: json.into(), path: path.to_owned(), place: String::new() })
    }

    /// Those of a file that a model need not have; none then.
    pub(crate) fn open_if_there(path: &Path) -> Result<Self, EngineError> {
        let none = || Self { json: Value::Null, path: path.to_owned(), place: String::new() };
        Ok(if_there(Self::open(path))?.unwrap_or_else(none))
    }

    /// Those of each object of a file that is a list.
    pub(super) fn open_list(path: &Path) -> Result<Vec<Self>, EngineError> {
        let list: Vec<Map<String, Value>> = read_json(path)?;
        let one = |(index, json): (usize, Map<_, _>)| Self {
            json: json.into(),
            path: path.to_owned(),
            place: format!("[{index}]"),
        };
        Ok(list.into_iter().enumerate().map(one).collect())
    }

    fn at(&self, field: &str) -> String {
        if self.place.is_empty() { field.to_owned() } else { format!("{}.{field}", self.place) }
    }

    pub(crate) fn wrong(&self, field: &str, reason: impl Into<String>) -> EngineError {
        EngineError::Field { path: self.path.clone(), field: self.at(field), reason: reason.into() }
    }

    /// What is read of a field, which has to be `what`; none where it is not there.
    pub(crate) fn maybe<'a, T>(
        &'a self,
        field: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let value = &self.json[field];
        let told = || value.to_string().chars().take(TOLD_MAX).collect::<String>();
        match value {
            Value::Null => Ok(None),
            _ => read(value).map(Some).ok_or_else(|| self.wrong(field, format!("must be {what}, is {}", told()))),
        }
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, EngineError> {
        self.maybe(field, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, EngineError> {
        self.maybe(field, "a text", Value::as_str)
    }

    /// Nothing where the field is not there.
    pub(super) fn list(&self, field: &str) -> Result<&[Value], EngineError> {
        Ok(self.maybe(field, "a list", Value::as_array)?.map_or(&[], Vec::as_slice))
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, EngineError> {
        let json = self.maybe(field, "an object", |value| value.is_object().then(|| value.clone()))?;
        Ok(json.map(|json| Self { json, path: self.path.clone(), place: self.at(field) }))
    }

    /// A count.
    pub(crate) fn number(&self, field: &str) -> Result<usize, EngineError> {
        let value = self.json[field]
            .as_u64()
            .ok_or_else(|| self.wrong(field, format!("must be a whole number, is {}", self.json[field])))?;
        counted(value).map_err(|reason| self.wrong(field, reason))
    }

    pub(super) fn number_or(&self, field: &str, other: usize) -> Result<usize, EngineError> {
        if self.json[field].is_null() { Ok(other) } else { self.number(field) }
    }

    pub(crate) fn positive(&self, field: &str) -> Result<f64, EngineError> {
        positive(self.json[field].as_f64()).map_err(|reason| self.wrong(field, reason))
    }

    /// None where the field is not there.
    pub(super) fn positive_if_there(&self, field: &str) -> Result<Option<f64>, EngineError> {
        if self.json[field].is_null() { Ok(None) } else { self.positive(field).map(Some) }
    }

    /// What is added to a variance.
    pub(super) fn epsilon(&self, field: &str) -> Result<f64, EngineError> {
        epsilon(self.positive(field)?).map_err(|reason| self.wrong(field, reason))
    }

    /// The tokens that a field names by their ids, one or several; all of them the model has.
    pub(crate) fn tokens(&self, field: &str, vocabulary: usize) -> Result<Vec<u32>, EngineError> {
        let told = match &self.json[field] {
            Value::Null => &[],
            Value::Array(list) => &list[..],
            one => std::slice::from_ref(one),
        };
        let id = |told: &Value| {
            let id = told.as_u64().filter(|id| *id < vocabulary as u64).map(|id| id as u32);
            id.ok_or_else(|| self.wrong(field, format!("{told} is no token; their ids are below {vocabulary}")))
        };
        told.iter().map(id).collect()
    }

    pub(super) fn must_be(&self, field: &str, allowed: &[&str]) -> Result<(), EngineError> {
        match self.json[field].as_str() {
            Some(value) if allowed.contains(&value) => Ok(()),
            _ => Err(self.wrong(field, format!("{} is not supported; {} is", self.json[field], allowed.join(" or ")))),
        }
    }

    pub(super) fn must_be_or_absent(&self, field: &str, allowed: &[&str]) -> Result<(), EngineError> {
        if self.json[field].is_null() { Ok(()) } else { self.must_be(field, allowed) }
    }
}

/// Keys behind a prefix, such as an architecture, in the metadata of a GGUF file.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a Gguf,
    pub(crate) prefix: &'a str,
}

impl Keys<'_> {
    pub(super) fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.file.has(&self.at(key))
    }

    pub(super) fn wrong(&self, key: &str, reason: impl Into<String>) -> EngineError {
        EngineError::Field { path: self.file.tensors.path().to_owned(), field: self.at(key), reason: reason.into() }
    }

    /// What is read there; none where the key is not.
    pub(super) fn maybe<T>(
        &self,
        key: &str,
        read: impl Fn(&Gguf, &str) -> Result<T, FormatError>,
    ) -> Result<Option<T>, EngineError> {
        if self.has(key) { Ok(Some(read(self.file, &self.at(key))?)) } else { Ok(None) }
    }

    /// A count.
    pub(super) fn number(&self, key: &str) -> Result<usize, EngineError> {
        counted(self.file.number(&self.at(key))?).map_err(|reason| self.wrong(key, reason))
    }

    pub(super) fn number_or(&self, key: &str, other: usize) -> Result<usize, EngineError> {
        if self.has(key) { self.number(key) } else { Ok(other) }
    }

    pub(super) fn float(&self, key: &str) -> Result<f64, EngineError> {
        Ok(self.file.float(&self.at(key))?)
    }

    /// A number above zero; none where the key is not.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, EngineError> {
        let told = self.maybe(key, Gguf::float)?;
        told.map(|value| positive(Some(value)).map_err(|reason| self.wrong(key, reason))).transpose()
    }

    /// What is added to a variance.
    pub(super) fn epsilon(&self, key: &str) -> Result<f64, EngineError> {
        epsilon(self.float(key)?).map_err(|reason| self.wrong(key, reason))
    }

    /// Number of tokens: of those in the list, which is what llama.cpp counts, too. Where the architecture has a key for it,
    /// converters write the same there.
    pub(super) fn vocabulary(&self) -> Result<usize, EngineError> {
        let list = "tokenizer.ggml.tokens";
        let count = self.file.texts(list)?.len();
        if let Some(told) = self.maybe("vocab_size", Gguf::number)?.filter(|told| *told != count as u64) {
            return Err(self.wrong("vocab_size", format!("is {told}, and {list} has {count}")));
        }
        let wrong =
            |reason| EngineError::Field { path: self.file.tensors.path().to_owned(), field: list.into(), reason };
        counted(count as u64).map_err(|_| wrong(format!("has {count} tokens; 1 to {COUNT_MAX} can be")))
    }
}
