//! What one pod needs next: a function from its spec, what runs, what is remembered and the time.
//!
//! ```text
//!            ┌───────── set up (volumes, network, sandbox) ────────┐
//! accepted ──┤                                                     v
//!            │   init containers one by one; a sidecar only has to have started
//!            │                                                     v
//!            │   running: every app container; restarts by policy, with back-off
//!            │                          │ all ended for good       │ deleted, or past its deadline
//!            │                          v                          v
//!            │                      finished                  terminating: apps, then sidecars last to first
//!            └─ deleted ─────────────── │ ── deleted ────────────> │ nothing runs
//!                                       └────────> tear down ──> delete from the API
//! ```
//! The rules are upstream's `computePodActions` (`pkg/kubelet/kuberuntime/kuberuntime_manager.go`), its sidecars
//! (KEP-753) and `pkg/kubelet/pod_workers.go`. What must hold: the same input gives the same plan; an action that was
//! not carried out is planned again; nothing is started in a pod that is on its way out.
//!
//! [`Memory`] is the only thing changed here: back-off, the stages of stopping, which hooks were asked for.

mod ending;
pub mod memory;
pub mod status;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use kedge_runtimes::{ContainerId, ContainerState, Exit, ObservedContainer};

use crate::events::{Ending, Happening, pod_words};

pub use memory::{ContainerMemory, Hook, ImageState, Memory, Problem, SetUp, Stopping};

const GRACE_DEFAULT_SECONDS: i64 = 30;
/// The code of a container whose end nobody saw (`ContainerStatusUnknown`).
pub const LOST_CODE: i32 = 137;

/// One step for the worker to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make volumes, network and sandbox.
    SetUp,
    /// Find out whether the container's image is there, getting it if the policy says so.
    EnsureImage {
        /// The container's name.
        container: String,
    },
    /// Make and start a container.
    Start {
        /// Its name.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Run the postStart hook of a container that just started.
    PostStart {
        /// Its name.
        container: String,
        /// The run.
        id: ContainerId,
    },
    /// Run the preStop hook of a container that is to stop.
    PreStop {
        /// Its name.
        container: String,
        /// The run.
        id: ContainerId,
    },
    /// Send a signal.
    Signal {
        /// To whom.
        id: ContainerId,
        /// Which.
        signal: i32,
    },
    /// Remove the record of a run that nothing asks about any more.
    Forget {
        /// Which.
        id: ContainerId,
    },
    /// Give back the network of a pod that has ended; what it left stays until it is deleted.
    ReleaseNetwork,
    /// Remove sandbox, network and volumes.
    TearDown,
    /// Tell the API that the pod is gone.
    Delete,
}

/// What to do, what to say, and when to look again at the latest.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// The pod's status.
    pub status: PodStatus,
    /// What is worth an event, each with the container it is about; told once.
    pub happenings: Vec<(Option<String>, Happening)>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Duration>,
}

/// What the plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// The runtime's containers of this pod.
    pub observed: &'a [ObservedContainer],
    /// Whether the runtime has the pod's sandbox.
    pub sandbox: bool,
    /// What the wall clock says, to be shown; it may jump.
    pub wall: Timestamp,
    /// Now, by the clock that never jumps: everything that is waited for.
    pub now: Duration,
    /// What status texts need of the node.
    pub node: &'a status::NodeFacts,
}

/// Makes the plan.
pub fn plan(input: &Input<'_>, memory: &mut Memory) -> Plan {
    let empty = PodSpec::default();
    let spec = input.pod.spec.as_ref().unwrap_or(&empty);
    let mut planner = Planner { input, spec, memory, actions: Vec::new(), happenings: Vec::new(), wake_at: None };
    planner.note_deadline();
    let deleted = input.pod.metadata.deletion_timestamp.is_some();
    // What ended stays ended, also when the runtime has lost every record of it.
    if deleted || planner.memory.failed.is_some() || is_over(input.pod.status.as_ref()) {
        planner.terminate(deleted);
    } else if planner.finished() {
        planner.stop_sidecars();
    } else {
        planner.go_on();
    }
    planner.forget_old_runs();
    let (mut actions, happenings, wake_at) = (planner.actions, planner.happenings, planner.wake_at);
    let status = status::pod_status(input, memory);
    // Others may have its address and its ports of the host from now on (`SyncTerminatingPod` stops the sandbox).
    let has_network = spec.host_network != Some(true) && !memory.network_released;
    if has_network && !deleted && is_over(Some(&status)) && !input.observed.iter().any(is_running) {
        actions.push(Action::ReleaseNetwork);
    }
    Plan { actions, status, happenings, wake_at }
}

struct Planner<'a, 'm> {
    input: &'a Input<'a>,
    spec: &'a PodSpec,
    memory: &'m mut Memory,
    actions: Vec<Action>,
    happenings: Vec<(Option<String>, Happening)>,
    wake_at: Option<Duration>,
}

