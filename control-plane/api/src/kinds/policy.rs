//! Budgets, classes, quotas and ranges: what the cluster allows
//! (`pkg/apis/{policy,scheduling,node,autoscaling}/validation`, `ValidateResourceQuota`, `ValidateLimitRange`).

use kedge_schema::field::{FieldError, Path};
use kedge_schema::quantity::Quantity;
use serde_json::{Value, json};

use super::check::{self, Errors};
use super::fill::{count, len, object_age, text};
use super::plain::{PLAIN, Plain};
use super::{Column, pod_spec, rollout};
use crate::object;

/// Above it are the classes of the system itself.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) static BUDGET: Plain = Plain {
    status: true,
    generation: true,
    unconditional: false,
    columns: &[Column::text("Min Available"), Column::text("Max Unavailable"), Column::count("Allowed Disruptions")],
    row: |budget, _| {
        let amount = |value: &Value| match value {
            Value::Null => "N/A".into(),
            Value::String(_) => value.clone(),
            number => Value::from(number.to_string()),
        };
        let spec = &budget["spec"];
        let allowed = count(&budget["status"]["disruptionsAllowed"]);
        vec![amount(&spec["minAvailable"]), amount(&spec["maxUnavailable"]), allowed.into()]
    },
    validate: |errors, budget| {
        let (spec, path) = (&budget["spec"], Path::new("spec"));
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid(&path, spec.clone(), why));
        }
        for key in ["minAvailable", "maxUnavailable"] {
            rollout::share(errors, &path.child(key), &spec[key]);
        }
        check::selector(errors, &path.child("selector"), &spec["selector"]);
        let policies = &["AlwaysAllow", "IfHealthyBudget"];
        check::among(errors, &path.child("unhealthyPodEvictionPolicy"), &spec["unhealthyPodEvictionPolicy"], policies);
    },
    ..PLAIN
};

pub(super) static PRIORITY: Plain = Plain {
    generation: true,
    whole_table: true,
    columns: &[
        Column::text("Name"),
        Column::count("Value"),
        Column::flag("Global-Default"),
        Column::text("Age"),
        Column::text("PreemptionPolicy"),
    ],
    row: |class, now| {
        vec![
            object::name(class).into(),
            count(&class["value"]).into(),
            (class["globalDefault"] == true).into(),
            object_age(class, now),
            text(&class["preemptionPolicy"]).into(),
        ]
    },
    default: |class| object::default(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |errors, class| {
        let name = object::name(class);
        let known = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
        let value = count(&class["value"]);
        if name.starts_with("system-") && !known.contains(&(name, value)) {
            let why = "priority class names with 'system-' prefix are reserved for system use only. error: \
                       the name is not among those of the system with its value";
            errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), why));
        } else if !name.starts_with("system-") && value > USER_PRIORITY_MAX {
            let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.push(FieldError::forbidden(&Path::new("value"), why));
        }
        if !class["preemptionPolicy"].is_null() {
            let policies = &["PreemptLowerPriority", "Never"];
            check::one_of(errors, &Path::new("preemptionPolicy"), &class["preemptionPolicy"], policies);
        }
    },
    validate_update: |errors, new, old| {
        if count(&new["value"]) != count(&old["value"]) {
            errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        let path = Path::new("preemptionPolicy");
        check::immutable(errors, &path, &new["preemptionPolicy"], &old["preemptionPolicy"]);
    },
    ..PLAIN
};

pub(super) static RUNTIME: Plain = Plain {
    creates_on_update: true,
    unconditional: false,
    columns: &[Column::text("Handler")],
    row: |class, _| vec![text(&class["handler"]).into()],
    validate: |errors, class| check::optional(errors, &Path::new("handler"), &class["handler"], check::dns_label),
    validate_update: |errors, new, old| {
        check::immutable(errors, &Path::new("handler"), &new["handler"], &old["handler"]);
    },
    ..PLAIN
};

