//! ClusterRole aggregation: a role that selects others has their rules.
//! (`pkg/controller/clusterroleaggregation`.)

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::pods::selects;

pub(crate) struct Controller;

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        let roles = context.informers.of::<ClusterRole>();
        // Any role may be one that others select.
        context.watch::<ClusterRole>(trigger, move |_| {
            let aggregating = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
            aggregating.map(|role| Key::of(&*role)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let informer = context.informers.of::<ClusterRole>();
        let Some(role) = informer.get(key) else { return Ok(Next::Change) };
        let all: Vec<_> = informer.list();
        let Some(rules) = aggregated(&role, all.iter().map(|role| &**role)) else { return Ok(Next::Change) };
        if role.rules.as_ref().unwrap_or(&Vec::new()) == &rules {
            return Ok(Next::Change);
        }
        let api: Api<ClusterRole> = Api::all(context.informers.client().clone());
        let patch = Patch::Merge(json!({ "rules": rules }));
        let made = api.patch(&key.name, &PatchParams::default(), &patch).await?;
        informer.reached(crate::write::revision(&made)).await;
        Ok(Next::Change)
    }
}

/// The rules that `role` should have; none when it aggregates nothing. Roles in order of their names, each rule once.
fn aggregated<'a>(role: &ClusterRole, all: impl Iterator<Item = &'a ClusterRole>) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules = Vec::new();
    for other in all.filter(|other| other.name_any() != role.name_any()) {
        if selectors.iter().any(|selector| selects(selector, other.metadata.labels.as_ref())) {
            for rule in other.rules.iter().flatten().filter(|rule| !rules.contains(*rule)).cloned().collect::<Vec<_>>()
            {
                rules.push(rule);
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_selected_roles_come_together_once() {
        let role = |name: &str, label: &str, verb: &str| -> ClusterRole {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]}))
            .unwrap()
        };
        let view: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "view", "labels": {"to": "view"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .unwrap();
        let all = [
            role("a", "view", "get"),
            role("b", "edit", "delete"),
            role("c", "view", "list"),
            role("d", "view", "get"),
            view.clone(),
        ];
        let rules = aggregated(&view, all.iter()).unwrap();
        assert_eq!(rules.iter().map(|rule| rule.verbs[0].as_str()).collect::<Vec<_>>(), ["get", "list"]);
        assert_eq!(aggregated(&all[0], all.iter()), None);
    }
}