/// Whether a pod has ended for good.
pub fn is_over(status: Option<&PodStatus>) -> bool {
    matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether an init container runs beside the apps.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The latest run of a container.
pub fn latest<'a>(observed: &'a [ObservedContainer], name: &str) -> Option<&'a ObservedContainer> {
    observed.iter().filter(|container| container.name == name).max_by_key(|container| container.attempt)
}

/// How a run ended, or would have if somebody had seen it; `None` while it goes on.
pub fn ended(container: &ObservedContainer) -> Option<Exit> {
    match &container.state {
        ContainerState::Exited(exit) => Some(exit.clone()),
        ContainerState::Lost { started_at, ended_at } => Some(Exit {
            code: LOST_CODE,
            oom: false,
            started_at: *started_at,
            finished_at: ended_at.or(*started_at).unwrap_or(container.created_at),
            message: None,
        }),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}

fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// The pod's restart policy.
pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `code` runs again.
fn restarts(spec: &PodSpec, container: &Container, is_init: bool, code: i32) -> bool {
    match (is_init, is_sidecar(container), restart_policy(spec)) {
        (true, true, _) => true,
        (true, false, policy) => code != 0 && policy != "Never",
        (false, _, "Always") => true,
        (false, _, "OnFailure") => code != 0,
        (false, _, _) => false,
    }
}

impl<'a> Planner<'a, '_> {
    fn latest(&self, name: &str) -> Option<&'a ObservedContainer> {
        latest(self.input.observed, name)
    }

    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    /// `activeDeadlineSeconds` turns a pod into a failed one for good.
    fn note_deadline(&mut self) {
        let start = self.input.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        let (Some(seconds), Some(start)) = (self.spec.active_deadline_seconds, start) else { return };
        if self.memory.failed.is_some() || is_over(self.input.pod.status.as_ref()) || self.finished() {
            return;
        }
        // Once its start is known, only time that really passed counts. What had passed before this process saw it is
        // known by the wall clock alone, and is nothing when that says that the start is yet to come.
        let now = self.input.now;
        let first = || (now, Duration::try_from(self.input.wall.duration_since(start)).unwrap_or_default());
        let (seen, before) = *self.memory.active.get_or_insert_with(first);
        let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(before);
        let deadline = seen.saturating_add(left);
        if now < deadline {
            return self.wake(deadline);
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        let problem = Problem { reason: "DeadlineExceeded".into(), message };
        self.happenings.push((None, Happening::Overdue { problem: problem.clone() }));
        self.memory.failed = Some(problem);
    }

    fn inits(&self) -> &'a [Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// Nothing of the pod will ever run again, sidecars aside.
    fn finished(&self) -> bool {
        let done = |container: &Container, is_init: bool| {
            let exit = self.latest(&container.name).and_then(ended);
            exit.filter(|exit| !restarts(self.spec, container, is_init, exit.code))
        };
        let failed_init = self.inits().iter().filter(|init| !is_sidecar(init));
        let mut failed_init = failed_init.filter_map(|init| done(init, true));
        if failed_init.any(|exit| exit.code != 0) {
            return true;
        }
        !self.spec.containers.is_empty() && self.spec.containers.iter().all(|app| done(app, false).is_some())
    }

    fn go_on(&mut self) {
        // After a restart of the agent, what ran before tells that there was a sandbox.
        let had_one = self.memory.set_up == SetUp::Done
            || self.memory.set_up == SetUp::NotDone && !self.input.observed.is_empty();
        if !self.input.sandbox && had_one {
            self.memory.set_up = SetUp::Lost;
            self.happenings.push((None, Happening::SandboxChanged));
        }
        if !self.input.sandbox || self.memory.set_up != SetUp::Done {
            match &self.memory.set_up {
                SetUp::Failed { retry_at, .. } if *retry_at > self.input.now => {
                    let at = *retry_at;
                    self.wake(at);
                }
                _ => self.actions.push(Action::SetUp),
            }
            return;
        }
        // Once an app has run, the beginning is over, whatever records of it are left.
        let apps_began = self.spec.containers.iter().any(|app| self.latest(&app.name).is_some());
        for init in self.inits() {
            let done = self.keep_init(init, apps_began);
            if !done && !apps_began {
                return;
            }
        }
        for app in &self.spec.containers {
            self.keep(app, false);
        }
    }

    /// Carries one init container on; tells whether the next may begin.
    fn keep_init(&mut self, init: &'a Container, apps_began: bool) -> bool {
        if is_sidecar(init) {
            self.keep(init, true);
            let memory = self.memory.of(&init.name);
            let started = memory.probes.as_ref().is_some_and(crate::probe::Probes::started);
            return self.latest(&init.name).is_some_and(is_running) && started && self.hook_done(init);
        }
        if apps_began {
            return true;
        }
        if self.latest(&init.name).and_then(ended).is_some_and(|exit| exit.code == 0) {
            return true;
        }
        self.keep(init, true);
        false
    }

    fn hook_done(&mut self, container: &Container) -> bool {
        let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        !has_hook || self.memory.of(&container.name).post_start == Hook::Done
    }

    /// Carries one container on: starts it, watches it, stops it when it is condemned, starts it again.
    fn keep(&mut self, container: &'a Container, is_init: bool) {
        match self.latest(&container.name) {
            None => self.start(container, 0),
            Some(run) if is_running(run) => self.tend(container, run),
            Some(run) => match ended(run) {
                // Created and never started: a server that died in between, or a start that is still going on.
                None => self.start(container, run.attempt),
                Some(exit) if restarts(self.spec, container, is_init, exit.code) => {
                    self.restart(container, run.attempt + 1);
                }
                Some(_) => {}
            },
        }
    }

    fn tend(&mut self, container: &'a Container, run: &'a ObservedContainer) {
        let (now, wall) = (self.input.now, self.input.wall);
        let ContainerState::Running { started_at, .. } = run.state else { return };
        let has_post_start = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let memory = self.memory.of(&container.name);
        if memory.probes.as_ref().is_none_or(|probes| probes.started_at() != started_at) {
            // After a restart of the agent everything is probed anew; a hook that ran before is not run again.
            let ago = wall.duration_since(started_at);
            memory.probes = Some(crate::probe::Probes::new(container, started_at, ago, now));
        }
        let post_start = memory.post_start.clone();
        let hash = run.annotations.get(crate::container::SPEC_HASH);
        let changed = hash.is_some_and(|hash| *hash != crate::container::spec_hash(container));
        let (condemned, wake_at) = memory.probes.as_ref().map_or((None, None), |p| (p.condemned_by(), p.wake_at()));
        let because = match (condemned, &post_start) {
            (Some(kind), _) => Some(Ending::Probe(kind)),
            (None, Hook::Failed(_)) => Some(Ending::PostStart),
            (None, _) if changed => Some(Ending::Changed),
            (None, _) => None,
        };
        if let Some(because) = because {
            let own = condemned.and_then(|kind| kind.of(container)?.termination_grace_period_seconds);
            let grace = own.or(self.spec.termination_grace_period_seconds).unwrap_or(GRACE_DEFAULT_SECONDS);
            return self.stop(container, run, grace, because);
        }
        if has_post_start && post_start == Hook::NotRun {
            self.memory.of(&container.name).post_start = Hook::Running;
            self.actions.push(Action::PostStart { container: container.name.clone(), id: run.id.clone() });
        }
        if let Some(at) = wake_at {
            self.wake(at.max(now));
        }
    }

    fn start(&mut self, container: &Container, attempt: u32) {
        let now = self.input.now;
        let memory = self.memory.of(&container.name);
        if memory.busy {
            return; // The worker is at it already.
        }
        if let Some((_, retry_at)) = &memory.start_problem
            && *retry_at > now
        {
            let at = *retry_at;
            return self.wake(at);
        }
        match &memory.image {
            ImageState::Present { .. } => {
                self.actions.push(Action::Start { container: container.name.clone(), attempt });
            }
            ImageState::Missing { retry_at, .. } if *retry_at > now => {
                let at = *retry_at;
                self.wake(at);
            }
            ImageState::Unknown | ImageState::Missing { .. } => {
                self.actions.push(Action::EnsureImage { container: container.name.clone() });
            }
        }
    }

    fn restart(&mut self, container: &Container, attempt: u32) {
        let now = self.input.now;
        let memory = self.memory.of(&container.name);
        if memory.busy {
            return;
        }
        let failed_at = match memory.end_seen {
            Some((of, at)) if of == attempt => at,
            _ => memory.end_seen.insert((attempt, now)).1,
        };
        // Counted once for each run that ended, however often its start is planned again.
        if memory.counted_attempt != Some(attempt) {
            if let Some(until) = memory.backoff.until(failed_at, now) {
                if memory.waiting_until.replace(until) != Some(until) {
                    let (name, pod) = (container.name.clone(), pod_words(self.input.pod));
                    let happening = Happening::RestartBackOff { container: name.clone(), pod };
                    self.happenings.push((Some(name), happening));
                }
                return self.wake(until);
            }
            memory.backoff.next(failed_at, now);
            memory.counted_attempt = Some(attempt);
            memory.image = ImageState::Unknown;
            memory.reset_run();
        }
        self.start(container, attempt);
    }

    /// The last run and the one before are shown; older records go.
    fn forget_old_runs(&mut self) {
        for container in self.input.observed {
            let newest = self.latest(&container.name).map_or(0, |run| run.attempt);
            if container.attempt + 1 < newest && ended(container).is_some() {
                self.actions.push(Action::Forget { id: container.id.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests;
