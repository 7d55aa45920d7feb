//! From objects to the nodes that may read them: a secret belongs to the nodes of the pods that name it. Pure.
//! (`plugin/pkg/auth/authorizer/node/graph.go`.)
//!
//! ```text
//! secret, configmap, claim, resource claim, service account ─> node    (counted: once a pod)
//! pod, volume attachment, resource slice ────────────────────> node
//! secret ─> volume ─> claim
//! ```
//!
//! A change of one pod costs what that pod names; a question costs one look-up, and for secrets and volumes one more a
//! step. Neither depends on how many pods there are.

use std::collections::HashMap;

use serde_json::Value;

use crate::references::{self, Kind, text};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// An object: its kind, namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(Kind, Box<str>, Box<str>);

impl Key {
    fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self(kind, namespace.into(), name.into())
    }
}

/// Where an edge leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Node(Box<str>),
    Object(Key),
}

/// The edges from one object, each with how many objects gave it.
#[derive(Debug, Default)]
struct Links {
    nodes: HashMap<Box<str>, u32>,
    through: HashMap<Key, u32>,
}

/// Which objects have to do with which nodes.
#[derive(Debug, Default)]
pub struct Graph {
    links: HashMap<Key, Links>,
    /// The edges that an object gave, to take them back when it changes.
    given: HashMap<Key, Vec<(Key, End)>>,
}

impl Graph {
    /// Takes in a pod, persistent volume, volume attachment or resource slice as it is now; none when it is gone.
    /// Other kinds give nothing.
    pub fn set(&mut self, kind: Kind, namespace: &str, name: &str, object: Option<&Value>) {
        let source = Key::new(kind, namespace, name);
        let edges = object.map(|object| edges(&source, object)).unwrap_or_default();
        if self.given.get(&source).map_or(&[][..], Vec::as_slice) == edges {
            return;
        }
        for (from, end) in self.given.remove(&source).into_iter().flatten() {
            self.take_back(&from, &end);
        }
        for (from, end) in &edges {
            let links = self.links.entry(from.clone()).or_default();
            let count = match end {
                End::Node(node) => links.nodes.entry(node.clone()).or_default(),
                End::Object(object) => links.through.entry(object.clone()).or_default(),
            };
            *count += 1;
        }
        if !edges.is_empty() {
            self.given.insert(source, edges);
        }
    }

    /// Whether the object has to do with `node`.
    pub fn is_related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        self.leads_to(node, &Key::new(kind, namespace, name))
    }

    /// Paths have at most three steps: secret, volume, claim.
    fn leads_to(&self, node: &str, from: &Key) -> bool {
        let Some(links) = self.links.get(from) else { return false };
        links.nodes.contains_key(node) || links.through.keys().any(|next| self.leads_to(node, next))
    }

    fn take_back(&mut self, from: &Key, end: &End) {
        let Some(links) = self.links.get_mut(from) else { return };
        match end {
            End::Node(node) => uncount(&mut links.nodes, node),
            End::Object(object) => uncount(&mut links.through, object),
        }
        if links.nodes.is_empty() && links.through.is_empty() {
            self.links.remove(from);
        }
    }
}

fn uncount<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The edges that an object gives.
fn edges(source: &Key, object: &Value) -> Vec<(Key, End)> {
    let node = match source.0 {
        Kind::Pod | Kind::VolumeAttachment | Kind::ResourceSlice => text(&object["spec"]["nodeName"]),
        Kind::PersistentVolume => return volume_edges(source, object),
        _ => return Vec::new(),
    };
    if node.is_empty() {
        return Vec::new();
    }
    let mut edges = vec![(source.clone(), End::Node(node.into()))];
    // What a node says of itself (a mirror pod) gives it nothing.
    if source.0 == Kind::Pod && object["metadata"]["annotations"][MIRROR].is_null() {
        let named = references::of_pod(object);
        edges.extend(named.iter().map(|(kind, name)| (Key::new(*kind, &source.1, name), End::Node(node.into()))));
    }
    edges
}

