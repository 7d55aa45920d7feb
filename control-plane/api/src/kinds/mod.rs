//! What a built-in kind does beyond its schema: one file per kind (or family of like kinds), one line in the table.
//!
//! The shapes of objects come from the facts table; here is only what no table says: defaults in code, what a
//! create and an update reset, validation, selectable fields, printed columns. Every method works on plain values,
//! knows no I/O and is called by the one generic path in `rest`.

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::FieldError;
use serde_json::Value;

use crate::object;
use crate::registry::Kind;

mod access;
mod check;
mod component_status;
mod config;
mod cron_job;
mod custom_resource_definition;
mod daemon_set;
mod deployment;
mod fill;
mod generic;
mod image;
mod job;
mod namespace;
mod network;
mod node;
mod plain;
pub(crate) mod pod;
mod pod_spec;
mod pod_template;
mod policy;
mod records;
mod replica_set;
mod replication_controller;
mod rollout;
pub(crate) mod service;
mod stateful_set;
mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod types;
mod unenforced;
mod workload;

pub(crate) use generic::{Custom, Generic};

/// The rules of one kind. Everything has a default, so that a kind says only what is special about it.
pub trait Rules: Send + Sync + 'static {
    /// Fills in what is absent (`pkg/apis/*/v*/defaults.go`). Must be idempotent.
    fn default(&self, _object: &mut Value) {}

    /// Resets what a client may not set at creation. Called before defaults.
    fn prepare_create(&self, object: &mut Value) {
        if self.has_status()
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    /// What the server alone decides about a new object that is otherwise complete: after defaults and admission.
    fn finish_create(&self, _object: &mut Value) {}

    /// Keeps of `old` what an update through the main path may not change.
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.has_status() {
            object::carry_over(new, old, "status");
        }
    }

    /// Keeps of `old` what an update through `/status` may not change: everything but status and metadata.
    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let keys: Vec<String> =
            new.as_object().into_iter().chain(old.as_object()).flatten().map(|(key, _)| key.clone()).collect();
        for key in keys.iter().filter(|key| !matches!(&***key, "apiVersion" | "kind" | "metadata" | "status")) {
            object::carry_over(new, old, key);
        }
    }

    /// What is wrong with an object that is about to be created, beyond [`Rules::validate`].
    fn validate_create(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with an object, new or changed.
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a change, beyond [`Rules::validate`] of the new object.
    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Sentences for the client about things that are allowed but unwise.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Since when the kind at this version is deprecated and what replaces it, as clients are told with every answer
    /// (`APILifecycleDeprecated`): `deprecated in v1.19+`.
    fn deprecated(&self) -> Option<&'static str> {
        None
    }

    /// Fields that field selectors may name beyond `metadata.name` and `metadata.namespace`, each with the text
    /// it compares as when it is absent.
    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[])
    }

    /// Whether the kind has a `/status` of its own.
    fn has_status(&self) -> bool {
        false
    }

    /// Whether `metadata.generation` counts the changes of the spec.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether PUT may create (`AllowCreateOnUpdate`).
    fn creates_on_update(&self) -> bool {
        false
    }

    /// Whether PUT may do without a `resourceVersion` (`AllowUnconditionalUpdate`).
    fn updates_unconditionally(&self) -> bool {
        true
    }

    /// How long a deletion waits for its owner, in seconds; none deletes at once (`CheckGracefulDelete`).
    fn grace_seconds(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// What the beginning of a deletion changes beyond the metadata.
    fn begin_delete(&self, _object: &mut Value) {}

    /// Whether a deletion without a policy leaves dependents alone (`DefaultGarbageCollectionPolicy`).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Which names the kind allows.
    fn names(&self) -> Names {
        Names::Subdomain
    }

    /// Whether [`Rules::columns`] are the whole table, the name and the age among them where the kind shows them.
    fn whole_table(&self) -> bool {
        false
    }

    /// The headings of a table, after the name and before the age.
    fn columns(&self) -> Cow<'_, [Column]> {
        Cow::Borrowed(&[])
    }

    /// The cells of one row, one per column.
    fn row(&self, _object: &Value, _now: Timestamp) -> Vec<Value> {
        Vec::new()
    }
}

