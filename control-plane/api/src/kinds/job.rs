//! Job: pods that run to their end.
//! (`pkg/apis/batch/v1/defaults.go`, `pkg/apis/batch/validation`, `pkg/registry/batch/job/strategy.go`.)
//!
//! A job selects its pods by a label that nobody else has: its own uid, unless the author selects by hand.

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::FieldError;
use serde_json::{Value, json};

use super::fill::{count, keep_spec, len, text};
use super::{Column, Rules, workload};
use crate::object;
use crate::table;

pub(super) mod valid;

/// The label keys of a job's pods, with and without prefix: the old ones are still read.
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

pub(super) struct Job;

impl Rules for Job {
    fn default(&self, job: &mut Value) {
        let labels = job["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() && len(&job["metadata"]["labels"]) == 0 {
            object::metadata_mut(job).insert("labels".into(), labels);
        }
        if let Some(spec) = job.get_mut("spec").filter(|spec| spec.is_object()) {
            default_spec(spec);
        }
    }

    fn finish_create(&self, job: &mut Value) {
        if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
            return;
        }
        let (uid, name) = (object::uid(job).to_owned(), object::name(job).to_owned());
        if !job["spec"]["template"].is_object() {
            job["spec"]["template"] = json!({});
        }
        let metadata = object::metadata_mut(&mut job["spec"]["template"]);
        let labels = object::as_map(metadata.entry("labels").or_insert_with(|| json!({})));
        for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
            for key in keys {
                // A wrong value stays, so that validation tells of it.
                labels.entry(key).or_insert_with(|| value.as_str().into());
            }
        }
        if job["spec"]["selector"].is_null() {
            job["spec"]["selector"] = json!({});
        }
        let selected = object::child(&mut job["spec"]["selector"], "matchLabels");
        selected.entry(UID_LABELS[1]).or_insert_with(|| uid.into());
        // Upstream's storage applies the defaults once more when it reads.
        self.default(job);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, job: &Value) -> Vec<FieldError> {
        valid::validate(job)
    }

    fn validate_create(&self, job: &Value) -> Vec<FieldError> {
        valid::generated_selector(job)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        valid::validate_update(new, old)
    }

    fn selectable(&self) -> Cow<'_, [(Cow<'static, str>, &'static str)]> {
        Cow::Borrowed(&[(Cow::Borrowed("status.successful"), "0")])
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::text("Status"),
            Column::text("Completions"),
            Column::text("Duration"),
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, job: &Value, now: Timestamp) -> Vec<Value> {
        let cells = [state(job).into(), completions(job).into(), duration(&job["status"], now).into()];
        cells.into_iter().chain(workload::pod_cells(&job["spec"])).collect()
    }
}

/// The defaults of a job's spec; one within a cron job's template gets them when it becomes a job.
fn default_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        object::default(spec, "completions", 1);
    }
    object::default(spec, "parallelism", 1);
    let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i32::MAX };
    object::default(spec, "backoffLimit", limit);
    object::default(spec, "completionMode", "NonIndexed");
    object::default(spec, "suspend", false);
    let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    object::default(spec, "podReplacementPolicy", replacement);
    object::default(spec, "manualSelector", false);
}

fn state(job: &Value) -> &'static str {
    let has =
        |kind: &str| object::items(&job["status"], "conditions").any(|c| c["type"] == kind && c["status"] == "True");
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if object::is_deleting(job) => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> String {
    let succeeded = count(&job["status"]["succeeded"]);
    match (job["spec"]["completions"].as_i64(), count(&job["spec"]["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(status: &Value, now: Timestamp) -> String {
    let at = |key: &str| text(&status[key]).parse::<Timestamp>().ok();
    match (at("startTime"), at("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => table::human_duration(end.unwrap_or(now).duration_since(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_by_its_own_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        Job.default(&mut job);
        Job.finish_create(&mut job);
        assert_eq!(job["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": "u"}));
        let labels = &job["spec"]["template"]["metadata"]["labels"];
        assert_eq!((&labels["job-name"], &labels["controller-uid"]), (&json!("j"), &json!("u")));

        let mut by_hand =
            json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"manualSelector": true, "template": {}}});
        Job.finish_create(&mut by_hand);
        assert!(by_hand["spec"]["selector"].is_null());
    }

    #[test]
    fn rows() {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let check = |job: Value, expected: [&str; 3]| assert_eq!(Job.row(&job, now)[..3], expected.map(Value::from));
        let started = json!({"startTime": "2026-01-01T00:00:00Z", "succeeded": 1});
        check(json!({"spec": {"completions": 3}, "status": started}), ["Running", "1/3", "5m"]);
        check(json!({"spec": {"parallelism": 4}, "status": {}}), ["Running", "0/1 of 4", ""]);
        let done = json!({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:01Z", "succeeded": 1,
            "conditions": [{"type": "Complete", "status": "True"}]});
        check(json!({"spec": {"completions": 1}, "status": done}), ["Complete", "1/1", "61s"]);
    }
}
