//! What the containers of a pod share beside the network: host name, IPC and /dev/shm, pinned without a process.
//!
//! A namespace lives as long as something refers to it. Upstream uses a process that sleeps for ever (pause); a bind
//! mount of the namespace's file does the same for nothing. Everything of a pod lies in `<run-dir>/pods/<uid>/`,
//! `sandbox.json` written last: a folder without it was left half-made and is made again.
//!
//! A shared process namespace needs a first process, so it is refused by the backend that uses this.
#![allow(clippy::disallowed_methods, reason = "a shell: namespaces and mounts, below the run directory on tmpfs")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::container::SandboxSpec;
use crate::runtime::{ObservedSandbox, PodUid, RuntimeError};

/// As much as container runtimes give by default.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// The sandboxes below one run directory.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    folder: PathBuf,
}

/// The paths that a pod's containers join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    /// The IPC namespace; none with the node's own.
    pub ipc: Option<PathBuf>,
    /// The host name's namespace.
    pub uts: PathBuf,
    /// What to mount at /dev/shm.
    pub shm: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    spec: SandboxSpec,
    created_at: jiff::Timestamp,
}

impl Sandboxes {
    /// Those in a folder ([`crate::Layout::sandboxes`]).
    pub fn below(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The sandbox of a pod; `None` when it was never finished.
    pub fn get(&self, pod: &PodUid) -> Result<Option<ObservedSandbox>, RuntimeError> {
        let path = self.folder.join(pod.as_str()).join("sandbox.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(RuntimeError::host(format!("read {}", path.display()), e)),
        };
        // Half a record is a sandbox that was never finished.
        let record: Option<Record> = serde_json::from_slice(&bytes).ok();
        Ok(record.map(|record| ObservedSandbox { spec: record.spec, created_at: record.created_at }))
    }

    /// All finished sandboxes.
    pub fn list(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        let fail = |e| RuntimeError::host(format!("list {}", self.folder.display()), e);
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(fail)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            if let Ok(pod) = PodUid::new(name.to_string_lossy()) {
                found.extend(self.get(&pod)?);
            }
        }
        Ok(found)
    }

    /// The paths of a pod's sandbox.
    pub fn paths(&self, spec: &SandboxSpec) -> SandboxPaths {
        let folder = self.folder.join(spec.pod.uid.as_str());
        SandboxPaths {
            ipc: (!spec.host_ipc).then(|| folder.join("ipc")),
            uts: folder.join("uts"),
            shm: if spec.host_ipc { "/dev/shm".into() } else { folder.join("shm") },
        }
    }

    /// Makes a pod's sandbox, throwing away what an earlier attempt left.
    pub fn create(&self, spec: &SandboxSpec, now: jiff::Timestamp) -> Result<(), RuntimeError> {
        self.remove(&spec.pod.uid)?;
        let folder = self.folder.join(spec.pod.uid.as_str());
        let made = self.create_in(&folder, spec, now);
        if made.is_err() {
            self.remove(&spec.pod.uid)?;
        }
        made
    }

    fn create_in(&self, folder: &Path, spec: &SandboxSpec, now: jiff::Timestamp) -> Result<(), RuntimeError> {
        let paths = self.paths(spec);
        fs::create_dir_all(folder).map_err(|e| RuntimeError::host(format!("create {}", folder.display()), e))?;
        pin_namespaces(spec, &paths)?;
        if !spec.host_ipc {
            let attempt = || format!("mount {}", paths.shm.display());
            fs::create_dir(&paths.shm).map_err(|e| RuntimeError::host(attempt(), e))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &paths.shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
                .map_err(|e| RuntimeError::host(attempt(), e))?;
        }
        let record = Record { spec: spec.clone(), created_at: now };
        let bytes = serde_json::to_vec(&record).expect("a sandbox has only strings and numbers");
        let (staged, path) = (folder.join("sandbox.json.new"), folder.join("sandbox.json"));
        // No fsync: a power cut takes the namespaces with it, and then nobody may believe the record.
        fs::write(&staged, bytes)
            .and_then(|()| fs::rename(&staged, &path))
            .map_err(|e| RuntimeError::host(format!("write {}", path.display()), e))
    }

    /// Unmounts and removes a pod's sandbox, finished or not.
    pub fn remove(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        let folder = self.folder.join(pod.as_str());
        let record = folder.join("sandbox.json");
        let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
        fs::remove_file(&record)
            .or_else(gone)
            .map_err(|e| RuntimeError::host(format!("remove {}", record.display()), e))?;
        for name in ["ipc", "uts", "shm"] {
            let path = folder.join(name);
            match umount2(&path, MntFlags::MNT_DETACH) {
                // EINVAL: not a mount; ENOENT: not there.
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
                Err(e) => return Err(RuntimeError::host(format!("unmount {}", path.display()), e)),
            }
        }
        fs::remove_dir_all(&folder)
            .or_else(gone)
            .map_err(|e| RuntimeError::host(format!("remove {}", folder.display()), e))
    }
}

/// Makes the namespaces on a thread of their own, which ends: unsharing changes only the calling thread.
fn pin_namespaces(spec: &SandboxSpec, paths: &SandboxPaths) -> Result<(), RuntimeError> {
    let work = || -> Result<(), RuntimeError> {
        let ipc = if spec.host_ipc { CloneFlags::empty() } else { CloneFlags::CLONE_NEWIPC };
        unshare(CloneFlags::CLONE_NEWUTS | ipc).map_err(|e| RuntimeError::host("make a pod's namespaces", e))?;
        nix::unistd::sethostname(&spec.hostname)
            .map_err(|e| RuntimeError::host(format!("set host name {:?}", spec.hostname), e))?;
        let pins = [Some(("uts", &paths.uts)), paths.ipc.as_ref().map(|path| ("ipc", path))];
        for (name, path) in pins.into_iter().flatten() {
            let attempt = || format!("pin the {name} namespace at {}", path.display());
            fs::write(path, "").map_err(|e| RuntimeError::host(attempt(), e))?;
            let source = format!("/proc/thread-self/ns/{name}");
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| RuntimeError::host(attempt(), e))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(work).join().expect("making namespaces does not panic"))
}
