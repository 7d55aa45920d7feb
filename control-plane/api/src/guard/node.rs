//! What nodes may do: the graph of what their pods name, kept up with the store, and upstream's rules over it.

use kedge_access::{Attributes, Decision, Graph, ReferredKind, Rule, User, decide_for_node, node_of, node_rules};
use kedge_store::{ObjectKey, ResourceId, Store};

use crate::followed::Followed;
use crate::object;

/// The collections that say which objects have to do with which node.
const SOURCES: [(&str, &str, ReferredKind); 4] = [
    ("", "pods", ReferredKind::Pod),
    ("", "persistentvolumes", ReferredKind::PersistentVolume),
    ("storage.k8s.io", "volumeattachments", ReferredKind::VolumeAttachment),
    ("resource.k8s.io", "resourceslices", ReferredKind::ResourceSlice),
];

/// The authorizer of nodes.
pub(super) struct Nodes {
    graph: Followed<Graph>,
    /// The rules of the role `system:node`: fixed, whatever somebody makes of the stored role.
    rules: Vec<Rule>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        let sources = SOURCES.map(|(group, plural, kind)| {
            let apply = move |graph: &mut Graph, key: &ObjectKey, entry: Option<&kedge_store::Entry>| {
                let object = entry.map(|entry| object::decode(&entry.bytes));
                graph.set(kind, &key.namespace, &key.name, object.as_ref());
            };
            (ResourceId::new(group, plural), Box::new(apply) as _)
        });
        Self { graph: Followed::new(sources.into()), rules: node_rules() }
    }

    /// Whether `user` may do it as a node; others pay nothing.
    pub(super) fn decide(&self, store: &Store, user: &User, attributes: &Attributes<'_>) -> Decision {
        if node_of(user).is_none() {
            return Decision::NoOpinion(String::new());
        }
        self.graph.read(store, |graph| decide_for_node(user, attributes, graph, &self.rules))
    }
}
