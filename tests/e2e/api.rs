//! What a client of the API may rely on when it asks for little, for too much, or for nothing at all.

use serde_json::{Value, json};

use crate::harness::{Server, assert_has, eventually};

/// A pod that nothing runs, bound to `node`.
fn pod(server: &Server, name: &str, node: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example.test/none"}]}});
    eventually("the pod's account is there", || {
        let (ok, text) = server.try_kubectl("create -f -", &pod.to_string());
        if ok { Ok(()) } else { Err(text) }
    });
}

#[test]
fn a_dry_run_on_the_server_deletes_and_evicts_nothing() {
    let server = Server::start(&["--disable-agent"]);
    server.kubectl("create configmap kept");
    assert_has(&server.kubectl("delete configmap kept --dry-run=server"), "server dry run");
    server.kubectl("get configmap kept");
    server.kubectl("delete configmaps --all --dry-run=server");
    server.kubectl("get configmap kept");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    assert!(server.try_kubectl("create -f -", &node.to_string()).0);
    pod(&server, "p", "n");
    assert_has(&server.kubectl("drain n --force --dry-run=server"), "dry run");
    let found: Value = serde_json::from_str(&server.kubectl("get pod p -o json")).unwrap();
    assert_eq!((&found["metadata"]["deletionTimestamp"], &found["status"]["conditions"]), (&Value::Null, &Value::Null));
    assert_eq!(server.kubectl("get node n -o jsonpath={.spec.unschedulable}"), "");
    server.kubectl("delete configmap kept");
    assert!(!server.try_kubectl("get configmap kept", "").0);
}
