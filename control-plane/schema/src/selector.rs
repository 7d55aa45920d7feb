//! Label selectors and field selectors: parsing, matching, and printing them back.
//!
//! Grammar, order and error texts are those of `apimachinery/pkg/labels` and `pkg/fields`. A parsed selector
//! holds only requirements that passed validation. What is not here: which fields a kind lets be selected.

mod check;
mod fields;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::{Map, Value};

use crate::field::{FieldError, Path, aggregate};
use crate::go_text;
use crate::names;

pub use check::{validate_label_selector, validate_labels};
pub use fields::{FieldSelector, FieldTerm};

/// Why a selector is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(crate) String);

/// What labels must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelSelector {
    /// No object matches: an absent selector of an object that selects.
    Nothing,
    /// Objects match that meet every requirement; all do where there is none. Sorted by key.
    All(Vec<Requirement>),
}

/// One thing that labels must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`: also met where the label is absent.
    NotIn,
    /// `key=a`
    Equals,
    /// `key==a`
    DoubleEquals,
    /// `key!=a`: also met where the label is absent.
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

impl LabelSelector {
    /// The selector that every object meets.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// The string form, such as `app=web,tier in (a,b),!old`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = parse::requirements(text)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self::All(requirements))
    }

    /// The object form, `{matchLabels, matchExpressions}`; absent selects nothing, empty everything.
    pub fn from_object(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|selector| !selector.is_null()) else { return Ok(Self::Nothing) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value]).map_err(refused)?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let quoted = go_text::quote(other);
                    return Err(SelectorError(format!("{quoted} is not a valid label selector operator")));
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.map(|value| value.as_str().unwrap_or_default().to_owned()).collect();
            requirements.push(Requirement::new(text("key"), operator, values).map_err(refused)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self::All(requirements))
    }

    /// The plain map form of a replication controller or service; absent or empty selects everything here, so ask
    /// first where an empty one selects nothing.
    pub fn from_map(labels: &Map<String, Value>) -> Result<Self, SelectorError> {
        let requirements = labels
            .iter()
            .map(|(key, value)| {
                Requirement::new(key, Operator::Equals, vec![value.as_str().unwrap_or_default().to_owned()])
            })
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        Ok(Self::All(requirements))
    }

    /// Whether labels, told by a look-up, meet it.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Nothing => false,
            Self::All(requirements) => {
                requirements.iter().all(|requirement| requirement.matches(lookup(&requirement.key)))
            }
        }
    }

    /// Whether an object's `metadata.labels` meet it.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_labels(object.get("metadata").and_then(|metadata| metadata.get("labels")))
    }

    /// Whether a labels map, where there is one, meets it.
    pub fn matches_labels(&self, labels: Option<&Value>) -> bool {
        self.matches(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    /// Every object meets it.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All(requirements) if requirements.is_empty())
    }

    /// The requirements; none for [`LabelSelector::Nothing`].
    pub fn requirements(&self) -> &[Requirement] {
        match self {
            Self::Nothing => &[],
            Self::All(requirements) => requirements,
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements().iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

fn refused(errors: Vec<FieldError>) -> SelectorError {
    SelectorError(aggregate(&errors))
}

impl Requirement {
    /// A requirement whose key, operator and values fit together; all that is wrong otherwise.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let reasons = names::label_key(key);
        if !reasons.is_empty() {
            errors.push(FieldError::invalid(&Path::new("key"), key, reasons.join("; ")));
        }
        let at = Path::new("values");
        if let Some(detail) = operator.count_problem(values.len()) {
            let shown = if values.is_empty() { Value::Null } else { Value::from(values.clone()) };
            errors.push(FieldError::invalid(&at, shown, detail));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(&at.index(index), value.as_str(), detail));
            }
        }
        for (index, value) in values.iter().enumerate() {
            let reasons = names::label_value(value);
            if !reasons.is_empty() {
                errors.push(FieldError::invalid(&at.index(index).key(key), value.as_str(), reasons.join("; ")));
            }
        }
        if errors.is_empty() { Ok(Self { key: key.to_owned(), operator, values }) } else { Err(errors) }
    }

    /// The label's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it is compared.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// What it is compared with.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether a label, where there is one, meets it.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => label.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => self.compares(label).is_some_and(|(label, bound)| label > bound),
            Operator::LessThan => self.compares(label).is_some_and(|(label, bound)| label < bound),
        }
    }

    fn compares(&self, label: Option<&str>) -> Option<(i64, i64)> {
        Some((label?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let mut values = self.values.clone();
        values.sort();
        let values = values.join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl Operator {
    fn count_problem(self, count: usize) -> Option<&'static str> {
        match self {
            Self::In | Self::NotIn if count == 0 => Some("for 'in', 'notin' operators, values set can't be empty"),
            Self::Equals | Self::DoubleEquals | Self::NotEquals if count != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Self::Exists | Self::DoesNotExist if count != 0 => {
                Some("values set must be empty for exists and does not exist")
            }
            Self::GreaterThan | Self::LessThan if count != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        }
    }
}
