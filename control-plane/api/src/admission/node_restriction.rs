//! NodeRestriction: a node's own account changes that node, what bears its name, and the pods bound to it, and nothing
//! else. The authorizer of nodes decides by names; what it cannot see, the content, is looked at here.
//! (`plugin/pkg/admission/noderestriction`, KEP-279.)

mod own;
mod pods;
mod tokens;

use serde_json::Value;

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;
use crate::rest::Call;
use crate::rest::save::Part;

const LEASES: &str = "kube-node-lease";

pub(super) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let Some(node) = node_of(attempt.call) else { return Ok(()) };
        let (new, name) = (&*attempt.new, object::name(attempt.new));
        let refused = match (&*attempt.call.kind.resource.kind, attempt.old) {
            ("Node", old) if name == node => own::node(new, old),
            ("Node", _) => Some(format!("node \"{node}\" is not allowed to modify node \"{name}\"")),
            ("Pod", None) => pods::mirror(new, node, &uid_of(attempt.call, node)),
            ("Pod", Some(old)) if attempt.part == Part::Status => pods::status(new, old, node),
            ("Pod", Some(_)) => Some(format!("node \"{node}\" can only create and delete mirror pods")),
            ("PersistentVolumeClaim", Some(old)) if attempt.part == Part::Status => own::claim_status(new, old, node),
            ("PersistentVolumeClaim", _) => Some("may only update PVC status".into()),
            ("Lease", _) if object::namespace(new) != LEASES => {
                Some(format!("can only access leases in the \"{LEASES}\" system namespace"))
            }
            ("Lease", _) if name != node => {
                Some("can only access node lease with the same name as the requesting node".into())
            }
            ("CSINode", _) if name != node => {
                Some("can only access CSINode with the same name as the requesting node".into())
            }
            ("ResourceSlice", None) if new["spec"]["nodeName"] != node => {
                Some("can only create ResourceSlice with the same NodeName as the requesting node".into())
            }
            _ => None,
        };
        refused.map_or(Ok(()), |why| Err(attempt.forbidden(&why)))
    }

    fn delete(&self, call: &Call<'_>, object: &Value) -> Result<(), ApiError> {
        let Some(node) = node_of(call) else { return Ok(()) };
        let name = object::name(object);
        let why = match &*call.kind.resource.kind {
            "Node" if name != node => format!("node \"{node}\" is not allowed to modify node \"{name}\""),
            "Pod" if object["spec"]["nodeName"] != node => {
                format!("node \"{node}\" can only delete pods with spec.nodeName set to itself")
            }
            "PersistentVolumeClaim" => "may only update PVC status".to_owned(),
            "Lease" if name != node || object::namespace(object) != LEASES => {
                "can only access node lease with the same name as the requesting node".to_owned()
            }
            "CSINode" if name != node => "can only access CSINode with the same name as the requesting node".to_owned(),
            "ResourceSlice" if object["spec"]["nodeName"] != node => {
                "can only delete ResourceSlice with the same NodeName as the requesting node".to_owned()
            }
            _ => return Ok(()),
        };
        Err(ApiError::forbidden(&call.path.group, &call.path.resource, name, &why))
    }

    fn post(&self, call: &Call<'_>, target: &Value, posted: &Value) -> Result<(), ApiError> {
        let Some(node) = node_of(call) else { return Ok(()) };
        let refused = match (&*call.path.resource, &*call.path.subresource) {
            ("pods", "eviction") if target["spec"]["nodeName"] != node => {
                Some(format!("node {node} can only evict pods with spec.nodeName set to itself"))
            }
            ("pods", "eviction") => None,
            ("pods", other) => {
                Some(format!("unexpected pod subresource \"{other}\", only 'status' and 'eviction' are allowed"))
            }
            ("serviceaccounts", "token") => tokens::request(call, node, posted)?,
            _ => None,
        };
        let forbidden = |why: &String| ApiError::forbidden(&call.path.group, &call.path.resource, &call.path.name, why);
        refused.as_ref().map_or(Ok(()), |why| Err(forbidden(why)))
    }
}

/// The node that asks, if a node asks.
fn node_of<'a>(call: &Call<'a>) -> Option<&'a str> {
    kedge_access::node_of(&call.incoming.user)
}

/// The uid of the stored node; empty when there is none.
fn uid_of(call: &Call<'_>, node: &str) -> String {
    tokens::stored(call, "", "nodes", "", node).map(|node| object::uid(&node).to_owned()).unwrap_or_default()
}
