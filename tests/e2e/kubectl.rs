//! What people do with kubectl, done with kubectl.

use crate::harness::{Server, assert_has, eventually};

#[test]
fn everyday_commands() {
    let server = Server::start(&["--disable-agent"]);
    let k = |arguments: &str| server.kubectl(arguments);
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        assert_has(&k("get namespaces"), namespace);
    }
    k("create configmap settings --from-literal=colour=red");
    assert_has(&k("get configmap settings -o yaml"), "colour: red");
    k("label configmap settings tier=front");
    assert_has(&k("get configmaps -l tier=front -o name"), "configmap/settings");
    k("annotate configmap settings note=hello");
    k("patch configmap settings -p {\"data\":{\"size\":\"big\"}}");
    assert_has(&k("get configmap settings -o jsonpath={.data.size}"), "big");
    k("delete configmap settings");
    let (ok, output) = server.try_kubectl("get configmap settings", "");
    assert!(!ok);
    assert_has(&output, "configmaps \"settings\" not found");
    assert_has(&k("api-resources"), "deployments");
    assert_has(&k("explain deployment.spec.replicas"), "replicas");
    assert_has(&k("version"), "v1.36");
    assert_has(&k("auth can-i create pods"), "yes");
    let (_, output) = server.try_kubectl("auth can-i create pods --as stranger", "");
    assert_has(&output, "no");
}

#[test]
fn a_deployment_makes_pods_and_takes_them_with_it() {
    let server = Server::start(&["--disable-agent"]);
    server.kubectl("create deployment web --image=example.test/web:1 --replicas=3");
    let pods = || server.kubectl("get pods -l app=web -o name").lines().count();
    let count = |wanted: usize| move |found: usize| if found == wanted { Ok(()) } else { Err(format!("{found} pods")) };
    eventually("three pods", || count(3)(pods()));
    server.kubectl("scale deployment web --replicas=1");
    eventually("one pod", || count(1)(pods()));
    server.kubectl("expose deployment web --port=80");
    eventually("slices of the service", || {
        let slices = server.kubectl("get endpointslices -l kubernetes.io/service-name=web -o name");
        if slices.lines().count() == 1 { Ok(()) } else { Err(slices) }
    });
    server.kubectl("delete deployment web");
    eventually("no pods", || count(0)(pods()));
}

#[test]
fn a_namespace_empties_and_goes() {
    let server = Server::start(&["--disable-agent"]);
    server.kubectl("create namespace team");
    eventually("the default account", || {
        let found = server.kubectl("-n team get serviceaccounts,configmaps -o name");
        if found.contains("serviceaccount/default") && found.contains("kube-root-ca.crt") { Ok(()) } else { Err(found) }
    });
    server.kubectl("-n team create configmap a");
    server.kubectl("delete namespace team --wait=true --timeout=60s");
    let (ok, _) = server.try_kubectl("get namespace team", "");
    assert!(!ok, "the namespace is still there");
}

#[test]
fn apply_owns_fields_and_tells_conflicts() {
    let server = Server::start(&["--disable-agent"]);
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: shared\ndata:\n  a: one\n";
    let apply = |manager: &str, text: &str| {
        server.try_kubectl(&format!("apply --server-side --field-manager={manager} -f -"), text)
    };
    assert!(apply("first", manifest).0);
    let (ok, output) = apply("second", &manifest.replace("one", "two"));
    assert!(!ok);
    assert_has(&output, "conflict");
    assert_has(&output, ".data.a");
    let (ok, output) = server.try_kubectl(
        "apply --server-side --force-conflicts --field-manager=second -f -",
        &manifest.replace("one", "two"),
    );
    assert!(ok, "{output}");
    assert_has(&server.kubectl("get configmap shared -o jsonpath={.data.a}"), "two");
}

#[test]
fn custom_resources_are_kinds_like_any_other() {
    let server = Server::start(&["--disable-agent"]);
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.count, statusReplicasPath: .status.count}}
    additionalPrinterColumns: [{name: Count, type: integer, jsonPath: .spec.count}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [count]
            properties: {count: {type: integer, minimum: 0, default: 1}, colour: {type: string, default: red}}
          status: {type: object, properties: {count: {type: integer}}}
"#;
    let apply = |text: &str| server.try_kubectl("apply -f -", text);
    let (ok, output) = apply(definition);
    assert!(ok, "{output}");
    let widget = |count: &str| {
        format!("apiVersion: example.test/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {{count: {count}}}\n")
    };
    let (ok, output) = apply(&widget("3"));
    assert!(ok, "{output}");
    assert_has(&server.kubectl("get wd"), "COUNT");
    assert_has(&server.kubectl("get widget w -o jsonpath={.spec.colour}"), "red");
    let (ok, output) = apply(&widget("-1"));
    assert!(!ok);
    assert_has(&output, "spec.count in body should be greater than or equal to 0");
    server.kubectl("scale widget w --replicas=7");
    assert_has(&server.kubectl("get widget w -o jsonpath={.spec.count}"), "7");
    server.kubectl("delete crd widgets.example.test");
    let (ok, _) = server.try_kubectl("get widgets", "");
    assert!(!ok, "the kind is still served");
}
