//! What to do next about a job, from the job and its pods. Pure. (`pkg/controller/job/job_controller.go`, `syncJob`.)
//!
//! Every pod of a job has a finalizer until its end is counted, so that none is lost and none counts twice:
//!
//! ```text
//! pod ends ─> its uid goes into status.uncountedTerminatedPods ─> finalizer off ─> uid leaves, counter goes up
//!             (or its index into status.completedIndexes)
//! ```
//!
//! The end of a job takes two steps as well: `SuccessCriteriaMet` or `FailureTarget` as soon as it is decided, then,
//! when every pod is counted and none is left running, `Complete` or `Failed`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::indexes::Indexes;
use super::policy::{self, Failure};
use super::{FINALIZER, condition, is_failed, is_indexed, replaces_only_failed};
use crate::pods;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Pods made or deleted in one look (`MaxPodCreateDeletePerSync`).
const BURST: usize = 500;
/// Uids in a status; the list stays below 20 kB (`MaxUncountedPods`).
const UNCOUNTED_MAX: usize = 500;
/// The wait before a failed pod's first replacement; it doubles (`DefaultJobPodFailureBackOff`).
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(10);
/// The longest name before the letters that make it unique (`names.MaxGeneratedNameLength`).
const GENERATED_NAME_MAX: usize = 58;

/// What to do, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// What the job's status says now.
    pub(super) status: JobStatus,
    /// Active pods to delete; they count as failed once they are counted.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that the status tells of: the finalizer goes off.
    pub(super) release: Vec<Arc<Pod>>,
    /// Active pods to delete that are not counted: off with the finalizer first.
    pub(super) discard: Vec<Arc<Pod>>,
    /// Pods to make.
    pub(super) create: Vec<Pod>,
    /// When to look again though nothing changed.
    pub(super) next: Option<SignedDuration>,
}

/// The decided end of a job.
#[derive(Clone, Debug, PartialEq)]
struct Verdict {
    success: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.into(), message: message.into() }
    }

    fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { success: true, reason: reason.into(), message: message.into() }
    }

    /// What the condition says, if it is there.
    fn told(status: &JobStatus, kind: &str) -> Option<Self> {
        let told = condition(status, kind)?;
        let (reason, message) = (told.reason.clone(), told.message.clone().unwrap_or_default());
        Some(Self { success: kind == "SuccessCriteriaMet", reason: reason.unwrap_or_default(), message })
    }
}

/// The facts that several decisions need.
struct View<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    active: Vec<Arc<Pod>>,
    terminating: i32,
    uncounted_succeeded: BTreeSet<&'a str>,
    uncounted_failed: BTreeSet<&'a str>,
    /// Those told by the stored status.
    completed_before: Indexes,
    completed: Indexes,
    failed_indexes: Option<Indexes>,
    /// Per index the last failed pod that has no successor yet: that one needs its number of failures.
    awaiting: BTreeMap<i32, Arc<Pod>>,
    succeeded: i32,
    failed: i32,
    now: Timestamp,
}

/// What to do about a job that has not ended and is this controller's.
pub(super) fn plan(job: &Job, spec: &JobSpec, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let view = View::of(job, spec, pods, now);
    let mut status = job.status.clone().unwrap_or_default();
    let suspended = spec.suspend == Some(true);
    let leaving = job.metadata.deletion_timestamp.is_some();
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(Time(now));
    }
    let mut plan = Plan::default();
    let mut verdict = view.verdict(&status);
    if verdict.is_some() {
        plan.delete = view.active.clone();
    } else {
        if !leaving {
            view.manage(&mut plan);
        }
        let enough = spec.completions.map_or(view.succeeded > 0, |wanted| view.succeeded >= wanted);
        if enough && view.active.is_empty() && plan.create.is_empty() {
            let message = "Reached expected number of succeeded pods";
            verdict = Some(Verdict::success("CompletionsReached", message));
        } else if !leaving {
            suspension(&mut status, suspended, now);
        }
        if let Some(deadline) = view.deadline(&status) {
            plan.next = Some(plan.next.map_or(deadline, |next| next.min(deadline)));
        }
    }
    status.active = some(view.active.len() as i32);
    status.ready = Some(view.active.iter().filter(|pod| pods::is_ready(pod)).count() as i32);
    status.terminating = Some(view.terminating);
    let all_told = view.count(&mut status, verdict.as_ref(), &mut plan.release);
    if let Some(verdict) = verdict {
        let interim = if verdict.success { "SuccessCriteriaMet" } else { "FailureTarget" };
        let told_before = job.status.as_ref().is_some_and(|status| condition(status, interim).is_some());
        set(&mut status, interim, &verdict, now);
        let uncounted = status.uncounted_terminated_pods.as_ref();
        let none_uncounted = uncounted.is_none_or(|u| u.succeeded.is_none() && u.failed.is_none());
        let over = all_told && none_uncounted && view.active.is_empty() && view.terminating == 0;
        if over && told_before && plan.release.is_empty() {
            set(&mut status, if verdict.success { "Complete" } else { "Failed" }, &verdict, now);
            if verdict.success {
                status.completion_time = Some(Time(now));
            }
        }
    }
    plan.status = status;
    plan
}

