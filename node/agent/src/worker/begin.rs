//! Begins steps beside the loop, each once; they come back as an [`Outcome`].

use std::sync::Arc;

use kedge_client::{Panicked, caught};
use kedge_runtimes::{ContainerId, ContainerState, ObservedContainer, RuntimeError};

use super::{OBSERVE_PAUSE, Outcome, REFRESH, SetUpDone, Worker, steps};
use crate::agent::Shared;
use crate::events::{self, Happening};
use crate::plan::{self, Action, ImageState, Problem, SetUp};
use crate::probe::Answer;

impl Worker {
    pub(super) fn begin_probes(&mut self, observed: &[ObservedContainer]) {
        let now = self.shared.world.clock.monotonic();
        let names: Vec<String> = self.memory.containers.keys().cloned().collect();
        for name in names {
            let (Some(run), Some(container)) = (plan::latest(observed, &name), self.container(&name)) else { continue };
            if !matches!(run.state, ContainerState::Running { .. }) {
                continue;
            }
            let own = self.memory.of(&name);
            // A container on its way out is asked nothing any more.
            let Some(probes) = own.probes.as_mut().filter(|_| own.stopping.is_none()) else { continue };
            let started_at = probes.started_at();
            for kind in probes.due(now) {
                let Some(probe) = kind.of(&container).cloned() else { continue };
                let (id, name, container) = (run.id.clone(), name.clone(), container.clone());
                let ip = self.memory.pod_ips.first().cloned().unwrap_or_default();
                let said = name.clone();
                let panicked = move |text| Outcome::Probe(said, kind, started_at, Answer::Unknown(text));
                self.step(panicked, async move |shared| {
                    let answer = shared.target(&id, &container, &ip).probe(&probe).await;
                    Outcome::Probe(name, kind, started_at, answer)
                });
            }
        }
    }

    /// Runs a step beside the loop. One that panics comes back as what `panicked` makes of its text: a step without an
    /// outcome would count as under way for ever.
    fn step<F>(&self, panicked: impl FnOnce(String) -> Outcome + Send + 'static, work: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (sender, work) = (self.outcome_sender.clone(), work(self.shared.clone()));
        let pod = self.id.name.clone();
        tokio::spawn(async move {
            let outcome = match caught(work).await {
                Ok(outcome) => outcome,
                Err(Panicked(text)) => {
                    tracing::error!(pod, panic = text, "a step of the pod panicked");
                    tokio::time::sleep(OBSERVE_PAUSE).await;
                    panicked(format!("internal error: {text}"))
                }
            };
            let _ = sender.send(outcome); // A worker that has ended wants no news.
        });
    }

    pub(super) fn begin(&mut self, action: Action, observed: &[ObservedContainer]) {
        match action {
            Action::SetUp => self.begin_set_up(),
            Action::EnsureImage { container } => self.begin_image(container),
            Action::Start { container, attempt } => self.begin_start(&container, attempt, observed),
            Action::PostStart { container, id } => self.begin_hook(container, id, true),
            Action::PreStop { container, id } => self.begin_hook(container, id, false),
            Action::Signal { id, signal } => {
                self.begin_plain(format!("signal {id} {signal}"), async move |shared: Arc<Shared>| {
                    shared.runtime.kill_container(&id, signal).await
                });
            }
            Action::Forget { id } => {
                self.begin_plain(format!("forget {id}"), async move |shared: Arc<Shared>| {
                    shared.runtime.remove_container(&id).await
                });
            }
            Action::ReleaseNetwork => {
                if !self.is_making() && self.busy.insert("release-network".to_owned()) {
                    let id = self.id.clone();
                    self.step(
                        |text| Outcome::NetworkReleased(Err(text)),
                        async move |shared| {
                            let result = shared.network.teardown(&id).await.map_err(|error| error.to_string());
                            pause_if_failed(&result).await;
                            Outcome::NetworkReleased(result)
                        },
                    );
                }
            }
            Action::TearDown => {
                if !self.is_making() && self.busy.insert("tear-down".to_owned()) {
                    let (id, pod) = (self.id.clone(), self.pod.clone());
                    self.step(
                        |text| Outcome::TornDown(Err(text)),
                        async move |shared| {
                            let result = steps::tear_down(&shared, &id, &pod).await;
                            pause_if_failed(&result).await;
                            Outcome::TornDown(result)
                        },
                    );
                }
            }
            Action::Delete => self.say.send_modify(|said| said.1 = true),
        }
    }

    /// Whether something of the pod is still being made: it would be made again behind the back of who takes it away.
    /// Its end wakes the loop.
    fn is_making(&self) -> bool {
        let busy = self.busy.contains("set-up") || self.busy.contains("refresh");
        busy || self.memory.containers.values().any(|own| own.busy)
    }

    fn begin_plain<F>(&mut self, name: String, work: impl FnOnce(Arc<Shared>) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), RuntimeError>> + Send + 'static,
    {
        if self.busy.insert(name.clone()) {
            let work = work(self.shared.clone());
            let step = name.clone();
            let panicked = move |text| Outcome::Plain(step, Err(text));
            self.step(panicked, async move |_| {
                let result = work.await;
                pause_if_failed(&result).await;
                Outcome::Plain(name, result.map_err(|error| error.to_string()))
            });
        }
    }

