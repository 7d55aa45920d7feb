//! Between the version a client speaks and the one that is stored.
//!
//! Nearly every kind has one GA version; then there is nothing to do. Two have more: Event (core and
//! events.k8s.io name the same fields differently) and HorizontalPodAutoscaler. Custom resources with several
//! versions convert by changing their `apiVersion` (`strategy: None`).

use serde_json::{Value, json};

use crate::object;
use crate::registry::Kind;

/// From what is stored to what the kind's version shows.
pub(crate) fn from_stored(kind: &Kind, value: &mut Value) {
    if kind.custom.is_some() {
        // Pruned and defaulted by the definition as it is now (`structuraldefaulting` on read).
        object::as_map(value).insert("apiVersion".into(), kind.api_version().into());
        if kind.schema.conform(value).is_ok() {
            kind.schema.complete(value);
        }
        return;
    }
    if kind.api_version() == kind.stored_as {
        return;
    }
    match (&*kind.resource.group, &*kind.resource.kind) {
        ("events.k8s.io", "Event") => rename(value, EVENT_FIELDS, false),
        ("autoscaling", "HorizontalPodAutoscaler") => hpa_v2_to_v1(value),
        _ => {}
    }
    object::as_map(value).insert("apiVersion".into(), kind.api_version().into());
}

/// From the kind's version to what is stored.
pub(crate) fn to_stored(kind: &Kind, value: &mut Value) {
    if kind.api_version() == kind.stored_as {
        return;
    }
    match (&*kind.resource.group, &*kind.resource.kind) {
        ("events.k8s.io", "Event") => rename(value, EVENT_FIELDS, true),
        ("autoscaling", "HorizontalPodAutoscaler") => hpa_v1_to_v2(value),
        _ => {}
    }
    object::as_map(value).insert("apiVersion".into(), kind.stored_as.clone().into());
}

/// The names of an event's fields in events.k8s.io/v1 and in core/v1 (`pkg/apis/events/v1/conversion.go`).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(value: &mut Value, names: &[(&str, &str)], forward: bool) {
    let map = object::as_map(value);
    for (outer, stored) in names {
        let (from, to) = if forward { (outer, stored) } else { (stored, outer) };
        if let Some(member) = map.remove(*from) {
            map.insert((*to).into(), member);
        }
    }
}

/// `targetCPUUtilizationPercentage` is the one metric that v1 can say.
fn hpa_v1_to_v2(value: &mut Value) {
    let spec = object::child(value, "spec");
    if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
        spec.insert(
            "metrics".into(),
            json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
            }]),
        );
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut)
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        status.insert(
            "currentMetrics".into(),
            json!([{
                "type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
            }]),
        );
    }
}

fn hpa_v2_to_v1(value: &mut Value) {
    let is_cpu = |metric: &Value| metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    let spec = object::child(value, "spec");
    if let Some(metrics) = spec.remove("metrics")
        && let Some(cpu) = metrics.as_array().and_then(|list| list.iter().find(|m| is_cpu(m)))
    {
        let percent = cpu["resource"]["target"]["averageUtilization"].clone();
        if !percent.is_null() {
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
    }
    spec.remove("behavior");
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        let metrics = status.remove("currentMetrics").unwrap_or_default();
        if let Some(cpu) = metrics.as_array().and_then(|list| list.iter().find(|m| is_cpu(m))) {
            status.insert(
                "currentCPUUtilizationPercentage".into(),
                cpu["resource"]["current"]["averageUtilization"].clone(),
            );
        }
        status.remove("conditions");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_say_the_same_in_both_versions() {
        let v1 = json!({"spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let mut value = v1.clone();
        hpa_v1_to_v2(&mut value);
        assert_eq!(value["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        hpa_v2_to_v1(&mut value);
        assert_eq!(value, v1);
    }

    #[test]
    fn events_rename_there_and_back() {
        let events = json!({"note": "hi", "regarding": {"name": "a"}, "reason": "R"});
        let mut value = events.clone();
        rename(&mut value, EVENT_FIELDS, true);
        assert_eq!(value, json!({"message": "hi", "involvedObject": {"name": "a"}, "reason": "R"}));
        rename(&mut value, EVENT_FIELDS, false);
        assert_eq!(value, events);
    }
}
