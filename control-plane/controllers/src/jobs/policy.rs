//! What a job says about pods that failed, and about when enough of it succeeded. Pure.
//! (`pkg/controller/job/{pod_failure_policy,success_policy}.go`, KEP-3329, KEP-3998.)

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::indexes::Indexes;

/// What the failure of a pod means for its job.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// One more towards the limits. Also what holds when no rule matches.
    Counts,
    /// As if it had not happened; another pod takes its place.
    Ignored,
    /// No other pod is tried for this index.
    FailsIndex,
    /// The job has failed, with this message.
    FailsJob(String),
}

/// What the first matching rule of the job's policy says about a failed pod.
pub(super) fn failure(job: &Job, pod: &Pod) -> Failure {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let rules = policy.map_or(&[][..], |policy| &policy.rules);
    for (index, rule) in rules.iter().enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        return match &*rule.action {
            "Ignore" => Failure::Ignored,
            "FailIndex" => Failure::FailsIndex,
            "FailJob" => Failure::FailsJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Failure::Counts,
        };
    }
    Failure::Counts
}

/// Why a rule is about this pod; none when it is not.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let (container, code) =
            containers.filter_map(|c| Some((c, exit_code(c)?))).find(|(c, code)| fits(wanted, c, *code))?;
        return Some(format!("Container {} for pod {name} failed with exit code {code}", container.name));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let met = status.conditions.iter().flatten().find(|condition| {
        patterns.iter().any(|p| p.type_ == condition.type_ && p.status.as_deref().unwrap_or("True") == condition.status)
    })?;
    Some(format!("Pod {name} has condition {}", met.type_))
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn fits(wanted: &PodFailurePolicyOnExitCodesRequirement, container: &ContainerStatus, code: i32) -> bool {
    let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
    named && code != 0 && (wanted.operator == "In") == wanted.values.contains(&code)
}

/// The rule of the success policy that these succeeded indexes satisfy, as the condition's message.
pub(super) fn success(job: &Job, succeeded: &Indexes) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let policy = spec.success_policy.as_ref().filter(|_| !succeeded.is_empty())?;
    let met = policy.rules.iter().position(|rule| {
        let enough = |have: i32| rule.succeeded_count.is_some_and(|wanted| have >= wanted);
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::parse(text, spec.completions.unwrap_or(0));
                let have = wanted.in_common(succeeded);
                !wanted.is_empty() && (have == wanted.len() || enough(have))
            }
            None => enough(succeeded.len()),
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_first_matching_rule_decides() {
        let check = |rules: Value, expected: Failure| {
            let job: Job =
                serde_json::from_value(json!({"spec": {"template": {}, "podFailurePolicy": {"rules": rules}}}))
                    .unwrap();
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}],
                "containerStatuses": [
                    {"name": "ok", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
                    {"name": "bad", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 42}}},
                ]}}))
            .unwrap();
            assert_eq!(failure(&job, &pod), expected, "{rules}");
        };
        let on_codes = |action: &str, operator: &str, values: &[i32], name: Option<&str>| {
            json!({"action": action,
            "onExitCodes": {"containerName": name, "operator": operator, "values": values}})
        };
        let disrupted =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let told = "Container bad for pod n/p failed with exit code 42 matching FailJob rule at index 0".to_owned();
        check(json!([]), Failure::Counts);
        check(json!([on_codes("FailJob", "In", &[41, 42], None)]), Failure::FailsJob(told.clone()));
        check(json!([on_codes("FailJob", "NotIn", &[1], Some("bad")), disrupted]), Failure::FailsJob(told));
        check(json!([on_codes("FailJob", "In", &[42], Some("ok")), disrupted]), Failure::Ignored);
        check(json!([on_codes("FailIndex", "In", &[42], None)]), Failure::FailsIndex);
        check(json!([on_codes("Count", "In", &[42], None), disrupted]), Failure::Counts);
        // An exit code of zero is no failure, whatever is not in the list.
        check(json!([on_codes("FailJob", "NotIn", &[42], None)]), Failure::Counts);
    }

    #[test]
    fn success_policies() {
        let check = |rules: Value, succeeded: &str, expected: Option<&str>| {
            let job: Job = serde_json::from_value(json!({"spec": {"template": {}, "completions": 10,
                "successPolicy": {"rules": rules}}}))
            .unwrap();
            let succeeded = Indexes::parse(succeeded, 10);
            assert_eq!(success(&job, &succeeded).as_deref(), expected, "{rules} {succeeded}");
        };
        check(json!([{"succeededIndexes": "0,2-4"}]), "0-3", None);
        check(json!([{"succeededIndexes": "0,2-4"}]), "0-4", Some("Matched rules at index 0"));
        check(json!([{"succeededIndexes": "0,2-4", "succeededCount": 2}]), "3-9", Some("Matched rules at index 0"));
        check(json!([{"succeededIndexes": "0"}, {"succeededCount": 3}]), "1-3", Some("Matched rules at index 1"));
        check(json!([{"succeededCount": 3}]), "1,2", None);
        check(json!([]), "0-9", None);
    }
}
