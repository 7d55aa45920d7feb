//! What a `Model` says of the sites that it is assigned to: which of them have it, read from the `Site` objects that the
//! hub keeps. It runs in the server, so a name that no `Site` has is told although no hub runs.
//!
//! [`told`] decides; the rest finds the objects and writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kedge_client::{Change, Context, Key, Next, Reconcile, Trigger, selects};
use kedge_own::{
    Model, ModelAtSite, ModelAtSiteState as At, ModelStatus, Site, SiteModel, SiteModelState, set_condition,
};
use kube::ResourceExt;

use crate::write::{Written, write_status};

/// The condition of a model that is assigned to sites.
const IN_STEP: &str = "SitesInStep";
/// Sites listed in a Model, those with trouble first; what is more is counted.
const SITES_MAX: usize = 200;
/// Names in one message.
const NAMES_MAX: usize = 5;

/// Whether a model is meant for a site: by name, or by the site's labels.
pub fn is_chosen(model: &Model, site: &Site) -> bool {
    let Some(choice) = &model.spec.sites else { return false };
    let by_label = choice.selector.as_ref().is_some_and(|selector| selects(selector, site.metadata.labels.as_ref()));
    model.metadata.deletion_timestamp.is_none() && (by_label || choice.names.contains(&site.name_any()))
}

/// Writes into each `Model` what its sites say.
#[derive(Clone, Copy, Debug)]
pub struct SitesOfModels;

impl Reconcile for SitesOfModels {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "model-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Model>(trigger);
        let models = context.informers.of::<Model>();
        context.watch::<Site>(trigger, move |change| {
            let models = models.list();
            models.iter().filter(|model| concerns(change, model)).map(|model| Key::of(&**model)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let informers = &context.informers;
        let Some(model) = informers.of::<Model>().get(key) else { return Ok(Next::Change) };
        let is_idle =
            model.spec.sites.is_none() && model.status.as_ref().is_none_or(|status| status.sites_active.is_none());
        if model.metadata.deletion_timestamp.is_some() || is_idle {
            return Ok(Next::Change);
        }
        let status = told(&model, &informers.of::<Site>().list(), context.world.clock.wall());
        if model.status.as_ref() != Some(&status) {
            let Written::Now(_) = write_status(context, &model, status).await? else {
                // Somebody else wrote; that wakes this one, too.
                return Ok(Next::Change);
            };
        }
        Ok(Next::Change)
    }
}

/// Whether a change of a site may change what a model says of it. Most changes are of times and bytes.
fn concerns(change: &Change<Site>, model: &Model) -> bool {
    let side = |site: &Option<Arc<Site>>| {
        let site = site.as_ref().filter(|site| is_chosen(model, site))?;
        Some((
            entry_of(model, site).map(|entry| (entry.state, entry.message.clone(), entry.digest.clone())),
            is_away(site),
        ))
    };
    side(&change.old) != side(&change.new)
}

/// What the site says of the model.
fn entry_of<'a>(model: &Model, site: &'a Site) -> Option<&'a SiteModel> {
    let mut entries = site.status.iter().flat_map(|status| &status.models);
    entries.find(|entry| {
        Some(&entry.name) == model.metadata.name.as_ref() && Some(&entry.namespace) == model.metadata.namespace.as_ref()
    })
}

fn is_away(site: &Site) -> bool {
    let mut conditions = site.status.iter().flat_map(|status| &status.conditions);
    !conditions.any(|condition| condition.type_ == "Connected" && condition.status == "True")
}

