//! One task for each pod: observe, plan, carry out; and another that tells the API.
//!
//! The loop wakes for any reason (the pod changed, something in the runtime happened, a step ended, it is time) and is
//! told nothing: it looks at everything again. Steps that take time run beside it and come back as an [`Outcome`], so a
//! slow image never holds up a deletion. The API is told by a task of its own, the latest status only, for as long as
//! it takes; a pod runs the same whether it answers or not.

mod begin;
mod steps;
mod tell;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use kedge_client::{Panicked, caught};
use kedge_runtimes::{ContainerId, ContainerState, ObservedContainer, PodId, PodUid, RuntimeError};
use tokio::sync::{mpsc, watch};

use crate::agent::Shared;
use crate::cache::{CachedPod, Notes};
use crate::container::VolumePlace;
use crate::env::{ConfigError, Sources};
use crate::events::{self, Happening};
use crate::plan::{self, Hook, ImageState, Input, Memory, Problem, SetUp};
use crate::probe::{Answer, ProbeKind};

/// How old what volumes show of objects and tokens may get (`syncFrequency`).
const REFRESH: Duration = Duration::from_secs(60);
/// A failed set-up, image or start is tried again after this long, and then by its back-off.
const RETRY: Duration = Duration::from_secs(5);
const OBSERVE_PAUSE: Duration = Duration::from_secs(1);
/// After a panic; a pod whose own fields cause it does so every time.
const PANIC_PAUSE_MIN: Duration = Duration::from_secs(1);
const PANIC_PAUSE_MAX: Duration = Duration::from_secs(300);

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// The pod as the API has it now.
    Update(Box<Pod>),
    /// The API does not have it any more.
    Gone,
    /// Something of it happened in the runtime.
    Look,
}

/// What came of a step.
#[derive(Debug)]
enum Outcome {
    SetUp(Result<SetUpDone, Problem>),
    Image(String, Result<String, Problem>),
    Started(String, Result<(), Problem>),
    PostStart(String, ContainerId, Result<(), String>),
    PreStop(String, ContainerId, Result<(), String>),
    Probe(String, ProbeKind, jiff::Timestamp, Answer),
    Refreshed(Sources),
    NetworkReleased(Result<(), String>),
    TornDown(Result<(), String>),
    Plain(String, Result<(), String>),
    Deleted,
}

#[derive(Debug)]
struct SetUpDone {
    ips: Vec<String>,
    volumes: BTreeMap<String, VolumePlace>,
    sources: Sources,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    /// Whose, as the API has it.
    pub pod: Arc<Pod>,
    /// Whether it has ended and nothing of it runs: it takes up nothing of the node.
    is_at_rest: Arc<AtomicBool>,
    commands: mpsc::UnboundedSender<Command>,
    task: tokio::task::JoinHandle<()>,
}

impl Handle {
    /// Tells it something.
    pub fn tell(&self, command: Command) {
        let _ = self.commands.send(command); // A worker that has ended needs no telling.
    }

    /// Whether its pod has ended and nothing of it runs.
    pub fn is_at_rest(&self) -> bool {
        self.is_at_rest.load(Ordering::Relaxed)
    }

