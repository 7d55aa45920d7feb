//! The boundary between the agent and whatever runs containers.
//!
//! What must hold for every backend: an id names one container for ever (it is derived from pod, name and attempt,
//! so asking twice for the same container is the same question); a container that ran keeps its exit record until it
//! is removed, over restarts of the agent and of the backend; removing what is already gone succeeds.
//!
//! What it does not do: decide. A backend never restarts anything by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::container::{ContainerSpec, ExecSpec, SandboxSpec};
use crate::image::{BlobSource, Digest, Image, ImagePlan};

/// Runs pods' containers on this machine.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The scheme of container ids in a pod's status: `containerd`, `fake`.
    fn name(&self) -> &'static str;
    /// The backend's version, as the Node object reports it.
    async fn version(&self) -> Result<String, RuntimeError>;

    /// The local image that `reference` (name, name@digest or image id) means; `None` when it is not here.
    async fn resolve_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;
    /// All local images.
    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError>;
    /// Remembers that image `id` came from the registry that `reference` names, where it can be had again.
    async fn note_pulled(&self, _id: &str, _reference: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
    /// The local images all of whose names came from registries.
    async fn pulled_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(Vec::new())
    }
    /// Where images are on this machine's disk, if anywhere.
    fn image_folder(&self) -> Option<PathBuf> {
        None
    }
    /// Forgets the names of image `id`, after which its bytes are collected.
    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError>;
    /// Unpacks an image whose blobs `blobs` can open, and names it. All or nothing.
    async fn install_image(&self, plan: ImagePlan, blobs: Arc<dyn BlobSource>) -> Result<Image, RuntimeError>;
    /// How many of an image's layers, from the lowest on, are unpacked here, whichever image brought them; installing
    /// it needs the blobs of the others only.
    async fn unpacked_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError>;
    /// Installs every image of a docker or OCI archive. A broken archive installs none of them.
    async fn import_archive(&self, path: &Path) -> Result<Vec<Image>, RuntimeError>;

    /// Makes what a pod's containers share. Asking again for the same pod does nothing.
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), RuntimeError>;
    /// Ends and removes what is left of a pod.
    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError>;

    /// Makes a container that has not started.
    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;
    /// Starts a created container.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Sends `signal` to the container's first process. A container that is not running is not an error.
    async fn kill_container(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError>;
    /// Removes a container, ending it first if it runs.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Runs one more process in a running container.
    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, RuntimeError>;
    /// Connects with a running container's own streams: its output from now on and, with `stdin`, its input if it has
    /// one. The session ends with 0 when the container closed its output, or when the input given is over and is not
    /// the container's last ([`ContainerSpec::stdin_once`]). Who does not read is cut off.
    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<ExecSession, RuntimeError>;

    /// Ends processes of former containers that the backend itself lost sight of; how many. Those of a start under way
    /// are none; takes its time to be sure.
    async fn end_leftovers(&self) -> Result<usize, RuntimeError> {
        Ok(0)
    }

    /// Everything that exists now, for adoption after a restart.
    async fn observe(&self) -> Result<Observed, RuntimeError>;
    /// What happens from now on.
    fn events(&self) -> Events;
    /// What a running container uses.
    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError>;
}

/// Why a backend did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The image is not on this machine.
    #[error("image {0:?} is not present on this node")]
    ImageNotFound(String),
    /// The reference is not one.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// As given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive cannot be used.
    #[error("image archive {}: {source}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::archive::ArchiveError,
    },
    /// No such container.
    #[error("container {0} does not exist")]
    ContainerNotFound(ContainerId),
    /// The container is not in the state that the call needs.
    #[error("container {id} is {actual}, not {needed}")]
    WrongState {
        /// Which container.
        id: ContainerId,
        /// What it is.
        actual: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
    /// A pod without [`Runtime::create_sandbox`].
    #[error("pod {0} has no sandbox")]
    SandboxNotFound(PodUid),
    /// Asked for something that this backend does not do.
    #[error("{backend} cannot run this: {what} is not supported")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// The field of the pod, or the host's missing ability.
        what: String,
    },
    /// The container's user, group or other configuration cannot be resolved; trying again alone does not help.
    #[error("{0}")]
    Config(String),
    /// The backend refused or failed.
    #[error("{attempt}: {reason}")]
    Backend {
        /// The step.
        attempt: String,
        /// What the backend said.
        reason: String,
    },
    /// The backend does not answer.
    #[error("{attempt}: the container runtime does not answer: {reason}")]
    Unavailable {
        /// The step.
        attempt: String,
        /// What the transport said.
        reason: String,
    },
    /// A step on this machine's own files or kernel failed.
    #[error("{attempt}: {source}")]
    Host {
        /// The step.
        attempt: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// An operating system's error with the step attempted.
    pub fn host(attempt: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Host { attempt: attempt.into(), source: source.into() }
    }
}

/// A pod's `metadata.uid`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(String);

