//! The lives of containers in containerd.
//!
//! ```text
//! create: snapshot + container ──start: note the time, task created, task started──> running
//! running ──first process ends──> finish: exit written down, task and shim removed, event──> exited
//! any ──remove: task killed, container and snapshot removed──> gone
//! ```
//! A container that has a start noted, no exit and no task was lost: nobody saw its end.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use containerd_client::tonic::metadata::MetadataValue;
use containerd_client::tonic::{Code, Status};
use containerd_client::types::v1::Process;
use containerd_client::types::v1::Status as TaskStatus;
use prost_types::Any;

use super::record::{EXIT, Known, POD_LABEL, RECORD, Record, STARTED, pack};
use super::{CONTAINERS_LEASE, Inner, SNAPSHOTTER, rootfs, rpc};
use crate::container::{ContainerSpec, PidMode};
use crate::logger::{LOGGER_VERB, LoggerTarget};
use crate::private::killall::killed_since;
use crate::runtime::{
    ContainerId, ContainerState, Exit, Observed, ObservedContainer, PodUid, RuntimeError, RuntimeEvent,
};
use crate::spec::{self, DeviceNode, users};

/// What the container world calls a container that could not start (containerd `internal/cri/server`).
const START_ERROR_CODE: i32 = 128;
/// containerd's runtime: runc behind one shim for each container.
const RUNTIME: &str = "io.containerd.runc.v2";
const SIGKILL: u32 = 9;
/// A cgroup stays busy for moments after its last process.
const CGROUP_ATTEMPTS_MAX: u32 = 100;
const CGROUP_PAUSE: Duration = Duration::from_millis(10);