    /// Whether its pod is gone for good.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// The pod's id, if it has all of one.
pub fn pod_id(pod: &Pod) -> Option<PodId> {
    let meta = &pod.metadata;
    let uid = PodUid::new(meta.uid.clone()?).ok()?;
    Some(PodId { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid })
}

/// Starts a worker. `known` are the objects that were cached with the pod.
pub(crate) fn spawn(shared: Arc<Shared>, id: PodId, pod: Pod, known: Sources) -> Handle {
    let (commands, receiver) = mpsc::unbounded_channel();
    let (say, said) = watch::channel((None, false));
    let (outcome_sender, outcomes) = mpsc::unbounded_channel();
    tokio::spawn(tell::tell_api(shared.clone(), id.clone(), said, outcome_sender.clone()));
    let memory = Memory { start_time: Some(shared.world.clock.wall()), ..Memory::default() };
    let is_at_rest = Arc::new(AtomicBool::new(plan::is_over(pod.status.as_ref())));
    let handed = Arc::new(pod.clone());
    let notes = Notes::of(shared.cache.clone(), id.uid.clone());
    let worker = Worker {
        shared,
        notes,
        id,
        pod,
        is_at_rest: is_at_rest.clone(),
        memory,
        sources: known,
        volumes: BTreeMap::new(),
        refresh_at: None,
        refresh_again: false,
        logged: HashMap::new(),
        busy: HashSet::new(),
        commands: receiver,
        outcomes,
        outcome_sender,
        say,
    };
    Handle { pod: handed, is_at_rest, commands, task: tokio::spawn(worker.run_for_good()) }
}

struct Worker {
    shared: Arc<Shared>,
    /// What a start without the API needs.
    notes: Notes,
    id: PodId,
    pod: Pod,
    is_at_rest: Arc<AtomicBool>,
    memory: Memory,
    sources: Sources,
    volumes: BTreeMap<String, VolumePlace>,
    /// When volumes are brought up to date next; none while the pod has none of our making.
    refresh_at: Option<Duration>,
    /// Something changed while they were brought up to date: once more after that.
    refresh_again: bool,
    /// What was last written to the log about each thing that is tried again and again.
    logged: HashMap<String, String>,
    /// Steps under way; the plan asks for them again, and they are not begun twice.
    busy: HashSet<String>,
    commands: mpsc::UnboundedReceiver<Command>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    outcome_sender: mpsc::UnboundedSender<Outcome>,
    /// The status to tell the API, and whether the pod is to be deleted there after it.
    say: watch::Sender<(Option<PodStatus>, bool)>,
}

impl Worker {
    /// Runs until the pod is over. What nobody thought of ends neither the worker nor what it knows: it goes on from
    /// what it sees, after a pause that grows.
    async fn run_for_good(mut self) {
        let mut pause = PANIC_PAUSE_MIN;
        while let Err(Panicked(text)) = caught(self.run()).await {
            tracing::error!(pod = %self.id.name, namespace = %self.id.namespace, panic = text, "the work on the pod panicked");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PANIC_PAUSE_MAX);
        }
    }