    fn begin_set_up(&mut self) {
        if self.busy.insert("set-up".to_owned()) {
            let (id, pod, known) = (self.id.clone(), self.pod.clone(), self.sources.clone());
            self.step(
                |text| Outcome::SetUp(Err(panicked_problem(text))),
                async move |shared| {
                    let done = steps::set_up(&shared, &id, &pod, known).await;
                    Outcome::SetUp(done.map(|(ips, volumes, sources)| SetUpDone { ips, volumes, sources }))
                },
            );
        }
    }

    fn begin_image(&mut self, name: String) {
        let Some(container) = self.container(&name) else { return };
        if !std::mem::replace(&mut self.memory.of(&name).busy, true) {
            let pod = self.pod.clone();
            let said = name.clone();
            self.step(
                |text| Outcome::Image(said, Err(panicked_problem(text))),
                async move |shared| {
                    let result = steps::ensure_image(&shared, &pod, &container).await;
                    Outcome::Image(name, result)
                },
            );
        }
    }

    fn begin_start(&mut self, name: &str, attempt: u32, observed: &[ObservedContainer]) {
        let Some(container) = self.container(name) else { return };
        let exists = observed.iter().any(|run| run.name == name && run.attempt == attempt);
        let image = match &self.memory.of(name).image {
            ImageState::Present { id } => id.clone(),
            ImageState::Unknown | ImageState::Missing { .. } => return, // The plan looks for it first.
        };
        if std::mem::replace(&mut self.memory.of(name).busy, true) {
            return;
        }
        let (id, pod, volumes, known) = (self.id.clone(), self.pod.clone(), self.volumes.clone(), self.sources.clone());
        let (name, ips) = (name.to_owned(), self.memory.pod_ips.clone());
        let said = name.clone();
        self.step(
            |text| Outcome::Started(said, Err(panicked_problem(text))),
            async move |shared| {
                let (volumes, ips) = (&volumes, &ips);
                let start =
                    steps::Start { id: &id, pod: &pod, container: &container, image: &image, attempt, volumes, ips };
                Outcome::Started(name, steps::start(&shared, &start, known, exists).await)
            },
        );
    }

    fn begin_hook(&mut self, name: String, id: ContainerId, post_start: bool) {
        let Some(container) = self.container(&name) else { return };
        let lifecycle = container.lifecycle.clone().unwrap_or_default();
        let (hook, word) =
            if post_start { (lifecycle.post_start, "post-start") } else { (lifecycle.pre_stop, "pre-stop") };
        let Some(hook) = hook else { return };
        if !self.busy.insert(format!("{word} {id}")) {
            return;
        }
        let (ip, pod) = (self.memory.pod_ips.first().cloned().unwrap_or_default(), self.pod.clone());
        let outcome = move |name, id, result| {
            if post_start { Outcome::PostStart(name, id, result) } else { Outcome::PreStop(name, id, result) }
        };
        let (said, said_id) = (name.clone(), id.clone());
        self.step(
            move |text| outcome(said, said_id, Err(text)),
            async move |shared| {
                let (result, fell_back) = shared.target(&id, &container, &ip).hook(&hook).await;
                if fell_back {
                    shared.tell(&pod, Some(&name), &Happening::HookFellBack);
                }
                if let Err(error) = &result {
                    tracing::warn!(container = %name, hook = word, error, "hook failed");
                }
                outcome(name, id, result)
            },
        );
    }

    /// Brings volumes up to date with the objects they show.
    pub(super) fn refresh(&mut self) {
        self.refresh_at = self.refresh_at.map(|_| self.shared.world.clock.monotonic() + REFRESH);
        let leaving = self.pod.metadata.deletion_timestamp.is_some() || self.busy.contains("tear-down");
        if leaving || self.memory.set_up != SetUp::Done {
            return;
        }
        if !self.busy.insert("refresh".to_owned()) {
            self.refresh_again = true;
            return;
        }
        let (id, pod, known) = (self.id.clone(), self.pod.clone(), self.sources.clone());
        let ips = self.memory.pod_ips.clone();
        let before = self.sources.clone();
        self.step(
            |_| Outcome::Refreshed(before),
            async move |shared| match steps::refresh(&shared, &id, &pod, known.clone(), &ips).await {
                Ok((_, sources)) => Outcome::Refreshed(sources),
                Err(problem) => {
                    tracing::warn!(pod = %id.name, message = %problem.message, "volumes stay as they are");
                    shared.tell(&pod, None, &events::without_sandbox(&problem));
                    Outcome::Refreshed(known)
                }
            },
        );
    }
}

/// A step that nobody thought of ended with a panic.
fn panicked_problem(text: String) -> Problem {
    Problem { reason: "InternalError".to_owned(), message: text }
}

/// What fails is planned again at once; this keeps it from being a loop.
async fn pause_if_failed<E>(result: &Result<(), E>) {
    if result.is_err() {
        tokio::time::sleep(OBSERVE_PAUSE).await;
    }
}
