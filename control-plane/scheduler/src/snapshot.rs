//! The cluster as the scheduler sees it: nodes with what their pods take up, added up as pods come and go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kedge_client::{HostPort, Key, host_ports};
use kedge_schema::quantity::Quantity;

/// What a pod that asks for nothing is taken to need when nodes are scored (`DefaultMilliCPURequest` and its twin).
const SCORE_CPU_MILLI: i64 = 100;
const SCORE_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts of resources: CPU in thousandths of a core, memory and storage in bytes, others in their own unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// Reads a resource list; amounts that are no quantities count as nothing (validation refuses them).
    pub fn parse(list: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let amount = |name: &str, text: &str| {
            let quantity = Quantity::parse(text).ok()?;
            Some(if name == "cpu" { quantity.milli_value() } else { quantity.value() })
        };
        let pairs = list.into_iter().flatten();
        Self(pairs.filter_map(|(name, quantity)| Some((name.clone(), amount(name, &quantity.0)?))).collect())
    }

    /// The amount of a resource.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every resource with its amount.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    fn combine(&mut self, other: &Self, how: impl Fn(i64, i64) -> i64) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_insert(0);
            *mine = how(*mine, *amount);
        }
    }
}

/// A pod and what was computed of it once.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its place.
    pub key: Key,
    /// What it asks for: the greater of its containers together and each init container, plus overhead.
    pub requests: Resources,
    /// The same with amounts for what it does not say, for scoring.
    pub scored: Resources,
    /// Ports it takes on its node.
    pub host_ports: Vec<HostPort>,
}

impl PodView {
    /// Computes what scheduling needs to know of a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        let requests = requests(&pod, &Resources::default());
        let floor = Resources(BTreeMap::from([("cpu".into(), SCORE_CPU_MILLI), ("memory".into(), SCORE_MEMORY_BYTES)]));
        let scored = self::requests(&pod, &floor);
        let host_ports = pod.spec.as_ref().map(host_ports).unwrap_or_default();
        Self { key: Key::of(&*pod), pod, requests, scored, host_ports }
    }

    /// The labels.
    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.pod.metadata.labels.as_ref()
    }
}

/// `resourcehelper.PodRequests`: sidecars run beside everything that starts after them.
fn requests(pod: &Pod, least: &Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let of = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        let mut asked = Resources::parse(resources.and_then(|r| r.requests.as_ref()));
        for (name, amount) in &least.0 {
            asked.0.entry(name.clone()).or_insert(*amount);
        }
        asked
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.combine(&of(container.resources.as_ref()), |a, b| a + b);
    }
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let asked = of(container.resources.as_ref());
        let mut at_start = sidecars.clone();
        at_start.combine(&asked, |a, b| a + b);
        peak.combine(&at_start, i64::max);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = at_start;
        }
    }
    total.combine(&sidecars, |a, b| a + b);
    total.combine(&peak, i64::max);
    if let Some(own) = spec.resources.as_ref() {
        total.combine(&Resources::parse(own.requests.as_ref()), |_, pod_level| pod_level);
    }
    total.combine(&Resources::parse(spec.overhead.as_ref()), |a, b| a + b);
    total
}

/// A node and what its pods take up.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The node.
    pub node: Arc<Node>,
    /// Its name.
    pub name: String,
    /// What pods may take together.
    pub allocatable: Resources,
    /// What they take.
    pub requested: Resources,
    /// The same as scoring counts it.
    pub scored: Resources,
    /// The pods, by key.
    pub pods: HashMap<Key, PodView>,
}

impl NodeView {
    fn new(node: Arc<Node>) -> Self {
        let allocatable = Resources::parse(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let name = node.metadata.name.clone().unwrap_or_default();
        Self {
            node,
            name,
            allocatable,
            requested: Resources::default(),
            scored: Resources::default(),
            pods: HashMap::new(),
        }
    }

    fn add(&mut self, pod: PodView) {
        self.remove(&pod.key);
        self.requested.combine(&pod.requests, |a, b| a + b);
        self.scored.combine(&pod.scored, |a, b| a + b);
        self.pods.insert(pod.key.clone(), pod);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(pod) = self.pods.remove(key) else { return false };
        self.requested.combine(&pod.requests, |a, b| a - b);
        self.scored.combine(&pod.scored, |a, b| a - b);
        true
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// All nodes and the pods on them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeView>,
    /// Pods whose node is not known (yet).
    strays: HashMap<Key, (String, PodView)>,
    node_of: HashMap<Key, String>,
}

impl Snapshot {
    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.values()
    }

    /// Adds a node or takes in its change.
    pub fn put_node(&mut self, node: Arc<Node>) {
        let mut view = NodeView::new(node);
        let name = view.name.clone();
        if let Some(old) = self.nodes.remove(&name) {
            (view.requested, view.scored, view.pods) = (old.requested, old.scored, old.pods);
        }
        let waiting: Vec<Key> =
            self.strays.iter().filter(|(_, (node, _))| *node == name).map(|(key, _)| key.clone()).collect();
        for key in waiting {
            if let Some((_, pod)) = self.strays.remove(&key) {
                view.add(pod);
            }
        }
        self.nodes.insert(name, view);
    }

    /// Forgets a node; its pods wait for it to come back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.strays.extend(node.pods.into_iter().map(|(key, pod)| (key, (name.to_owned(), pod))));
        }
    }

    /// Counts a pod on a node.
    pub fn place(&mut self, pod: PodView, node: &str) {
        self.remove_pod(&pod.key);
        self.node_of.insert(pod.key.clone(), node.to_owned());
        match self.nodes.get_mut(node) {
            Some(view) => view.add(pod),
            None => drop(self.strays.insert(pod.key.clone(), (node.to_owned(), pod))),
        }
    }

    /// Stops counting a pod. False when it was not counted.
    pub fn remove_pod(&mut self, key: &Key) -> bool {
        let Some(node) = self.node_of.remove(key) else { return false };
        self.strays.remove(key);
        if let Some(view) = self.nodes.get_mut(&node) {
            view.remove(key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> PodView {
        PodView::new(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap(),
        ))
    }

    #[test]
    fn a_pod_asks_for_the_peak_of_what_runs_together() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let view = pod(json!({
            "containers": [{"name": "a", "resources": asks("100m")}, {"name": "b", "resources": asks("200m")}],
            "initContainers": [
                {"name": "i", "resources": asks("250m")},
                {"name": "s", "restartPolicy": "Always", "resources": asks("50m")},
                {"name": "j", "resources": asks("400m")},
            ],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(view.requests.get("cpu"), 460);
        assert_eq!(pod(json!({"containers": [{"name": "a"}]})).scored.get("memory"), SCORE_MEMORY_BYTES);
    }

    #[test]
    fn nodes_add_up_their_pods_in_any_order_of_arrival() {
        let mut snapshot = Snapshot::default();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"allocatable": {"cpu": "2"}}}))
                .unwrap();
        let view = pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}]}));
        snapshot.place(view.clone(), "n1");
        snapshot.put_node(Arc::new(node.clone()));
        let requested = |snapshot: &Snapshot| snapshot.nodes().next().map(|node| node.requested.get("cpu"));
        assert_eq!(requested(&snapshot), Some(500));
        snapshot.place(view.clone(), "n1");
        assert_eq!(requested(&snapshot), Some(500));
        snapshot.remove_node("n1");
        snapshot.put_node(Arc::new(node));
        assert_eq!(requested(&snapshot), Some(500));
        assert!(snapshot.remove_pod(&view.key) && !snapshot.remove_pod(&view.key));
        assert_eq!(requested(&snapshot), Some(0));
    }
}
