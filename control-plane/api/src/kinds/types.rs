//! Defaults that belong to a type wherever it occurs: a probe is a probe in a pod and in a cron job's template.
//!
//! One walk over an object and its schema: at every object the defaults of its type, then those that the facts
//! declare, then its members; parents before children, as upstream's generated defaulters do
//! (`pkg/apis/core/v1/{defaults,zz_generated.defaults}.go`). Applying it twice changes nothing more. Defaults that
//! depend on the kind are in the kind's own file.

use kedge_schema::facts::{Facts, Presence};
use kedge_schema::quantity::Quantity;
use kedge_schema::shape::{Shape, TypeId};
use serde_json::{Value, json};

use super::fill::{fill, text};
use super::image;
use crate::object;

/// Fills in what the types of the object at `id` say.
pub(crate) fn complete(facts: &Facts, id: TypeId, value: &mut Value) {
    walk(facts, &Shape::Object(id), value);
}

/// As [`complete`], for a part of an object whose type is called `name`, written as it is stored.
pub(super) fn complete_named(name: &str, value: &mut Value) {
    let facts = kedge_schema::facts::builtin();
    if let Some(id) = facts.type_named(name).filter(|_| value.is_object()) {
        complete(facts, id, value);
        kedge_schema::strict::settle(facts, id, value);
    }
}

fn walk(facts: &Facts, shape: &Shape, value: &mut Value) {
    match (shape, &mut *value) {
        (Shape::Object(id), Value::Object(_)) => {
            let (of, details) = facts.described(*id);
            defaults_of(&of.name, value);
            for (field, detail) in of.fields.iter().zip(&details.fields) {
                match &field.default {
                    Some(default) if detail.presence == Presence::Pointer => {
                        object::default(value, &field.name, default.clone());
                    }
                    Some(default) => fill(value, &field.name, default.clone()),
                    None => {}
                }
                if let Some(member) = value.get_mut(&*field.name) {
                    walk(facts, &field.shape, member);
                }
            }
        }
        (Shape::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| walk(facts, &list.item, item)),
        (Shape::Map(map), Value::Object(members)) => {
            for member in members.values_mut() {
                if map.value == Shape::Quantity {
                    round_to_milli(member);
                } else {
                    walk(facts, &map.value, member);
                }
            }
        }
        _ => {}
    }
}

/// Amounts finer than thousandths are rounded up (`SetDefaults_ResourceList`).
fn round_to_milli(value: &mut Value) {
    if let Ok(quantity) = Quantity::parse(text(value))
        && !quantity.times(1000).is_integer()
    {
        *value = Quantity::from_milli(quantity.milli_value(), quantity.format()).to_string().into();
    }
}

fn defaults_of(name: &str, value: &mut Value) {
    let Some(name) = name.strip_prefix("io.k8s.api.") else { return };
    match name {
        "core.v1.PodSpec" => pod_spec(value),
        "core.v1.Container" | "core.v1.EphemeralContainer" => container(value),
        "core.v1.Probe" => {
            for (key, number) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                fill(value, key, number);
            }
        }
        "core.v1.HTTPGetAction" => {
            fill(value, "path", "/");
            fill(value, "scheme", "HTTP");
        }
        "core.v1.GRPCAction" => object::default(value, "service", ""),
        "core.v1.Volume" => volume(value),
        "core.v1.SecretVolumeSource"
        | "core.v1.ConfigMapVolumeSource"
        | "core.v1.DownwardAPIVolumeSource"
        | "core.v1.ProjectedVolumeSource" => object::default(value, "defaultMode", 0o644),
        "core.v1.ServiceAccountTokenProjection" => object::default(value, "expirationSeconds", 3600),
        "core.v1.HostPathVolumeSource" => object::default(value, "type", ""),
        "core.v1.ObjectFieldSelector" => fill(value, "apiVersion", "v1"),
        "core.v1.PersistentVolumeClaimSpec" => object::default(value, "volumeMode", "Filesystem"),
        "core.v1.LimitRangeItem" => limit_range_item(value),
        "batch.v1.PodFailurePolicyOnPodConditionsPattern" => fill(value, "status", "True"),
        "networking.v1.NetworkPolicyPort" => object::default(value, "protocol", "TCP"),
        "discovery.v1.EndpointPort" => {
            object::default(value, "name", "");
            object::default(value, "protocol", "TCP");
        }
        "rbac.v1.RoleRef" => fill(value, "apiGroup", "rbac.authorization.k8s.io"),
        "rbac.v1.Subject" if matches!(text(&value["kind"]), "User" | "Group") => {
            fill(value, "apiGroup", "rbac.authorization.k8s.io");
        }
        _ => {}
    }
}

fn pod_spec(spec: &mut Value) {
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    object::default(spec, "securityContext", json!({}));
    object::default(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    // Two names for one thing; the older one follows (`Convert_v1_PodSpec_To_core_PodSpec`).
    let account =
        [&spec["serviceAccountName"], &spec["serviceAccount"]].into_iter().find(|name| !text(name).is_empty());
    if let Some(account) = account.cloned() {
        spec["serviceAccountName"] = account.clone();
        spec["serviceAccount"] = account;
    }
}

fn container(container: &mut Value) {
    let policy = image::pull_policy(text(&container["image"]));
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object() else { return };
    if !map.iter().any(|(key, source)| key != "name" && !source.is_null()) {
        volume["emptyDir"] = json!({});
    }
    if volume["image"].is_object() {
        let policy = image::pull_policy(text(&volume["image"]["reference"]));
        fill(&mut volume["image"], "pullPolicy", policy);
    }
}

fn limit_range_item(item: &mut Value) {
    if item["type"] != "Container" {
        return;
    }
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        object::default(item, to, json!({}));
        let source = item[from].as_object().cloned().unwrap_or_default();
        for (name, amount) in source {
            object::default(&mut item[to], &name, amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_schema::facts;

    fn completed(kind: &str, value: Value) -> Value {
        let facts = facts::builtin();
        let mut value = value;
        complete(facts, facts.type_named(&format!("io.k8s.api.core.v1.{kind}")).unwrap(), &mut value);
        value
    }

    #[test]
    fn defaults_follow_the_type_to_any_depth() {
        let template = completed(
            "PodTemplateSpec",
            json!({"spec": {"containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "lifecycle": {"preStop": {"httpGet": {"port": 1}}},
                "readinessProbe": {"httpGet": {"port": 1}, "periodSeconds": 3}}],
                "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/x"}}]}}),
        );
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(container["lifecycle"]["preStop"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(container["readinessProbe"]["periodSeconds"], 3);
        assert_eq!(container["readinessProbe"]["failureThreshold"], 3);
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(
            template["spec"]["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/x", "type": ""}}])
        );
        assert!(template["spec"].get("enableServiceLinks").is_none(), "pods alone have this default");
    }

    #[test]
    fn amounts_are_rounded_up_to_thousandths() {
        let resources = completed("ResourceRequirements", json!({"limits": {"cpu": "100u", "memory": "1.5Gi"}}));
        assert_eq!(resources["limits"], json!({"cpu": "1m", "memory": "1.5Gi"}));
    }

    #[test]
    fn limits_of_a_range_follow_from_each_other() {
        let item =
            completed("LimitRangeItem", json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}));
        assert_eq!(item["default"], json!({"cpu": "2"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }
}
