//! What a model's own files say of how tokens are chosen and how many, for requests that do not: transformers'
//! `generation_config.json`, or the keys that llama.cpp's converter makes of it.
//!
//! What must hold: what is there is heeded or refused by file and field; what is not there leaves the usual.

use std::ops::RangeInclusive;
use std::path::Path;

use kedge_formats::Gguf;
use serde_json::Value;

use super::sample::Sampling;
use crate::EngineError;
use crate::model::settings::Fields;

/// The file beside weights.
pub(super) const FILE: &str = "generation_config.json";
/// Tokens of an answer.
const TOKENS_MAX: RangeInclusive<f64> = 1.0..=u32::MAX as f64;

/// What a request gets where it does not say; none where the model does not say either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// [`Sampling::top_k`].
    pub top_k: Option<usize>,
    /// [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// Most tokens of an answer.
    pub tokens_max: Option<usize>,
}

/// What reads a number; none where there is none.
type Read<'a> = &'a dyn Fn(&str) -> Result<Option<f64>, EngineError>;

impl Defaults {
    /// With what is usual where the model does not say.
    pub fn sampling(&self) -> Sampling {
        let usual = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            ..usual
        }
    }

    /// Those of a model in that folder.
    pub(super) fn of_folder(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join(FILE);
        let json = Fields::open_if_there(&path)?.json;
        let read = |field: &str| match &json[field] {
            Value::Null => Ok(None),
            value => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(&path, field, format!("must be a number, is {value}"))),
            },
        };
        let names = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
        let mut defaults = Self::of(&path, names, &read)?;
        defaults.tokens_max = whole(&path, "max_new_tokens", &TOKENS_MAX, &read)?.map(|tokens| tokens as usize);
        match &json["do_sample"] {
            Value::Null | Value::Bool(true) => {}
            Value::Bool(false) => defaults.temperature = Some(0.0),
            other => return Err(wrong(&path, "do_sample", format!("must be true or false, is {other}"))),
        }
        Ok(defaults)
    }

    /// Those that the file says; else those of the folder that it is in.
    pub(super) fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        // llama.cpp's `gguf-py/gguf/constants.py`.
        let names = ["temp", "top_k", "top_p", "min_p", "penalty_repeat"];
        let names = names.map(|name| format!("general.sampling.{name}"));
        let path = file.tensors.path();
        if !names.iter().any(|name| file.has(name)) {
            return Self::of_folder(path.parent().unwrap_or(Path::new(".")));
        }
        let read = |key: &str| Ok(if file.has(key) { Some(file.float(key)?) } else { None });
        Self::of(path, names.each_ref().map(String::as_str), &read)
    }

    fn of(path: &Path, names: [&str; 5], read: Read<'_>) -> Result<Self, EngineError> {
        let [temperature, top_k, top_p, min_p, penalty] = names;
        let number = |name, range| Ok::<_, EngineError>(within(path, name, range, read)?.map(|number| number as f32));
        Ok(Self {
            temperature: number(temperature, &Sampling::TEMPERATURE)?,
            top_k: whole(path, top_k, &Sampling::TOP_K, read)?.map(|count| count.max(0.0) as usize),
            top_p: number(top_p, &Sampling::SHARE)?,
            min_p: number(min_p, &Sampling::SHARE)?,
            repetition_penalty: number(penalty, &Sampling::REPETITION_PENALTY)?,
            tokens_max: None,
        })
    }
}

fn within(path: &Path, field: &str, range: &RangeInclusive<f64>, read: Read<'_>) -> Result<Option<f64>, EngineError> {
    let number = read(field)?;
    match number.filter(|number| !range.contains(number)) {
        None => Ok(number),
        Some(number) => {
            let reason = format!("must be from {} to {}, is {number}", range.start(), range.end());
            Err(wrong(path, field, reason))
        }
    }
}

