//! Applies and updates of real kinds, as upstream would do them.

use super::*;
use crate::facts::builtin;

fn writer(manager: &'static str) -> Writer<'static> {
    Writer { manager, api_version: "apps/v1", subresource: "", now: Timestamp::from_second(1_700_000_000).unwrap() }
}

struct Cluster {
    live: Option<Value>,
    reset: FieldSet,
}

impl Cluster {
    fn new() -> Self {
        Self { live: None, reset: FieldSet::of_fields(&[&["status"]]) }
    }

    fn target(&self) -> Target<'_> {
        let id = builtin().kind("apps", "v1", "Deployment").unwrap();
        Target { schema: &builtin().schema, id, reset: &self.reset }
    }

    fn apply(&mut self, manager: &'static str, spec: Value, force: bool) -> Result<(), ApplyError> {
        let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
        self.live = Some(apply(&self.target(), &writer(manager), self.live.as_ref(), &applied, force)?);
        Ok(())
    }

    fn update(&mut self, manager: &'static str, change: impl Fn(&mut Value)) {
        let mut new = self
            .live
            .clone()
            .unwrap_or_else(|| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}));
        change(&mut new);
        update(&self.target(), &writer(manager), self.live.as_ref(), &mut new).unwrap();
        self.live = Some(new);
    }

    fn spec(&self) -> &Value {
        &self.live.as_ref().unwrap()["spec"]
    }

    /// Manager, operation and fields of each entry.
    fn owners(&self) -> Vec<(String, String, Value)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entries = self.live.as_ref().unwrap().pointer("/metadata/managedFields").cloned().unwrap_or_default();
        entries
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| (text(&entry["manager"]), text(&entry["operation"]), entry["fieldsV1"].clone()))
            .collect()
    }
}

fn owner(manager: &str, operation: &str, fields: Value) -> (String, String, Value) {
    (manager.to_owned(), operation.to_owned(), fields)
}

#[test]
fn appliers_own_what_they_apply() {
    let mut cluster = Cluster::new();
    cluster.apply("a", json!({"replicas": 1, "paused": true}), false).unwrap();
    assert_eq!(cluster.owners(), [owner("a", "Apply", json!({"f:spec": {"f:replicas": {}, "f:paused": {}}}))]);
    // What is no longer applied goes.
    cluster.apply("a", json!({"replicas": 1}), false).unwrap();
    assert_eq!(*cluster.spec(), json!({"replicas": 1}));
    // The same value is shared, another one is a conflict.
    cluster.apply("b", json!({"replicas": 1}), false).unwrap();
    let error = cluster.apply("b", json!({"replicas": 2}), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    cluster.apply("b", json!({"replicas": 2}), true).unwrap();
    assert_eq!(cluster.owners(), [owner("b", "Apply", json!({"f:spec": {"f:replicas": {}}}))]);
    // What another still owns stays.
    cluster.apply("c", json!({"replicas": 2, "paused": true}), false).unwrap();
    cluster.apply("c", json!({"paused": true}), false).unwrap();
    assert_eq!(*cluster.spec(), json!({"replicas": 2, "paused": true}));
}

#[test]
fn updates_take_what_they_change() {
    let mut cluster = Cluster::new();
    cluster.update("create", |object| object["spec"] = json!({"replicas": 1, "paused": true}));
    cluster.update("scale", |object| object["spec"]["replicas"] = json!(5));
    cluster.update("scale", |object| {
        object["status"] = json!({"replicas": 1});
    });
    assert_eq!(
        cluster.owners(),
        [
            owner("create", "Update", json!({"f:spec": {".": {}, "f:paused": {}}})),
            owner("scale", "Update", json!({"f:spec": {"f:replicas": {}}})),
        ]
    );
    let error = cluster.apply("a", json!({"replicas": 1, "paused": false}), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"create\" using apps/v1:\n- .spec.paused\nconflicts with \"scale\" using apps/v1:\n- .spec.replicas"
    );
    let ApplyError::Conflicts(conflicts) = error else { panic!("conflicts expected") };
    assert_eq!(
        conflicts.to_causes()[0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"create\" using apps/v1", "field": ".spec.paused"})
    );
}

#[test]
fn lists_merge_by_key() {
    let template = |containers: Value| json!({"template": {"spec": {"containers": containers}}});
    let mut cluster = Cluster::new();
    cluster.apply("a", template(json!([{"name": "x", "image": "1"}, {"name": "y", "image": "1"}])), false).unwrap();
    cluster.apply("b", template(json!([{"name": "z", "image": "1"}, {"name": "x", "tty": true}])), false).unwrap();
    assert_eq!(
        cluster.spec()["template"]["spec"]["containers"],
        json!([{"name": "z", "image": "1"}, {"name": "x", "image": "1", "tty": true}, {"name": "y", "image": "1"}])
    );
    cluster.apply("a", template(json!([{"name": "y", "image": "2"}])), false).unwrap();
    assert_eq!(
        cluster.spec()["template"]["spec"]["containers"],
        json!([{"name": "z", "image": "1"}, {"name": "x", "tty": true}, {"name": "y", "image": "2"}])
    );
    let error = cluster.apply("a", template(json!([{"name": "y"}, {"name": "y"}])), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"y\"]"
    );
    let error = cluster.apply("a", json!({"foo": 1}), false).unwrap_err().to_string();
    assert!(error.ends_with(": .spec.foo: field not declared in schema"), "{error}");
}

