use proptest::prelude::*;
use serde_json::{Value, json};

use crate::facts::builtin;
use crate::protobuf::wire::{write_bytes, write_number};
use crate::protobuf::{
    DEPTH_MAX, Fault, MAGIC, ProtobufError, decode, decode_message, encode, encode_list, envelope, message_of,
    watch_event,
};

/// What goes in comes out, apart from the fields in `filled`, which upstream's JSON always has.
fn check(object: &Value, filled: &Value) {
    let bytes = encode(builtin(), object).unwrap();
    let mut expected = object.clone();
    json_patch::merge(&mut expected, filled);
    assert_eq!(decode(builtin(), &bytes), Ok(expected));
}

#[test]
fn what_goes_in_comes_out() {
    check(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "100m"}}, "ports": [{"containerPort": 80}],
             "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3}}],
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0}}]}}),
        &json!({"status": {}}),
    );
    check(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s",
            "creationTimestamp": "2026-11-21T06:37:38Z"}, "data": {"a": "AAEC", "b": ""}, "immutable": false}),
        &json!({}),
    );
    check(
        &json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [
                {"operations": ["CREATE"], "apiGroups": ["apps"], "resourceNames": ["x"]}]}}}),
        &json!({"status": {}}),
    );
    check(
        &json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
            "spec": {"group": "g", "scope": "Namespaced", "names": {"plural": "xs", "kind": "X"}, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                    "properties": {"a": {"items": {"type": "string"}, "enum": [1, "x", null], "maximum": 1.5},
                                   "b": {"additionalProperties": false}, "c": {"items": [{"type": "integer"}]},
                                   "d": {"additionalProperties": {"default": {"x": [1]}},
                                         "dependencies": {"e": ["f"], "g": {"not": {"$ref": "h"}}}}}}}}]}}),
        &json!({"status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null}}),
    );
    check(
        &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"renewTime": "2026-11-21T06:37:38.000123Z", "leaseTransitions": 0}}),
        &json!({}),
    );
    check(
        &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
            "status": {"user": {"extra": {"k": ["a", "b"]}}}}),
        &json!({}),
    );
}

#[test]
fn kinds_that_cannot_be_are_named() {
    let refused = |object: &Value| encode(builtin(), object).unwrap_err().to_string();
    assert_eq!(
        refused(&json!({"apiVersion": "apps/v1beta1", "kind": "Deployment"})),
        "no kind \"Deployment\" in version \"apps/v1beta1\""
    );
    assert_eq!(
        refused(&json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"})),
        "Table of meta.k8s.io/v1 has no protobuf form, only JSON"
    );
    assert_eq!(refused(&json!({"kind": "Pod"})), "the object has no text in \"apiVersion\"");
    let unknown = envelope("example.com/v1", "Toy", &[]);
    assert!(matches!(decode(builtin(), &unknown), Err(ProtobufError::UnknownKind { .. })));
    assert_eq!(decode(builtin(), b"{}"), Err(ProtobufError::NoMagic));
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    let refused = |object: &Value| encode(builtin(), object).unwrap_err().to_string();
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "spec": spec});
    assert_eq!(refused(&pod(json!({"containers": [{"nmae": "x"}]}))), "spec.containers[0].nmae: unknown field");
    assert_eq!(refused(&pod(json!({"priority": 3_000_000_000_u64}))), "spec.priority: expected an integer of 32 bits");
    assert_eq!(refused(&pod(json!({"nodeSelector": []}))), "spec.nodeSelector: expected an object");
    assert_eq!(refused(&pod(json!({"hostNetwork": "yes"}))), "spec.hostNetwork: expected true or false");
}

#[test]
fn wrong_bytes_are_refused_with_their_place() {
    let refused = |message: &[u8]| decode(builtin(), &envelope("v1", "Pod", message)).unwrap_err().to_string();
    let mut spec = Vec::new();
    write_number(&mut spec, 2, 5);
    let mut pod = Vec::new();
    write_bytes(&mut pod, 2, &spec);
    assert_eq!(refused(&pod), "spec.containers[0]: the wire type is a varint, expected length-delimited");
    let mut pod = Vec::new();
    write_bytes(&mut pod, 1, &[0x0a, 1, 0xff]);
    assert_eq!(refused(&pod), "metadata.name: the text is not UTF-8");
    assert_eq!(refused(&[0x0a, 200]), "message: the message ends within a field");
    assert_eq!(refused(&[0x00, 0x00]), "message: a malformed varint or field tag");
    assert_eq!(refused(&[0x0c]), "message: a malformed varint or field tag");
}

#[test]
fn unknown_numbers_are_passed_over_even_groups() {
    // Field 100: a varint, 64 bits, bytes, 32 bits, a group holding a group.
    let message = [
        0xa0, 6, 1, 0xa1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0xa2, 6, 2, 1, 1, 0xa5, 6, 0, 0, 0, 0, 0xa3, 6, 0x0b, 0x08, 1,
        0x0c, 0xa4, 6,
    ];
    let pod = decode(builtin(), &envelope("v1", "Pod", &message)).unwrap();
    assert_eq!(pod, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}, "status": {}}));
}

