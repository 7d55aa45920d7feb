//! How containers end: the hook, the signal, the kill; apps first, then sidecars last to first.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use kedge_runtimes::ObservedContainer;

use super::memory::{Hook, SetUp, Stopping};
use super::{Action, Ending, GRACE_DEFAULT_SECONDS, Happening, Planner, is_running, is_sidecar};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// What a container gets after its preStop hook, however long that took (`minimumGracePeriodInSeconds`).
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

impl Planner<'_, '_> {
    /// Moves a running container one stage on: hook, asked to end, killed.
    pub(super) fn stop(&mut self, container: &Container, run: &ObservedContainer, grace_seconds: i64, because: Ending) {
        let now = self.input.now;
        let grace_end = now.saturating_add(Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0)));
        let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
        let memory = self.memory.of(&container.name);
        let stop_signal = memory.stop_signal.unwrap_or(SIGTERM);
        let first = memory.stopping.as_ref().is_none_or(|stopping| stopping.id != run.id);
        if first {
            let pre_stop = if has_hook && grace_seconds > 0 { Hook::Running } else { Hook::Done };
            if pre_stop == Hook::Running {
                self.actions.push(Action::PreStop { container: container.name.clone(), id: run.id.clone() });
            }
            let id = run.id.clone();
            let stopping = Stopping { id, because, pre_stop, asked: false, kill_at: grace_end, grace_seconds };
            memory.stopping = Some(stopping);
            let happening = Happening::Killing { container: container.name.clone(), because };
            self.happenings.push((Some(container.name.clone()), happening));
        }
        let Some(stopping) = &mut memory.stopping else { return };
        if grace_seconds < stopping.grace_seconds {
            // Deleted again with less patience.
            stopping.grace_seconds = grace_seconds;
            stopping.kill_at = stopping.kill_at.min(grace_end);
        }
        let hook_over = !matches!(stopping.pre_stop, Hook::Running) || stopping.kill_at <= now;
        if hook_over && !stopping.asked {
            stopping.asked = true;
            if has_hook && stopping.grace_seconds > 0 {
                stopping.kill_at = stopping.kill_at.max(now + GRACE_AFTER_HOOK);
            }
            if stopping.grace_seconds > 0 {
                self.actions.push(Action::Signal { id: run.id.clone(), signal: stop_signal });
            }
        }
        let kill_at = stopping.kill_at;
        if kill_at <= now {
            self.actions.push(Action::Signal { id: run.id.clone(), signal: SIGKILL });
        } else {
            self.wake(kill_at);
        }
    }

    /// Stops everything, apps first; when nothing runs, takes the pod down.
    pub(super) fn terminate(&mut self, deleted: bool) {
        let asked = self.input.pod.metadata.deletion_grace_period_seconds.filter(|_| deleted);
        let grace = asked.or(self.spec.termination_grace_period_seconds).unwrap_or(GRACE_DEFAULT_SECONDS);
        let mut apps_run = false;
        let plain_inits = self.inits().iter().filter(|init| !is_sidecar(init));
        for container in self.spec.containers.iter().chain(plain_inits) {
            if let Some(run) = self.latest(&container.name).filter(|run| is_running(run)) {
                apps_run = true;
                self.stop(container, run, grace, Ending::Pod);
            }
        }
        let sidecars_run = !apps_run && self.stop_sidecars_within(grace);
        if apps_run || sidecars_run || !deleted {
            return;
        }
        if self.input.sandbox || !self.input.observed.is_empty() || self.memory.set_up != SetUp::NotDone {
            self.actions.push(Action::TearDown);
        } else {
            self.actions.push(Action::Delete);
        }
    }

    pub(super) fn stop_sidecars(&mut self) {
        let grace = self.spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT_SECONDS);
        self.stop_sidecars_within(grace);
    }

    /// One after the other, the last that started first; tells whether one still runs.
    fn stop_sidecars_within(&mut self, grace: i64) -> bool {
        for sidecar in self.inits().iter().rev().filter(|init| is_sidecar(init)) {
            if let Some(run) = self.latest(&sidecar.name).filter(|run| is_running(run)) {
                self.stop(sidecar, run, grace, Ending::Pod);
                return true;
            }
        }
        false
    }
}
