//! Which models a site should hold: a pure reading of `Model` and `Site` objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use kedge_link::Key;
use kedge_models::is_chosen;
use kedge_own::{Model, Site};
use kedge_wire::Assignment;
use kube::ResourceExt;

/// The models meant for a site; none for one whose files are not ready here. Such a one takes nothing away from a
/// site that holds it already.
pub(crate) fn assignments(site: &Site, models: &[Arc<Model>]) -> BTreeMap<Key, Option<Assignment>> {
    let chosen = models.iter().filter(|model| is_chosen(model, site));
    chosen
        .map(|model| {
            let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
            let status = model.status.as_ref().filter(|status| status.is_ready());
            let ready = status.and_then(|status| {
                Some(Assignment {
                    site: site.name_any(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                    uid: model.uid().unwrap_or_default(),
                    digest: status.digest.clone()?,
                    bytes: status.bytes.and_then(|bytes| u64::try_from(bytes).ok())?,
                })
            });
            (Key::new(&format!("Model/{namespace}/{name}")), ready)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn site(name: &str) -> Site {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"city": "bonn"}}, "spec": {}})).unwrap()
    }

    fn model(name: &str, sites: serde_json::Value, ready: &str) -> Arc<Model> {
        let condition = json!({"type": "Ready", "status": ready, "reason": "R", "message": "",
            "lastTransitionTime": "2026-05-01T00:00:00Z"});
        let model = json!({"metadata": {"name": name, "namespace": "default", "uid": "u"},
            "spec": {"source": {"path": "m"}, "sites": sites},
            "status": {"digest": "sha256:00", "bytes": 5, "conditions": [condition]}});
        Arc::new(serde_json::from_value(model).unwrap())
    }

    #[test]
    fn a_model_is_meant_for_the_sites_that_it_names_or_selects() {
        let models = [
            model("by-name", json!({"names": ["shop-1"]}), "True"),
            model("by-label", json!({"selector": {"matchLabels": {"city": "bonn"}}}), "True"),
            model("another", json!({"names": ["shop-2"], "selector": {"matchLabels": {"city": "rome"}}}), "True"),
            model("for-nobody", json!(null), "True"),
            model("not-ready", json!({"names": ["shop-1"]}), "False"),
        ];
        let found = assignments(&site("shop-1"), &models);
        let names: Vec<_> = found.iter().map(|(key, ready)| (key.to_string(), ready.is_some())).collect();
        let expected =
            [("Model/default/by-label", true), ("Model/default/by-name", true), ("Model/default/not-ready", false)];
        assert_eq!(names, expected.map(|(key, ready)| (key.to_owned(), ready)));
    }

    #[test]
    fn an_empty_selector_selects_every_site_and_a_model_on_its_way_out_is_for_nobody() {
        let mut every = Arc::unwrap_or_clone(model("every", json!({"selector": {}}), "True"));
        assert!(is_chosen(&every, &site("any")));
        every.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert!(!is_chosen(&every, &site("any")));
    }
}