impl PodUid {
    /// Accepts what may safely be a path element and a cgroup name: letters, digits, `-`, `_` and `.`, not leading.
    pub fn new(uid: impl Into<String>) -> Result<Self, RuntimeError> {
        let uid = uid.into();
        let fits = (1..=128).contains(&uid.len())
            && !uid.starts_with('.')
            && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits { Ok(Self(uid)) } else { Err(RuntimeError::Config(format!("pod uid {uid:?} is not a name"))) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which pod, in the words people use for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; what ids derive from.
    pub uid: PodUid,
}

/// One run of one container of one pod: 64 hexadecimal digits, as other runtimes' ids are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// The id of the `attempt`th run (from 0) of container `name` in a pod.
    pub fn derive(pod: &PodUid, name: &str, attempt: u32) -> Self {
        let digest = Sha256::digest(format!("{pod}/{name}/{attempt}").as_bytes());
        Self(hex::encode(digest))
    }

    /// Reads an id back from a status or a backend.
    pub fn parse(text: &str) -> Option<Self> {
        let hexadecimal = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hexadecimal.then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All that a backend holds.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Pods with a sandbox.
    pub sandboxes: Vec<ObservedSandbox>,
    /// Containers, in any state.
    pub containers: Vec<ObservedContainer>,
}

/// A pod's sandbox as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedSandbox {
    /// Whose.
    pub spec: SandboxSpec,
    /// When it was made.
    pub created_at: jiff::Timestamp,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// Its name in the pod.
    pub name: String,
    /// Which run, from 0.
    pub attempt: u32,
    /// The reference asked for.
    pub image: String,
    /// The id of the image that runs.
    pub image_id: String,
    /// What the agent wanted remembered with it ([`ContainerSpec::annotations`]).
    pub annotations: BTreeMap<String, String>,
    /// Where its log is.
    pub log_path: PathBuf,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// What it is doing.
    pub state: ContainerState,
}

/// What a container is doing: created → running → exited, never back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running {
        /// Since when.
        started_at: jiff::Timestamp,
        /// That process, in the host's numbering; 0 where there is none.
        pid: u32,
    },
    /// Its first process ended.
    Exited(Exit),
    /// It was running, and nobody saw how it ended (a reboot, a killed backend).
    Lost {
        /// When it started, if that was seen.
        started_at: Option<jiff::Timestamp>,
        /// When it was ended together with all others of the node, if it was.
        ended_at: Option<jiff::Timestamp>,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Whether the kernel killed something in it for memory.
    pub oom: bool,
    /// When it started, or was to; absent if that was never known.
    pub started_at: Option<jiff::Timestamp>,
    /// When it ended.
    pub finished_at: jiff::Timestamp,
    /// Why it could not start, when it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Something that the agent did not do itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container ended; its record can be observed.
    Exited {
        /// Its pod.
        pod: PodUid,
        /// Which container.
        id: ContainerId,
        /// How.
        exit: Exit,
    },
    /// Whatever a running container writes from now on reaches no log: what took it was killed, and cannot be replaced.
    LogLost {
        /// Its pod.
        pod: PodUid,
        /// Its name in the pod.
        name: String,
        /// Which container.
        id: ContainerId,
    },
    /// Events may have been missed: observe everything again.
    Resync,
}

/// A stream of events without an end.
pub type Events = Pin<Box<dyn futures::Stream<Item = RuntimeEvent> + Send>>;

/// What a running container uses, from its cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Processor time since its start.
    pub cpu_usage_ns: u64,
    /// Memory charged, page cache included.
    pub memory_usage_bytes: u64,
    /// Memory less the file pages that could be dropped first; what evictions look at.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory.
    pub memory_rss_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A process started by [`Runtime::exec`], or a container connected with by [`Runtime::attach`]. Dropping it leaves the
/// process running.
pub struct ExecSession {
    /// Its input, if asked for; dropping the writer is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output (and errors, with a terminal); ends when the process closed it.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Ends with the exit code.
    pub exit: BoxFuture<'static, Result<i32, RuntimeError>>,
    /// Resizes and kills.
    pub control: Arc<dyn ExecControl>,
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExecSession")
    }
}

/// The handle on a running exec.
#[async_trait]
pub trait ExecControl: Send + Sync {
    /// Sets the terminal's size.
    async fn resize(&self, width: u16, height: u16) -> Result<(), RuntimeError>;
    /// Sends a signal to the process.
    async fn kill(&self, signal: i32) -> Result<(), RuntimeError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_each_time_and_different_for_each_run() {
        let pod = PodUid::new("6a1f").unwrap();
        let first = ContainerId::derive(&pod, "web", 0);
        assert_eq!(first, ContainerId::derive(&pod, "web", 0));
        assert_ne!(first, ContainerId::derive(&pod, "web", 1));
        assert_eq!(ContainerId::parse(first.as_str()), Some(first));
        assert_eq!(ContainerId::parse("../../etc"), None);
    }

    #[test]
    fn a_uid_that_is_a_path_is_refused() {
        for bad in ["", "..", "a/b", "a b", ".hidden", "\n"] {
            assert!(PodUid::new(bad).is_err(), "{bad:?}");
        }
        assert!(PodUid::new("0b5cf8a6-6c4e-4bfb-9a9f-0a7f5b6f8f00").is_ok());
    }
}
