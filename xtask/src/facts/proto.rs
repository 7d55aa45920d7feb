//! Reads generated.proto files: which message has which field at which number. They are machine-written, one
//! field a line, so a line reader is enough; what it does not understand inside a message is an error.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::go::package_dir;

/// One field of a message.
#[derive(Clone, Debug)]
pub(crate) struct ProtoField {
    /// `repeated`, or a map.
    pub(crate) many: bool,
    /// A map's value type, or the field's own: a scalar's name, or `package:Message`.
    pub(crate) kind: String,
}

type Message = BTreeMap<u32, ProtoField>;

/// The proto packages, read when first asked for.
pub(crate) struct Packages {
    roots: Vec<(&'static str, PathBuf)>,
    read: HashMap<String, HashMap<String, Message>>,
}

impl Packages {
    /// Packages below these module roots.
    pub(crate) fn new(roots: Vec<(&'static str, PathBuf)>) -> Packages {
        Packages { roots, read: HashMap::new() }
    }

    /// The message called `name` of an OpenAPI package such as `io.k8s.api.core.v1`; none for JSON-only types.
    pub(crate) fn message(&mut self, package: &str, name: &str) -> Result<Option<&Message>> {
        if !self.read.contains_key(package) {
            let path = package_dir(&self.roots, package)?.join("generated.proto");
            let messages = match std::fs::read_to_string(&path) {
                Ok(text) => parse(package, &text).with_context(|| format!("in {}", path.display()))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
                Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
            };
            self.read.insert(package.to_owned(), messages);
        }
        Ok(self.read[package].get(name))
    }
}

fn parse(package: &str, text: &str) -> Result<HashMap<String, Message>> {
    let mut messages = HashMap::new();
    let mut open: Option<(String, Message)> = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        if let Some(name) = line.strip_prefix("message ") {
            open = Some((name.trim_end_matches(" {").to_owned(), Message::new()));
        } else if line == "}" {
            messages.extend(open.take());
        } else if let Some((name, message)) = &mut open {
            let (number, field) = field(package, line).with_context(|| format!("message {name}: {line:?}"))?;
            message.insert(number, field);
        }
    }
    Ok(messages)
}

fn field(package: &str, line: &str) -> Result<(u32, ProtoField)> {
    let (left, number) = line.trim_end_matches(';').split_once(" = ").context("no field number")?;
    let (many, kind) = if let Some(map) = left.strip_prefix("map<string, ") {
        (true, map.split_once('>').context("no end of the map type")?.0)
    } else {
        match left.split(' ').collect::<Vec<_>>()[..] {
            ["optional" | "required", kind, _] => (false, kind),
            ["repeated", kind, _] => (true, kind),
            _ => bail!("not a field"),
        }
    };
    let scalar = matches!(kind, "string" | "bytes" | "bool" | "int32" | "int64" | "double");
    let kind = match kind.strip_prefix('.') {
        _ if scalar => kind.to_owned(),
        Some(full) => {
            let (of, name) = full.rsplit_once('.').context("a type without a package")?;
            format!("{}:{name}", of.replacen("k8s.io", "io.k8s", 1).replace('_', "-"))
        }
        None => format!("{package}:{kind}"),
    };
    Ok((number.parse()?, ProtoField { many, kind }))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn fields_are_read_with_their_numbers() {
        let text = "package k8s.io.api.x.v1;\n\n// A comment; with = 1\nmessage Thing {\n  // of the field\n  \
                    optional string name = 1;\n\n  repeated .k8s.io.apimachinery_x.pkg.Other others = 7;\n  \
                    map<string, Local> locals = 12;\n}\n\nmessage Empty {\n}\n";
        let messages = parse("io.k8s.api.x.v1", text).unwrap();
        let told: Vec<String> =
            messages["Thing"].iter().map(|(number, field)| format!("{number} {} {}", field.kind, field.many)).collect();
        assert_eq!(told, ["1 string false", "7 io.k8s.apimachinery-x.pkg:Other true", "12 io.k8s.api.x.v1:Local true"]);
        assert!(messages["Empty"].is_empty());
        assert!(parse("p", "message M {\n  oneof x {\n").is_err());
    }
}
