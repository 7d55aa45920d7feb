//! The backend that drives a containerd (1.6 or newer) with runc, over its socket.
//!
//! A container is a containerd container, a snapshot and a task. What must last is kept as extensions of the
//! container: what it is ([`record`]), when it started, how it ended. An exit is written there before the task (and
//! with it the shim) goes, so no restart of anything forgets it. Written by files: [`images`] (content, unpacking),
//! [`tasks`] (lives of containers), [`exec`], [`watch`] (exits as events).
//!
//! Not here: the daemon's own life ([`crate::private`]), pulling, restarting.
#![allow(clippy::disallowed_methods, reason = "a shell: /proc and device nodes of this machine")]

mod attach;
mod exec;
mod images;
mod keep;
mod leftover;
mod record;
mod rootfs;
mod rpc;
mod tasks;
mod watch;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use containerd_client::services::v1::{CreateNamespaceRequest, CreateRequest, Namespace};
use futures::StreamExt;
use kedge_world::World;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::archive::read::ArchiveFile;
use crate::cgroup::{Cgroups, Version};
use crate::container::{ContainerSpec, ExecSpec, PidMode, SandboxSpec};
use crate::image::{BlobSource, Digest, Image, ImagePlan, host_architecture};
use crate::layout::Layout;
use crate::runtime::{
    ContainerId, ContainerStats, Events, ExecSession, Observed, PodUid, Runtime, RuntimeError, RuntimeEvent,
};
use crate::sandbox::Sandboxes;
use images::ImageFacts;
use rpc::Rpc;

/// The one snapshotter used; every kernel that Kedge runs on has overlayfs.
const SNAPSHOTTER: &str = "overlayfs";
/// Holds the file systems of containers from before the container that refers to them exists until they are removed:
/// the collector may run at any moment in between.
const CONTAINERS_LEASE: &str = "kedge-containers";
/// Exits between two looks of the agent; more than pods fit a node. Who falls behind is told to look again.
const EVENTS_MAX: usize = 1024;

/// Where a containerd is and how a node uses it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its socket.
    pub socket: PathBuf,
    /// The containerd namespace that belongs to this node alone.
    pub namespace: String,
    /// The node's data directory, which its cgroups are keyed to.
    pub data_dir: PathBuf,
    /// The node's run directory.
    pub run_dir: PathBuf,
    /// The program that runs [`crate::logger_main`] for the verb [`crate::logger::LOGGER_VERB`].
    pub logger: PathBuf,
}

impl Settings {
    fn layout(&self) -> Layout {
        Layout { data_dir: self.data_dir.clone(), run_dir: self.run_dir.clone() }
    }
}

/// The backend. Cheap to clone.
#[derive(Clone)]
pub struct Containerd(Arc<Inner>);

struct Inner {
    rpc: Rpc,
    settings: Settings,
    world: World,
    cgroups: Cgroups,
    sandboxes: Sandboxes,
    capabilities: Vec<String>,
    oom_score_adj_min: i32,
    events: broadcast::Sender<RuntimeEvent>,
    /// Manifests never change, so what they say is read once.
    image_facts: Mutex<HashMap<String, Arc<ImageFacts>>>,
    /// Containers between the note that they start and their task; seen by others they would look lost.
    starting: Mutex<HashSet<ContainerId>>,
    /// Held while a container's task is taken away: by the watch, by an observation or by its removal.
    ending: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers whose loggers somebody looks after.
    kept: Mutex<HashSet<ContainerId>>,
}

impl Containerd {
    /// Connects, makes the node's namespace, and begins to watch for exits until the last clone is dropped.
    pub async fn connect(settings: Settings, world: World) -> Result<Self, RuntimeError> {
        let rpc = Rpc::connect(&settings.socket, &settings.namespace).await?;
        let namespace = Namespace { name: settings.namespace.clone(), labels: HashMap::new() };
        let created = rpc.namespaces().create(rpc.request(CreateNamespaceRequest { namespace: Some(namespace) })).await;
        rpc::accept_existing("create the containerd namespace", created)?;
        let request = rpc.request(CreateRequest { id: CONTAINERS_LEASE.into(), labels: HashMap::new() });
        rpc::accept_existing("hold containers' file systems", rpc.leases().create(request).await)?;
        let (capabilities, oom_score_adj_min) = own_abilities()?;
        let inner = Inner {
            rpc,
            cgroups: Cgroups::of(&settings.data_dir),
            sandboxes: Sandboxes::below(settings.layout().sandboxes()),
            settings,
            world,
            capabilities,
            oom_score_adj_min,
            events: broadcast::channel(EVENTS_MAX).0,
            image_facts: Mutex::default(),
            starting: Mutex::default(),
            ending: Mutex::default(),
            kept: Mutex::default(),
        };
        let backend = Self(Arc::new(inner));
        tokio::spawn(watch::watch(Arc::downgrade(&backend.0)));
        Ok(backend)
    }
}

