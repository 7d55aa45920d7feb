//! What Kubernetes' types and fields are for, in the words that `kubectl explain` shows.
//!
//! The texts are compiled in with the crate `k8s-openapi`, which generates them as code; loading runs that code
//! once and keeps the texts alone. They are some 1.6 MB, wanted only while OpenAPI documents are made, so whoever
//! makes those loads them, lends them and drops them. A crate of its own, because `k8s-openapi` takes long to
//! build and nothing else of the schema needs it.

use std::collections::BTreeMap;

use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

/// The texts of one definition: of itself at `""`, of each field at its name.
pub type Texts = BTreeMap<String, String>;

/// All texts, by definition name.
#[derive(Debug, Default)]
pub struct Descriptions {
    by_definition: BTreeMap<String, Texts>,
}

impl Descriptions {
    /// Runs the generated code and gathers its texts.
    pub fn load() -> Descriptions {
        let mut generator = SchemaGenerator::default();
        for add in ROOTS {
            add(&mut generator);
        }
        let mut all = Descriptions::default();
        for (name, mut schema) in generator.take_definitions(true) {
            let texts = all.by_definition.entry(name).or_default();
            let own = text(&mut schema);
            texts.extend(own.map(|text| (String::new(), text)));
            let Some(Value::Object(properties)) = schema.get_mut("properties").map(Value::take) else { continue };
            for (field, mut property) in properties {
                texts.extend(text(&mut property).map(|text| (field, text)));
            }
        }
        all
    }

    /// The texts of a definition, such as `io.k8s.api.core.v1.Pod`.
    pub fn of(&self, definition: &str) -> Option<&Texts> {
        self.by_definition.get(definition)
    }

    /// One text, of the definition itself at `""`. Lists, which the generated code does not describe, are described
    /// here.
    pub fn get(&self, definition: &str, field: &str) -> Option<String> {
        if let Some(texts) = self.of(definition) {
            return texts.get(field).cloned();
        }
        let kind = definition.rsplit('.').next()?.strip_suffix("List")?;
        Some(match field {
            "" => format!("{kind}List is a list of {kind} objects"),
            "items" => format!("The {kind} objects"),
            "metadata" => "Where the list stands: its resource version, and how to continue it".to_owned(),
            "apiVersion" => "The version of the list's schema".to_owned(),
            "kind" => "The kind of the list".to_owned(),
            _ => return None,
        })
    }
}

fn text(schema: &mut Value) -> Option<String> {
    match schema.get_mut("description")?.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

macro_rules! roots {
    ($($module:path { $($kind:ident)* })*) => {{
        &[$($(|generator| {
            use $module as of;
            add::<of::$kind>(generator);
        },)*)*]
    }};
}

/// The types that lead to all others. A test holds them against the facts table.
const ROOTS: &[fn(&mut SchemaGenerator)] = roots! {
    k8s_openapi::api::core::v1 {
        Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolumeClaim
        PersistentVolume Pod PodTemplate ReplicationController ResourceQuota Secret ServiceAccount Service
    }
    k8s_openapi::api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
    k8s_openapi::api::events::v1 { Event }
    k8s_openapi::api::authentication::v1 { SelfSubjectReview TokenReview TokenRequest }
    k8s_openapi::api::authorization::v1 {
        LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
    }
    k8s_openapi::api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
    k8s_openapi::api::autoscaling::v2 { HorizontalPodAutoscaler }
    k8s_openapi::api::batch::v1 { CronJob Job }
    k8s_openapi::api::certificates::v1 { CertificateSigningRequest }
    k8s_openapi::api::networking::v1 { IngressClass Ingress IPAddress NetworkPolicy ServiceCIDR }
    k8s_openapi::api::policy::v1 { PodDisruptionBudget Eviction }
    k8s_openapi::api::rbac::v1 { ClusterRoleBinding ClusterRole RoleBinding Role }
    k8s_openapi::api::storage::v1 {
        CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass
    }
    k8s_openapi::api::admissionregistration::v1 {
        MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
        ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration
    }
    k8s_openapi::api::scheduling::v1 { PriorityClass }
    k8s_openapi::api::coordination::v1 { Lease }
    k8s_openapi::api::node::v1 { RuntimeClass }
    k8s_openapi::api::discovery::v1 { EndpointSlice }
    k8s_openapi::api::resource::v1 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
    k8s_openapi::api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
    k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
    k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
    k8s_openapi::apimachinery::pkg::apis::meta::v1 {
        Status DeleteOptions APIResourceList APIGroup APIGroupList APIVersions Patch MicroTime
    }
    k8s_openapi::apimachinery::pkg::version { Info }
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kedge_schema::facts::builtin;
    use kedge_schema::openapi::document_v2;

    use super::Descriptions;

    #[test]
    fn what_documents_tell_is_described() {
        let descriptions = Descriptions::load();
        let document = document_v2(builtin(), &[], "v1.36.3", &|of, field| descriptions.get(of, field));
        let mut bare = BTreeSet::new();
        let (mut fields, mut described) = (0, 0);
        for (name, definition) in document["definitions"].as_object().unwrap() {
            if definition.get("description").is_none() {
                bare.insert(name.rsplit('.').next().unwrap().to_owned());
            }
            for property in definition["properties"].as_object().into_iter().flat_map(|all| all.values()) {
                fields += 1;
                described += usize::from(property["description"].as_str().is_some_and(|text| !text.is_empty()));
            }
        }
        let expected = ["WatchEvent"].map(str::to_owned).into();
        assert_eq!(bare, expected);
        assert!(described * 100 >= fields * 98, "{described} of {fields} fields");
    }

    #[test]
    fn texts_are_found_by_definition_and_field() {
        let descriptions = Descriptions::load();
        let text = |of: &str, field: &str| descriptions.get(of, field).unwrap_or_default();
        assert!(text("io.k8s.api.core.v1.Pod", "").starts_with("Pod is a collection of containers"));
        assert!(text("io.k8s.api.apps.v1.DeploymentSpec", "replicas").contains("Number of desired pods"));
        assert_eq!(text("io.k8s.api.core.v1.PodList", "items"), "The Pod objects");
        assert_eq!(descriptions.get("io.k8s.api.core.v1.Pod", "nonsense"), None);
        assert_eq!(descriptions.get("example.Toy", ""), None);
    }
}
