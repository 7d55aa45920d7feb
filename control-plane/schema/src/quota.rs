//! What objects count for in quotas, and which quotas count them: the one rule for whoever charges and whoever
//! recounts. (`pkg/quota/v1/evaluator`.)

use serde_json::{Value, json};

use crate::pod_resources::{self, Amounts, amounts, items};

/// What one object counts for, by the names that quotas use.
pub fn usage(group: &str, plural: &str, kind: &str, object: &Value) -> Amounts {
    let mut counted: Vec<(String, String)> = Vec::new();
    let mut count = |name: &str, amount: &str| counted.push((name.to_owned(), amount.to_owned()));
    count(&if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }, "1");
    let spec = &object["spec"];
    match (group, kind) {
        ("", "ConfigMap" | "Secret" | "ReplicationController" | "ResourceQuota") => count(plural, "1"),
        ("", "Service") => {
            count("services", "1");
            let ports = items(spec, "ports").filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
            match spec["type"].as_str().unwrap_or_default() {
                "NodePort" => count("services.nodeports", &items(spec, "ports").count().to_string()),
                "LoadBalancer" => {
                    count("services.loadbalancers", "1");
                    count("services.nodeports", &ports.to_string());
                }
                _ => {}
            }
        }
        ("", "PersistentVolumeClaim") => {
            count("persistentvolumeclaims", "1");
            let storage = spec["resources"]["requests"]["storage"].as_str().unwrap_or("0");
            count("requests.storage", storage);
            if let Some(class) = spec["storageClassName"].as_str() {
                count(&format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), "1");
                count(&format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
            }
        }
        ("", "Pod") => return pod_usage(object),
        _ => {}
    }
    amounts(
        &counted
            .into_iter()
            .map(|(name, amount)| (name, Value::from(amount)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    )
}

/// A pod counts until it has finished.
fn pod_usage(pod: &Value) -> Amounts {
    let mut usage = amounts(&json!({"count/pods": "1"}));
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return usage;
    }
    usage.extend(amounts(&json!({"pods": "1"})));
    for (name, amount) in pod_resources::requests(&pod["spec"]) {
        usage.insert(format!("requests.{name}"), amount.clone());
        if matches!(&*name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name, amount);
        }
    }
    for (name, amount) in pod_resources::limits(&pod["spec"]) {
        usage.insert(format!("limits.{name}"), amount);
    }
    usage
}

/// Whether the quota counts objects like this one.
pub fn in_scope(spec: &Value, kind: &str, new: &Value) -> bool {
    let named = items(spec, "scopes").map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let mut all = named.chain(items(&spec["scopeSelector"], "matchExpressions").cloned());
    all.all(|term| kind == "Pod" && is_in(&term, &new["spec"]))
}

fn is_in(term: &Value, pod: &Value) -> bool {
    let best_effort = pod_resources::quality_of_service(pod) == "BestEffort";
    let terminating = pod["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let class = pod["priorityClassName"].as_str().unwrap_or_default();
    let other_namespaces = |side: &str, list: &str| {
        items(&pod["affinity"][side], list).any(|term| {
            let term = if term["podAffinityTerm"].is_object() { &term["podAffinityTerm"] } else { term };
            items(term, "namespaces").next().is_some() || !term["namespaceSelector"].is_null()
        })
    };
    match term["scopeName"].as_str().unwrap_or_default() {
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|side| {
            other_namespaces(side, "requiredDuringSchedulingIgnoredDuringExecution")
                || other_namespaces(side, "preferredDuringSchedulingIgnoredDuringExecution")
        }),
        "PriorityClass" => match term["operator"].as_str().unwrap_or_default() {
            "In" => items(term, "values").any(|value| value == class),
            "NotIn" => !items(term, "values").any(|value| value == class),
            "Exists" => !class.is_empty(),
            "DoesNotExist" => class.is_empty(),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_objects_count_for() {
        let check = |group: &str, plural: &str, kind: &str, object: Value, expected: &[(&str, &str)]| {
            let found = usage(group, plural, kind, &object);
            let found: Vec<(&str, String)> = found.iter().map(|(n, a)| (&**n, a.to_string())).collect();
            let expected: Vec<(&str, String)> = expected.iter().map(|(n, a)| (*n, (*a).to_owned())).collect();
            assert_eq!(found, expected, "{object}");
        };
        check("apps", "deployments", "Deployment", json!({}), &[("count/deployments.apps", "1")]);
        check("", "secrets", "Secret", json!({}), &[("count/secrets", "1"), ("secrets", "1")]);
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        check(
            "",
            "services",
            "Service",
            service,
            &[("count/services", "1"), ("services", "1"), ("services.nodeports", "2")],
        );
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}]}});
        check(
            "",
            "pods",
            "Pod",
            pod,
            &[("count/pods", "1"), ("cpu", "1"), ("limits.cpu", "2"), ("pods", "1"), ("requests.cpu", "1")],
        );
        check("", "pods", "Pod", json!({"status": {"phase": "Failed"}}), &[("count/pods", "1")]);
    }

    #[test]
    fn scopes() {
        let check = |spec: Value, pod: Value, expected: bool| {
            assert_eq!(in_scope(&spec, "Pod", &json!({"spec": pod})), expected, "{spec}")
        };
        let plain = json!({"containers": [{}]});
        check(json!({}), plain.clone(), true);
        check(json!({"scopes": ["BestEffort"]}), plain.clone(), true);
        check(json!({"scopes": ["NotBestEffort"]}), plain.clone(), false);
        check(json!({"scopes": ["Terminating"]}), plain.clone(), false);
        let high = json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        check(high.clone(), plain, false);
        check(high.clone(), json!({"priorityClassName": "high"}), true);
        assert!(!in_scope(&high, "Service", &json!({})));
    }
}
