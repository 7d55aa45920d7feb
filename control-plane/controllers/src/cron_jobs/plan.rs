//! Which job a cron job starts now, which it takes away, and when it wants to be looked at again. Pure.
//! (`pkg/controller/cronjob/{cronjob_controllerv2,utils}.go`.)

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kedge_world::later;
use kube::{Resource, ResourceExt};

use super::schedule::Schedule;
use crate::jobs::ended;
use crate::pods::owned_by;

/// Tells the job's instant in the schedule's time zone (KEP-4026).
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Clocks differ by a little; a look that is early would find nothing due (`nextScheduleDelta`).
const MARGIN: SignedDuration = SignedDuration::from_millis(100);

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: CronJobStatus,
    /// Names of jobs that go: replaced ones, and ended ones beyond the history.
    pub(super) delete: Vec<String>,
    /// The job to start, and its instant.
    pub(super) create: Option<(Job, Timestamp)>,
    /// When to look again though nothing changed.
    pub(super) next: Option<SignedDuration>,
    /// Why nothing can be started until the spec changes.
    pub(super) problem: Option<String>,
}

pub(super) fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let mut plan = Plan { status: status(cron, jobs), ..Plan::default() };
    plan.delete = history(spec, jobs);
    if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return plan;
    }
    let schedule = zone(spec).and_then(|zone| Schedule::parse(&spec.schedule, zone));
    let schedule = match schedule {
        Ok(schedule) => schedule,
        Err(problem) => return Plan { problem: Some(problem), ..plan },
    };
    let from = started(cron);
    let oldest =
        spec.starting_deadline_seconds.map(|seconds| later(now, SignedDuration::from_secs(seconds.saturating_neg())));
    let due = latest(&schedule, oldest.map_or(from, |oldest| from.max(oldest)), now);
    let name = |time: Timestamp| format!("{}-{}", cron.name_any(), time.as_second().div_euclid(60));
    let told = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let running = plan.status.active.as_ref().is_some_and(|active| !active.is_empty());
    let mut wait_from = from;
    if let Some(time) = due {
        wait_from = time;
        let known = plan.status.active.iter().flatten().any(|job| job.name.as_deref() == Some(&name(time)));
        let forbidden = spec.concurrency_policy.as_deref() == Some("Forbid") && running;
        if !known && told != Some(time) && !forbidden {
            if spec.concurrency_policy.as_deref() == Some("Replace") {
                let replaced = plan.status.active.take().into_iter().flatten().filter_map(|job| job.name);
                plan.delete.extend(replaced.filter(|name| jobs.iter().any(|job| job.name_any() == *name)));
            }
            plan.create = Some((job(cron, spec, name(time), time), time));
        }
    }
    plan.next =
        schedule.next(latest(&schedule, wait_from, now).unwrap_or(wait_from)).map(|t| t.duration_since(now) + MARGIN);
    plan
}

fn zone(spec: &CronJobSpec) -> Result<TimeZone, String> {
    // Upstream takes the zone of its process, which is UTC wherever that is a container.
    let Some(name) = &spec.time_zone else { return Ok(TimeZone::UTC) };
    TimeZone::get(name).map_err(|error| format!("unknown time zone {name:?}: {error}"))
}

