//! The guard of a real cluster: what nodes may do, then RBAC over the stored roles; tokens over the stored accounts.

use jiff::{SignedDuration, Timestamp};
use kedge_access::{Attributes, Bound, Claims, Decision, Policy, Rule, TokenSigner, User, node_of};
use kedge_schema::field::{FieldError, Path};
use kedge_store::{Entry, ObjectKey, ResourceId};
use serde_json::{Value, json};

use super::node::Nodes;
use super::{Guard, Issuer};
use crate::api::Api;
use crate::derived::Derived;
use crate::error::ApiError;
use crate::object;
use crate::rest::save::timestamp;

const GROUP: &str = "rbac.authorization.k8s.io";
/// A token lasts an hour unless more is asked for, and at least ten minutes (KEP-1205).
const LIFETIME_DEFAULT_SECONDS: i64 = 3600;
const LIFETIME_LEAST_SECONDS: i64 = 600;
/// 2^32 seconds, upstream's limit.
const LIFETIME_MOST_SECONDS: i64 = 1 << 32;

/// The authorizers Node and RBAC, one after the other (`--authorization-mode=Node,RBAC`), and service account tokens.
pub struct Rbac {
    nodes: Nodes,
    policy: Derived<Policy>,
    signer: TokenSigner,
    /// The name tokens are signed under, which is also the audience of the API server itself.
    issuer: String,
}

impl Rbac {
    /// A guard whose tokens are signed by `signer` under `issuer`.
    pub fn new(signer: TokenSigner, issuer: &str) -> Self {
        let sources = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"]
            .map(|plural| ResourceId::new(GROUP, plural));
        let policy = Derived::new(sources.to_vec(), move |store| {
            let mut policy = Policy::default();
            for (source, add) in sources.iter().zip([
                Policy::add_cluster_role as fn(&mut Policy, &Value),
                Policy::add_role,
                Policy::add_binding,
                Policy::add_binding,
            ]) {
                let page = store
                    .list(source, None, None, None, usize::MAX, |_| true)
                    .expect("the newest revision is never gone");
                page.entries.iter().for_each(|entry| add(&mut policy, &object::decode(&entry.bytes)));
            }
            policy
        });
        Self { nodes: Nodes::new(), policy, signer, issuer: issuer.to_owned() }
    }

    /// The policy as of now.
    pub fn policy(&self, api: &Api) -> std::sync::Arc<Policy> {
        self.policy.get(api.store())
    }

