//! Control groups of pods, for both kernel interfaces.
//!
//! Everything of one node lies below `/kedge/<first 8 digits of the data directory's hash>`, so two nodes on one
//! machine never touch each other's. Which file gets which value is pure and tested by tables for v1 and v2; the
//! shell around it is [`Cgroups`]. The containers' own groups, below their pod's, are made by the OCI runtime.
#![allow(clippy::disallowed_methods, reason = "a shell: /sys/fs/cgroup is the kernel's interface, not a disk")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::PodResources;
use crate::layout::node_key;
use crate::runtime::{ContainerId, ContainerStats, PodUid, RuntimeError};

/// Where every Linux mounts them.
const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers that pods are limited by; v2 must be told to hand them down.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Which interface the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree for each controller.
    V1,
    /// One tree.
    V2,
}

/// One value for one file of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The tree; only v1 has several.
    pub controller: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// What to write.
    pub value: String,
}

/// What limits a pod's group.
pub fn pod_writes(version: Version, resources: &PodResources) -> Vec<Write> {
    let period = resources.cpu_period_us.unwrap_or(100_000);
    let mut writes = Vec::new();
    let mut push = |controller, file, value: String| writes.push(Write { controller, file, value });
    match version {
        Version::V1 => {
            if let Some(shares) = resources.cpu_shares {
                push("cpu", "cpu.shares", shares.to_string());
            }
            if let Some(quota) = resources.cpu_quota_us {
                push("cpu", "cpu.cfs_period_us", period.to_string());
                push("cpu", "cpu.cfs_quota_us", quota.to_string());
            }
            if let Some(bytes) = resources.memory_limit_bytes {
                push("memory", "memory.limit_in_bytes", bytes.to_string());
            }
            if let Some(pids) = resources.pids_limit {
                push("pids", "pids.max", pids.to_string());
            }
        }
        Version::V2 => {
            if let Some(shares) = resources.cpu_shares {
                push("cpu", "cpu.weight", weight_of_shares(shares).to_string());
            }
            if let Some(quota) = resources.cpu_quota_us {
                let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
                push("cpu", "cpu.max", format!("{quota} {period}"));
            }
            if let Some(bytes) = resources.memory_limit_bytes {
                push("memory", "memory.max", if bytes < 0 { "max".to_owned() } else { bytes.to_string() });
            }
            if let Some(pids) = resources.pids_limit {
                push("pids", "pids.max", pids.to_string());
            }
        }
    }
    writes
}

/// v1's 2…262144 onto v2's 1…10000, as KEP-2254 and runc do.
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// The value of `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Whether the kernel killed something for memory, from `memory.oom_control` (v1) or `memory.events` (v2).
pub fn saw_oom_kill(text: &str) -> bool {
    field(text, "oom_kill").is_some_and(|kills| kills > 0)
}

/// A container's use, from the files of its group, which `read` gives by controller and name.
pub fn stats(version: Version, read: impl Fn(&str, &str) -> Option<String>) -> Option<ContainerStats> {
    let number = |controller, file| -> Option<u64> { read(controller, file)?.trim().parse().ok() };
    let memory = read("memory", "memory.stat")?;
    let (cpu_usage_ns, usage, inactive, rss) = match version {
        Version::V1 => (
            number("cpuacct", "cpuacct.usage")?,
            number("memory", "memory.usage_in_bytes")?,
            field(&memory, "total_inactive_file")?,
            field(&memory, "total_rss")?,
        ),
        Version::V2 => (
            field(&read("cpu", "cpu.stat")?, "usage_usec")? * 1000,
            number("memory", "memory.current")?,
            field(&memory, "inactive_file")?,
            field(&memory, "anon")?,
        ),
    };
    Some(ContainerStats {
        cpu_usage_ns,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(inactive),
        memory_rss_bytes: rss,
        pids: number("pids", "pids.current")?,
    })
}

/// The group above those of all nodes on this machine.
const SHARED: &str = "/kedge";

/// This node's groups on this machine.
#[derive(Debug, Clone)]
pub struct Cgroups {
    version: Version,
    mount: PathBuf,
    parent: String,
}

