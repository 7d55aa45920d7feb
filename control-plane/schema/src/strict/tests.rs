//! Built-in objects as Go would decode and write them.

use serde_json::json;

use super::*;
use crate::facts::builtin;

fn kind(group: &str, kind: &str) -> TypeId {
    builtin().kind(group, "v1", kind).unwrap()
}

#[test]
fn unknown_fields_are_told_and_dropped() {
    let mut pod = json!({
        "kind": "Pod", "apiVersion": "v1", "foo": 1,
        "metadata": {"name": "a", "labels": {"any": "thing"}, "Name": "b"},
        "spec": {"containers": [{"name": "c", "image": "i", "imagePullPolicy": null, "bar": {}}], "volumes": [{"name": "v", "emptyDir": {"x": 1}}]},
    });
    let id = kind("", "Pod");
    let told = ["foo", "metadata.Name", "spec.containers[0].bar", "spec.volumes[0].emptyDir.x"];
    let texts = |problems: Vec<FieldProblem>| {
        let mut paths: Vec<String> = problems
            .into_iter()
            .map(|problem| match problem {
                FieldProblem::Unknown(path) => path,
                other => panic!("{other}"),
            })
            .collect();
        paths.sort();
        paths
    };
    assert_eq!(texts(check_fields(&builtin().schema, id, &pod)), told);
    assert_eq!(texts(conform(&builtin().schema, id, &mut pod).unwrap()), told);
    assert_eq!(
        pod,
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "labels": {"any": "thing"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}}]},
        })
    );
}

#[test]
fn wrong_types_are_errors_in_go_words() {
    let check = |group: &str, name: &str, mut object: Value, expected: &str| {
        let error = conform(&builtin().schema, kind(group, name), &mut object).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let spec = |spec: Value| json!({"spec": spec});
    check(
        "apps",
        "Deployment",
        spec(json!({"replicas": "3"})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    check(
        "apps",
        "Deployment",
        spec(json!({"replicas": 3.5})),
        "json: cannot unmarshal number 3.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    check(
        "",
        "Pod",
        spec(json!({"containers": {"name": "c"}})),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    check(
        "",
        "Pod",
        json!({"metadata": {"labels": {"a": 1}}}),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
    );
    check("", "Pod", json!([]), "json: cannot unmarshal array into Go value of type v1.Pod");
    check(
        "",
        "Pod",
        spec(json!({"containers": [{"resources": {"limits": {"cpu": "1x"}}}]})),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check("", "Secret", json!({"data": {"a": "%"}}), "illegal base64 data at input byte 0");
    check(
        "",
        "Service",
        spec(json!({"ports": [{"targetPort": true}]})),
        "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
    );
}

#[test]
fn values_come_out_canonical() {
    let mut pod = json!({
        "metadata": {"creationTimestamp": "2026-01-02T03:04:05.9+01:00", "finalizers": [null]},
        "spec": {"containers": [null, {"resources": {"limits": {"cpu": 1.5, "memory": "1024Mi"}}}]},
    });
    conform(&builtin().schema, kind("", "Pod"), &mut pod).unwrap();
    assert_eq!(
        pod,
        json!({
            "metadata": {"creationTimestamp": "2026-01-02T02:04:05Z", "finalizers": [""]},
            "spec": {"containers": [{}, {"resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}]},
        })
    );
}

#[test]
fn zero_values_settle_as_go_writes_them() {
    let mut deployment = json!({
        "metadata": {"name": "a", "labels": {}, "generation": 0},
        "spec": {"replicas": 0, "paused": false, "template": {"spec": {"containers": [{"name": "c"}]}}},
    });
    settle(builtin(), kind("apps", "Deployment"), &mut deployment);
    assert_eq!(
        deployment,
        json!({
            "metadata": {"name": "a"},
            "spec": {
                "replicas": 0,
                "strategy": {},
                "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}},
            },
            "status": {},
        })
    );
}