    fn claims(&self, api: &Api, account: &Value, spec: &Value) -> Result<Claims, ApiError> {
        let now = api.world().clock.wall().as_second();
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(LIFETIME_DEFAULT_SECONDS);
        if !(LIFETIME_LEAST_SECONDS..=LIFETIME_MOST_SECONDS).contains(&seconds) {
            let path = Path::new("spec").child("expirationSeconds");
            let why = if seconds < LIFETIME_LEAST_SECONDS {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            return Err(ApiError::invalid(
                "authentication.k8s.io",
                "TokenRequest",
                "",
                &[FieldError::invalid(&path, seconds, why)],
            ));
        }
        let named: Vec<String> =
            spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let aud = if named.is_empty() { vec![self.issuer.clone()] } else { named };
        let (namespace, name) = (object::namespace(account).to_owned(), object::name(account).to_owned());
        let mut bound = Bound { namespace, ..Bound::default() };
        bound.serviceaccount.name = name.clone();
        bound.serviceaccount.uid = object::uid(account).to_owned();
        self.bind(api, &mut bound, &spec["boundObjectRef"])?;
        Ok(Claims {
            iss: self.issuer.clone(),
            sub: format!("system:serviceaccount:{}:{name}", bound.namespace),
            aud,
            exp: now + seconds,
            iat: now,
            nbf: now,
            jti: api.world().random.uuid(),
            bound,
        })
    }

    /// Ties the token to the object it asks for, which must exist and be the one meant.
    fn bind(&self, api: &Api, bound: &mut Bound, reference: &Value) -> Result<(), ApiError> {
        let kind = reference["kind"].as_str().unwrap_or_default();
        if kind.is_empty() {
            return Ok(());
        }
        let name = reference["name"].as_str().unwrap_or_default();
        let (plural, namespace) = match kind {
            "Pod" => ("pods", &*bound.namespace),
            "Secret" => ("secrets", &*bound.namespace),
            "Node" => ("nodes", ""),
            other => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of type {other}: Pod, Secret and Node are"
                )));
            }
        };
        let found = stored(api, plural, namespace, name).ok_or_else(|| ApiError::not_found("", plural, name))?;
        let target = object::decode(&found.bytes);
        let asked = reference["uid"].as_str().unwrap_or_default();
        if !asked.is_empty() && asked != object::uid(&target) {
            let why = format!(
                "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict("", plural, name, &why));
        }
        let this = |target: &Value| kedge_access::Reference {
            name: object::name(target).to_owned(),
            uid: object::uid(target).to_owned(),
        };
        match kind {
            "Pod" => {
                if target["spec"]["serviceAccountName"].as_str() != Some(&bound.serviceaccount.name) {
                    let why = format!(
                        "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name",
                        bound.serviceaccount.name
                    );
                    return Err(ApiError::bad_request(why));
                }
                if let Some(node) = target["spec"]["nodeName"].as_str().and_then(|node| stored(api, "nodes", "", node))
                {
                    bound.node = Some(this(&object::decode(&node.bytes)));
                }
                bound.pod = Some(this(&target));
            }
            "Secret" => bound.secret = Some(this(&target)),
            _ => bound.node = Some(this(&target)),
        }
        Ok(())
    }

    /// Whether everything a token is bound to is still there and still the same.
    fn still_bound(&self, api: &Api, bound: &Bound) -> Result<(), String> {
        let namespace = &*bound.namespace;
        // A pod's token says which node it is on and lasts as long as the pod (`pkg/serviceaccount/claims.go`).
        let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
        let checks = [
            ("nodes", "", node),
            ("serviceaccounts", namespace, Some(&bound.serviceaccount)),
            ("pods", namespace, bound.pod.as_ref()),
            ("secrets", namespace, bound.secret.as_ref()),
        ];
        for (plural, namespace, reference) in checks {
            let Some(reference) = reference else { continue };
            let found = stored(api, plural, namespace, &reference.name)
                .ok_or(format!("{plural} {} is gone", reference.name))?;
            let object = object::decode(&found.bytes);
            if object::uid(&object) != reference.uid {
                return Err(format!("{plural} {} is another one now", reference.name));
            }
        }
        Ok(())
    }
}

fn stored(api: &Api, plural: &str, namespace: &str, name: &str) -> Option<std::sync::Arc<Entry>> {
    api.store().get(&ResourceId::new("", plural), &ObjectKey::new(namespace, name))
}

impl Guard for Rbac {
    fn issuer(&self) -> Option<Issuer> {
        Some(Issuer { url: self.issuer.clone(), keys: self.signer.jwks() })
    }

    fn may_grant(&self, api: &Api, user: &User, namespace: &str, wanted: &[Rule]) -> Option<Rule> {
        if user.is_in("system:masters") {
            return None;
        }
        self.policy(api).escalation(user, namespace, wanted)
    }

    fn decide(&self, api: &Api, user: &User, attributes: &Attributes<'_>) -> Decision {
        let by_node = self.nodes.decide(api.store(), user, attributes);
        let Decision::NoOpinion(why) = by_node else { return by_node };
        match self.policy(api).decide(user, attributes) {
            Decision::NoOpinion(also) if also.is_empty() => Decision::NoOpinion(why),
            Decision::NoOpinion(also) if !why.is_empty() => Decision::NoOpinion(format!("{why}\n{also}")),
            other => other,
        }
    }

