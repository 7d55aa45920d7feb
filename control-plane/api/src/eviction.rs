//! `pods/eviction`: a deletion that asks the pod's disruption budget first.
//! (`pkg/registry/core/pod/storage/eviction.go`.)

use http::Response;
use kedge_schema::selector::LabelSelector;
use kedge_store::{Entry, Expect, ResourceId};
use serde_json::{Value, json};

use crate::admission;
use crate::body::Body;
use crate::error::ApiError;
use crate::object;
use crate::rest::{Call, decode, delete_addressed, delete_dry_run, encode, save, with_kind};

/// A budget changed under us this often is busy; the client comes back later.
const ATTEMPTS_MAX: usize = 8;
/// Pods evicted but still seen by the budget's controller; more would make the object grow without bound.
const DISRUPTED_PODS_MAX: usize = 2000;

pub(crate) async fn evict(call: Call<'_>) -> Result<Response<Body>, ApiError> {
    let eviction = decode::object_of(&call, "policy", "v1", "Eviction")?;
    if object::name(&eviction) != call.path.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    // Said in the query or with the deletion (`propagateDryRun`), which is where `kubectl drain` says it.
    let dry_run = delete_dry_run(&eviction["deleteOptions"])? | call.dry_run()?;
    let pod = call.decode(&*call.stored()?);
    admission::post(&call, &pod, &eviction)?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    // A pod that does not serve, or is on its way out, is not what budgets protect.
    let free = matches!(phase, "Succeeded" | "Failed" | "Pending") || object::is_deleting(&pod);
    if !free {
        spend(&call, &pod, dry_run).await?;
    }
    let mut options = eviction["deleteOptions"].clone();
    if !dry_run {
        tell(&call, &mut options).await?;
    }
    delete_addressed(&call, &options).await?;
    encode(
        201,
        call.answer.format,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    )
}

/// Says on the pod that it ends for a reason outside of it, which a job's failure policy may look at (KEP-3329).
/// A revision that the client asks for is compared here: what is written makes it an old one.
async fn tell(call: &Call<'_>, options: &mut Value) -> Result<(), ApiError> {
    for _ in 0..ATTEMPTS_MAX {
        let entry = call.stored()?;
        let mut pod = call.decode(&entry);
        let wanted = options["preconditions"]["resourceVersion"].as_str();
        let other = wanted.is_some_and(|wanted| pod["metadata"]["resourceVersion"] != wanted);
        if other || object::is_deleting(&pod) {
            return Ok(());
        }
        disrupt(&mut pod, &save::timestamp(call.now));
        if save::write(call, &pod, Expect::Revision(entry.revision)).await.is_ok() {
            if let Some(preconditions) = options.get_mut("preconditions").filter(|value| value.is_object()) {
                object::as_map(preconditions).remove("resourceVersion");
            }
            return Ok(());
        }
    }
    Err(ApiError::too_many_requests("Cannot evict pod as it is changing; try again later.", 1))
}

