//! What an update of a service keeps of what was allocated for it, and what goes with a change of type.
//! (`patchAllocatedValues`, `dropTypeDependentFields`, `normalizeClusterIPs` of `pkg/registry/core/service`.)
//!
//! A client that sends its manifest again without the addresses it never chose must not lose them; one that
//! switches to a type without them must not be refused for leaving them there.

use serde_json::{Value, json};

use crate::kinds::fill::{count, len, text};
use crate::object;

/// Puts together what the client said with what the service already has.
pub(super) fn keep(new: &mut Value, old: &Value) {
    drop_by_type(new, old);
    keep_allocated(new, old);
    match_singular(new, old);
}

pub(super) fn kind(service: &Value) -> &str {
    match text(&service["spec"]["type"]) {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn has_address(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

/// Whether a balancer asks the nodes for their health.
pub(crate) fn has_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// Whether traffic from outside the cluster reaches it.
pub(super) fn is_external(service: &Value) -> bool {
    has_node_ports(service) || kind(service) == "ClusterIP" && len(&service["spec"]["externalIPs"]) > 0
}

/// The node ports that a service has.
pub(crate) fn node_ports(service: &Value) -> Vec<i64> {
    object::items(&service["spec"], "ports").map(|port| count(&port["nodePort"])).filter(|port| *port != 0).collect()
}

fn same(new: &Value, old: &Value, key: &str) -> bool {
    new["spec"][key] == old["spec"][key]
}

fn drop_by_type(new: &mut Value, old: &Value) {
    let mut gone: Vec<&str> = Vec::new();
    if has_address(old) && !has_address(new) {
        if same(new, old, "clusterIP") && same(new, old, "clusterIPs") {
            gone.extend(["clusterIP", "clusterIPs"]);
        }
        gone.extend(["ipFamilies", "ipFamilyPolicy"].into_iter().filter(|key| same(new, old, key)));
    }
    if has_health_port(old) && !has_health_port(new) && same(new, old, "healthCheckNodePort") {
        gone.push("healthCheckNodePort");
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        let keys = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
        gone.extend(keys.into_iter().filter(|key| same(new, old, key)));
    }
    if is_external(old) && !is_external(new) && same(new, old, "externalTrafficPolicy") {
        gone.push("externalTrafficPolicy");
    }
    let known = node_ports(old);
    let drops_ports =
        has_node_ports(old) && !has_node_ports(new) && node_ports(new).iter().all(|port| known.contains(port));
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    for key in gone {
        object::as_map(spec).remove(key);
    }
    if drops_ports {
        object::items_mut(spec, "ports").for_each(|port| drop(object::as_map(port).remove("nodePort")));
    }
    if kind(new) != "LoadBalancer" && new["status"].is_object() {
        new["status"]["loadBalancer"] = json!({});
    }
}

fn keep_allocated(new: &mut Value, old: &Value) {
    let both = |has: fn(&Value) -> bool| has(old) && has(new);
    let allocates = |service: &Value| {
        has_node_ports(service) && service["spec"]["allocateLoadBalancerNodePorts"].as_bool() != Some(false)
    };
    let (addresses, health) = (both(has_address), both(has_health_port));
    let ports = allocates(old) && allocates(new);
    let kept: Vec<i64> = node_ports(new).into_iter().filter(|port| node_ports(old).contains(port)).collect();
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if addresses {
        if text(&spec["clusterIP"]).is_empty() {
            object::carry_over(spec, &old["spec"], "clusterIP");
        }
        if len(&spec["clusterIPs"]) == 0 {
            object::carry_over(spec, &old["spec"], "clusterIPs");
        }
    }
    if ports {
        for port in object::items_mut(spec, "ports").filter(|port| count(&port["nodePort"]) == 0) {
            let before = object::items(&old["spec"], "ports").find(|p| text(&p["name"]) == text(&port["name"]));
            let number = before.map_or(0, |before| count(&before["nodePort"]));
            if number != 0 && !kept.contains(&number) {
                port["nodePort"] = number.into();
            }
        }
    }
    if health && count(&spec["healthCheckNodePort"]) == 0 {
        object::carry_over(spec, &old["spec"], "healthCheckNodePort");
    }
}

/// `clusterIP` and `clusterIPs` say the same; older clients know only the first.
fn match_singular(new: &mut Value, old: &Value) {
    let (is, was) = (text(&new["spec"]["clusterIP"]).to_owned(), text(&old["spec"]["clusterIP"]));
    let same_list = new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"];
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if is != was && same_list {
        if is.is_empty() {
            object::as_map(spec).remove("clusterIPs");
        } else {
            spec["clusterIPs"] = json!([is]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: Value, new: Value, expected: Value) {
        let mut service = json!({ "spec": new });
        keep(&mut service, &json!({ "spec": old }));
        assert_eq!(service["spec"], expected);
    }

    #[test]
    fn a_manifest_sent_again_loses_nothing() {
        let port = |node: i64| json!([{"name": "a", "port": 80, "nodePort": node}]);
        check(
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": port(30001)}),
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 81}]}),
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"name": "a", "port": 81, "nodePort": 30001}]}),
        );
    }

    #[test]
    fn a_change_of_type_lets_go_of_what_the_type_does_not_have() {
        let old = json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "SingleStack",
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30001}]});
        let mut new = old.clone();
        new["type"] = "ExternalName".into();
        check(old.clone(), new, json!({"type": "ExternalName", "ports": [{"port": 80}]}));
        let mut new = old.clone();
        new["type"] = "ClusterIP".into();
        let kept = json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80}]});
        check(old, new, kept);
    }
}
