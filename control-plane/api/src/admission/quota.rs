//! ResourceQuota: what a namespace may hold, charged when something is created.
//! (`k8s.io/apiserver/pkg/admission/plugin/resourcequota`, `pkg/quota/v1/evaluator`.)
//!
//! The charge is a write to the quota's status that only succeeds on the state it was computed from; whoever loses
//! that race computes again. So two creations never share the last place. A creation that fails afterwards gives
//! back what it took. What is deleted is given back by the controller that recounts.

use std::sync::Arc;

use kedge_schema::quota::{in_scope, usage};
use kedge_store::{Entry, Expect, ResourceId};
use serde_json::Value;

use super::Charged;
use crate::api::Api;
use crate::error::ApiError;
use crate::kinds::pod::resources::{self, Amounts, amounts};
use crate::object;
use crate::rest::{Call, save, with_kind};

/// A quota changed under us this often is very busy.
const ATTEMPTS_MAX: usize = 16;

/// Charges a creation, or the growth by an update, to every quota of the namespace that it counts for.
pub(super) async fn charge(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Result<Charged, ApiError> {
    let mut charged = Charged::default();
    if !call.kind.resource.namespaced || &*call.kind.resource.kind == "Event" {
        return Ok(charged);
    }
    let growth = growth(call, new, old);
    if growth.values().all(|amount| amount.sign() <= 0) {
        return Ok(charged);
    }
    let quotas = ResourceId::new("", "resourcequotas");
    let page = call.api.store().list(&quotas, Some(&call.path.namespace), None, None, usize::MAX, |_| true);
    for entry in page.map(|page| page.entries).unwrap_or_default() {
        if let Err(error) = charge_one(call, entry, new, &growth, &mut charged).await {
            charged.give_back(call.api).await;
            return Err(error);
        }
    }
    Ok(charged)
}

async fn charge_one(
    call: &Call<'_>,
    entry: Arc<Entry>,
    new: &Value,
    growth: &Amounts,
    charged: &mut Charged,
) -> Result<(), ApiError> {
    let Some(kind) = call.registry.find("", "v1", "resourcequotas") else { return Ok(()) };
    let key = entry.key.clone();
    let mut entry = entry;
    for _ in 0..ATTEMPTS_MAX {
        let mut quota = object::decode(&entry.bytes);
        let Some(taken) = take(&mut quota, call, new, growth)
            .map_err(|why| ApiError::forbidden(&call.path.group, &call.path.resource, object::name(new), &why))?
        else {
            return Ok(());
        };
        let on_quota = with_kind(call, kind);
        if save::write(&on_quota, &quota, Expect::Revision(entry.revision)).await.is_ok() {
            charged.taken.push((key, taken));
            return Ok(());
        }
        match call.api.store().get(&kind.collection, &key) {
            Some(newer) => entry = newer,
            None => return Ok(()),
        }
    }
    Err(ApiError::conflict("", "resourcequotas", &key.name, "the quota is changing too fast; try again"))
}

/// Adds what the quota counts to what it has used; none when it counts nothing of it; or why there is no room.
fn take(quota: &mut Value, call: &Call<'_>, new: &Value, growth: &Amounts) -> Result<Option<Amounts>, String> {
    if !in_scope(&quota["spec"], &call.kind.resource.kind, new) {
        return Ok(None);
    }
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used = amounts(&quota["status"]["used"]);
    let taken: Amounts =
        growth.iter().filter(|(name, _)| hard.contains_key(*name)).map(|(n, a)| (n.clone(), a.clone())).collect();
    // Also when it counts for nothing: that is what a pod says by saying nothing.
    let missing: Vec<&str> = unstated(&hard, &call.kind.resource.kind, new);
    if !missing.is_empty() {
        return Err(format!("failed quota: {}: must specify {}", object::name(quota), missing.join(",")));
    }
    if taken.is_empty() {
        return Ok(None);
    }
    let before = used.clone();
    resources::add(&mut used, &taken);
    let over: Vec<&String> = taken.keys().filter(|name| used[*name] > hard[*name] && taken[*name].sign() > 0).collect();
    if !over.is_empty() {
        let shown = |list: &dyn Fn(&str) -> String| {
            over.iter().map(|name| format!("{name}={}", list(name))).collect::<Vec<_>>().join(",")
        };
        return Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            object::name(quota),
            shown(&|name| taken[name].to_string()),
            shown(&|name| before.get(name).map_or("0".to_owned(), ToString::to_string)),
            shown(&|name| hard[name].to_string())
        ));
    }
    put_used(quota, &used);
    Ok(Some(taken))
}

