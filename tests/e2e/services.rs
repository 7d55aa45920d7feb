//! What Services leave behind: over kubectl, against a server without a node.

use serde_json::json;

use crate::harness::{Server, eventually};

#[test]
fn the_endpoints_of_a_service_go_with_it_and_nobody_inherits_them() {
    let server = Server::start(&["--disable-agent"]);
    let create = |object: serde_json::Value| {
        let (ok, text) = server.try_kubectl("create -f -", &object.to_string());
        assert!(ok, "{text}");
    };
    let service = |selector: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": selector, "ports": [{"port": 80}]}})
    };
    create(service(json!({"app": "web"})));
    eventually("there are Endpoints", || {
        let (ok, text) = server.try_kubectl("get endpoints web", "");
        if ok { Ok(()) } else { Err(text) }
    });
    server.kubectl("delete service web");
    eventually("they are gone", || {
        let (_, text) = server.try_kubectl("get endpoints web", "");
        if text.contains("NotFound") { Ok(()) } else { Err(text + &server.log()) }
    });
    create(service(json!(null)));
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (_, slices) = server.try_kubectl("get endpointslices -l kubernetes.io/service-name=web -o name", "");
    assert!(!slices.contains("endpointslice"), "{slices}");
}
