//! Nobody grants more than they have: roles and bindings are written by those who hold what they give, or who may
//! `escalate` or `bind`. (`pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased`.)

use kedge_access::{Attributes, Rule};
use kedge_store::{ObjectKey, ResourceId};
use serde_json::Value;

use super::{Attempt, Plugin};
use crate::error::ApiError;
use crate::object;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) struct Escalation;

impl Plugin for Escalation {
    fn validate(&self, attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
        let unchanged = |key: &str| attempt.old.is_some_and(|old| old[key] == attempt.new[key]);
        if &*attempt.call.kind.resource.group != GROUP {
            return Ok(());
        }
        match &*attempt.call.kind.resource.kind {
            "Role" | "ClusterRole" if !unchanged("rules") || !unchanged("aggregationRule") => {
                let plural = &*attempt.call.kind.resource.plural;
                if may(attempt, "escalate", plural, object::name(attempt.new)) {
                    return Ok(());
                }
                if attempt.new["aggregationRule"].is_object() && !unchanged("aggregationRule") {
                    // What it will gather is not known yet: only who has everything may ask for it.
                    let all = Rule {
                        verbs: vec!["*".into()],
                        groups: vec!["*".into()],
                        resources: vec!["*".into()],
                        ..Rule::default()
                    };
                    granted(attempt, &[all])?;
                }
                granted(attempt, &rules(attempt.new))
            }
            "RoleBinding" | "ClusterRoleBinding" if !unchanged("roleRef") || !unchanged("subjects") => binding(attempt),
            _ => Ok(()),
        }
    }
}

fn rules(role: &Value) -> Vec<Rule> {
    object::items(role, "rules").map(Rule::from_value).collect()
}

fn binding(attempt: &Attempt<'_, '_>) -> Result<(), ApiError> {
    let role = &attempt.new["roleRef"];
    let (kind, name) = (role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
    let (plural, namespace) =
        if kind == "Role" { ("roles", object::namespace(attempt.new)) } else { ("clusterroles", "") };
    if may(attempt, "bind", plural, name) {
        return Ok(());
    }
    let found = attempt.call.api.store().get(&ResourceId::new(GROUP, plural), &ObjectKey::new(namespace, name));
    let found = found.ok_or_else(|| ApiError::not_found(GROUP, plural, name))?;
    granted(attempt, &rules(&object::decode(&found.bytes)))
}

/// Whether the user holds a verb that lifts the rule for this role.
fn may(attempt: &Attempt<'_, '_>, verb: &str, plural: &str, name: &str) -> bool {
    let attributes = Attributes {
        verb,
        group: GROUP,
        version: "v1",
        resource: plural,
        namespace: &attempt.call.path.namespace,
        name,
        ..Attributes::default()
    };
    attempt.call.api.guard().decide(attempt.call.api, &attempt.call.incoming.user, &attributes).is_allowed()
}

fn granted(attempt: &Attempt<'_, '_>, wanted: &[Rule]) -> Result<(), ApiError> {
    let call = attempt.call;
    let missing = call.api.guard().may_grant(call.api, &call.incoming.user, &call.path.namespace, wanted);
    missing.map_or(Ok(()), |rule| {
        let user = &call.incoming.user;
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{{APIGroups:{:?}, \
             Resources:{:?}, ResourceNames:{:?}, NonResourceURLs:{:?}, Verbs:{:?}}}",
            user.name, user.groups, rule.groups, rule.resources, rule.names, rule.paths, rule.verbs
        );
        Err(attempt.forbidden(&why))
    })
}