impl<'a> View<'a> {
    fn of(job: &'a Job, spec: &'a JobSpec, pods: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let old = job.status.as_ref();
        let completions = spec.completions.unwrap_or(0);
        let uncounted = old.and_then(|status| status.uncounted_terminated_pods.as_ref());
        let uids = |list: Option<&'a Vec<String>>| list.into_iter().flatten().map(String::as_str).collect();
        let before = old.and_then(|status| status.completed_indexes.as_deref()).unwrap_or_default();
        let completed_before = Indexes::parse(before, completions);
        let mut view = Self {
            job,
            spec,
            pods,
            active: pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect(),
            terminating: pods.iter().filter(|pod| pods::is_terminating(pod)).count() as i32,
            uncounted_succeeded: uids(uncounted.and_then(|u| u.succeeded.as_ref())),
            uncounted_failed: uids(uncounted.and_then(|u| u.failed.as_ref())),
            completed: completed_before.clone(),
            completed_before,
            failed_indexes: None,
            awaiting: BTreeMap::new(),
            succeeded: 0,
            failed: 0,
            now,
        };
        let new_succeeded = view.untold(&view.uncounted_succeeded, |pod| pods::phase(pod) == "Succeeded");
        let new_failed = view.untold(&view.uncounted_failed, |pod| is_failed(spec, pod));
        let counted = new_failed.iter().filter(|pod| policy::failure(job, pod) != Failure::Ignored).count();
        let stored = |of: fn(&JobStatus) -> Option<i32>| old.and_then(of).unwrap_or(0);
        view.failed = stored(|status| status.failed) + (counted + view.uncounted_failed.len()) as i32;
        view.succeeded =
            stored(|status| status.succeeded) + (new_succeeded.len() + view.uncounted_succeeded.len()) as i32;
        if is_indexed(spec) {
            let told = view.untold(&BTreeSet::new(), |pod| pods::phase(pod) == "Succeeded");
            view.completed.extend(told.iter().filter_map(|pod| index(pod)));
            view.succeeded = view.completed.len();
            if spec.backoff_limit_per_index.is_some() {
                view.follow_failures(old, completions);
            }
        }
        view
    }

    /// Pods whose end may still have to be told: with the finalizer, of a valid index, and not `told`.
    fn untold(&self, told: &BTreeSet<&str>, fits: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let kept = |pod: &&Arc<Pod>| has_finalizer(pod) && self.is_valid(pod) && !told.contains(uid(pod)) && fits(pod);
        self.pods.iter().filter(kept).cloned().collect()
    }

    fn is_valid(&self, pod: &Pod) -> bool {
        !is_indexed(self.spec) || index(pod).is_some_and(|index| index < self.spec.completions.unwrap_or(0))
    }

