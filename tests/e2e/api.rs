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

#[test]
fn who_may_not_write_is_refused_before_the_body_is_there() {
    let server = Server::start(&["--disable-agent"]);
    let ask = |more: &str| {
        let head = format!(
            "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\n{more}\r\n"
        );
        server.raw(head.as_bytes())
    };
    let refused = ask("Impersonate-User: nobody\r\nContent-Length: 3000000\r\n");
    assert_has(&refused, "HTTP/1.1 403");
    assert_has(&refused, "cannot create resource \\\"configmaps\\\"");
    assert_has(&ask("Content-Length: 3145729\r\n"), "HTTP/1.1 413");
    assert_has(&ask("Impersonate-User: \r\nContent-Length: 3000000\r\n"), "HTTP/1.1 400");
}

#[test]
fn a_server_that_is_asked_to_end_ends_its_watches_and_itself() {
    let mut server = Server::start(&["--disable-agent"]);
    server.kubectl("create configmap seen");
    let mut watch = server.start_kubectl("get configmaps --watch --output=name");
    let lines = std::io::BufReader::new(watch.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("configmap/seen")), "the watch shows what is there");
    let mut process = server.take_process();
    let begin = std::time::Instant::now();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = process.wait().unwrap();
    assert!(status.success() && begin.elapsed() < std::time::Duration::from_secs(8), "{status}: {:?}", begin.elapsed());
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(!server.log().contains("are broken off"), "{}", server.log());
}

#[test]
fn a_definition_takes_its_objects_with_it() {
    let server = Server::start(&["--disable-agent"]);
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.test"},
        "spec": {"group": "example.test", "scope": "Namespaced", "versions": [version],
            "names": {"plural": "gadgets", "kind": "Gadget"}}});
    let gadget = |name: &str, namespace: &str, finalizers: Value| {
        json!({"apiVersion": "example.test/v1", "kind": "Gadget",
            "metadata": {"name": name, "namespace": namespace, "finalizers": finalizers}})
        .to_string()
    };
    let create = |object: &str| server.try_kubectl("create -f -", object);
    assert!(create(&definition.to_string()).0);
    for (name, namespace, finalizers) in [
        ("a", "default", json!([])),
        ("b", "kube-public", json!([])),
        ("held", "default", json!(["example.test/held"])),
    ] {
        let (ok, text) = create(&gadget(name, namespace, finalizers));
        assert!(ok, "{text}");
    }
    // Not served any more, and yet there.
    let hide = r#"patch crd gadgets.example.test --type=json -p [{"op":"replace","path":"/spec/versions/0/served","value":false}]"#;
    server.kubectl(hide);
    assert!(!server.try_kubectl("get gadgets -A", "").0);
    server.kubectl("delete crd gadgets.example.test --wait=false");
    eventually("only what is held is left", || {
        let (_, left) = server.try_kubectl("get gadgets -A -o name", "");
        if left.trim() == "gadget.example.test/held" { Ok(()) } else { Err(left) }
    });
    let terminating =
        "get crd gadgets.example.test -o jsonpath={.status.conditions[?(@.type==\"Terminating\")].reason}";
    assert_eq!(server.kubectl(terminating), "InstanceDeletionInProgress");
    let (ok, text) = create(&gadget("late", "default", json!([])));
    assert!(!ok);
    assert_has(&text, "create not allowed while custom resource definition is terminating");
    server.kubectl("patch gadget held --type=merge -p {\"metadata\":{\"finalizers\":null}}");
    server.kubectl("wait --for=delete crd/gadgets.example.test --timeout=60s");
    assert!(create(&definition.to_string()).0);
    assert_has(&server.kubectl("get gadgets -A"), "No resources found");
}

#[test]
fn what_is_stored_and_not_enforced_is_told() {
    let server = Server::start(&["--disable-agent"]);
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {}}});
    let told = "Warning: spec: NetworkPolicy is stored but not enforced by this version of Kedge";
    for verb in ["create -f -", "replace -f -", "apply --server-side --force-conflicts -f -", "apply -f -"] {
        let (ok, text) = server.try_kubectl(verb, &policy.to_string());
        assert!(ok, "{text}");
        assert_has(&text, told);
    }
    assert_has(
        &server.kubectl("patch networkpolicy deny --type=merge -p {\"metadata\":{\"labels\":{\"a\":\"b\"}}}"),
        told,
    );
    let text = server.kubectl("label namespace default pod-security.kubernetes.io/enforce=restricted");
    assert_has(&text, "metadata.labels[pod-security.kubernetes.io/enforce]: Pod Security levels are stored but not");
    assert!(!server.kubectl("label namespace kube-public a=b").contains("Warning"));
    for (verb, told) in [
        (
            "create service loadbalancer web --tcp=80",
            "spec.type: this version of Kedge does nothing about LoadBalancer: no address",
        ),
        (
            "create ingress web --rule=a.test/=web:80",
            "spec: this version of Kedge does nothing about Ingress: no traffic",
        ),
        ("create deployment web --image=none", ""),
        ("autoscale deployment web --max=3", "spec: this version of Kedge does nothing about HorizontalPodAutoscaler"),
    ] {
        let text = server.kubectl(verb);
        assert_eq!(text.contains("Warning"), !told.is_empty(), "{text}");
        assert_has(&text, told);
    }
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_has(&server.try_kubectl("create -f -", &claim.to_string()).1, "the claim stays Pending");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "none"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    let (ok, text) = server.try_kubectl("create -f -", &pod.to_string());
    assert!(ok, "{text}");
    assert_has(
        &text,
        "spec.volumes[0].persistentVolumeClaim: this version of Kedge does not mount volumes of this kind",
    );
}
