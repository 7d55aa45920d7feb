//! The part of JSONPath that printer columns, scale paths and selectable fields use: members, indices, `[*]`-free,
//! and `[?(@.key=="value")]`. Anything else is refused when the definition is written.

use serde_json::Value;

/// A path to one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    Index(usize),
    /// The first item whose member has this value.
    Where(String, String),
}

impl Path {
    /// Reads `.spec.items[0].name`. The error says what cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        let fail =
            || format!("the JSON path {text:?} is not supported: members, [index] and [?(@.key==\"value\")] are");
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let (inside, after) = after.split_once(']').ok_or_else(fail)?;
                steps.push(bracket(inside).ok_or_else(fail)?);
                rest = after;
                continue;
            }
            let after = rest.strip_prefix('.').ok_or_else(fail)?;
            let (member, length) = member(after);
            if member.is_empty() {
                return Err(fail());
            }
            steps.push(Step::Member(member));
            rest = &after[length..];
        }
        Ok(Self(steps))
    }

    /// The value at the path.
    pub fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(value, |value, step| match step {
            Step::Member(name) => value.get(name),
            Step::Index(index) => value.get(index),
            Step::Where(key, wanted) => value.as_array()?.iter().find(|item| item[key] == **wanted),
        })
    }

    /// Puts `new` at the path, making members on the way.
    pub fn set(&self, value: &mut Value, new: Value) {
        let mut here = value;
        for step in &self.0 {
            let Step::Member(name) = step else { return };
            here = crate::object::as_map(here).entry(name.clone()).or_insert(Value::Null);
        }
        *here = new;
    }
}

/// A member's name up to the next separator, with `\.` standing for a dot; and how much text that took.
fn member(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            '\\' if !escaped => escaped = true,
            '.' | '[' if !escaped => return (name, at),
            _ => {
                name.push(letter);
                escaped = false;
            }
        }
    }
    (name, text.len())
}

fn bracket(inside: &str) -> Option<Step> {
    if let Ok(index) = inside.parse() {
        return Some(Step::Index(index));
    }
    if let Some(quoted) = inside.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return Some(Step::Member(quoted.into()));
    }
    let filter = inside.strip_prefix("?(@.")?.strip_suffix(')')?;
    let (key, value) = filter.split_once("==")?;
    let value = value.trim().trim_matches(|quote| quote == '"' || quote == '\'');
    Some(Step::Where(key.trim().into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_their_values() {
        let object = json!({
            "spec": {"a": [{"n": 1}, {"n": 2}], "x.y/z": "dotted"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let cases = [
            (".spec.a[1].n", json!(2)),
            ("{.spec.a[0].n}", json!(1)),
            (r".spec.x\.y/z", json!("dotted")),
            (".spec['x.y/z']", json!("dotted")),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!("True")),
        ];
        for (path, expected) in cases {
            assert_eq!(Path::parse(path).unwrap().find(&object), Some(&expected), "{path}");
        }
        assert_eq!(Path::parse(".spec.none.at.all").unwrap().find(&object), None);
        for bad in ["spec", ".spec..x", ".a[*]", ".a[", "..x"] {
            assert!(Path::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