    /// Which indexes have failed for good, and which wait for another attempt.
    fn follow_failures(&mut self, old: Option<&JobStatus>, completions: i32) {
        let before = old.and_then(|status| status.failed_indexes.as_deref()).unwrap_or_default();
        let mut failed = Indexes::parse(before, completions);
        let limit = self.spec.backoff_limit_per_index.unwrap_or(0);
        let ended = self.untold(&BTreeSet::new(), |pod| is_failed(self.spec, pod));
        failed.extend(ended.iter().filter_map(|pod| {
            let for_good = match policy::failure(self.job, pod) {
                Failure::FailsIndex => true,
                Failure::Ignored => false,
                Failure::Counts | Failure::FailsJob(_) => number(pod, FAILURES) >= limit,
            };
            index(pod).filter(|_| for_good)
        }));
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| index(pod)).collect();
        let order = |pod: &Pod| (number(pod, FAILURES) + number(pod, IGNORED), pods::finished_at(pod));
        for pod in ended {
            let Some(index) = index(&pod) else { continue };
            if self.completed.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            if self.awaiting.get(&index).is_none_or(|other| order(other) <= order(&pod)) {
                self.awaiting.insert(index, pod);
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// Whether the job's end is decided.
    fn verdict(&self, status: &JobStatus) -> Option<Verdict> {
        let told = |kind| Verdict::told(status, kind);
        told("SuccessCriteriaMet")
            .or_else(|| told("FailureTarget"))
            .or_else(|| self.failed_by_policy())
            .or_else(|| self.failed_by_limit(status))
            .or_else(|| self.failed_by_indexes())
            .or_else(|| {
                let met = policy::success(self.job, &self.completed)?;
                Some(Verdict::success("SuccessPolicy", met))
            })
    }

    fn failed_by_policy(&self) -> Option<Verdict> {
        self.pods.iter().filter(|pod| is_failed(self.spec, pod)).find_map(|pod| match policy::failure(self.job, pod) {
            Failure::FailsJob(message) => Some(Verdict::failure("PodFailurePolicy", message)),
            _ => None,
        })
    }

    fn failed_by_limit(&self, status: &JobStatus) -> Option<Verdict> {
        if self.failed > self.limit() || self.restarted_too_often() {
            return Some(Verdict::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let late = self.deadline(status).is_some_and(|left| left <= SignedDuration::ZERO);
        late.then(|| Verdict::failure("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    fn limit(&self) -> i32 {
        self.spec.backoff_limit.unwrap_or(6)
    }

    /// Containers that start again inside their pod count towards the limit too.
    fn restarted_too_often(&self) -> bool {
        if self.spec.template.spec.as_ref().is_none_or(|spec| spec.restart_policy.as_deref() != Some("OnFailure")) {
            return false;
        }
        let running = self.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
        let statuses = running.filter_map(|pod| pod.status.as_ref());
        let containers = statuses.flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
        let restarts: i32 = containers.map(|container| container.restart_count).sum();
        restarts > 0 && restarts >= self.limit()
    }

    /// The time left; none when there is no limit.
    fn deadline(&self, status: &JobStatus) -> Option<SignedDuration> {
        let seconds = self.spec.active_deadline_seconds.filter(|_| self.spec.suspend != Some(true))?;
        let started = status.start_time.as_ref()?.0;
        Some(SignedDuration::from_secs(seconds).saturating_sub(self.now.duration_since(started)))
    }

    fn failed_by_indexes(&self) -> Option<Verdict> {
        let failed = self.failed_indexes.as_ref()?.len();
        if self.spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Verdict::failure("MaxFailedIndexesExceeded", message));
        }
        let all = failed > 0 && failed + self.completed.len() >= self.spec.completions.unwrap_or(0);
        all.then(|| Verdict::failure("FailedIndexes", "Job has failed indexes"))
    }

    /// Which pods to make and which to take away. (`manageJob`.)
    fn manage(&self, plan: &mut Plan) {
        let active = self.active.len() as i32;
        let parallelism = self.spec.parallelism.unwrap_or(1);
        if self.spec.suspend == Some(true) {
            plan.discard = self.surplus(self.active.len());
            return;
        }
        let wanted = match self.spec.completions {
            Some(completions) => (completions - self.succeeded).clamp(0, parallelism.max(0)),
            // Once one has succeeded, the others may go on and no more are started.
            None if self.succeeded > 0 => active,
            None => parallelism,
        };
        plan.discard = self.surplus((active - wanted).max(0) as usize);
        if !plan.discard.is_empty() {
            plan.discard.truncate(BURST);
            return;
        }
        let leaving = if replaces_only_failed(self.spec) { self.terminating } else { 0 };
        let missing = (wanted - leaving - active).max(0) as usize;
        if missing == 0 {
            return;
        }
        if self.spec.backoff_limit_per_index.is_none()
            && let Some(wait) = self.wait_for_all()
        {
            plan.next = Some(wait);
            return;
        }
        if !is_indexed(self.spec) {
            plan.create = vec![self.pod(None); missing.min(BURST)];
            return;
        }
        let mut waits = Vec::new();
        for index in self.pending(missing.min(BURST)) {
            let before = self.awaiting.get(&index);
            match before.and_then(|pod| self.wait(failures(pod) + 1, pods::finished_at(pod))) {
                Some(wait) => waits.push(wait),
                None => plan.create.push(self.pod(Some(index))),
            }
        }
        if plan.create.is_empty() {
            plan.next = waits.into_iter().min();
        }
    }

    /// The first indexes that nobody works on and that have no result.
    fn pending(&self, count: usize) -> Vec<i32> {
        let mut taken = self.completed.clone();
        taken.extend(self.active.iter().filter_map(|pod| index(pod)));
        if replaces_only_failed(self.spec) {
            taken.extend(self.pods.iter().filter(|pod| pods::is_terminating(pod)).filter_map(|pod| index(pod)));
        }
        let completions = self.spec.completions.unwrap_or(0);
        let failed = self.failed_indexes.clone().unwrap_or_default();
        let mut free = taken.missing(count + failed.len() as usize, completions);
        free.retain(|index| !failed.contains(*index));
        free.truncate(count);
        free
    }

    /// At least `least` active pods to take away: those of wrong or doubled indexes, then the most dispensable.
    fn surplus(&self, least: usize) -> Vec<Arc<Pod>> {
        let mut all = self.active.clone();
        all.sort_by(|a, b| pods::by_dispensability(a, b));
        if !is_indexed(self.spec) {
            all.truncate(least);
            return all;
        }
        let mut seen = BTreeSet::new();
        let completions = self.spec.completions.unwrap_or(0);
        let mut keeps = |pod: &Arc<Pod>| index(pod).is_some_and(|index| index < completions && seen.insert(index));
        // The least dispensable pod of an index is seen first, and stays.
        let (mut left, mut gone): (Vec<_>, Vec<_>) = all.into_iter().rev().partition(|pod| keeps(pod));
        left.reverse();
        let more = least.saturating_sub(gone.len());
        gone.extend(left.into_iter().take(more));
        gone
    }

    /// How long failures in a row hold up new pods. Upstream counts them in memory; here they are read off the pods,
    /// so that a restart changes nothing.
    fn wait_for_all(&self) -> Option<SignedDuration> {
        let ends = |fits: &dyn Fn(&Pod) -> bool| {
            let all = self.pods.iter().filter(|pod| self.is_valid(pod) && fits(pod));
            all.filter_map(|pod| pods::finished_at(pod)).collect::<Vec<_>>()
        };
        let success = ends(&|pod| pods::phase(pod) == "Succeeded").into_iter().max();
        let mut failures = ends(&|pod| is_failed(self.spec, pod));
        failures.retain(|end| success.is_none_or(|success| *end > success));
        self.wait(failures.len() as i32, failures.into_iter().max())
    }

    fn wait(&self, failures: i32, last: Option<Timestamp>) -> Option<SignedDuration> {
        let doublings = u32::try_from(failures - 1).ok()?.min(16);
        let wait = (BACKOFF * (1 << doublings)).min(BACKOFF_MAX);
        let left = wait - self.now.duration_since(last?);
        left.is_positive().then_some(left)
    }

    /// A pod for the job; for an index, it is told which.
    fn pod(&self, index: Option<i32>) -> Pod {
        let mut pod = pods::from_template(self.job, &self.spec.template);
        let meta = &mut pod.metadata;
        let finalizers = meta.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        let Some(index) = index else { return pod };
        let name = self.job.name_any();
        let end = format!("-{index}-");
        let stem =
            if name.len() + end.len() > GENERATED_NAME_MAX { &name[..GENERATED_NAME_MAX - end.len()] } else { &name };
        meta.generate_name = Some(format!("{stem}{end}"));
        meta.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
        let annotations = meta.annotations.get_or_insert_default();
        annotations.insert(INDEX.into(), index.to_string());
        if self.spec.backoff_limit_per_index.is_some() {
            let before = self.awaiting.get(&index);
            let (mut failures, mut ignored) =
                before.map_or((0, 0), |pod| (number(pod, FAILURES), number(pod, IGNORED)));
            match before.map(|pod| policy::failure(self.job, pod)) {
                Some(Failure::Ignored) => ignored += 1,
                Some(_) => failures += 1,
                None => {}
            }
            annotations.insert(FAILURES.into(), failures.to_string());
            if ignored > 0 {
                annotations.insert(IGNORED.into(), ignored.to_string());
            }
        }
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(format!("{name}-{index}"));
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            let variables = container.env.get_or_insert_default();
            if !variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
                variables.push(index_variable());
            }
        }
        pod
    }

    /// Moves ended pods through the status, as far as the limit goes. True when all are in.
    /// (`trackJobStatusAndRemoveFinalizers`.)
    fn count(&self, status: &mut JobStatus, verdict: Option<&Verdict>, release: &mut Vec<Arc<Pod>>) -> bool {
        let held: BTreeSet<&str> = self.pods.iter().filter(|pod| has_finalizer(pod)).map(|pod| uid(pod)).collect();
        let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
        for (list, counter) in
            [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
        {
            let Some(uids) = list else { continue };
            let before = uids.len();
            uids.retain(|uid| held.contains(uid.as_str()));
            *counter = some(counter.unwrap_or(0) + (before - uids.len()) as i32);
        }
        let mut completed = self.completed.clone();
        let lost = verdict.is_some_and(|verdict| !verdict.success);
        let mut told_now = 0;
        let mut all_told = true;
        let mut pods: Vec<&Arc<Pod>> = self.pods.iter().filter(|pod| has_finalizer(pod)).collect();
        pods.sort_by_key(|pod| index(pod));
        for pod in pods {
            let failed = is_failed(self.spec, pod);
            if !self.may_go(pod, failed, verdict.is_some()) {
                continue;
            }
            if told_now + len(&uncounted.succeeded) + len(&uncounted.failed) >= UNCOUNTED_MAX {
                all_told = false;
                break;
            }
            release.push(pod.clone());
            if pods::phase(pod) == "Succeeded" && !self.uncounted_failed.contains(uid(pod)) {
                if is_indexed(self.spec) {
                    let new = index(pod).filter(|index| self.is_valid(pod) && !self.completed_before.contains(*index));
                    told_now += usize::from(new.is_some());
                    completed.extend(new);
                } else if !self.uncounted_succeeded.contains(uid(pod)) {
                    uncounted.succeeded.get_or_insert_default().push(uid(pod).into());
                }
            } else if (failed || lost) && !self.uncounted_failed.contains(uid(pod)) && self.is_valid(pod) {
                // A pod that the job's end took with it has not failed by itself; no rule is about it.
                let counts = !failed || policy::failure(self.job, pod) != Failure::Ignored;
                if counts {
                    uncounted.failed.get_or_insert_default().push(uid(pod).into());
                }
            }
        }
        for list in [&mut uncounted.succeeded, &mut uncounted.failed] {
            *list = list.take().filter(|uids| !uids.is_empty());
        }
        status.uncounted_terminated_pods = Some(uncounted);
        if is_indexed(self.spec) {
            status.succeeded = some(completed.len());
            status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
            status.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        }
        all_told
    }

    /// Whether a pod's end may be told. One whose index waits for another attempt must stay until that exists.
    fn may_go(&self, pod: &Pod, failed: bool, decided: bool) -> bool {
        if self.job.metadata.deletion_timestamp.is_some() || decided || pods::phase(pod) == "Succeeded" {
            return true;
        }
        let awaited = index(pod).and_then(|index| self.awaiting.get(&index));
        failed && awaited.is_none_or(|awaited| uid(awaited) != uid(pod))
    }
}

/// Tells that the job is suspended, or that it goes on; its time starts anew.
fn suspension(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|condition| condition.type_ == "Suspended");
    let known = at.map(|at| conditions[at].status == "True");
    if known.unwrap_or(false) != suspended {
        let (value, reason, message) =
            if suspended { ("True", "JobSuspended", "Job suspended") } else { ("False", "JobResumed", "Job resumed") };
        let new = new_condition("Suspended", value, reason, message, now);
        match at {
            Some(at) => conditions[at] = new,
            None => conditions.push(new),
        }
        status.start_time = (!suspended).then_some(Time(now));
    }
    status.conditions = status.conditions.take().filter(|list| !list.is_empty());
}

fn set(status: &mut JobStatus, kind: &str, verdict: &Verdict, now: Timestamp) {
    if condition(status, kind).is_none() {
        let new = new_condition(kind, "True", &verdict.reason, &verdict.message, now);
        status.conditions.get_or_insert_default().push(new);
    }
}

fn new_condition(kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn index_variable() -> EnvVar {
    let field_ref = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    EnvVar {
        name: INDEX_VARIABLE.into(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() }),
    }
}

/// Zero is left out, as the API writes it.
fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn len(list: &Option<Vec<String>>) -> usize {
    list.as_ref().map_or(0, Vec::len)
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// A count that an annotation tells; nonsense is nothing.
fn number(pod: &Pod, key: &str) -> i32 {
    pod.annotations().get(key).and_then(|text| text.parse().ok()).filter(|number| *number >= 0).unwrap_or(0)
}

fn failures(pod: &Pod) -> i32 {
    number(pod, FAILURES).saturating_add(number(pod, IGNORED))
}

#[cfg(test)]
mod tests;
