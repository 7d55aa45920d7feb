//! What of a pod's life is worth an event, and that it is told once.

use super::*;

impl Sim {
    fn told(&mut self) -> Vec<String> {
        self.settle();
        self.settle();
        std::mem::take(&mut self.told)
    }
}

#[test]
fn a_wait_before_a_restart_is_told_once_each_time() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
    sim.settle();
    sim.end("a", 1);
    assert_eq!(sim.told(), [] as [&str; 0], "the first restart waits for nothing");
    for wait in [10, 20] {
        sim.end("a", 1);
        assert_eq!(sim.told(), ["a BackOff: Back-off restarting failed container a in pod p_ns(u)"]);
        sim.wait(wait);
        assert_eq!(sim.told(), [] as [&str; 0]);
    }
}

#[test]
fn ends_are_told_with_their_cause() {
    let probe = json!({"name": "a", "image": "x", "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1}});
    let mut sim = Sim::new(json!({"containers": [probe]}));
    sim.settle();
    answer(&mut sim, "a", ProbeKind::Liveness, false);
    assert_eq!(sim.told(), ["a Killing: Container a failed liveness probe, will be restarted"]);
    let hook = json!({"name": "a", "image": "x", "lifecycle": {"postStart": {"exec": {"command": ["true"]}}}});
    let mut sim = Sim::new(json!({"containers": [hook]}));
    sim.settle();
    sim.memory.of("a").post_start = Hook::Failed("secret".into());
    assert_eq!(sim.told(), ["a Killing: FailedPostStartHook"]);
    let mut sim = Sim::new(json!({"containers": apps(&["a", "b"]), "activeDeadlineSeconds": 5}));
    sim.memory.start_time = Some(sim.wall);
    sim.settle();
    sim.wait(5);
    let overdue = "- DeadlineExceeded: Pod was active on the node longer than the specified deadline";
    assert_eq!(sim.told(), [overdue, "a Killing: Stopping container a", "b Killing: Stopping container b"]);
    sim.delete(5);
    assert_eq!(sim.told(), [] as [&str; 0], "they are on their way already");
}

#[test]
fn a_sandbox_that_went_away_is_told_and_its_network_is_taken_down() {
    let mut sim = Sim::new(json!({"containers": apps(&["a"])}));
    assert_eq!(sim.told(), [] as [&str; 0], "a first sandbox is none that changed");
    sim.observed[0].state = ContainerState::Lost { started_at: Some(sim.wall), ended_at: None };
    (sim.sandbox, sim.memory) = (false, Memory::default());
    let changed = ["- SandboxChanged: Pod sandbox changed, it will be killed and re-created."];
    assert_eq!(sim.told(), changed, "after a start of the node");
    sim.sandbox = false;
    assert_eq!(sim.told(), changed, "under a running agent");
    sim.memory.set_up = SetUp::Lost;
    (sim.sandbox, sim.observed) = (false, Vec::new());
    sim.delete(5);
    assert_eq!(sim.settle(), ["tear-down", "delete"]);
}