/// A small body cannot become a deep or a big value.
#[test]
fn bombs_are_refused() {
    let schema = builtin().type_named(super::decode::JSON_SCHEMA).unwrap();
    let mut nested = Vec::new();
    for _ in 0..10_000 {
        let mut outer = Vec::with_capacity(nested.len() + 8);
        write_bytes(&mut outer, 28, &nested); // `not`
        nested = outer;
        if nested.len() > 60_000 {
            break;
        }
    }
    let error = decode_message(builtin(), schema, &nested).unwrap_err();
    assert!(matches!(error, ProtobufError::Field { fault: Fault::TooDeep, .. }), "{error}");

    let containers: Vec<u8> = [0x12, 0].repeat(500_000);
    let mut pod = Vec::new();
    write_bytes(&mut pod, 2, &containers);
    let error = decode(builtin(), &envelope("v1", "Pod", &pod)).unwrap_err();
    assert!(matches!(error, ProtobufError::Field { fault: Fault::TooSparse, .. }), "{error}");

    let deep = format!("{}{}", "[".repeat(125), "]".repeat(125));
    let (mut raw, mut revision) = (Vec::new(), Vec::new());
    write_bytes(&mut raw, 1, deep.as_bytes());
    write_bytes(&mut revision, 2, &raw);
    let error = decode(builtin(), &envelope("apps/v1", "ControllerRevision", &revision)).unwrap_err();
    assert_eq!(error.to_string(), "data: nested too deeply");
    let mut body = envelope("v1", "List", &[]);
    for _ in 0..DEPTH_MAX {
        let (mut raw, mut message) = (Vec::new(), Vec::new());
        write_bytes(&mut raw, 1, &body);
        write_bytes(&mut message, 2, &raw);
        body = envelope("v1", "List", &message);
    }
    assert!(decode(builtin(), &body).is_err(), "envelopes within envelopes");
}

#[test]
fn a_watch_event_holds_the_encoded_object() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}, "status": {}});
    let frame = watch_event("ADDED", &encode(builtin(), &pod).unwrap());
    let event = builtin().kind("", "v1", "WatchEvent").unwrap();
    assert_eq!(decode_message(builtin(), event, &frame), Ok(json!({"type": "ADDED", "object": pod})));
}

/// A list put together from encoded items is the list encoded as a whole, for every list kind.
#[test]
fn lists_are_put_together_from_encoded_items() {
    let facts = builtin();
    for resource in facts.resources.iter().filter(|resource| resource.verbs.iter().any(|verb| &**verb == "list")) {
        let api_version = if resource.group.is_empty() {
            "v1".to_owned()
        } else {
            format!("{}/{}", resource.group, resource.version)
        };
        let object =
            |name: &str| json!({"apiVersion": api_version, "kind": &*resource.kind, "metadata": {"name": name}});
        let bodies = [encode(facts, &object("a")).unwrap(), encode(facts, &object("b")).unwrap()];
        let kind = format!("{}List", resource.kind);
        let metadata = json!({"resourceVersion": "7"});
        let items = bodies.iter().map(|body| message_of(body).unwrap());
        let list = decode(facts, &encode_list(facts, &api_version, &kind, &metadata, items).unwrap()).unwrap();
        let whole = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "items": [
            {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]});
        assert_eq!(list, decode(facts, &encode(facts, &whole).unwrap()).unwrap(), "{kind}");
        assert_eq!(list["items"][1]["metadata"]["name"], "b", "{kind}");
        assert_eq!(list["metadata"]["resourceVersion"], "7", "{kind}");
    }
}

#[test]
fn envelopes_of_other_content_are_refused() {
    let mut body = MAGIC.to_vec();
    write_bytes(&mut body, 3, b"gzip");
    assert_eq!(decode(builtin(), &body).unwrap_err().to_string(), "a contentEncoding of \"gzip\" is not supported");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(message in prop::collection::vec(any::<u8>(), 0..300), which in 0..4_usize) {
        let (version, kind) = [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "List"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition")][which];
        let _ = decode(builtin(), &envelope(version, kind, &message));
        let _ = decode(builtin(), &message);
    }

    /// Valid bodies with a few bytes changed: refused, or decoded to something that both directions agree on.
    #[test]
    fn damaged_bodies_are_refused_or_stable(
        line in 0..130_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        use base64::Engine as _;
        let pairs = include_str!("../../tests/protobuf_pairs.txt");
        let body = pairs.lines().skip(1).nth(line).unwrap().split('\t').nth(1).unwrap();
        let mut body = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(object) = decode(builtin(), &body)
            && let Ok(again) = encode(builtin(), &object)
        {
            prop_assert_eq!(decode(builtin(), &again), Ok(object));
        }
    }
}
