//! Tables over the parts of a spec.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::container::{Capabilities, Mount, PodResources, Resources, Security, User};
use crate::runtime::{ContainerId, PodId, PodUid};

fn container() -> ContainerSpec {
    let pod = PodId { namespace: "default".into(), name: "web".into(), uid: PodUid::new("u1").unwrap() };
    ContainerSpec {
        id: ContainerId::derive(&pod.uid, "main", 0),
        pod,
        name: "main".into(),
        attempt: 0,
        image: "busybox".into(),
        image_id: "sha256:0".into(),
        args: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec![("A".into(), "1".into())],
        working_dir: "/".into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        mounts: vec![],
        devices: vec![],
        security: Security {
            user: User::Ids { uid: 0, gid: None },
            supplemental_groups: vec![],
            strict_groups: false,
            privileged: false,
            capabilities: Capabilities::default(),
            read_only_root: false,
            no_new_privileges: false,
            seccomp: Seccomp::Unconfined,
            unmasked_proc: false,
        },
        resources: Resources::default(),
        log_path: "/log".into(),
        annotations: BTreeMap::new(),
    }
}

fn sandbox() -> SandboxSpec {
    SandboxSpec {
        pod: container().pod,
        hostname: "web".into(),
        network_namespace: Some("/run/netns/x".into()),
        host_ipc: false,
        pid_mode: PidMode::Container,
        sysctls: BTreeMap::new(),
        resources: PodResources::default(),
    }
}

fn available() -> Vec<String> {
    CAPABILITIES.iter().filter(|name| **name != "CAP_SYS_RESOURCE").map(|name| (*name).to_owned()).collect()
}

fn build(change: impl FnOnce(&mut ContainerSpec, &mut SandboxSpec)) -> Result<Value, RuntimeError> {
    let (mut container, mut sandbox) = (container(), sandbox());
    change(&mut container, &mut sandbox);
    let available = available();
    let user = ResolvedUser { uid: 7, gid: 8, groups: vec![8, 9] };
    let paths = SandboxPaths { ipc: Some("/p/ipc".into()), uts: "/p/uts".into(), shm: "/p/shm".into() };
    let device =
        DeviceNode { path: "/dev/x".into(), kind: 'c', major: 10, minor: 200, mode: 0o20666, permissions: "rw".into() };
    let host = Host {
        user: &user,
        paths: &paths,
        cgroup: "/kedge/ab/podu1/c",
        cgroup_v2: false,
        capabilities: &available,
        oom_score_adj_min: 0,
        devices: &[device],
        architecture: "x86_64",
    };
    runtime_spec(&container, &sandbox, &host)
}

fn check(change: impl FnOnce(&mut ContainerSpec, &mut SandboxSpec), pointer: &str, expected: Value) {
    let spec = build(change).unwrap();
    assert_eq!(spec.pointer(pointer).cloned().unwrap_or(Value::Null), expected, "{pointer}");
}

#[test]
fn the_process_is_as_asked() {
    check(|_, _| {}, "/process/args", json!(["sh", "-c", "true"]));
    check(|_, _| {}, "/process/env", json!(["A=1"]));
    check(|_, _| {}, "/process/user", json!({"uid": 7, "gid": 8, "additionalGids": [8, 9], "umask": 18}));
    check(|c, _| c.tty = true, "/process/terminal", json!(true));
    check(|c, _| c.security.no_new_privileges = true, "/process/noNewPrivileges", json!(true));
    check(|c, _| c.security.read_only_root = true, "/root/readonly", json!(true));
    check(|c, _| c.resources.oom_score_adj = 500, "/process/oomScoreAdj", json!(500));
    // The host of this table may not go below 0.
    check(|c, _| c.resources.oom_score_adj = -997, "/process/oomScoreAdj", json!(0));
}

#[test]
fn namespaces_follow_the_pod() {
    let spec = build(|_, _| {}).unwrap();
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(kinds, ["mount", "uts", "ipc", "network", "pid"]);
    let spec = build(|_, s| {
        s.pid_mode = PidMode::Host;
        s.network_namespace = None;
    });
    let spec = spec.unwrap();
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(kinds, ["mount", "uts", "ipc"]);
    check(
        |_, s| drop(s.sysctls.insert("net.ipv4.ip_forward".into(), "1".into())),
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1"}),
    );
}

fn held(add: &[&str], drop: &[&str], privileged: bool) -> Result<Vec<String>, RuntimeError> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let spec = build(|c, _| {
        c.security.capabilities = Capabilities { add: owned(add), drop: owned(drop) };
        c.security.privileged = privileged;
    })?;
    Ok(serde_json::from_value(spec["process"]["capabilities"]["bounding"].clone()).unwrap())
}