impl Inner {
    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let sandbox = self.sandboxes.get(&spec.pod.uid)?;
        let sandbox = sandbox.ok_or_else(|| RuntimeError::SandboxNotFound(spec.pod.uid.clone()))?.spec;
        if self.find_container(&spec.id).await?.is_some() {
            let (actual, needed) = ("already there", "absent");
            return Err(RuntimeError::WrongState { id: spec.id.clone(), actual, needed });
        }
        let facts = self.facts_of_image(&spec.image_id).await?;
        let mounts = self.prepare_snapshot(&spec.id, &facts.top_snapshot).await?;
        let made = self.create_on(spec, &sandbox, &mounts).await;
        if made.is_err() {
            self.remove_snapshot(&spec.id).await?;
        }
        made
    }

    async fn create_on(
        &self,
        spec: &ContainerSpec,
        sandbox: &crate::SandboxSpec,
        mounts: &[containerd_client::types::Mount],
    ) -> Result<(), RuntimeError> {
        let user = resolve_user(spec, mounts)?;
        let devices = if spec.security.privileged { all_devices() } else { named_devices(spec)? };
        let host = spec::Host {
            user: &user,
            paths: &self.sandboxes.paths(sandbox),
            cgroup: &self.cgroups.container(&spec.pod.uid, &spec.id),
            cgroup_v2: self.cgroup_v2(),
            capabilities: &self.capabilities,
            oom_score_adj_min: self.oom_score_adj_min,
            devices: &devices,
            architecture: std::env::consts::ARCH,
        };
        let oci = spec::runtime_spec(spec, sandbox, &host)?;
        let host_pid = sandbox.pid_mode == PidMode::Host;
        let record = Record::of(spec, host_pid, self.world.clock.wall());
        let container = api::Container {
            id: spec.id.to_string(),
            labels: HashMap::from([(POD_LABEL.to_owned(), spec.pod.uid.to_string())]),
            image: spec.image.clone(),
            runtime: Some(api::container::Runtime { name: RUNTIME.into(), options: None }),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: serde_json::to_vec(&oci).expect("a spec has only strings and numbers"),
            }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: spec.id.to_string(),
            extensions: HashMap::from([(RECORD.to_owned(), pack(&record))]),
            ..api::Container::default()
        };
        let request = self.rpc.request(api::CreateContainerRequest { container: Some(container) });
        rpc::answer("create a container", self.rpc.containers().create(request).await).map(drop)
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let known = self.known(id).await?;
        if known.exit.is_some() {
            return Err(RuntimeError::WrongState { id: id.clone(), actual: "exited", needed: "created" });
        }
        self.starting.lock().insert(id.clone());
        let started = self.start_known(&known).await;
        self.starting.lock().remove(id);
        started
    }

    async fn start_known(&self, known: &Known) -> Result<(), RuntimeError> {
        let started_at = self.world.clock.wall();
        // Before the start: an exit may come before the start has answered.
        self.note(&known.id, STARTED, &started_at).await?;
        let result = self.start_task(known).await;
        if let Err(RuntimeError::Backend { reason, .. }) = &result {
            let exit = Exit {
                code: START_ERROR_CODE,
                oom: false,
                started_at: Some(started_at),
                finished_at: self.world.clock.wall(),
                message: Some(reason.clone()),
            };
            self.note(&known.id, EXIT, &exit).await?;
            self.alone(&known.id, self.end_task(&known.id)).await?;
            self.release_logger(&known.id).await?;
        }
        result
    }

    async fn start_task(&self, known: &Known) -> Result<(), RuntimeError> {
        let id = &known.id;
        let request = snap::MountsRequest { snapshotter: SNAPSHOTTER.into(), key: id.to_string() };
        let mounts = self.rpc.snapshots().mounts(self.rpc.request(request)).await;
        let rootfs = rpc::answer("find a container's file system", mounts)?.mounts;
        let [stdin, stdout, stderr] = if known.record.stdin {
            self.start_logger(known).await?
        } else {
            let log = logger_uri(&self.settings.logger, &self.logger_target(known));
            [String::new(), log.clone(), if known.record.tty { String::new() } else { log }]
        };
        let request = api::CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdin,
            stdout,
            stderr,
            terminal: known.record.tty,
            ..api::CreateTaskRequest::default()
        };
        let created = self.rpc.tasks().create(self.rpc.request(request)).await;
        // A server that died between the two calls left a task that only has to be started.
        rpc::accept_existing("create the container's task", created)?;
        if known.record.stdin {
            self.leave_stdin_to_logger(id).await?;
        }
        let request = api::StartRequest { container_id: id.to_string(), exec_id: String::new() };
        let started = self.rpc.tasks().start(self.rpc.request(request)).await;
        rpc::answer("start the container's task", started).map(drop)
    }

    pub(super) async fn kill_container(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        let known = self.known(id).await?;
        let signal = u32::try_from(signal).map_err(|_| RuntimeError::Config(format!("{signal} is no signal")))?;
        // Without a process namespace of its own, a container's other processes outlive its first.
        self.kill_task(id, signal, known.record.host_pid && signal == SIGKILL).await
    }

    async fn kill_task(&self, id: &ContainerId, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let request = api::KillRequest { container_id: id.to_string(), exec_id: String::new(), signal, all };
        match self.rpc.tasks().kill(self.rpc.request(request)).await {
            Err(status) if is_gone(&status) => Ok(()),
            other => rpc::answer("signal a container", other).map(drop),
        }
    }

    pub(super) async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.alone(id, self.end_task(id)).await?;
        let request = self.rpc.request(api::DeleteContainerRequest { id: id.to_string() });
        rpc::find("remove a container", self.rpc.containers().delete(request).await)?;
        self.release_logger(id).await?;
        self.remove_snapshot(id).await
    }

    async fn end_task(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        if self.task(id).await?.is_none() {
            return Ok(());
        }
        self.kill_task(id, SIGKILL, true).await?;
        let request = api::WaitRequest { container_id: id.to_string(), exec_id: String::new() };
        rpc::find("wait for a container", self.rpc.tasks().wait(self.rpc.request(request)).await)?;
        self.delete_task(id).await
    }

    pub(super) async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        for container in self.list_containers().await?.iter().filter_map(Known::read) {
            if container.record.pod.uid == *pod {
                self.remove_container(&container.id).await?;
            }
        }
        self.sandboxes.remove(pod)?;
        let group = self.cgroups.pod(pod);
        let mut attempt = 0;
        loop {
            match self.cgroups.remove(&group) {
                Err(RuntimeError::Host { source, .. })
                    if source.raw_os_error() == Some(nix::libc::EBUSY) && attempt < CGROUP_ATTEMPTS_MAX =>
                {
                    attempt += 1;
                    tokio::time::sleep(CGROUP_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Everything there is. Exits that nobody wrote down yet are written down on the way.
    pub(super) async fn observe(&self) -> Result<Observed, RuntimeError> {
        let containers = self.list_containers().await?;
        let request = self.rpc.request(api::ListTasksRequest { filter: String::new() });
        let tasks = rpc::answer("list tasks", self.rpc.tasks().list(request).await)?.tasks;
        // The task list names a task by its container's id in `id`; `container_id` came with containerd 1.7.
        let mut tasks: HashMap<String, Process> = tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        let mut observed = Observed { sandboxes: self.sandboxes.list()?, containers: Vec::new() };
        for known in containers.iter().filter_map(Known::read) {
            let task = tasks.remove(known.id.as_str());
            observed.containers.extend(self.observe_one(known, task).await?);
        }
        Ok(observed)
    }

    /// What one container is doing.
    pub(super) async fn observe_known(&self, known: &Known) -> Result<ContainerState, RuntimeError> {
        let task = self.task(&known.id).await?;
        let again = self.known(&known.id).await?;
        let observed = self.observe_one(again, task).await?;
        observed.map(|found| found.state).ok_or_else(|| RuntimeError::ContainerNotFound(known.id.clone()))
    }

    async fn observe_one(
        &self,
        known: Known,
        task: Option<Process>,
    ) -> Result<Option<ObservedContainer>, RuntimeError> {
        let status = task.as_ref().map(|task| task.status());
        let state = match (known.exit, status, known.started_at) {
            (Some(exit), _, _) => ContainerState::Exited(exit),
            (None, Some(TaskStatus::Stopped), _) => match self.finish(&known.id).await? {
                Some(exit) => ContainerState::Exited(exit),
                None => return Ok(None),
            },
            (None, Some(TaskStatus::Created), _) | (None, _, None) => ContainerState::Created,
            (None, Some(_), Some(started_at)) => {
                ContainerState::Running { started_at, pid: task.map_or(0, |task| task.pid) }
            }
            (None, None, Some(_)) if self.starting.lock().contains(&known.id) => ContainerState::Created,
            (None, None, Some(started_at)) => {
                // Listed before its task was made, or before its exit was written and with its task gone after: look
                // again, at the task first, because an exit is written before the task goes.
                let task = self.task(&known.id).await?;
                let Some(now) = self.find_container(&known.id).await? else { return Ok(None) };
                match (now.exit, task) {
                    (Some(exit), _) => ContainerState::Exited(exit),
                    (None, None) => {
                        let ended_at = killed_since(&self.settings.layout(), started_at);
                        ContainerState::Lost { started_at: Some(started_at), ended_at }
                    }
                    (None, Some(task)) => match task.status() {
                        TaskStatus::Stopped => match self.finish(&known.id).await? {
                            Some(exit) => ContainerState::Exited(exit),
                            None => return Ok(None),
                        },
                        TaskStatus::Created => ContainerState::Created,
                        _ => ContainerState::Running { started_at, pid: task.pid },
                    },
                }
            }
        };
        Ok(Some(known.record.observed(known.id, state)))
    }

    /// Writes down how a container's first process ended, removes the task and tells who listens. `None` when the
    /// container is gone, or its task has not ended.
    pub(super) async fn finish(&self, id: &ContainerId) -> Result<Option<Exit>, RuntimeError> {
        self.alone(id, self.finish_alone(id)).await
    }

    /// Does something to a container's task while nobody else takes it away: two at once break the shim's connection.
    async fn alone<T>(&self, id: &ContainerId, work: impl Future<Output = T>) -> T {
        let turn = self.ending.lock().entry(id.clone()).or_default().clone();
        let held = turn.lock().await;
        let done = work.await;
        drop(held);
        let mut ending = self.ending.lock();
        // The map's and ours: nobody waits.
        if Arc::strong_count(&turn) == 2 {
            ending.remove(id);
        }
        done
    }

    async fn finish_alone(&self, id: &ContainerId) -> Result<Option<Exit>, RuntimeError> {
        // The task first: whoever removes it has written the exit down before, and then it is read here.
        let task = self.task(id).await?;
        let Some(known) = self.find_container(id).await? else { return Ok(None) };
        let pod = known.record.pod.uid;
        let exit = match (task, known.exit) {
            (Some(task), _) if task.status() != TaskStatus::Stopped => return Ok(None),
            (None, None) => return Ok(None),
            (_, Some(exit)) => exit,
            (Some(task), None) => Exit {
                code: i32::try_from(task.exit_status).unwrap_or(255),
                // Read while the cgroup is there; a lost event cannot make us forget it.
                oom: self.cgroups.saw_oom_kill(&pod, id),
                started_at: known.started_at,
                finished_at: task.exited_at.and_then(timestamp).unwrap_or_else(|| self.world.clock.wall()),
                message: None,
            },
        };
        self.note(id, EXIT, &exit).await?;
        // A logger that containerd started has written everything when this returns; one of ours is waited for.
        self.delete_task(id).await?;
        self.wait_for_logger(id).await;
        // Nobody listening is fine: the record is there to be observed.
        let _ = self.events.send(RuntimeEvent::Exited { pod, id: id.clone(), exit: exit.clone() });
        Ok(Some(exit))
    }

    pub(super) async fn known(&self, id: &ContainerId) -> Result<Known, RuntimeError> {
        self.find_container(id).await?.ok_or_else(|| RuntimeError::ContainerNotFound(id.clone()))
    }

    pub(super) async fn record(&self, id: &ContainerId) -> Result<Record, RuntimeError> {
        Ok(self.known(id).await?.record)
    }

    pub(super) async fn find_container(&self, id: &ContainerId) -> Result<Option<Known>, RuntimeError> {
        Ok(self.find_raw(id).await?.as_ref().and_then(Known::read))
    }

    pub(super) async fn find_raw(&self, id: &ContainerId) -> Result<Option<api::Container>, RuntimeError> {
        let request = self.rpc.request(api::GetContainerRequest { id: id.to_string() });
        let found = rpc::find("look at a container", self.rpc.containers().get(request).await)?;
        Ok(found.and_then(|found| found.container))
    }

    async fn list_containers(&self) -> Result<Vec<api::Container>, RuntimeError> {
        let request = self.rpc.request(api::ListContainersRequest { filters: vec![] });
        Ok(rpc::answer("list containers", self.rpc.containers().list(request).await)?.containers)
    }

    async fn task(&self, id: &ContainerId) -> Result<Option<Process>, RuntimeError> {
        let request = api::GetRequest { container_id: id.to_string(), exec_id: String::new() };
        let found = rpc::find("look at a task", self.rpc.tasks().get(self.rpc.request(request)).await)?;
        Ok(found.and_then(|found| found.process))
    }

    async fn delete_task(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = api::DeleteTaskRequest { container_id: id.to_string() };
        rpc::find("remove a task", self.rpc.tasks().delete(self.rpc.request(request)).await).map(drop)
    }

    async fn note(&self, id: &ContainerId, key: &str, value: &impl serde::Serialize) -> Result<(), RuntimeError> {
        let container = api::Container {
            id: id.to_string(),
            extensions: HashMap::from([(key.to_owned(), pack(value))]),
            ..api::Container::default()
        };
        let mask = prost_types::FieldMask { paths: vec![format!("extensions.{key}")] };
        let request = api::UpdateContainerRequest { container: Some(container), update_mask: Some(mask) };
        let updated = self.rpc.containers().update(self.rpc.request(request)).await;
        rpc::answer("note a container's life", updated).map(drop)
    }

    async fn prepare_snapshot(
        &self,
        id: &ContainerId,
        parent: &str,
    ) -> Result<Vec<containerd_client::types::Mount>, RuntimeError> {
        let request = snap::PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.to_string(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let lease = MetadataValue::from_static(CONTAINERS_LEASE);
        let mut client = self.rpc.snapshots();
        let mut prepared = client.prepare(self.rpc.leased(&lease, request.clone())).await;
        if prepared.as_ref().is_err_and(|status| status.code() == Code::AlreadyExists) {
            // Left by a server that died before it made the container.
            self.remove_snapshot(id).await?;
            prepared = client.prepare(self.rpc.leased(&lease, request)).await;
        }
        Ok(rpc::answer("make a container's file system", prepared)?.mounts)
    }

    async fn remove_snapshot(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let request = snap::RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.to_string() };
        let lease = MetadataValue::from_static(CONTAINERS_LEASE);
        let removed = self.rpc.snapshots().remove(self.rpc.leased(&lease, request)).await;
        rpc::find("remove a container's file system", removed).map(drop)
    }
}

fn is_gone(status: &Status) -> bool {
    status.code() == Code::NotFound || status.message().contains("already finished")
}

fn timestamp(at: prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(at.seconds, at.nanos).ok()
}

/// containerd starts the program with the query's key and value as two arguments.
fn logger_uri(program: &Path, target: &LoggerTarget) -> String {
    let target = target.to_argument();
    format!("binary://{}?{LOGGER_VERB}={}", escape(&program.to_string_lossy()), escape(&target))
}

fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn resolve_user(
    spec: &ContainerSpec,
    mounts: &[containerd_client::types::Mount],
) -> Result<users::ResolvedUser, RuntimeError> {
    let security = &spec.security;
    let read =
        |path| if users::needs_files(&security.user) { rootfs::read_text(mounts, path) } else { Ok(String::new()) };
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    users::resolve(&security.user, &security.supplemental_groups, security.strict_groups, &passwd, &group)
}

fn named_devices(spec: &ContainerSpec) -> Result<Vec<DeviceNode>, RuntimeError> {
    let nodes = spec.devices.iter().map(|device| {
        let path = device.container_path.to_string_lossy().into_owned();
        device_node(&device.host_path, path, &device.permissions)
            .ok_or_else(|| RuntimeError::Config(format!("{} is not a device of this node", device.host_path.display())))
    });
    nodes.collect()
}

/// Every device of the host, for privileged containers; terminals and what the spec makes itself left out.
fn all_devices() -> Vec<DeviceNode> {
    fn walk(folder: &Path, nodes: &mut Vec<DeviceNode>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let skipped = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"];
            if skipped.iter().any(|skip| name == *skip) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&path, nodes);
            } else {
                nodes.extend(device_node(&path, path.to_string_lossy().into_owned(), "rwm"));
            }
        }
    }
    let mut nodes = Vec::new();
    walk(Path::new("/dev"), &mut nodes);
    nodes
}

