use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::facts::builtin;
use crate::openapi::{
    CrdDocument, GnosticError, document_v2, document_v3, document_v3_of_path, gnostic_v2, undescribed,
};
use crate::protobuf::wire::Fields;

fn toy(schema: Value) -> CrdDocument {
    CrdDocument {
        group: "stable.example.com".to_owned(),
        version: "v1".to_owned(),
        kind: "CronTab".to_owned(),
        list_kind: "CronTabList".to_owned(),
        plural: "crontabs".to_owned(),
        namespaced: true,
        status: true,
        scale: true,
        selectable_fields: vec![".spec.cron".to_owned()],
        schema,
    }
}

/// Every reference in a document leads to one of its definitions, and every definition is referred to.
fn check_references(document: &Value, definitions: &str, prefix: &str) {
    fn collect<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| collect(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    collect(document, &mut found);
    let found: BTreeSet<&str> = found.iter().map(|name| name.strip_prefix(prefix).unwrap()).collect();
    let defined = document.pointer(definitions).unwrap().as_object().unwrap();
    assert_eq!(found, defined.keys().map(|name| &**name).collect());
}

#[test]
fn documents_are_closed() {
    let facts = builtin();
    let toys = [toy(json!({"type": "object"}))];
    for (group, version) in facts.group_versions().into_iter().chain([("stable.example.com", "v1")]) {
        let document = document_v3(facts, group, version, &toys, &undescribed).unwrap();
        check_references(&document, "/components/schemas", "#/components/schemas/");
    }
    for path in ["api", "apis", "apis/apps", "version"] {
        let document = document_v3_of_path(facts, path, &undescribed).unwrap();
        check_references(&document, "/components/schemas", "#/components/schemas/");
    }
    for path in [".well-known/openid-configuration", "openid/v1/jwks"] {
        let document = document_v3_of_path(facts, path, &undescribed).unwrap();
        assert_eq!(document.pointer("/components/schemas"), None, "{path} answers text");
    }
    check_references(&document_v2(facts, &toys, "v1.36.3", &undescribed), "/definitions", "#/definitions/");
    assert_eq!(document_v3(facts, "stable.example.com", "v2", &toys, &undescribed), None);
    assert_eq!(document_v3_of_path(facts, "apis/apps/v1", &undescribed), None);
}

#[test]
fn operation_ids_are_unique() {
    let document = document_v2(builtin(), &[toy(json!({"type": "object"}))], "v1.36.3", &undescribed);
    let mut seen = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters") {
            assert!(seen.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        }
    }
    assert!(seen.len() > 800, "{} operations", seen.len());
}

