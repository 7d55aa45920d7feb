//! A pod's life as a script: what happens goes in, a transcript of what is planned and said comes out.

mod told;

use std::collections::BTreeMap;

use jiff::SignedDuration;
use kedge_runtimes::{PodId, PodUid};
use serde_json::{Value, json};

use super::*;
use crate::probe::{Answer, ProbeKind};

/// A node without I/O: it carries plans out at once, and time moves by hand.
struct Sim {
    pod: Pod,
    memory: Memory,
    observed: Vec<ObservedContainer>,
    sandbox: bool,
    /// By the wall, and by the clock that never jumps.
    wall: Timestamp,
    now: Duration,
    log: Vec<String>,
    images_missing: bool,
    plan: Option<Plan>,
    /// What was told, as `container reason: message`.
    told: Vec<String>,
}

impl Sim {
    fn new(spec: Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec});
        Self {
            pod: serde_json::from_value(pod).unwrap(),
            memory: Memory::default(),
            observed: Vec::new(),
            sandbox: false,
            wall: Timestamp::from_second(1_000_000).unwrap(),
            now: Duration::from_secs(500),
            log: Vec::new(),
            images_missing: false,
            plan: None,
            told: Vec::new(),
        }
    }

    /// Plans and carries out until nothing is left to do; gives what was done.
    fn settle(&mut self) -> Vec<String> {
        for _ in 0..50 {
            let node = status::NodeFacts { runtime_name: "fake".into(), host_ips: vec!["192.0.2.1".into()] };
            let input = Input {
                pod: &self.pod,
                observed: &self.observed,
                sandbox: self.sandbox,
                wall: self.wall,
                now: self.now,
                node: &node,
            };
            let plan = plan(&input, &mut self.memory);
            self.pod.status = Some(plan.status.clone());
            let actions = plan.actions.clone();
            for (container, happening) in &plan.happenings {
                let (_, reason, message) = happening.words();
                self.told.push(format!("{} {reason}: {message}", container.as_deref().unwrap_or("-")));
            }
            self.plan = Some(plan);
            if actions.is_empty() {
                return std::mem::take(&mut self.log);
            }
            for action in actions {
                if self.carry_out(action) {
                    return std::mem::take(&mut self.log);
                }
            }
        }
        panic!("the plan never comes to rest: {:?}", self.log);
    }

    fn carry_out(&mut self, action: Action) -> bool {
        let name_of =
            |id: &ContainerId, all: &[ObservedContainer]| all.iter().find(|c| c.id == *id).map(|c| c.name.clone());
        let text = match &action {
            Action::SetUp => "set-up".to_owned(),
            Action::EnsureImage { container } => format!("image {container}"),
            Action::Start { container, attempt } => format!("start {container}#{attempt}"),
            Action::PostStart { container, .. } => format!("post-start {container}"),
            Action::PreStop { container, .. } => format!("pre-stop {container}"),
            Action::Signal { id, signal } => format!("signal {} {signal}", name_of(id, &self.observed).unwrap()),
            Action::Forget { .. } => "forget".to_owned(),
            Action::ReleaseNetwork => "release-network".to_owned(),
            Action::TearDown => "tear-down".to_owned(),
            Action::Delete => "delete".to_owned(),
        };
        if !text.starts_with("image ") {
            self.log.push(text);
        }
        match action {
            Action::SetUp => {
                (self.sandbox, self.memory.set_up) = (true, SetUp::Done);
                self.memory.pod_ips = vec!["10.42.0.2".into()];
            }
            Action::EnsureImage { container } => {
                self.memory.of(&container).image = if self.images_missing {
                    let problem = Problem { reason: "ErrImagePull".into(), message: "not there".into() };
                    ImageState::Missing { problem, retry_at: self.now + Duration::from_secs(10) }
                } else {
                    ImageState::Present { id: "sha256:1".into() }
                };
            }
            Action::Start { container, attempt } => self.started(&container, attempt),
            Action::Signal { id, signal: 9 } => {
                let run = self.observed.iter_mut().find(|run| run.id == id).unwrap();
                run.state = ContainerState::Exited(exit(self.wall, 137));
            }
            Action::Forget { id } => self.observed.retain(|run| run.id != id),
            Action::ReleaseNetwork => self.memory.network_released = true,
            Action::TearDown => {
                self.sandbox = false;
                self.observed.clear();
                self.memory.set_up = SetUp::NotDone;
            }
            Action::Delete => return true,
            Action::PostStart { .. } | Action::PreStop { .. } | Action::Signal { .. } => {}
        }
        false
    }

    fn started(&mut self, name: &str, attempt: u32) {
        let uid = PodUid::new("u").unwrap();
        self.observed.retain(|run| run.name != name || run.attempt != attempt);
        self.observed.push(ObservedContainer {
            id: ContainerId::derive(&uid, name, attempt),
            pod: PodId { namespace: "ns".into(), name: "p".into(), uid },
            name: name.into(),
            attempt,
            image: "busybox".into(),
            image_id: "sha256:1".into(),
            annotations: BTreeMap::new(),
            log_path: "/log".into(),
            created_at: self.wall,
            state: ContainerState::Running { started_at: self.wall, pid: 1 },
        });
    }

    fn end(&mut self, name: &str, code: i32) {
        let now = self.wall;
        let run = self.observed.iter_mut().filter(|run| run.name == name).max_by_key(|run| run.attempt).unwrap();
        run.state = ContainerState::Exited(exit(now, code));
    }

    fn wait(&mut self, seconds: u64) {
        self.wall += SignedDuration::from_secs(seconds.try_into().unwrap());
        self.now += Duration::from_secs(seconds);
    }

    /// Puts the wall clock right, or wrong.
    fn jump(&mut self, seconds: i64) {
        self.wall += SignedDuration::from_secs(seconds);
    }

    /// Seconds until the plan wants to be made again.
    fn wake_in(&self) -> Option<u64> {
        Some(self.plan.as_ref()?.wake_at?.saturating_sub(self.now).as_secs())
    }

    fn delete(&mut self, grace: i64) {
        self.pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.wall));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    fn status(&self) -> Value {
        serde_json::to_value(self.pod.status.as_ref().unwrap()).unwrap()
    }

    fn phase(&self) -> String {
        self.status()["phase"].as_str().unwrap().to_owned()
    }

    /// What a container's state is, in a word.
    fn state(&self, list: &str, index: usize) -> String {
        let state = &self.status()[list][index]["state"];
        match (&state["waiting"]["reason"], &state["terminated"]["reason"]) {
            (Value::String(reason), _) => format!("waiting {reason}"),
            (_, Value::String(reason)) => format!("terminated {reason}"),
            _ => "running".to_owned(),
        }
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let status = self.status();
        let found = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap().clone();
        (found["status"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap_or_default().to_owned())
    }
}

