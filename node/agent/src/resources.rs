//! From a pod's requests and limits to its QoS class and the kernel's figures.
//!
//! Rules: `pkg/apis/core/v1/helper/qos/qos.go`, `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`,
//! `k8s.io/component-helpers/resource` (a pod's requests, with sidecars).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use kedge_runtimes::{PodResources, Resources};
use kedge_schema::quantity::Quantity;

use crate::plan::is_sidecar;

const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
/// The kernel refuses less.
const QUOTA_US_MIN: i64 = 1000;
const PERIOD_US: i64 = 100_000;

/// How a pod is treated when the node runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Limits equal requests, of cpu and memory, everywhere.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    BestEffort,
}

impl QosClass {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// Of a pod.
    pub fn of(spec: &PodSpec) -> Self {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        let mut guaranteed = true;
        let mut any = false;
        for container in all {
            for name in ["cpu", "memory"] {
                let limit = amount(container, true, name).filter(|milli| *milli > 0);
                // A limit without a request is a request too; the API server writes it there.
                let request = amount(container, false, name).or(limit).filter(|milli| *milli > 0);
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
        match (any, guaranteed) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }
}

/// A quantity in thousandths; what the API server has let pass is one.
pub(crate) fn milli(quantity: &WireQuantity) -> Option<i64> {
    Quantity::parse(&quantity.0).ok().map(|quantity| quantity.milli_value())
}

fn list(resources: Option<&ResourceRequirements>, limits: bool) -> Option<&BTreeMap<String, WireQuantity>> {
    let resources = resources?;
    if limits { resources.limits.as_ref() } else { resources.requests.as_ref() }
}

/// What a container asks for or is held to, in thousandths.
pub fn amount(container: &Container, limits: bool, name: &str) -> Option<i64> {
    milli(list(container.resources.as_ref(), limits)?.get(name)?)
}

fn bytes(milli: i64) -> i64 {
    milli / 1000
}

fn shares(milli_cpu: i64) -> u64 {
    u64::try_from(milli_cpu * SHARES_PER_CPU / 1000).unwrap_or(0).clamp(SHARES_MIN, SHARES_MAX)
}

fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu * PERIOD_US / 1000).max(QUOTA_US_MIN)
}

/// The figures of one container. `memory_bytes` is the node's memory, which `oom_score_adj` is relative to.
pub fn of_container(spec: &PodSpec, container: &Container, memory_bytes: i64, pids_limit: Option<i64>) -> Resources {
    let cpu_limit = amount(container, true, "cpu").filter(|milli| *milli > 0);
    let request = amount(container, false, "cpu").or(cpu_limit).unwrap_or(0);
    let memory_limit = amount(container, true, "memory").filter(|milli| *milli > 0);
    let pages = list(container.resources.as_ref(), true).into_iter().flatten();
    let pages = pages.filter_map(|(name, amount)| {
        let size = Quantity::parse(name.strip_prefix("hugepages-")?).ok()?.value();
        Some((page_size_name(size), u64::try_from(bytes(milli(amount)?)).ok()?))
    });
    Resources {
        cpu_shares: Some(shares(request)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US as u64),
        cpuset_cpus: None,
        memory_limit_bytes: memory_limit.map(bytes),
        pids_limit,
        oom_score_adj: oom_score_adj(spec, container, memory_bytes),
        hugepage_limits: pages.collect(),
    }
}

/// As runc names page sizes: "2MB", "1GB".
fn page_size_name(bytes: i64) -> String {
    match bytes {
        size if size >= 1 << 30 => format!("{}GB", size >> 30),
        size if size >= 1 << 20 => format!("{}MB", size >> 20),
        size => format!("{}KB", size >> 10),
    }
}

/// Guaranteed goes last, best effort first, and between them who asked for more memory is later.
fn oom_score_adj(spec: &PodSpec, container: &Container, memory_bytes: i64) -> i32 {
    if matches!(spec.priority_class_name.as_deref(), Some("system-node-critical")) {
        return -997;
    }
    match QosClass::of(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = amount(container, false, "memory").or(amount(container, true, "memory")).map_or(0, bytes);
            let adjust = 1000 - (i128::from(request) * 1000 / i128::from(memory_bytes.max(1))) as i64;
            adjust.clamp(3, 999) as i32
        }
    }
}

/// What a whole pod asks for or is held to, in thousandths: apps and sidecars together, or one init container with
/// the sidecars started before it, whichever is more; and the overhead.
pub fn pod_total(spec: &PodSpec, limits: bool, name: &str) -> i64 {
    let of = |container: &Container| amount(container, limits, name).or(amount(container, true, name)).unwrap_or(0);
    let mut sidecars = 0;
    let mut init_most = 0;
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars += of(init);
            init_most = init_most.max(sidecars);
        } else {
            init_most = init_most.max(sidecars + of(init));
        }
    }
    let apps: i64 = spec.containers.iter().map(of).sum();
    (apps + sidecars).max(init_most) + overhead(spec, name)
}

fn overhead(spec: &PodSpec, name: &str) -> i64 {
    spec.overhead.as_ref().and_then(|overhead| milli(overhead.get(name)?)).unwrap_or(0)
}

