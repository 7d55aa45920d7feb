//! The table of kinds: what can be addressed, at which version it is stored, and which rules it follows.
//!
//! Built-in kinds come from the facts, custom ones from CustomResourceDefinitions; everything after this table
//! treats both alike.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kedge_schema::crd::CustomSchema;
use kedge_schema::decode::{DecodeError, FieldProblem};
use kedge_schema::facts::{self, Facts};
use kedge_schema::field::FieldError;
use kedge_schema::shape::{Resource, Schema, TypeId};
use kedge_schema::strict;
use kedge_store::{Entry, ResourceId};
use serde_json::Value;

use crate::kinds::{self, Generic, Names, Rules};
use crate::validation;

/// A kind at one version.
pub struct Kind {
    /// Names, scope, verbs, subresources.
    pub resource: Resource,
    /// The shape of objects.
    pub schema: SchemaRef,
    /// Where objects lie in the store, whatever the version.
    pub collection: ResourceId,
    /// The `apiVersion` under which objects are stored; another one converts on the way in and out.
    pub stored_as: String,
    /// What no schema says.
    pub rules: RulesRef,
    /// What a custom resource adds.
    pub custom: Option<Arc<CustomKind>>,
}

impl Kind {
    /// `group/version`, or the bare version for core.
    pub fn api_version(&self) -> String {
        api_version(&self.resource.group, &self.resource.version)
    }

    /// The subresource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&kedge_schema::shape::Subresource> {
        self.resource.subresources.iter().find(|sub| &*sub.name == name)
    }

    /// Whether discovery offers `verb`.
    pub fn offers(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|v| &**v == verb)
    }

    /// Whether what is stored is what is shown: the version is the same and no later definition adds defaults.
    pub fn shows_as_stored(&self, entry: &Entry) -> bool {
        self.api_version() == self.stored_as
            && self.custom.as_ref().is_none_or(|custom| entry.revision > custom.revision)
    }

    /// The kind of a list of objects.
    pub fn list_kind(&self) -> String {
        self.custom.as_ref().map_or_else(|| format!("{}List", self.resource.kind), |custom| custom.list_kind.clone())
    }

    /// What the schema alone can say is wrong with an object, or with a change of it. Built-in kinds with rules of
    /// their own say there what must be present; their types' "required" is only what Go always writes.
    pub fn check_schema(&self, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
        match (&self.schema, &self.rules, old) {
            (SchemaRef::Builtin(_), RulesRef::Static(_), _) => Vec::new(),
            (SchemaRef::Builtin(id), RulesRef::Shared(_), _) => {
                validation::required(&facts::builtin().schema, *id, value)
            }
            (SchemaRef::Custom(custom), _, None) => custom.validate(value),
            (SchemaRef::Custom(custom), _, Some(old)) => custom.validate_update(value, old),
        }
    }

    /// What field selectors may name, with the text for absent.
    pub fn selectable(&self) -> Vec<(String, &'static str)> {
        let own = self.rules.get().selectable();
        let common = [("metadata.name".to_owned(), ""), ("metadata.namespace".to_owned(), "")];
        common.into_iter().chain(own.iter().map(|(path, absent)| (path.to_string(), *absent))).collect()
    }
}

/// `group/version`, or the bare version for core.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The schema of a kind: shared by all built-in ones, its own for a custom one.
#[derive(Clone)]
pub enum SchemaRef {
    /// Part of the facts.
    Builtin(TypeId),
    /// Made from a CustomResourceDefinition.
    Custom(Arc<CustomSchema>),
}

impl SchemaRef {
    /// The arena and the object's type in it.
    pub fn get(&self) -> (&Schema, TypeId) {
        match self {
            Self::Builtin(id) => (&facts::builtin().schema, *id),
            Self::Custom(custom) => (custom.schema(), custom.root()),
        }
    }

    /// Makes a value a well-formed object of the kind: types checked, unknown fields dropped and told.
    pub fn conform(&self, value: &mut Value) -> Result<Vec<FieldProblem>, DecodeError> {
        match self {
            Self::Builtin(id) => strict::conform(&facts::builtin().schema, *id, value),
            Self::Custom(custom) => custom.conform(value),
        }
    }

