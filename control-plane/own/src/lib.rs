//! The own kinds, `kedge.dev/v1alpha1`: what users write and what Kedge answers, as types and as the
//! CustomResourceDefinitions by which the API serves them.
//!
//! A kind is one file with its types, one `.yaml` beside it with its schema, and one line in [`definitions`].
//! Not here: what is done with the objects.

#![forbid(unsafe_code)]

mod conditions;
mod model;
mod model_service;
mod site;

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use conditions::{set_condition, turned};
pub use model::{
    FetchedModel, HubSource, HuggingFaceSource, ModelAtSite, ModelAtSiteState, ModelSpec, ModelStatus, OciSource,
    S3Source, SecretKeyRef, SecretRef, SiteChoice, Source, UrlSource,
};
pub use model_service::{ModelServiceSpec, ModelServiceStatus};
pub use site::{SiteIdentity, SiteInventory, SiteModel, SiteModelState, SiteSpec, SiteStatus};

/// The group of the own kinds.
pub const GROUP: &str = "kedge.dev";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// Both, as objects carry them.
pub const API_VERSION: &str = "kedge.dev/v1alpha1";

/// The annotation by which the sync names contents that are on their way to a Model which still has others: they stay
/// until they take the others' place.
pub const INCOMING_DIGEST: &str = "kedge.dev/incoming-digest";

/// The annotation by which a pod names the contents that it serves.
pub const MODEL_DIGEST: &str = "kedge.dev/model-digest";

/// The definition of every own kind, as objects that the API takes.
///
/// # Panics
/// When a definition compiled into the program is no YAML, which a test rules out.
pub fn definitions() -> Vec<Value> {
    let texts = [include_str!("model.yaml"), include_str!("model_service.yaml"), include_str!("site.yaml")];
    texts.iter().map(|text| serde_yaml_ng::from_str(text).expect("our own definitions are YAML")).collect()
}

/// An object with a spec and a status; `K` says which kind it is.
macro_rules! own_kind {
    ($(#[$doc:meta])* $kind:ident, $plural:literal, $scope:ident, $spec:ty, $status:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            /// Always [`API_VERSION`].
            #[serde(default = "api_version")]
            pub api_version: Cow<'static, str>,
            /// The kind's name.
            #[serde(default)]
            pub kind: Cow<'static, str>,
            /// Name, labels, owners.
            pub metadata: ObjectMeta,
            /// What is asked for.
            pub spec: $spec,
            /// What is.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub status: Option<$status>,
        }

        impl $kind {
            /// A new object of this name.
            pub fn new(name: &str, spec: $spec) -> Self {
                Self {
                    api_version: API_VERSION.into(),
                    kind: stringify!($kind).into(),
                    metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                    spec,
                    status: None,
                }
            }
        }

        impl kube::Resource for $kind {
            type DynamicType = ();
            type Scope = kube::core::$scope;
            fn kind((): &()) -> Cow<'_, str> {
                stringify!($kind).into()
            }
            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

fn api_version() -> Cow<'static, str> {
    API_VERSION.into()
}

own_kind!(
    /// A model: files that are known by their digest.
    Model, "models", NamespaceResourceScope, ModelSpec, ModelStatus
);
own_kind!(
    /// A model served over HTTP behind a Service.
    ModelService, "modelservices", NamespaceResourceScope, ModelServiceSpec, ModelServiceStatus
);
own_kind!(
    /// Another cluster that takes what it should hold from this one.
    Site, "sites", ClusterResourceScope, SiteSpec, SiteStatus
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_of_this_group_and_named_after_it() {
        for definition in definitions() {
            assert_eq!(definition["kind"], "CustomResourceDefinition");
            assert_eq!(definition["spec"]["group"], GROUP);
            let name = format!("{}.{GROUP}", definition["spec"]["names"]["plural"].as_str().unwrap());
            assert_eq!(definition["metadata"]["name"], name.as_str());
        }
    }

    #[test]
    fn what_a_user_writes_is_read() {
        let model: Model = serde_json::from_value(serde_json::json!({
            "apiVersion": API_VERSION, "kind": "Model", "metadata": {"name": "m"},
            "spec": {"source": {"path": "minilm"}}
        }))
        .unwrap();
        assert_eq!(model.spec.source, Source::Path("minilm".into()));
        let back = serde_json::to_value(&model).unwrap();
        assert_eq!(back["spec"], serde_json::json!({"source": {"path": "minilm"}}));
    }
}
