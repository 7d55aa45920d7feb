//! What a value may look like: one small language for built-in kinds and custom resources alike.
//!
//! A [`Schema`] is an arena of object types. Built-in types come from the facts table, a custom resource's from
//! its `openAPIV3Schema`; decoding, pruning, defaults, apply, strategic merge, protobuf and OpenAPI all walk the
//! same [`Shape`]. What is not here: validation that no schema can say, which is code per kind.

use serde_json::Value;

/// Where an object type lies in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

/// An arena of object types that may refer to each other, in circles too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// The types, addressed by [`TypeId`].
    pub types: Vec<ObjectType>,
}

impl Schema {
    /// The type at `id`. Ids are only made together with their schema, so a foreign id is a bug and panics.
    pub fn object(&self, id: TypeId) -> &ObjectType {
        &self.types[id.0 as usize]
    }
}

/// An object with named fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    /// The OpenAPI definition name (`io.k8s.api.core.v1.PodSpec`), or a path within a custom resource's schema.
    pub name: Box<str>,
    /// Fields sorted by name.
    pub fields: Vec<Field>,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// Apply treats the object as one value (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// The value carries `apiVersion`, `kind` and `metadata` of its own (`x-kubernetes-embedded-resource`).
    pub embedded_resource: bool,
}

impl ObjectType {
    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok().map(|at| &self.fields[at])
    }
}

/// A named member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The JSON name.
    pub name: Box<str>,
    /// What its value looks like.
    pub shape: Shape,
    /// Must be present.
    pub required: bool,
    /// `null` is a value of its own rather than absence (`nullable` of a custom resource).
    pub nullable: bool,
    /// Filled in when absent.
    pub default: Option<Value>,
    /// The protobuf field number; 0 where there is none.
    pub number: u32,
    /// What strategic merge patch does here.
    pub patch: PatchRule,
    /// Limits of a custom resource's schema (`enum`, `pattern`, `maximum`, …).
    pub limits: Option<Box<Limits>>,
}

/// What a value looks like.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A floating-point number.
    Double,
    /// Text.
    String,
    /// Bytes, as base64 text in JSON.
    Bytes,
    /// RFC 3339 with seconds, `metav1.Time`.
    Time,
    /// RFC 3339 with microseconds, `metav1.MicroTime`.
    MicroTime,
    /// Text such as `1m30s`, `metav1.Duration`.
    Duration,
    /// Text or a number such as `100m` or `2Gi`, `resource.Quantity`.
    Quantity,
    /// An integer or text.
    IntOrString,
    /// Any JSON: `runtime.RawExtension`, `apiextensions JSON`, `metav1.FieldsV1`.
    Any,
    /// An object of a type of the same schema.
    Object(TypeId),
    /// A list.
    List(Box<List>),
    /// An object with free keys.
    Map(Box<Map>),
}

/// A list and how its items are told apart.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// What each item looks like.
    pub item: Shape,
    /// How apply merges it.
    pub kind: ListKind,
    /// Limits on each item.
    pub limits: Option<Box<Limits>>,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// One value, replaced as a whole.
    Atomic,
    /// Scalars, each at most once.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<Box<str>>),
}

/// An object with free keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// What each value looks like.
    pub value: Shape,
    /// Apply treats the map as one value (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Limits on each value.
    pub limits: Option<Box<Limits>>,
}

/// `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchRule {
    /// Lists are merged item by item rather than replaced.
    pub merge: bool,
    /// Only keys named in the patch's `$retainKeys` stay.
    pub retain_keys: bool,
    /// An object is replaced as a whole, not merged; lists are anyway unless `merge` is set.
    pub replace: bool,
    /// What tells items of a merged list apart; none for scalars.
    pub merge_key: Option<Box<str>>,
}

/// What an OpenAPI schema says beyond the shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Allowed values; empty for any.
    pub one_of: Vec<Value>,
    /// A regular expression that the text matches.
    pub pattern: Option<Box<str>>,
    /// The `format` name.
    pub format: Option<Box<str>>,
    /// The least number, and whether it is itself excluded.
    pub minimum: Option<(f64, bool)>,
    /// The greatest number, and whether it is itself excluded.
    pub maximum: Option<(f64, bool)>,
    /// What the number is a multiple of.
    pub multiple_of: Option<f64>,
    /// The least and greatest count of characters.
    pub length: (Option<u64>, Option<u64>),
    /// The least and greatest count of items.
    pub items: (Option<u64>, Option<u64>),
    /// The least and greatest count of properties.
    pub properties: (Option<u64>, Option<u64>),
    /// Items differ from each other.
    pub unique_items: bool,
    /// Validation-only sub-schemas (`allOf`, `anyOf`, `oneOf`, `not`) as they were written.
    pub logic: Option<Value>,
}

/// One kind at one version, as discovery tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The API group; empty for core.
    pub group: Box<str>,
    /// The version, such as `v1`.
    pub version: Box<str>,
    /// The kind, such as `Pod`.
    pub kind: Box<str>,
    /// The plural in URLs, such as `pods`.
    pub plural: Box<str>,
    /// The singular, such as `pod`.
    pub singular: Box<str>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Such as `po`.
    pub short_names: Vec<Box<str>>,
    /// Such as `all`.
    pub categories: Vec<Box<str>>,
    /// What may be done: `create`, `get`, `list`, …
    pub verbs: Vec<Box<str>>,
    /// `status`, `scale`, `eviction`, …
    pub subresources: Vec<Subresource>,
    /// The type of the object.
    pub schema: TypeId,
}

/// A part of a resource with a URL of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Subresource {
    /// The last segment of the URL.
    pub name: Box<str>,
    /// The group, version and kind that go in and out.
    pub group: Box<str>,
    /// The version of `kind`.
    pub version: Box<str>,
    /// The kind, such as `Scale` or `Eviction`.
    pub kind: Box<str>,
    /// What may be done.
    pub verbs: Vec<Box<str>>,
}
