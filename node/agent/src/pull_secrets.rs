//! Logins for registries out of a pod's `imagePullSecrets`.

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::Api;

use crate::agent::{RegistryLogin, Shared};
use crate::events::Happening;

/// The logins of all secrets that the pod names. One that cannot be read is told; a registry that needs it
/// will refuse, by name.
pub(crate) async fn logins(shared: &Shared, pod: &Pod) -> Vec<RegistryLogin> {
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(shared.client.clone(), namespace);
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    for name in names.map(|reference| reference.name.as_str()).filter(|name| !name.is_empty()) {
        let read = match api.get_opt(name).await {
            Ok(Some(secret)) => of_secret(&secret),
            Ok(None) => Err("it does not exist".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(logins) => all.extend(logins),
            Err(error) => {
                tracing::warn!(namespace, secret = name, error, "an image pull secret cannot be used");
                unread.push(name.to_owned());
            }
        }
    }
    if !unread.is_empty() {
        shared.tell(pod, None, &Happening::NoPullSecrets { names: unread });
    }
    all
}

/// The logins in one secret.
fn of_secret(secret: &Secret) -> Result<Vec<RegistryLogin>, String> {
    kedge_registry::logins(|key| Some(&*secret.data.as_ref()?.get(key)?.0))
}
