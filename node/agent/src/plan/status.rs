//! The words of a pod's status, as the kubelet says them.
//!
//! Rules: `pkg/kubelet/kubelet_pods.go` (getPhase, convertToAPIContainerStatuses), `pkg/kubelet/status/generate.go`,
//! `pkg/kubelet/container/sync_result.go`. Conditions that others own (readiness gates, disruption) are kept.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_runtimes::{ContainerState, ObservedContainer};

use super::memory::{ContainerMemory, Hook, ImageState, Memory, SetUp};
use super::{Input, LOST_CODE, ended, is_sidecar, latest, restart_policy};
use crate::resources::QosClass;

/// What a status says of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// The scheme of container ids.
    pub runtime_name: String,
    /// The node's addresses.
    pub host_ips: Vec<String>,
}

/// The conditions that the node owns.
pub(crate) const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The pod's status now.
pub fn pod_status(input: &Input<'_>, memory: &Memory) -> PodStatus {
    let empty = PodSpec::default();
    let spec = input.pod.spec.as_ref().unwrap_or(&empty);
    let old = input.pod.status.clone().unwrap_or_default();
    if super::is_over(Some(&old)) && input.observed.is_empty() {
        // Nothing is known of it but what was said of it.
        return PodStatus { observed_generation: input.pod.metadata.generation, ..old };
    }
    let inits: Vec<ContainerStatus> =
        spec.init_containers.iter().flatten().map(|init| container_status(input, spec, memory, init, true)).collect();
    let apps: Vec<ContainerStatus> =
        spec.containers.iter().map(|app| container_status(input, spec, memory, app, false)).collect();
    let terminating = input.pod.metadata.deletion_timestamp.is_some();
    let phase = match (&memory.failed, &old.phase) {
        // A pod that ended stays as it ended.
        (_, Some(phase)) if phase == "Failed" || phase == "Succeeded" => phase.clone(),
        (Some(_), _) if !any_runs(input) => "Failed".to_owned(),
        _ => phase(spec, &inits, &apps, terminating && !any_runs(input)).to_owned(),
    };
    let conditions = conditions(input, spec, memory, &old, &phase, &inits, &apps);
    let time = |at: Timestamp| Time(at);
    // A pod in the host's network has the host's addresses, whatever becomes of them.
    let is_in_host_network = spec.host_network == Some(true) && !memory.pod_ips.is_empty();
    let pod_ips = if is_in_host_network { &input.node.host_ips } else { &memory.pod_ips };
    PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        container_statuses: Some(apps),
        init_container_statuses: if inits.is_empty() { None } else { Some(inits) },
        host_ip: input.node.host_ips.first().cloned(),
        host_ips: Some(input.node.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: pod_ips.first().cloned().or(old.pod_ip.clone()),
        pod_ips: if pod_ips.is_empty() {
            old.pod_ips.clone()
        } else {
            Some(pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect())
        },
        start_time: old.start_time.clone().or(memory.start_time.map(time)),
        qos_class: Some(QosClass::of(spec).as_str().to_owned()),
        reason: memory.failed.as_ref().map(|problem| problem.reason.clone()).or(old.reason.clone()),
        message: memory.failed.as_ref().map(|problem| problem.message.clone()).or(old.message.clone()),
        observed_generation: input.pod.metadata.generation,
        ..old
    }
}

fn any_runs(input: &Input<'_>) -> bool {
    input.observed.iter().any(|run| matches!(run.state, ContainerState::Running { .. }))
}

