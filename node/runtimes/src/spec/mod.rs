//! The OCI runtime spec of a container, built from values alone.
//!
//! What a pod gets by default (mounts, capabilities, masked paths, devices) is what the CRI gives it: containerd
//! `internal/cri/server/container_create_linux.go` and `oci/spec.go`, opencontainers `runtime-spec/config.md`.

pub mod users;

use serde_json::{Map, Value, json};

use crate::container::{ContainerSpec, MountPropagation, PidMode, SandboxSpec, Seccomp};
use crate::runtime::RuntimeError;
use crate::sandbox::SandboxPaths;
use users::ResolvedUser;

/// All capabilities, at their numbers in the kernel.
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container holds unless it asks otherwise.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A device node of the host, looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Its numbers.
    pub major: u64,
    /// Its numbers.
    pub minor: u64,
    /// Its mode.
    pub mode: u32,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// What this machine adds to a container's spec.
#[derive(Debug, Clone)]
pub struct Host<'a> {
    /// The container's user, resolved.
    pub user: &'a ResolvedUser,
    /// The pod's shared namespaces.
    pub paths: &'a SandboxPaths,
    /// The container's cgroup.
    pub cgroup: &'a str,
    /// Whether the machine has the unified hierarchy.
    pub cgroup_v2: bool,
    /// The capabilities that can be handed on at all.
    pub capabilities: &'a [String],
    /// The lowest `oom_score_adj` that may be set here; the kernel refuses less without CAP_SYS_RESOURCE.
    pub oom_score_adj_min: i32,
    /// The container's devices; with `privileged`, all of the host's.
    pub devices: &'a [DeviceNode],
    /// The processor, by its Rust name.
    pub architecture: &'a str,
}

/// Builds the spec.
pub fn runtime_spec(container: &ContainerSpec, sandbox: &SandboxSpec, host: &Host<'_>) -> Result<Value, RuntimeError> {
    let security = &container.security;
    let capabilities = capabilities(container, host.capabilities)?;
    let mut linux = json!({
        "cgroupsPath": host.cgroup,
        "namespaces": namespaces(container, sandbox, host),
        "resources": resources(container, host),
        "devices": host.devices.iter().map(device).collect::<Vec<_>>(),
        "rootfsPropagation": rootfs_propagation(container),
    });
    if !sandbox.sysctls.is_empty() {
        linux["sysctl"] = json!(sandbox.sysctls);
    }
    if !security.privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
    }
    // A privileged container is never confined, whatever it asks for.
    match (&security.seccomp, security.privileged) {
        (Seccomp::Unconfined, _) | (_, true) => {}
        (Seccomp::RuntimeDefault, _) => {
            linux["seccomp"] = crate::seccomp::default_profile(&capabilities, host.architecture);
        }
        (Seccomp::Profile(profile), _) => linux["seccomp"] = profile.clone(),
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(container, host, &capabilities),
        "root": {"path": "rootfs", "readonly": security.read_only_root},
        "mounts": mounts(container, sandbox, host),
        "linux": linux,
    }))
}

/// The process of an exec: the container's own, with other arguments.
pub fn exec_process(container_process: &Value, args: &[String], tty: bool) -> Value {
    let mut process = container_process.clone();
    process["args"] = json!(args);
    process["terminal"] = json!(tty);
    process
}

fn process(container: &ContainerSpec, host: &Host<'_>, capabilities: &[String]) -> Value {
    let env: Vec<String> = container.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "terminal": container.tty,
        "user": {"uid": host.user.uid, "gid": host.user.gid, "additionalGids": host.user.groups, "umask": 0o22},
        "args": container.args,
        "env": env,
        "cwd": container.working_dir,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": container.security.no_new_privileges,
        "oomScoreAdj": container.resources.oom_score_adj.max(host.oom_score_adj_min),
    })
}

