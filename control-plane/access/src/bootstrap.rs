//! The roles and bindings that every cluster begins with, from a table of upstream's
//! (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`).

use serde_json::{Map, Value, json};

use crate::rbac::Rule;

const TABLE: &str = include_str!("bootstrap.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// The objects, ready to be created: roles before the bindings that name them.
pub fn bootstrap_objects() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix(' ') {
            None => objects.push(head(line)),
            Some(detail) => add(objects.last_mut().expect("an object comes before its details"), detail),
        }
    }
    objects
}

/// The rules of the role `system:node`: what every node may do that is not told apart by node. (`NodeRules` in
/// `bootstrappolicy/policy.go`.)
pub fn node_rules() -> Vec<Rule> {
    let is_role = |object: &&Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "system:node";
    let objects = bootstrap_objects();
    let role = objects.iter().find(is_role).expect("the table has the role of nodes");
    role["rules"].as_array().into_iter().flatten().map(Rule::from_value).collect()
}

fn head(line: &str) -> Value {
    let parts: Vec<&str> = line.split(' ').collect();
    let mut metadata = json!({
        "name": parts[1],
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    });
    if let [_, _, "in", namespace] = parts[..] {
        metadata["namespace"] = namespace.into();
    }
    let mut object = json!({ "apiVersion": format!("{GROUP}/v1"), "kind": parts[0], "metadata": metadata });
    if parts[0].ends_with("Role") {
        object["rules"] = json!([]);
    }
    object
}

fn add(object: &mut Value, detail: &str) {
    let parts: Vec<&str> = detail.split(' ').collect();
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|item| if item == "-" { String::new() } else { item.into() }).collect()
    };
    let push = |object: &mut Value, key: &str, value: Value| match object[key].as_array_mut() {
        Some(array) => array.push(value),
        None => object[key] = json!([value]),
    };
    match parts[..] {
        ["label", pair] => {
            let (key, value) = pair.split_once('=').expect("the table is well formed");
            object["metadata"]["labels"][key] = value.into();
        }
        ["aggregate", pairs] => {
            let labels: Map<String, Value> = pairs
                .split(',')
                .map(|pair| pair.split_once('=').expect("the table is well formed"))
                .map(|(key, value)| (key.to_owned(), value.into()))
                .collect();
            let mut rule = object["aggregationRule"].take();
            push(&mut rule, "clusterRoleSelectors", json!({ "matchLabels": labels }));
            object["aggregationRule"] = rule;
        }
        ["path", verbs, paths] => {
            push(object, "rules", json!({ "verbs": list(verbs), "nonResourceURLs": list(paths) }))
        }
        ["rule", verbs, groups, resources, ref names @ ..] => {
            let mut rule = json!({ "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources) });
            if let [names] = names {
                rule["resourceNames"] = json!(list(names));
            }
            push(object, "rules", rule);
        }
        ["role", kind, name] => object["roleRef"] = json!({ "apiGroup": GROUP, "kind": kind, "name": name }),
        ["subject", kind, name, ref namespace @ ..] => {
            let mut subject = json!({ "kind": kind, "name": name });
            match namespace {
                [namespace] => subject["namespace"] = (*namespace).into(),
                _ => subject["apiGroup"] = GROUP.into(),
            }
            push(object, "subjects", subject);
        }
        _ => unreachable!("the table is well formed: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_and_every_binding_finds_its_role() {
        let objects = bootstrap_objects();
        let named = |kind: &str, name: &str| objects.iter().any(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        assert!(named("ClusterRole", "cluster-admin") && named("ClusterRole", "system:controller:job-controller"));
        for binding in objects.iter().filter(|o| o["kind"].as_str().unwrap().ends_with("Binding")) {
            let role = &binding["roleRef"];
            assert!(named(role["kind"].as_str().unwrap(), role["name"].as_str().unwrap()), "{binding}");
            // Nodes are the Node authorizer's: the binding of their role names nobody.
            assert!(binding["subjects"].is_array() != (binding["metadata"]["name"] == "system:node"), "{binding}");
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            assert!(subjects.clone().all(|subject| subject["name"] != "system:nodes"), "{binding}");
        }
        let admin = objects.iter().find(|o| o["metadata"]["name"] == "cluster-admin").unwrap();
        assert_eq!(admin["rules"][0]["verbs"][0], "*");
        let view = objects.iter().find(|o| o["metadata"]["name"] == "view").unwrap();
        assert!(view["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"].is_object(), "{view}");
    }
}