/// The capabilities that containers can be given, and the lowest `oom_score_adj`, both by what we ourselves hold.
fn own_abilities() -> Result<(Vec<String>, i32), RuntimeError> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| RuntimeError::host(format!("read {path}"), e));
    let status = read("/proc/self/status")?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or("0");
    let mask = u64::from_str_radix(bounding.trim(), 16).unwrap_or_default();
    let held = crate::spec::CAPABILITIES.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0);
    let held: Vec<String> = held.map(|(_, name)| (*name).to_owned()).collect();
    if held.iter().any(|name| name == "CAP_SYS_RESOURCE") {
        return Ok((held, -1000));
    }
    let own = read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
    tracing::warn!(
        lowest = own,
        "oom_score_adj cannot be lowered here (no CAP_SYS_RESOURCE); pods that want less get this"
    );
    Ok((held, own))
}

impl std::fmt::Debug for Containerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Containerd").field(&self.0.settings.socket).finish()
    }
}

#[async_trait]
impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        let answer = rpc::answer("ask containerd's version", self.0.rpc.version().version(()).await)?;
        Ok(answer.version.split(['~', '+']).next().unwrap_or_default().trim_start_matches('v').to_owned())
    }

    async fn resolve_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        self.0.resolve_image(reference).await
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.0.list_images().await
    }

    async fn note_pulled(&self, id: &str, reference: &str) -> Result<(), RuntimeError> {
        self.0.note_pulled(id, reference).await
    }

    async fn pulled_images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.0.pulled_images().await
    }

    fn image_folder(&self) -> Option<PathBuf> {
        Some(self.0.settings.layout().images())
    }

    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        self.0.remove_image(id).await
    }

    async fn install_image(&self, plan: ImagePlan, blobs: Arc<dyn BlobSource>) -> Result<Image, RuntimeError> {
        let id = plan.manifest.config.digest.to_string();
        self.0.install(std::slice::from_ref(&plan), blobs).await?;
        self.0.image_by_id(&id).await?.ok_or(RuntimeError::ImageNotFound(id))
    }

    async fn unpacked_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        self.0.unpacked_layers(diff_ids).await
    }

    async fn import_archive(&self, path: &Path) -> Result<Vec<Image>, RuntimeError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || ArchiveFile::open(&owned, host_architecture()));
        let archive = opened.await.expect("reading an archive does not panic");
        let archive = archive.map_err(|source| RuntimeError::Archive { path: path.to_owned(), source })?;
        let plans = archive.images().to_vec();
        self.0.install(&plans, Arc::new(archive)).await?;
        let mut images = Vec::new();
        for plan in &plans {
            let id = plan.manifest.config.digest.as_str();
            images.push(self.0.image_by_id(id).await?.ok_or_else(|| RuntimeError::ImageNotFound(id.to_owned()))?);
        }
        Ok(images)
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        if spec.pid_mode == PidMode::Pod {
            let what = "shareProcessNamespace (it needs a process that outlives every container)".to_owned();
            return Err(RuntimeError::Unsupported { backend: "containerd", what });
        }
        let (inner, spec) = (self.0.clone(), spec.clone());
        let work = move || match inner.sandboxes.get(&spec.pod.uid)? {
            Some(found) if found.spec == spec => Ok(()),
            _ => {
                inner.cgroups.create_pod(&spec.pod.uid, &spec.resources)?;
                inner.sandboxes.create(&spec, inner.world.clock.wall())
            }
        };
        tokio::task::spawn_blocking(work).await.expect("making a sandbox does not panic")
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        self.0.remove_sandbox(pod).await
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.0.create_container(spec).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.0.start_container(id).await?;
        keep::keep(&self.0, id);
        Ok(())
    }

    async fn kill_container(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        self.0.kill_container(id, signal).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.0.remove_container(id).await
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, RuntimeError> {
        exec::exec(&self.0, id, spec).await
    }

    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<ExecSession, RuntimeError> {
        attach::attach(&self.0, id, stdin).await
    }

    async fn end_leftovers(&self) -> Result<usize, RuntimeError> {
        self.0.end_leftovers().await
    }

    async fn observe(&self) -> Result<Observed, RuntimeError> {
        self.0.observe().await
    }

    fn events(&self) -> Events {
        let stream = BroadcastStream::new(self.0.events.subscribe());
        // Who lagged has missed some, and is told to look at everything.
        Box::pin(stream.map(|event| event.unwrap_or(RuntimeEvent::Resync)))
    }

    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let record = self.0.record(id).await?;
        let needed = RuntimeError::WrongState { id: id.clone(), actual: "not running", needed: "running" };
        self.0.cgroups.stats(&record.pod.uid, id).ok_or(needed)
    }
}

impl Inner {
    fn cgroup_v2(&self) -> bool {
        self.cgroups.version() == Version::V2
    }
}

fn open_folder(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::open(path)
}
