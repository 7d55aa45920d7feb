//! Reads the facts table.
//!
//! One line tells one thing, words are parted by one space:
//!
//! ```text
//! use core/v1 io.k8s.api.core.v1        the name by which other packages' lines call a package
//! package io.k8s.api.core.v1            what follows is of this package
//! type Volume FLAGS                     atomic, kind=GROUP/VERSION/KIND, every=KIND, unions=JSON
//!  secret 2.6 SecretVolumeSource FLAGS  a field: JSON name, protobuf path (`-` for none), shape
//! group apps/v1                         what follows is of this group version
//! resource deployments Deployment deployment namespaced VERBS FLAGS
//!  sub deployments scale Scale@autoscaling/v1 VERBS
//! ```
//!
//! Shapes: `[]x` a list, `{}x` a map, `<>x` a list in a message of its own, a lower-case word for a plain value, a
//! type of the same package, or `core/v1:Type`. Flags of a field: `!` required, `*` a pointer, `+` written even when
//! zero, `zero` documented with its zero value as default, and `list=`, `map=`, `patch=`, `key=`, `default=`.
//! `*` for verbs are all eight. `returns-deleted` of a resource: a delete answers with the object, not a `Status`.

use std::collections::HashMap;

use crate::facts::{Facts, FieldFacts, GroupVersionKind, Path, Presence, TypeFacts, Untyped, extend};
use crate::shape::{Field, List, ListKind, Map, ObjectType, PatchRule, Resource, Schema, Shape, Subresource, TypeId};

/// A line that does not say what it should.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("facts table, line {line}: {fault}")]
pub struct TableError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: String,
}

const ALL_VERBS: &str = "create,delete,deletecollection,get,list,patch,update,watch";

/// Reads a whole table.
pub(super) fn parse(text: &str) -> Result<Facts, TableError> {
    let mut reader = Reader::default();
    let numbered = || text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let fail = |line| move |fault: Fault| TableError { line, fault: fault.0 };
    for (number, line) in numbered() {
        reader.declare(line).map_err(fail(number))?;
    }
    for (number, line) in numbered() {
        reader.line(line).map_err(fail(number))?;
    }
    reader.finish().map_err(fail(text.lines().count()))
}

struct Fault(String);

fn fault<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(what.into()))
}

#[derive(Default)]
struct Reader<'a> {
    /// Short name to package.
    uses: HashMap<&'a str, &'a str>,
    ids: HashMap<&'a str, HashMap<&'a str, TypeId>>,
    count: u32,
    package: &'a str,
    types: Vec<ObjectType>,
    details: Vec<TypeFacts>,
    group_version: (&'a str, &'a str),
    resources: Vec<Resource>,
    deleted: Vec<usize>,
}

