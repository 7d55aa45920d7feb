//! A backend in memory: what the agent's tests run on, without root, images or processes.
//!
//! It obeys the same suite as the real ones. A container's life follows from its command line (`sleep N`,
//! `sh -c "exit N"`, `true`, `false`; anything else cannot be started), or from a [`Behaviour`] that a test sets for
//! the container's name. Time is tokio's, so a paused clock moves it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use kedge_world::World;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::BroadcastStream;

use crate::archive::read::ArchiveFile;
use crate::container::{ContainerSpec, ExecSpec, PidMode, SandboxSpec};
use crate::image::{BlobSource, ConfigFile, Digest, Image, ImageConfig, ImagePlan, chain_ids, host_architecture};
use crate::reference::Reference;
use crate::runtime::{
    ContainerId, ContainerState, ContainerStats, Events, ExecControl, ExecSession, Exit, Observed, ObservedContainer,
    ObservedSandbox, PodUid, Runtime, RuntimeError, RuntimeEvent,
};

const SIGKILL: i32 = 9;

/// How a container lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Until it is killed.
    Run {
        /// Only SIGKILL ends it.
        ignores_term: bool,
    },
    /// For a time.
    ExitAfter {
        /// How long.
        time: Duration,
        /// With which code.
        code: i32,
        /// Because of memory.
        oom: bool,
    },
    /// It cannot be started.
    FailToStart(String),
}

/// What an exec answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecAnswer {
    /// After this long.
    pub after: Duration,
    /// The exit code.
    pub code: i32,
    /// On stdout.
    pub stdout: String,
}

/// The backend. Cheap to clone: clones are the same machine.
#[derive(Clone)]
pub struct Fake(Arc<Inner>);

struct Inner {
    world: World,
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    /// Unpacked layers, by the image that has them.
    layers: BTreeMap<String, Vec<Digest>>,
    sandboxes: BTreeMap<PodUid, ObservedSandbox>,
    containers: BTreeMap<ContainerId, Container>,
    behaviours: HashMap<String, Behaviour>,
    exec_answers: HashMap<String, ExecAnswer>,
    calls: Vec<String>,
}

impl State {
    fn unpacked(&self, chain: &[Digest]) -> usize {
        chain.iter().take_while(|layer| self.layers.values().any(|layers| layers.contains(layer))).count()
    }
}

struct Container {
    spec: ContainerSpec,
    created_at: jiff::Timestamp,
    state: ContainerState,
    ignores_term: bool,
}

impl Fake {
    /// An empty machine.
    pub fn new(world: World) -> Self {
        Self(Arc::new(Inner { world, state: Mutex::default(), events: broadcast::channel(1024).0 }))
    }

    /// Puts an image there.
    pub fn add_image(&self, reference: &str, config: ImageConfig) -> Image {
        let name = Reference::parse(reference).expect("a test's reference is one").full_name();
        let id = Digest::of(name.as_bytes()).to_string();
        let image = Image { id: id.clone(), names: vec![name], digests: vec![], size_bytes: 1, config };
        self.0.state.lock().images.insert(id, image.clone());
        image
    }

    /// Decides how containers of this name live.
    pub fn behave(&self, container: &str, behaviour: Behaviour) {
        self.0.state.lock().behaviours.insert(container.to_owned(), behaviour);
    }

    /// Decides what an exec whose arguments, joined by blanks, are `command` answers.
    pub fn answer_exec(&self, command: &str, answer: ExecAnswer) {
        self.0.state.lock().exec_answers.insert(command.to_owned(), answer);
    }

    /// Ends a running container.
    pub fn end(&self, id: &ContainerId, code: i32, oom: bool) {
        self.0.end(id, code, oom);
    }

    /// The machine lost power: nothing runs, and nobody saw how it ended.
    pub fn lose_everything_running(&self) {
        let mut state = self.0.state.lock();
        state.sandboxes.clear();
        for container in state.containers.values_mut() {
            if let ContainerState::Running { started_at, .. } = container.state {
                container.state = ContainerState::Lost { started_at: Some(started_at), ended_at: None };
            }
        }
    }

    /// What was asked of it so far, as `verb container-name`.
    pub fn calls(&self) -> Vec<String> {
        self.0.state.lock().calls.clone()
    }
}