/// The status of a model that tells of its sites.
fn told(model: &Model, sites: &[Arc<Site>], now: Timestamp) -> ModelStatus {
    let mut status = model.status.clone().unwrap_or_default();
    let Some(choice) = &model.spec.sites else {
        status.sites.clear();
        status.sites_active = None;
        status.conditions.retain(|condition| condition.type_ != IN_STEP);
        return status;
    };
    let chosen = sites.iter().filter(|site| is_chosen(model, site));
    let mut all: BTreeMap<String, ModelAtSite> = chosen.map(|site| (site.name_any(), at_site(model, site))).collect();
    for name in &choice.names {
        all.entry(name.clone()).or_insert_with(|| ModelAtSite {
            name: name.clone(),
            state: At::NotFound,
            message: Some("there is no Site of this name".into()),
        });
    }
    let mut all: Vec<ModelAtSite> = all.into_values().collect();
    all.sort_by_key(|site| site.state);
    let active = all.iter().filter(|site| site.state == At::Active).count();
    status.sites_active = Some(format!("{active}/{}", all.len()));
    let (holds, reason, message) = in_step(&all, active);
    set_condition(&mut status.conditions, (IN_STEP, holds), (reason, &message), model.metadata.generation, now);
    all.truncate(SITES_MAX);
    status.sites = all;
    status
}

/// What has become of the model at a site that there is.
fn at_site(model: &Model, site: &Site) -> ModelAtSite {
    let wanted = model.status.as_ref().and_then(|status| status.digest.as_ref());
    // What a site says of another digest is about what was assigned before.
    let entry = entry_of(model, site).filter(|entry| wanted.is_none() || entry.digest.as_ref() == wanted);
    let state = match entry.map(|entry| entry.state) {
        Some(SiteModelState::Pulling) => At::Pulling,
        Some(SiteModelState::Active) => At::Active,
        Some(SiteModelState::Failed) => At::Failed,
        Some(SiteModelState::Pending | SiteModelState::Unclaimed) | None => At::Pending,
    };
    let said = entry.and_then(|entry| entry.message.clone());
    let away = (state != At::Active && is_away(site)).then(|| "the site is not connected".to_owned());
    ModelAtSite { name: site.name_any(), state, message: said.or(away) }
}

/// Whether every site has it; the reason, and a sentence.
fn in_step(all: &[ModelAtSite], active: usize) -> (bool, &'static str, String) {
    let of = |state: At| all.iter().filter(|site| site.state == state).collect::<Vec<_>>();
    let (missing, failed) = (of(At::NotFound), of(At::Failed));
    if all.is_empty() {
        return (false, "NoSite", "spec.sites chooses no Site".to_owned());
    }
    if !missing.is_empty() {
        let message = format!("there is no Site named {}, as spec.sites.names has it", names(&missing));
        return (false, "SiteNotFound", message);
    }
    if let Some(first) = failed.first() {
        let why = first.message.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        return (false, "SiteFailed", format!("it failed at {}{why}", names(&failed)));
    }
    if active < all.len() {
        return (false, "Behind", format!("{active} of {} sites have it", all.len()));
    }
    (
        true,
        "Complete",
        if active == 1 { "its one site has it".to_owned() } else { format!("all {active} sites have it") },
    )
}