#[test]
fn capabilities_are_the_default_with_changes() {
    assert_eq!(held(&[], &[], false).unwrap().len(), 14);
    assert_eq!(held(&[], &["ALL"], false).unwrap(), [] as [&str; 0]);
    assert_eq!(held(&["NET_ADMIN"], &["all"], false).unwrap(), ["CAP_NET_ADMIN"]);
    assert_eq!(held(&["CAP_net_admin"], &["ALL"], false).unwrap(), ["CAP_NET_ADMIN"]);
    assert!(!held(&[], &["NET_RAW"], false).unwrap().contains(&"CAP_NET_RAW".to_owned()));
    assert_eq!(held(&["ALL"], &[], false).unwrap().len(), 40);
    assert_eq!(held(&["ALL"], &["SYS_ADMIN"], false).unwrap().len(), 39);
    assert_eq!(held(&[], &["ALL"], true).unwrap().len(), 40);
    assert!(held(&["NO_SUCH"], &[], false).unwrap_err().to_string().contains("CAP_NO_SUCH"));
    assert!(held(&["SYS_RESOURCE"], &[], false).unwrap_err().to_string().contains("this node does not hold it"));
}

#[test]
fn confinement_ends_where_the_pod_says() {
    let masked = json!(MASKED_PATHS);
    check(|_, _| {}, "/linux/maskedPaths", masked);
    check(|c, _| c.security.unmasked_proc = true, "/linux/maskedPaths", Value::Null);
    check(|c, _| c.security.privileged = true, "/linux/readonlyPaths", Value::Null);
    check(|_, _| {}, "/linux/seccomp", Value::Null);
    let profile = json!({"defaultAction": "SCMP_ACT_LOG"});
    check(|c, _| c.security.seccomp = Seccomp::Profile(profile.clone()), "/linux/seccomp", profile.clone());
    check(|c, _| c.security.seccomp = Seccomp::RuntimeDefault, "/linux/seccomp/defaultAction", json!("SCMP_ACT_ERRNO"));
    let both = |c: &mut ContainerSpec, _: &mut SandboxSpec| {
        c.security.seccomp = Seccomp::RuntimeDefault;
        c.security.privileged = true;
    };
    check(both, "/linux/seccomp", Value::Null);
}

#[test]
fn mounts_nest_and_hide_defaults() {
    let mount = |destination: &str, read_only| Mount {
        source: PathBuf::from("/src"),
        destination: destination.into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::None,
    };
    let spec =
        build(|c, _| c.mounts = vec![mount("/a/b", true), mount("/dev/shm", false), mount("/a", false)]).unwrap();
    let all: Vec<(&str, Vec<String>)> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["destination"].as_str().unwrap(), serde_json::from_value(m["options"].clone()).unwrap()))
        .collect();
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/a", "/a/b", "/dev/shm"]);
    assert_eq!(all[7].1, ["rbind", "rprivate", "ro"]);
    let both_ways = |c: &mut ContainerSpec, _: &mut SandboxSpec| {
        c.mounts = vec![Mount { propagation: MountPropagation::Bidirectional, ..mount("/m", false) }];
    };
    check(both_ways, "/linux/rootfsPropagation", json!("rshared"));
    check(|c, _| c.security.privileged = true, "/mounts/3/options/3", json!("rw"));
}

#[test]
fn resources_are_set_only_where_asked() {
    check(|_, _| {}, "/linux/resources/memory", Value::Null);
    check(|_, _| {}, "/linux/resources/cpu", json!({}));
    check(|c, _| c.resources.memory_limit_bytes = Some(5), "/linux/resources/memory/limit", json!(5));
    let cpu = |c: &mut ContainerSpec, _: &mut SandboxSpec| {
        c.resources.cpu_shares = Some(2);
        c.resources.cpu_quota_us = Some(3);
        c.resources.cpu_period_us = Some(4);
    };
    check(cpu, "/linux/resources/cpu", json!({"shares": 2, "quota": 3, "period": 4}));
    check(|c, _| c.resources.pids_limit = Some(9), "/linux/resources/pids/limit", json!(9));
    check(|_, _| {}, "/linux/resources/devices/1/access", json!("rw"));
    check(|c, _| c.security.privileged = true, "/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]));
    check(
        |_, _| {},
        "/linux/devices/0",
        json!({"path": "/dev/x", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666, "uid": 0, "gid": 0}),
    );
}