fn exit(now: Timestamp, code: i32) -> Exit {
    Exit { code, oom: false, started_at: Some(now), finished_at: now, message: None }
}

fn apps(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "image": "busybox"})).collect()
}

#[test]
fn a_plain_pod_comes_up_and_is_ready() {
    let mut sim = Sim::new(json!({"containers": apps(&["a", "b"])}));
    assert_eq!(sim.settle(), ["set-up", "start a#0", "start b#0"]);
    assert_eq!((sim.phase().as_str(), sim.condition("Ready").0.as_str()), ("Running", "True"));
    let status = sim.status();
    assert_eq!(status["podIP"], "10.42.0.2");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 1);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("fake://"));
    assert_eq!(sim.condition("PodReadyToStartContainers").0, "True");
    assert_eq!(sim.settle(), [] as [&str; 0], "nothing happened, nothing to do");
}

#[test]
fn before_it_is_set_up_it_says_what_it_waits_for() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"]), "initContainers": apps(&["i"])}));
    sim.memory.set_up = SetUp::Failed {
        problem: Problem { reason: "x".into(), message: "y".into() },
        retry_at: sim.now + Duration::from_secs(3),
    };
    assert_eq!(sim.settle(), [] as [&str; 0]);
    assert_eq!((sim.phase().as_str(), sim.wake_in()), ("Pending", Some(3)));
    assert_eq!(sim.state("containerStatuses", 0), "waiting PodInitializing");
    assert_eq!(sim.condition("Initialized"), ("False".into(), "ContainersNotInitialized".into()));
    assert_eq!(sim.condition("Ready"), ("False".into(), "ContainersNotReady".into()));
    assert_eq!(sim.condition("PodReadyToStartContainers").0, "False");
}

