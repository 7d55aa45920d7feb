//! CronJob: jobs by the clock.
//! (`pkg/apis/batch/v1/defaults.go`, `pkg/apis/batch/validation`, `pkg/registry/batch/cronjob/strategy.go`.)

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::fill::{age, fill, keep_spec, len, text};
use super::{Column, Rules, workload};
use crate::object;

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

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_by_default(&self) -> bool {
        false
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
