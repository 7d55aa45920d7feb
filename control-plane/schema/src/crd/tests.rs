//! Definitions as upstream takes or refuses them, and what their schemas do to objects.

use serde_json::json;

use super::*;
use crate::facts::builtin;

fn schema(spec: Value) -> Result<CustomSchema, Vec<FieldError>> {
    let raw = json!({"type": "object", "properties": {"spec": spec}});
    CustomSchema::new(builtin(), raw, &Path::new("schema"))
}

#[track_caller]
fn refused(spec: Value, expected: &[&str]) {
    let errors: Vec<String> = schema(spec).unwrap_err().iter().map(FieldError::to_string).collect();
    assert_eq!(errors, expected);
}

#[test]
fn what_is_not_structural_is_refused() {
    refused(
        json!({}),
        &["schema.properties[spec].type: Required value: must not be empty for specified object fields"],
    );
    refused(json!({"type": "array"}), &["schema.properties[spec].items: Required value: must be specified"]);
    refused(
        json!({"type": "array", "items": {}, "x-kubernetes-list-type": "map"}),
        &[
            "schema.properties[spec].items.type: Invalid value: \"\": must be object if parent array's x-kubernetes-list-type is map",
            "schema.properties[spec].items.type: Required value: must not be empty for specified array items",
            "schema.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ],
    );
    refused(
        json!({"type": "object", "anyOf": [{"properties": {"a": {"type": "string", "minLength": 1}}}]}),
        &["schema.properties[spec].anyOf[0].properties[a].type: Forbidden: must be empty to be structural"],
    );
    refused(
        json!({"type": "string", "$ref": "x"}),
        &["schema.properties[spec].$ref: Forbidden: $ref is not supported"],
    );
    refused(
        json!({"type": "object", "properties": {"n": {"type": "integer", "default": "x"}}}),
        &[
            "schema.properties[spec].properties[n].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
        ],
    );
    refused(
        json!({"type": "object", "default": {"x": 1}}),
        &["schema.properties[spec].default: Invalid value: {\"x\":1}: must not have unknown fields"],
    );
    assert!(schema(json!({"type": "string", "pattern": "("})).is_err());
    assert!(
        schema(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})).is_ok()
    );
}

fn spec() -> CustomSchema {
    schema(json!({
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 5},
            "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "name": {"type": "string", "pattern": "^x", "minLength": 2, "maxLength": 3},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1},
            "list": {
                "type": "array", "maxItems": 2, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "default": 7}}},
            },
            "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "when": {"type": "string", "format": "date-time"},
        },
        "x-kubernetes-validations": [{"rule": "self.size > 0"}],
    }))
    .unwrap()
}

#[test]
fn objects_are_pruned_and_defaulted() {
    let schema = spec();
    let mut object = json!({
        "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "foo": 1}, "extra": 1,
        "spec": {"size": null, "x": 1, "maybe": null, "free": {"y": {"z": 1}, "known": {"gone": 1}}, "list": [{"k": "a", "w": 2}], "pod": {"kind": "Pod", "spec": {}}},
    });
    let problems = schema.conform(&mut object).unwrap();
    let paths: Vec<String> = problems.iter().map(FieldProblem::to_string).collect();
    assert_eq!(
        paths,
        [
            "unknown field \"extra\"",
            "unknown field \"spec.free.known.gone\"",
            "unknown field \"spec.list[0].w\"",
            "unknown field \"spec.x\"",
            "unknown field \"metadata.foo\"",
        ]
    );
    schema.default(&mut object);
    assert_eq!(
        object,
        json!({
            "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"},
            "spec": {"maybe": null, "mode": "a", "free": {"y": {"z": 1}, "known": {}}, "list": [{"k": "a", "v": 7}], "pod": {"kind": "Pod", "spec": {}}},
        })
    );
    let mut wrong = json!({"metadata": {"labels": {"a": 1}}});
    assert_eq!(
        schema.conform(&mut wrong).unwrap_err().to_string(),
        "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"
    );
}

#[test]
fn objects_are_validated_in_upstream_words() {
    let schema = spec();
    for (spec, expected) in [
        (json!({"size": 1}), vec![]),
        (json!({}), vec!["spec.size: Required value"]),
        (
            json!({"size": 1.5}),
            vec![
                "spec.size: Invalid value: \"number\": spec.size in body must be of type integer: \"number\"",
                "<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in spec.size",
            ],
        ),
        (
            json!({"size": 1, "mode": null}),
            vec![
                "spec.mode: Invalid value: \"null\": spec.mode in body must be of type string: \"null\"",
                "spec.mode: Unsupported value: null: supported values: \"a\", \"b\"",
            ],
        ),
        (
            json!({"size": "x"}),
            vec!["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""],
        ),
        (json!({"size": 6}), vec!["spec.size: Invalid value: 6: spec.size in body should be less than or equal to 5"]),
        (json!({"size": 1, "mode": "c"}), vec!["spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""]),
        (json!({"size": 1, "name": "xyzz"}), vec!["spec.name: Too long: may not be more than 3 bytes"]),
        (
            json!({"size": 1, "name": "y"}),
            vec![
                "spec.name: Invalid value: \"y\": spec.name in body should be at least 2 chars long",
                "spec.name: Invalid value: \"y\": spec.name in body should match '^x'",
            ],
        ),
        (json!({"size": 1, "port": "http", "maybe": null}), vec![]),
        (
            json!({"size": 1, "port": true}),
            vec![
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (
            json!({"size": 1, "labels": {"a": 1}}),
            vec![
                "spec.labels.a: Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
            ],
        ),
        (json!({"size": 1, "labels": {"a": "", "b": ""}}), vec!["spec.labels: Too many: 2: must have at most 1 item"]),
        (json!({"size": 1, "list": [{"k": "a"}, {"k": "a"}]}), vec!["spec.list[1]: Duplicate value: {\"k\":\"a\"}"]),
        (
            json!({"size": 1, "list": [{"k": "a"}, {"k": "b"}, {}]}),
            vec!["spec.list[2].k: Required value", "spec.list: Too many: 3: must have at most 2 items"],
        ),
        (
            json!({"size": 1, "one": {}}),
            vec![
                "<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
                "spec.one.a: Required value",
            ],
        ),
        (
            json!({"size": 1, "when": "now"}),
            vec!["spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\""],
        ),
    ] {
        let errors: Vec<String> = schema.validate(&json!({"spec": spec})).iter().map(FieldError::to_string).collect();
        assert_eq!(errors, expected, "{spec}");
    }
}

#[test]
fn old_faults_are_let_pass() {
    let schema = spec();
    let old = json!({"spec": {"size": 9, "mode": "a"}});
    assert!(schema.validate_update(&json!({"spec": {"size": 9, "mode": "b"}}), &old).is_empty());
    assert_eq!(schema.validate_update(&json!({"spec": {"size": 8}}), &old).len(), 1);
}

#[test]
fn what_is_not_enforced_is_told() {
    let schema = spec();
    assert_eq!(
        schema.unenforced(),
        [Unenforced {
            path: "schema.properties[spec].x-kubernetes-validations[0]".into(),
            what: "self.size > 0".into()
        }]
    );
}
