//! What ends and removes a node touches what is the node's, and nothing else of the machine.
//!
//! Needs what pods need.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Server, assert_has, eventually, exists};
use crate::needs::{Need, lacks};
use crate::pods::{Cluster, IMAGE, write_image};

#[test]
fn uninstalling_removes_the_node_and_no_file_of_the_host() {
    if lacks(&[Need::Pods]) {
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
    let key = kedge_runtimes::node_key(&cluster.server.folder.path().join("data"));
    let runc = PathBuf::from(format!("/run/containerd/runc/kedge-{key}"));
    assert!(exists(&runc), "the test looks at the wrong place");

    let text = cluster.server.kedge(&["uninstall", "--yes"]);
    assert_has(&text, "ended the server");
    for (path, content) in [(folder.join("sea.jpg"), "waves"), (file, "dear")] {
        assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), Some(content), "{}:\n{text}", path.display());
    }
    for name in ["data", "run"] {
        assert!(!exists(&cluster.server.folder.path().join(name)), "{name} is left:\n{text}");
    }
    assert!(!exists(&runc), "{} is left", runc.display());
}

#[test]
fn an_import_without_a_server_leaves_nothing_running() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    write_image(&folder.path().join("busybox.tar"));
    let kedge = |arguments: &[&str]| {
        let folders = ["--data-dir", &path("data"), "--run-dir", &path("run")];
        Command::new(env!("CARGO_BIN_EXE_kedge")).args(arguments).args(folders).output().unwrap()
    };
    let done = kedge(&["image", "import", &path("busybox.tar")]);
    assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains(IMAGE), "{done:?}");
    assert_eq!(processes_with(&path("run")), Vec::<String>::new());
    assert!(kedge(&["uninstall", "--yes"]).status.success());
    assert!(!exists(&folder.path().join("data")) && !exists(&folder.path().join("run")));
}

/// Runs `kedge` with these arguments, which must be refused; its words.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kedge")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "kedge {arguments:?} should have failed");
    text
}

#[test]
fn killall_ends_the_server_too_and_nothing_comes_back() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let mut cluster = Cluster::start("killall");
    cluster.run("keeper", "trap exit TERM; while :; do /bin/busybox sleep 1; done");
    // Times of the API are whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let text = cluster.server.kedge(&["killall"]);
    assert_has(&text, "ended the server");
    let ended = cluster.server.take_process().wait().unwrap();
    assert!(ended.success(), "it was asked to end, not killed: {ended}");
    let mark = std::fs::read_to_string(cluster.server.folder.path().join("run/containerd/containerd.pid"));
    assert!(mark.is_err(), "a containerd came back: {mark:?}");
    // Again: there is nothing more to do. And the next server finds its pods' specs and runs them.
    assert_has(&cluster.server.kedge(&["killall"]), "ended 0 processes, unmounted 0 mounts");
    cluster.server.restart();
    eventually("the pod runs again, and says when it was ended", || {
        let last = ".status.containerStatuses[0].lastState.terminated";
        let times =
            cluster.server.kubectl(&format!("get pod keeper -o jsonpath={{{last}.startedAt}},{{{last}.finishedAt}}"));
        match times.split_once(',') {
            Some((started, ended)) if !started.is_empty() && started < ended => Ok(()),
            _ => Err(times),
        }
    });
    cluster.until_phase("keeper", "Running");
}

#[test]
fn directories_that_are_not_the_nodes_are_left_alone() {
    let server = Server::start(&["--disable-agent"]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir_all(path("run/precious")).unwrap();
    let data = server.folder.path().join("data").display().to_string();
    for verb in [&["killall"][..], &["uninstall", "--yes"]] {
        let text = refused(&[verb, &["--data-dir", &path("run")]].concat());
        assert_has(&text, "is not a data directory of kedge");
        let text = refused(&[verb, &["--data-dir", &data, "--run-dir", &path("run")]].concat());
        assert_has(&text, "is not the run directory of");
    }
    assert!(exists(&folder.path().join("run/precious")));
    assert_eq!(server.request("GET", "/readyz", "").0, 200, "the server was ended though the verb was refused");
    // Nor does a server take one that holds what is not its own.
    let text = refused(&["server", "--data-dir", &path("data"), "--run-dir", &path("run")]);
    assert_has(&text, "--run-dir");
    assert!(exists(&folder.path().join("run/precious")));
}

#[test]
fn a_process_that_does_not_hold_the_lock_is_not_ended() {
    let mut server = Server::start(&["--disable-agent"]);
    let lock = server.folder.path().join("data/server.pid");
    let other = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(&lock, other.id().to_string()).unwrap();
    let data = server.folder.path().join("data").display().to_string();
    let text = refused(&["killall", "--data-dir", &data, "--run-dir", &format!("{data}/none")]);
    assert_has(&text, &format!("process {}", other.id()));
    let mut other = other;
    assert!(other.try_wait().unwrap().is_none(), "a process that has nothing to do with it was ended");
    other.kill().unwrap();
    other.wait().unwrap();
    server.kill();
}

/// The processes whose command line has `text`.
fn processes_with(text: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(text)).collect()
}

#[test]
fn what_lost_its_marks_is_found_by_the_next_server_and_by_killall() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let mut cluster = Cluster::start("marks");
    cluster.run("keeper", "trap exit TERM; while :; do /bin/busybox sleep 1; done");
    let run = cluster.server.folder.path().join("run");
    let config = run.join("containerd/config.toml").display().to_string();
    let lose_marks = || {
        for mark in ["data-dir", "containerd/containerd.pid"] {
            std::fs::remove_file(run.join(mark)).unwrap();
        }
    };
    cluster.server.kill();
    lose_marks();
    cluster.server.restart();
    cluster.until_phase("keeper", "Running");
    eventually("the new containerd is up", || {
        if exists(&run.join("containerd/containerd.pid")) { Ok(()) } else { Err(cluster.server.log()) }
    });
    assert_eq!(processes_with(&config).len(), 1, "two would wait for each other");
    cluster.server.kill();
    lose_marks();
    cluster.server.kedge(&["killall"]);
    assert_eq!(processes_with(&config), Vec::<String>::new());
}

#[test]
fn a_network_namespace_that_was_there_before_stays() {
    if lacks(&[Need::Pods]) {
        return;
    }
    for theirs in [true, false] {
        let name = format!("kedge-e2e-{}-{theirs}", std::process::id());
        let pin = std::path::PathBuf::from(format!("/run/netns/{name}"));
        let ip = |verb: &str| assert!(Command::new("ip").args(["netns", verb, &name]).status().unwrap().success());
        if theirs {
            ip("add");
        }
        let server = Server::start(&["--network-namespace", &name]);
        eventually("the node is there", || {
            match server.request("GET", "/api/v1/nodes", "").1["items"][0].is_object() {
                true => Ok(()),
                false => Err(server.log()),
            }
        });
        server.kedge(&["uninstall", "--yes"]);
        assert_eq!(exists(&pin), theirs, "{name}");
        if theirs {
            ip("delete");
        }
    }
}