#[test]
fn a_field_is_told_in_both_forms() {
    let facts = builtin();
    let describe = |of: &str, field: &str| {
        (of == "io.k8s.api.core.v1.PodSpec" && field == "containers").then(|| "What runs".to_owned())
    };
    let v2 = document_v2(facts, &[], "v1.36.3", &describe);
    assert_eq!(
        v2["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"],
        json!({
            "description": "What runs", "type": "array", "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name",
        })
    );
    let v3 = document_v3(facts, "", "v1", &[], &describe).unwrap();
    let schemas = &v3["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]["items"],
        json!({"default": {}, "allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}]})
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"],
        json!({"type": "string", "default": "TCP"})
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
        json!([{"group": "", "version": "v1", "kind": "Pod"}])
    );
    assert_eq!(schemas["io.k8s.api.core.v1.LabelSelector"], Value::Null);
    assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"], "atomic");
}

/// What kubectl looks up before a server-side dry run.
#[test]
fn a_patch_tells_its_kind_and_parameters() {
    let document = document_v3(builtin(), "apps", "v1", &[], &undescribed).unwrap();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let names: Vec<&Value> = patch["parameters"].as_array().unwrap().iter().map(|each| &each["name"]).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
}

#[test]
fn a_custom_resource_is_told_in_both_forms() {
    let schema = json!({"type": "object", "required": ["spec"], "example": "dropped", "properties": {
        "maybe": {"type": "string", "nullable": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
        "port": {"x-kubernetes-int-or-string": true},
        "either": {"type": "object", "oneOf": [{"required": ["a"]}], "required": ["a", "b"],
                   "properties": {"a": {"type": "string", "nullable": true}, "b": {"type": "string"}}},
        "inner": {"type": "object", "x-kubernetes-embedded-resource": true},
    }});
    let toys = [toy(schema)];
    let v3 = document_v3(builtin(), "stable.example.com", "v1", &toys, &undescribed).unwrap();
    let object = &v3["components"]["schemas"]["com.example.stable.v1.CronTab"];
    let properties = &object["properties"];
    assert_eq!(properties["maybe"], json!({"type": "string", "nullable": true}));
    assert_eq!(properties["free"]["properties"], json!({"a": {"type": "string"}}));
    assert_eq!(properties["port"]["anyOf"], json!([{"type": "integer"}, {"type": "string"}]));
    assert_eq!(properties["either"]["oneOf"], json!([{"required": ["a"]}]));
    assert_eq!(properties["inner"]["required"], json!(["apiVersion", "kind"]));
    assert_eq!(
        properties["metadata"]["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}])
    );
    assert_eq!(object.get("example"), None);
    assert_eq!(object["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.cron"}]));
    let item = &v3["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"];
    let types: Vec<&String> = item["patch"]["requestBody"]["content"].as_object().unwrap().keys().collect();
    assert_eq!(types, ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]);

    let v2 = document_v2(builtin(), &toys, "v1.36.3", &undescribed);
    let properties = &v2["definitions"]["com.example.stable.v1.CronTab"]["properties"];
    assert_eq!(properties["maybe"], json!({}));
    assert_eq!(properties["free"], json!({"x-kubernetes-preserve-unknown-fields": true}));
    assert_eq!(properties["port"], json!({"x-kubernetes-int-or-string": true}));
    assert_eq!(properties["either"]["required"], json!(["b"]));
    assert_eq!(properties["either"].get("oneOf"), None);

    let open = [toy(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {}}))];
    let v2 = document_v2(builtin(), &open, "v1.36.3", &undescribed);
    assert_eq!(v2["definitions"]["com.example.stable.v1.CronTab"].get("properties"), None);
}

/// The protobuf form names the same paths and definitions, in the same places.
#[test]
fn the_protobuf_form_holds_the_document() {
    let document = document_v2(builtin(), &[toy(json!({"type": "object"}))], "v1.36.3", &undescribed);
    let bytes = gnostic_v2(&document).unwrap();
    let names = |outer: u32, inner: u32| {
        let mut found = Vec::new();
        let mut fields = Fields::new(&bytes);
        while let Some((number, value)) = fields.next().unwrap() {
            let mut entries = Fields::new(if number == outer { value.bytes().unwrap() } else { &[] });
            while let Some((number, entry)) = entries.next().unwrap() {
                assert_eq!(number, inner);
                let (number, name) = Fields::new(entry.bytes().unwrap()).next().unwrap().unwrap();
                assert_eq!(number, 1);
                found.push(name.text().unwrap().to_owned());
            }
        }
        found
    };
    let keys = |of: &str| document[of].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(8, 2), keys("paths"));
    assert_eq!(names(9, 1), keys("definitions"));
}

#[test]
fn what_the_protobuf_form_cannot_hold_is_an_error() {
    let refused = |schema: Value| gnostic_v2(&json!({"definitions": {"a": schema}})).unwrap_err();
    assert_eq!(refused(json!({"anyOf": []})), GnosticError::Unknown { message: "Schema", keyword: "anyOf".to_owned() });
    assert_eq!(
        refused(json!({"maxLength": "x"})),
        GnosticError::Type { message: "Schema", keyword: "maxLength".to_owned() }
    );
    assert_eq!(refused(json!({"items": [{}]})), GnosticError::Type { message: "Schema", keyword: "items".to_owned() });
}
