//! What Kubernetes 1.36 says about its own types and resources, as one table that ships inside the binary.
//!
//! The table is made by `cargo xtask facts` from the published sources and read at first use. Decoding, apply,
//! strategic merge, the protobuf codec, discovery and OpenAPI all follow from it; nothing lists fields by hand.
//! It must always hold: every type that a field or resource names is in the table, and both directions of the
//! protobuf codec read the same numbers. Not here: defaults and validation that upstream writes in code, and
//! descriptions. `Field::required` of a built-in type is what OpenAPI documents; upstream's decoder does not
//! enforce it, its validation does.

mod table;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use crate::shape::{ObjectType, Resource, Schema, TypeId};

pub use table::TableError;

/// The built-in types and resources.
#[derive(Debug)]
pub struct Facts {
    /// The types.
    pub schema: Schema,
    /// The stable resources in discovery's order: core first, the preferred version of a group before others.
    pub resources: Vec<Resource>,
    details: Vec<TypeFacts>,
    by_name: Vec<TypeId>,
    kinds: Vec<(GroupVersionKind, TypeId)>,
    every: Vec<(Box<str>, TypeId)>,
    /// Indexes into `resources`.
    deleted: Vec<usize>,
}

/// The facts of Kubernetes 1.36, read from the binary at first use.
pub fn builtin() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| Facts::parse(include_str!("facts/v1_36.txt")).expect("the committed table is well formed"))
}

impl Facts {
    /// Reads a table in the form that `cargo xtask facts` writes.
    pub fn parse(text: &str) -> Result<Facts, TableError> {
        table::parse(text)
    }

    /// The resource with this plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| &*resource.plural == plural && resource.is_of(group, version))
    }

    /// Whether deleting such an object is answered with the object rather than a `Status`.
    pub fn returns_deleted(&self, group: &str, version: &str, plural: &str) -> bool {
        let mut resources = self.deleted.iter().map(|at| &self.resources[*at]);
        resources.any(|resource| &*resource.plural == plural && resource.is_of(group, version))
    }

    /// The type of a kind: of a resource, of its list, or of what else travels by itself (`Status`, `Scale`, …).
    /// `DeleteOptions` and `WatchEvent` exist in every group version.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let wanted = (group, version, kind);
        match self.kinds.binary_search_by(|(known, _)| known.parts().cmp(&wanted)) {
            Ok(at) => Some(self.kinds[at].1),
            Err(_) => self.every.iter().find(|(name, _)| &**name == kind).map(|(_, id)| *id),
        }
    }

    /// The type with this OpenAPI definition name, such as `io.k8s.api.core.v1.PodSpec`.
    pub fn type_named(&self, definition: &str) -> Option<TypeId> {
        let found = self.by_name.binary_search_by(|id| (*self.schema.object(*id).name).cmp(definition));
        found.ok().map(|at| self.by_name[at])
    }

    /// What the table says about a type beyond its shape.
    pub fn details(&self, id: TypeId) -> &TypeFacts {
        &self.details[id.0 as usize]
    }

    /// A type together with its details; the fields of both lie in the same order.
    pub fn described(&self, id: TypeId) -> (&ObjectType, &TypeFacts) {
        (self.schema.object(id), self.details(id))
    }

    /// The group versions that have resources, in discovery's order.
    pub fn group_versions(&self) -> Vec<(&str, &str)> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        for resource in &self.resources {
            let of = (&*resource.group, &*resource.version);
            if found.last() != Some(&of) {
                found.push(of);
            }
        }
        found
    }
}

impl Resource {
    /// Whether the resource is of this group and version.
    pub fn is_of(&self, group: &str, version: &str) -> bool {
        &*self.group == group && &*self.version == version
    }
}

/// A group, version and kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// The API group; empty for core.
    pub group: Box<str>,
    /// The version, such as `v1`.
    pub version: Box<str>,
    /// The kind, such as `Pod`.
    pub kind: Box<str>,
}

impl GroupVersionKind {
    fn parts(&self) -> (&str, &str, &str) {
        (&self.group, &self.version, &self.kind)
    }
}