fn names(sites: &[&ModelAtSite]) -> String {
    let some: Vec<&str> = sites.iter().take(NAMES_MAX).map(|site| &*site.name).collect();
    let more = sites.len() - some.len();
    let text = some.join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn model(sites: Value, before: Option<ModelStatus>) -> Model {
        let status = before.map_or(json!({"digest": "d1"}), |status| serde_json::to_value(status).unwrap());
        serde_json::from_value(json!({
            "metadata": {"name": "m", "namespace": "n", "generation": 1}, "status": status,
            "spec": {"source": {"path": "m"}, "sites": sites},
        }))
        .unwrap()
    }

    fn site(name: &str, connected: bool, entry: Value) -> Arc<Site> {
        let mut entry = entry;
        entry["namespace"] = json!("n");
        entry["name"] = json!("m");
        let connected = if connected { "True" } else { "False" };
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"city": "bonn"}}, "spec": {},
            "status": {"models": if entry["state"].is_null() { json!([]) } else { json!([entry]) }, "conditions": [{
                "type": "Connected", "status": connected, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap())
    }

    fn entry(state: &str, digest: &str) -> Value {
        json!({"state": state, "digest": digest, "message": if state == "Failed" { json!("the disk is full") } else { json!(null) }})
    }

    #[test]
    fn a_model_says_which_site_has_it_and_why_one_has_not() {
        let check = |choice: Value, sites: &[Arc<Site>], summary: &str, entries: &[&str], condition: &str| {
            let status = told(&model(choice, None), sites, Timestamp::UNIX_EPOCH);
            let text = |site: &ModelAtSite| {
                format!("{} {:?} {}", site.name, site.state, site.message.as_deref().unwrap_or("-"))
            };
            assert_eq!(status.sites.iter().map(text).collect::<Vec<_>>(), entries);
            assert_eq!(status.sites_active.as_deref(), Some(summary));
            let told = &status.conditions[0];
            assert_eq!(format!("{} {} {}: {}", told.type_, told.status, told.reason, told.message), condition);
        };
        let bonn = json!({"selector": {"matchLabels": {"city": "bonn"}}});
        let has = |name: &str| site(name, true, entry("Active", "d1"));
        check(bonn.clone(), &[], "0/0", &[], "SitesInStep False NoSite: spec.sites chooses no Site");
        check(bonn.clone(), &[has("a")], "1/1", &["a Active -"], "SitesInStep True Complete: its one site has it");
        check(
            bonn.clone(),
            &[has("a"), has("b")],
            "2/2",
            &["a Active -", "b Active -"],
            "SitesInStep True Complete: all 2 sites have it",
        );
        let sites = [
            has("a"),
            site("b", true, entry("Pulling", "d1")),
            site("c", false, json!({})),
            site("d", true, entry("Active", "d0")),
        ];
        check(
            bonn.clone(),
            &sites,
            "1/4",
            &["c Pending the site is not connected", "d Pending -", "b Pulling -", "a Active -"],
            "SitesInStep False Behind: 1 of 4 sites have it",
        );
        check(
            bonn,
            &[has("a"), site("b", true, entry("Failed", "d1"))],
            "1/2",
            &["b Failed the disk is full", "a Active -"],
            "SitesInStep False SiteFailed: it failed at b: the disk is full",
        );
        check(
            json!({"names": ["a", "shop-9"]}),
            &[has("a"), has("b")],
            "1/2",
            &["shop-9 NotFound there is no Site of this name", "a Active -"],
            "SitesInStep False SiteNotFound: there is no Site named shop-9, as spec.sites.names has it",
        );
    }

    #[test]
    fn a_model_that_is_assigned_no_more_says_nothing_of_sites() {
        let before = told(&model(json!({"names": ["a"]}), None), &[], Timestamp::UNIX_EPOCH);
        let after = told(&model(json!(null), Some(before)), &[], Timestamp::UNIX_EPOCH);
        assert_eq!((after.sites.len(), after.sites_active, after.conditions.len()), (0, None, 0));
    }

    #[test]
    fn times_and_bytes_of_a_site_are_no_news_for_its_models() {
        let model = model(json!({"names": ["a"]}), None);
        let check = |old: Option<Arc<Site>>, new: Option<Arc<Site>>, expected: bool| {
            assert_eq!(concerns(&Change { old, new }, &model), expected);
        };
        let some = |connected, entry| Some(site("a", connected, entry));
        let mut more = entry("Pulling", "d1");
        more["bytesDone"] = json!(5);
        check(some(true, entry("Pulling", "d1")), some(true, more), false);
        check(some(true, entry("Pulling", "d1")), some(true, entry("Active", "d1")), true);
        check(some(true, entry("Pulling", "d1")), some(false, entry("Pulling", "d1")), true);
        check(None, some(true, json!({})), true);
        check(Some(site("b", true, json!({}))), None, false);
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        let many: Vec<ModelAtSite> =
            (0..7).map(|i| ModelAtSite { name: format!("s{i}"), ..ModelAtSite::default() }).collect();
        assert_eq!(names(&many.iter().collect::<Vec<_>>()), "s0, s1, s2, s3, s4 and 2 more");
    }
}