/// The instant from which on starts are missing.
fn started(cron: &CronJob) -> Timestamp {
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    last.or(cron.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// The last instant of the schedule after `from` and not after `now`. Of a long past only the end is walked.
/// (`mostRecentScheduleTime`.)
fn latest(schedule: &Schedule, from: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let first = schedule.next(from).filter(|first| *first <= now)?;
    let Some(second) = schedule.next(first) else { return Some(first) };
    let between = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / between;
    // Instants need not be evenly apart: go back a little, and further until there is one.
    let mut back = 1;
    loop {
        let start = first + SignedDuration::from_secs((missed - back).max(0) * between);
        let mut last = (start == first).then_some(first);
        let mut next = schedule.next(start);
        while let Some(time) = next.filter(|time| *time <= now) {
            last = Some(time);
            next = schedule.next(time);
        }
        if last.is_some() {
            return last;
        }
        back *= 4;
    }
}

/// The job for one instant.
fn job(cron: &CronJob, spec: &CronJobSpec, name: String, time: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let zone = zone(spec).unwrap_or(TimeZone::UTC);
    let shown = match spec.time_zone {
        Some(_) => time.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        None => time.to_string(),
    };
    // RFC 3339 as Go writes it: no offset is a Z.
    annotations.insert(SCHEDULED.into(), shown.replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron.namespace(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owned_by(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// The status as the jobs make it: active are those that were told of and have not ended.
fn status(cron: &CronJob, jobs: &[Arc<Job>]) -> CronJobStatus {
    let mut status = cron.status.clone().unwrap_or_default();
    let running = |uid: Option<&String>| jobs.iter().any(|job| job.uid().as_ref() == uid && ended(job).is_none());
    if let Some(active) = &mut status.active {
        active.retain(|job| running(job.uid.as_ref()));
    }
    status.active = status.active.filter(|active| !active.is_empty());
    let succeeded = jobs.iter().filter(|job| ended(job).is_some_and(|condition| condition.type_ == "Complete"));
    let ends = succeeded.filter_map(|job| job.status.as_ref()?.completion_time.as_ref().map(|time| time.0));
    let before = status.last_successful_time.map(|time| time.0);
    status.last_successful_time = ends.chain(before).max().map(Time);
    status
}

/// Names of the oldest ended jobs beyond what is kept of each kind.
fn history(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<String> {
    let beyond = |kind: &str, limit: Option<i32>| {
        let fits = |job: &&Arc<Job>| ended(job).is_some_and(|condition| condition.type_ == kind);
        let mut ended: Vec<&Arc<Job>> = jobs.iter().filter(fits).collect();
        let start = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone().map(|time| time.0));
        ended.sort_by_key(|job| (start(job).is_none(), start(job), job.name_any()));
        let surplus = limit.map_or(0, |limit| ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0)));
        ended.into_iter().take(surplus).map(|job| job.name_any()).collect::<Vec<_>>()
    };
    let mut names = beyond("Complete", spec.successful_jobs_history_limit);
    names.extend(beyond("Failed", spec.failed_jobs_history_limit));
    names
}

/// Tells that a job was started for `time`.
pub(super) fn tell_started(status: &mut CronJobStatus, job: &Job, time: Timestamp) {
    let active = status.active.get_or_insert_default();
    if !active.iter().any(|known| known.uid == job.uid()) {
        active.push(ObjectReference {
            api_version: Some(Job::api_version(&()).into_owned()),
            kind: Some(Job::kind(&()).into_owned()),
            name: job.metadata.name.clone(),
            namespace: job.namespace(),
            resource_version: job.resource_version(),
            uid: job.uid(),
            field_path: None,
        });
    }
    status.last_schedule_time = Some(Time(time));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut spec = spec;
        spec["jobTemplate"] = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}});
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "cron",
            "creationTimestamp": "2026-01-01T00:00:30Z"}, "spec": spec, "status": status}))
        .unwrap()
    }

    fn job(name: &str, ended: &str, at: &str) -> Arc<Job> {
        let conditions = if ended.is_empty() { json!([]) } else { json!([{"type": ended, "status": "True"}]) };
        let done = (ended == "Complete").then_some(at);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name},
                "status": {"startTime": at, "completionTime": done, "conditions": conditions}}))
            .unwrap(),
        )
    }

    fn look(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Plan {
        plan(cron, jobs, now.parse().unwrap())
    }

    #[test]
    fn a_job_starts_at_its_instant_and_the_next_look_is_at_the_next() {
        let check = |spec: Value, status: Value, now: &str, name: Option<&str>, next: i64| {
            let plan = look(&cron(spec, status), &[], now);
            let made = plan.create.map(|(job, _)| job.name_any());
            assert_eq!((made.as_deref(), plan.next.unwrap().as_secs()), (name, next), "{now}");
        };
        let minutes = || json!({"schedule": "* * * * *"});
        check(minutes(), json!({}), "2026-01-01T00:00:40Z", None, 20);
        check(minutes(), json!({}), "2026-01-01T00:01:00Z", Some("c-29453761"), 60);
        check(minutes(), json!({"lastScheduleTime": "2026-01-01T00:01:00Z"}), "2026-01-01T00:01:20Z", None, 40);
        // Of many that were missed, the last one starts.
        check(minutes(), json!({}), "2026-01-01T05:00:10Z", Some("c-29454060"), 50);
        check(
            json!({"schedule": "0 * * * *", "startingDeadlineSeconds": 60}),
            json!({}),
            "2026-01-01T01:00:59Z",
            Some("c-29453820"),
            3541,
        );
        check(
            json!({"schedule": "0 * * * *", "startingDeadlineSeconds": 60}),
            json!({}),
            "2026-01-01T01:01:01Z",
            None,
            3539,
        );
        check(
            json!({"schedule": "@hourly", "timeZone": "Asia/Kathmandu"}),
            json!({}),
            "2026-01-01T00:15:00Z",
            Some("c-29453775"),
            3600,
        );
        // What users write is taken as far as there is time.
        for seconds in [i64::MAX, 9_000_000_000_000] {
            let spec = json!({"schedule": "0 * * * *", "startingDeadlineSeconds": seconds});
            check(spec, json!({}), "2026-01-01T01:01:01Z", Some("c-29453820"), 3539);
        }
        let never = json!({"schedule": "@every 9000000000000s"});
        assert_eq!(look(&cron(never, json!({})), &[], "2026-01-01T01:01:01Z").next, None);
        assert!(
            look(&cron(json!({"schedule": "* * * * *", "suspend": true}), json!({})), &[], "2026-01-02T00:00:00Z")
                .create
                .is_none()
        );
        assert!(
            look(&cron(json!({"schedule": "* * * * *", "timeZone": "Mars/X"}), json!({})), &[], "2026-01-02T00:00:00Z")
                .problem
                .is_some()
        );
    }

    #[test]
    fn uneven_schedules_find_their_last_instant() {
        // 2026-01-05 is a Monday; the last instant before it is on Friday afternoon.
        let schedule = Schedule::parse("30 6-16/4 * * 1-5", TimeZone::UTC).unwrap();
        let due = latest(&schedule, "2026-01-01T00:00:00Z".parse().unwrap(), "2026-01-05T06:00:00Z".parse().unwrap());
        assert_eq!(due.unwrap().to_string(), "2026-01-02T14:30:00Z");
    }

    #[test]
    fn policies_about_a_job_that_still_runs() {
        let active = json!({"active": [{"name": "old", "namespace": "n", "uid": "old"}], "lastScheduleTime": "2026-01-01T00:01:00Z"});
        let check = |policy: &str, made: bool, deleted: &[&str]| {
            let cron = cron(json!({"schedule": "* * * * *", "concurrencyPolicy": policy}), active.clone());
            let plan = look(&cron, &[job("old", "", "2026-01-01T00:01:00Z")], "2026-01-01T00:02:00Z");
            assert_eq!(
                (plan.create.is_some(), plan.delete),
                (made, deleted.iter().map(|s| s.to_string()).collect()),
                "{policy}"
            );
        };
        check("Allow", true, &[]);
        check("Forbid", false, &[]);
        check("Replace", true, &["old"]);
    }

    #[test]
    fn ended_jobs_leave_the_status_and_then_the_history() {
        let spec = json!({"schedule": "0 0 1 1 *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
        let status = json!({"active": [{"name": "b", "uid": "b"}, {"name": "gone", "uid": "gone"}]});
        let jobs = [
            job("a", "Complete", "2026-01-01T00:01:00Z"),
            job("b", "Complete", "2026-01-01T00:02:00Z"),
            job("f", "Failed", "2026-01-01T00:02:00Z"),
        ];
        let plan = look(&cron(spec, status), &jobs, "2026-01-01T00:03:00Z");
        assert_eq!(plan.delete, ["a", "f"]);
        assert_eq!(plan.status.active, None);
        assert_eq!(plan.status.last_successful_time.unwrap().0.to_string(), "2026-01-01T00:02:00Z");
    }

    #[test]
    fn a_job_tells_its_instant() {
        let check = |zone: Value, shown: &str| {
            let cron = cron(json!({"schedule": "0 12 * * *", "timeZone": zone}), json!({}));
            let (job, time) = look(&cron, &[], "2026-01-02T00:00:00Z").create.unwrap();
            assert_eq!(job.annotations()[SCHEDULED], shown);
            assert_eq!((job.labels()["a"].as_str(), job.owner_references()[0].uid.as_str()), ("b", "cron"));
            let mut status = CronJobStatus::default();
            tell_started(&mut status, &job, time);
            assert_eq!(status.last_schedule_time, Some(Time(time)));
        };
        check(json!(null), "2026-01-01T12:00:00Z");
        check(json!("America/New_York"), "2026-01-01T12:00:00-05:00");
    }
}
