//! The official Python client, unmodified. `KEDGE_PYTHON_PACKAGES` names the folder that holds it
//! (`pip3 install --target FOLDER kubernetes`).

use std::process::Command;

use crate::harness::Server;
use crate::needs::{Need, lacks, python_packages};
use crate::pods::{Cluster, IMAGE};

/// Runs the script against a server; what it says must be that all is well.
fn everyday(server: &Server, image: Option<&str>) {
    let packages = python_packages().expect("it is not lacking");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/python/everyday.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(server.kubeconfig()).args(image).env("PYTHONPATH", packages);
    // Its caches belong to this cluster and go away with it.
    command.env("HOME", server.folder.path()).env("TMPDIR", server.folder.path());
    let output = command.output().expect("python3 is on the PATH");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("everything was as it should be"), "{text}\n{}", server.log());
}

#[test]
fn everyday_things_without_a_node() {
    if lacks(&[Need::PythonClient]) {
        return;
    }
    everyday(&Server::start(&["--disable-agent"]), None);
}

#[test]
fn everyday_things_with_pods() {
    if lacks(&[Need::PythonClient, Need::Pods]) {
        return;
    }
    everyday(&Cluster::start("python").server, Some(IMAGE));
}