/// A quota on cpu or memory makes every pod say how much it wants.
fn unstated<'a>(hard: &'a Amounts, kind: &str, new: &Value) -> Vec<&'a str> {
    const STATED: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    if kind != "Pod" || !new["spec"].is_object() {
        return Vec::new();
    }
    let stated = usage("", "pods", kind, new);
    hard.keys().map(String::as_str).filter(|name| STATED.contains(name) && !stated.contains_key(*name)).collect()
}

fn put_used(quota: &mut Value, used: &Amounts) {
    let used: serde_json::Map<String, Value> =
        used.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    let hard = quota["spec"]["hard"].clone();
    let status = object::child(quota, "status");
    status.entry("hard").or_insert(hard);
    status.insert("used".into(), used.into());
}

/// What the quotas of the namespace must have room for.
fn growth(call: &Call<'_>, new: &Value, old: Option<&Value>) -> Amounts {
    let resource = &call.kind.resource;
    let of = |object: &Value| usage(&resource.group, &resource.plural, &resource.kind, object);
    let mut usage = of(new);
    if let Some(old) = old {
        for (name, amount) in of(old) {
            let now = usage.get(&name).map_or_else(|| amount.negated(), |now| now.sub(&amount));
            usage.insert(name, now);
        }
        usage.retain(|_, amount| amount.sign() != 0);
    }
    usage
}

/// Gives back what a creation took that did not happen.
pub(super) async fn give_back(api: &Api, charged: Charged) {
    let collection = ResourceId::new("", "resourcequotas");
    for (key, taken) in charged.taken {
        for _ in 0..ATTEMPTS_MAX {
            let Some(entry) = api.store().get(&collection, &key) else { break };
            let mut quota = object::decode(&entry.bytes);
            let mut used = amounts(&quota["status"]["used"]);
            resources::add(&mut used, &taken.iter().map(|(name, amount)| (name.clone(), amount.negated())).collect());
            put_used(&mut quota, &used);
            let write = kedge_store::Write {
                resource: collection.clone(),
                key: key.clone(),
                expect: Expect::Revision(entry.revision),
                action: kedge_store::Action::Put(object::encode(&quota, entry.facets.clone())),
                durability: kedge_store::Durability::Durable,
            };
            match api.store().write(write).await {
                Ok(_) => break,
                Err(kedge_store::StoreError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, quota = %key.name, "what a failed creation took stays until the next recount");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_quota_limits_must_be_said() {
        let check = |hard: Value, kind: &str, resources: Value, expected: &[&str]| {
            let pod = json!({"spec": {"containers": [{ "resources": resources }]}});
            let hard = amounts(&hard);
            assert_eq!(unstated(&hard, kind, &pod), expected, "{pod}");
        };
        let hard = || json!({"requests.cpu": "1", "limits.memory": "1Gi", "pods": "5", "requests.storage": "1Gi"});
        check(hard(), "Pod", json!({}), &["limits.memory", "requests.cpu"]);
        check(hard(), "Pod", json!({"requests": {"cpu": "1m"}}), &["limits.memory"]);
        check(hard(), "Pod", json!({"requests": {"cpu": "1m"}, "limits": {"memory": "1Mi"}}), &[]);
        check(hard(), "Service", json!({}), &[]);
    }
}
