use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

/// A job and its pods, carried on by plans as the API would.
struct World {
    job: Job,
    pods: Vec<Pod>,
    made: usize,
    now: Timestamp,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut spec = spec;
        spec["template"] = json!({"spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}});
        let job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "job"}, "spec": spec});
        Self { job: serde_json::from_value(job).unwrap(), pods: Vec::new(), made: 0, now: Timestamp::UNIX_EPOCH }
    }

    fn plan(&self) -> Plan {
        let pods: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        plan(&self.job, self.job.spec.as_ref().unwrap(), &pods, self.now)
    }

    /// One look, carried out completely.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.job.status = Some(plan.status.clone());
        let named = |list: &[Arc<Pod>], pod: &Pod| list.iter().any(|p| p.name_any() == pod.name_any());
        for pod in &mut self.pods {
            if named(&plan.delete, pod) || named(&plan.discard, pod) {
                pod.metadata.deletion_timestamp = Some(Time(self.now));
            }
            if named(&plan.release, pod) || named(&plan.discard, pod) {
                pod.metadata.finalizers = None;
            }
        }
        for mut pod in plan.create.clone() {
            let name = format!("{}{}", pod.metadata.generate_name.clone().unwrap(), self.made);
            pod.metadata.uid = Some(name.clone());
            pod.metadata.name = Some(name);
            pod.metadata.creation_timestamp = Some(Time(self.now));
            self.made += 1;
            self.pods.push(pod);
        }
        plan
    }

    /// Looks until nothing is left to do right now.
    fn settle(&mut self) {
        for _ in 0..50 {
            let before = self.job.status.clone();
            let plan = self.step();
            let quiet = plan.create.is_empty() && plan.delete.is_empty() && plan.discard.is_empty();
            if before == self.job.status && quiet && plan.release.is_empty() {
                return;
            }
        }
        panic!("it never settles: {:?}", self.job.status);
    }

    fn end(&mut self, at: usize, code: i32) {
        let end = json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": self.now.to_string()}}}]});
        self.pods[at].status = Some(serde_json::from_value(end).unwrap());
    }

    /// What terminates is gone.
    fn reap(&mut self) {
        self.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none() || !pod.finalizers().is_empty());
    }

    fn active(&self) -> Vec<usize> {
        (0..self.pods.len()).filter(|at| pods::is_active(&self.pods[*at])).collect()
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    fn conditions(&self) -> Vec<String> {
        let held = self.status().conditions.unwrap_or_default();
        let text = |c: &JobCondition| format!("{}={} {}", c.type_, c.status, c.reason.as_deref().unwrap_or(""));
        held.iter().map(text).collect()
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }
}

#[test]
fn a_job_runs_to_completion_in_two_steps() {
    let mut world = World::new(json!({"parallelism": 2, "completions": 3, "backoffLimit": 6}));
    world.settle();
    assert_eq!(world.status().active, Some(2));
    world.end(0, 0);
    world.settle();
    assert_eq!((world.status().active, world.status().succeeded), (Some(2), Some(1)));
    world.end(1, 0);
    world.end(2, 0);
    let plan = world.step();
    assert_eq!(plan.release.len(), 2);
    assert_eq!(world.conditions(), ["SuccessCriteriaMet=True CompletionsReached"]);
    world.settle();
    assert_eq!(world.conditions(), ["SuccessCriteriaMet=True CompletionsReached", "Complete=True CompletionsReached"]);
    assert_eq!((world.status().succeeded, world.made), (Some(3), 3));
    assert!(world.status().completion_time.is_some() && world.pods.iter().all(|pod| pod.finalizers().is_empty()));
}

