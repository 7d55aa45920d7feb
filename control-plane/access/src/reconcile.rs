//! What a stored role or binding lacks of the one that this version begins with. Pure.
//! (`pkg/registry/rbac/reconciliation` as `pkg/registry/rbac/rest/storage_rbac.go` uses it at every start.)
//!
//! Only ever adds: rules, subjects, labels and annotations of an administrator stay. Who wants a default role to stay as
//! it is sets its annotation `rbac.authorization.kubernetes.io/autoupdate` to `false`.

use serde_json::{Map, Value, json};

use crate::rbac::{Rule, uncovered};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What is to be done with a stored object.
#[derive(Clone, Debug, PartialEq)]
pub enum Reconciled {
    /// It has everything, or wants to be left alone.
    Kept,
    /// This is to take its place.
    Changed(Value),
    /// It binds another role, which no update can change: it is to be deleted and created as this.
    Replaced(Value),
}

/// What is to be done with `existing` so that it has all of `expected`.
pub fn reconciled(existing: &Value, expected: &Value) -> Reconciled {
    if existing["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Reconciled::Kept;
    }
    let mut new = existing.clone();
    for key in ["annotations", "labels"] {
        // What is there already wins.
        let mut merged = expected["metadata"][key].as_object().cloned().unwrap_or_default();
        merged.extend(existing["metadata"][key].as_object().cloned().unwrap_or_default());
        if !merged.is_empty() {
            new["metadata"][key] = merged.into();
        }
    }
    if existing["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding")) {
        let subjects: Vec<Value> = missing(&existing["subjects"], &expected["subjects"], subject);
        extend(&mut new, "subjects", subjects);
        let role = |binding: &Value| ["apiGroup", "kind", "name"].map(|key| binding["roleRef"][key].clone());
        if role(existing) != role(expected) {
            let mut metadata = Map::new();
            for key in ["name", "namespace", "labels", "annotations"] {
                metadata.extend(new["metadata"].get(key).map(|value| (key.to_owned(), value.clone())));
            }
            new["metadata"] = metadata.into();
            new["roleRef"] = expected["roleRef"].clone();
            return Reconciled::Replaced(new);
        }
    } else {
        let rules = |role: &Value| items(&role["rules"]).map(Rule::from_value).collect::<Vec<_>>();
        let lacking = uncovered(&rules(existing), &rules(expected));
        extend(&mut new, "rules", lacking.iter().map(Rule::to_value).collect());
        aggregate(&mut new, existing, expected);
    }
    if new == *existing { Reconciled::Kept } else { Reconciled::Changed(new) }
}

