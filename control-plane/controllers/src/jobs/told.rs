//! What a new status of a job is worth telling, for `kubectl describe`. Pure. (`recordJobFinished` and `syncJob`.)

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};

use super::condition;

/// An event about a job.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    /// Whether it is a trouble.
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Told {
    fn new(warning: bool, reason: &str, message: &str) -> Self {
        Self { warning, reason: reason.into(), message: message.into() }
    }
}

/// What is told once `job`, with the status from before, has the status `after`.
pub(super) fn told(job: &Job, after: &JobStatus) -> Vec<Told> {
    let new = |kind: &str| {
        let before = job.status.as_ref().and_then(|status| condition(status, kind));
        condition(after, kind).filter(|_| before.is_none())
    };
    let mut out = Vec::new();
    if new("Suspended").is_some() {
        out.push(Told::new(false, "Suspended", "Job suspended"));
    }
    let was_suspended = job.status.as_ref().is_some_and(|status| condition(status, "Suspended").is_some());
    if was_suspended && after.conditions.iter().flatten().any(is_resumed) {
        out.push(Told::new(false, "Resumed", "Job resumed"));
    }
    if new("Complete").is_some() {
        let wanted = job.spec.as_ref().and_then(|spec| spec.completions);
        if wanted.is_some_and(|wanted| after.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            out.push(Told::new(true, "TooManySucceededPods", message));
        }
        out.push(Told::new(false, "Completed", "Job completed"));
    }
    if let Some(failed) = new("Failed") {
        let text = |of: &Option<String>| of.clone().unwrap_or_default();
        out.push(Told::new(true, &text(&failed.reason), &text(&failed.message)));
    }
    out
}

fn is_resumed(condition: &JobCondition) -> bool {
    condition.type_ == "Suspended" && condition.status == "False"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_end_and_the_pauses_of_a_job_are_told_once() {
        let check = |before: Value, after: Value, expected: &[&str]| {
            let job = json!({ "spec": { "template": {}, "completions": 1 }, "status": { "conditions": before } });
            let job: Job = serde_json::from_value(job).unwrap();
            let after = serde_json::from_value(json!({ "succeeded": 1, "conditions": after })).unwrap();
            let kind = |warning| if warning { "Warning" } else { "Normal" };
            let said =
                told(&job, &after).into_iter().map(|t| format!("{} {} {}", kind(t.warning), t.reason, t.message));
            assert_eq!(said.collect::<Vec<_>>(), expected);
        };
        let is = |kind: &str, status: &str, reason: &str| json!([{ "type": kind, "status": status, "reason": reason, "message": "so" }]);
        let complete = is("Complete", "True", "CompletionsReached");
        check(json!([]), complete.clone(), &["Normal Completed Job completed"]);
        check(complete.clone(), complete, &[]);
        check(json!([]), is("SuccessCriteriaMet", "True", "CompletionsReached"), &[]);
        check(json!([]), is("FailureTarget", "True", "BackoffLimitExceeded"), &[]);
        for reason in ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"] {
            check(json!([]), is("Failed", "True", reason), &[&format!("Warning {reason} so")]);
        }
        let (on, off) = (is("Suspended", "True", "JobSuspended"), is("Suspended", "False", "JobResumed"));
        check(json!([]), on.clone(), &["Normal Suspended Job suspended"]);
        check(on.clone(), on.clone(), &[]);
        check(on, off.clone(), &["Normal Resumed Job resumed"]);
        check(off.clone(), off, &[]);
    }
}