/// A heading of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The heading.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Cow<'static, str>,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of text that is always shown.
    pub const fn text(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), kind: Cow::Borrowed("string"), priority: 0 }
    }

    /// A column of text shown with `-o wide`.
    pub const fn wide(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), kind: Cow::Borrowed("string"), priority: 1 }
    }

    /// A column of yes and no.
    pub const fn flag(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), kind: Cow::Borrowed("boolean"), priority: 0 }
    }

    /// A column of whole numbers.
    pub const fn count(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), kind: Cow::Borrowed("integer"), priority: 0 }
    }
}

/// Which names a kind allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Label1035,
    /// Anything that fits one path segment: RBAC.
    PathSegment,
}

/// The kinds with rules of their own. Every other kind has [`Generic`] rules, which its facts decide.
const TABLE: &[(&str, &str, &dyn Rules)] = &[
    ("", "ComponentStatus", &component_status::COMPONENT_STATUS),
    ("", "ConfigMap", &config::CONFIG_MAP),
    ("", "Endpoints", &network::ENDPOINTS),
    ("", "Event", &records::EVENT),
    ("", "LimitRange", &policy::RANGE),
    ("", "Namespace", &namespace::Namespace),
    ("", "Node", &node::Node),
    ("", "PersistentVolume", &storage::VOLUME),
    ("", "PersistentVolumeClaim", &storage::CLAIM),
    ("", "Pod", &pod::Pod),
    ("", "PodTemplate", &records::TEMPLATE),
    ("", "ReplicationController", &replication_controller::ReplicationController),
    ("", "ResourceQuota", &policy::QUOTA),
    ("", "Secret", &config::SECRET),
    ("", "Service", &service::Service),
    ("", "ServiceAccount", &access::ACCOUNT),
    ("apps", "ControllerRevision", &records::REVISION),
    ("apps", "DaemonSet", &daemon_set::DaemonSet),
    ("apps", "Deployment", &deployment::Deployment),
    ("apps", "ReplicaSet", &replica_set::ReplicaSet),
    ("apps", "StatefulSet", &stateful_set::StatefulSet),
    ("autoscaling", "HorizontalPodAutoscaler", &policy::AUTOSCALER),
    ("batch", "CronJob", &cron_job::CronJob),
    ("batch", "Job", &job::Job),
    ("certificates.k8s.io", "CertificateSigningRequest", &access::CERTIFICATE),
    ("coordination.k8s.io", "Lease", &records::LEASE),
    ("discovery.k8s.io", "EndpointSlice", &network::SLICE),
    ("events.k8s.io", "Event", &records::EVENT),
    ("networking.k8s.io", "Ingress", &network::INGRESS),
    ("networking.k8s.io", "IngressClass", &network::INGRESS_CLASS),
    ("networking.k8s.io", "NetworkPolicy", &network::POLICY),
    ("node.k8s.io", "RuntimeClass", &policy::RUNTIME),
    ("policy", "PodDisruptionBudget", &policy::BUDGET),
    ("rbac.authorization.k8s.io", "ClusterRole", &access::CLUSTER_ROLE),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", &access::CLUSTER_BINDING),
    ("rbac.authorization.k8s.io", "Role", &access::ROLE),
    ("rbac.authorization.k8s.io", "RoleBinding", &access::BINDING),
    ("scheduling.k8s.io", "PriorityClass", &policy::PRIORITY),
    ("storage.k8s.io", "CSIDriver", &storage::DRIVER),
    ("storage.k8s.io", "CSINode", &storage::CSI_NODE),
    ("storage.k8s.io", "StorageClass", &storage::CLASS),
    ("storage.k8s.io", "VolumeAttachment", &storage::ATTACHMENT),
    ("apiextensions.k8s.io", "CustomResourceDefinition", &custom_resource_definition::Definition),
];

/// Sentences for the client about an object of `kind`: what is unwise, and what does nothing.
pub(crate) fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let mut out = kind.rules.get().warnings(object);
    if kind.custom.is_none() {
        out.extend(unenforced::warnings(&kind.resource, object));
    }
    out
}

/// The rules of a built-in kind, if it has its own.
pub(crate) fn rules(group: &str, kind: &str) -> Option<&'static dyn Rules> {
    TABLE.iter().find(|(g, k, _)| (*g, *k) == (group, kind)).map(|(_, _, rules)| *rules)
}