fn volume_edges(source: &Key, volume: &Value) -> Vec<(Key, End)> {
    let Some(((namespace, name), secrets)) = references::of_volume(volume) else { return Vec::new() };
    let claim = Key::new(Kind::PersistentVolumeClaim, &namespace, &name);
    let mut edges = vec![(source.clone(), End::Object(claim))];
    let secrets = secrets.iter().map(|(namespace, name)| Key::new(Kind::Secret, namespace, name));
    edges.extend(secrets.map(|secret| (secret, End::Object(source.clone()))));
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(node: &str, secret: &str, claim: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "volumes": [
            {"secret": {"secretName": secret}}, {"persistentVolumeClaim": {"claimName": claim}}]}})
    }

    #[test]
    fn objects_belong_to_the_nodes_of_the_pods_that_name_them_as_long_as_one_does() {
        let mut graph = Graph::default();
        let has = |graph: &Graph, node: &str| graph.is_related(node, Kind::Secret, "a", "s");
        graph.set(Kind::Pod, "a", "waiting", Some(&pod("", "s", "c")));
        assert!(!has(&graph, "") && !has(&graph, "n1"));
        graph.set(Kind::Pod, "a", "one", Some(&pod("n1", "s", "c")));
        graph.set(Kind::Pod, "a", "two", Some(&pod("n1", "s", "c")));
        graph.set(Kind::Pod, "a", "two", Some(&pod("n1", "s", "c")));
        assert!(has(&graph, "n1") && !has(&graph, "n2"));
        assert!(graph.is_related("n1", Kind::Pod, "a", "one") && !graph.is_related("n2", Kind::Pod, "a", "one"));
        assert!(!graph.is_related("n1", Kind::Secret, "b", "s") && !graph.is_related("n1", Kind::ConfigMap, "a", "s"));
        graph.set(Kind::Pod, "a", "one", None);
        assert!(has(&graph, "n1"));
        graph.set(Kind::Pod, "a", "two", Some(&pod("n1", "other", "c")));
        assert!(!has(&graph, "n1"));
        graph.set(Kind::Pod, "a", "two", None);
        graph.set(Kind::Pod, "a", "waiting", None);
        assert!(graph.links.is_empty() && graph.given.is_empty(), "{graph:?}");
    }

    #[test]
    fn a_volume_and_its_secrets_belong_to_the_nodes_of_its_claim() {
        let mut graph = Graph::default();
        let volume = json!({"spec": {"claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodeStageSecretRef": {"namespace": "keys", "name": "k"}}}});
        let sees = |graph: &Graph, node: &str| {
            let (volume, secret) = ((Kind::PersistentVolume, "", "v"), (Kind::Secret, "keys", "k"));
            [volume, secret].map(|(kind, namespace, name)| graph.is_related(node, kind, namespace, name))
        };
        graph.set(Kind::PersistentVolume, "", "v", Some(&volume));
        assert_eq!(sees(&graph, "n1"), [false, false]);
        graph.set(Kind::Pod, "a", "p", Some(&pod("n1", "s", "c")));
        assert_eq!(sees(&graph, "n1"), [true, true]);
        assert_eq!(sees(&graph, "n2"), [false, false]);
        let other = json!({"spec": {"claimRef": {"namespace": "a", "name": "another"}}});
        graph.set(Kind::PersistentVolume, "", "v", Some(&other));
        assert_eq!(sees(&graph, "n1"), [false, false]);
    }

    #[test]
    fn a_mirror_pod_gives_its_node_nothing_but_itself() {
        let mut graph = Graph::default();
        let mut mirror = pod("n1", "s", "c");
        mirror["metadata"]["annotations"] = json!({ MIRROR: "x" });
        graph.set(Kind::Pod, "a", "m", Some(&mirror));
        assert!(graph.is_related("n1", Kind::Pod, "a", "m") && !graph.is_related("n1", Kind::Secret, "a", "s"));
    }

    #[test]
    fn attachments_and_slices_belong_to_the_node_they_name() {
        let mut graph = Graph::default();
        for kind in [Kind::VolumeAttachment, Kind::ResourceSlice] {
            graph.set(kind, "", "x", Some(&json!({"spec": {"nodeName": "n1"}})));
            assert!(graph.is_related("n1", kind, "", "x") && !graph.is_related("n2", kind, "", "x"));
        }
    }
}