impl<'a> Reader<'a> {
    /// The first pass: which types there are, so that the second can refer to all of them.
    fn declare(&mut self, line: &'a str) -> Result<(), Fault> {
        match line.split_once(' ') {
            Some(("use", rest)) => {
                let Some((short, package)) = rest.split_once(' ') else { return fault("no package") };
                self.uses.insert(short, package);
            }
            Some(("package", package)) => self.package = package,
            Some(("type", rest)) => {
                let name = rest.split(' ').next().unwrap_or_default();
                self.ids.entry(self.package).or_default().insert(name, TypeId(self.count));
                self.count += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn line(&mut self, line: &'a str) -> Result<(), Fault> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "#" | "use" => Ok(()),
            "package" => {
                self.package = rest;
                Ok(())
            }
            "type" => self.object(rest),
            "group" => {
                let Some(of) = rest.split_once('/') else { return fault("no version") };
                self.group_version = of;
                Ok(())
            }
            "resource" => self.resource(rest),
            "" => match rest.strip_prefix("sub ") {
                // A field could be called `sub` too, but those lines stand before any resource.
                Some(subresource) if !self.resources.is_empty() => self.subresource(subresource),
                _ => self.field(rest),
            },
            other => fault(format!("unknown word {other:?}")),
        }
    }

    fn object(&mut self, rest: &str) -> Result<(), Fault> {
        let mut words = rest.split(' ');
        let name = format!("{}.{}", self.package, words.next().unwrap_or_default());
        let mut object = ObjectType { name: name.into(), ..ObjectType::default() };
        let mut details = TypeFacts::default();
        for word in words {
            match word.split_once('=') {
                None if word == "atomic" => object.atomic = true,
                Some(("every", kind)) => details.every = Some(kind.into()),
                Some(("unions", json)) => details.unions = Some(json.into()),
                Some(("kind", value)) => match value.split('/').collect::<Vec<_>>()[..] {
                    [group, version, kind] => details.kinds.push(GroupVersionKind {
                        group: group.into(),
                        version: version.into(),
                        kind: kind.into(),
                    }),
                    _ => return fault(format!("kind {value:?}")),
                },
                _ => return fault(format!("unknown flag {word:?}")),
            }
        }
        self.types.push(object);
        self.details.push(details);
        Ok(())
    }

    fn field(&mut self, rest: &str) -> Result<(), Fault> {
        let mut words = rest.split(' ');
        let (Some(name), Some(path), Some(shape)) = (words.next(), words.next(), words.next()) else {
            return fault("a field is a name, a path and a shape");
        };
        let mut facts = FieldFacts { path: path_of(path)?, ..FieldFacts::default() };
        let mut field = Field {
            name: name.into(),
            shape: self.shape(shape, &mut facts)?,
            required: false,
            nullable: false,
            default: None,
            number: facts.path.iter().rev().find(|part| **part != 0).map_or(0, |part| u32::from(*part)),
            patch: PatchRule::default(),
            limits: None,
        };
        for word in words {
            flag(word, &mut field, &mut facts)?;
        }
        let (Some(object), Some(details)) = (self.types.last_mut(), self.details.last_mut()) else {
            return fault("a field before any type");
        };
        if object.fields.last().is_some_and(|last| last.name >= field.name) {
            return fault("fields are not sorted by name");
        }
        if facts.path != Path::default() {
            let index = u16::try_from(object.fields.len()).map_err(|_| Fault("too many fields".into()))?;
            details.paths.push((facts.path, index));
        }
        object.fields.push(field);
        details.fields.push(facts);
        Ok(())
    }

    fn shape(&self, word: &str, facts: &mut FieldFacts) -> Result<Shape, Fault> {
        if let Some(item) = word.strip_prefix("[]").or_else(|| word.strip_prefix("<>")) {
            facts.wrapped |= word.starts_with('<');
            let item = self.shape(item, facts)?;
            return Ok(Shape::List(Box::new(List { item, kind: ListKind::Atomic, limits: None })));
        }
        if let Some(value) = word.strip_prefix("{}") {
            let value = self.shape(value, facts)?;
            return Ok(Shape::Map(Box::new(Map { value, atomic: false, limits: None })));
        }
        let untyped = match word {
            "bool" => return Ok(Shape::Bool),
            "int32" => return Ok(Shape::Int32),
            "int64" => return Ok(Shape::Int64),
            "double" => return Ok(Shape::Double),
            "string" => return Ok(Shape::String),
            "bytes" => return Ok(Shape::Bytes),
            "time" => return Ok(Shape::Time),
            "microtime" => return Ok(Shape::MicroTime),
            "duration" => return Ok(Shape::Duration),
            "quantity" => return Ok(Shape::Quantity),
            "intorstring" => return Ok(Shape::IntOrString),
            "raw" => Untyped::Raw,
            "fieldsv1" => Untyped::FieldsV1,
            "json" => Untyped::Json,
            "schemaorbool" => Untyped::SchemaOrBool,
            "schemaorarray" => Untyped::SchemaOrArray,
            "schemaorstrings" => Untyped::SchemaOrStrings,
            "untyped" => Untyped::Interface,
            _ => return self.named(word).map(Shape::Object),
        };
        facts.any = untyped;
        Ok(Shape::Any)
    }

    fn named(&self, word: &str) -> Result<TypeId, Fault> {
        let (package, name) = match word.split_once(':') {
            None => (self.package, word),
            Some((short, name)) => match self.uses.get(short) {
                Some(package) => (*package, name),
                None => return fault(format!("no package is called {short:?}")),
            },
        };
        match self.ids.get(package).and_then(|ids| ids.get(name)) {
            Some(id) => Ok(*id),
            None => fault(format!("no type {name:?} in {package}")),
        }
    }

    fn resource(&mut self, rest: &str) -> Result<(), Fault> {
        let mut words = rest.split(' ');
        let mut next = || words.next().ok_or_else(|| Fault("a resource has five words at least".into()));
        let (plural, kind, singular, scope, verbs) = (next()?, next()?, next()?, next()?, next()?);
        let (group, version) = self.group_version;
        let mut resource = Resource {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: singular.into(),
            namespaced: match scope {
                "namespaced" => true,
                "cluster" => false,
                other => return fault(format!("unknown scope {other:?}")),
            },
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: verbs_of(verbs),
            subresources: Vec::new(),
            schema: self.kind_type(group, version, kind)?,
        };
        for word in words {
            match word.split_once('=') {
                None if word == "returns-deleted" => self.deleted.push(self.resources.len()),
                Some(("short", names)) => resource.short_names = names.split(',').map(Into::into).collect(),
                Some(("categories", names)) => resource.categories = names.split(',').map(Into::into).collect(),
                _ => return fault(format!("unknown flag {word:?}")),
            }
        }
        self.resources.push(resource);
        Ok(())
    }

    fn subresource(&mut self, rest: &str) -> Result<(), Fault> {
        let [of, name, kind, verbs] = rest.split(' ').collect::<Vec<_>>()[..] else {
            return fault("a subresource is a resource, a name, a kind and verbs");
        };
        let (kind, group_version) = kind.split_once('@').unwrap_or((kind, ""));
        let (group, version) = group_version.split_once('/').unwrap_or(self.group_version);
        let subresource = Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs: verbs_of(verbs),
        };
        let (parent_group, parent_version) = self.group_version;
        let mut parents = self.resources.iter_mut();
        match parents.find(|parent| &*parent.plural == of && parent.is_of(parent_group, parent_version)) {
            Some(parent) => parent.subresources.push(subresource),
            None => return fault(format!("no resource {of:?} yet")),
        }
        Ok(())
    }

    fn kind_type(&self, group: &str, version: &str, kind: &str) -> Result<TypeId, Fault> {
        let wanted = (group, version, kind);
        let at = self.details.iter().position(|details| details.kinds.iter().any(|known| known.parts() == wanted));
        match at {
            Some(at) => Ok(TypeId(u32::try_from(at).expect("ids were counted in 32 bits"))),
            None => fault(format!("no type is the kind {kind:?} of {group}/{version}")),
        }
    }

    fn finish(mut self) -> Result<Facts, Fault> {
        let (mut kinds, mut every) = (Vec::new(), Vec::new());
        let ids = (0..self.count).map(TypeId);
        for (id, details) in ids.clone().zip(&mut self.details) {
            details.paths.sort_unstable();
            if details.paths.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return fault(format!("{}: two fields have one protobuf path", self.types[id.0 as usize].name));
            }
            kinds.extend(details.kinds.iter().map(|kind| (kind.clone(), id)));
            every.extend(details.every.iter().map(|kind| (kind.clone(), id)));
        }
        kinds.sort();
        let mut by_name: Vec<TypeId> = ids.collect();
        by_name.sort_by_key(|id| &self.types[id.0 as usize].name);
        let schema = Schema { types: self.types };
        Ok(Facts {
            schema,
            resources: self.resources,
            details: self.details,
            by_name,
            kinds,
            every,
            deleted: self.deleted,
        })
    }
}

