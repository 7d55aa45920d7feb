//! What a `Site` object says, from what its task knows. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kedge_link::Key;
use kedge_own::{SiteInventory, SiteModel, SiteModelState, SiteStatus, set_condition};
use kedge_wire::Assignment;
use kedge_wire::report::{About, ModelReport, State};

/// Clocks that differ by more are told; nothing stops because of it.
const CLOCK_DIFFERS: SignedDuration = SignedDuration::from_secs(60);
/// A site that is only there is written down this often: `lastSeenTime` is that exact.
const SEEN_EVERY: SignedDuration = SignedDuration::from_mins(5);
/// Models listed in a Site; what is more is counted.
const MODELS_MAX: usize = 500;
/// Longest message of a model.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What is known of a site's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The hub has started and the site has not come yet; it may be about to.
    #[default]
    Unknown,
    /// At the other end.
    Here,
    /// Not there.
    Away,
}

/// What the task of a site knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) presence: Presence,
    pub(crate) seen: Option<Timestamp>,
    /// How far the site's clock is ahead.
    pub(crate) clock_ahead: Option<SignedDuration>,
    pub(crate) about: Option<About>,
    /// None for what is assigned and not ready at the hub.
    pub(crate) assigned: BTreeMap<Key, Option<Assignment>>,
    pub(crate) reports: BTreeMap<Key, ModelReport>,
    /// Why not everything that is assigned can be told to the site.
    pub(crate) refused: Option<String>,
}

/// The status that says it, after `before`.
pub(crate) fn status(before: &SiteStatus, facts: &Facts, now: Timestamp) -> SiteStatus {
    let mut status = before.clone();
    let mut set = |kind: &str, holds: bool, reason: &str, message: &str| {
        set_condition(&mut status.conditions, (kind, holds), (reason, message), None, now);
    };
    match facts.presence {
        Presence::Here => set("Connected", true, "LinkUp", "the site is connected"),
        Presence::Away => {
            set("Connected", false, "LinkDown", "the site is not connected; it goes on with what it holds");
        }
        Presence::Unknown => {}
    }
    if let Some(ahead) = facts.clock_ahead {
        let message = match ahead {
            _ if ahead.abs() <= CLOCK_DIFFERS => "the site's clock agrees with the hub's".to_owned(),
            ahead if ahead.is_positive() => format!("the site's clock is {} s ahead of the hub's", ahead.as_secs()),
            ahead => format!("the site's clock is {} s behind the hub's", -ahead.as_secs()),
        };
        let agrees = ahead.abs() <= CLOCK_DIFFERS;
        set("ClockInStep", agrees, if agrees { "Agrees" } else { "Differs" }, &message);
    }
    let models = models(facts);
    if let Some(refused) = &facts.refused {
        set("InStep", false, "TooMuch", refused);
    } else {
        let behind = models.iter().filter(|model| model.state != SiteModelState::Active).count();
        let failed = models.iter().find(|model| model.state == SiteModelState::Failed);
        match (behind, failed) {
            (0, _) => {
                let message = match models.len() {
                    0 => "no model is assigned to it".to_owned(),
                    1 => "its one model is active".to_owned(),
                    count => format!("all {count} models are active"),
                };
                set("InStep", true, "Complete", &message);
            }
            (_, Some(model)) => {
                let message = format!("{}/{} has failed; see status.models", model.namespace, model.name);
                set("InStep", false, "ModelFailed", &message);
            }
            (behind, None) => {
                set("InStep", false, "Behind", &format!("not active yet: {behind} of {} models", models.len()));
            }
        }
    }
    status.models = models.into_iter().take(MODELS_MAX).collect();
    if let Some(about) = &facts.about {
        status.version = Some(about.version.clone());
        status.inventory = about.inventory.as_ref().map(|inventory| SiteInventory {
            nodes: inventory.nodes,
            nodes_ready: inventory.nodes_ready,
            cpu_millis: inventory.cpu_millis,
            memory_bytes: inventory.memory_bytes,
        });
    }
    if let Some(seen) = facts.seen {
        let written = before.last_seen_time.as_ref().map(|time| time.0);
        // Everything else that changed takes the time along; time alone is not worth a write.
        let stale = written.is_none_or(|written| seen.duration_since(written) >= SEEN_EVERY);
        if stale || status != *before {
            status.last_seen_time = Some(Time(seen));
        }
    }
    status
}

fn models(facts: &Facts) -> Vec<SiteModel> {
    let keys: std::collections::BTreeSet<&Key> = facts.assigned.keys().chain(facts.reports.keys()).collect();
    keys.into_iter().filter_map(|key| model(key, facts)).collect()
}

