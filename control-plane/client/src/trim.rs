//! What the shared copies leave out: most of a pod's bytes are for its node, and nobody who reads the copies looks at
//! them. With ten thousand pods this is more than half of the memory.
//!
//! What must hold: a copy that is not whole is never written back ([`is_whole`]); changes to it go as patches.

use std::any::{Any, TypeId};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::informer::Watched;

/// Whether the shared copies of `K` hold everything but `metadata.managedFields`, which a write may leave out: the
/// server then keeps those it has.
pub fn is_whole<K: Watched>() -> bool {
    TypeId::of::<K>() != TypeId::of::<Pod>()
}

/// Takes out what nobody reads.
pub(crate) fn trim<K: Watched>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(pod) = (object as &mut dyn Any).downcast_mut::<Pod>() {
        trim_pod(pod);
    }
}

fn trim_pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| is_for_controllers(key));
    }
    let Some(spec) = &mut pod.spec else { return };
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    containers.for_each(trim_container);
    spec.containers.shrink_to_fit();
    spec.ephemeral_containers = None;
}

/// Annotations of Kubernetes and of Kedge can matter to a controller (`controller.kubernetes.io/pod-deletion-cost`);
/// what kubectl remembers, and what users write, do not.
fn is_for_controllers(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let ours = ["kubernetes.io", "k8s.io", "kedge.dev"];
    domain != "kubectl.kubernetes.io"
        && ours.iter().any(|end| domain.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// Leaves the name, the image, ports, resources and what decides about restarts.
fn trim_container(container: &mut Container) {
    let kept = Container {
        name: std::mem::take(&mut container.name),
        image: container.image.take(),
        ports: container.ports.take(),
        resources: container.resources.take(),
        resize_policy: container.resize_policy.take(),
        restart_policy: container.restart_policy.take(),
        restart_policy_rules: container.restart_policy_rules.take(),
        ..Container::default()
    };
    *container = kept;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_what_controllers_and_the_scheduler_look_at() {
        let whole = json!({
            "metadata": {
                "name": "p", "labels": {"app": "a"}, "finalizers": ["f"], "managedFields": [{"manager": "m"}],
                "annotations": {
                    "controller.kubernetes.io/pod-deletion-cost": "3", "kedge.dev/x": "1", "note": "n",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}", "notkubernetes.io/x": "1",
                },
            },
            "spec": {
                "nodeName": "n", "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "c", "image": "i", "command": ["sleep"], "args": ["1"], "env": [{"name": "A"}],
                    "ports": [{"containerPort": 1, "hostPort": 2}], "resources": {"requests": {"cpu": "1"}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                }],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "command": ["sleep"]}],
            },
            "status": {"phase": "Running"},
        });
        let mut pod: Pod = serde_json::from_value(whole).unwrap();
        trim(&mut pod);
        let kept = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "labels": {"app": "a"}, "finalizers": ["f"],
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": "3", "kedge.dev/x": "1"},
            },
            "spec": {
                "nodeName": "n", "volumes": [{"name": "v"}],
                "containers": [{
                    "name": "c", "image": "i",
                    "ports": [{"containerPort": 1, "hostPort": 2}], "resources": {"requests": {"cpu": "1"}},
                }],
                "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            },
            "status": {"phase": "Running"},
        });
        assert_eq!(serde_json::to_value(&pod).unwrap(), kept);
        assert!(!is_whole::<Pod>() && is_whole::<k8s_openapi::api::core::v1::Node>());
    }
}