#[test]
fn a_missing_image_is_waited_for() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
    sim.images_missing = true;
    assert_eq!(sim.settle(), ["set-up"]);
    assert_eq!((sim.state("containerStatuses", 0).as_str(), sim.wake_in()), ("waiting ErrImagePull", Some(10)));
    sim.images_missing = false;
    sim.wait(10);
    assert_eq!(sim.settle(), ["start a#0"]);
}

#[test]
fn what_keeps_crashing_waits_longer_each_time() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
    sim.settle();
    sim.end("a", 1);
    assert_eq!(sim.settle(), ["start a#1"], "the first time at once");
    for (attempt, wait) in [(2, 10), (3, 20), (4, 40)] {
        sim.end("a", 1);
        let done = sim.settle();
        assert!(done.iter().all(|action| action == "forget"), "{done:?}");
        assert_eq!(sim.state("containerStatuses", 0), "waiting CrashLoopBackOff");
        assert_eq!(sim.status()["containerStatuses"][0]["lastState"]["terminated"]["reason"], "Error");
        assert_eq!((sim.phase().as_str(), sim.wake_in()), ("Running", Some(wait)));
        let message = sim.status()["containerStatuses"][0]["state"]["waiting"]["message"].clone();
        assert_eq!(message, format!("back-off {wait}s restarting failed container=a pod=p_ns(u)"));
        sim.wait(wait);
        assert_eq!(sim.settle(), [format!("start a#{attempt}"), "forget".to_owned()][..1 + usize::from(attempt > 1)]);
        assert_eq!(sim.status()["containerStatuses"][0]["restartCount"], attempt);
    }
    assert_eq!(sim.observed.len(), 2, "the last two runs are kept");
}

#[test]
fn restart_policies_decide_how_a_pod_ends() {
    for (policy, code, restarts, phase, ready) in [
        ("Never", 0, false, "Succeeded", "PodCompleted"),
        ("Never", 3, false, "Failed", "PodFailed"),
        ("OnFailure", 0, false, "Succeeded", "PodCompleted"),
        ("OnFailure", 3, true, "Running", ""),
        ("Always", 0, true, "Running", ""),
    ] {
        let mut sim = Sim::new(json!({"containers": apps(&["a"]), "restartPolicy": policy}));
        sim.settle();
        sim.end("a", code);
        let next = if restarts { "start a#1" } else { "release-network" };
        assert_eq!(sim.settle(), [next], "{policy} {code}");
        assert_eq!((sim.phase().as_str(), sim.condition("Ready").1.as_str()), (phase, ready), "{policy} {code}");
    }
}

#[test]
fn init_containers_go_one_by_one() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"]), "initContainers": apps(&["i", "j"])}));
    assert_eq!(sim.settle(), ["set-up", "start i#0"]);
    assert_eq!(
        (sim.phase().as_str(), sim.state("containerStatuses", 0).as_str()),
        ("Pending", "waiting PodInitializing")
    );
    sim.end("i", 1);
    assert_eq!(sim.settle(), ["start i#1"]);
    sim.end("i", 0);
    assert_eq!(sim.settle(), ["start j#0"]);
    sim.end("j", 0);
    assert_eq!(sim.settle(), ["start a#0"]);
    assert_eq!((sim.phase().as_str(), sim.condition("Initialized").0.as_str()), ("Running", "True"));
    // Records of the beginning may be lost; the beginning is over.
    sim.observed.retain(|run| run.name == "a");
    assert_eq!(sim.settle(), [] as [&str; 0]);
}

#[test]
fn an_init_container_that_may_not_fail_ends_the_pod() {
    let mut sim =
        Sim::new(json!({"containers": apps(&["a"]), "initContainers": apps(&["i"]), "restartPolicy": "Never"}));
    sim.settle();
    sim.end("i", 2);
    assert_eq!(sim.settle(), ["release-network"]);
    assert_eq!((sim.phase().as_str(), sim.condition("Ready").1.as_str()), ("Failed", "PodFailed"));
}

