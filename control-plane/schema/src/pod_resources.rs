//! What a pod asks for: sums over its containers, and the quality of service that follows.
//! (`k8s.io/component-helpers/resource/helpers.go`, `pkg/apis/core/helper/qos`.)
//!
//! Init containers run one after another beside the sidecars started before them, so what counts of them is the
//! largest moment, not the sum.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// The members of a list within an object; none when it is missing.
pub(crate) fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object[key].as_array().into_iter().flatten()
}

/// Reads a resource list; what is no quantity is left out, validation tells of it.
pub fn amounts(list: &Value) -> Amounts {
    let pairs = list.as_object().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), Quantity::parse(value.as_str()?).ok()?))).collect()
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let total = sum.get(name).map_or_else(|| amount.clone(), |there| there.add(amount));
        sum.insert(name.clone(), total);
    }
}

fn raise(to: &mut Amounts, from: &Amounts) {
    for (name, amount) in from {
        if to.get(name).is_none_or(|there| there < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}

/// Whether an init container goes on running beside the others.
pub fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// The containers' `requests` or `limits` together, without what the pod itself says.
pub fn of_containers(spec: &Value, which: &str) -> Amounts {
    let own = |container: &Value| amounts(&container["resources"][which]);
    let mut sum = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut sum, &own(container));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let mut moment = own(container);
        if is_sidecar(container) {
            add(&mut sum, &moment);
            add(&mut sidecars, &moment);
            moment = sidecars.clone();
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut starting, &moment);
    }
    raise(&mut sum, &starting);
    sum
}

/// Resources that the pod itself may set (KEP-2837).
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What the pod as a whole requests, overhead included.
pub fn requests(spec: &Value) -> Amounts {
    let mut sum = of_containers(spec, "requests");
    sum.extend(amounts(&spec["resources"]["requests"]).into_iter().filter(|(name, _)| is_pod_level(name)));
    add(&mut sum, &amounts(&spec["overhead"]));
    sum
}

/// What the pod as a whole is limited to, overhead included where there is a limit.
pub fn limits(spec: &Value) -> Amounts {
    let mut sum = of_containers(spec, "limits");
    sum.extend(amounts(&spec["resources"]["limits"]).into_iter().filter(|(name, _)| is_pod_level(name)));
    for (name, overhead) in amounts(&spec["overhead"]) {
        if let Some(limit) = sum.get_mut(&name).filter(|limit| !limit.is_zero()) {
            *limit = limit.add(&overhead);
        }
    }
    sum
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn quality_of_service(spec: &Value) -> &'static str {
    let computed = |list: &Value| -> Amounts {
        let all = amounts(list).into_iter();
        all.filter(|(name, amount)| matches!(&**name, "cpu" | "memory") && amount.sign() > 0).collect()
    };
    let (mut requests, mut limits, mut guaranteed) = (Amounts::new(), Amounts::new(), true);
    if spec["resources"].is_object() {
        requests = computed(&spec["resources"]["requests"]);
        limits = computed(&spec["resources"]["limits"]);
        guaranteed = limits.is_empty() && spec["resources"]["limits"].is_null() || limits.len() == 2;
    } else {
        for container in items(spec, "containers").chain(items(spec, "initContainers")) {
            add(&mut requests, &computed(&container["resources"]["requests"]));
            let own = computed(&container["resources"]["limits"]);
            guaranteed &= own.len() == 2;
            add(&mut limits, &own);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests == limits { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(requests: Value, limits: Value) -> Value {
        json!({"resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn init_containers_count_at_their_largest_moment() {
        let one = |cpu: &str| container(json!({ "cpu": cpu }), Value::Null);
        let mut sidecar = one("1");
        sidecar["restartPolicy"] = "Always".into();
        let check = |init: Value, expected: &str| {
            let spec = json!({"containers": [one("1"), one("2")], "initContainers": init, "overhead": {"cpu": "10m"}});
            let expected = Quantity::parse(expected).unwrap().add(&Quantity::parse("10m").unwrap());
            assert_eq!(requests(&spec)["cpu"], expected, "{spec}");
        };
        check(json!([]), "3");
        check(json!([one("2")]), "3");
        check(json!([one("5")]), "5");
        check(json!([one("5"), sidecar]), "5");
        check(json!([sidecar, one("5")]), "6");
        check(json!([sidecar]), "4");
    }

    #[test]
    fn qualities() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let check = |spec: Value, expected: &str| assert_eq!(quality_of_service(&spec), expected, "{spec}");
        check(json!({"containers": [{}]}), "BestEffort");
        check(json!({"containers": [container(both.clone(), both.clone())]}), "Guaranteed");
        check(json!({"containers": [container(both.clone(), both.clone()), {}]}), "Burstable");
        check(json!({"containers": [container(json!({"cpu": "1"}), json!({"cpu": "1"}))]}), "Burstable");
        check(json!({"containers": [container(json!({"cpu": "0"}), Value::Null)]}), "BestEffort");
        check(json!({"containers": [{}], "resources": {"requests": both, "limits": both}}), "Guaranteed");
        check(json!({"containers": [{}], "resources": {"requests": both}}), "Burstable");
    }
}
