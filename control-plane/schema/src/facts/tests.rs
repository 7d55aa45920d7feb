use crate::facts::{AtNumber, Facts, Presence, TableError, Untyped, builtin};
use crate::shape::{ListKind, Shape};

/// A field's line, as the table would tell it.
fn check(definition: &str, field: &str, expected: &str) {
    let facts = builtin();
    let id = facts.type_named(definition).unwrap_or_else(|| panic!("no type {definition}"));
    let (object, details) = facts.described(id);
    let at = object.fields.iter().position(|known| &*known.name == field).unwrap_or_else(|| panic!("no field {field}"));
    let (field, more) = (&object.fields[at], &details.fields[at]);
    let shape = match &field.shape {
        Shape::Object(id) => facts.schema.object(*id).name.to_string(),
        Shape::List(list) => format!("list of {:?} by {:?}", kind_name(&list.item), list.kind),
        other => format!("{other:?}"),
    };
    let patch = (field.patch.merge, field.patch.retain_keys, field.patch.merge_key.as_deref());
    assert_eq!(format!("{shape} {:?} {:?} {patch:?}", more.path, more.presence), expected);
}

fn kind_name(shape: &Shape) -> String {
    match shape {
        Shape::Object(id) => builtin().schema.object(*id).name.rsplit('.').next().unwrap().to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn fields_are_what_the_sources_say() {
    check(
        "io.k8s.api.core.v1.PodSpec",
        "containers",
        r#"list of "Container" by Map(["name"]) [2, 0, 0] Always (true, false, Some("name"))"#,
    );
    check(
        "io.k8s.api.core.v1.ServiceSpec",
        "ports",
        r#"list of "ServicePort" by Map(["port", "protocol"]) [1, 0, 0] OmitZero (true, false, Some("port"))"#,
    );
    check(
        "io.k8s.api.core.v1.Volume",
        "secret",
        "io.k8s.api.core.v1.SecretVolumeSource [2, 6, 0] Pointer (false, false, None)",
    );
    check(
        "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
        "apiGroups",
        r#"list of "String" by Atomic [2, 2, 1] OmitZero (false, false, None)"#,
    );
    check("io.k8s.api.apps.v1.DeploymentSpec", "replicas", "Int32 [1, 0, 0] Pointer (false, false, None)");
    check(
        "io.k8s.api.apps.v1.DeploymentSpec",
        "strategy",
        "io.k8s.api.apps.v1.DeploymentStrategy [4, 0, 0] Always (false, true, None)",
    );
    check(
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "creationTimestamp",
        "Time [8, 0, 0] OmitZero (false, false, None)",
    );
    check("io.k8s.api.core.v1.Pod", "kind", "String [0, 0, 0] OmitZero (false, false, None)");
}

#[test]
fn kinds_and_resources_are_found() {
    let facts = builtin();
    let name = |group, version, kind| facts.kind(group, version, kind).map(|id| &*facts.schema.object(id).name);
    assert_eq!(name("apps", "v1", "Deployment"), Some("io.k8s.api.apps.v1.Deployment"));
    assert_eq!(name("", "v1", "PodList"), Some("io.k8s.api.core.v1.PodList"));
    assert_eq!(name("policy", "v1", "Eviction"), Some("io.k8s.api.policy.v1.Eviction"));
    assert_eq!(name("", "v1", "Status"), Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status"));
    assert_eq!(name("apps", "v1", "DeleteOptions"), Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"));
    assert_eq!(name("meta.k8s.io", "v1", "Table"), Some("io.k8s.apimachinery.pkg.apis.meta.v1.Table"));
    assert_eq!(name("apps", "v1beta1", "Deployment"), None);

    let pods = facts.resource("", "v1", "pods").unwrap();
    assert_eq!((&*pods.kind, &*pods.singular, pods.namespaced), ("Pod", "pod", true));
    assert_eq!(pods.short_names, ["po".into()]);
    assert_eq!(pods.verbs.len(), 8);
    let eviction = pods.subresources.iter().find(|sub| &*sub.name == "eviction").unwrap();
    assert_eq!((&*eviction.group, &*eviction.version, &*eviction.kind), ("policy", "v1", "Eviction"));
    assert!(!facts.resource("", "v1", "nodes").unwrap().namespaced);
    let versions = facts.group_versions();
    assert_eq!(versions[0], ("", "v1"));
    assert!(
        versions.iter().position(|of| *of == ("autoscaling", "v2"))
            < versions.iter().position(|of| *of == ("autoscaling", "v1"))
    );
}

/// Each type can be named, each resource has its list kind, and list keys are fields of the items.
#[test]
fn the_table_holds_together() {
    let facts = builtin();
    for (at, object) in facts.schema.types.iter().enumerate() {
        assert_eq!(facts.type_named(&object.name).map(|id| id.0 as usize), Some(at));
        for field in &object.fields {
            assert_eq!(object.field(&field.name), Some(field));
            if let Shape::List(list) = &field.shape
                && let (ListKind::Map(keys), Shape::Object(item)) = (&list.kind, &list.item)
            {
                let item = facts.schema.object(*item);
                assert!(keys.iter().all(|key| item.field(key).is_some()), "{}.{}", object.name, field.name);
            }
        }
    }
    for resource in &facts.resources {
        if resource.verbs.iter().any(|verb| &**verb == "list") {
            let list = format!("{}List", resource.kind);
            assert!(facts.kind(&resource.group, &resource.version, &list).is_some(), "{list}");
        }
    }
}

#[test]
fn numbers_lead_to_fields_and_inlined_messages() {
    let facts = builtin();
    let (object, details) = facts.described(facts.type_named("io.k8s.api.core.v1.Volume").unwrap());
    let name = |at| match at {
        Some(AtNumber::Field(index)) => Some(&*object.fields[index].name),
        _ => None,
    };
    assert_eq!(name(details.at([0; 3], 1)), Some("name"));
    assert_eq!(details.at([0; 3], 2), Some(AtNumber::Inlined));
    assert_eq!(name(details.at([2, 0, 0], 1)), Some("hostPath"));
    assert_eq!(details.at([0; 3], 3), None);
    assert_eq!(details.at([2, 0, 0], 70_000), None);
    let raw = facts.described(facts.type_named("io.k8s.api.apps.v1.ControllerRevision").unwrap());
    let data = raw.0.fields.iter().position(|field| &*field.name == "data").unwrap();
    assert_eq!((raw.1.fields[data].any, raw.1.fields[data].presence), (Untyped::Raw, Presence::Always));
}

#[test]
fn a_broken_table_is_refused_with_its_line() {
    let refused = |text: &str, line: usize, fault: &str| {
        assert_eq!(Facts::parse(text).err(), Some(TableError { line, fault: fault.to_owned() }), "{text}");
    };
    refused("package p\ntype A\n b 1 Missing", 3, "no type \"Missing\" in p");
    refused("package p\ntype A\n b 1 string\n a 2 string", 4, "fields are not sorted by name");
    refused("package p\ntype A\n a 1 string\n b 1 string", 4, "p.A: two fields have one protobuf path");
    refused(" a 1 string", 1, "a field before any type");
    refused("group /v1\nresource pods Pod pod namespaced *", 2, "no type is the kind \"Pod\" of /v1");
    refused("nonsense", 1, "unknown word \"nonsense\"");
}