/// Sets the pod's condition `DisruptionTarget`.
fn disrupt(pod: &mut Value, now: &str) {
    let status = object::child(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|condition| condition["type"] != "DisruptionTarget");
    list.push(json!({ "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now }));
}

/// Takes one disruption from the budget that covers the pod.
async fn spend(call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
    let Some(kind) = call.registry.find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    for _ in 0..ATTEMPTS_MAX {
        let covering = budgets(call, pod, &kind.collection);
        let [budget] = &covering[..] else {
            return match covering.len() {
                0 => Ok(()),
                _ => Err(ApiError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                )),
            };
        };
        let mut new = object::decode(&budget.bytes);
        if spares_unhealthy(&new, pod) {
            return Ok(());
        }
        take_one(&mut new, pod, &save::timestamp(call.now))?;
        if dry_run {
            return Ok(());
        }
        let on_budget = with_kind(call, kind);
        if save::write(&on_budget, &new, Expect::Revision(budget.revision)).await.is_ok() {
            return Ok(());
        }
    }
    Err(ApiError::too_many_requests("Cannot evict pod as its disruption budget is changing; try again later.", 1))
}

fn budgets(call: &Call<'_>, pod: &Value, collection: &ResourceId) -> Vec<std::sync::Arc<Entry>> {
    let labels = &pod["metadata"]["labels"];
    let covers = |entry: &Entry| {
        let budget = object::decode(&entry.bytes);
        let selector = LabelSelector::from_object(budget["spec"].get("selector"));
        !budget["spec"]["selector"].is_null() && selector.is_ok_and(|s| s.matches(|key| labels[key].as_str()))
    };
    let page = call.api.store().list(collection, Some(object::namespace(pod)), None, None, usize::MAX, covers);
    page.map(|page| page.entries).unwrap_or_default()
}

/// An unhealthy pod may go when the policy always allows it, or when the healthy ones suffice (KEP-3017).
fn spares_unhealthy(budget: &Value, pod: &Value) -> bool {
    let ready = object::items(&pod["status"], "conditions").any(|c| c["type"] == "Ready" && c["status"] == "True");
    if ready {
        return false;
    }
    let enough = budget["status"]["currentHealthy"].as_i64() >= budget["status"]["desiredHealthy"].as_i64()
        && budget["status"]["desiredHealthy"].as_i64().unwrap_or(0) > 0;
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || enough
}

fn take_one(budget: &mut Value, pod: &Value, now: &str) -> Result<(), ApiError> {
    let refused = |message: &str, budget: &Value| {
        let why = format!(
            "The disruption budget {} needs {} healthy pods and has {} currently",
            object::name(budget),
            budget["status"]["desiredHealthy"],
            budget["status"]["currentHealthy"]
        );
        Err(ApiError::too_many_requests(message, 0).with_cause("DisruptionBudget", &why))
    };
    let observed = budget["status"]["observedGeneration"].as_i64().unwrap_or(0);
    if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(ApiError::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget: the budget is still being processed by the server.",
            10,
        ));
    }
    let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
    if allowed <= 0 {
        return refused("Cannot evict pod as it would violate the pod's disruption budget.", budget);
    }
    let status = object::child(budget, "status");
    let disrupted = object::as_map(status.entry("disruptedPods").or_insert_with(|| json!({})));
    if disrupted.len() >= DISRUPTED_PODS_MAX {
        return Err(ApiError::too_many_requests("Cannot evict pod: too many evictions are not confirmed yet.", 10));
    }
    disrupted.insert(object::name(pod).to_owned(), now.into());
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_pod_says_so_once() {
        let mut pod = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        disrupt(&mut pod, "2026-01-01T00:00:00Z");
        disrupt(&mut pod, "2026-01-01T00:00:01Z");
        let told: Vec<&Value> = object::items(&pod["status"], "conditions").collect();
        assert_eq!((told.len(), &told[1]["reason"]), (2, &json!("EvictionByEvictionAPI")));
        let mut bare = json!({});
        disrupt(&mut bare, "2026-01-01T00:00:00Z");
        assert_eq!(object::items(&bare["status"], "conditions").count(), 1);
    }

    #[tokio::test]
    async fn a_dry_run_evicts_nothing_and_spends_nothing() {
        let api = crate::testing::open().await;
        let ask = |line: &'static str, body: Value| crate::testing::ask(&api, line, body);
        let pod = json!({ "metadata": { "name": "p", "labels": { "app": "a" } },
            "spec": { "serviceAccountName": "s", "containers": [{ "name": "c", "image": "i" }] } });
        let account = json!({ "metadata": { "name": "s" } });
        assert_eq!(ask("POST /api/v1/namespaces/default/serviceaccounts", account).await.0, 201);
        let created = ask("POST /api/v1/namespaces/default/pods", pod).await;
        assert_eq!(created.0, 201, "{}", created.1);
        let patch = async |target: &str, status: Value| {
            let body = json!({ "status": status }).to_string();
            assert_eq!(crate::testing::patch(&api, target, "merge-patch+json", &body).await.0, 200);
        };
        patch("/api/v1/namespaces/default/pods/p/status", json!({ "phase": "Running" })).await;
        let budget = json!({ "metadata": { "name": "b" },
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "a" } } } });
        assert_eq!(ask("POST /apis/policy/v1/namespaces/default/poddisruptionbudgets", budget).await.0, 201);
        let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b/status";
        let allowed = json!({ "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 1,
            "desiredHealthy": 0, "expectedPods": 1 });
        patch(budgets, allowed).await;
        let state = || async {
            let pod = ask("GET /api/v1/namespaces/default/pods/p", Value::Null).await;
            (pod, ask("GET /apis/policy/v1/namespaces/default/poddisruptionbudgets/b", Value::Null).await)
        };
        let before = state().await;
        let evict = |options: Value| json!({ "metadata": { "name": "p" }, "deleteOptions": options });
        for (line, options) in [
            ("POST /api/v1/namespaces/default/pods/p/eviction", json!({ "dryRun": ["All"] })),
            ("POST /api/v1/namespaces/default/pods/p/eviction?dryRun=All", Value::Null),
            ("POST /api/v1/namespaces/default/pods/p/eviction?dryRun=All", json!({ "dryRun": ["All"] })),
        ] {
            let answer = ask(line, evict(options)).await;
            assert_eq!(answer.0, 201, "{}", answer.1);
            assert_eq!(state().await, before);
        }
        let odd = ask("POST /api/v1/namespaces/default/pods/p/eviction", evict(json!({ "dryRun": ["Some"] }))).await;
        assert_eq!((odd.0, state().await), (400, before));
        assert_eq!(ask("POST /api/v1/namespaces/default/pods/p/eviction", evict(Value::Null)).await.0, 201);
        let after = state().await;
        assert!(after.0.0 == 404 || object::is_deleting(&after.0.1), "{}", after.0.1);
        assert_eq!(after.1.1["status"]["disruptionsAllowed"], 0);
    }
}
