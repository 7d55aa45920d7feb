//! What a node may do: everything about itself and the pods bound to it, and nothing about others'. Pure.
//! (`plugin/pkg/auth/authorizer/node/node_authorizer.go` with `AuthorizeNodeWithSelectors`, KEP-4601; KEP-279.)
//!
//! What cannot be told from the request alone (the content of what is written) is left to the admission plugin
//! NodeRestriction, as upstream leaves it.

use crate::attributes::{Attributes, Decision, User};
use crate::graph::Graph;
use crate::rbac::Rule;
use crate::references::Kind;

const NAME_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
/// Where nodes keep their leases.
const LEASES: &str = "kube-node-lease";

/// The node that `user` is, if it is one (`pkg/auth/nodeidentifier`). Without a name after the prefix it is none that
/// anybody knows, and gets nothing as a node.
pub fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix(NAME_PREFIX).filter(|_| user.is_in(GROUP))
}

/// Whether `user` may do it as a node. `rules` are those of the role `system:node`, for what is not told apart by node.
pub fn decide(user: &User, wanted: &Attributes<'_>, graph: &Graph, rules: &[Rule]) -> Decision {
    let Some(node) = node_of(user) else { return Decision::NoOpinion(String::new()) };
    if node.is_empty() {
        return no(format!("unknown node for user {:?}", user.name));
    }
    let asked = Asked { node, wanted, graph };
    let verdict = match (wanted.group, wanted.resource) {
        ("", "secrets") => asked.read_one(Kind::Secret),
        ("", "configmaps") => asked.read_one(Kind::ConfigMap),
        ("", "persistentvolumeclaims") if wanted.subresource == "status" => asked.claim_status(),
        ("", "persistentvolumeclaims") => asked.get(Kind::PersistentVolumeClaim),
        ("", "persistentvolumes") => asked.get(Kind::PersistentVolume),
        ("resource.k8s.io", "resourceclaims") => asked.get(Kind::ResourceClaim),
        ("storage.k8s.io", "volumeattachments") => asked.get(Kind::VolumeAttachment),
        ("", "serviceaccounts") => asked.service_account(),
        ("coordination.k8s.io", "leases") => asked.lease(),
        ("storage.k8s.io", "csinodes") => asked.csi_node(),
        ("resource.k8s.io", "resourceslices") => asked.resource_slice(),
        ("", "nodes") => asked.node(),
        ("", "pods") => asked.pod(),
        _ if rules.iter().any(|rule| rule.allows(wanted)) => Ok(()),
        _ => Err(String::new()),
    };
    match verdict {
        Ok(()) => Decision::Allow(format!("Node: allowed to node {node:?}")),
        Err(why) => no(why),
    }
}

fn no(why: String) -> Decision {
    Decision::NoOpinion(why)
}

/// Nothing, or why not.
type Verdict = Result<(), String>;

fn refuse(why: &str) -> Verdict {
    Err(why.to_owned())
}

struct Asked<'a> {
    node: &'a str,
    wanted: &'a Attributes<'a>,
    graph: &'a Graph,
}

