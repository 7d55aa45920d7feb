//! What ends and removes a node touches what is the node's, and nothing else of the machine.
//!
//! Needs what pods need.

use serde_json::json;

use crate::harness::{assert_has, exists};
use crate::pods::{Cluster, IMAGE, missing};

#[test]
fn uninstalling_removes_the_node_and_no_file_of_the_host() {
    if let Some(what) = missing() {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "{what}");
        println!("skipped: this machine has no {what}");
        return;
    }
    let cluster = Cluster::start("uninstall");
    let host = tempfile::tempdir().unwrap();
    let (folder, file) = (host.path().join("photos/2026"), host.path().join("letter.txt"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("sea.jpg"), "waves").unwrap();
    std::fs::write(&file, "dear").unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "reader" },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{ "name": "host", "hostPath": { "path": host.path() } }],
            "containers": [{
                "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sleep", "600"],
                "volumeMounts": [
                    { "name": "host", "mountPath": "/photos", "subPath": "photos" },
                    { "name": "host", "mountPath": "/letter", "subPath": "letter.txt" },
                ],
            }],
        },
    });
    let (ok, text) = cluster.server.try_kubectl("create -f -", &pod.to_string());
    assert!(ok, "{text}");
    cluster.until_phase("reader", "Running");
    assert_has(&cluster.server.kubectl("exec reader -- /bin/busybox cat /photos/2026/sea.jpg /letter"), "wavesdear");

    let text = cluster.server.kedge(&["uninstall", "--yes"]);
    assert_has(&text, "ended the server");
    for (path, content) in [(folder.join("sea.jpg"), "waves"), (file, "dear")] {
        assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), Some(content), "{}:\n{text}", path.display());
    }
    for name in ["data", "run"] {
        assert!(!exists(&cluster.server.folder.path().join(name)), "{name} is left:\n{text}");
    }
}