#[test]
fn failures_wait_and_then_end_the_job() {
    let mut world = World::new(json!({"parallelism": 1, "completions": 1, "backoffLimit": 1}));
    world.settle();
    world.end(0, 1);
    world.settle();
    assert_eq!((world.made, world.status().failed), (1, Some(1)));
    assert_eq!(world.plan().next, Some(SignedDuration::from_secs(10)));
    world.pass(10);
    world.settle();
    assert_eq!(world.made, 2);
    world.end(1, 1);
    world.settle();
    assert_eq!(world.conditions(), ["FailureTarget=True BackoffLimitExceeded", "Failed=True BackoffLimitExceeded"]);
    assert_eq!(world.status().failed, Some(2));
}

#[test]
fn a_deadline_takes_the_pods_and_waits_for_them() {
    let mut world =
        World::new(json!({"parallelism": 2, "completions": 2, "activeDeadlineSeconds": 30, "backoffLimit": 6}));
    world.settle();
    assert_eq!(world.plan().next, Some(SignedDuration::from_secs(30)));
    world.pass(30);
    world.settle();
    assert_eq!(world.conditions(), ["FailureTarget=True DeadlineExceeded"]);
    assert_eq!((world.status().terminating, world.status().failed, world.status().active), (Some(2), Some(2), None));
    world.reap();
    world.settle();
    assert_eq!(world.conditions()[1], "Failed=True DeadlineExceeded");
}

#[test]
fn a_suspended_job_loses_its_pods_and_counts_none_of_them() {
    let mut world = World::new(json!({"parallelism": 2, "completions": 2, "backoffLimit": 0}));
    world.settle();
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.settle();
    world.reap();
    world.settle();
    assert_eq!(world.conditions(), ["Suspended=True JobSuspended"]);
    assert_eq!((world.status().failed, world.status().start_time, world.pods.len()), (None, None, 0));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!(world.conditions(), ["Suspended=False JobResumed"]);
    assert_eq!((world.status().active, world.status().start_time), (Some(2), Some(Time(world.now))));
}

#[test]
fn an_indexed_job_gives_each_pod_its_index_once() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4, "backoffLimit": 6});
    let mut world = World::new(spec);
    world.settle();
    let hosts: Vec<_> = world.pods.iter().map(|pod| pod.spec.as_ref().unwrap().hostname.clone().unwrap()).collect();
    assert_eq!(hosts, ["j-0", "j-1", "j-2"]);
    let names: Vec<_> = world.pods.iter().map(|pod| pod.metadata.generate_name.clone().unwrap()).collect();
    assert_eq!(names, ["j-0-", "j-1-", "j-2-"]);
    let variable = &world.pods[1].spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0];
    assert_eq!(variable.name, INDEX_VARIABLE);
    assert_eq!((world.pods[1].annotations()[INDEX].as_str(), world.pods[1].labels()[INDEX].as_str()), ("1", "1"));
    // A second pod of one index goes, whoever made it.
    let mut double = world.pods[1].clone();
    double.metadata.name = Some("double".into());
    double.metadata.uid = Some("double".into());
    world.pods.push(double);
    world.settle();
    assert_eq!(world.active().len(), 3);
    world.end(0, 0);
    world.end(2, 0);
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,2"));
    assert_eq!(index(world.pods.last().unwrap()), Some(3));
}

#[test]
fn limits_per_index() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimitPerIndex": 1,
        "backoffLimit": 2147483647});
    let mut world = World::new(spec);
    world.settle();
    world.end(0, 1);
    world.end(1, 0);
    world.settle();
    assert_eq!((world.made, world.status().failed_indexes.as_deref()), (2, Some("")));
    // It waits for its successor, which must know how often the index failed.
    assert!(!world.pods[0].finalizers().is_empty());
    world.pass(10);
    world.settle();
    assert_eq!((world.made, world.pods[2].annotations()[FAILURES].as_str()), (3, "1"));
    world.end(2, 1);
    world.settle();
    assert_eq!(world.status().failed_indexes.as_deref(), Some("0"));
    assert_eq!(world.conditions(), ["FailureTarget=True FailedIndexes", "Failed=True FailedIndexes"]);
    assert_eq!((world.status().succeeded, world.status().failed), (Some(1), Some(2)));
}

