//! Node: a machine that runs pods.
//! (`pkg/apis/core/v1/defaults.go`, `pkg/registry/core/node/strategy.go`, `printNode`.)

use std::borrow::Cow;
use std::collections::BTreeSet;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::fill::{keep_spec, or_none, text};
use super::{Column, Rules, check, pod_spec};
use crate::object;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

pub(super) struct Node;

impl Rules for Node {
    fn default(&self, node: &mut Value) {
        let capacity = node["status"]["capacity"].clone();
        if capacity.is_object()
            && let Some(status) = node.get_mut("status")
        {
            object::default(status, "allocatable", capacity);
        }
    }

    /// A node may be registered with its status.
    fn prepare_create(&self, _node: &mut Value) {}

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, node: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        // Upstream tells of taints as if they were metadata.
        taints(&mut errors, &node["spec"], &Path::new("metadata").child("taints"));
        for (index, range) in object::items(&node["spec"], "podCIDRs").enumerate() {
            if check::cidr(text(range)).is_none() {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(&Path::new("spec").child("podCIDRs").index(index), text(range), why));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let (is, was, path) = (&new["spec"], &old["spec"], Path::new("spec"));
        let mut errors = Vec::new();
        if was["podCIDRs"].is_array() && is["podCIDRs"] != was["podCIDRs"] {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden(&path.child("podCIDRs"), why));
        }
        if !text(&was["providerID"]).is_empty() && is["providerID"] != was["providerID"] {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden(&path.child("providerID"), why));
        }
        errors
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[(Cow::Borrowed("spec.unschedulable"), "false")])
    }

    fn has_status(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::text("Status"),
            Column::text("Roles"),
            Column::text("Age"),
            Column::text("Version"),
            Column::wide("Internal-IP"),
            Column::wide("External-IP"),
            Column::wide("OS-Image"),
            Column::wide("Kernel-Version"),
            Column::wide("Container-Runtime"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        let info = &node["status"]["nodeInfo"];
        let known = |key: &str| Some(text(&info[key])).filter(|t| !t.is_empty()).unwrap_or("<unknown>").to_owned();
        let mut kernel = known("kernelVersion");
        if !text(&info["architecture"]).is_empty() {
            kernel += &format!(" ({})", text(&info["architecture"]));
        }
        vec![
            state(node).into(),
            roles(node),
            super::fill::object_age(node, now),
            text(&info["kubeletVersion"]).into(),
            address(node, "InternalIP"),
            address(node, "ExternalIP"),
            known("osImage").into(),
            kernel.into(),
            known("containerRuntimeVersion").into(),
        ]
    }
}

/// `validateNodeTaints`: a key and an effect together are there once.
fn taints(errors: &mut Vec<FieldError>, spec: &Value, at: &Path) {
    let mut known = Vec::new();
    for (index, taint) in object::items(spec, "taints").enumerate() {
        let path = at.index(index);
        let (key, value, effect) = (text(&taint["key"]), text(&taint["value"]), text(&taint["effect"]));
        check::problems(errors, &path.child("key"), key, names::label_key(key));
        let found = names::label_value(value);
        if !found.is_empty() {
            errors.push(FieldError::invalid(&path.child("value"), value, found.join(";")));
        }
        match effect {
            "" => errors.push(FieldError::required(&path.child("effect"), "")),
            effect => pod_spec::taint_effect(errors, effect, &path.child("effect")),
        }
        if known.contains(&(key, effect)) {
            let mut error = FieldError::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
        }
        known.push((key, effect));
    }
}

fn state(node: &Value) -> String {
    // Of several conditions of a type, the last one counts.
    let ready = object::items(&node["status"], "conditions").filter(|c| c["type"] == "Ready").last();
    let state = match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
    format!("{state}{cordoned}")
}

fn roles(node: &Value) -> Value {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let role = |(key, value): (&String, &Value)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) => Some(role.to_owned()).filter(|role| !role.is_empty()),
        None if key == ROLE_LABEL => Some(text(value).to_owned()).filter(|role| !role.is_empty()),
        None => None,
    };
    let roles: BTreeSet<String> = labels.filter_map(role).collect();
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}

fn address(node: &Value, kind: &str) -> Value {
    let found = object::items(&node["status"], "addresses").find(|address| address["type"] == kind);
    found.map_or_else(|| "<none>".into(), |address| address["address"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows() {
        let node = json!({
            "metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.3", "kernelVersion": "6.1", "architecture": "arm64"}}});
        let expected = [
            "Ready,SchedulingDisabled",
            "control-plane,edge",
            "10s",
            "v1.36.3",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "6.1 (arm64)",
            "<unknown>",
        ];
        assert_eq!(Node.row(&node, "2026-01-01T00:00:10Z".parse().unwrap()), expected.map(Value::from));
        assert_eq!(state(&json!({})), "Unknown");
    }
}