fn flag(word: &str, field: &mut Field, facts: &mut FieldFacts) -> Result<(), Fault> {
    match word.split_once('=') {
        None => match word {
            "!" => field.required = true,
            "*" => facts.presence = Presence::Pointer,
            "+" => facts.presence = Presence::Always,
            "zero" => facts.zero_default = true,
            _ => return fault(format!("unknown flag {word:?}")),
        },
        Some(("default", json)) => match serde_json::from_str(json) {
            Ok(value) => field.default = Some(value),
            Err(error) => return fault(format!("default {json}: {error}")),
        },
        Some(("key", key)) => field.patch.merge_key = Some(key.into()),
        Some(("patch", strategies)) => {
            for strategy in strategies.split(',') {
                match strategy {
                    "merge" => field.patch.merge = true,
                    "retainKeys" => field.patch.retain_keys = true,
                    "replace" => {
                        facts.replace_stated = true;
                        field.patch.replace = true;
                    }
                    _ => return fault(format!("unknown strategy {strategy:?}")),
                }
            }
        }
        Some(("map", kind)) => {
            let atomic = kind == "atomic";
            if !atomic && kind != "granular" {
                return fault(format!("unknown map type {kind:?}"));
            }
            facts.map_type = Some(atomic);
            match &mut field.shape {
                Shape::Map(map) => map.atomic = atomic,
                Shape::Object(_) if !atomic => {}
                _ => return fault("a map type on something else"),
            }
        }
        Some(("list", kind)) => {
            facts.list_type_stated = true;
            let list = match &mut field.shape {
                Shape::List(list) => list,
                // Bytes are a list to Go, and one field says so.
                Shape::Bytes if kind == "atomic" => return Ok(()),
                _ => return fault("a list type on something else"),
            };
            list.kind = match kind.split_once(':') {
                None if kind == "atomic" => ListKind::Atomic,
                None if kind == "set" => ListKind::Set,
                Some(("map", keys)) => ListKind::Map(keys.split(',').map(Into::into).collect()),
                _ => return fault(format!("unknown list type {kind:?}")),
            };
        }
        Some(_) => return fault(format!("unknown flag {word:?}")),
    }
    Ok(())
}

fn path_of(word: &str) -> Result<Path, Fault> {
    let mut path = Path::default();
    if word != "-" {
        for part in word.split('.') {
            let number = part.parse().map_err(|_| Fault(format!("protobuf path {word:?}")))?;
            path = extend(path, number).ok_or_else(|| Fault(format!("protobuf path {word:?}")))?;
        }
    }
    Ok(path)
}

fn verbs_of(word: &str) -> Vec<Box<str>> {
    let words = if word == "*" { ALL_VERBS } else { word };
    words.split(',').map(Into::into).collect()
}