impl Inner {
    fn end(&self, id: &ContainerId, code: i32, oom: bool) {
        let finished_at = self.world.clock.wall();
        let mut state = self.state.lock();
        let Some(container) = state.containers.get_mut(id) else { return };
        let ContainerState::Running { started_at, .. } = container.state else { return };
        let exit = Exit { code, oom, started_at: Some(started_at), finished_at, message: None };
        container.state = ContainerState::Exited(exit.clone());
        let pod = container.spec.pod.uid.clone();
        drop(state);
        let _ = self.events.send(RuntimeEvent::Exited { pod, id: id.clone(), exit }); // Nobody may be listening.
    }

    fn with<T>(
        &self,
        verb: &str,
        id: &ContainerId,
        act: impl FnOnce(&mut Container) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let mut state = self.state.lock();
        let container = state.containers.get_mut(id).ok_or_else(|| RuntimeError::ContainerNotFound(id.clone()))?;
        let name = container.spec.name.clone();
        let done = act(container);
        state.calls.push(format!("{verb} {name}"));
        done
    }
}

/// What a command line means here.
fn understand(args: &[String]) -> Behaviour {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let exit = |code| Behaviour::ExitAfter { time: Duration::ZERO, code, oom: false };
    match words.as_slice() {
        ["true"] => exit(0),
        ["cat"] => Behaviour::Run { ignores_term: false },
        ["false"] => exit(1),
        ["sleep", seconds] => match seconds.parse() {
            Ok(seconds) => Behaviour::ExitAfter { time: Duration::from_secs_f64(seconds), code: 0, oom: false },
            Err(_) => exit(1),
        },
        ["sh", "-c", script] => match script.strip_prefix("exit ").and_then(|code| code.parse().ok()) {
            Some(code) => exit(code),
            None => Behaviour::FailToStart(format!("the fake does not know the script {script:?}")),
        },
        _ => Behaviour::FailToStart(format!("exec: {:?}: executable file not found in $PATH", words.first())),
    }
}