/// Roles that gather others: a default role gathers all that it did; one that does not is no longer made to.
fn aggregate(new: &mut Value, existing: &Value, expected: &Value) {
    let selectors = |role: &Value| role["aggregationRule"]["clusterRoleSelectors"].clone();
    if expected["aggregationRule"].is_null() {
        if let Some(role) = new.as_object_mut() {
            role.remove("aggregationRule");
        }
        return;
    }
    let lacking = missing(&selectors(existing), &selectors(expected), Value::clone);
    if new["aggregationRule"].is_null() {
        new["aggregationRule"] = json!({});
    }
    extend(&mut new["aggregationRule"], "clusterRoleSelectors", lacking);
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The items of `wanted` that `there` has not, compared by `key`.
fn missing<K: PartialEq>(there: &Value, wanted: &Value, key: impl Fn(&Value) -> K) -> Vec<Value> {
    items(wanted).filter(|item| !items(there).any(|other| key(other) == key(item))).cloned().collect()
}

/// Who a subject is; what is absent is empty.
fn subject(value: &Value) -> [String; 4] {
    ["kind", "apiGroup", "namespace", "name"].map(|key| value[key].as_str().unwrap_or_default().to_owned())
}

fn extend(object: &mut Value, key: &str, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    match object[key].as_array_mut() {
        Some(list) => list.extend(more),
        None => object[key] = more.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap_objects;

    fn role(rules: Value) -> Value {
        json!({ "kind": "ClusterRole", "metadata": { "name": "r", "uid": "1" }, "rules": rules })
    }

    fn rule(verbs: &[&str], resource: &str) -> Value {
        json!({ "verbs": verbs, "apiGroups": [""], "resources": [resource] })
    }

    #[track_caller]
    fn check(existing: &Value, expected: &Value, changes: Option<&[(&str, Value)]>) {
        let found = reconciled(existing, expected);
        let Some(changes) = changes else { return assert_eq!(found, Reconciled::Kept) };
        let mut wanted = existing.clone();
        for (pointer, value) in changes {
            *wanted.pointer_mut(pointer).expect("a place") = value.clone();
        }
        assert_eq!(found, Reconciled::Changed(wanted));
    }

    #[test]
    fn missing_rules_are_added_and_others_stay() {
        let (get, list, own) = (rule(&["get"], "pods"), rule(&["list"], "pods"), rule(&["get"], "secrets"));
        check(&role(json!([get])), &role(json!([get])), None);
        check(&role(json!([own, get])), &role(json!([get])), None);
        check(&role(json!([rule(&["*"], "*")])), &role(json!([get, list])), None);
        let both = rule(&["get", "list"], "pods");
        check(&role(json!([own, get])), &role(json!([both])), Some(&[("/rules", json!([own, get, list]))]));
        check(&role(Value::Null), &role(json!([get])), Some(&[("/rules", json!([get]))]));
        let mut kept = role(json!([]));
        kept["metadata"]["annotations"] = json!({ AUTOUPDATE: "false" });
        check(&kept, &role(json!([get])), None);
    }

    #[test]
    fn labels_and_annotations_are_added_and_never_changed() {
        let mut expected = role(json!([]));
        expected["metadata"]["labels"] = json!({ "a": "1", "b": "1" });
        let mut existing = role(json!([]));
        existing["metadata"]["labels"] = json!({ "b": "2", "c": "2" });
        let merged = json!({ "a": "1", "b": "2", "c": "2" });
        check(&existing, &expected, Some(&[("/metadata/labels", merged)]));
    }

    #[test]
    fn aggregation_follows_the_version() {
        let gathers = |labels: &[&str]| {
            let selectors: Vec<Value> =
                labels.iter().map(|label| json!({ "matchLabels": { *label: "true" } })).collect();
            let mut role = role(json!([rule(&["get"], "pods")]));
            role["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
            role
        };
        let mut bare = gathers(&["a"]);
        bare["rules"] = Value::Null;
        check(&gathers(&["a"]), &bare, None);
        let selectors = gathers(&["b", "a"])["aggregationRule"].clone();
        check(&gathers(&["b"]), &gathers(&["a"]), Some(&[("/aggregationRule", selectors)]));
        let Reconciled::Changed(plain) = reconciled(&gathers(&["a"]), &role(json!([]))) else { panic!() };
        assert!(plain.get("aggregationRule").is_none());
    }

    #[test]
    fn bindings_get_subjects_and_keep_theirs() {
        let group = |name: &str| json!({ "kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name });
        let account = json!({ "kind": "ServiceAccount", "name": "a", "namespace": "n" });
        let binding = |role: &str, subjects: Value| {
            json!({ "kind": "ClusterRoleBinding", "metadata": { "name": "b", "uid": "1", "labels": { "l": "1" } },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": subjects })
        };
        let mut written = account.clone();
        written["apiGroup"] = "".into();
        check(&binding("r", json!([written])), &binding("r", json!([account])), None);
        let all = json!([group("own"), group("x"), account]);
        let wanted = binding("r", json!([group("x"), account]));
        check(&binding("r", json!([group("own")])), &wanted, Some(&[("/subjects", all)]));
        check(&binding("r", json!([group("own")])), &binding("r", Value::Null), None);
        let Reconciled::Replaced(new) = reconciled(&binding("old", json!([group("own")])), &wanted) else { panic!() };
        assert_eq!((&new["roleRef"]["name"], new["metadata"].get("uid")), (&json!("r"), None));
        assert_eq!(new["subjects"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn what_this_version_begins_with_lacks_nothing() {
        for object in bootstrap_objects() {
            check(&object, &object, None);
        }
    }
}
