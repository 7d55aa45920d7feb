//! Logins for registries out of a pod's `imagePullSecrets`. (`pkg/credentialprovider/secrets/secrets.go`; the two forms
//! are Docker's `config.json` and its older `.dockercfg`.)

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::Api;
use serde::Deserialize;

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

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    /// `name:password` in base64, instead of the two.
    auth: String,
}

/// The logins in one secret.
fn of_secret(secret: &Secret) -> Result<Vec<RegistryLogin>, String> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let fail = |error: serde_json::Error| format!("it is not JSON of the right form: {error}");
    let entries = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(bytes), _) => serde_json::from_slice::<Config>(&bytes.0).map_err(fail)?.auths,
        (None, Some(bytes)) => serde_json::from_slice(&bytes.0).map_err(fail)?,
        (None, None) => return Err("it has neither .dockerconfigjson nor .dockercfg".into()),
    };
    Ok(entries.into_iter().filter_map(|(registry, entry)| login(&registry, entry)).collect())
}

fn login(registry: &str, entry: Entry) -> Option<RegistryLogin> {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    // Docker writes its own registry's old address.
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let joined = || String::from_utf8(STANDARD.decode(&entry.auth).ok()?).ok();
    let (user, password) = match (&*entry.username, &*entry.password) {
        ("", "") => joined()?.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))?,
        (user, password) => (user.to_owned(), password.to_owned()),
    };
    Some(RegistryLogin { registry: host.to_owned(), user, password })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn secret(key: &str, content: &serde_json::Value) -> Secret {
        let data = BTreeMap::from([(key.to_owned(), ByteString(content.to_string().into_bytes()))]);
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn both_forms_and_both_ways_to_write_a_login() {
        let login = |registry: &str, user: &str, password: &str| RegistryLogin {
            registry: registry.into(),
            user: user.into(),
            password: password.into(),
        };
        let joined = STANDARD.encode("b:c:d");
        let auths = json!({ "r.test:5000": { "username": "u", "password": "p" }, "https://index.docker.io/v1/": { "auth": joined } });
        let expected = vec![login("docker.io", "b", "c:d"), login("r.test:5000", "u", "p")];
        let sorted = |mut logins: Vec<RegistryLogin>| {
            logins.sort_by(|a, b| a.registry.cmp(&b.registry));
            logins
        };
        assert_eq!(
            of_secret(&secret(".dockerconfigjson", &json!({ "auths": auths }))).map(sorted),
            Ok(expected.clone())
        );
        assert_eq!(of_secret(&secret(".dockercfg", &auths)).map(sorted), Ok(expected));
    }

    #[test]
    fn what_is_no_login_is_said_or_left_out() {
        assert!(of_secret(&Secret::default()).unwrap_err().contains("neither"));
        assert!(of_secret(&secret(".dockercfg", &json!([1]))).is_err());
        let bad = json!({ "auths": { "r.test": { "auth": "!" } } });
        assert_eq!(of_secret(&secret(".dockerconfigjson", &bad)), Ok(vec![]));
    }
}