#[async_trait]
impl Runtime for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        Ok("0".to_owned())
    }

    async fn resolve_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let state = self.0.state.lock();
        if let Some(image) = state.images.get(reference) {
            return Ok(Some(image.clone()));
        }
        let name = Reference::parse(reference)?.full_name();
        Ok(state.images.values().find(|image| image.names.contains(&name) || image.digests.contains(&name)).cloned())
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(self.0.state.lock().images.values().cloned().collect())
    }

    async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.0.state.lock();
        state.images.remove(id);
        state.layers.remove(id);
        Ok(())
    }

    async fn unpacked_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        Ok(self.0.state.lock().unpacked(&chain_ids(diff_ids)))
    }

    async fn install_image(&self, plan: ImagePlan, blobs: Arc<dyn BlobSource>) -> Result<Image, RuntimeError> {
        let id = plan.manifest.config.digest.to_string();
        let file: ConfigFile = serde_json::from_slice(&plan.config_bytes)
            .map_err(|e| RuntimeError::Config(format!("config of image {id}: {e}")))?;
        let size_bytes = plan.manifest.layers.iter().map(|layer| layer.size).sum();
        let mut state = self.0.state.lock();
        let chain = chain_ids(&plan.diff_ids);
        for layer in &plan.manifest.layers[state.unpacked(&chain)..] {
            blobs.open(&layer.digest).map_err(|e| RuntimeError::host(format!("read blob {}", layer.digest), e))?;
        }
        state.layers.insert(id.clone(), chain);
        let fresh = Image { id: id.clone(), names: vec![], digests: vec![], size_bytes, config: file.config };
        let image = state.images.entry(id).or_insert(fresh);
        for name in &plan.names {
            image.add_name(&Reference::parse(name)?, plan.manifest_digest.as_str());
        }
        Ok(image.clone())
    }

    async fn import_archive(&self, path: &Path) -> Result<Vec<Image>, RuntimeError> {
        let archive = ArchiveFile::open(path, host_architecture());
        let archive = archive.map_err(|source| RuntimeError::Archive { path: path.to_owned(), source })?;
        let plans = archive.images().to_vec();
        let blobs: Arc<dyn BlobSource> = Arc::new(archive);
        let mut images = Vec::new();
        for plan in plans {
            images.push(self.install_image(plan, blobs.clone()).await?);
        }
        Ok(images)
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        if spec.pid_mode == PidMode::Pod {
            return Err(RuntimeError::Unsupported { backend: "fake", what: "shareProcessNamespace".into() });
        }
        let created_at = self.0.world.clock.wall();
        let mut state = self.0.state.lock();
        if state.sandboxes.get(&spec.pod.uid).is_none_or(|sandbox| sandbox.spec != *spec) {
            let sandbox = ObservedSandbox { spec: spec.clone(), created_at };
            state.sandboxes.insert(spec.pod.uid.clone(), sandbox);
            state.calls.push(format!("sandbox {}", spec.pod.name));
        }
        Ok(())
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        let mut state = self.0.state.lock();
        state.containers.retain(|_, container| container.spec.pod.uid != *pod);
        if let Some(sandbox) = state.sandboxes.remove(pod) {
            state.calls.push(format!("remove-sandbox {}", sandbox.spec.pod.name));
        }
        Ok(())
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let created_at = self.0.world.clock.wall();
        let mut state = self.0.state.lock();
        if !state.sandboxes.contains_key(&spec.pod.uid) {
            return Err(RuntimeError::SandboxNotFound(spec.pod.uid.clone()));
        }
        if !state.images.contains_key(&spec.image_id) {
            return Err(RuntimeError::ImageNotFound(spec.image_id.clone()));
        }
        if state.containers.contains_key(&spec.id) {
            let (actual, needed) = ("already there", "absent");
            return Err(RuntimeError::WrongState { id: spec.id.clone(), actual, needed });
        }
        state.calls.push(format!("create {}", spec.name));
        let container =
            Container { spec: spec.clone(), created_at, state: ContainerState::Created, ignores_term: false };
        state.containers.insert(spec.id.clone(), container);
        Ok(())
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let now = self.0.world.clock.wall();
        let behaviours = self.0.state.lock().behaviours.clone();
        let ends = self.0.with("start", id, |container| {
            if container.state != ContainerState::Created {
                return Err(RuntimeError::WrongState { id: id.clone(), actual: "not created", needed: "created" });
            }
            let scripted = behaviours.get(&container.spec.name).cloned();
            container.state = ContainerState::Running { started_at: now, pid: 1 };
            match scripted.unwrap_or_else(|| understand(&container.spec.args)) {
                Behaviour::Run { ignores_term } => {
                    container.ignores_term = ignores_term;
                    Ok(None)
                }
                Behaviour::ExitAfter { time, code, oom } => Ok(Some((time, code, oom))),
                Behaviour::FailToStart(reason) => {
                    let message = Some(reason.clone());
                    let exit = Exit { code: 128, oom: false, started_at: Some(now), finished_at: now, message };
                    container.state = ContainerState::Exited(exit);
                    Err(RuntimeError::Backend { attempt: "start the container".into(), reason })
                }
            }
        })?;
        if let Some((time, code, oom)) = ends {
            let (inner, id) = (Arc::downgrade(&self.0), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                if let Some(inner) = inner.upgrade() {
                    inner.end(&id, code, oom);
                }
            });
        }
        Ok(())
    }

    async fn kill_container(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        let verb = if signal == SIGKILL { "kill" } else { "term" };
        let dies = self.0.with(verb, id, |container| Ok(signal == SIGKILL || !container.ignores_term))?;
        if dies {
            self.0.end(id, 128 + signal, false);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.0.state.lock();
        if let Some(container) = state.containers.remove(id) {
            state.calls.push(format!("remove {}", container.spec.name));
        }
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.0.with("exec", id, |container| match container.state {
            ContainerState::Running { .. } => Ok(()),
            _ => Err(RuntimeError::WrongState { id: id.clone(), actual: "not running", needed: "running" }),
        })?;
        let command = spec.args.join(" ");
        let scripted = self.0.state.lock().exec_answers.get(&command).cloned();
        let (near_in, mut far_in) = tokio::io::duplex(64 << 10);
        let (near_out, mut far_out) = tokio::io::duplex(64 << 10);
        let (killed, mut kill) = oneshot::channel();
        let run = tokio::spawn(async move {
            let work = async {
                match scripted {
                    Some(answer) => {
                        tokio::time::sleep(answer.after).await;
                        let _ = far_out.write_all(answer.stdout.as_bytes()).await; // The reader may have gone.
                        answer.code
                    }
                    None if command == "cat" => tokio::io::copy(&mut far_in, &mut far_out).await.map_or(1, |_| 0),
                    None => {
                        if let Some(text) = command.strip_prefix("echo ") {
                            let _ = far_out.write_all(format!("{text}\n").as_bytes()).await; // As above.
                        }
                        match understand(&spec.args) {
                            Behaviour::ExitAfter { time, code, .. } => {
                                tokio::time::sleep(time).await;
                                code
                            }
                            _ if command.starts_with("echo ") => 0,
                            _ => 127,
                        }
                    }
                }
            };
            tokio::select! {
                code = work => code,
                Ok(signal) = &mut kill => 128 + signal,
            }
        });
        Ok(ExecSession {
            stdin: spec.stdin.then(|| Box::new(near_in) as _),
            stdout: Some(Box::new(near_out)),
            stderr: (!spec.tty).then(|| Box::new(tokio::io::empty()) as _),
            exit: run.map(|code| Ok(code.expect("a fake exec does not panic"))).boxed(),
            control: Arc::new(Control(Mutex::new(Some(killed)))),
        })
    }

    /// Every container with input gives it back as output.
    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<ExecSession, RuntimeError> {
        let (with_input, once) = self.0.with("attach", id, |container| match container.state {
            ContainerState::Running { .. } => Ok((stdin && container.spec.stdin, container.spec.stdin_once)),
            _ => Err(RuntimeError::WrongState { id: id.clone(), actual: "not running", needed: "running" }),
        })?;
        let (near_in, mut far_in) = tokio::io::duplex(64 << 10);
        let (near_out, mut far_out) = tokio::io::duplex(64 << 10);
        let (inner, container) = (self.0.clone(), id.clone());
        let echo = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut far_in, &mut far_out).await; // The client may have left.
            if with_input && once {
                inner.end(&container, 0, false);
            }
        });
        Ok(ExecSession {
            stdin: with_input.then(|| Box::new(near_in) as _),
            stdout: Some(Box::new(near_out)),
            stderr: Some(Box::new(tokio::io::empty())),
            exit: echo.map(|ended| Ok(ended.map_or(1, |()| 0))).boxed(),
            control: Arc::new(Control(Mutex::new(None))),
        })
    }

    async fn observe(&self) -> Result<Observed, RuntimeError> {
        let state = self.0.state.lock();
        let containers = state.containers.values().map(|container| {
            let spec = &container.spec;
            ObservedContainer {
                id: spec.id.clone(),
                pod: spec.pod.clone(),
                name: spec.name.clone(),
                attempt: spec.attempt,
                image: spec.image.clone(),
                image_id: spec.image_id.clone(),
                annotations: spec.annotations.clone(),
                log_path: spec.log_path.clone(),
                created_at: container.created_at,
                state: container.state.clone(),
            }
        });
        Ok(Observed { containers: containers.collect(), sandboxes: state.sandboxes.values().cloned().collect() })
    }

    fn events(&self) -> Events {
        let stream = BroadcastStream::new(self.0.events.subscribe());
        Box::pin(stream.map(|event| event.unwrap_or(RuntimeEvent::Resync)))
    }

    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        self.0.with("stats", id, |container| match container.state {
            ContainerState::Running { .. } => {
                Ok(ContainerStats { memory_usage_bytes: 1 << 20, pids: 1, ..ContainerStats::default() })
            }
            _ => Err(RuntimeError::WrongState { id: id.clone(), actual: "not running", needed: "running" }),
        })
    }
}

struct Control(Mutex<Option<oneshot::Sender<i32>>>);

#[async_trait]
impl ExecControl for Control {
    async fn resize(&self, _: u16, _: u16) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        if let Some(kill) = self.0.lock().take() {
            let _ = kill.send(signal); // It ended by itself.
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;

    struct Fixture(Fake);

    #[async_trait]
    impl suite::Fixture for Fixture {
        async fn runtime(&self) -> Arc<dyn Runtime> {
            Arc::new(self.0.clone())
        }
        fn log_dir(&self) -> std::path::PathBuf {
            "/nowhere".into()
        }
    }

    #[tokio::test]
    async fn it_passes_the_suite() {
        let fixture = Fixture(Fake::new(World::real()));
        suite::run(&fixture).await;
    }
}