#[test]
fn absent_keys_have_defaults() {
    let id = builtin().kind("", "v1", "Service").unwrap();
    let reset = FieldSet::default();
    let target = Target { schema: &builtin().schema, id, reset: &reset };
    let mut new = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{}, {"port": 81}, {"port": 81}]}});
    update(&target, &Writer { api_version: "v1", ..writer("a") }, None, &mut new).unwrap();
    let fields = &new["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:ports"];
    assert_eq!(
        *fields,
        json!({".": {}, "k:{\"port\":0,\"protocol\":\"TCP\"}": {}, "k:{\"port\":81,\"protocol\":\"TCP\"}": {}})
    );
}

#[test]
fn types_are_checked_in_upstream_words() {
    let mut cluster = Cluster::new();
    for (spec, expected) in [
        (json!({"paused": "yes"}), ".spec.paused: expected boolean, got &{yes}"),
        (json!({"replicas": "1"}), ".spec.replicas: expected numeric (int or float), got string"),
        (json!({"template": [1]}), ".spec.template: expected map, got &{[1]}"),
        (
            json!({"template": {"spec": {"containers": [null]}}}),
            ".spec.template.spec.containers: element 0: associative list with keys may not have a null element",
        ),
    ] {
        let error = cluster.apply("a", spec, false).unwrap_err().to_string();
        assert_eq!(error, format!("failed to create typed patch object (/d; apps/v1, Kind=Deployment): {expected}"));
    }
}

#[test]
fn untracked_objects_stay_so_until_applied() {
    let mut cluster = Cluster::new();
    cluster.live = Some(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 1}}),
    );
    cluster.update("x", |object| object["spec"]["replicas"] = json!(2));
    assert!(cluster.owners().is_empty());
    cluster.apply("a", json!({"paused": true}), false).unwrap();
    assert_eq!(
        cluster.owners(),
        [
            owner("a", "Apply", json!({"f:spec": {"f:paused": {}}})),
            owner("before-first-apply", "Update", json!({"f:spec": {".": {}, "f:replicas": {}}})),
        ]
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_before() {
    let last = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":1}}"#;
    let mut cluster = Cluster::new();
    cluster.update("kubectl-client-side-apply", |object| {
        object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
        object["spec"] = json!({"replicas": 1});
    });
    assert!(cluster.apply("other", json!({"replicas": 2}), false).is_err());
    cluster.apply("kubectl", json!({"replicas": 2}), false).unwrap();
    assert_eq!(*cluster.spec(), json!({"replicas": 2}));
    let renewed =
        &cluster.live.as_ref().unwrap()["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert_eq!(
        renewed.as_str().unwrap(),
        "{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"metadata\":{\"name\":\"d\"},\"spec\":{\"replicas\":2}}\n"
    );
}

#[test]
fn old_updaters_are_merged() {
    let names = ["m00", "m01", "m02", "m03", "m04", "m05", "m06", "m07", "m08", "m09", "m10", "m11"];
    let mut cluster = Cluster::new();
    for name in names {
        cluster.update(name, |object| object["metadata"]["labels"][name] = json!(name));
    }
    let owners = cluster.owners();
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes");
    assert_eq!(owners[0].2, json!({"f:metadata": {"f:labels": {".": {}, "f:m00": {}, "f:m01": {}, "f:m02": {}}}}));
}

#[test]
fn requests_may_bring_or_reset_entries() {
    let mut cluster = Cluster::new();
    cluster.apply("a", json!({"replicas": 1}), false).unwrap();
    cluster.update("x", |object| object["metadata"]["managedFields"] = json!([{}]));
    assert!(cluster.owners().is_empty() || cluster.owners()[0].0 == "x");
    let applied =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "managedFields": []}});
    let error = apply(&cluster.target(), &writer("a"), None, &applied, false).unwrap_err();
    assert_eq!(error, ApplyError::ManagedFieldsSet);
}

#[test]
fn sets_are_written_and_read_back() {
    let fields = json!({
        "f:a": {".": {}, "k:{\"name\":\"x\",\"port\":1}": {"f:b": {}}, "v:\"s\"": {}, "i:3": {}},
        "f:c": {},
    });
    assert_eq!(encode_fields(&decode_fields(&fields).unwrap()), fields);
    for bad in [json!({"x": {}}), json!({"f:a": 1}), json!({"i:x": {}}), json!({"k:[]": {}}), json!({"ab": {}})] {
        assert!(decode_fields(&bad).is_err(), "{bad}");
    }
    assert!(decode_fields(&json!({"z:new": {}})).unwrap().is_empty());
}
