//! The row of a pod in a table (`printPod` of `pkg/printers/internalversion/printers.go`).
//!
//! STATUS is a summary people learned to read: the phase, unless a container or the deletion has more to say.

use jiff::Timestamp;
use serde_json::Value;

use super::resources::is_sidecar;
use crate::kinds::fill::{age, count, or_none, text};
use crate::kinds::{Column, fill};
use crate::object;

pub(super) const COLUMNS: &[Column] = &[
    Column::text("Ready"),
    Column::text("Status"),
    Column::text("Restarts"),
    Column::wide("IP"),
    Column::wide("Node"),
    Column::wide("Nominated Node"),
    Column::wide("Readiness Gates"),
];

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let restarts = match summary.restarted.filter(|_| summary.restarts != 0) {
        Some(when) => format!("{} ({} ago)", summary.restarts, age(when, now)),
        None => summary.restarts.to_string(),
    };
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        reason(pod, summary.reason).into(),
        restarts.into(),
        or_none(text(&status["podIPs"][0]["ip"])),
        or_none(text(&spec["nodeName"])),
        or_none(text(&status["nominatedNodeName"])),
        readiness_gates(pod),
    ]
}

/// What a deletion makes of the reason.
fn reason(pod: &Value, found: String) -> String {
    let finished = matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
    match object::is_deleting(pod) {
        true if pod["status"]["reason"] == "NodeLost" => "Unknown".into(),
        true if !finished => "Terminating".into(),
        _ => found,
    }
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = fill::len(&pod["spec"]["readinessGates"]);
    if gates == 0 {
        return "<none>".into();
    }
    let is_met = |gate: &&Value| condition(pod, text(&gate["conditionType"])) == Some("True");
    format!("{}/{gates}", object::items(&pod["spec"], "readinessGates").filter(is_met).count()).into()
}

/// The status of the pod's condition of a type.
fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    object::items(&pod["status"], "conditions").find(|c| c["type"] == kind).map(|c| text(&c["status"]))
}

/// What the containers say together.
struct Summary<'a> {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When a container last ended before it was started again.
    restarted: Option<&'a Value>,
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let sidecars = object::items(spec, "initContainers").filter(|c| is_sidecar(c)).count();
        let mut reason = [&status["reason"], &status["phase"]].map(text).into_iter().find(|t| !t.is_empty());
        let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
        if object::items(status, "conditions").any(gated) {
            reason = Some("SchedulingGated");
        }
        let mut summary = Self {
            ready: 0,
            total: fill::len(&spec["containers"]) + sidecars,
            reason: reason.unwrap_or_default().to_owned(),
            restarts: 0,
            restarted: None,
        };
        if !summary.initializing(pod) || condition(pod, "Initialized") == Some("True") {
            summary.running(pod);
        }
        summary
    }

    fn restarts_of(&mut self, container: &'a Value) {
        self.restarts += count(&container["restartCount"]);
        let ended = &container["lastState"]["terminated"]["finishedAt"];
        if !ended.is_null() && self.restarted.is_none_or(|known| text(known) < text(ended)) {
            self.restarted = Some(ended);
        }
    }

    /// Goes through the init containers; whether one of them holds the pod up.
    fn initializing(&mut self, pod: &'a Value) -> bool {
        let spec = &pod["spec"];
        let is_sidecar_status = |status: &Value| {
            object::items(spec, "initContainers").any(|c| c["name"] == status["name"] && is_sidecar(c))
        };
        let total = fill::len(&spec["initContainers"]);
        for (index, container) in object::items(&pod["status"], "initContainerStatuses").enumerate() {
            self.restarts_of(container);
            let (ended, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            if ended.is_object() && count(&ended["exitCode"]) == 0 {
                continue;
            }
            if is_sidecar_status(container) && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            let waits_for = text(&waiting["reason"]);
            self.reason = if ended.is_object() {
                format!("Init:{}", ending(ended))
            } else if !waits_for.is_empty() && waits_for != "PodInitializing" {
                format!("Init:{waits_for}")
            } else {
                format!("Init:{index}/{total}")
            };
            return true;
        }
        false
    }

    /// Goes through the containers proper; only sidecars' restarts are still of interest.
    fn running(&mut self, pod: &'a Value) {
        (self.restarts, self.restarted) = (0, None);
        let sidecar = |status: &&Value| {
            object::items(&pod["spec"], "initContainers").any(|c| c["name"] == status["name"] && is_sidecar(c))
        };
        object::items(&pod["status"], "initContainerStatuses").filter(sidecar).for_each(|c| self.restarts_of(c));
        let (mut has_running, mut failure) = (false, String::new());
        let statuses: Vec<&Value> = object::items(&pod["status"], "containerStatuses").collect();
        for container in statuses.into_iter().rev() {
            self.restarts_of(container);
            let state = &container["state"];
            if !text(&state["waiting"]["reason"]).is_empty() {
                self.reason = text(&state["waiting"]["reason"]).to_owned();
            } else if state["terminated"].is_object() {
                self.reason = ending(&state["terminated"]);
                if count(&state["terminated"]["exitCode"]) != 0 {
                    failure.clone_from(&self.reason);
                }
            } else if container["ready"] == true && state["running"].is_object() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if has_running && condition(pod, "Ready") == Some("True") {
                self.reason = "Running".into();
            } else if !failure.is_empty() {
                self.reason = failure;
            } else if has_running {
                self.reason = "NotReady".into();
            }
        }
    }
}

/// How a container ended.
fn ending(ended: &Value) -> String {
    match (text(&ended["reason"]), count(&ended["signal"])) {
        ("", 0) => format!("ExitCode:{}", count(&ended["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(pod: Value, expected: [&str; 3]) {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(row(&pod, now)[..3], expected.map(Value::from), "{pod}");
    }

    #[test]
    fn one_container() {
        let pod = |status: Value| json!({"spec": {"containers": [{"name": "a"}]}, "status": status});
        check(pod(json!({"phase": "Pending"})), ["0/1", "Pending", "0"]);
        let state = |state: Value| pod(json!({"phase": "Running", "containerStatuses": [state]}));
        check(state(json!({"ready": true, "state": {"running": {}}})), ["1/1", "Running", "0"]);
        let back_off = json!({"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:30Z"}}});
        check(state(back_off), ["0/1", "CrashLoopBackOff", "3 (30s ago)"]);
        check(state(json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}})), ["0/1", "Signal:9", "0"]);
        check(state(json!({"state": {"terminated": {"exitCode": 1}}})), ["0/1", "ExitCode:1", "0"]);
        check(pod(json!({"phase": "Failed", "reason": "Evicted"})), ["0/1", "Evicted", "0"]);
        let mut going = pod(json!({"phase": "Running"}));
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        check(going, ["0/1", "Terminating", "0"]);
    }

    #[test]
    fn init_containers_and_sidecars() {
        let pod = |statuses: Value| {
            json!({"spec": {"containers": [{"name": "a"}],
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses}})
        };
        check(
            pod(json!([{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}])),
            ["0/2", "Init:0/2", "0"],
        );
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        check(
            pod(json!([done, {"name": "s", "state": {"waiting": {"reason": "ErrImagePull"}}}])),
            ["0/2", "Init:ErrImagePull", "0"],
        );
        check(
            pod(
                json!([done, {"name": "s", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}]),
            ),
            ["1/2", "Pending", "2"],
        );
        check(
            pod(json!([{"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 3}}}])),
            ["0/2", "Init:ExitCode:3", "1"],
        );
    }
}
