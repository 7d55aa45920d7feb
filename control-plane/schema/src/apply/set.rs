//! Sets of field paths: who owns what.
//!
//! A set is a tree of [`Step`]s; a node may be a member itself, lead to members, or both. Order and algebra are those
//! of `structured-merge-diff/fieldpath`. A node that is neither is never kept. Nothing here knows types.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::go_text;

/// One step of a field path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A member of an object.
    Field(Box<str>),
    /// The item of a list with these key fields, sorted by name.
    Key(Vec<(Box<str>, Scalar)>),
    /// The item of a set with this value.
    Value(Scalar),
    /// The item at this place.
    Index(i64),
}

/// A value that tells items apart. Numbers compare as numbers and come before text.
#[derive(Clone, Debug)]
pub struct Scalar(pub Value);

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |value: &Value| match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        };
        match (&self.0, &other.0) {
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
            },
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (a, b) => rank(a).cmp(&rank(b)).then_with(|| a.to_string().cmp(&b.to_string())),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                let shown: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", shown.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Value::String(text) => f.write_str(&go_text::quote(text)),
            Value::Number(number) => f.write_str(&go_text::number(number)),
            other => write!(f, "{other}"),
        }
    }
}

/// The text of a path, such as `.spec.containers[name="a"].image`.
pub fn path_text(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    nodes: BTreeMap<Step, Node>,
}

/// What lies at a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The path up to here is in the set.
    pub member: bool,
    /// What lies below.
    pub children: FieldSet,
}

impl FieldSet {
    /// A set of paths of plain field names.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let steps: Vec<Step> = path.iter().map(|name| Step::Field((*name).into())).collect();
            set.insert(&steps);
        }
        set
    }

    /// Adds a path; the empty path is no member of any set.
    pub fn insert(&mut self, path: &[Step]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.nodes.entry(first.clone()).or_default();
        if rest.is_empty() { node.member = true } else { node.children.insert(rest) }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the path itself is in it.
    pub fn has(&self, path: &[Step]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let Some(node) = self.nodes.get(first) else { return false };
        if rest.is_empty() { node.member } else { node.children.has(rest) }
    }

    /// What lies at one step.
    pub fn at(&self, step: &Step) -> Option<&Node> {
        self.nodes.get(step)
    }

    /// The steps and what lies at them, in order.
    pub fn nodes(&self) -> impl Iterator<Item = (&Step, &Node)> {
        self.nodes.iter()
    }

    /// Puts a node in place; nodes without content are left out.
    pub(super) fn put(&mut self, step: Step, node: Node) {
        if node.member || !node.children.is_empty() {
            self.nodes.insert(step, node);
        }
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (step, node) in &other.nodes {
            let own = all.nodes.entry(step.clone()).or_default();
            own.member |= node.member;
            own.children = own.children.union(&node.children);
        }
        all
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (step, node) in &self.nodes {
            let Some(found) = other.nodes.get(step) else { continue };
            let children = node.children.intersection(&found.children);
            both.put(step.clone(), Node { member: node.member && found.member, children });
        }
        both
    }

    /// What is only in the first.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (step, node) in &self.nodes {
            let kept = match other.nodes.get(step) {
                Some(found) => {
                    Node { member: node.member && !found.member, children: node.children.difference(&found.children) }
                }
                None => node.clone(),
            };
            rest.put(step.clone(), kept);
        }
        rest
    }

    /// What is only in the first, and not below a member of the second either.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (step, node) in &self.nodes {
            let kept = match other.nodes.get(step) {
                Some(found) if found.member => continue,
                Some(found) => {
                    Node { member: node.member, children: node.children.recursive_difference(&found.children) }
                }
                None => node.clone(),
            };
            rest.put(step.clone(), kept);
        }
        rest
    }

    /// All paths: at each level members first, then what lies below.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut found = Vec::new();
        self.collect(&mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, prefix: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        for (step, _) in self.nodes.iter().filter(|(_, node)| node.member) {
            found.push(prefix.iter().chain([step]).cloned().collect());
        }
        for (step, node) in &self.nodes {
            prefix.push(step.clone());
            node.children.collect(prefix, found);
            prefix.pop();
        }
    }
}
