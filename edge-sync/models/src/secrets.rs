//! The Secrets beside a Model, read through the API when a source needs one.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::remote::{RemoteError, Secrets};

/// Those of one namespace.
pub(crate) struct SecretsBeside {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

#[async_trait]
impl Secrets for SecretsBeside {
    async fn read(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, RemoteError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let said = |what: String| format!("the Secret {}/{name} {what}", self.namespace);
        match api.get_opt(name).await {
            Ok(Some(secret)) => {
                Ok(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect())
            }
            Ok(None) => Err(RemoteError::SecretMissing(said("does not exist".into()))),
            Err(error) => Err(RemoteError::SecretInvalid(said(format!("cannot be read: {error}")))),
        }
    }
}
