//! LimitRanger: containers get the namespace's defaults, and nothing is created beyond its bounds.
//! (`plugin/pkg/admission/limitranger`.)

use kedge_schema::quantity::Quantity;
use serde_json::{Value, json};

use super::{Attempt, Plugin, listed};
use crate::error::ApiError;
use crate::kinds::pod::resources::{self, Amounts, amounts};
use crate::object;

pub(super) struct LimitRanger;

impl Plugin for LimitRanger {
    fn mutate(&self, attempt: &mut Attempt<'_, '_>) -> Result<(), ApiError> {
        if attempt.creates("", "Pod") {
            for item in items(attempt, "Container") {
                fill_in(attempt.new, &item);
            }
        }
        Ok(())
    }

    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let spec = &attempt.new["spec"];
        let mut faults = Vec::new();
        if attempt.creates("", "Pod") {
            for item in items(attempt, "Container") {
                let all = object::items(spec, "containers").chain(object::items(spec, "initContainers"));
                for container in all {
                    let of = |list: &str| amounts(&container["resources"][list]);
                    check(&item, &of("requests"), &of("limits"), &mut faults);
                }
            }
            for item in items(attempt, "Pod") {
                check(&item, &resources::requests(spec), &resources::limits(spec), &mut faults);
            }
        } else if attempt.is("", "PersistentVolumeClaim") {
            for item in items(attempt, "PersistentVolumeClaim") {
                let asked = amounts(&spec["resources"]["requests"]);
                check(&item, &asked, &asked, &mut faults);
            }
        }
        match faults.len() {
            0 => Ok(()),
            1 => Err(attempt.forbidden(&faults[0])),
            _ => Err(attempt.forbidden(&format!("[{}]", faults.join(", ")))),
        }
    }
}

/// The limits of a type in all ranges of the namespace.
fn items(attempt: &Attempt<'_, '_>, kind: &str) -> Vec<Value> {
    let ranges = listed(attempt.call.api, "", "limitranges", Some(&attempt.call.path.namespace));
    let of_kind = |range: &Value| {
        object::items(&range["spec"], "limits").filter(|item| item["type"] == kind).cloned().collect::<Vec<_>>()
    };
    ranges.iter().flat_map(of_kind).collect()
}

/// Gives containers what they do not say; the pod remembers that it did not ask for it.
fn fill_in(pod: &mut Value, item: &Value) {
    let mut told = Vec::new();
    for list in ["containers", "initContainers"] {
        for container in object::items_mut(&mut pod["spec"], list) {
            let name = object::as_map(container).get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (to, from) in [("requests", "defaultRequest"), ("limits", "default")] {
                let mut set = Vec::new();
                for (resource, amount) in item[from].as_object().into_iter().flatten() {
                    let mine = object::as_map(container).entry("resources").or_insert_with(|| json!({}));
                    let own = object::child(mine, to);
                    if !own.contains_key(resource) {
                        own.insert(resource.clone(), amount.clone());
                        set.push(resource.clone());
                    }
                }
                if !set.is_empty() {
                    let what = if list == "containers" { "container" } else { "init container" };
                    told.push(format!("{} {} for {what} {name}", set.join(", "), to.trim_end_matches('s')));
                }
            }
        }
    }
    if !told.is_empty() {
        let annotations = object::metadata_mut(pod).entry("annotations").or_insert_with(|| json!({}));
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        object::as_map(annotations).insert("kubernetes.io/limit-ranger".into(), text.into());
    }
}

fn check(item: &Value, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    let kind = item["type"].as_str().unwrap_or_default();
    let claims = kind == "PersistentVolumeClaim";
    for (name, least) in amounts(&item["min"]) {
        match requests.get(&name) {
            None => faults.push(format!("minimum {name} usage per {kind} is {least}.  No request is specified")),
            Some(asked) if *asked < least => {
                faults.push(format!("minimum {name} usage per {kind} is {least}, but request is {asked}"));
            }
            Some(_) => {}
        }
    }
    for (name, most) in amounts(&item["max"]) {
        match limits.get(&name) {
            None => faults.push(format!("maximum {name} usage per {kind} is {most}.  No limit is specified")),
            Some(limit) if *limit > most => {
                let word = if claims { "request" } else { "limit" };
                faults.push(format!("maximum {name} usage per {kind} is {most}, but {word} is {limit}"));
            }
            Some(_) => {}
        }
    }
    for (name, ratio) in amounts(&item["maxLimitRequestRatio"]) {
        let (Some(request), Some(limit)) = (requests.get(&name), limits.get(&name)) else {
            faults.push(format!("{name} max limit to request ratio per {kind} is {ratio}, but no request is specified or limit is specified"));
            continue;
        };
        if beyond_ratio(request, limit, &ratio) {
            let shown = limit.milli_value() as f64 / (request.milli_value() as f64).max(1.0);
            faults.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {shown:.6}"
            ));
        }
    }
}

fn beyond_ratio(request: &Quantity, limit: &Quantity, ratio: &Quantity) -> bool {
    i128::from(limit.milli_value()) * 1000 > i128::from(request.milli_value()) * i128::from(ratio.milli_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_defaults_and_bounds_hold() {
        let item = json!({"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "1"}, "max": {"cpu": "3"}, "min": {"cpu": "500m"}});
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "4"}}}]}});
        fill_in(&mut pod, &item);
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(*resources, json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}));
        let count = |requests: &str, limits: &str| {
            let mut faults = Vec::new();
            let list = |cpu: &str| amounts(&json!({ "cpu": cpu }));
            check(&item, &list(requests), &list(limits), &mut faults);
            faults.len()
        };
        assert_eq!((count("1", "2"), count("100m", "2"), count("1", "4"), count("100m", "4")), (0, 1, 1, 2));
    }
}
