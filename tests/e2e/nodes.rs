//! What nodes may do: as `system:node:NAME` over kubectl, against a server without a node of its own.

use serde_json::{Value, json};

use crate::harness::{Server, assert_has};

/// Two nodes, a pod bound to each, and secrets and accounts that one of them names.
fn cluster() -> Server {
    let server = Server::start(&["--disable-agent"]);
    for node in ["n1", "n2"] {
        create(&server, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}));
    }
    for name in ["mounted", "pulled", "other"] {
        create(
            &server,
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"},
            "stringData": {"key": name}}),
        );
    }
    create(
        &server,
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot", "namespace": "default"}}),
    );
    create(&server, &pod("p1", "n1", "bot", &["mounted"]));
    create(&server, &pod("p2", "n2", "default", &[]));
    server
}

fn create(server: &Server, object: &Value) {
    let (ok, text) = server.try_kubectl("create -f -", &object.to_string());
    assert!(ok, "{text}");
}

fn pod(name: &str, node: &str, account: &str, secrets: &[&str]) -> Value {
    let volumes: Vec<Value> = secrets.iter().map(|s| json!({"name": s, "secret": {"secretName": s}})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "serviceAccountName": account, "volumes": volumes,
            "imagePullSecrets": if secrets.is_empty() { json!([]) } else { json!([{"name": "pulled"}]) },
            "containers": [{"name": "main", "image": "example.test/none"}]}})
}

/// kubectl as a node.
fn as_node(server: &Server, node: &str, arguments: &str, input: &str) -> (bool, String) {
    server.try_kubectl(&format!("--as system:node:{node} --as-group system:nodes {arguments}"), input)
}

#[test]
fn a_node_reads_what_its_pods_name_and_loses_it_with_them() {
    let mut server = cluster();
    let refused = "no relationship found between node 'n1' and this object";
    let cases = [
        ("n1", "get secret mounted", ""),
        ("n1", "get secret pulled", ""),
        ("n1", "get secrets --field-selector metadata.name=mounted", ""),
        ("n1", "get configmap kube-root-ca.crt", ""),
        ("n1", "get serviceaccount bot", ""),
        ("n1", "get pods -A --field-selector spec.nodeName=n1", ""),
        ("n1", "get pod p1", ""),
        ("n1", "get node n1", ""),
        ("n1", "get services", ""),
        ("n1", "get secret other", refused),
        ("n1", "get secrets", "No Object name found"),
        ("n1", "get secrets -A", "can only read namespaced object of this type"),
        ("n1", "get serviceaccount default", refused),
        ("n1", "get pod p2", refused),
        ("n1", "get pods", "can only list/watch pods with spec.nodeName field selector"),
        ("n1", "get pods --field-selector spec.nodeName=n2", "can only list/watch pods"),
        ("n1", "get nodes", "cannot read all nodes"),
        ("n1", "get node n2", "cannot read 'n2', only its own Node object"),
        ("n1", "get namespaces", "cannot list resource \"namespaces\""),
        ("n2", "get secret mounted", "no relationship found between node 'n2'"),
        ("n2", "delete pod p1 --wait=false", "can only delete pods with spec.nodeName set to itself"),
        ("n1", "label node n1 node-role.kubernetes.io/control-plane=x", "is not allowed to modify labels"),
        ("n1", "label node n1 node.kubernetes.io/own=x", ""),
    ];
    // The configmap of every namespace is a controller's, and this pod does not come through the admission of volumes
    // before it is there.
    crate::harness::eventually("the namespace has its authority", || {
        let (ok, text) = server.try_kubectl("get configmap kube-root-ca.crt", "");
        if ok { Ok(()) } else { Err(text) }
    });
    for (node, arguments, why) in cases {
        let (ok, text) = as_node(&server, node, arguments, "");
        assert_eq!(ok, why.is_empty(), "{node}: {arguments}: {text}");
        assert_has(&text, why);
    }
    server.kubectl("delete pod p1 --grace-period=0 --force");
    let (ok, text) = as_node(&server, "n1", "get secret mounted", "");
    assert!(!ok, "{text}");
    assert_has(&text, refused);
    // What an earlier version let every node read goes with the next start.
    let was = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "kedge:nodes", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]});
    create(&server, &was);
    assert!(as_node(&server, "n1", "get secrets -A", "").0);
    server.kill();
    server.restart();
    assert!(!as_node(&server, "n1", "get secrets -A", "").0);
}

#[test]
fn a_node_gets_tokens_for_its_pods_alone() {
    let server = cluster();
    let uid = |pod: &str| server.kubectl(&format!("get pod {pod} -o jsonpath={{.metadata.uid}}"));
    let (first, second) = (uid("p1"), uid("p2"));
    let bound = |pod: &str, uid: &str, audience: &str| {
        let audiences = if audience.is_empty() { json!([]) } else { json!([audience]) };
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": audiences,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}})
    };
    let unbound = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let cases = [
        ("n1", "bot", bound("p1", &first, ""), ""),
        ("n1", "bot", unbound, "node requested token not bound to a pod"),
        ("n1", "bot", bound("p1", &second, ""), "does not match the UID in record"),
        ("n1", "bot", bound("p2", &second, ""), "bound to a pod scheduled on a different node"),
        ("n1", "bot", bound("p1", &first, "vault"), "audience \"vault\" not found in pod spec volume"),
        ("n1", "default", bound("p2", &second, ""), "no relationship found between node 'n1'"),
        ("n2", "bot", bound("p1", &first, ""), "no relationship found between node 'n2'"),
    ];
    for (node, account, request, why) in cases {
        let path = format!("create --raw /api/v1/namespaces/default/serviceaccounts/{account}/token -f -");
        let (ok, text) = as_node(&server, node, &path, &request.to_string());
        assert_eq!(ok, why.is_empty(), "{node} {account} {request}: {text}");
        assert_has(&text, why);
    }
    let eviction = |pod: &str| {
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}})
            .to_string()
    };
    let evict = |pod: &str| {
        let path = format!("create --raw /api/v1/namespaces/default/pods/{pod}/eviction -f -");
        as_node(&server, "n1", &path, &eviction(pod))
    };
    let (ok, text) = evict("p2");
    assert!(!ok, "{text}");
    assert_has(&text, "can only evict pods with spec.nodeName set to itself");
    let (ok, text) = evict("p1");
    assert!(ok, "{text}");
}
