//! CronJob: jobs by the clock.
//! (`pkg/apis/batch/v1/defaults.go`, `pkg/apis/batch/validation`, `pkg/registry/batch/cronjob/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use kedge_schema::field::{FieldError, Path};
use serde_json::Value;

use super::fill::{age, fill, keep_spec, len, text};
use super::{Column, Rules, check, job, workload};
use crate::object;

mod schedule;

/// The names of its jobs are eleven letters longer.
const NAME_BYTES_MAX: usize = 52;

pub(super) struct CronJob;

impl Rules for CronJob {
    fn default(&self, cron_job: &mut Value) {
        let Some(spec) = cron_job.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        fill(spec, "concurrencyPolicy", "Allow");
        object::default(spec, "suspend", false);
        object::default(spec, "successfulJobsHistoryLimit", 3);
        object::default(spec, "failedJobsHistoryLimit", 1);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        keep_spec(new, old);
    }

    fn validate(&self, cron_job: &Value) -> Vec<FieldError> {
        let (spec, path, mut errors) = (&cron_job["spec"], Path::new("spec"), Vec::new());
        let (at, text_of) = (path.child("schedule"), text(&spec["schedule"]));
        if text_of.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else {
            errors.extend(schedule::fault(text_of).map(|why| FieldError::invalid(&at, text_of, why)));
            if text_of.contains("TZ") {
                let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errors.push(FieldError::invalid(&at, text_of, why));
            }
        }
        time_zone(&mut errors, &spec["timeZone"], &path.child("timeZone"));
        for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            check::not_negative(&mut errors, &path.child(key), &spec[key]);
        }
        let policies = &["Allow", "Forbid", "Replace"];
        check::one_of(&mut errors, &path.child("concurrencyPolicy"), &spec["concurrencyPolicy"], policies);
        let (job, path) = (&spec["jobTemplate"]["spec"], path.child("jobTemplate").child("spec"));
        job::valid::validate_spec(&mut errors, job, &path);
        if job["manualSelector"] == true {
            let path = path.child("manualSelector");
            errors.push(FieldError::not_supported(&path, Value::Bool(true), &["nil", "false"]));
        }
        errors
    }

    fn validate_create(&self, cron_job: &Value) -> Vec<FieldError> {
        let name = object::name(cron_job);
        if name.len() <= NAME_BYTES_MAX {
            return Vec::new();
        }
        let why = format!("must be no more than {NAME_BYTES_MAX} characters");
        vec![FieldError::invalid(&Path::new("metadata").child("name"), name, why)]
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> Cow<'_, [Column]> {
        const COLUMNS: &[Column] = &[
            Column::text("Schedule"),
            Column::text("Timezone"),
            Column::flag("Suspend"),
            Column::count("Active"),
            Column::text("Last Schedule"),
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        Cow::Borrowed(COLUMNS)
    }

    fn row(&self, cron_job: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&cron_job["spec"], &cron_job["status"]);
        let suspended = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = &status["lastScheduleTime"];
        let cells: [Value; 5] = [
            text(&spec["schedule"]).into(),
            spec["timeZone"].as_str().unwrap_or("<none>").into(),
            suspended.into(),
            len(&status["active"]).into(),
            if last.is_null() { "<none>".into() } else { age(last, now).into() },
        ];
        cells.into_iter().chain(workload::pod_cells(&spec["jobTemplate"]["spec"])).collect()
    }
}

/// A zone of the tz database.
fn time_zone(errors: &mut Vec<FieldError>, zone: &Value, path: &Path) {
    let Some(name) = zone.as_str() else { return };
    let why = match name {
        "" => "timeZone must be nil or non-empty string".to_owned(),
        name if name.eq_ignore_ascii_case("local") => {
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
        }
        name if jiff::tz::db().get(name).is_err() => format!("unknown time zone {name}"),
        _ => return,
    };
    errors.push(FieldError::invalid(path, name, why));
}