fn device_node(host_path: &Path, path: String, permissions: &str) -> Option<DeviceNode> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::symlink_metadata(host_path).ok()?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    Some(DeviceNode { path, kind, major, minor, mode: meta.mode(), permissions: permissions.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loggers_address_survives_any_path() {
        let rotation = crate::logger::Rotation { bytes_max: 1, files_max: 2 };
        let target = LoggerTarget {
            path: "/var/log/a b&c=d".into(),
            rotation,
            folder: "/run".into(),
            pipes: None,
            instead: None,
        };
        let uri = logger_uri(Path::new("/usr/bin/kedge"), &target);
        let expected = "%7B%22path%22%3A%22/var/log/a%20b%26c%3Dd%22%2C%22rotation%22%3A%7B%22bytes_max%22%3A1%2C\
                        %22files_max%22%3A2%7D%2C%22folder%22%3A%22/run%22%7D";
        assert_eq!(uri, format!("binary:///usr/bin/kedge?container-logger={expected}"));
    }

    #[test]
    fn devices_are_looked_up() {
        let node = device_node(Path::new("/dev/null"), "/dev/x".into(), "rw").unwrap();
        assert_eq!((node.kind, node.major, node.minor), ('c', 1, 3));
        assert_eq!(device_node(Path::new("/etc/passwd"), "/x".into(), "rw"), None);
    }
}
