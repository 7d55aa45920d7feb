//! Acting for somebody else: the `Impersonate-*` headers, for those who may.
//! (`k8s.io/apiserver/pkg/endpoints/filters/impersonation.go`.)

use std::sync::Arc;

use http::HeaderMap;
use kedge_access::{Attributes, User};
use percent_encoding::percent_decode_str;

use crate::api::Api;
use crate::error::ApiError;

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The user that a request acts as.
pub(crate) fn act_as(api: &Api, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>, ApiError> {
    let all = |name: &str| {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut wanted = User {
        name: all("impersonate-user").into_iter().next().unwrap_or_default(),
        uid: all("impersonate-uid").into_iter().next().unwrap_or_default(),
        groups: all("impersonate-group"),
        ..User::default()
    };
    for key in headers.keys().filter_map(|key| key.as_str().strip_prefix(EXTRA_PREFIX)) {
        let name = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
        wanted.extra.insert(name, all(&format!("{EXTRA_PREFIX}{key}")));
    }
    if wanted == User::default() {
        return Ok(user);
    }
    if wanted.name.is_empty() {
        return Err(ApiError::bad_request("requested impersonation without impersonating a user"));
    }
    may(api, &user, &wanted)?;
    if let Some(account) = wanted.name.strip_prefix("system:serviceaccount:")
        && wanted.groups.is_empty()
        && let Some((namespace, _)) = account.split_once(':')
    {
        wanted.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let everyone = if wanted.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !wanted.is_in("system:unauthenticated") && !wanted.is_in(everyone) {
        wanted.groups.push(everyone.into());
    }
    Ok(Arc::new(wanted))
}

fn may(api: &Api, user: &User, wanted: &User) -> Result<(), ApiError> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            ..Attributes::default()
        };
        api.guard().authorize(api, user, &attributes)
    };
    match wanted.name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    Ok(())
}
