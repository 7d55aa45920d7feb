//! Bytes to values: strict readers of JSON and YAML that tell duplicate keys with their paths.
//!
//! Go decides what is JSON here, as clients were written against it: its error texts, 64-bit integers kept whole,
//! lone surrogates and broken UTF-8 replaced, the last of duplicate keys winning. Nesting is bounded at
//! [`DEPTH_MAX`] (upstream: 10,000), so that no later walk over a value can exhaust a stack. What is not here: how large
//! a body may be (the server's), and what a field may be ([`crate::strict`]).

mod json;
#[cfg(test)]
mod tests;
mod yaml;

use std::fmt;

use serde_json::Value;

use crate::go_text;

pub use json::json;
pub use yaml::yaml;

/// How deep objects and lists may nest.
pub const DEPTH_MAX: usize = 256;

/// How many problems are told of one body, as upstream has it.
pub const PROBLEMS_MAX: usize = 100;

/// A value, and what strict decoding objects to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The value; of duplicate keys the last one counts.
    pub value: Value,
    /// Duplicate keys, each once, at most [`PROBLEMS_MAX`].
    pub problems: Vec<FieldProblem>,
}

/// Why bytes are no value at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub(crate) String);

/// What `fieldValidation` objects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FieldProblem {
    /// The type has no such field.
    Unknown(String),
    /// The key stands there twice.
    Duplicate(String),
    /// The key stands twice in a YAML mapping.
    DuplicateInYaml {
        /// Where it stands the second time, counted from one.
        line: usize,
        /// The key.
        key: String,
    },
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(path) => write!(f, "unknown field {}", go_text::quote(path)),
            Self::Duplicate(path) => write!(f, "duplicate field {}", go_text::quote(path)),
            Self::DuplicateInYaml { line, key } => {
                write!(f, "yaml: unmarshal errors:\n  line {line}: key {} already set in map", go_text::quote(key))
            }
        }
    }
}

/// All problems as the error of a strict request: `strict decoding error: unknown field "spec.foo", …`.
pub fn strict_error(problems: &[FieldProblem]) -> String {
    let texts: Vec<String> = problems.iter().map(FieldProblem::to_string).collect();
    format!("strict decoding error: {}", texts.join(", "))
}

/// The problems of a body: its duplicates, and the unknown fields that its type found. What lies below an unknown field is
/// nobody's business, as upstream has it.
pub fn all_problems(duplicates: Vec<FieldProblem>, unknown: Vec<FieldProblem>) -> Vec<FieldProblem> {
    let hidden = |path: &str| {
        unknown.iter().any(|problem| match problem {
            FieldProblem::Unknown(above) => {
                path.strip_prefix(above.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            }
            _ => false,
        })
    };
    let seen = |problem: &FieldProblem| !matches!(problem, FieldProblem::Duplicate(path) if hidden(path));
    let mut problems: Vec<FieldProblem> = duplicates.into_iter().filter(seen).collect();
    problems.extend(unknown);
    problems.truncate(PROBLEMS_MAX);
    problems
}

/// Adds a problem once, up to the bound.
pub(crate) fn note(problems: &mut Vec<FieldProblem>, problem: FieldProblem) {
    if problems.len() < PROBLEMS_MAX && !problems.contains(&problem) {
        problems.push(problem);
    }
}