/// What a pod asks of its node, in thousandths: its own word before what its containers add up to. (`PodRequests`.)
pub fn pod_request(spec: &PodSpec, name: &str) -> i64 {
    let own = list(spec.resources.as_ref(), false).and_then(|requests| milli(requests.get(name)?));
    own.map_or_else(|| pod_total(spec, false, name), |own| own + overhead(spec, name))
}

/// The resources that a pod asks its node for.
pub fn names_requested(spec: &PodSpec) -> BTreeSet<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let all = containers.map(|container| container.resources.as_ref()).chain([spec.resources.as_ref()]);
    let lists = all.filter_map(|resources| list(resources, false)).chain(&spec.overhead);
    lists.flat_map(BTreeMap::keys).cloned().collect()
}

/// The figures of a pod's own group. It is held to a limit only if every container is.
pub fn of_pod(spec: &PodSpec, pids_limit: Option<i64>) -> PodResources {
    let everywhere = |name: &str| {
        let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
        all().all(|container| amount(container, true, name).is_some_and(|milli| milli > 0))
    };
    let qos = QosClass::of(spec);
    let request = pod_total(spec, false, "cpu");
    PodResources {
        cpu_shares: Some(if qos == QosClass::BestEffort { SHARES_MIN } else { shares(request) }),
        cpu_quota_us: everywhere("cpu").then(|| quota(pod_total(spec, true, "cpu"))),
        cpu_period_us: Some(PERIOD_US as u64),
        memory_limit_bytes: everywhere("memory").then(|| bytes(pod_total(spec, true, "memory"))),
        pids_limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(containers: serde_json::Value) -> PodSpec {
        let containers: Vec<_> = containers
            .as_array()
            .unwrap()
            .iter()
            .map(|resources| json!({"name": "c", "resources": resources}))
            .collect();
        serde_json::from_value(json!({"containers": containers})).unwrap()
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let some = json!({"requests": {"cpu": "1m"}});
        let zero = json!({"requests": {"cpu": "0"}});
        for (containers, expected) in [
            (json!([{}]), "BestEffort"),
            (json!([zero]), "BestEffort"),
            (json!([both]), "Guaranteed"),
            (json!([limits]), "Guaranteed"),
            (json!([both, {}]), "Burstable"),
            (json!([some]), "Burstable"),
            (json!([{"limits": {"cpu": "1"}}]), "Burstable"),
        ] {
            assert_eq!(QosClass::of(&spec(containers.clone())).as_str(), expected, "{containers}");
        }
    }

    #[test]
    fn containers_become_the_kernels_figures() {
        for (resources, shares, quota, memory, oom) in [
            (json!({}), 2, None, None, 1000),
            (json!({"requests": {"cpu": "100m"}}), 102, None, None, 999),
            (json!({"limits": {"cpu": "500m"}}), 512, Some(50_000), None, 999),
            (json!({"limits": {"cpu": "1m"}}), 2, Some(1000), None, 999),
            (json!({"requests": {"memory": "4Gi"}}), 2, None, None, 500),
            (json!({"limits": {"cpu": "2", "memory": "64Mi"}}), 2048, Some(200_000), Some(64 << 20), -997),
        ] {
            let spec = spec(json!([resources]));
            let got = of_container(&spec, &spec.containers[0], 8 << 30, None);
            assert_eq!((got.cpu_shares, got.cpu_quota_us), (Some(shares), quota), "{resources}");
            assert_eq!((got.memory_limit_bytes, got.oom_score_adj), (memory, oom), "{resources}");
        }
        let spec = spec(json!([{"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}}]));
        let pages = of_container(&spec, &spec.containers[0], 1 << 30, None).hugepage_limits;
        assert_eq!(pages.into_iter().collect::<Vec<_>>(), [("1GB".to_owned(), 1 << 30), ("2MB".to_owned(), 4 << 20)]);
    }

    #[test]
    fn a_pod_is_the_larger_of_its_beginning_and_its_life() {
        let pod = |init: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({
                "containers": [{"name": "a", "resources": {"limits": {"cpu": "200m", "memory": "1Gi"}}}],
                "initContainers": init,
                "overhead": {"cpu": "10m"},
            }))
            .unwrap()
        };
        let cpu = |cpu: &str, sidecar: bool| {
            let policy = if sidecar { json!("Always") } else { json!(null) };
            json!({"name": "i", "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}})
        };
        assert_eq!(pod_total(&pod(json!([])), false, "cpu"), 210);
        assert_eq!(pod_total(&pod(json!([cpu("1", false)])), false, "cpu"), 1010);
        assert_eq!(pod_total(&pod(json!([cpu("100m", true)])), false, "cpu"), 310);
        assert_eq!(pod_total(&pod(json!([cpu("100m", true), cpu("1", false)])), false, "cpu"), 1110);
        let group = of_pod(&pod(json!([])), Some(9));
        assert_eq!(
            (group.cpu_quota_us, group.memory_limit_bytes, group.pids_limit),
            (Some(21_000), Some(1 << 30), Some(9))
        );
        assert_eq!(of_pod(&pod(json!([cpu("1", false)])), None).memory_limit_bytes, None);
    }
}