    /// Fills in what the schema says is the default, and writes zero values as clients expect them.
    pub fn complete(&self, value: &mut Value) {
        match self {
            Self::Builtin(id) => {
                kinds::types::complete(facts::builtin(), *id, value);
                strict::settle(facts::builtin(), *id, value);
            }
            Self::Custom(custom) => custom.default(value),
        }
    }
}

/// Rules that live for ever, or as long as their definition.
#[derive(Clone)]
pub enum RulesRef {
    /// A built-in kind's own.
    Static(&'static dyn Rules),
    /// Made from facts or a definition.
    Shared(Arc<dyn Rules>),
}

impl RulesRef {
    /// The rules.
    pub fn get(&self) -> &dyn Rules {
        match self {
            Self::Static(rules) => *rules,
            Self::Shared(rules) => &**rules,
        }
    }
}

/// What a custom resource's definition says beyond names and shape.
#[derive(Debug)]
pub struct CustomKind {
    /// The revision of the definition: what was stored before may lack its defaults.
    pub revision: u64,
    /// The kind of a list of them.
    pub list_kind: String,
    /// The definition is being deleted: nothing new is taken in.
    pub terminating: bool,
    /// Where `scale` finds replicas and the selector.
    pub scale: Option<ScalePaths>,
}

/// `subresources.scale` of a definition.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// `specReplicasPath`.
    pub spec_replicas: crate::jsonpath::Path,
    /// `statusReplicasPath`.
    pub status_replicas: crate::jsonpath::Path,
    /// `labelSelectorPath`.
    pub label_selector: Option<crate::jsonpath::Path>,
}

/// All kinds.
#[derive(Clone, Default)]
pub struct Registry {
    /// By group, version and plural; ordered, because discovery lists it.
    kinds: BTreeMap<(String, String, String), Arc<Kind>>,
}

impl Registry {
    /// The kinds of Kubernetes itself.
    pub fn builtin() -> Self {
        let facts = facts::builtin();
        let mut registry = Self::default();
        for resource in facts.resources.iter() {
            registry.insert(builtin_kind(facts, resource));
        }
        registry
    }

    /// Adds or replaces a kind.
    pub fn insert(&mut self, kind: Kind) {
        let r = &kind.resource;
        self.kinds.insert((r.group.to_string(), r.version.to_string(), r.plural.to_string()), Arc::new(kind));
    }

    /// The kind behind `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        // A borrowed lookup in a map of owned triples is not worth its complexity: this is three short strings.
        self.kinds.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The kind called `kind` in `api_version`.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let start = (group.to_owned(), version.to_owned(), String::new());
        let same = self.kinds.range(start..).take_while(|((g, v, _), _)| g == group && v == version);
        same.map(|(_, found)| found).find(|found| &*found.resource.kind == kind)
    }

    /// Every kind, by group, version and plural.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.values()
    }

    /// One kind per stored collection: the one whose version is stored. What is answered rather than stored is not
    /// among them.
    pub fn stored(&self) -> impl Iterator<Item = &Arc<Kind>> {
        let stored = |kind: &Kind| kind.api_version() == kind.stored_as && kind.offers("list");
        self.all().filter(move |kind| stored(kind) && &*kind.resource.plural != NOT_STORED)
    }

    /// Groups in discovery's order with their versions, newest first; core is not among them.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: HashMap<&str, Vec<String>> = HashMap::new();
        for kind in self.all().filter(|kind| !kind.resource.group.is_empty()) {
            let versions = groups.entry(&kind.resource.group).or_default();
            if !versions.iter().any(|v| **v == *kind.resource.version) {
                versions.push(kind.resource.version.to_string());
            }
        }
        let mut out: Vec<_> = groups.into_iter().map(|(group, versions)| (group.to_owned(), versions)).collect();
        out.sort_by_key(|(group, _)| (group_rank(group), group.clone()));
        for (_, versions) in &mut out {
            versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        }
        out
    }
}

/// Computed when asked for.
const NOT_STORED: &str = "componentstatuses";

