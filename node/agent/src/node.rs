//! The Node object: what this machine is and has, and whether it is ready.
//! (`pkg/kubelet/nodestatus/setters.go`.)
#![allow(clippy::disallowed_methods, reason = "a shell: reads what the kernel says of the machine")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;

use crate::agent::Settings;

/// The version of Kubernetes whose behaviour this node has.
pub const KUBELET_VERSION: &str = "v1.36.3+kedge";
/// Where the kubelet's API is by custom.
const KUBELET_PORT: i32 = 10250;

/// What the machine says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    info: NodeSystemInfo,
}

impl Facts {
    /// Reads them.
    pub fn read(settings: &Settings, runtime: &str, runtime_version: Option<&str>) -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let os = file("/etc/os-release");
        let pretty = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
        Self {
            info: NodeSystemInfo {
                architecture: kedge_runtimes::image::host_architecture().to_owned(),
                boot_id: file("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: format!("{runtime}://{}", runtime_version.unwrap_or("unknown")),
                kernel_version: file("/proc/sys/kernel/osrelease"),
                kubelet_version: KUBELET_VERSION.to_owned(),
                machine_id: Some(file("/etc/machine-id"))
                    .filter(|id| !id.is_empty())
                    .unwrap_or(settings.node_name.clone()),
                operating_system: "linux".to_owned(),
                os_image: pretty.trim_matches('"').to_owned(),
                system_uuid: file("/sys/class/dmi/id/product_uuid"),
                ..NodeSystemInfo::default()
            },
        }
    }
}

/// What is not well with a node that runs pods all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Its disks are nearly full.
    pub full: bool,
    /// The namespace of its pods' network was removed.
    pub cut: bool,
}

/// The condition of a node whose pods cannot be reached.
pub const NETWORK: &str = "NetworkUnavailable";

/// The condition of a node by which people see whether models can compute on a GPU there, and why not.
pub const GPU: &str = "GPUUsable";

/// What became of the namespace of the pods' network.
pub fn gone_words(namespace: &str) -> String {
    format!(
        "the network namespace {namespace} was removed while the node ran: its pods cannot be reached; restart the server \
         and make the pods anew"
    )
}

fn labels(settings: &Settings, facts: &Facts) -> BTreeMap<String, String> {
    let arch = &facts.info.architecture;
    let usual = [
        ("kubernetes.io/hostname", settings.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let mut all: BTreeMap<String, String> = usual.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    all.extend(settings.labels.clone());
    all
}

/// The labels that an existing Node lacks.
pub fn missing_labels(settings: &Settings, facts: &Facts, node: &Node) -> BTreeMap<String, String> {
    let has =
        |key: &String, value: &String| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
    labels(settings, facts).into_iter().filter(|(key, value)| !has(key, value)).collect()
}

/// A new Node object.
pub fn object(settings: &Settings, facts: &Facts) -> Node {
    let metadata = ObjectMeta {
        name: Some(settings.node_name.clone()),
        labels: Some(labels(settings, facts)),
        ..ObjectMeta::default()
    };
    Node { metadata, ..Node::default() }
}

fn capacity(settings: &Settings) -> BTreeMap<String, Quantity> {
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(settings.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", settings.memory_bytes / 1024))),
        ("pods".to_owned(), Quantity(settings.pods_max.to_string())),
    ])
}

/// A Node with what it has, also before that was reported.
pub fn with_allocatable(settings: &Settings, node: &Node) -> Node {
    let mut node = node.clone();
    node.status.get_or_insert_default().allocatable.get_or_insert_with(|| capacity(settings));
    node
}

/// The node's status; `problem` is why it cannot run pods.
pub fn status(
    settings: &Settings,
    facts: &Facts,
    old: Option<&NodeStatus>,
    problem: Option<&str>,
    troubles: Troubles,
    now: Timestamp,
) -> NodeStatus {
    let ip = settings.node_ip.borrow().to_string();
    let addresses = [("InternalIP", ip), ("Hostname", settings.node_name.clone())].into_iter();
    let capacity = capacity(settings);
    let endpoint = DaemonEndpoint { port: KUBELET_PORT };
    NodeStatus {
        addresses: Some(addresses.map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address }).collect()),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(settings, old, problem, troubles, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(endpoint) }),
        node_info: Some(facts.info.clone()),
        ..NodeStatus::default()
    }
}