    async fn run(&mut self) {
        loop {
            let (observed, sandbox) = match self.observe().await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(pod = %self.id.name, %error, "cannot see the pod's containers");
                    tokio::time::sleep(OBSERVE_PAUSE).await;
                    continue;
                }
            };
            self.read_termination_messages(&observed);
            let (wall, now) = (self.shared.world.clock.wall(), self.shared.world.clock.monotonic());
            let input = Input { pod: &self.pod, observed: &observed, sandbox, wall, now, node: &self.shared.facts() };
            let plan = plan::plan(&input, &mut self.memory);
            self.pod.status = Some(plan.status.clone());
            let runs = observed.iter().any(|run| matches!(run.state, ContainerState::Running { .. }));
            self.is_at_rest.store(!runs && plan::is_over(self.pod.status.as_ref()), Ordering::Relaxed);
            self.say.send_if_modified(|said| {
                let changed = said.0.as_ref() != Some(&plan.status);
                said.0 = Some(plan.status.clone());
                changed
            });
            for (container, happening) in &plan.happenings {
                self.shared.tell(&self.pod, container.as_deref(), happening);
            }
            for action in plan.actions {
                self.begin(action, &observed);
            }
            self.begin_probes(&observed);
            if self.refresh_at.is_some_and(|at| at <= now) {
                self.refresh();
            }
            let wake = plan.wake_at.into_iter().chain(self.refresh_at).min().map(|at| at.saturating_sub(now));
            if !self.wait(wake).await {
                return;
            }
        }
    }

    async fn observe(&self) -> Result<(Vec<ObservedContainer>, bool), RuntimeError> {
        let all = self.shared.runtime.observe().await?;
        let containers = all.containers.into_iter().filter(|container| container.pod.uid == self.id.uid).collect();
        Ok((containers, all.sandboxes.iter().any(|sandbox| sandbox.spec.pod.uid == self.id.uid)))
    }

    /// Waits for anything to happen, and takes all of it in; false when the pod is over.
    async fn wait(&mut self, wake: Option<Duration>) -> bool {
        let timer = async {
            match wake {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => match command {
                Some(command) => self.obey(command),
                None => return false, // The agent is gone; containers go on without us.
            },
            Some(outcome) = self.outcomes.recv() => if !self.take_in(outcome) { return false },
            () = timer => {}
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        while let Ok(outcome) = self.outcomes.try_recv() {
            if !self.take_in(outcome) {
                return false;
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Look => {}
            Command::Update(pod) => {
                let own = self.pod.status.take();
                let foreign = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
                self.pod = *pod;
                // What we said last is newer than what the API repeats; what others said there is theirs.
                if let Some(mut own) = own.filter(|own| own.phase.is_some()) {
                    let ours = own.conditions.take().unwrap_or_default();
                    let (mut kept, names) = (Vec::new(), plan::status::OWN_CONDITIONS);
                    kept.extend(foreign.into_iter().filter(|condition| !names.contains(&condition.type_.as_str())));
                    kept.extend(ours.into_iter().filter(|condition| names.contains(&condition.type_.as_str())));
                    own.conditions = Some(kept);
                    self.pod.status = Some(own);
                }
                self.remember();
                self.refresh();
            }
            Command::Gone => {
                if self.pod.metadata.deletion_timestamp.is_none() {
                    let now = self.shared.world.clock.wall();
                    self.pod.metadata.deletion_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
                }
            }
        }
    }

    /// Whether `text` is another thing than what was said of `what` last; none said is forgotten.
    fn is_news(&mut self, what: &str, text: Option<&str>) -> bool {
        let Some(text) = text else {
            self.logged.remove(what);
            return false;
        };
        self.logged.insert(what.to_owned(), text.to_owned()).as_deref() != Some(text)
    }

    /// False when the pod is over.
    fn take_in(&mut self, outcome: Outcome) -> bool {
        let now = self.shared.world.clock.monotonic();
        match outcome {
            Outcome::SetUp(result) => {
                self.busy.remove("set-up");
                let news = self.is_news("set-up", result.as_ref().err().map(|problem| problem.message.as_str()));
                match result {
                    Ok(done) => {
                        self.memory.set_up = SetUp::Done;
                        self.memory.pod_ips = done.ips;
                        (self.volumes, self.sources) = (done.volumes, done.sources);
                        self.refresh_at = self.volumes.values().any(|place| place.read_only).then(|| now + REFRESH);
                        self.remember();
                    }
                    Err(problem) => {
                        if news {
                            tracing::warn!(pod = %self.id.name, message = %problem.message, "the pod cannot be set up yet");
                        }
                        self.shared.tell(&self.pod, None, &events::without_sandbox(&problem));
                        self.memory.set_up = SetUp::Failed { problem, retry_at: now + RETRY };
                    }
                }
            }
            Outcome::Image(name, result) => {
                let image = self.container(&name).and_then(|container| container.image).unwrap_or_default();
                for happening in result.as_ref().err().map(|e| events::without_image(&image, e)).unwrap_or_default() {
                    self.shared.tell(&self.pod, Some(&name), &happening);
                }
                let own = self.memory.of(&name);
                own.busy = false;
                match result {
                    Ok(id) => own.image = ImageState::Present { id },
                    Err(mut problem) => {
                        let again = matches!(own.image, ImageState::Missing { .. });
                        own.image_backoff.next(now, now);
                        let retry_at = now + own.image_backoff.delay();
                        if again && problem.reason == "ErrImagePull" {
                            problem.reason = "ImagePullBackOff".to_owned();
                            problem.message =
                                format!("Back-off pulling image {image:?}: ErrImagePull: {}", problem.message);
                        }
                        own.image = ImageState::Missing { problem, retry_at };
                    }
                }
            }
            Outcome::Started(name, result) => {
                if let Err(problem) = &result {
                    let happening = Happening::NotStarted { error: problem.message.clone() };
                    self.shared.tell(&self.pod, Some(&name), &happening);
                }
                let own = self.memory.of(&name);
                own.busy = false;
                if result.is_err() {
                    // It may have gone meanwhile: looked for again before the next attempt.
                    own.image = ImageState::Unknown;
                }
                own.start_problem = result.err().map(|problem| (problem, now + RETRY));
            }
            Outcome::PostStart(name, id, result) => {
                self.busy.remove(&format!("post-start {id}"));
                if result.is_err() {
                    self.shared.tell(&self.pod, Some(&name), &Happening::PostStartFailed);
                }
                self.memory.of(&name).post_start = result.map_or_else(Hook::Failed, |()| Hook::Done);
            }
            Outcome::PreStop(name, id, result) => {
                self.busy.remove(&format!("pre-stop {id}"));
                if result.is_err() {
                    self.shared.tell(&self.pod, Some(&name), &Happening::PreStopFailed);
                }
                let stopping = self.memory.of(&name).stopping.as_mut().filter(|stopping| stopping.id == id);
                if let Some(stopping) = stopping {
                    stopping.pre_stop = result.map_or_else(Hook::Failed, |()| Hook::Done);
                }
            }
            Outcome::Probe(name, kind, started_at, answer) => self.take_in_probe(&name, kind, started_at, &answer),
            Outcome::Refreshed(sources) => {
                self.busy.remove("refresh");
                self.sources = sources;
                self.remember();
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh();
                }
            }
            Outcome::NetworkReleased(result) => {
                self.busy.remove("release-network");
                let news = self.is_news("release-network", result.as_ref().err().map(String::as_str));
                match result {
                    Ok(()) => self.memory.network_released = true,
                    Err(error) if news => {
                        tracing::warn!(pod = %self.id.name, error, "the network of a pod that ended is not given back yet");
                    }
                    Err(_) => {}
                }
            }
            Outcome::TornDown(result) => {
                self.busy.remove("tear-down");
                let news = self.is_news("tear-down", result.as_ref().err().map(String::as_str));
                match result {
                    Ok(()) => self.memory.set_up = SetUp::NotDone,
                    Err(error) => {
                        if news {
                            tracing::warn!(pod = %self.id.name, error, "the pod cannot be taken down yet");
                        }
                        self.shared.tell(&self.pod, None, &Happening::TearDownFailed { error });
                    }
                }
            }
            Outcome::Plain(step, result) => {
                // What went well is not done twice; a signal takes its time to show.
                let news = self.is_news(&step, result.as_ref().err().map(String::as_str));
                if let Err(error) = result {
                    if news {
                        tracing::warn!(pod = %self.id.name, step, error, "a step failed; it is planned again");
                    }
                    self.busy.remove(&step);
                }
            }
            Outcome::Deleted => {
                self.notes.remove();
                return false;
            }
        }
        true
    }

    fn take_in_probe(&mut self, name: &str, kind: ProbeKind, started_at: jiff::Timestamp, answer: &Answer) {
        let happening = events::of_probe(kind, answer);
        let said = happening.as_ref().map(|_| format!("{answer:?}"));
        let news = self.is_news(&format!("{} {name}", kind.as_str()), said.as_deref());
        if let Some(happening) = happening {
            if news {
                tracing::info!(pod = %self.id.name, container = name, probe = kind.as_str(), ?answer, "a probe is not well");
            }
            self.shared.tell(&self.pod, Some(name), &happening);
        }
        let now = self.shared.world.clock.monotonic();
        let Some(container) = self.container(name) else { return };
        let Some(probe) = kind.of(&container) else { return };
        let probes = self.memory.of(name).probes.as_mut();
        if let Some(probes) = probes.filter(|probes| probes.started_at() == started_at) {
            probes.answer(kind, probe, answer, now);
        }
    }

    fn container(&self, name: &str) -> Option<Container> {
        let spec = self.pod.spec.as_ref()?;
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.find(|container| container.name == name).cloned()
    }

    /// Writes down what a start without the API needs.
    fn remember(&self) {
        let cached = CachedPod {
            pod: self.pod.clone(),
            config_maps: self.sources.config_maps.values().cloned().collect(),
            secrets: self.sources.secrets.values().cloned().collect(),
            services: self.sources.services.clone(),
        };
        self.notes.put(cached);
    }

    fn read_termination_messages(&mut self, observed: &[ObservedContainer]) {
        for run in observed {
            if plan::ended(run).is_none() || self.memory.of(&run.name).termination_message.contains_key(&run.id) {
                continue;
            }
            let policy = self.container(&run.name).and_then(|container| container.termination_message_policy);
            let failed = plan::ended(run).is_some_and(|exit| exit.code != 0);
            let message = steps::termination_message(run, policy.as_deref() == Some("FallbackToLogsOnError") && failed);
            self.memory.of(&run.name).termination_message.insert(run.id.clone(), message);
        }
    }
}

/// A configuration error in the kubelet's word.
fn config_problem(error: ConfigError) -> Problem {
    Problem { reason: "CreateContainerConfigError".to_owned(), message: error.0 }
}