#[test]
fn sidecars_start_first_and_stop_last() {
    let sidecar = |name| json!({"name": name, "image": "x", "restartPolicy": "Always"});
    let spec =
        json!({"containers": apps(&["a"]), "initContainers": [sidecar("s"), sidecar("t")], "restartPolicy": "Never"});
    let mut sim = Sim::new(spec);
    assert_eq!(sim.settle(), ["set-up", "start s#0", "start t#0", "start a#0"]);
    sim.end("s", 0);
    assert_eq!(sim.settle(), ["start s#1"], "a sidecar always runs again");
    sim.end("a", 0);
    assert_eq!(sim.settle(), ["signal t 15"]);
    sim.end("t", 0);
    assert_eq!(sim.settle(), ["signal s 15"]);
    sim.end("s", 0);
    assert_eq!(sim.settle(), ["release-network"]);
    assert_eq!(sim.phase(), "Succeeded");
}

#[test]
fn a_sidecar_that_has_not_started_holds_the_rest_back() {
    let sidecar = json!({"name": "s", "image": "x", "restartPolicy": "Always", "startupProbe": {"periodSeconds": 1}});
    let mut sim = Sim::new(json!({"containers": apps(&["a"]), "initContainers": [sidecar]}));
    assert_eq!(sim.settle(), ["set-up", "start s#0"]);
    assert_eq!(sim.phase(), "Pending");
    answer(&mut sim, "s", ProbeKind::Startup, true);
    assert_eq!(sim.settle(), ["start a#0"]);
}

fn answer(sim: &mut Sim, name: &str, kind: ProbeKind, succeeded: bool) {
    let spec = sim.pod.spec.clone().unwrap();
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let container = all.into_iter().find(|container| container.name == name).unwrap();
    let probes = sim.memory.of(name).probes.as_mut().unwrap();
    probes.due(sim.now);
    let answer = if succeeded { Answer::Success } else { Answer::Failure(String::new()) };
    probes.answer(kind, kind.of(container).unwrap(), &answer, sim.now);
}

#[test]
fn probes_make_ready_and_kill() {
    let spec = json!({"terminationGracePeriodSeconds": 5, "containers": [{
        "name": "a", "image": "x",
        "readinessProbe": {"periodSeconds": 1},
        "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 2},
    }]});
    let mut sim = Sim::new(spec);
    sim.settle();
    assert_eq!((sim.phase().as_str(), sim.condition("Ready").0.as_str()), ("Running", "False"));
    answer(&mut sim, "a", ProbeKind::Readiness, true);
    sim.settle();
    assert_eq!(sim.condition("Ready").0, "True");
    answer(&mut sim, "a", ProbeKind::Liveness, false);
    assert_eq!(sim.settle(), ["signal a 15"]);
    assert_eq!(sim.wake_in(), Some(2), "the probe's own grace");
    sim.wait(2);
    assert_eq!(sim.settle(), ["signal a 9", "start a#1"]);
    assert_eq!(sim.condition("Ready").0, "False", "a new run has to answer anew");
}

#[test]
fn deletion_asks_waits_kills_and_tells_the_api() {
    let mut sim = Sim::new(json!({"containers": apps(&["a", "b"])}));
    sim.settle();
    sim.delete(30);
    assert_eq!(sim.settle(), ["signal a 15", "signal b 15"]);
    assert_eq!(sim.wake_in(), Some(30));
    sim.end("a", 0);
    assert_eq!(sim.settle(), [] as [&str; 0], "what ends is not started again");
    sim.wait(30);
    assert_eq!(sim.settle(), ["signal b 9", "tear-down", "delete"]);
    assert_eq!(sim.phase(), "Failed");
}

#[test]
fn a_hurried_deletion_shortens_the_patience() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
    sim.settle();
    sim.delete(600);
    sim.settle();
    sim.delete(3);
    sim.settle();
    assert_eq!(sim.wake_in(), Some(3));
    sim.delete(0);
    assert_eq!(sim.settle(), ["signal a 9", "tear-down", "delete"]);
}

