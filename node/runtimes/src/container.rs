//! What the agent wants run, in words that no backend owns. Everything is resolved: no defaults are left to guess.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::{ContainerId, PodId};

/// One container to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its id; [`ContainerId::derive`] of the next three.
    pub id: ContainerId,
    /// Its pod, which has a sandbox.
    pub pod: PodId,
    /// Its name in the pod.
    pub name: String,
    /// Which run, from 0.
    pub attempt: u32,
    /// The reference as the pod has it.
    pub image: String,
    /// The local image to run ([`crate::Image::id`]).
    pub image_id: String,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment, in order; later entries win.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub working_dir: PathBuf,
    /// With a terminal.
    pub tty: bool,
    /// Clients may attach to its input; otherwise it has none.
    pub stdin: bool,
    /// The end of the first attached client's input is the end of its own. Without effect with a terminal.
    pub stdin_once: bool,
    /// What it sees of the host, in the order to mount.
    pub mounts: Vec<Mount>,
    /// Device nodes it sees.
    pub devices: Vec<Device>,
    /// Who it is and what it may do.
    pub security: Security,
    /// What it may use.
    pub resources: Resources,
    /// The file its output goes to, in the CRI's line format.
    pub log_path: PathBuf,
    /// Kept with the container for the agent's own use; under 3 KiB together.
    pub annotations: BTreeMap<String, String>,
}

/// What a pod's containers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Whose.
    pub pod: PodId,
    /// The host name its containers see.
    pub hostname: String,
    /// The network namespace to join, by path; none joins the one that the backend runs in.
    pub network_namespace: Option<PathBuf>,
    /// Shares the node's System V IPC and POSIX queues instead of the pod's own.
    pub host_ipc: bool,
    /// How processes see each other.
    pub pid_mode: PidMode,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits on the pod as a whole.
    pub resources: PodResources,
}

/// How the processes of a pod see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Each container sees itself alone.
    Container,
    /// Containers of the pod see each other (`shareProcessNamespace`).
    Pod,
    /// Containers see the node's processes (`hostPID`).
    Host,
}

/// Limits on a pod's cgroup; absent is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    /// Relative weight, in cgroup v1's scale (1024 is one core).
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each `cpu_period_us`.
    pub cpu_quota_us: Option<i64>,
    /// The period.
    pub cpu_period_us: Option<u64>,
    /// Bytes.
    pub memory_limit_bytes: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
}

/// Limits on one container; absent is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, in cgroup v1's scale (1024 is one core).
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each `cpu_period_us`.
    pub cpu_quota_us: Option<i64>,
    /// The period.
    pub cpu_period_us: Option<u64>,
    /// Processors it may run on, as the kernel writes lists.
    pub cpuset_cpus: Option<String>,
    /// Bytes.
    pub memory_limit_bytes: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// How soon the kernel kills it for memory, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Huge pages by size ("2MB"), in bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
}

/// Something of the host made visible in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file or folder on the host; it exists.
    pub source: PathBuf,
    /// Where the container sees it.
    pub destination: PathBuf,
    /// Not writable.
    pub read_only: bool,
    /// Nothing below it is writable either (needs `read_only`).
    pub recursive_read_only: bool,
    /// Whether mounts made later travel.
    pub propagation: MountPropagation,
}

/// Whether mounts made later on one side appear on the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountPropagation {
    /// Neither way.
    #[default]
    None,
    /// From the host into the container.
    HostToContainer,
    /// Both ways; for privileged containers.
    Bidirectional,
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Who a container is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Its user and primary group.
    pub user: User,
    /// Groups beside the primary one and, unless `strict_groups`, those that the image gives the user.
    pub supplemental_groups: Vec<u32>,
    /// Only `supplemental_groups` count (`supplementalGroupsPolicy: Strict`).
    pub strict_groups: bool,
    /// All capabilities, all devices, no confinement.
    pub privileged: bool,
    /// Changes to the default set.
    pub capabilities: Capabilities,
    /// The root file system is not writable.
    pub read_only_root: bool,
    /// No process may gain privileges (`allowPrivilegeEscalation: false`).
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// /proc as it is (`procMount: Unmasked`): nothing masked, nothing read-only.
    pub unmasked_proc: bool,
}

/// The user a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// As the image says: `user[:group]`, names or numbers; empty is root. A number given by the pod wins.
    Image {
        /// The image's text.
        text: String,
        /// The pod's `runAsGroup`.
        gid: Option<u32>,
    },
    /// As the pod says. Without a group it is the one that the image's passwd file gives the user, else 0.
    Ids {
        /// The pod's `runAsUser`.
        uid: u32,
        /// The pod's `runAsGroup`.
        gid: Option<u32>,
    },
}

/// Changes to the default capabilities; names without `CAP_`, `ALL` allowed. Adding wins over dropping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// All.
    Unconfined,
    /// Those of [`crate::seccomp::default_profile`].
    RuntimeDefault,
    /// Those of a profile file (the OCI form, as the kubelet reads it), already parsed.
    Profile(serde_json::Value),
}

/// One more process in a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// With a terminal; stderr then comes with stdout.
    pub tty: bool,
    /// Gives it input.
    pub stdin: bool,
}
