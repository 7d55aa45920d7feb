//! What the API server answers without storing it, and who the parts of the process are to it.

use serde_json::{Value, json};

use crate::harness::{Server, assert_has, eventually};

#[test]
fn components_the_old_binding_and_the_issuer_are_served() {
    let server = Server::start(&["--disable-agent"]);
    let statuses = server.kubectl("get componentstatuses");
    assert_has(&statuses, "Warning: v1 ComponentStatus is deprecated in v1.19+");
    for component in ["controller-manager", "etcd-0", "scheduler"] {
        let line = statuses.lines().find(|line| line.starts_with(component)).unwrap_or_default();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells, [component, "Healthy", "ok"], "{statuses}");
    }
    assert_has(&server.kubectl("get cs scheduler -o jsonpath={.conditions[0].status}"), "True");
    assert_has(&server.try_kubectl("get cs nobody", "").1, "componentstatus \"nobody\" not found");
    assert!(!server.try_kubectl("get cs --watch-only --request-timeout 5s", "").0);

    for node in ["n1", "n2"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        assert!(server.try_kubectl("create -f -", &node.to_string()).0);
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "example.test/none"}]}});
    eventually("the pod's account is there", || {
        let (ok, text) = server.try_kubectl("create -f -", &pod.to_string());
        if ok { Ok(()) } else { Err(text) }
    });
    let bind = |node: &str, pod: &str| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
            "target": {"kind": "Node", "name": node}});
        server.request("POST", "/api/v1/namespaces/default/bindings", &binding.to_string())
    };
    assert_eq!(bind("n1", "p").0, 201);
    assert_eq!(server.kubectl("get pod p -o jsonpath={.spec.nodeName}"), "n1");
    assert_eq!(bind("n2", "p").0, 409);
    assert_eq!(bind("n1", "nobody").0, 404);
    assert_eq!(bind("n1", "").0, 400);

    // No node runs ephemeral containers: neither path to them takes any.
    let debug = r#"{"spec":{"ephemeralContainers":[{"name":"d","image":"example.test/none"}]}}"#;
    let (ok, text) = server.try_kubectl(&format!("patch pod p -p {debug}"), "");
    assert!(!ok, "{text}");
    assert_has(&text, "pod updates may not change fields other than");
    let (ok, text) = server.try_kubectl(&format!("patch pod p --subresource ephemeralcontainers -p {debug}"), "");
    assert!(!ok, "{text}");

    let head = |path: &str| server.head(path).to_ascii_lowercase();
    let (code, configuration) = server.request("GET", "/.well-known/openid-configuration", "");
    assert_eq!((code, &configuration["issuer"]), (200, &json!("https://kubernetes.default.svc.cluster.local")));
    let keys_at = format!("https://127.0.0.1:{}/openid/v1/jwks", server.port);
    assert_eq!(configuration["jwks_uri"], Value::from(keys_at));
    assert_has(&head("/.well-known/openid-configuration"), "cache-control: public, max-age=3600");
    assert_has(&head("/openid/v1/jwks"), "content-type: application/jwk-set+json");
    let keys = server.request("GET", "/openid/v1/jwks", "").1;
    let token = server.kubectl("create token default");
    let key_of_token = {
        use base64::Engine as _;
        let part = token.split('.').next().unwrap_or_default();
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()["kid"].clone()
    };
    assert_eq!(keys["keys"][0]["kid"], key_of_token, "the keys are those that tokens are signed with");
    let as_account = "--as system:serviceaccount:default:default get --raw /openid/v1/jwks";
    assert!(server.try_kubectl(as_account, "").0);
    assert!(!server.try_kubectl("--as somebody get --raw /openid/v1/jwks", "").0);
    let all = server.kubectl("get --raw /");
    assert!(all.contains("/openid/v1/jwks") && all.contains("/.well-known/openid-configuration"), "{all}");
    assert_has(&server.kubectl("get --raw /openapi/v3"), ".well-known/openid-configuration");
    let resources = server.kubectl("api-resources --api-group= --no-headers");
    for kind in ["bindings", "componentstatuses"] {
        assert_has(&resources, kind);
    }
}

#[test]
fn no_part_of_the_process_may_do_everything() {
    let server = Server::start(&["--disable-agent"]);
    let account = |name: &str| format!("system:serviceaccount:kube-system:{name}");
    let (site, models) = ("system:kedge-site".to_owned(), account("model-controller"));
    let services = account("model-service-controller");
    let cases = [
        (&site, "create namespaces", true),
        (&site, "delete models.kedge.dev", true),
        (&site, "get secrets", false),
        (&site, "delete namespaces", false),
        (&site, "create deployments.apps", false),
        (&models, "update models.kedge.dev --subresource=status", true),
        (&models, "delete models.kedge.dev", false),
        (&models, "get secrets", true),
        (&models, "list secrets", false),
        (&services, "patch deployments.apps", true),
        (&services, "get secrets", false),
        (&"system:kube-controller-manager".to_owned(), "list secrets", true),
        (&"system:kube-controller-manager".to_owned(), "delete pods", false),
        (&"system:kube-scheduler".to_owned(), "create pods --subresource=binding", true),
        (&"system:kube-scheduler".to_owned(), "get secrets", false),
    ];
    for (user, what, expected) in cases {
        let (_, text) = server.try_kubectl(&format!("auth can-i {what} -A --as {user}"), "");
        assert_eq!(text.lines().any(|line| line == "yes"), expected, "{user}: {what}: {text}");
    }
}