/// The capabilities a container holds: privileged all, else the default with what is dropped and added.
fn capabilities(container: &ContainerSpec, available: &[String]) -> Result<Vec<String>, RuntimeError> {
    if container.security.privileged {
        return Ok(available.to_vec());
    }
    let asked = &container.security.capabilities;
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let full = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let mut held: Vec<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    if asked.add.iter().any(is_all) {
        held = available.to_vec();
    }
    if asked.drop.iter().any(is_all) {
        held.clear();
    }
    let dropped: Vec<String> = asked.drop.iter().map(full).collect();
    held.retain(|name| !dropped.contains(name) && available.contains(name));
    for name in asked.add.iter().filter(|name| !is_all(name)).map(full) {
        if !CAPABILITIES.contains(&name.as_str()) {
            return Err(RuntimeError::Config(format!("unknown capability {name:?} to add")));
        }
        if !available.contains(&name) {
            return Err(RuntimeError::Config(format!("capability {name} to add: this node does not hold it itself")));
        }
        if !held.contains(&name) {
            held.push(name);
        }
    }
    Ok(held)
}

fn namespaces(container: &ContainerSpec, sandbox: &SandboxSpec, host: &Host<'_>) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "uts", "path": host.paths.uts})];
    if let Some(path) = &host.paths.ipc {
        list.push(json!({"type": "ipc", "path": path}));
    }
    if let Some(path) = &sandbox.network_namespace {
        list.push(json!({"type": "network", "path": path}));
    }
    if sandbox.pid_mode == PidMode::Container {
        list.push(json!({"type": "pid"}));
    }
    if host.cgroup_v2 && !container.security.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    Value::Array(list)
}

fn mounts(container: &ContainerSpec, sandbox: &SandboxSpec, host: &Host<'_>) -> Vec<Value> {
    let security = &container.security;
    let system = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let access = if security.privileged { "rw" } else { "ro" };
    let mut list = vec![
        system("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        system("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        system("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        json!({"destination": "/dev/shm", "type": "bind", "source": host.paths.shm, "options": ["rbind", "rprivate", "rw"]}),
    ];
    // The queue file system shows the namespace of whoever mounts it, so the node's can only be bound.
    list.push(if sandbox.host_ipc {
        json!({"destination": "/dev/mqueue", "type": "bind", "source": "/dev/mqueue", "options": ["rbind", "rprivate", "rw"]})
    } else {
        system("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])
    });
    let mut own: Vec<_> = container.mounts.iter().collect();
    // Outer before inner, whatever the order in the pod; what the pod mounts hides a default at the same place.
    own.sort_by_key(|mount| mount.destination.components().count());
    list.retain(|default| {
        !own.iter()
            .any(|mount| Some(mount.destination.as_path()) == default["destination"].as_str().map(std::path::Path::new))
    });
    for mount in own {
        let propagation = match mount.propagation {
            MountPropagation::None => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        };
        let access = match (mount.read_only, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        list.push(json!({
            "destination": mount.destination,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", propagation, access],
        }));
    }
    list
}

fn rootfs_propagation(container: &ContainerSpec) -> &'static str {
    let any = |propagation| container.mounts.iter().any(|mount| mount.propagation == propagation);
    if any(MountPropagation::Bidirectional) {
        "rshared"
    } else if any(MountPropagation::HostToContainer) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": node.path,
        "type": node.kind.to_string(),
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode & 0o7777,
        "uid": 0,
        "gid": 0,
    })
}

fn resources(container: &ContainerSpec, host: &Host<'_>) -> Value {
    let wanted = &container.resources;
    let mut devices = vec![json!({"allow": container.security.privileged, "access": "rwm"})];
    if !container.security.privileged {
        devices.extend(host.devices.iter().map(|node| {
            json!({
                "allow": true,
                "type": node.kind.to_string(),
                "major": node.major,
                "minor": node.minor,
                "access": node.permissions,
            })
        }));
    }
    let mut cpu = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        cpu.extend(value.map(|value| (name.to_owned(), value)));
    };
    set("shares", wanted.cpu_shares.map(Value::from));
    set("quota", wanted.cpu_quota_us.map(Value::from));
    set("period", wanted.cpu_period_us.map(Value::from));
    set("cpus", wanted.cpuset_cpus.clone().map(Value::from));
    let mut all = json!({"devices": devices, "cpu": cpu});
    if let Some(bytes) = wanted.memory_limit_bytes {
        all["memory"] = json!({"limit": bytes});
    }
    if let Some(pids) = wanted.pids_limit {
        all["pids"] = json!({"limit": pids});
    }
    let pages = wanted.hugepage_limits.iter().map(|(size, limit)| json!({"pageSize": size, "limit": limit}));
    let pages: Vec<Value> = pages.collect();
    if !pages.is_empty() {
        all["hugepageLimits"] = Value::Array(pages);
    }
    all
}

#[cfg(test)]
mod tests;
