//! Whether this node takes a pod that is bound to it: what was bound by hand, or on old news, may not fit. No I/O.
//!
//! Rules: `pkg/kubelet/lifecycle/predicate.go`, which asks the scheduler's plugins again
//! (`pkg/scheduler.AdmissionCheck`); the first reason is the one that is told. A pod that this node took once stays,
//! also over a restart: that is for the caller to know. Nothing is evicted to make room.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_client::{host_ports, untolerated, wants_node};

use crate::plan::Problem;
use crate::resources::{self, QosClass};

/// The reason that may pass once the node's newest labels are known.
pub const NODE_AFFINITY: &str = "NodeAffinity";
const OS_LABEL: &str = "kubernetes.io/os";
const OS: &str = "linux";
/// The priority of critical pods, and of more important ones (`SystemCriticalPriority`).
const SYSTEM_CRITICAL: i32 = 2_000_000_000;
/// The order in which resources are looked at; others come after these, by name.
const FIRST: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Takes a pod beside `others`, the pods that were taken and are not over, or says why not.
pub fn admit(pod: &Pod, others: &[&Pod], node: &Node) -> Result<(), Problem> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let problem = |reason: &str, message: String| Problem { reason: reason.to_owned(), message };
    let predicate = |name: &str, why: &str| Err(problem(name, format!("Predicate {name} failed: {why}")));
    let os = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if os.is_some_and(|os| os != OS) {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(problem("PodOSSelectorNodeLabelDoesNotMatch", message.to_owned()));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != OS) {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(problem("PodOSNotSupported", message.to_owned()));
    }
    if let Some(lack) = lacking(spec, others, node) {
        return Err(problem(&format!("OutOf{}", lack.resource), lack.message()));
    }
    if !wants_node(spec, node) {
        return predicate(NODE_AFFINITY, "node(s) didn't match Pod's node affinity/selector");
    }
    if spec.node_name != node.metadata.name {
        return predicate("NodeName", "node(s) didn't match the requested node name");
    }
    let wanted = host_ports(spec);
    let mut taken = others.iter().filter_map(|other| other.spec.as_ref()).flat_map(host_ports);
    if taken.any(|port| wanted.iter().any(|wanted| wanted.clashes(&port))) {
        return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    if untolerated(spec, node, |effect| effect == "NoExecute").next().is_some() {
        return predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    Ok(())
}

/// While its disks are nearly full, a node takes critical pods alone. (`pkg/kubelet/eviction.Admit`, `IsCriticalPod`.)
pub fn admit_under_pressure(pod: &Pod) -> Result<(), Problem> {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
    if priority >= SYSTEM_CRITICAL {
        return Ok(());
    }
    let message = "The node had condition: [DiskPressure]. ".to_owned();
    Err(Problem { reason: "Evicted".to_owned(), message })
}

/// A resource of which there is not enough; cpu in thousandths of a core, others in their own unit.
struct Lack {
    resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Lack {
    fn message(&self) -> String {
        let Self { resource, requested, used, capacity } = self;
        format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

/// What there is not enough of, first things first. (`noderesources.Fits`.)
fn lacking(spec: &PodSpec, others: &[&Pod], node: &Node) -> Option<Lack> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let empty = BTreeMap::new();
    let allocatable: &BTreeMap<String, Quantity> = allocatable.unwrap_or(&empty);
    let capacity = |name: &str| allocatable.get(name).and_then(resources::milli).map_or(0, |milli| unit(name, milli));
    let pods = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if pods >= capacity("pods") {
        return Some(Lack { resource: "pods".into(), requested: 1, used: pods, capacity: capacity("pods") });
    }
    let named = resources::names_requested(spec);
    let mut names: Vec<&str> = FIRST.into_iter().filter(|name| named.contains(*name)).collect();
    // What the node does not know may be the cluster's to give (`removeMissingExtendedResources`).
    let known = |name: &str| allocatable.contains_key(name) || !is_extended(name);
    names.extend(named.iter().map(String::as_str).filter(|name| !FIRST.contains(name) && known(name)));
    names.into_iter().find_map(|name| {
        let of = |spec: &PodSpec| unit(name, resources::pod_request(spec, name));
        let used = others.iter().filter_map(|other| other.spec.as_ref()).map(of).sum();
        let (requested, capacity) = (of(spec), capacity(name));
        let enough = requested == 0 || requested <= capacity - used;
        (!enough).then(|| Lack { resource: name.to_owned(), requested, used, capacity })
    })
}

/// From thousandths to the unit in which a resource is told.
fn unit(name: &str, milli: i64) -> i64 {
    if name == "cpu" { milli } else { milli.saturating_add(999).div_euclid(1000) }
}

/// Whether a resource is of somebody else's making (`helper.IsExtendedResourceName`).
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

/// The status of a pod that is not taken. (`rejectPod`.)
pub fn rejected(pod: &Pod, problem: &Problem, now: Timestamp) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(problem.reason.clone()),
        message: Some(format!("Pod was rejected: {}", problem.message)),
        qos_class: Some(QosClass::of(&spec).as_str().to_owned()),
        start_time: Some(Time(now)),
        conditions: pod.status.as_ref().and_then(|status| status.conditions.clone()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}, {"key": "soft", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3", "example.com/gpu": "1"}},
        }))
        .unwrap()
    }

    fn pod(spec: Value) -> Pod {
        let tolerations = json!([{"key": "gone", "operator": "Exists"}]);
        let mut whole = json!({"nodeName": "n1", "tolerations": tolerations, "containers": [{"name": "c"}]});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "p", "generation": 3}, "spec": whole})).unwrap()
    }

    fn asks(requests: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
    }

    fn port(number: i32, ip: &str, protocol: &str) -> Value {
        let port = json!({"containerPort": 1, "hostPort": number, "hostIP": ip, "protocol": protocol});
        json!({"containers": [{"name": "c", "ports": [port]}]})
    }

    /// The reason and the message, or nothing when the pod is taken.
    fn check(pod: &Pod, others: &[Value], expected: &str) {
        let others: Vec<Pod> = others.iter().cloned().map(self::pod).collect();
        let others: Vec<&Pod> = others.iter().collect();
        let got =
            admit(pod, &others, &node()).map_or_else(|e| format!("{}: {}", e.reason, e.message), |()| String::new());
        assert_eq!(got, expected);
    }

    #[test]
    fn a_pod_is_taken_when_there_is_enough_of_everything() {
        let lacks = |name: &str, rest: &str| format!("OutOf{name}: Node didn't have enough resource: {name}, {rest}");
        for (spec, others, expected) in [
            (json!({}), vec![], String::new()),
            (asks(json!({"cpu": "2", "memory": "1Gi"})), vec![], String::new()),
            (
                asks(json!({"cpu": "500"})),
                vec![asks(json!({"cpu": "100m"}))],
                lacks("cpu", "requested: 500000, used: 100, capacity: 2000"),
            ),
            (
                asks(json!({"cpu": "1", "memory": "1Gi"})),
                vec![asks(json!({"memory": "1"}))],
                lacks("memory", "requested: 1073741824, used: 1, capacity: 1073741824"),
            ),
            (
                asks(json!({"cpu": "9", "memory": "9Gi"})),
                vec![],
                lacks("cpu", "requested: 9000, used: 0, capacity: 2000"),
            ),
            (json!({}), vec![json!({}), json!({}), json!({})], lacks("pods", "requested: 1, used: 3, capacity: 3")),
            (
                asks(json!({"example.com/gpu": "1"})),
                vec![asks(json!({"example.com/gpu": "1"}))],
                lacks("example.com/gpu", "requested: 1, used: 1, capacity: 1"),
            ),
            (asks(json!({"example.com/unknown": "1"})), vec![], String::new()),
            (
                asks(json!({"hugepages-2Mi": "4Mi"})),
                vec![],
                lacks("hugepages-2Mi", "requested: 4194304, used: 0, capacity: 0"),
            ),
            // A resource that is short does not concern who asks for none of it.
            (asks(json!({"memory": "1"})), vec![asks(json!({"cpu": "3"}))], String::new()),
            (json!({"overhead": {"cpu": "3"}}), vec![], lacks("cpu", "requested: 3000, used: 0, capacity: 2000")),
            (
                json!({"resources": {"requests": {"cpu": "3"}}}),
                vec![],
                lacks("cpu", "requested: 3000, used: 0, capacity: 2000"),
            ),
        ] {
            check(&pod(spec), &others, &expected);
        }
    }

    #[test]
    fn a_full_disk_takes_critical_pods_alone() {
        let text = |spec| admit_under_pressure(&pod(spec)).map_err(|problem| problem.message);
        let refused = Err("The node had condition: [DiskPressure]. ".to_owned());
        assert_eq!(text(json!({})), refused);
        assert_eq!(text(json!({"priority": 1_000_000_000})), refused);
        assert_eq!(text(json!({"priority": 2_000_000_000})), Ok(()));
    }

    #[test]
    fn two_pods_do_not_get_the_same_port() {
        let refused =
            "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        for (wanted, taken, expected) in [
            (port(80, "", "TCP"), port(80, "", "TCP"), refused),
            (port(80, "127.0.0.1", "TCP"), port(80, "", "TCP"), refused),
            (port(80, "127.0.0.1", "TCP"), port(80, "127.0.0.2", "TCP"), ""),
            (port(80, "", "TCP"), port(80, "", "UDP"), ""),
            (port(80, "", "TCP"), port(81, "", "TCP"), ""),
        ] {
            check(&pod(wanted), &[taken], expected);
        }
        let inits = |policy: Value| {
            let ports = json!([{"containerPort": 1, "hostPort": 80}]);
            json!({"initContainers": [{"name": "i", "restartPolicy": policy, "ports": ports}]})
        };
        check(&pod(port(80, "", "TCP")), &[inits(json!("Always"))], refused);
        check(&pod(port(80, "", "TCP")), &[inits(json!(null))], "");
    }

    #[test]
    fn a_pod_is_taken_by_a_node_that_it_wants_and_bears() {
        let affinity = "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        for (spec, expected) in [
            (json!({"nodeSelector": {"disk": "ssd"}}), ""),
            (json!({"nodeSelector": {"disk": "tape"}}), affinity),
            (
                json!({"nodeName": "n2"}),
                "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name",
            ),
            (
                json!({"tolerations": []}),
                "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            ),
            (
                json!({"os": {"name": "windows"}}),
                "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS",
            ),
        ] {
            check(&pod(spec), &[], expected);
        }
        let mut other = pod(json!({}));
        other.metadata.labels = Some(BTreeMap::from([(OS_LABEL.to_owned(), "windows".to_owned())]));
        assert_eq!(admit(&other, &[], &node()).unwrap_err().reason, "PodOSSelectorNodeLabelDoesNotMatch");
    }

    #[test]
    fn a_pod_that_is_not_taken_says_so_and_nothing_else() {
        let problem = Problem { reason: "OutOfpods".into(), message: "m".into() };
        let mut pod = pod(json!({}));
        pod.status = serde_json::from_value(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}),
        )
        .unwrap();
        let status = serde_json::to_value(rejected(&pod, &problem, Timestamp::UNIX_EPOCH)).unwrap();
        assert_eq!(
            status,
            json!({
                "phase": "Failed", "reason": "OutOfpods", "message": "Pod was rejected: m", "qosClass": "BestEffort",
                "startTime": "1970-01-01T00:00:00Z", "observedGeneration": 3,
                "conditions": [{"type": "PodScheduled", "status": "True"}],
            })
        );
    }
}