/// Whether a node says that it is ready; none when nothing is known, as of a new node or of one that was out of reach.
pub fn is_ready(status: Option<&NodeStatus>) -> Option<bool> {
    says(status, "Ready")
}

/// What a node says of one condition; none as with [`is_ready`].
pub fn says(status: Option<&NodeStatus>, kind: &str) -> Option<bool> {
    let mut conditions = status?.conditions.iter().flatten();
    match conditions.find(|condition| condition.type_ == kind)?.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Whether the API has another word about the node's readiness than `said`, which is what the node says.
pub fn contradicts(node: &Node, said: &NodeStatus) -> bool {
    is_ready(node.status.as_ref()) != is_ready(Some(said))
}

fn conditions(
    settings: &Settings,
    old: Option<&NodeStatus>,
    problem: Option<&str>,
    troubles: Troubles,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let before = old.and_then(|old| old.conditions.as_deref()).unwrap_or_default();
    let ready = match problem {
        None => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(problem) => ("Ready", false, "KubeletNotReady", problem.to_owned()),
    };
    let disk = match troubles.full {
        false => ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned()),
        true => ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure".to_owned()),
    };
    // Other pressure is not measured, and is not claimed: these are ours.
    let mut ours = vec![disk, ready];
    // Not claimed as long as nothing was wrong with it.
    if troubles.cut || before.iter().any(|condition| condition.type_ == NETWORK) {
        let namespace = settings.network_namespace.as_deref().unwrap_or(std::path::Path::new("")).display();
        ours.push(match troubles.cut {
            true => (NETWORK, true, "NetworkNamespaceGone", gone_words(&namespace.to_string())),
            false => (NETWORK, false, "NetworkNamespaceIsThere", format!("pods are connected in {namespace}")),
        });
    }
    // Not claimed before it is known.
    if let Some(gpu) = settings.gpu.borrow().clone() {
        let reason = if gpu.usable { "KernelsTaken" } else { "CannotBeUsed" };
        ours.push((GPU, gpu.usable, reason, gpu.words));
    }
    let names: Vec<&str> = ours.iter().map(|own| own.0).collect();
    let is_ours = |condition: &NodeCondition| names.contains(&condition.type_.as_str());
    let mut all: Vec<NodeCondition> = before.iter().filter(|condition| !is_ours(condition)).cloned().collect();
    all.extend(ours.into_iter().map(|(kind, value, reason, message)| {
        let status = if value { "True" } else { "False" };
        let same = before.iter().find(|condition| condition.type_ == kind && condition.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: same.and_then(|same| same.last_transition_time.clone()).or(Some(Time(now))),
        }
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_contradicted_by_another_word_about_readiness_alone() {
        let status = |ready: &str| -> NodeStatus {
            serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": ready}]})).unwrap()
        };
        let said = status("True");
        for (found, expected) in [(Some("True"), false), (Some("False"), true), (Some("Unknown"), true), (None, true)] {
            let node = Node { status: found.map(status), ..Node::default() };
            assert_eq!(contradicts(&node, &said), expected, "{found:?}");
        }
        let mut other = status("True");
        other.conditions.as_mut().unwrap()[0].message = Some("another message".into());
        assert!(!contradicts(&Node { status: Some(other), ..Node::default() }, &said));
        assert!(!contradicts(&Node { status: Some(status("False")), ..Node::default() }, &status("False")));
    }
}