#[test]
fn the_pre_stop_hook_comes_before_the_signal_and_has_the_same_patience() {
    let hook = json!({"name": "a", "image": "x", "lifecycle": {"preStop": {"exec": {"command": ["true"]}}}});
    let mut sim = Sim::new(json!({"containers": [hook]}));
    sim.settle();
    sim.delete(10);
    assert_eq!(sim.settle(), ["pre-stop a"]);
    let mut late =
        Sim { memory: sim.memory.clone(), pod: sim.pod.clone(), observed: sim.observed.clone(), ..Sim::new(json!({})) };
    late.sandbox = true;
    // The hook ends in time.
    sim.wait(4);
    sim.memory.of("a").stopping.as_mut().unwrap().pre_stop = Hook::Done;
    assert_eq!(sim.settle(), ["signal a 15"]);
    assert_eq!(sim.wake_in(), Some(6));
    // Or it does not, and the container still gets its two seconds.
    late.wait(10);
    assert_eq!(late.settle(), ["signal a 15"]);
    assert_eq!(late.wake_in(), Some(2));
}

#[test]
fn a_post_start_hook_runs_once_and_its_failure_restarts() {
    let hook = json!({"name": "a", "image": "x", "lifecycle": {"postStart": {"exec": {"command": ["true"]}}}});
    let mut sim = Sim::new(json!({"containers": [hook]}));
    assert_eq!(sim.settle(), ["set-up", "start a#0", "post-start a"]);
    assert_eq!(sim.condition("Ready").0, "False");
    sim.memory.of("a").post_start = Hook::Done;
    assert_eq!(sim.settle(), [] as [&str; 0]);
    assert_eq!(sim.condition("Ready").0, "True");
    sim.memory.of("a").post_start = Hook::Failed("exit code 1".into());
    assert_eq!(sim.settle(), ["signal a 15"]);
    sim.end("a", 143);
    assert_eq!(sim.settle(), ["start a#1", "post-start a"]);
}