/// What the table says about a type beyond its shape.
#[derive(Debug, Default)]
pub struct TypeFacts {
    /// The kinds that objects of this type are, at the top of a message.
    pub kinds: Vec<GroupVersionKind>,
    /// The kind that this type is in every group version.
    pub every: Option<Box<str>>,
    /// `x-kubernetes-unions` as JSON.
    pub unions: Option<Box<str>>,
    /// One for each field, in the order of [`ObjectType::fields`].
    pub fields: Vec<FieldFacts>,
    /// The protobuf paths in rising order, each with the index of its field.
    paths: Vec<(Path, u16)>,
}

/// Where a field lies in protobuf: its number last, before it the numbers of the messages that hold it where JSON
/// is flat (`Volume` holds a `VolumeSource` at 2). Zeros fill up.
pub type Path = [u16; 3];

/// What the table says about a field beyond its shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldFacts {
    /// Where it lies in protobuf; all zeros for JSON-only fields.
    pub path: Path,
    /// What upstream's JSON does with the zero value.
    pub presence: Presence,
    /// What [`Any`](crate::shape::Shape::Any) stands for, here or in an item of this list or map.
    pub any: Untyped,
    /// The innermost list travels in a message of its own (`ExtraValue`, `Verbs`).
    pub wrapped: bool,
    /// `x-kubernetes-list-type` is written; where it is not, apply takes the list as atomic.
    pub list_type_stated: bool,
    /// `x-kubernetes-map-type` is written on the field: whether it is `atomic` rather than `granular`.
    pub map_type: Option<bool>,
    /// `x-kubernetes-patch-strategy: replace` is written, which is also what happens without.
    pub replace_stated: bool,
    /// OpenAPI v3 documents the type's zero value as default.
    pub zero_default: bool,
}

/// What upstream's JSON does with a field's zero value, which protobuf cannot tell from a set one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Left out when zero.
    #[default]
    OmitZero,
    /// Written even when zero: no `omitempty`, or a struct, which `omitempty` does not touch.
    Always,
    /// A pointer: zero is a value of its own and is kept.
    Pointer,
}

/// What upstream calls a value that may be any JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Untyped {
    /// The field is not of that shape.
    #[default]
    None,
    /// `runtime.RawExtension`.
    Raw,
    /// `metav1.FieldsV1`.
    FieldsV1,
    /// `apiextensions.JSON`.
    Json,
    /// `apiextensions.JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// `apiextensions.JSONSchemaPropsOrArray`.
    SchemaOrArray,
    /// `apiextensions.JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
    /// Go's `interface{}` (table cells); JSON only.
    Interface,
}

/// What lies at a protobuf field number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtNumber {
    /// The field with this index.
    Field(usize),
    /// A message whose fields JSON shows as the type's own.
    Inlined,
}

impl TypeFacts {
    /// What lies below `prefix` at `number`; none for a number that the table does not know.
    pub fn at(&self, prefix: Path, number: u32) -> Option<AtNumber> {
        let path = extend(prefix, number)?;
        let at = self.paths.partition_point(|(known, _)| *known < path);
        let (found, index) = self.paths.get(at)?;
        if *found == path {
            return Some(AtNumber::Field(usize::from(*index)));
        }
        let depth = path.iter().take_while(|part| **part != 0).count();
        (found[..depth] == path[..depth]).then_some(AtNumber::Inlined)
    }

    /// Whether any field of the type has a protobuf number.
    pub fn has_protobuf(&self) -> bool {
        !self.paths.is_empty() || self.fields.is_empty()
    }

    /// The fields in the order of their protobuf paths.
    pub fn by_path(&self) -> impl Iterator<Item = (Path, usize)> + '_ {
        self.paths.iter().map(|(path, index)| (*path, usize::from(*index)))
    }
}

/// `prefix` with one number more; none where it is full or the number cannot be.
pub fn extend(prefix: Path, number: u32) -> Option<Path> {
    let mut path = prefix;
    let free = path.iter_mut().find(|part| **part == 0)?;
    *free = u16::try_from(number).ok().filter(|number| *number != 0)?;
    Some(path)
}