pub(super) static QUOTA: Plain = Plain {
    status: true,
    columns: &[Column::text("Request"), Column::text("Limit")],
    row: |quota, _| {
        let status = &quota["status"];
        let used = |name: &str| status["used"][name].as_str().unwrap_or("0").to_owned();
        let mut names: Vec<&String> = status["hard"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        names.sort();
        let (limits, requests): (Vec<&String>, Vec<&String>) =
            names.into_iter().partition(|name| name.starts_with("limits."));
        let shown = |names: Vec<&String>| {
            let one = |name: &String| format!("{name}: {}/{}", used(name), text(&status["hard"][name]));
            Value::from(names.into_iter().map(one).collect::<Vec<_>>().join(", "))
        };
        vec![shown(requests), shown(limits)]
    },
    validate: quota,
    validate_update: |errors, new, old| {
        for key in ["scopes", "scopeSelector"] {
            let path = Path::new("spec").child(key);
            check::immutable(errors, &path, &new["spec"][key], &old["spec"][key]);
        }
    },
    ..PLAIN
};

pub(super) static RANGE: Plain = Plain {
    creates_on_update: true,
    whole_table: true,
    columns: &[Column::text("Name"), Column::text("Created At")],
    row: |range, _| vec![object::name(range).into(), range["metadata"]["creationTimestamp"].clone()],
    validate: range,
    ..PLAIN
};

pub(super) static AUTOSCALER: Plain = Plain {
    status: true,
    columns: &[
        Column::text("Reference"),
        Column::text("Targets"),
        Column::text("MinPods"),
        Column::text("MaxPods"),
        Column::text("Replicas"),
    ],
    row: |scaler, _| {
        let (spec, status) = (&scaler["spec"], &scaler["status"]);
        let target = &spec["scaleTargetRef"];
        vec![
            format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
            targets(spec, status).into(),
            spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |min| min.to_string()).into(),
            count(&spec["maxReplicas"]).into(),
            count(&status["currentReplicas"]).into(),
        ]
    },
    default: |scaler| {
        if scaler["apiVersion"] != "autoscaling/v2" {
            return;
        }
        let Some(spec) = scaler.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        object::default(spec, "minReplicas", 1);
        if len(&spec["metrics"]) == 0 {
            spec["metrics"] = json!([{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        }
        behavior(spec);
    },
    validate: |errors, scaler| {
        let (spec, path) = (&scaler["spec"], Path::new("spec"));
        let least = spec["minReplicas"].as_i64().unwrap_or(1);
        if least < 1 {
            let why = "must be greater than or equal to 1";
            errors.push(FieldError::invalid(&path.child("minReplicas"), least, why));
        }
        if count(&spec["maxReplicas"]) < 1 {
            errors.push(FieldError::required(&path.child("maxReplicas"), "must be set and greater than 0"));
        }
        if count(&spec["maxReplicas"]) < least {
            let why = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid(&path.child("maxReplicas"), count(&spec["maxReplicas"]), why));
        }
    },
    ..PLAIN
};

/// Rules for scaling are complete when there are any (`SetDefaults_HorizontalPodAutoscalerBehavior`).
fn behavior(spec: &mut Value) {
    let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (side, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
        object::default(behavior, side, json!({}));
        object::default(&mut behavior[side], "selectPolicy", "Max");
        object::default(&mut behavior[side], "policies", policies);
    }
    object::default(&mut behavior["scaleUp"], "stabilizationWindowSeconds", 0);
}

/// Each metric as what it is now and what it should be; of many, the first two.
fn targets(spec: &Value, status: &Value) -> String {
    let mut shown = Vec::new();
    for (index, metric) in object::items(spec, "metrics").enumerate() {
        let current = &status["currentMetrics"][index];
        let kind = text(&metric["type"]);
        let key = match kind {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            "External" => "external",
            _ => continue,
        };
        let (wanted, now) = (&metric[key]["target"], &current[key]["current"]);
        let percent = wanted["averageUtilization"].as_i64();
        let amount = |value: &Value| value.as_str().unwrap_or("<unknown>").to_owned();
        let named =
            if kind.ends_with("Resource") { format!("{}: ", text(&metric[key]["name"])) } else { String::new() };
        shown.push(match percent {
            Some(percent) => {
                let now = now["averageUtilization"].as_i64().map_or("<unknown>".to_owned(), |now| format!("{now}%"));
                format!("{named}{now}/{percent}%")
            }
            None if wanted["averageValue"].is_string() => {
                let of =
                    if kind == "Resource" || kind == "Pods" || kind == "ContainerResource" { "" } else { " (avg)" };
                format!("{named}{}/{}{of}", amount(&now["averageValue"]), amount(&wanted["averageValue"]))
            }
            None => format!("{named}{}/{}", amount(&now["value"]), amount(&wanted["value"])),
        });
    }
    match shown.len() {
        0 => "<none>".to_owned(),
        total if total > 2 => format!("{} + {} more...", shown[..2].join(", "), total - 2),
        _ => shown.join(", "),
    }
}

fn quota(errors: &mut Errors, quota: &Value) {
    const SCOPES: &[&str] = &[
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let path = Path::new("spec");
    for (name, value) in quota["spec"]["hard"].as_object().into_iter().flatten() {
        let path = path.child("hard").key(name);
        check::problems(errors, &path, name.as_str(), pod_spec::resource_name(name));
        const COUNTED: &[&str] = &["hugepages-", "requests.hugepages-"];
        let known = pod_spec::STANDARD.contains(&&**name) && name != "storage" || name.contains('/');
        if !known && !COUNTED.iter().any(|prefix| name.starts_with(prefix)) {
            errors.push(FieldError::invalid(&path, name.as_str(), "must be a standard resource for quota"));
        }
        pod_spec::amount(errors, name, value, &path);
    }
    for scope in object::items(&quota["spec"], "scopes").filter(|scope| !SCOPES.contains(&text(scope))) {
        let shown = quota["spec"]["scopes"].clone();
        errors.push(FieldError::invalid(&path.child("scopes"), shown, format!("unsupported scope {scope}")));
    }
    for scopes in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if scopes.iter().all(|scope| object::items(&quota["spec"], "scopes").any(|s| s == scope)) {
            let shown = quota["spec"]["scopes"].clone();
            errors.push(FieldError::invalid(&path.child("scopes"), shown, "conflicting scopes"));
        }
    }
}

fn range(errors: &mut Errors, range: &Value) {
    for (index, item) in object::items(&range["spec"], "limits").enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (name, value) in item[list].as_object().into_iter().flatten() {
                let path = path.child(list).key(name);
                check::problems(errors, &path, name.as_str(), pod_spec::resource_name(name));
                pod_spec::amount(errors, name, value, &path);
            }
        }
        if item["type"] == "Pod" {
            for list in ["default", "defaultRequest"].into_iter().filter(|list| len(&item[*list]) > 0) {
                errors.push(FieldError::forbidden(&path.child(list), "may not be specified when `type` is 'Pod'"));
            }
        }
        let order = ["min", "defaultRequest", "default", "max"];
        for (at, low) in order.iter().enumerate() {
            for high in &order[at + 1..] {
                in_order(errors, item, low, high, &path);
            }
        }
    }
}

/// No resource has more in the list `low` than in the list `high`.
fn in_order(errors: &mut Errors, item: &Value, low: &str, high: &str, path: &Path) {
    for (name, value) in item[low].as_object().into_iter().flatten() {
        let (Ok(least), Ok(most)) = (Quantity::parse(text(value)), Quantity::parse(text(&item[high][name]))) else {
            continue;
        };
        if least > most {
            let words = |list: &str| match list {
                "defaultRequest" => "default request value",
                "default" => "default value",
                "min" => "min value",
                _ => "max value",
            };
            let why = format!("{} {least} is greater than {} {most}", words(low), words(high));
            // Upstream points at the default, or at what is least.
            let list = if low == "min" && high != "max" { high } else { low };
            let shown = match (low, high) {
                ("min", "defaultRequest") | ("default", _) => &item[high][name],
                _ => value,
            };
            errors.push(FieldError::invalid(&path.child(list).key(name), text(shown), why));
        }
    }
}