impl Cgroups {
    /// The groups of the node whose data lies at `data_dir`.
    pub fn of(data_dir: &Path) -> Self {
        let mount = PathBuf::from(MOUNT);
        let version = if mount.join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 };
        Self { version, mount, parent: format!("{SHARED}/{}", node_key(data_dir)) }
    }

    /// Which interface this machine has.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The group above all pods, as the OCI runtime names groups.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// A pod's group.
    pub fn pod(&self, pod: &PodUid) -> String {
        format!("{}/pod{pod}", self.parent)
    }

    /// A container's group.
    pub fn container(&self, pod: &PodUid, id: &ContainerId) -> String {
        format!("{}/{id}", self.pod(pod))
    }

    /// Makes a pod's group and sets its limits.
    pub fn create_pod(&self, pod: &PodUid, resources: &PodResources) -> Result<(), RuntimeError> {
        let group = self.pod(pod);
        match self.version {
            Version::V1 => {
                for controller in CONTROLLERS {
                    make(&self.folder(controller, &group))?;
                }
            }
            Version::V2 => {
                let enable = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
                let mut above = PathBuf::from("/");
                for part in Path::new(&group).components().skip(1) {
                    let folder = self.folder("", &above.to_string_lossy());
                    make(&folder)?;
                    write(&folder.join("cgroup.subtree_control"), &enable)?;
                    above.push(part);
                }
                make(&self.folder("", &group))?;
            }
        }
        for Write { controller, file, value } in pod_writes(self.version, resources) {
            write(&self.folder(controller, &group).join(file), &value)?;
        }
        Ok(())
    }

    /// Removes a group with everything below it. Processes in it must have ended.
    pub fn remove(&self, group: &str) -> Result<(), RuntimeError> {
        for folder in self.trees()?.iter().map(|tree| below(tree, group)) {
            remove_tree(&folder).map_err(|e| RuntimeError::host(format!("remove cgroup {}", folder.display()), e))?;
        }
        Ok(())
    }

    /// Removes the group that all nodes of this machine share, unless another has something in it.
    pub fn remove_shared(&self) {
        for tree in self.trees().unwrap_or_default() {
            let _ = fs::remove_dir(below(&tree, SHARED)); // The kernel refuses while it is used.
        }
    }

    /// Every process in a group and below it.
    pub fn processes(&self, group: &str) -> Result<Vec<i32>, RuntimeError> {
        let mut pids = Vec::new();
        for tree in self.trees()? {
            collect_processes(&below(&tree, group), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// What a running container uses; `None` when its group is gone.
    pub fn stats(&self, pod: &PodUid, id: &ContainerId) -> Option<ContainerStats> {
        let group = self.container(pod, id);
        stats(self.version, |controller, file| fs::read_to_string(self.folder(controller, &group).join(file)).ok())
    }

    /// Whether the kernel killed something in a container for memory. Read before its group goes.
    pub fn saw_oom_kill(&self, pod: &PodUid, id: &ContainerId) -> bool {
        let file = if self.version == Version::V1 { "memory.oom_control" } else { "memory.events" };
        let path = self.folder("memory", &self.container(pod, id)).join(file);
        fs::read_to_string(path).is_ok_and(|text| saw_oom_kill(&text))
    }

    fn folder(&self, controller: &str, group: &str) -> PathBuf {
        match self.version {
            Version::V1 => below(&self.mount.join(controller), group),
            Version::V2 => below(&self.mount, group),
        }
    }

    /// The root of every tree: one on v2, on v1 each controller's and the named ones.
    fn trees(&self) -> Result<Vec<PathBuf>, RuntimeError> {
        if self.version == Version::V2 {
            return Ok(vec![self.mount.clone()]);
        }
        let fail = |e| RuntimeError::host(format!("list {}", self.mount.display()), e);
        let mut trees = Vec::new();
        for entry in fs::read_dir(&self.mount).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_dir() {
                trees.push(path);
            }
        }
        Ok(trees)
    }
}

fn below(tree: &Path, group: &str) -> PathBuf {
    tree.join(group.trim_start_matches('/'))
}

fn make(folder: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(folder).map_err(|e| RuntimeError::host(format!("create cgroup {}", folder.display()), e))
}

fn write(path: &Path, value: &str) -> Result<(), RuntimeError> {
    fs::write(path, value).map_err(|e| RuntimeError::host(format!("write {value:?} to {}", path.display()), e))
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    match fs::read_dir(folder) {
        Err(e) => return gone(e),
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    remove_tree(&path)?;
                }
            }
        }
    }
    fs::remove_dir(folder).or_else(gone)
}

