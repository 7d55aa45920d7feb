//! Who may do what, as the API server asks it.

mod node;
mod rbac;

use kedge_access::{Attributes, Decision, Rule, User};
use serde_json::{Value, json};

use crate::api::Api;
use crate::error::ApiError;

pub use rbac::Rbac;

/// Says who somebody is and what they may do. Called with the API, so that rules and accounts that are stored
/// there are read at the newest revision.
pub trait Guard: Send + Sync + 'static {
    /// Yes, or nobody said yes.
    fn decide(&self, api: &Api, user: &User, attributes: &Attributes<'_>) -> Decision;

    /// What `user` may do in `namespace`, as `SubjectRulesReviewStatus`.
    fn rules(&self, api: &Api, user: &User, namespace: &str) -> Value;

    /// Whose bearer token this is and for which of `audiences` (the API server's own, when empty); or why nobody's.
    fn authenticate(&self, api: &Api, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String>;

    /// A token for the service account in `request` (`authentication.k8s.io/v1` TokenRequest), filled in.
    fn issue(&self, api: &Api, account: &Value, request: Value) -> Result<Value, ApiError>;

    /// Who signs the tokens of service accounts; none where nobody does.
    fn issuer(&self) -> Option<Issuer> {
        None
    }

    /// The first of `wanted` that `user` does not hold in `namespace` and so may not grant; none to let them.
    fn may_grant(&self, _api: &Api, _user: &User, _namespace: &str, _wanted: &[Rule]) -> Option<Rule> {
        None
    }

    /// `Ok` to let the user go on; otherwise the refusal to send.
    fn authorize(&self, api: &Api, user: &User, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        match self.decide(api, user, attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(why) => Err(refusal(user, attributes, &why)),
        }
    }
}

/// Who signs tokens, for others who check them.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The name that tokens are signed under, an https URL.
    pub url: String,
    /// The public keys, as a JSON Web Key Set.
    pub keys: Value,
}

/// The refusal in upstream's words (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`).
fn refusal(user: &User, attributes: &Attributes<'_>, why: &str) -> ApiError {
    let Attributes { verb, group, resource, subresource, namespace, name, path, .. } = *attributes;
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    if resource.is_empty() {
        return ApiError::forbidden("", "", "", &format!("User \"{}\" cannot {verb} path \"{path}\"{why}", user.name));
    }
    let what = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{namespace}\"")
    };
    let message =
        format!("User \"{}\" cannot {verb} resource \"{what}\" in API group \"{group}\" {scope}{why}", user.name);
    ApiError::forbidden(group, resource, name, &message)
}

/// Lets everybody do everything and knows nobody: for tests of what comes after the guard.
#[derive(Debug)]
pub struct Open;

impl Guard for Open {
    fn decide(&self, _: &Api, _: &User, _: &Attributes<'_>) -> Decision {
        Decision::Allow("everything is allowed".into())
    }

    fn rules(&self, _: &Api, _: &User, _: &str) -> Value {
        json!({ "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }], "nonResourceRules": [], "incomplete": false })
    }

    fn authenticate(&self, _: &Api, _: &str, _: &[String]) -> Result<(User, Vec<String>), String> {
        Err("there are no tokens here".into())
    }

    fn issue(&self, _: &Api, _: &Value, _: Value) -> Result<Value, ApiError> {
        Err(ApiError::unavailable("there are no tokens here"))
    }
}