fn whole(path: &Path, field: &str, range: &RangeInclusive<f64>, read: Read<'_>) -> Result<Option<f64>, EngineError> {
    let number = within(path, field, range, read)?;
    match number.filter(|number| number.fract() != 0.0) {
        None => Ok(number),
        Some(number) => Err(wrong(path, field, format!("must be a whole number, is {number}"))),
    }
}

fn wrong(path: &Path, field: &str, reason: String) -> EngineError {
    EngineError::Field { path: path.to_owned(), field: field.to_owned(), reason }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
mod tests {
    use kedge_formats::gguf::write::{self, Value as Meta};

    use super::*;

    fn of_json(text: &str) -> Result<Defaults, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        Defaults::of_folder(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_model_says_counts_and_the_rest_is_usual() {
        let defaults = Defaults::of_folder(tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!((&defaults, defaults.sampling()), (&Defaults::default(), Sampling::default()), "no file");
        let all = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05,
            "repetition_penalty": 1.05, "max_new_tokens": 2048, "eos_token_id": [1, 2], "typical_p": 0.9}"#;
        let expected = Sampling {
            temperature: 0.6,
            top_k: 20,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.05,
            ..Sampling::default()
        };
        let defaults = of_json(all).unwrap();
        assert_eq!((defaults.sampling(), defaults.tokens_max), (expected, Some(2048)));
        for (text, temperature, top_k) in [
            ("{}", None, None),
            (r#"{"do_sample": false}"#, Some(0.0), None),
            (r#"{"do_sample": false, "temperature": 0.6}"#, Some(0.0), None),
            (r#"{"temperature": null, "top_k": -1}"#, None, Some(0)),
            (r#"{"temperature": 1, "top_k": 50.0}"#, Some(1.0), Some(50)),
        ] {
            let defaults = of_json(text).unwrap();
            assert_eq!((defaults.temperature, defaults.top_k), (temperature, top_k), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_file_and_field() {
        for (text, says) in [
            (r#"{"temperature": 3}"#, "temperature: must be from 0 to 2, is 3"),
            (r#"{"temperature": "warm"}"#, "temperature: must be a number, is \"warm\""),
            (r#"{"top_k": 1.5}"#, "top_k: must be a whole number, is 1.5"),
            (r#"{"top_p": -0.1}"#, "top_p: must be from 0 to 1, is -0.1"),
            (r#"{"min_p": 7}"#, "min_p: must be from 0 to 1, is 7"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty: must be from 0.01 to 10, is 0"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens: must be from 1 to 4294967295, is 0"),
            (r#"{"do_sample": 1}"#, "do_sample: must be true or false, is 1"),
            ("{", "EOF while parsing"),
        ] {
            let said = of_json(text).unwrap_err();
            assert!(said.contains(&format!("{FILE}: {says}")), "{said}");
        }
    }

    #[test]
    fn a_gguf_file_speaks_for_itself_or_has_the_file_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let of = |more: Vec<(String, Meta)>| {
            let name = ("general.architecture".into(), Meta::Text("llama".into()));
            std::fs::write(&path, write::to_bytes(&[vec![name], more].concat(), &[])).unwrap();
            Defaults::of_gguf(&Gguf::open(&path).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(of(vec![]), Ok(Defaults::default()));
        std::fs::write(folder.path().join(FILE), r#"{"do_sample": false, "max_new_tokens": 128}"#).unwrap();
        let beside = Defaults { temperature: Some(0.0), tokens_max: Some(128), ..Defaults::default() };
        assert_eq!(of(vec![]), Ok(beside));
        let key = |name: &str, value: Meta| (format!("general.sampling.{name}"), value);
        let told = vec![key("temp", Meta::Float(0.5)), key("top_k", Meta::Unsigned(40))];
        let expected = Defaults { temperature: Some(0.5), top_k: Some(40), ..Defaults::default() };
        assert_eq!(of(told), Ok(expected), "then the other says nothing");
        let said = of(vec![key("min_p", Meta::Unsigned(2))]).unwrap_err();
        assert!(said.contains("m.gguf: general.sampling.min_p: must be from 0 to 1, is 2"), "{said}");
    }
}