fn collect_processes(folder: &Path, pids: &mut Vec<i32>) {
    // A group that is gone has no processes.
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect_processes(&entry.path(), pids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: Version, resources: PodResources, expected: &[(&str, &str, &str)]) {
        let writes = pod_writes(version, &resources);
        let writes: Vec<_> = writes.iter().map(|w| (w.controller, w.file, w.value.as_str())).collect();
        assert_eq!(writes, expected);
    }

    #[test]
    fn limits_become_the_kernels_files() {
        let limits = PodResources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            cpu_period_us: None,
            memory_limit_bytes: Some(64 << 20),
            pids_limit: Some(100),
        };
        check(
            Version::V1,
            limits,
            &[
                ("cpu", "cpu.shares", "512"),
                ("cpu", "cpu.cfs_period_us", "100000"),
                ("cpu", "cpu.cfs_quota_us", "50000"),
                ("memory", "memory.limit_in_bytes", "67108864"),
                ("pids", "pids.max", "100"),
            ],
        );
        check(
            Version::V2,
            limits,
            &[
                ("cpu", "cpu.weight", "20"),
                ("cpu", "cpu.max", "50000 100000"),
                ("memory", "memory.max", "67108864"),
                ("pids", "pids.max", "100"),
            ],
        );
        let unlimited = PodResources { cpu_quota_us: Some(-1), memory_limit_bytes: Some(-1), ..Default::default() };
        check(Version::V2, unlimited, &[("cpu", "cpu.max", "max 100000"), ("memory", "memory.max", "max")]);
        check(Version::V2, PodResources::default(), &[]);
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (102, 4), (1024, 39), (2048, 79), (262_144, 10_000), (999_999, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn use_is_read_from_both_interfaces() {
        let v1 = |_: &str, file: &str| {
            Some(match file {
                "memory.stat" => "cache 9\ninactive_file 1\ntotal_inactive_file 30\ntotal_rss 40\n".to_owned(),
                "cpuacct.usage" => "12345\n".to_owned(),
                "memory.usage_in_bytes" => "100\n".to_owned(),
                "pids.current" => "3\n".to_owned(),
                _ => return None,
            })
        };
        let expected = ContainerStats {
            cpu_usage_ns: 12_345,
            memory_usage_bytes: 100,
            memory_working_set_bytes: 70,
            memory_rss_bytes: 40,
            pids: 3,
        };
        assert_eq!(stats(Version::V1, v1), Some(expected));
        let v2 = |_: &str, file: &str| {
            Some(match file {
                "memory.stat" => "anon 40\nfile 60\ninactive_file 30\n".to_owned(),
                "cpu.stat" => "usage_usec 12\nuser_usec 10\n".to_owned(),
                "memory.current" => "100\n".to_owned(),
                "pids.current" => "3\n".to_owned(),
                _ => return None,
            })
        };
        assert_eq!(stats(Version::V2, v2), Some(ContainerStats { cpu_usage_ns: 12_000, ..expected }));
        assert_eq!(stats(Version::V1, |_, _| None), None);
    }

    #[test]
    fn an_oom_kill_is_told_from_pressure() {
        assert!(saw_oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"));
        assert!(!saw_oom_kill("oom_kill_disable 0\nunder_oom 1\noom_kill 0\n"));
        assert!(saw_oom_kill("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n"));
        assert!(!saw_oom_kill(""));
    }

    #[test]
    fn two_data_directories_have_two_parents() {
        let [a, b] = ["/var/lib/a", "/var/lib/b"].map(|dir| Cgroups::of(Path::new(dir)).parent().to_owned());
        assert_ne!(a, b);
        assert!(a.starts_with("/kedge/") && a.len() == "/kedge/".len() + 8);
    }
}
