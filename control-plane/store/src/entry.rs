//! What the store holds: encoded objects, their addresses, and the little of them that selectors look at.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Names a collection, `group/plural` (`apps/deployments`; core is `/pods`). One per kind, whatever the version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(Arc<str>);

impl ResourceId {
    /// The collection `plural` of API group `group` (empty for core).
    pub fn new(group: &str, plural: &str) -> Self {
        Self(format!("{group}/{plural}").into())
    }

    pub(crate) fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// `group/plural`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object's place in its collection. Ordered by namespace, then name: the order of every list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Empty for objects without a namespace.
    pub namespace: Box<str>,
    /// The object's name.
    pub name: Box<str>,
}

impl ObjectKey {
    /// The key of `name` in `namespace` (empty for cluster scope).
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// What selectors compare, taken out of the object when it was written so that nobody decodes it to filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facets {
    /// `metadata.labels`.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// The values of the kind's selectable fields, such as `spec.nodeName`.
    pub fields: Vec<(Box<str>, Box<str>)>,
}

impl Facets {
    /// The value of label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// The value of selectable field `path`.
    pub fn field(&self, path: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| &**k == path).map(|(_, v)| &**v)
    }
}

/// An object ready to be written: JSON that lacks only its revision.
#[derive(Clone, Debug)]
pub struct Payload {
    json: Vec<u8>,
    revision_at: usize,
    facets: Facets,
}

impl Payload {
    /// `json` has no `metadata.resourceVersion`; the store inserts `"resourceVersion":"N",` at byte `revision_at`,
    /// which is right after the opening brace of a `metadata` that has at least one other member.
    pub fn new(json: Vec<u8>, revision_at: usize, facets: Facets) -> Self {
        assert!(revision_at > 0 && json[revision_at - 1] == b'{', "the revision goes right behind an opening brace");
        Self { json, revision_at, facets }
    }

    /// The size in bytes, without the revision.
    pub fn len(&self) -> usize {
        self.json.len()
    }

    /// Whether there is no object at all.
    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }

    pub(crate) fn seal(self, key: ObjectKey, revision: u64) -> Entry {
        let member = format!("\"resourceVersion\":\"{revision}\",");
        let mut bytes = Vec::with_capacity(self.json.len() + member.len());
        bytes.extend_from_slice(&self.json[..self.revision_at]);
        bytes.extend_from_slice(member.as_bytes());
        bytes.extend_from_slice(&self.json[self.revision_at..]);
        Entry { key, revision, bytes: bytes.into(), facets: self.facets }
    }
}

/// One object at one revision, as every reader gets it.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub key: ObjectKey,
    /// The revision of its last change; also inside `bytes` as `metadata.resourceVersion`.
    pub revision: u64,
    /// The whole object as JSON.
    pub bytes: Bytes,
    /// What selectors look at.
    pub facets: Facets,
}