/// `Pending`, `Running`, `Succeeded` or `Failed`. `over` says that nothing of a deleted pod runs or will.
fn phase(spec: &PodSpec, inits: &[ContainerStatus], apps: &[ContainerStatus], over: bool) -> &'static str {
    let terminated = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.clone());
    let last = |status: &ContainerStatus| status.last_state.as_ref().and_then(|state| state.terminated.clone());
    if over {
        let codes: Vec<i32> =
            apps.iter().filter_map(|app| terminated(app).or(last(app))).map(|end| end.exit_code).collect();
        let all_good = !codes.is_empty() && codes.len() == apps.len() && codes.iter().all(|code| *code == 0);
        return if all_good { "Succeeded" } else { "Failed" };
    }
    let policy = restart_policy(spec);
    let apps_began = apps.iter().any(|app| {
        app.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || last(app).is_some()
    });
    for (status, init) in inits.iter().zip(spec.init_containers.iter().flatten()) {
        if is_sidecar(init) {
            if status.started != Some(true) && !apps_began {
                return "Pending";
            }
            continue;
        }
        match terminated(status) {
            Some(end) if end.exit_code == 0 => {}
            Some(_) if policy == "Never" => return "Failed",
            _ if !apps_began => return "Pending",
            _ => {}
        }
    }
    let running = apps.iter().filter(|app| app.state.as_ref().is_some_and(|state| state.running.is_some())).count();
    let waiting = |app: &&ContainerStatus| app.state.as_ref().is_none_or(|state| state.waiting.is_some());
    if apps.iter().filter(waiting).any(|app| last(app).is_none()) {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    let all_ended = apps.iter().all(|app| terminated(app).is_some());
    let all_good = apps.iter().all(|app| terminated(app).is_some_and(|end| end.exit_code == 0));
    match policy {
        _ if apps.is_empty() => "Pending",
        "Always" => "Running",
        _ if all_ended && all_good => "Succeeded",
        "Never" if all_ended => "Failed",
        _ => "Running",
    }
}

fn container_status(
    input: &Input<'_>,
    spec: &PodSpec,
    memory: &Memory,
    container: &Container,
    is_init: bool,
) -> ContainerStatus {
    let default = ContainerMemory::default();
    let own = memory.containers.get(&container.name).unwrap_or(&default);
    let run = latest(input.observed, &container.name);
    let previous = run.and_then(|run| {
        let earlier = |other: &&ObservedContainer| other.name == run.name && other.attempt + 1 == run.attempt;
        input.observed.iter().find(earlier)
    });
    let last_end = |run: Option<&ObservedContainer>| run.and_then(|run| terminated(input, own, run));
    let goes_on = || {
        let exit = run.and_then(ended)?;
        Some(super::restarts(spec, container, is_init, exit.code) && !going_away(input, memory))
    };
    let (state, last_state) = match run.map(|run| &run.state) {
        Some(ContainerState::Running { started_at, .. }) => {
            let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
            (ApiState { running: Some(running), ..ApiState::default() }, last_end(previous))
        }
        Some(ContainerState::Exited(_) | ContainerState::Lost { .. }) if goes_on() != Some(true) => {
            (ApiState { terminated: last_end(run), ..ApiState::default() }, last_end(previous))
        }
        Some(ContainerState::Exited(_) | ContainerState::Lost { .. }) => match crash_loop(input, own, container) {
            Some(waiting) => (waiting_state(waiting.0, waiting.1), last_end(run)),
            // Between its end and its next start it is shown as it ended.
            None if waiting_reason(own).is_none() => {
                (ApiState { terminated: last_end(run), ..ApiState::default() }, last_end(previous))
            }
            None => {
                let (reason, message) = waiting_reason(own).unwrap_or_default();
                (waiting_state(reason, message), last_end(run))
            }
        },
        Some(ContainerState::Created) | None => {
            let (reason, message) = waiting_reason(own).unwrap_or_else(|| first_wait(input, spec, memory, is_init));
            (waiting_state(reason, message), last_end(previous))
        }
    };
    let probes = own.probes.as_ref().filter(|_| state.running.is_some());
    let hook_pending = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some())
        && own.post_start == Hook::Running;
    let started = probes.is_some_and(crate::probe::Probes::started) && !hook_pending;
    let completed_init = state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
    let ready = if is_init && !is_sidecar(container) {
        completed_init
    } else {
        started && probes.is_some_and(crate::probe::Probes::ready)
    };
    let scheme = &input.node.runtime_name;
    let shown = run.filter(|run| run.state != ContainerState::Created);
    let real = container.resources.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image: run.map_or_else(|| container.image.clone().unwrap_or_default(), |run| run.image.clone()),
        image_id: run.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: shown.or(previous).map(|run| format!("{scheme}://{}", run.id)),
        restart_count: run.map_or(0, |run| i32::try_from(run.attempt).unwrap_or(i32::MAX)),
        ready,
        started: Some(started),
        allocated_resources: real.requests.clone(),
        resources: Some(real),
        state: Some(state),
        last_state: last_state.map(|end| ApiState { terminated: Some(end), ..ApiState::default() }),
        ..ContainerStatus::default()
    }
}