fn model(key: &Key, facts: &Facts) -> Option<SiteModel> {
    let (namespace, name) = key.0.strip_prefix("Model/")?.split_once('/')?;
    let assigned = facts.assigned.get(key);
    let wanted = assigned.and_then(Option::as_ref);
    // A report on another digest is about what was assigned before.
    let fits = |report: &&ModelReport| wanted.is_none_or(|wanted| wanted.digest == report.digest);
    let mut model = SiteModel { namespace: namespace.to_owned(), name: name.to_owned(), ..SiteModel::default() };
    match facts.reports.get(key).filter(fits) {
        Some(report) => {
            let bytes = |count: u64| Some(i64::try_from(count).unwrap_or(i64::MAX));
            model.digest = Some(report.digest.clone());
            model.state = match report.state {
                State::Pulling => SiteModelState::Pulling,
                State::Active => SiteModelState::Active,
                State::Failed => SiteModelState::Failed,
                State::Unclaimed => SiteModelState::Unclaimed,
            };
            model.bytes_done = bytes(report.bytes_done);
            model.bytes_total = bytes(report.bytes_total);
            model.message = report.message.as_ref().map(|message| cut(message));
        }
        None => {
            model.digest = wanted.map(|wanted| wanted.digest.clone());
            model.bytes_total = wanted.and_then(|wanted| i64::try_from(wanted.bytes).ok());
            if wanted.is_none() {
                model.message = Some("the Model is not ready at the hub".into());
            }
        }
    }
    Some(model)
}

fn cut(message: &str) -> String {
    message
        .chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= MESSAGE_BYTES_MAX).then_some(c)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn assigned(digest: &str) -> (Key, Option<Assignment>) {
        let assignment = Assignment {
            site: "shop-1".into(),
            namespace: "default".into(),
            name: "m".into(),
            uid: "u".into(),
            digest: digest.into(),
            bytes: 10,
        };
        (Key::new("Model/default/m"), Some(assignment))
    }

    fn report(digest: &str, state: State) -> (Key, ModelReport) {
        let report = ModelReport { digest: digest.into(), state, bytes_done: 4, bytes_total: 10, message: None };
        (Key::new("Model/default/m"), report)
    }

    fn condition(status: &SiteStatus, kind: &str) -> String {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind);
        found.map_or("-".into(), |condition| format!("{} {}", condition.status, condition.reason))
    }

    #[test]
    fn a_model_is_what_the_site_says_of_the_digest_that_it_should_hold() {
        let cases = [
            (None, SiteModelState::Pending, "False Behind"),
            (Some(report("sha256:1", State::Pulling)), SiteModelState::Pulling, "False Behind"),
            (Some(report("sha256:1", State::Active)), SiteModelState::Active, "True Complete"),
            (Some(report("sha256:1", State::Failed)), SiteModelState::Failed, "False ModelFailed"),
            (Some(report("sha256:0", State::Active)), SiteModelState::Pending, "False Behind"),
        ];
        for (report, state, in_step) in cases {
            let facts = Facts {
                assigned: [assigned("sha256:1")].into(),
                reports: report.into_iter().collect(),
                ..Facts::default()
            };
            let status = status(&SiteStatus::default(), &facts, at(0));
            assert_eq!((status.models[0].state, condition(&status, "InStep")), (state, in_step.to_owned()));
        }
    }

    #[test]
    fn a_site_that_has_nothing_is_said_to_have_nothing() {
        let said = |count: usize| {
            let mut facts = Facts::default();
            for index in 0..count {
                let key = Key::new(&format!("Model/default/m{index}"));
                facts.assigned.insert(key.clone(), assigned("sha256:1").1);
                facts.reports.insert(key, report("sha256:1", State::Active).1);
            }
            status(&SiteStatus::default(), &facts, at(0)).conditions[0].message.clone()
        };
        let expected = ["no model is assigned to it", "its one model is active", "all 2 models are active"];
        assert_eq!([0, 1, 2].map(said), expected);
    }

    #[test]
    fn an_absent_site_keeps_what_it_said_and_a_hub_that_starts_says_nothing_yet() {
        let mut facts = Facts { presence: Presence::Here, seen: Some(at(0)), ..Facts::default() };
        facts.reports = [report("sha256:1", State::Unclaimed)].into();
        let here = status(&SiteStatus::default(), &facts, at(0));
        assert_eq!(
            (condition(&here, "Connected"), here.models[0].state),
            ("True LinkUp".into(), SiteModelState::Unclaimed)
        );
        facts.presence = Presence::Away;
        assert_eq!(condition(&status(&here, &facts, at(9)), "Connected"), "False LinkDown");
        facts.presence = Presence::Unknown;
        assert_eq!(condition(&status(&here, &facts, at(9)), "Connected"), "True LinkUp");
    }

    #[test]
    fn a_wrong_clock_is_a_condition_and_time_alone_is_no_news() {
        let mut facts = Facts { presence: Presence::Here, seen: Some(at(1000)), ..Facts::default() };
        facts.clock_ahead = Some(SignedDuration::from_secs(-3600));
        let first = status(&SiteStatus::default(), &facts, at(1000));
        assert_eq!(condition(&first, "ClockInStep"), "False Differs");
        assert!(first.conditions.iter().any(|condition| condition.message.contains("3600 s behind")));
        facts.seen = Some(at(1060));
        assert_eq!(status(&first, &facts, at(1060)), first);
        facts.seen = Some(at(1000 + 400));
        assert_eq!(status(&first, &facts, at(1400)).last_seen_time, Some(Time(at(1400))));
    }
}
