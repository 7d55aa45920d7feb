//! What the cluster adds to every pod: its priority, tolerations while a node is away, and what its runtime costs.
//! (`plugin/pkg/admission/{priority,defaulttolerationseconds,runtimeclass}`.)

use kedge_store::{ObjectKey, ResourceId};
use serde_json::{Value, json};

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;

/// How long pods stay on a node that is not ready or cannot be reached.
const STAY_SECONDS: i64 = 300;

/// Priority: the class' name becomes a number, and nobody sets the number by hand.
pub(super) struct Priority;

impl Plugin for Priority {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.creates("", "Pod") || !attempt.new["spec"].is_object() {
            return Ok(());
        }
        let spec = &attempt.new["spec"];
        let name = spec["priorityClassName"].as_str().unwrap_or_default();
        let class = match name {
            "" => all(attempt, "priorityclasses")
                .into_iter()
                .filter(|class| class["globalDefault"] == true)
                .min_by_key(|class| class["value"].as_i64()),
            name => Some(
                one(attempt, "scheduling.k8s.io", "priorityclasses", name)
                    .ok_or_else(|| attempt.forbidden(&format!("no PriorityClass with name {name} was found")))?,
            ),
        };
        let value = class.as_ref().map_or(0, |class| class["value"].as_i64().unwrap_or(0));
        let preempts = class.as_ref().map_or(json!("PreemptLowerPriority"), |class| class["preemptionPolicy"].clone());
        if spec["priority"].as_i64().is_some_and(|given| given != value) {
            let why = "the integer value of priority must not be provided in pod spec; priority admission controller \
                       computed {VALUE} from the given PriorityClass name";
            return Err(attempt.forbidden(&why.replace("{VALUE}", &value.to_string())));
        }
        if spec["preemptionPolicy"].as_str().is_some_and(|given| preempts != given) {
            let why = format!(
                "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission \
                 controller computed {} from the given PriorityClass name",
                spec["preemptionPolicy"].as_str().unwrap_or_default(),
                preempts.as_str().unwrap_or_default()
            );
            return Err(attempt.forbidden(&why));
        }
        let spec = &mut attempt.new["spec"];
        if let Some(class) = &class {
            spec["priorityClassName"] = object::name(class).into();
        }
        spec["priority"] = value.into();
        spec["preemptionPolicy"] = preempts;
        Ok(())
    }

    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let is_default = |class: &Value| class["globalDefault"] == true;
        if !attempt.is("scheduling.k8s.io", "PriorityClass") || !is_default(attempt.new) {
            return Ok(());
        }
        let own = object::name(attempt.new);
        match all(attempt, "priorityclasses").iter().find(|class| is_default(class) && object::name(class) != own) {
            Some(other) => Err(attempt.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                object::name(other)
            ))),
            None => Ok(()),
        }
    }
}

fn one(attempt: &Attempt<'_, '_>, group: &str, plural: &str, name: &str) -> Option<Value> {
    let found = attempt.call.api.store().get(&ResourceId::new(group, plural), &ObjectKey::new("", name));
    found.map(|entry| object::decode(&entry.bytes))
}

fn all(attempt: &Attempt<'_, '_>, plural: &str) -> Vec<Value> {
    super::listed(attempt.call.api, "scheduling.k8s.io", plural, None)
}

/// DefaultTolerationSeconds: pods leave a node that went away after five minutes, unless they say otherwise.
pub(super) struct Tolerations;

impl Plugin for Tolerations {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        let applies =
            attempt.is("", "Pod") && matches!(attempt.part.subresource(), "") && attempt.new["spec"].is_object();
        if applies {
            tolerate(&mut attempt.new["spec"]);
        }
        Ok(())
    }
}

fn tolerate(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |toleration: &Value| {
            let (own, effect) = (&toleration["key"], toleration["effect"].as_str().unwrap_or_default());
            (own == key || own.as_str().unwrap_or_default().is_empty()) && matches!(effect, "" | "NoExecute")
        };
        if object::items(spec, "tolerations").any(covers) {
            continue;
        }
        let list = object::as_map(spec).entry("tolerations").or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        let toleration =
            json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY_SECONDS});
        list.as_array_mut().expect("just made one").push(toleration);
    }
}

/// RuntimeClass: a pod's runtime must exist, and what it costs is part of the pod (KEP-688).
pub(super) struct Runtime;

impl Plugin for Runtime {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if !attempt.creates("", "Pod") {
            return Ok(());
        }
        let Some(name) = attempt.new["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
            let overhead = attempt.new["spec"]["overhead"].as_object().is_some_and(|list| !list.is_empty());
            return if overhead {
                Err(attempt
                    .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
            } else {
                Ok(())
            };
        };
        let class = one(attempt, "node.k8s.io", "runtimeclasses", &name)
            .ok_or_else(|| attempt.forbidden(&format!("pod rejected: RuntimeClass \"{name}\" not found")))?;
        let fixed = &class["overhead"]["podFixed"];
        let spec = &mut attempt.new["spec"];
        if !fixed.is_null() {
            if spec["overhead"].is_object() && spec["overhead"] != *fixed {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(attempt.forbidden(why));
            }
            spec["overhead"] = fixed.clone();
        }
        let scheduling = &class["scheduling"];
        for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
            let selector = object::child(spec, "nodeSelector");
            if selector.get(key).is_some_and(|own| own != value) {
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {}",
                    selector[key]
                );
                return Err(attempt.forbidden(&why));
            }
            selector.insert(key.clone(), value.clone());
        }
        let more: Vec<Value> = object::items(scheduling, "tolerations").cloned().collect();
        if !more.is_empty() {
            let mut list: Vec<Value> = object::items(spec, "tolerations").cloned().collect();
            let new = more.into_iter().filter(|toleration| !list.contains(toleration)).collect::<Vec<_>>();
            list.extend(new);
            spec["tolerations"] = list.into();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_tolerate_an_absent_node_for_a_while() {
        let check = |spec: Value, expected: usize| {
            let mut spec = spec;
            tolerate(&mut spec);
            assert_eq!(object::items(&spec, "tolerations").count(), expected, "{spec}");
            let before = spec.clone();
            tolerate(&mut spec);
            assert_eq!(spec, before);
        };
        check(json!({}), 2);
        check(json!({"tolerations": [{"operator": "Exists"}]}), 1);
        check(
            json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]}),
            2,
        );
        check(json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}), 3);
    }
}