fn going_away(input: &Input<'_>, memory: &Memory) -> bool {
    input.pod.metadata.deletion_timestamp.is_some() || memory.failed.is_some()
}

fn waiting_state(reason: String, message: Option<String>) -> ApiState {
    ApiState { waiting: Some(ContainerStateWaiting { reason: Some(reason), message }), ..ApiState::default() }
}

/// Why a container that never ran, or should run again, does not.
fn waiting_reason(own: &ContainerMemory) -> Option<(String, Option<String>)> {
    if let ImageState::Missing { problem, .. } = &own.image {
        return Some((problem.reason.clone(), Some(problem.message.clone())));
    }
    let (problem, _) = own.start_problem.as_ref()?;
    Some((problem.reason.clone(), Some(problem.message.clone())))
}

fn first_wait(input: &Input<'_>, spec: &PodSpec, memory: &Memory, is_init: bool) -> (String, Option<String>) {
    let initialized = spec.init_containers.iter().flatten().all(|init| init_is_done(input, memory, init));
    let has_inits = spec.init_containers.as_ref().is_some_and(|inits| !inits.is_empty());
    let reason = if has_inits && (is_init || !initialized) { "PodInitializing" } else { "ContainerCreating" };
    (reason.to_owned(), None)
}

fn init_is_done(input: &Input<'_>, memory: &Memory, init: &Container) -> bool {
    let Some(run) = latest(input.observed, &init.name) else { return false };
    if is_sidecar(init) {
        let probes = memory.containers.get(&init.name).and_then(|own| own.probes.as_ref());
        return matches!(run.state, ContainerState::Running { .. })
            && probes.is_some_and(crate::probe::Probes::started);
    }
    ended(run).is_some_and(|exit| exit.code == 0)
}

fn crash_loop(input: &Input<'_>, own: &ContainerMemory, container: &Container) -> Option<(String, Option<String>)> {
    own.waiting_until.filter(|until| input.now < *until)?;
    let meta = &input.pod.metadata;
    let message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(own.backoff.delay()),
        container.name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    );
    Some(("CrashLoopBackOff".to_owned(), Some(message)))
}

/// As Go prints durations of whole seconds: 10s, 1m20s, 5m0s.
fn go_duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn terminated(input: &Input<'_>, own: &ContainerMemory, run: &ObservedContainer) -> Option<ContainerStateTerminated> {
    let exit = ended(run)?;
    let lost = matches!(run.state, ContainerState::Lost { .. });
    let reason = match (&exit.message, exit.oom, exit.code) {
        _ if lost => "ContainerStatusUnknown",
        (Some(_), _, _) => "StartError",
        (None, true, _) => "OOMKilled",
        (None, false, 0) => "Completed",
        (None, false, _) => "Error",
    };
    let left = own.termination_message.get(&run.id).cloned();
    let message = if lost {
        Some("The container could not be located when the pod was terminated".to_owned())
    } else {
        exit.message.or(left).filter(|message| !message.is_empty())
    };
    debug_assert!(!lost || exit.code == LOST_CODE);
    Some(ContainerStateTerminated {
        exit_code: exit.code,
        reason: Some(reason.to_owned()),
        message,
        // Clients print an absent time as the year 1.
        started_at: Some(Time(exit.started_at.unwrap_or(exit.finished_at))),
        finished_at: Some(Time(exit.finished_at)),
        container_id: Some(format!("{}://{}", input.node.runtime_name, run.id)),
        signal: None,
    })
}

