//! What the files of a model say, field by field: JSON as [`Fields`], the metadata of GGUF as [`Keys`].
//!
//! What must hold: every complaint names the file and the field.

#![allow(clippy::disallowed_methods, reason = "this file is the shell that reads settings")]

use std::path::{Path, PathBuf};

use kedge_formats::{FormatError, Gguf};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::EngineError;

/// No settings file is larger than this; a larger one is refused unread.
const SETTINGS_BYTES_MAX: u64 = 64 << 20;
/// Far above every count of a real model, so that products of two cannot overflow.
const COUNT_MAX: u64 = 1 << 24;

fn counted(value: u64) -> Result<usize, String> {
    if (1..=COUNT_MAX).contains(&value) {
        Ok(value as usize)
    } else {
        Err(format!("{value} is not between 1 and {COUNT_MAX}"))
    }
}

/// Reads one settings file; the error says which.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let read = |source| EngineError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > SETTINGS_BYTES_MAX {
        return Err(EngineError::Field {
            path: path.to_owned(),
            field: "(file)".into(),
            reason: format!("{length} bytes; at most {SETTINGS_BYTES_MAX} are read"),
        });
    }
    let bytes = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|error| EngineError::Field {
        path: path.to_owned(),
        field: "(file)".into(),
        reason: error.to_string(),
    })
}

/// A JSON object and the file it came from, so that every complaint names both.
pub(crate) struct Fields {
    pub(crate) json: Value,
    pub(crate) path: PathBuf,
}

impl Fields {
    pub(crate) fn wrong(&self, field: &str, reason: impl Into<String>) -> EngineError {
        EngineError::Field { path: self.path.clone(), field: field.into(), reason: reason.into() }
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
        let value = self.json[field].as_f64().filter(|value| *value > 0.0);
        value.ok_or_else(|| self.wrong(field, format!("must be a number above zero, is {}", self.json[field])))
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
        match self.maybe(key, Gguf::float)? {
            Some(value) if value <= 0.0 || value.is_nan() => Err(self.wrong(key, "must be a number above zero")),
            value => Ok(value),
        }
    }
}