#[test]
fn policies_end_a_job_or_overlook_a_failure() {
    let rules = json!({"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1]}}]});
    let spec = json!({"parallelism": 2, "completions": 2, "backoffLimit": 0, "podFailurePolicy": rules});
    let mut world = World::new(spec);
    world.settle();
    world.end(0, 1);
    world.settle();
    assert_eq!((world.made, world.status().failed, world.status().active), (2, None, Some(1)));
    world.pass(10);
    world.settle();
    assert_eq!(world.made, 3);
    world.end(1, 42);
    world.settle();
    assert_eq!(world.conditions(), ["FailureTarget=True PodFailurePolicy"]);
    world.reap();
    world.settle();
    assert_eq!(world.conditions()[1], "Failed=True PodFailurePolicy");

    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3, "backoffLimit": 6,
        "successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    let mut world = World::new(spec);
    world.settle();
    world.end(1, 0);
    world.settle();
    world.reap();
    world.settle();
    assert_eq!(world.conditions(), ["SuccessCriteriaMet=True SuccessPolicy", "Complete=True SuccessPolicy"]);
    assert_eq!((world.status().failed, world.status().succeeded), (None, Some(1)));
}

#[test]
fn a_pod_on_its_way_out_is_replaced_when_the_policy_says_so() {
    let check = |policy: &str, made: usize| {
        let spec = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6, "podReplacementPolicy": policy});
        let mut world = World::new(spec);
        world.settle();
        world.pods[0].metadata.deletion_timestamp = Some(Time(world.now));
        world.pass(10);
        world.settle();
        assert_eq!(world.made, made, "{policy}");
    };
    check("TerminatingOrFailed", 2);
    check("Failed", 1);
}

proptest! {
    /// Whatever happens to pods, and however often a look is repeated: no end is lost or counted twice.
    #[test]
    fn every_end_counts_once(
        parallelism in 1..4i32, completions in 1..6i32, limit in 0..4i32, indexed: bool,
        events in proptest::collection::vec((0..4usize, 0..4usize), 0..40),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut world = World::new(json!({"parallelism": parallelism, "completions": completions,
            "backoffLimit": limit, "completionMode": mode}));
        for (event, which) in events {
            // Between events only a few looks: nothing is settled.
            if event == 3 { world.reap() } else { world.step(); }
            world.pass(7);
            let active = world.active();
            prop_assert!(active.len() as i32 <= parallelism);
            let Some(at) = active.get(which % active.len().max(1)).copied() else { continue };
            match event {
                0 => world.end(at, 0),
                1 => world.end(at, 1),
                2 => world.pods[at].metadata.deletion_timestamp = Some(Time(world.now)),
                _ => {}
            }
        }
        finish(&mut world, completions, limit, indexed)?;
    }
}

/// Lets every pod succeed until the job is over, and compares its counts with the pods.
fn finish(world: &mut World, completions: i32, limit: i32, indexed: bool) -> Result<(), TestCaseError> {
    for _ in 0..40 {
        world.settle();
        world.reap();
        for at in world.active() {
            world.end(at, 0);
        }
        world.pass(600);
        let status = world.status();
        let over = condition(&status, "Complete").or_else(|| condition(&status, "Failed"));
        let Some(over) = over.cloned() else { continue };
        let told = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
        prop_assert!(status.active.is_none() && status.terminating == Some(0));
        prop_assert!(world.pods.iter().all(|pod| pod.finalizers().is_empty()));
        prop_assert_eq!(told.0 + told.1 >= world.made as i32 || indexed, true, "{:?} {}", told, world.made);
        prop_assert!(told.0 + told.1 <= world.made as i32, "{:?} {}", told, world.made);
        match &*over.type_ {
            "Complete" => prop_assert!(told.0 >= completions),
            _ => prop_assert!(told.1 > limit),
        }
        return Ok(());
    }
    Err(TestCaseError::fail(format!("not over: {:?}", world.job.status)))
}