#[allow(clippy::too_many_arguments, reason = "everything that a condition may speak of, once")]
fn conditions(
    input: &Input<'_>,
    spec: &PodSpec,
    memory: &Memory,
    old: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let old_conditions = old.conditions.as_deref().unwrap_or_default();
    let apps_began = apps
        .iter()
        .any(|app| app.state.as_ref().is_some_and(|state| state.waiting.is_none()) || app.last_state.is_some());
    let incomplete: Vec<&str> = inits
        .iter()
        .zip(spec.init_containers.iter().flatten())
        .filter(|(status, init)| if is_sidecar(init) { status.started != Some(true) } else { !status.ready })
        .map(|(status, _)| status.name.as_str())
        .collect();
    let sidecars = inits.iter().zip(spec.init_containers.iter().flatten()).filter(|(_, init)| is_sidecar(init));
    let unready = sidecars.map(|(status, _)| status).chain(apps).filter(|status| !status.ready);
    let unready: Vec<&str> = unready.map(|status| status.name.as_str()).collect();
    let done = |reason: &str| (false, Some(reason.to_owned()), None);
    let initialized = match phase {
        "Succeeded" => (true, Some("PodCompleted".to_owned()), None),
        _ if incomplete.is_empty() || apps_began => (true, None, None),
        _ => {
            let names = incomplete.join(" ");
            (
                false,
                Some("ContainersNotInitialized".to_owned()),
                Some(format!("containers with incomplete status: [{names}]")),
            )
        }
    };
    let containers_ready = match phase {
        "Succeeded" => done("PodCompleted"),
        "Failed" => done("PodFailed"),
        _ if unready.is_empty() && !apps.is_empty() => (true, None, None),
        _ => {
            let names = unready.join(" ");
            (false, Some("ContainersNotReady".to_owned()), Some(format!("containers with unready status: [{names}]")))
        }
    };
    let ready = if containers_ready.0 { gates(spec, old_conditions) } else { containers_ready.clone() };
    let sandbox = input.sandbox && memory.set_up == SetUp::Done;
    let values = [
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, None, None)),
    ];
    let mut all: Vec<PodCondition> = old_conditions
        .iter()
        .filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    for (kind, (value, reason, message)) in values {
        let status = if value { "True" } else { "False" };
        let before = old_conditions.iter().find(|condition| condition.type_ == kind);
        let unchanged = before.filter(|before| before.status == status);
        all.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_probe_time: None,
            last_transition_time: unchanged
                .and_then(|before| before.last_transition_time.clone())
                .or(Some(Time(input.wall))),
            observed_generation: input.pod.metadata.generation,
        });
    }
    all
}

type Verdict = (bool, Option<String>, Option<String>);

/// A pod with readiness gates is ready when others have said so too.
fn gates(spec: &PodSpec, conditions: &[PodCondition]) -> Verdict {
    let mut messages = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *kind) {
            Some(condition) if condition.status == "True" => {}
            Some(_) => messages.push(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but False")),
            None => messages.push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
        }
    }
    if messages.is_empty() {
        return (true, None, None);
    }
    (false, Some("ReadinessGatesNotReady".to_owned()), Some(messages.join(", ")))
}

/// Whether a status says something new; times of transition alone are not news.
pub fn differs(pod: &Pod, status: &PodStatus) -> bool {
    pod.status.as_ref() != Some(status)
}
