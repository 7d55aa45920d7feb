//! Patches on real kinds, as upstream would apply them.

use serde_json::json;

use super::*;
use crate::facts::builtin;

fn pod(spec: Value, patch: Value) -> Result<Value, StrategicError> {
    let id = builtin().kind("", "v1", "Pod").unwrap();
    let merged = merge(&builtin().schema, id, &json!({"spec": spec}), &json!({"spec": patch}))?;
    Ok(merged["spec"].clone())
}

#[track_caller]
fn check(spec: Value, patch: Value, expected: Value) {
    assert_eq!(pod(spec, patch).unwrap(), expected);
}

#[test]
fn lists_merge_by_key() {
    check(
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "1"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}], "image": null}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}]}),
    );
    // No merge strategy: replaced as a whole.
    check(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        json!({"tolerations": [{"key": "b"}]}),
    );
}

#[test]
fn order_is_set() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}]}),
        json!({"$setElementOrder/containers": [{"name": "n"}, {"name": "a"}], "containers": [{"name": "n", "image": "i"}]}),
        json!({"containers": [{"name": "n", "image": "i"}, {"name": "a"}]}),
    );
    assert!(matches!(
        pod(
            json!({"containers": [{"name": "a"}]}),
            json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "n"}]})
        ),
        Err(StrategicError::Order(..))
    ));
}

#[test]
fn scalars_merge_and_go() {
    let id = builtin().kind("", "v1", "Pod").unwrap();
    let object = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let merged =
        |patch: Value| merge(&builtin().schema, id, &object, &json!({"metadata": patch})).unwrap()["metadata"].clone();
    assert_eq!(merged(json!({"finalizers": ["d", "b"]})), json!({"finalizers": ["d", "a", "b", "c"]}));
    assert_eq!(merged(json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]})), json!({"finalizers": ["a", "c"]}));
    assert_eq!(
        merged(json!({"$setElementOrder/finalizers": ["c", "a"], "$deleteFromPrimitiveList/finalizers": ["b"]})),
        json!({"finalizers": ["c", "a"]})
    );
}

#[test]
fn objects_obey_directives() {
    check(
        json!({"securityContext": {"runAsUser": 1}}),
        json!({"securityContext": {"$patch": "replace", "fsGroup": 2}}),
        json!({"securityContext": {"fsGroup": 2}}),
    );
    check(
        json!({"securityContext": {"runAsUser": 1}}),
        json!({"securityContext": {"$patch": "delete"}}),
        json!({"securityContext": {}}),
    );
    check(
        json!({"hostNetwork": true}),
        json!({"hostNetwork": null, "securityContext": {"runAsUser": null, "fsGroup": 1}}),
        json!({"securityContext": {"fsGroup": 1}}),
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
        json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
    );
    let error = |patch: Value| {
        pod(json!({"securityContext": {"runAsUser": 1}, "containers": [{"name": "a"}]}), patch).unwrap_err()
    };
    assert_eq!(
        error(json!({"securityContext": {"$patch": "x"}})).to_string(),
        "unknown patch type: x in map: {\"$patch\":\"x\"}"
    );
    assert_eq!(
        error(json!({"containers": [{"image": "i"}]})).to_string(),
        "map: {\"image\":\"i\"} does not contain declared merge key: name"
    );
    assert_eq!(
        error(json!({"containers": [{"name": "a"}, 1]})),
        StrategicError::MixedItems("[[{\"name\":\"a\"}],[{\"name\":\"a\"},1]]".into())
    );
    assert_eq!(error(json!({"$retainKeys": [], "hostNetwork": true})), StrategicError::RetainKeys);
}
