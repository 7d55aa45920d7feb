//! Who owns whom, by uid, and what follows for one object. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::discovery::ApiResource;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// What is known of an object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) resource: Arc<ApiResource>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
    /// The revision at which all this was so.
    pub(super) revision: Option<String>,
}

/// Objects by uid, and who depends on whom.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

/// What to do about one object. Pure.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// Take the foreground or orphan finalizer off: what it waited for is done.
    Unblock(&'static str),
    /// First let these go of their owner, then unblock.
    Orphan(Vec<String>),
    /// Let these go of their owner, which waits for them to go: others own them too.
    Release(Vec<String>),
    /// Delete these, whose owner waits for them; look again when they are gone.
    DeleteDependents(Vec<String>),
    /// Ask the API whether these owners exist; delete the object if none does.
    CheckOwners,
}

impl Graph {
    /// Takes in an object; returns the uids whose situation may have changed.
    pub(super) fn put(&mut self, uid: &str, node: Node) -> Vec<String> {
        let mut touched = vec![uid.to_owned()];
        if let Some(old) = self.nodes.get(uid) {
            touched.extend(old.owners.iter().map(|owner| owner.uid.clone()));
            for owner in old.owners.clone() {
                self.forget_dependent(&owner.uid, uid);
            }
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
        if node.deleting {
            touched.extend(node.owners.iter().map(|owner| owner.uid.clone()));
        }
        self.nodes.insert(uid.to_owned(), node);
        touched
    }

    /// Takes an object out; its dependents have lost an owner, and its owners need not wait for it any more.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut touched: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(old) = self.nodes.remove(uid) {
            for owner in old.owners {
                self.forget_dependent(&owner.uid, uid);
                touched.push(owner.uid);
            }
        }
        touched
    }

    /// Takes out everything of a kind that is gone, as [`Graph::remove`] does.
    pub(super) fn remove_kind(&mut self, resource: &ApiResource) -> Vec<String> {
        let of_kind = self.nodes.iter().filter(|(_, node)| *node.resource == *resource);
        let uids: Vec<String> = of_kind.map(|(uid, _)| uid.clone()).collect();
        uids.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    fn forget_dependent(&mut self, owner: &str, uid: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(uid);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<String> {
        let mut all: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        all.sort();
        all
    }

    pub(super) fn step(&self, uid: &str) -> Step {
        let Some(node) = self.nodes.get(uid) else { return Step::Nothing };
        let has = |finalizer: &str| node.finalizers.iter().any(|f| f == finalizer);
        if node.deleting {
            if has(ORPHAN) {
                return Step::Orphan(self.dependents(uid));
            }
            if has(FOREGROUND) {
                let blocking = |dependent: &&String| {
                    let owners = self.nodes.get(*dependent).map(|node| &node.owners);
                    owners
                        .into_iter()
                        .flatten()
                        .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
                };
                let all = self.dependents(uid);
                if !all.iter().any(|dependent| blocking(&dependent)) {
                    return Step::Unblock(FOREGROUND);
                }
                let waiting = all.into_iter().filter(|uid| self.nodes.get(uid).is_some_and(|node| !node.deleting));
                let (shared, waiting): (Vec<_>, Vec<_>) = waiting.partition(|dependent| self.is_kept(dependent));
                return match (shared.is_empty(), waiting.is_empty()) {
                    (false, _) => Step::Release(shared),
                    (true, false) => Step::DeleteDependents(waiting),
                    (true, true) => Step::Nothing,
                };
            }
            return Step::Nothing;
        }
        if node.owners.is_empty() || self.is_kept(uid) { Step::Nothing } else { Step::CheckOwners }
    }

    /// Whether an owner that the graph knows keeps the object: one that does not wait for its dependents to go.
    fn is_kept(&self, uid: &str) -> bool {
        let keeps = |owner: &OwnerReference| {
            let owner = self.nodes.get(&owner.uid);
            owner.is_some_and(|node| !(node.deleting && node.finalizers.iter().any(|f| f == FOREGROUND)))
        };
        self.nodes.get(uid).is_some_and(|node| node.owners.iter().any(keeps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(owners: &[(&str, bool)], deleting: bool, finalizers: &[&str]) -> Node {
        let owner = |(uid, blocks): &(&str, bool)| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(*blocks),
            ..OwnerReference::default()
        };
        Node {
            resource: Arc::new(ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())),
            namespace: "n".into(),
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            deleting,
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            revision: None,
        }
    }

    fn graph(nodes: &[(&str, Node)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, node) in nodes {
            graph.put(uid, node.clone());
        }
        graph
    }

    #[test]
    fn what_lost_its_last_owner_is_asked_about_and_nothing_else() {
        let graph = graph(&[
            ("o", node(&[], false, &[])),
            ("kept", node(&[("o", true), ("gone", true)], false, &[])),
            ("lost", node(&[("gone", true)], false, &[])),
            ("free", node(&[], false, &[])),
        ]);
        let steps = ["kept", "lost", "free", "o"].map(|uid| graph.step(uid));
        assert_eq!(steps, [Step::Nothing, Step::CheckOwners, Step::Nothing, Step::Nothing]);
    }

    #[test]
    fn a_foreground_deletion_waits_for_the_dependents_that_block_it() {
        let owner = node(&[], true, &[FOREGROUND]);
        let mut graph =
            graph(&[("o", owner), ("a", node(&[("o", true)], false, &[])), ("b", node(&[("o", false)], false, &[]))]);
        assert_eq!(graph.step("o"), Step::DeleteDependents(vec!["a".into(), "b".into()]));
        assert_eq!(graph.step("a"), Step::CheckOwners);
        assert!(graph.put("a", node(&[("o", true)], true, &["x/y"])).contains(&"o".to_owned()));
        graph.remove("b");
        assert_eq!(graph.step("o"), Step::Nothing);
        assert_eq!(graph.remove("a"), ["o"]);
        assert_eq!(graph.step("o"), Step::Unblock(FOREGROUND));
    }

    #[test]
    fn a_foreground_deletion_spares_what_others_own_too() {
        let owners = [("o", true), ("other", false)];
        let graph = graph(&[
            ("o", node(&[], true, &[FOREGROUND])),
            ("other", node(&[], false, &[])),
            ("a", node(&owners, false, &[])),
            ("b", node(&[("o", true)], false, &[])),
        ]);
        assert_eq!(graph.step("o"), Step::Release(vec!["a".into()]));
        assert_eq!(graph.step("a"), Step::Nothing);
    }

    #[test]
    fn an_orphaning_deletion_lets_its_dependents_go() {
        let graph = graph(&[("o", node(&[], true, &[ORPHAN])), ("a", node(&[("o", true)], false, &[]))]);
        assert_eq!(graph.step("o"), Step::Orphan(vec!["a".into()]));
        assert_eq!(graph.step("a"), Step::Nothing);
    }

    #[test]
    fn a_kind_that_is_gone_takes_its_objects_along() {
        let mut other = node(&[("o", true)], false, &[]);
        other.resource = Arc::new(ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()));
        let mut graph = graph(&[("o", node(&[], false, &[])), ("a", node(&[("o", true)], false, &[])), ("s", other)]);
        let kind = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let mut touched = graph.remove_kind(&kind);
        touched.sort();
        touched.dedup();
        assert!(touched.contains(&"s".to_owned()), "{touched:?}");
        assert_eq!(graph.nodes.keys().collect::<Vec<_>>(), ["s"]);
        assert_eq!(graph.step("s"), Step::CheckOwners);
        assert!(graph.remove_kind(&kind).is_empty());
    }
}
