//! What cannot work is refused at the start: one line that names the thing at fault, and nothing half-made.

use std::path::Path;
use std::process::Command;

use crate::needs::{Need, lacks};

fn kedge(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kedge")).args(arguments).output().unwrap();
    assert!(!output.status.success(), "kedge {arguments:?} should have failed");
    String::from_utf8(output.stderr).unwrap()
}

/// A server over `folder` that must not start; its words.
fn server(folder: &Path, more: &[&str]) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let (data, run, kubeconfig) = (path("data"), path("run"), path("kubeconfig"));
    let mut arguments = vec!["server", "--disable-agent", "--data-dir", &data, "--run-dir", &run];
    arguments.extend(["--write-kubeconfig", &kubeconfig]);
    arguments.extend(more);
    let text = kedge(&arguments);
    assert!(!Path::new(&kubeconfig).exists(), "a server that did not start wrote a kubeconfig");
    text
}

#[track_caller]
fn names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn unknown_flags_and_malformed_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let given = config.display().to_string();
    names(&server(folder.path(), &["--no-such-flag"]), &["--no-such-flag"]);
    names(&server(folder.path(), &["--config", &given]), &["--config", &given]);
    for (text, named) in [("a: [", "YAML"), ("no-such: 1", "no-such"), ("disable-agent: maybe", "disable-agent")] {
        std::fs::write(&config, text).unwrap();
        names(&server(folder.path(), &["--config", &given]), &[&given, named]);
    }
    std::fs::write(&config, "https-listen-port: many").unwrap();
    names(&server(folder.path(), &["--config", &given]), &["--https-listen-port", "many"]);
    names(&server(folder.path(), &["--runtime", "embedded"]), &["--runtime", "containerd"]);
    names(&server(folder.path(), &["--service-cidr", "10.43.0.0"]), &["10.43.0.0"]);
}

#[test]
fn a_port_in_use_and_a_directory_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    names(&server(folder.path(), &["--https-listen-port", &port]), &[&port, "--https-listen-port"]);
    let running = crate::harness::Server::start(&["--disable-agent"]);
    let data = running.folder.path().join("data").display().to_string();
    let text = kedge(&["server", "--disable-agent", "--data-dir", &data, "--https-listen-port", "0"]);
    names(&text, &["another kedge server", "--data-dir", &data]);
    assert_eq!(running.request("GET", "/readyz", "").0, 200);
}

#[test]
fn a_damaged_store_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("data/server/state.redb");
    std::fs::create_dir_all(store.parent().unwrap()).unwrap();
    std::fs::write(&store, "this is no database").unwrap();
    names(&server(folder.path(), &[]), &["state.redb", "damaged"]);
    assert_eq!(std::fs::read(&store).unwrap(), b"this is no database");
}

#[test]
fn a_truncated_image_archive_is_refused_before_anything_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(100_000);
    header.set_mode(0o644);
    builder.append_data(&mut header, "layer.tar", vec![7; 100_000].as_slice()).unwrap();
    std::fs::write(&archive, &builder.into_inner().unwrap()[..50_000]).unwrap();
    if lacks(&[Need::Pods]) {
        return;
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (data, run) = (path("data"), path("run"));
    let folders = ["--data-dir", &data, "--run-dir", &run];
    let given = archive.display().to_string();
    names(&kedge(&[&["image", "import", &given][..], &folders].concat()), &[&given, "truncated", "layer.tar"]);
    let ended = Command::new(env!("CARGO_BIN_EXE_kedge")).arg("killall").args(folders).output().unwrap();
    assert!(ended.status.success());
}

/// Full and read-only disks need a file system of their own.
#[test]
fn full_and_read_only_disks() {
    if lacks(&[Need::Root]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("data");
    std::fs::create_dir(&disk).unwrap();
    let mount = |options: &str| {
        let disk = disk.display().to_string();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", &disk]).output();
        done.is_ok_and(|output| output.status.success())
    };
    let unmount = || assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert!(mount("size=64k"));
    let full = server(folder.path(), &[]);
    unmount();
    names(&full, &["state.redb", "no space left"]);
    assert!(mount("ro,size=1m"));
    let read_only = server(folder.path(), &[]);
    unmount();
    names(&read_only, &["--data-dir", "Read-only"]);
}

/// What a verb found and could not tell is an error of the verb, in one line.
#[test]
fn a_standard_output_that_takes_nothing() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/images/demo-decoder");
    for arguments in [&["infer", "devices"][..], &["model", "digest", demo]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut kedge = Command::new(env!("CARGO_BIN_EXE_kedge"));
        let output = kedge.args(arguments).stdout(full).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        names(&text, &["kedge: writing to standard output", "No space left"]);
    }
}