fn builtin_kind(facts: &Facts, resource: &Resource) -> Kind {
    let has_spec = facts.schema.object(resource.schema).field("spec").is_some();
    let rules = match kinds::rules(&resource.group, &resource.kind) {
        Some(rules) => RulesRef::Static(rules),
        None => RulesRef::Shared(Arc::new(Generic {
            status: resource.subresources.iter().any(|sub| &*sub.name == "status"),
            generation: has_spec && COUNTS_GENERATIONS.contains(&&*resource.kind),
            names: if &*resource.group == "rbac.authorization.k8s.io" { Names::PathSegment } else { Names::Subdomain },
        })),
    };
    let (collection, stored_as) = storage(resource);
    Kind {
        resource: resource.clone(),
        schema: SchemaRef::Builtin(resource.schema),
        collection,
        stored_as,
        rules,
        custom: None,
    }
}

/// Where a built-in kind is stored and as which version. Events of both groups are one collection.
fn storage(resource: &Resource) -> (ResourceId, String) {
    match (&*resource.group, &*resource.plural) {
        ("events.k8s.io", "events") => (ResourceId::new("", "events"), "v1".to_owned()),
        ("autoscaling", plural) => (ResourceId::new("autoscaling", plural), "autoscaling/v2".to_owned()),
        (group, plural) => (ResourceId::new(group, plural), api_version(group, &resource.version)),
    }
}

/// Kinds whose strategy counts generations (`PrepareForCreate` sets `Generation = 1`).
const COUNTS_GENERATIONS: &[&str] = &[
    "APIService",
    "ControllerRevision",
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "DeviceClass",
    "FlowSchema",
    "Ingress",
    "Job",
    "MutatingAdmissionPolicy",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PriorityLevelConfiguration",
    "ReplicaSet",
    "ReplicationController",
    "ResourceClaim",
    "ResourceSlice",
    "StatefulSet",
    "ValidatingAdmissionPolicy",
    "ValidatingWebhookConfiguration",
];

/// Upstream's order of groups in discovery: by hand-given priority, then by name.
fn group_rank(group: &str) -> u32 {
    const ORDER: &[&str] = &[
        "apiregistration.k8s.io",
        "apps",
        "events.k8s.io",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "storage.k8s.io",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "scheduling.k8s.io",
        "coordination.k8s.io",
        "node.k8s.io",
        "discovery.k8s.io",
        "resource.k8s.io",
        "flowcontrol.apiserver.k8s.io",
    ];
    ORDER.iter().position(|known| *known == group).unwrap_or(ORDER.len()) as u32
}

/// GA before beta before alpha, higher numbers first (`k8s.io/apimachinery/pkg/version.CompareKubeAwareVersionStrings`).
pub(crate) fn version_rank(version: &str) -> (u8, u32, u32) {
    let rest = version.strip_prefix('v').unwrap_or_default();
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let (level, minor) = match &rest[digits..] {
        "" => (3, ""),
        tail if tail.starts_with("beta") => (2, &tail[4..]),
        tail if tail.starts_with("alpha") => (1, &tail[5..]),
        _ => return (0, 0, 0),
    };
    (level, major, minor.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rank_as_kubernetes_ranks_them() {
        let mut versions = vec!["v1alpha1", "v10", "foo", "v2", "v2beta1", "v11alpha2", "v1beta10", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v2beta1", "v1beta10", "v1beta2", "v11alpha2", "v1alpha1", "foo"]);
    }

    #[test]
    fn every_ga_kind_is_there_with_its_collection() {
        let registry = Registry::builtin();
        for (group, version, plural) in [
            ("", "v1", "pods"),
            ("apps", "v1", "deployments"),
            ("batch", "v1", "jobs"),
            ("resource.k8s.io", "v1", "resourceclaims"),
        ] {
            assert!(registry.find(group, version, plural).is_some(), "{group}/{version} {plural}");
        }
        let core = registry.find("", "v1", "events").unwrap();
        let events = registry.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(core.collection, events.collection);
        assert_eq!(registry.by_kind("apps", "v1", "Deployment").unwrap().resource.plural.as_ref(), "deployments");
        let groups = registry.groups();
        let autoscaling = groups.iter().find(|(group, _)| group == "autoscaling").unwrap();
        assert_eq!(autoscaling.1, ["v2", "v1"]);
        assert_eq!(registry.stored().filter(|kind| &*kind.resource.kind == "Event").count(), 1);
    }
}