impl Asked<'_> {
    /// The object is named, and has to do with the node.
    fn related(&self, kind: Kind) -> Verdict {
        let Attributes { namespace, name, .. } = *self.wanted;
        if name.is_empty() {
            return refuse("No Object name found");
        }
        if self.graph.is_related(self.node, kind, namespace, name) {
            return Ok(());
        }
        Err(format!("no relationship found between node '{}' and this object", self.node))
    }

    fn get(&self, kind: Kind) -> Verdict {
        if self.wanted.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !self.wanted.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(kind)
    }

    /// One object, by its name or by a list or watch of that name alone.
    fn read_one(&self, kind: Kind) -> Verdict {
        if !matches!(self.wanted.verb, "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !self.wanted.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if self.wanted.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(kind)
    }

    fn claim_status(&self) -> Verdict {
        if !matches!(self.wanted.verb, "update" | "patch") {
            return refuse("can only get/update/patch this type");
        }
        self.related(Kind::PersistentVolumeClaim)
    }

    fn service_account(&self) -> Verdict {
        let Attributes { verb, subresource, name, .. } = *self.wanted;
        if (verb, subresource) == ("get", "") {
            return self.read_one(Kind::ServiceAccount);
        }
        if verb != "create" || name.is_empty() {
            return refuse("can only create tokens for individual service accounts");
        }
        if subresource != "token" {
            return refuse("can only create token subresource of serviceaccount");
        }
        self.related(Kind::ServiceAccount)
    }

    fn lease(&self) -> Verdict {
        self.own_verb("can only get, create, update, patch, or delete a node lease")?;
        if self.wanted.namespace != LEASES {
            return Err(format!("can only access leases in the {LEASES:?} system namespace"));
        }
        self.own_name("can only access node lease with the same name as the requesting node")
    }

    fn csi_node(&self) -> Verdict {
        self.own_verb("can only get, create, update, patch, or delete a CSINode")?;
        if !self.wanted.subresource.is_empty() {
            return refuse("cannot authorize CSINode subresources");
        }
        self.own_name("can only access CSINode with the same name as the requesting node")
    }

    /// What a node may do with the one object of a kind that bears its name.
    fn own_verb(&self, otherwise: &str) -> Verdict {
        let fits = matches!(self.wanted.verb, "get" | "create" | "update" | "patch" | "delete");
        if fits { Ok(()) } else { refuse(otherwise) }
    }

    /// The name is the node's; at a creation it is not known yet.
    fn own_name(&self, otherwise: &str) -> Verdict {
        let fits = self.wanted.verb == "create" || self.wanted.name == self.node;
        if fits { Ok(()) } else { refuse(otherwise) }
    }

    fn resource_slice(&self) -> Verdict {
        if !self.wanted.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match self.wanted.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(Kind::ResourceSlice),
            "watch" | "list" | "deletecollection" if self.selects_own("spec.nodeName") => Ok(()),
            "watch" | "list" | "deletecollection" => {
                refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn node(&self) -> Verdict {
        let Attributes { verb, subresource, name, .. } = *self.wanted;
        match (subresource, verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") if name == self.node => Ok(()),
            ("", "get" | "list" | "watch") if name.is_empty() => {
                Err(format!("node '{}' cannot read all nodes, only its own Node object", self.node))
            }
            ("", "get" | "list" | "watch") => {
                Err(format!("node '{}' cannot read '{name}', only its own Node object", self.node))
            }
            _ => refuse(""),
        }
    }

    fn pod(&self) -> Verdict {
        let Attributes { verb, subresource, name, .. } = *self.wanted;
        match (subresource, verb) {
            ("", "get") => self.get(Kind::Pod),
            ("", "list" | "watch") if self.selects_own("spec.nodeName") => Ok(()),
            ("", "list" | "watch") if !name.is_empty() => self.related(Kind::Pod),
            ("", "list" | "watch") => refuse("can only list/watch pods with spec.nodeName field selector"),
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => refuse(""),
        }
    }

    /// The request asks for nothing but what `field` gives to this node.
    fn selects_own(&self, field: &str) -> bool {
        self.wanted.fields.iter().any(|(path, value)| path == field && value == self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `VERB GROUP RESOURCE NAMESPACE NAME [FIELD=VALUE]`, `-` for nothing, asked by `node`.
    fn ask(node: &str, text: &str) -> Decision {
        let mut graph = Graph::default();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "serviceAccountName": "bot",
            "imagePullSecrets": [{"name": "pull"}], "resourceClaims": [{"name": "r", "resourceClaimName": "gpu"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}]}],
            "volumes": [{"secret": {"secretName": "s"}}, {"persistentVolumeClaim": {"claimName": "c"}}]}});
        graph.set(Kind::Pod, "a", "p", Some(&pod));
        let volume = json!({"spec": {"claimRef": {"namespace": "a", "name": "c"}}});
        graph.set(Kind::PersistentVolume, "", "v", Some(&volume));
        for kind in [Kind::VolumeAttachment, Kind::ResourceSlice] {
            graph.set(kind, "", "x", Some(&json!({"spec": {"nodeName": "n1"}})));
        }
        let rules = [
            json!({"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["services"]}),
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["secrets", "nodes", "pods"]}),
        ];
        let rules = rules.each_ref().map(Rule::from_value);
        let parts: Vec<&str> = text.split(' ').map(|part| if part == "-" { "" } else { part }).collect();
        let (resource, subresource) = parts[2].split_once('/').unwrap_or((parts[2], ""));
        let fields: Vec<(String, String)> = parts[5..]
            .iter()
            .map(|part| part.split_once('=').unwrap())
            .map(|(field, value)| (field.to_owned(), value.to_owned()))
            .collect();
        let wanted = Attributes {
            verb: parts[0],
            group: parts[1],
            resource,
            subresource,
            namespace: parts[3],
            name: parts[4],
            fields: &fields,
            ..Attributes::default()
        };
        let user = User::new(&format!("system:node:{node}"), &["system:nodes"]);
        decide(&user, &wanted, &graph, &rules)
    }

    #[test]
    fn a_node_reads_what_its_pods_name_and_nothing_else() {
        let allowed = [
            "get - secrets a s",
            "list - secrets a s",
            "watch - secrets a s",
            "get - secrets a pull",
            "get - configmaps a env",
            "get - persistentvolumeclaims a c",
            "patch - persistentvolumeclaims/status a c",
            "get - persistentvolumes - v",
            "get resource.k8s.io resourceclaims a gpu",
            "get storage.k8s.io volumeattachments - x",
            "get - serviceaccounts a bot",
            "create - serviceaccounts/token a bot",
            "get resource.k8s.io resourceslices - x",
            "delete resource.k8s.io resourceslices - x",
            "get - pods a p",
            "watch - pods a p",
        ];
        let refused = [
            ("get - secrets a other", "no relationship found between node 'n1' and this object"),
            ("get - secrets b s", "no relationship found between node 'n1' and this object"),
            ("list - secrets a -", "No Object name found"),
            ("list - secrets - s", "can only read namespaced object of this type"),
            ("update - secrets a s", "can only read resources of this type"),
            ("get - configmaps a s", "no relationship found between node 'n1' and this object"),
            ("list - persistentvolumes - v", "can only get individual resources of this type"),
            ("get - persistentvolumeclaims/status a c", "can only get/update/patch this type"),
            ("get - serviceaccounts a other", "no relationship found between node 'n1' and this object"),
            ("list - serviceaccounts a bot", "can only create tokens for individual service accounts"),
            ("create - serviceaccounts/token a other", "no relationship found between node 'n1' and this object"),
            ("create - serviceaccounts a bot", "can only create token subresource of serviceaccount"),
            ("get resource.k8s.io resourceclaims/status a gpu", "cannot get subresource"),
            ("get resource.k8s.io resourceslices - y", "no relationship found between node 'n1' and this object"),
            ("get - pods b p", "no relationship found between node 'n1' and this object"),
        ];
        for text in allowed {
            assert!(ask("n1", text).is_allowed(), "n1: {text}");
            assert!(!ask("n2", text).is_allowed(), "n2: {text}");
        }
        for (text, why) in refused {
            assert_eq!(ask("n1", text), Decision::NoOpinion(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_node_acts_on_itself_and_on_pods_bound_to_it() {
        let cases = [
            ("get - nodes - n1", true),
            ("watch - nodes - n1", true),
            ("get - nodes - n2", false),
            ("list - nodes - -", false),
            ("create - nodes - -", true),
            ("patch - nodes/status - n1", true),
            ("delete - nodes - n1", false),
            ("get - nodes/proxy - n1", false),
            ("list - pods - - spec.nodeName=n1", true),
            ("watch - pods - - spec.nodeName=n1", true),
            ("watch - pods - - spec.nodeName=n2", false),
            ("watch - pods - - status.phase=n1", false),
            ("list - pods - -", false),
            ("list - pods a -", false),
            ("create - pods a -", true),
            ("update - pods a p", false),
            ("delete - pods a p", true),
            ("patch - pods/status a p", true),
            ("create - pods/eviction a p", true),
            ("create - pods/binding a p", false),
            ("create - pods/exec a p", false),
            ("get coordination.k8s.io leases kube-node-lease n1", true),
            ("create coordination.k8s.io leases kube-node-lease -", true),
            ("patch coordination.k8s.io leases kube-node-lease n2", false),
            ("list coordination.k8s.io leases kube-node-lease -", false),
            ("get coordination.k8s.io leases kube-system n1", false),
            ("patch storage.k8s.io csinodes - n1", true),
            ("get storage.k8s.io csinodes - n2", false),
            ("list resource.k8s.io resourceslices - - spec.nodeName=n1", true),
            ("list resource.k8s.io resourceslices - -", false),
            ("deletecollection resource.k8s.io resourceslices - - spec.nodeName=n2", false),
            ("list - services a -", true),
            ("create - services a -", false),
        ];
        for (text, expected) in cases {
            assert_eq!(ask("n1", text).is_allowed(), expected, "{text}");
        }
    }

    #[test]
    fn only_a_named_node_in_the_group_is_one() {
        let cases = [
            (User::new("system:node:n1", &["system:nodes"]), Some("n1")),
            (User::new("system:node:", &["system:nodes"]), Some("")),
            (User::new("system:node:n1", &[]), None),
            (User::new("n1", &["system:nodes"]), None),
        ];
        for (user, expected) in cases {
            assert_eq!(node_of(&user), expected, "{}", user.name);
        }
        assert!(!ask("", "list - services a -").is_allowed());
    }
}