    fn rules(&self, api: &Api, user: &User, namespace: &str) -> Value {
        let mut resources = Vec::new();
        let mut paths = Vec::new();
        for rule in self.policy(api).rules_of(user, namespace) {
            if rule.paths.is_empty() {
                let mut value = json!({ "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources });
                if !rule.names.is_empty() {
                    value["resourceNames"] = json!(rule.names);
                }
                resources.push(value);
            } else {
                paths.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.paths }));
            }
        }
        let mut status = json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false });
        if node_of(user).is_some() {
            status["incomplete"] = true.into();
            status["evaluationError"] = "node authorizer does not support user rule resolution".into();
        }
        status
    }

    fn authenticate(&self, api: &Api, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
        let claims = self.signer.verify(token, &[&self.issuer], api.world().clock.wall()).map_err(|e| e.to_string())?;
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let shared: Vec<String> = wanted.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("the token is for {:?}, not for {wanted:?}", claims.aud));
        }
        self.still_bound(api, &claims.bound)?;
        let namespace = &claims.bound.namespace;
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut user = User::new(&claims.sub, &groups.each_ref().map(|g| &**g));
        user.uid = claims.bound.serviceaccount.uid.clone();
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        for (kind, reference) in [("pod", &claims.bound.pod), ("node", &claims.bound.node)] {
            if let Some(reference) = reference {
                extra(&format!("{kind}-name"), &reference.name);
                extra(&format!("{kind}-uid"), &reference.uid);
            }
        }
        Ok((user, shared))
    }

    fn issue(&self, api: &Api, account: &Value, mut request: Value) -> Result<Value, ApiError> {
        let claims = self.claims(api, account, &request["spec"])?;
        let end = Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_secs(claims.exp)).unwrap_or(Timestamp::MAX);
        request["spec"]["expirationSeconds"] = (claims.exp - claims.iat).into();
        request["spec"]["audiences"] = json!(claims.aud);
        request["status"] = json!({ "token": self.signer.sign(&claims), "expirationTimestamp": timestamp(end) });
        let metadata = object::metadata_mut(&mut request);
        metadata.insert("name".into(), object::name(account).into());
        metadata.insert("namespace".into(), object::namespace(account).into());
        metadata.insert("creationTimestamp".into(), timestamp(api.world().clock.wall()).into());
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kedge_access::{Authority, Names};
    use kedge_world::sim::{SimDisk, SimRandom};
    use kedge_world::{Disk, World};

    use super::*;
    use crate::testing::{ask, open};

    #[tokio::test]
    async fn a_token_ends_with_what_it_is_bound_to() {
        let api = open().await;
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(Arc::new(SimRandom::seeded(1))));
        let world = World { disk, ..World::real() };
        let authority = Authority::open(&world, std::path::Path::new("/tls"), &Names(Vec::new())).unwrap();
        let guard = Rbac::new(authority.token_signer().unwrap(), "https://issuer.test");
        let create = async |path: &str, object: Value| {
            let answer = ask(&api, &format!("POST /api/v1/{path}"), object).await;
            assert_eq!(answer.0, 201, "{}", answer.1);
            answer.1
        };
        let named = |name: &str| json!({ "metadata": { "name": name } });
        let account = create("namespaces/default/serviceaccounts", named("a")).await;
        let pod = json!({ "metadata": { "name": "p" },
            "spec": { "serviceAccountName": "a", "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] } });
        create("nodes", named("n")).await;
        create("namespaces/default/secrets", named("s")).await;
        create("namespaces/default/pods", pod).await;
        let token = |kind: &str, name: &str| {
            let spec = json!({ "boundObjectRef": { "kind": kind, "apiVersion": "v1", "name": name } });
            let request = guard.issue(&api, &account, json!({ "spec": spec, "status": {} })).unwrap();
            request["status"]["token"].as_str().unwrap().to_owned()
        };
        let tokens = [token("Node", "n"), token("Secret", "s"), token("Pod", "p"), token("", "")];
        let good = || tokens.each_ref().map(|token| guard.authenticate(&api, token, &[]).is_ok());
        let delete = async |path: &str| {
            let answer = ask(&api, &format!("DELETE /api/v1/{path}?gracePeriodSeconds=0"), Value::Null).await;
            assert_eq!(answer.0, 200, "{}", answer.1);
        };
        assert_eq!(good(), [true; 4]);
        delete("nodes/n").await;
        assert_eq!(good(), [false, true, true, true], "a pod's token lasts as long as the pod");
        create("nodes", named("n")).await;
        assert_eq!(good(), [false, true, true, true], "the node of that name is another one");
        delete("namespaces/default/secrets/s").await;
        delete("namespaces/default/pods/p").await;
        assert_eq!(good(), [false, false, false, true]);
        delete("namespaces/default/serviceaccounts/a").await;
        assert_eq!(good(), [false; 4]);
    }
}