#[test]
fn a_deadline_fails_the_pod() {
    let mut sim =
        Sim::new(json!({"containers": apps(&["a"]), "activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 1}));
    sim.memory.start_time = Some(sim.wall);
    sim.settle();
    sim.settle();
    assert_eq!(sim.wake_in(), Some(60));
    sim.wait(60);
    assert_eq!(sim.settle(), ["signal a 15"]);
    sim.wait(1);
    assert_eq!(sim.settle(), ["signal a 9", "release-network"]);
    assert_eq!((sim.phase().as_str(), sim.status()["reason"].as_str()), ("Failed", Some("DeadlineExceeded")));
}

/// Half a century, as when a box without a battery hears of the time; and back, as when it was told wrong.
const JUMPS: [i64; 2] = [1_600_000_000, -900_000];

#[test]
fn a_wall_clock_that_jumps_neither_kills_nor_waits_for_ever() {
    for jump in JUMPS {
        // Its grace is its grace.
        let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
        sim.settle();
        sim.delete(30);
        assert_eq!(sim.settle(), ["signal a 15"]);
        sim.wait(5);
        sim.jump(jump);
        assert_eq!(sim.settle(), [] as [&str; 0], "{jump}");
        assert_eq!(sim.wake_in(), Some(25), "{jump}");
        sim.wait(25);
        assert_eq!(sim.settle(), ["signal a 9", "tear-down", "delete"], "{jump}");

        // Its deadline counts from when it was seen to start.
        let mut sim = Sim::new(json!({"containers": apps(&["a"]), "activeDeadlineSeconds": 60}));
        sim.memory.start_time = Some(sim.wall);
        sim.settle();
        sim.settle();
        sim.wait(20);
        sim.jump(jump);
        assert_eq!(sim.settle(), [] as [&str; 0], "{jump}");
        assert_eq!((sim.phase().as_str(), sim.wake_in()), ("Running", Some(40)), "{jump}");
        // A restart of the agent has the wall clock alone for what was before, and waits at most the whole time.
        let started = sim.pod.status.as_ref().unwrap().start_time.clone().unwrap().0;
        let before = sim.wall.duration_since(started).as_secs();
        sim.memory = Memory { set_up: SetUp::Done, start_time: Some(sim.wall), ..Memory::default() };
        sim.settle();
        let left = 60 - before.clamp(0, 60);
        let expected = if left == 0 { "DeadlineExceeded".to_owned() } else { format!("{left} s left") };
        let found = sim.status()["reason"].as_str().map_or(format!("{} s left", sim.wake_in().unwrap()), str::to_owned);
        assert_eq!(found, expected, "{jump}");

        // Probes go on, and so does what waits for a restart.
        let probe = json!({"name": "a", "image": "x", "livenessProbe": {"periodSeconds": 10}});
        let mut sim = Sim::new(json!({"containers": [probe]}));
        sim.settle();
        answer(&mut sim, "a", ProbeKind::Liveness, true);
        sim.jump(jump);
        sim.settle();
        assert_eq!(sim.wake_in(), Some(10), "{jump}");
        sim.end("a", 1);
        assert_eq!(sim.settle(), ["start a#1"], "{jump}");
        sim.end("a", 1);
        sim.settle();
        assert_eq!(sim.wake_in(), Some(10), "{jump}");
        sim.jump(-jump);
        sim.settle();
        assert_eq!((sim.wake_in(), sim.state("containerStatuses", 0).as_str()), (Some(10), "waiting CrashLoopBackOff"));
        sim.wait(10);
        assert_eq!(sim.settle(), ["start a#2", "forget"], "{jump}");
    }
}

#[test]
fn ends_are_told_in_the_kubelets_words() {
    for (change, reason, code) in [
        (Box::new(|e: &mut Exit| e.oom = true) as Box<dyn Fn(&mut Exit)>, "OOMKilled", 137),
        (Box::new(|e| e.code = 0), "Completed", 0),
        (Box::new(|_| {}), "Error", 137),
        (Box::new(|e| e.message = Some("no such file".into())), "StartError", 137),
    ] {
        let mut sim = Sim::new(json!({"containers": apps(&["a"]), "restartPolicy": "Never"}));
        sim.settle();
        let mut end = exit(sim.wall, 137);
        change(&mut end);
        sim.observed[0].state = ContainerState::Exited(end);
        sim.settle();
        let end = sim.status()["containerStatuses"][0]["state"]["terminated"].clone();
        assert_eq!((end["reason"].as_str(), end["exitCode"].as_i64()), (Some(reason), Some(code)));
    }
}

#[test]
fn what_was_lost_runs_again() {
    // By a power cut, and by somebody who ended everything and said when.
    for seen in [None, Some(SignedDuration::from_secs(60))] {
        let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
        sim.settle();
        let (started, ended_at) = (sim.wall, seen.map(|after| sim.wall + after));
        sim.observed[0].state = ContainerState::Lost { started_at: Some(started), ended_at };
        (sim.sandbox, sim.memory) = (false, Memory::default());
        sim.wait(3600);
        assert_eq!(sim.settle(), ["set-up", "start a#1"]);
        let last = sim.status()["containerStatuses"][0]["lastState"]["terminated"].clone();
        assert_eq!((last["reason"].as_str(), last["exitCode"].as_i64()), (Some("ContainerStatusUnknown"), Some(137)));
        assert_eq!(last["finishedAt"].as_str(), Some(&*ended_at.unwrap_or(started).to_string()), "{last}");
    }
}

#[test]
fn what_ended_stays_ended_when_its_records_are_lost() {
    for phase in ["Failed", "Succeeded"] {
        let mut sim = Sim::new(json!({"containers": apps(&["a"]), "activeDeadlineSeconds": 1}));
        let ended =
            json!({"phase": phase, "reason": "r", "startTime": "1970-01-01T00:00:00Z", "containerStatuses": []});
        sim.pod.status = serde_json::from_value(ended.clone()).unwrap();
        assert_eq!(sim.settle(), ["release-network"]);
        let mut expected = ended;
        expected["observedGeneration"] = json!(1);
        assert_eq!(sim.status(), expected);
        sim.delete(5);
        assert_eq!(sim.settle(), ["delete"]);
    }
}

#[test]
fn readiness_gates_are_others_to_open() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"]), "readinessGates": [{"conditionType": "example.com/x"}]}));
    sim.settle();
    assert_eq!(sim.condition("Ready"), ("False".into(), "ReadinessGatesNotReady".into()));
    let status = sim.pod.status.as_mut().unwrap();
    let gate = serde_json::from_value(json!({"type": "example.com/x", "status": "True"})).unwrap();
    status.conditions.as_mut().unwrap().push(gate);
    sim.settle();
    assert_eq!(sim.condition("Ready").0, "True");
    assert_eq!(sim.condition("example.com/x").0, "True", "kept");
}
